//! Borders, BOS and EOS, with tokenizers small enough to read.

use std::fs;

use anyhow::Result;
use serde_json::Map;
use serde_json::{Value, json};
use tempfile::TempDir;
use warpo::config::{LongPrompt, LongResponse, LongText};
use warpo::data::{
    Limits,
    encode::{EncodeOptions, Encoded, Encoder},
    records::{Body, Extras, Record, Text},
    tokenize::Tokenizer,
};

/// Byte-pair tokens of `a`, `b`, `c`, the merge `ab`, and two special tokens.
fn tokenizer_json(bos: bool) -> Value {
    let special = |id: u32, text: &str| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}}
    });
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": [special(4, "<s>"), special(5, "</s>")],
        "normalizer": null,
        "pre_tokenizer": null,
        "post_processor": if bos { template } else { Value::Null },
        "decoder": null,
        "model": {"type": "BPE", "dropout": 0.5, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3}, "merges": [["a", "b"]]}
    })
}

fn folder(tokenizer: &Value, files: &[(&str, Value)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content.to_string()).unwrap();
    }
    folder
}

const LIMITS: Limits = Limits { prompt: 100, response: 100, tree: 300 };

#[derive(Debug)]
struct Pair {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
}

trait EncodePair {
    fn encode_pair(self, prompt: &str, chosen: &str, rejected: &str) -> Result<Pair>;
}

impl EncodePair for Tokenizer {
    fn encode_pair(self, prompt: &str, chosen: &str, rejected: &str) -> Result<Pair> {
        let plain = |text: &str| Text::Plain(text.into());
        let record = Record {
            prompt: Some(plain(prompt)),
            body: Body::Pair { chosen: plain(chosen), rejected: plain(rejected) },
            tools: Vec::new(),
            template_kwargs: Map::new(),
            extras: Extras::default(),
            notes: Vec::new(),
        };
        let Encoded::Tree { tree, .. } = Encoder::new(self, None, EncodeOptions::new(LIMITS)).encode("row", &record)?
        else {
            panic!("nothing is dropped");
        };
        let tokens = |i: usize| tree.segments[i].tokens.clone();
        Ok(Pair { prompt: tokens(0), chosen: tokens(1), rejected: tokens(2) })
    }
}

fn load(bos: bool) -> Tokenizer {
    let folder = folder(&tokenizer_json(bos), &[("config.json", json!({"eos_token_id": 5, "bos_token_id": 4}))]);
    Tokenizer::load(folder.path(), 6).unwrap()
}

#[test]
fn a_response_follows_its_prompt_and_ends_with_one_eos() {
    let pair = load(false).encode_pair("ca", "c", "ab</s>").unwrap();
    assert_eq!((pair.prompt, pair.chosen, pair.rejected), (vec![2, 0], vec![2, 5], vec![3, 5]));
}

#[test]
fn a_merge_across_the_border_moves_it_back_for_both() {
    let pair = load(false).encode_pair("ca", "b", "c").unwrap();
    assert_eq!((pair.prompt, pair.chosen, pair.rejected), (vec![2], vec![3, 5], vec![0, 2, 5]));
    let pair = load(true).encode_pair("a", "c", "b").unwrap();
    assert_eq!((pair.prompt, pair.chosen, pair.rejected), (vec![4], vec![0, 2, 5], vec![3, 5]));
}

#[test]
fn bos_is_what_the_post_processor_adds_and_never_doubled() {
    assert_eq!(load(false).encode("ca").unwrap(), [2, 0]);
    assert_eq!(load(true).encode("ca").unwrap(), [4, 2, 0]);
    assert_eq!(load(true).encode("<s>ca").unwrap(), [4, 2, 0]);
    assert_eq!(load(true).encode("").unwrap(), [4]);
    assert_eq!(load(true).leading_bos(), Some(4));
}

/// As SmolLM2 and many others: the vocabulary has a merge of two digits, and the splitter in front never lets it happen,
/// not even across the border of prompt and response.
#[test]
fn digits_stay_one_token_each() {
    let mut json = tokenizer_json(false);
    let split = json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}]});
    json["model"]["vocab"] = json!({"a": 0, "1": 1, "2": 2, "12": 3});
    json["model"]["merges"] = json!([["1", "2"]]);
    let tokens = |json: &Value| {
        let folder = folder(json, &[("config.json", json!({"eos_token_id": 5}))]);
        let pair = Tokenizer::load(folder.path(), 6).unwrap().encode_pair("a1", "2", "a12").unwrap();
        (pair.prompt, pair.chosen, pair.rejected)
    };
    json["pre_tokenizer"] = split;
    assert_eq!(tokens(&json), (vec![0, 1], vec![2, 5], vec![0, 1, 2, 5]));
    // Without the splitter the merge happens, and the border moves back for it.
    json["pre_tokenizer"] = Value::Null;
    assert_eq!(tokens(&json), (vec![0], vec![3, 5], vec![1, 0, 3, 5]));
}

#[test]
fn truncation_and_dropout_stored_in_the_file_change_no_row() {
    assert_eq!(load(true).encode("cccccccc").unwrap().len(), 9);
    assert_eq!(load(false).encode("abababababababab").unwrap(), [3; 8]);
}

#[test]
fn eos_from_the_tokenizer_the_configuration_or_a_list() {
    let eos = |files: &[(&str, Value)]| {
        let folder = folder(&tokenizer_json(false), files);
        Tokenizer::load(folder.path(), 6).map(|t| (t.eos(), t.encode_pair("a", "c</s>", "c<s>").unwrap()))
    };
    let named = json!({"eos_token": {"content": "</s>"}});
    assert_eq!(eos(&[("tokenizer_config.json", named.clone())]).unwrap().0, 5);
    assert_eq!(eos(&[("config.json", json!({"eos_token_id": 5}))]).unwrap().0, 5);
    // Both ids end a generation, so neither response gets another one.
    let (id, pair) =
        eos(&[("tokenizer_config.json", named), ("config.json", json!({"eos_token_id": [4, 5]}))]).unwrap();
    assert_eq!((id, pair.chosen, pair.rejected), (5, vec![2, 5], vec![2, 4]));
    let (id, pair) = eos(&[("generation_config.json", json!({"eos_token_id": [5]}))]).unwrap();
    assert_eq!((id, pair.rejected), (5, vec![2, 4, 5]));
    let none = eos(&[]).unwrap_err().to_string();
    assert!(none.ends_with("names no EOS token: set `eos_token_id` in config.json"), "{none}");
}

/// Folders whose files name tokens beside tokenizer.json, against transformers: `tests/parity/make_added_tokens.py`.
#[test]
fn tokens_named_beside_the_tokenizer_have_transformers_ids() {
    let file = fs::read(crate::support::root().join("tests/fixtures/added_tokens.json")).unwrap();
    let known: Value = serde_json::from_slice(&file).unwrap();
    let texts: Vec<&str> = known["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let mut compared = 0;
    for case in known["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let files: Vec<(&str, Value)> =
            case["files"].as_object().unwrap().iter().map(|(name, file)| (name.as_str(), file.clone())).collect();
        let folder = folder(&known["bases"][case["base"].as_str().unwrap()], &files);
        let loaded = Tokenizer::load(folder.path(), 100);
        if name == "other ids" {
            let why = format!("{:#}", loaded.map(|_| ()).unwrap_err());
            assert!(
                why.contains("gives token \"<x>\" the id 40, and behind those of tokenizer.json it comes as 36"),
                "{why}"
            );
            continue;
        }
        let tokenizer = loaded.unwrap_or_else(|why| panic!("{name}: {why:#}"));
        assert_eq!(tokenizer.eos(), case["eos"].as_u64().unwrap() as u32, "{name}");
        for (text, ids) in texts.iter().zip(case["ids"].as_array().unwrap()) {
            let ids: Vec<u32> = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            assert_eq!(tokenizer.encode_rendered(text).unwrap(), ids, "{name}: {text:?}");
            compared += 1;
        }
        assert_eq!(tokenizer.size(), case["size"].as_u64().unwrap() as usize, "{name}");
    }
    assert!(compared >= 90, "{compared}");
}

/// What a file names decides about ids, so it is part of the hash.
#[test]
fn the_fingerprint_covers_tokens_named_elsewhere() {
    let print = |files: &[(&str, Value)]| {
        let folder = folder(&tokenizer_json(false), files);
        fs::write(folder.path().join("config.json"), r#"{"eos_token_id": 5}"#).unwrap();
        Tokenizer::load(folder.path(), 9).unwrap().fingerprint().to_vec()
    };
    let listed = |flag: bool| json!({"added_tokens_decoder": {"6": {"content": "<x>", "lstrip": flag}}});
    let cases: [&[(&str, Value)]; 7] = [
        &[],
        &[("tokenizer_config.json", json!({"split_special_tokens": true}))],
        &[("tokenizer_config.json", listed(false))],
        &[("tokenizer_config.json", listed(true))],
        &[("tokenizer_config.json", json!({"additional_special_tokens": ["<y>"]}))],
        &[("special_tokens_map.json", json!({"pad_token": "<z>"}))],
        &[("added_tokens.json", json!({"<w>": 6}))],
    ];
    let prints: Vec<Vec<u8>> = cases.iter().map(|files| print(files)).collect();
    for (i, one) in prints.iter().enumerate() {
        assert!(prints[..i].iter().all(|other| other != one), "{i}");
    }
}

/// A tokenizer as SentencePiece models become: bytes for what is unknown, spaces as `▁`, no word by itself.
fn sentence_pieces(normalizer: Value, splitter: Value) -> Value {
    let mut pieces: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    pieces.extend("▁abcdehnopstuw".chars().map(String::from));
    let merges = [
        ["▁", "t"],
        ["▁t", "h"],
        ["▁th", "e"],
        ["▁", "▁"],
        ["o", "n"],
        ["s", "a"],
        ["sa", "t"],
        ["▁", "a"],
        ["w", "o"],
    ];
    pieces.extend(merges.iter().map(|pair| pair.concat()));
    let vocab: Map<String, Value> = pieces.into_iter().enumerate().map(|(i, piece)| (piece, i.into())).collect();
    let end = json!({"id": vocab.len(), "content": "</s>", "single_word": false, "lstrip": false, "rstrip": true,
                     "normalized": false, "special": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [end], "normalizer": normalizer,
        "pre_tokenizer": splitter, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<0x00>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
                  "vocab": vocab, "merges": merges}
    })
}

/// A long text is tokenised in pieces. The whole text's ids and places come from the crate itself.
#[test]
fn long_texts_have_the_ids_of_the_whole() {
    let words =
        ["the", " cat", "\n\n", " 12345", " é", "</s>", "  ", "It's", " sat on THE", ".", " mats'll", "🙂", "\t", " a"];
    let mut state = 7u64;
    let mut text = String::new();
    while text.len() < 600_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        text += words[(state >> 33) as usize % words.len()];
    }
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let llama = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]});
    let gemma = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    let quickstart = crate::support::root().join("examples/quickstart-model/tokenizer.json");
    let quickstart: Value = serde_json::from_slice(&fs::read(quickstart).unwrap()).unwrap();
    let lower = json!({"type": "Sequence", "normalizers": [{"type": "Lowercase"}]});
    let cases = [
        ("byte level", quickstart, true),
        ("as Llama 2's", sentence_pieces(llama, Value::Null), true),
        ("as Gemma's", sentence_pieces(space, gemma), true),
        ("with a metaspace", sentence_pieces(Value::Null, metaspace), true),
        ("of which nothing is known", sentence_pieces(lower, Value::Null), false),
    ];
    for (name, json, known) in cases {
        let folder = folder(&json, &[("config.json", json!({"eos_token_id": 0}))]);
        let tokenizer = Tokenizer::load(folder.path(), 1 << 20).unwrap();
        let whole = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
        let want = whole.encode(text.as_str(), false).unwrap();
        assert!(tokenizer.encode_rendered(&text).unwrap() == want.get_ids(), "{name}: ids");
        let (ids, offsets) = tokenizer.encode_with_offsets(&text).unwrap();
        assert!(ids == want.get_ids() && offsets == want.get_offsets(), "{name}: places");
        assert_eq!(tokenizer.pieces(&text).len() > 3, known, "{name}");
        let before = &text[..text.floor_char_boundary(400_000)];
        let behind = tokenizer.encode_behind(&text, before, &tokenizer.encode(before).unwrap()).unwrap();
        assert!(behind == want.get_ids(), "{name}: behind another");
        let least = tokenizer.at_least(&text);
        assert!(least <= want.get_ids().len() && (least > text.len() / 200) == known, "{name}: {least}");
    }
    assert_eq!(load(false).at_least("a"), 0);
}

#[test]
fn a_row_that_cannot_fit_is_refused_or_dropped_before_it_is_tokenised() {
    let folder = crate::support::root().join("examples/quickstart-model");
    let long = "word ".repeat(80_000);
    let encode = |change: &dyn Fn(&mut EncodeOptions), prompt: &str, chosen: &str| {
        let mut options = EncodeOptions::new(LIMITS);
        change(&mut options);
        let encoder = Encoder::new(Tokenizer::load(&folder, 1 << 20).unwrap(), None, options);
        let line = json!({"prompt": prompt, "chosen": chosen, "rejected": " no"}).to_string();
        encoder.encode("row", &warpo::data::records::parse(line.as_bytes())?)
    };
    for (prompt, chosen, part, key) in
        [(&long[..], " yes", "`prompt`", "max_prompt_tokens"), ("Q", &long[..], "`chosen`", "max_response_tokens")]
    {
        let why = format!("{:#}", encode(&|_| {}, prompt, chosen).unwrap_err());
        assert!(why.starts_with(part) && why.contains("at least") && why.contains(key), "{why}");
        let drop = |options: &mut EncodeOptions| {
            (options.long_prompt, options.long_response) = (LongPrompt::Drop, LongResponse::Drop);
        };
        let Encoded::Dropped(dropped) = encode(&drop, prompt, chosen).unwrap() else { panic!() };
        assert_eq!(dropped, why);
    }
}

/// Blocks of documents say every token once: their predicted tokens behind each other are the document's.
#[test]
fn documents_are_cut_into_blocks_that_lose_no_token() {
    let line = |text: &str| warpo::data::records::parse(json!({"text": text}).to_string().as_bytes()).unwrap();
    let mut options = EncodeOptions::new(Limits { prompt: 100, response: 7, tree: 300 });
    options.long_text = LongText::Split;
    for (bos, limits) in [(false, LIMITS), (true, LIMITS), (true, Limits { tree: 5, ..LIMITS })] {
        options.limits = Limits { response: 7, ..limits };
        let encoder = Encoder::new(load(bos), None, options.clone());
        let text = "abcabccbacab".repeat(3);
        let mut want = load(bos).encode(&text).unwrap();
        want.push(5);
        let Encoded::Blocks { trees: blocks, .. } = encoder.encode("row", &line(&text)).unwrap() else {
            panic!("not cut")
        };
        let tokens: Vec<&[u32]> = blocks.iter().map(|block| &block.segments[0].tokens[..]).collect();
        assert!(tokens.iter().all(|block| (2..=limits.tree.min(7)).contains(&block.len())));
        let predicted: Vec<u32> = tokens.iter().flat_map(|block| block[1..].to_vec()).collect();
        assert_eq!(([want[0]].as_slice(), &predicted[..]), (&tokens[0][..1], &want[1..]));
        // One that fits is left whole, and only a document is cut.
        assert!(matches!(encoder.encode("row", &line("abc")).unwrap(), Encoded::Tree { .. }));
        let pair = json!({"prompt": "a", "completion": text}).to_string();
        assert!(encoder.encode("row", &warpo::data::records::parse(pair.as_bytes()).unwrap()).is_err());
    }
}

#[test]
fn refusals() {
    let small = {
        let folder = folder(&tokenizer_json(false), &[("config.json", json!({"eos_token_id": 0}))]);
        Tokenizer::load(folder.path(), 3).unwrap()
    };
    let cases = [
        load(false).encode_pair("a", "b", "c"),
        load(false).encode_pair("", "b", "c"),
        load(false).encode_pair("c", "ab", "ab</s>"),
        load(false).encode_pair("c", "d", "b"),
        load(false).encode_pair("c", "b</s></s>", "a"),
        load(false).encode_pair("<s><s>c", "b", "a"),
        load(true).encode_pair("<s><s>c", "b", "a"),
        small.encode_pair("c", "ab", "c"),
    ];
    let messages: Vec<String> = cases.into_iter().map(|case| format!("{:#}", case.err().unwrap())).collect();
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn broken_and_missing_files_are_named() {
    let empty = tempfile::tempdir().unwrap();
    let message = |folder: &TempDir, vocab| {
        let error = Tokenizer::load(folder.path(), vocab).map(|_| ()).unwrap_err();
        format!("{error:#}").replace(&folder.path().display().to_string(), "model")
    };
    let cases = [
        message(&empty, 6),
        message(&folder(&json!({"model": 3}), &[]), 6),
        message(&folder(&tokenizer_json(false), &[("config.json", json!({"eos_token_id": 5}))]), 5),
        {
            let folder = folder(&tokenizer_json(false), &[]);
            fs::write(folder.path().join("generation_config.json"), "{").unwrap();
            message(&folder, 6)
        },
        message(&folder(&tokenizer_json(false), &[("tokenizer_config.json", json!({"eos_token": "<|end|>"}))]), 6),
        message(
            &folder(&tokenizer_json(false), &[("special_tokens_map.json", json!({"eos_token": {"content": "</e>"}}))]),
            6,
        ),
        message(
            &folder(&tokenizer_json(false), &[("tokenizer_config.json", json!({"added_tokens_decoder": {"x": "y"}}))]),
            6,
        ),
        message(&folder(&tokenizer_json(false), &[("added_tokens.json", json!(["<x>"]))]), 6),
    ];
    insta::assert_snapshot!(cases.join("\n"));
}
