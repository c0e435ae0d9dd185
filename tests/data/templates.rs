//! Conversations: texts of `transformers`, token ids and masks of TRL, the traps, and what is cut.

use std::{fs, path::PathBuf};

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use warpo::data::{
    Limits,
    encode::{EncodeOptions, Encoded, Encoder},
    records::{Body, Extras, Node, Record, Text},
    template::{Templates, Variables},
    tokenize::Tokenizer,
};
use warpo::{
    config::{LongPrompt, LongResponse},
    forest::{Forest, Segment, Tree},
};

const LIMITS: Limits = Limits { prompt: 2000, response: 2000, tree: 4000 };
const STYLES: [&str; 8] = ["smollm2", "qwen2_5", "qwen3", "llama3", "gemma", "mistral", "phi3", "zephyr"];

fn folder(style: &str) -> PathBuf {
    crate::support::root().join("tests/fixtures/templates").join(style)
}

fn encoder(style: &str, change: impl FnOnce(&mut EncodeOptions)) -> Encoder {
    mixed_encoder(style, style, change)
}

/// The template of one model with the tokenizer of another.
fn mixed_encoder(template: &str, tokenizer: &str, change: impl FnOnce(&mut EncodeOptions)) -> Encoder {
    let mut options = EncodeOptions::new(LIMITS);
    change(&mut options);
    let templates = Templates::load(&folder(template), None).unwrap();
    Encoder::new(Tokenizer::load(&folder(tokenizer), 400).unwrap(), templates, options)
}

fn record(prompt: Option<Text>, body: Body) -> Record {
    Record {
        prompt,
        body,
        tools: Vec::new(),
        template_kwargs: Map::new(),
        extras: Extras::default(),
        notes: Vec::new(),
    }
}

fn chat(messages: &[(&str, &str)]) -> Text {
    Text::Chat(messages.iter().map(|(role, content)| json!({"role": role, "content": content})).collect())
}

fn plain(text: &str) -> Text {
    Text::Plain(text.into())
}

fn pair(prompt: Text, chosen: Text, rejected: Text) -> Record {
    record(Some(prompt), Body::Pair { chosen, rejected })
}

fn tree(encoder: &Encoder, record: &Record) -> Tree {
    match encoder.encode("row", record).unwrap() {
        Encoded::Tree { tree, .. } => {
            Forest::pack([&tree]).unwrap();
            tree
        }
        other => panic!("{other:?}"),
    }
}

fn refusal(encoder: &Encoder, record: &Record) -> String {
    format!("{:#}", encoder.encode("row", record).unwrap_err())
}

/// The tokens of a segment that are predicted, as text.
fn scored(encoder: &Encoder, tree: &Tree, segment: usize) -> String {
    let segment = &tree.segments[segment];
    let read = |i: &usize| !segment.unscored.iter().any(|range| range.contains(i));
    let ids: Vec<u32> = (0..segment.tokens.len()).filter(read).map(|i| segment.tokens[i]).collect();
    encoder.tokenizer().decode(&ids).unwrap()
}

/// `tests/parity/make_template_goldens.py` made the goldens.
#[test]
fn texts_ids_and_masks_are_those_of_transformers_and_trl() {
    let mut rows = 0;
    for style in STYLES {
        let golden: Value = serde_json::from_slice(&fs::read(folder(style).join("golden.json")).unwrap()).unwrap();
        let templates = Templates::load(&folder(style), None).unwrap().unwrap();
        for row in golden["rows"].as_array().unwrap() {
            let list = |name: &str| row[name].as_array().cloned().unwrap_or_default();
            let ids = |name: &str| -> Vec<u32> { serde_json::from_value(row[name].clone()).unwrap() };
            let kwargs = row["chat_template_kwargs"].as_object().cloned().unwrap_or_default();
            let record = Record {
                prompt: Some(Text::Chat(list("prompt"))),
                body: Body::Pair { chosen: Text::Chat(list("chosen")), rejected: Text::Chat(list("rejected")) },
                tools: list("tools"),
                template_kwargs: kwargs.clone(),
                extras: Extras::default(),
                notes: Vec::new(),
            };
            let variables = Variables { tools: &record.tools, kwargs: [&Map::new(), &kwargs] };
            let text = |messages: &[Value], generation| templates.render(messages, &variables, generation).unwrap();
            assert_eq!(text(&list("prompt"), true), row["prompt_text"], "{style}");
            assert_eq!(text(&[list("prompt"), list("chosen")].concat(), false), row["chosen_text"], "{style}");
            let encoder = encoder(style, |_| {});
            let got = tree(&encoder, &record);
            for (segment, name) in got.segments.iter().zip(["prompt_ids", "chosen_ids", "rejected_ids"]) {
                assert_eq!(segment.tokens, ids(name), "{style}: {name} of {row}");
                assert!(segment.unscored.is_empty());
            }
            let sft = Record { body: Body::Completion { completion: Text::Chat(list("chosen")) }, ..record };
            let got = tree(&encoder, &sft);
            let mask: Vec<u32> =
                got.segments.iter().flat_map(|s| s.tokens.iter().map(|_| u32::from(s.scored))).collect();
            let all: Vec<u32> = got.segments.iter().flat_map(|s| s.tokens.clone()).collect();
            assert_eq!((all, mask), (ids("sft_ids"), ids("sft_mask")), "{style}: completion of {row}");
            rows += 1;
        }
    }
    assert!(rows >= 20, "{rows} rows");
}

#[test]
fn a_pad_token_equal_to_eos_hides_no_end_of_turn() {
    let encoder = encoder("smollm2", |_| {});
    let row = pair(chat(&[("user", "Is it?")]), chat(&[("assistant", "Yes")]), chat(&[("assistant", "No")]));
    let got = tree(&encoder, &row);
    assert_eq!(scored(&encoder, &got, 1), "Yes<|im_end|>\n");
    assert_eq!(Forest::pack([&got]).unwrap().row_target.iter().filter(|&&id| id == 2).count(), 2);
}

#[test]
fn smollm2_gets_no_bos_in_front_and_its_default_system_message_once() {
    let encoder = encoder("smollm2", |_| {});
    let got = tree(&encoder, &pair(plain("Is it?"), plain(" Yes"), plain(" No")));
    assert_ne!(Some(got.segments[0].tokens[0]), encoder.tokenizer().bos());
    let row = pair(chat(&[("user", "Is it?")]), chat(&[("assistant", "Yes")]), chat(&[("assistant", "No")]));
    let got = tree(&encoder, &row);
    let text = encoder.tokenizer().decode(&got.segments[0].tokens).unwrap();
    assert_eq!(text.matches("helpful AI assistant named SmolLM").count(), 1, "{text}");
}

#[test]
fn bos_is_never_doubled_where_template_and_tokenizer_both_write_it() {
    for style in ["llama3", "gemma", "mistral"] {
        let encoder = encoder(style, |_| {});
        let row = pair(chat(&[("user", "Is it?")]), chat(&[("assistant", "Yes")]), chat(&[("assistant", "No")]));
        let got = tree(&encoder, &row);
        let bos = encoder.tokenizer().bos().unwrap();
        let all = got.segments.iter().flat_map(|s| &s.tokens);
        assert_eq!(all.filter(|&&id| id == bos).count(), 1, "{style}");
        assert_eq!(got.segments[0].tokens[0], bos, "{style}");
        let doubled = pair(plain("<s><s>a"), plain("b"), plain("c"));
        if style == "mistral" {
            assert!(refusal(&encoder, &doubled).contains("BOS (token 0) twice"));
        }
    }
}

#[test]
fn an_end_of_turn_written_twice_is_refused() {
    let encoder = encoder("smollm2", |_| {});
    let row = pair(chat(&[("user", "a")]), chat(&[("assistant", "Yes<|im_end|>")]), chat(&[("assistant", "No")]));
    assert_eq!(refusal(&encoder, &row), "`chosen` ends with EOS (token 2) twice: remove it from the text, it is added");
}

#[test]
fn truncation_cuts_what_the_policy_says_and_empties_no_response() {
    let long = pair(plain("<s>one two three"), plain(" Yes, it is so"), plain(" No"));
    let whole = tree(&encoder("mistral", |_| {}), &long);
    let (prompt, chosen) = (&whole.segments[0].tokens, &whole.segments[1].tokens);
    let limits = Limits { prompt: 4, response: 3, tree: 100 };
    let cut = |long_prompt, long_response| {
        let encoder = encoder("mistral", |options| {
            *options = EncodeOptions { limits, long_prompt, long_response, ..options.clone() };
        });
        encoder.encode("row", &long)
    };
    let Encoded::Tree { tree, prompt_cut: true, responses_cut: 1, .. } =
        cut(LongPrompt::KeepEnd, LongResponse::KeepStart).unwrap()
    else {
        panic!("cut")
    };
    assert_eq!(tree.segments[0].tokens, [&prompt[..1], &prompt[prompt.len() - 3..]].concat(), "BOS and the end");
    assert_eq!(tree.segments[1].tokens, chosen[..3], "no EOS behind a cut");
    assert_eq!(tree.segments[2].tokens, whole.segments[2].tokens, "EOS behind what was not cut");
    let Encoded::Tree { tree, .. } = cut(LongPrompt::KeepStart, LongResponse::KeepStart).unwrap() else { panic!() };
    assert_eq!(tree.segments[0].tokens, prompt[..4]);
    for (long_prompt, key) in [(LongPrompt::Drop, "max_prompt"), (LongPrompt::KeepEnd, "max_response")] {
        let dropped = cut(long_prompt, LongResponse::Drop).unwrap();
        assert!(matches!(&dropped, Encoded::Dropped(why) if why.contains(key)), "{dropped:?}");
    }
    let refused = format!("{:#}", cut(LongPrompt::Error, LongResponse::Error).unwrap_err());
    assert!(refused.contains("`prompt` has") && refused.contains("data.max_prompt_tokens"), "{refused}");
    // Cut to the same ids there is nothing to prefer.
    let encoder = encoder("mistral", |options| {
        options.limits.response = 1;
        options.long_response = LongResponse::KeepStart;
    });
    let same = pair(plain("a"), plain(" b c"), plain(" b d"));
    assert!(refusal(&encoder, &same).contains("same token ids"));
}

#[test]
fn a_prompt_that_is_no_prefix_moves_the_border_and_loses_no_answer() {
    let templates = |text: &str| {
        let folder = tempfile::tempdir().unwrap();
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(self::folder("smollm2").join(file), folder.path().join(file)).unwrap();
        }
        fs::write(folder.path().join("chat_template.jinja"), text).unwrap();
        let templates = Templates::load(folder.path(), None).unwrap();
        Encoder::new(Tokenizer::load(folder.path(), 400).unwrap(), templates, EncodeOptions::new(LIMITS))
    };
    let row = pair(chat(&[("user", "Is it?")]), chat(&[("assistant", "Yes")]), chat(&[("assistant", "No")]));
    let turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}";
    let encoder =
        templates(&format!("{turns}{{% if add_generation_prompt %}}<|im_start|>assistant\n<think>{{% endif %}}"));
    let got = tree(&encoder, &row);
    assert_eq!(scored(&encoder, &got, 1), "Yes<|im_end|>");
    // The answer's start stands in the generation prompt.
    let encoder = templates(&format!("{turns}{{% if add_generation_prompt %}}<|im_start|>assistant\nY{{% endif %}}"));
    let row = pair(chat(&[("user", "Is it?")]), chat(&[("assistant", "Y Q")]), chat(&[("assistant", "Y N")]));
    assert!(refusal(&encoder, &row).contains("counts as prompt"));
}

#[test]
fn only_the_assistants_turns_of_a_longer_response_are_scored() {
    for style in ["smollm2", "qwen3", "llama3"] {
        let encoder = encoder(style, |_| {});
        let talk = [("user", "a"), ("assistant", "first"), ("user", "question"), ("assistant", "second")];
        let row = record(None, Body::Completion { completion: chat(&talk) });
        let got = tree(&encoder, &row);
        let text = scored(&encoder, &got, 1);
        assert!(text.starts_with("first") && text.contains("second") && !text.contains("question"), "{style}: {text}");
        assert!(!text.contains("user") && got.segments[1].unscored.len() == 1, "{style}: {text}");
        let ends = got.segments[1].tokens.iter().filter(|&&id| encoder.tokenizer().is_end(id)).count();
        assert_eq!(ends, 3, "{style}: the user's and both of the assistant's");
        let Segment { tokens, unscored, .. } = &got.segments[1];
        let is_scored = |i: &usize| !unscored.iter().any(|range| range.contains(i));
        let learnt = (0..tokens.len()).filter(|i| encoder.tokenizer().is_end(tokens[*i]) && is_scored(i)).count();
        assert_eq!(learnt, 2, "{style}: both turns of the assistant end with a token that is learnt");
    }
}

#[test]
fn lists_labels_and_documents() {
    let encoder = encoder("mistral", |_| {});
    let responses = vec![plain(" b"), plain(" c"), plain(" d")];
    let body = Body::List { responses, scores: vec![1.0, 3.0, 2.0], labels: Vec::new() };
    let got = tree(&encoder, &record(Some(plain("a")), body));
    assert_eq!((got.segments.len(), got.scores, got.pairs), (4, vec![1.0, 3.0, 2.0], vec![]));
    let body = Body::Unpaired { completion: plain(" b"), label: true };
    assert_eq!(tree(&encoder, &record(Some(plain("a")), body)).labels, [true]);
    let got = tree(&encoder, &record(None, Body::Completion { completion: plain("a document") }));
    assert_eq!(got.segments.len(), 1);
    assert!(got.segments[0].scored && got.segments[0].tokens.ends_with(&[1]), "EOS closes it");
    let body = Body::Pair { chosen: plain("Is it? Yes"), rejected: plain("Is it? No") };
    let got = tree(&encoder, &record(None, body));
    assert_eq!(encoder.tokenizer().decode(&got.segments[0].tokens).unwrap(), "<s>Is it? ");
}

#[test]
fn steps_share_their_path_and_leaves_end() {
    let encoder = encoder("smollm2", |_| {});
    let node = |parent, text: Text, score| Node { parent, text, score: Some(score), visits: None };
    let nodes = |text: &dyn Fn(&str) -> Text| Body::Tree {
        nodes: vec![
            node(None, text("One."), 1.0),
            node(None, text(" Two."), 2.0),
            node(Some(0), text(" So"), 3.0),
            node(Some(0), text(" Not"), 4.0),
        ],
    };
    let got = tree(&encoder, &record(Some(plain("a: ")), nodes(&|text| plain(text))));
    assert_eq!(got.scores, [1.0, 3.0, 4.0, 2.0], "depth first");
    let texts: Vec<String> = (1..5).map(|i| scored(&encoder, &got, i)).collect();
    assert_eq!(texts, ["One.", " So<|im_end|>", " Not<|im_end|>", " Two.<|im_end|>"]);
    let got = tree(&encoder, &record(Some(chat(&[("user", "a")])), nodes(&|text| chat(&[("assistant", text)]))));
    let texts: Vec<String> = (1..5).map(|i| scored(&encoder, &got, i)).collect();
    assert_eq!(texts, ["One.", " So<|im_end|>\n", " Not<|im_end|>\n", " Two.<|im_end|>\n"]);
}

#[test]
fn what_a_conversation_lacks_is_named() {
    let row = pair(chat(&[("user", "a")]), chat(&[("assistant", "b")]), chat(&[("assistant", "c")]));
    let bare = Encoder::new(Tokenizer::load(&folder("mistral"), 400).unwrap(), None, EncodeOptions::new(LIMITS));
    let mistral = encoder("mistral", |_| {});
    let system =
        pair(chat(&[("system", "s"), ("user", "a")]), chat(&[("assistant", "b")]), chat(&[("assistant", "c")]));
    let silent = pair(chat(&[("user", "a")]), chat(&[("user", "b")]), chat(&[("assistant", "c")]));
    let mixed = pair(plain("a"), chat(&[("assistant", "b")]), plain("c"));
    let mut reserved = row.clone();
    reserved.template_kwargs.insert("messages".into(), json!([]));
    let messages = [
        refusal(&bare, &row),
        refusal(&mistral, &system),
        refusal(&encoder("smollm2", |_| {}), &silent),
        refusal(&mistral, &mixed),
        refusal(&mistral, &reserved),
    ];
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn the_key_follows_everything_that_determines_the_ids() {
    let keys = [
        encoder("smollm2", |_| {}).key(),
        encoder("qwen3", |_| {}).key(),
        encoder("qwen2_5", |_| {}).key(),
        mixed_encoder("smollm2", "llama3", |_| {}).key(),
        mixed_encoder("llama3", "smollm2", |_| {}).key(),
        encoder("smollm2", |options| options.limits.prompt = 3).key(),
        encoder("smollm2", |options| options.long_prompt = LongPrompt::KeepEnd).key(),
        encoder("smollm2", |options| drop(options.template_kwargs.insert("a".into(), json!(1)))).key(),
    ];
    assert_eq!(keys[0], encoder("smollm2", |_| {}).key());
    for (i, key) in keys.iter().enumerate() {
        assert!(!keys[..i].contains(key), "key {i}");
    }
}

/// Found by the random templates below: the beginning and the end of a tag share their `%`.
#[test]
fn a_tag_without_an_inside_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for text in ["{{%}}", "{%}", "{%", "{%%}", "{%-%}"] {
        fs::write(folder.path().join("chat_template.jinja"), text).unwrap();
        assert!(Templates::load(folder.path(), None).is_err(), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn random_conversations_never_panic(
        style in prop::sample::select(&STYLES[..]),
        talk in prop::collection::vec((prop::sample::select(vec!["user", "assistant", "system", "tool"]),
            "\\PC{0,12}|<\\|im_end\\|>|<think>a</think>b|</s>"), 0..6),
        split in 0usize..6, limit in 1usize..40,
    ) {
        let encoder = encoder(style, |options| {
            options.limits = Limits { prompt: limit, response: limit, tree: 500 };
            options.long_prompt = LongPrompt::KeepEnd;
            options.long_response = LongResponse::KeepStart;
        });
        let talk: Vec<(&str, &str)> = talk.iter().map(|(role, text)| (*role, text.as_str())).collect();
        let (prompt, rest) = talk.split_at(split.min(talk.len()));
        let text = |talk: &[(&str, &str)]| chat(talk);
        let rows = [
            record(Some(text(prompt)), Body::Completion { completion: text(rest) }),
            record(None, Body::Unpaired { completion: text(&talk), label: true }),
            record(None, Body::Pair { chosen: text(&talk), rejected: text(prompt) }),
            record(Some(text(prompt)), Body::Tree { nodes: vec![
                Node { parent: None, text: text(rest), score: None, visits: None },
                Node { parent: Some(0), text: text(prompt), score: None, visits: None },
            ] }),
        ];
        for row in &rows {
            match encoder.encode("row", row) {
                Ok(Encoded::Tree { tree, .. }) => {
                    Forest::pack([&tree]).unwrap();
                }
                Ok(Encoded::Dropped(_) | Encoded::Blocks { .. }) => {}
                Err(error) => prop_assert!(!format!("{error:#}").contains('\n'), "{error:#}"),
            }
        }
    }

    #[test]
    fn random_templates_never_panic(text in "(\\{%-? ?(if|for m in|set a =|endfor|endif|generation|endgeneration)? ?\\PC{0,6}-?%\\}|\\{\\{ ?\\PC{0,8}\\}\\}|\\PC{0,5}){0,5}") {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("chat_template.jinja"), &text).unwrap();
        if let Ok(Some(templates)) = Templates::load(folder.path(), None) {
            let empty = Map::new();
            let variables = Variables { tools: &[], kwargs: [&empty, &empty] };
            let _ = templates.render(&[json!({"role": "user", "content": text})], &variables, true);
        }
    }
}
