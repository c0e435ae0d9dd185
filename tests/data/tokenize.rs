//! Borders, BOS and EOS, with tokenizers small enough to read.

use std::fs;

use anyhow::Result;
use serde_json::Map;
use serde_json::{Value, json};
use tempfile::TempDir;
use warpo::data::{
    Limits,
    encode::{Encoded, Encoder, Options},
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
        };
        let Encoded::Tree { tree, .. } = Encoder::new(self, None, Options::new(LIMITS)).encode("row", &record)? else {
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
    ];
    insta::assert_snapshot!(cases.join("\n"));
}
