//! Rows: what is refused and in which words; whole files with `stop` and `skip`.

use std::fs;

use proptest::prelude::*;
use serde_json::json;
use warpo::data::records::{Body, Column, Columns, Node, Record, Text, lines, parse};
use warpo::data::{
    Dataset, Limits, OnError,
    encode::{EncodeOptions, Encoder},
};

use super::quickstart;

#[test]
fn refusals() {
    let rows: [&[u8]; 15] = [
        b"{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\"",
        b"{\"prompt\": \"p\", \"chosen\": \"a\" \"rejected\": \"b\"}",
        b"not json",
        b"[1, 2]",
        b"\"text\"",
        b"{\"prompt\": \"p\", \"rejected\": \"b\"}",
        b"{\"prompt\": \"p\", \"chosen\": \"a\"}",
        b"{\"prompt\": 3, \"chosen\": \"a\", \"rejected\": \"b\"}",
        b"{\"prompt\": [{\"role\": \"user\"}], \"chosen\": \"a\", \"rejected\": \"b\"}",
        b"{\"prompt\": \"p\", \"chosen\": null, \"rejected\": \"b\"}",
        b"{\"prompt\": \"p\", \"chosen\": \"\", \"rejected\": \"b\"}",
        b"{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \" \\n\"}",
        b"{\"prompt\": \"p\", \"chosen\": \"same\", \"rejected\": \"same\"}",
        b"{\"prompt\": \"p\xff\", \"chosen\": \"a\", \"rejected\": \"b\"}",
        b"{\"prompt\": \"\\ud800\", \"chosen\": \"a\", \"rejected\": \"b\"}",
    ];
    let messages: Vec<String> = rows.iter().map(|row| parse(row).expect_err("a bad row").to_string()).collect();
    insta::assert_snapshot!(messages.join("\n"));
}

fn record(row: serde_json::Value) -> anyhow::Result<Record> {
    let serde_json::Value::Object(fields) = row else { panic!("{row}") };
    Record::from_row(fields, &Columns::new())
}

fn plain(text: &str) -> Text {
    Text::Plain(text.into())
}

fn chat(messages: &[(&str, &str)]) -> Text {
    Text::Chat(messages.iter().map(|(role, content)| json!({"role": role, "content": content})).collect())
}

#[test]
fn every_form() {
    let user = json!({"role": "user", "content": "q"});
    let says = |text: &str| json!({"role": "assistant", "content": text});
    let [yes, no] = ["yes", "no"].map(|text| chat(&[("assistant", text)]));
    let pair = Body::Pair { chosen: yes.clone(), rejected: no.clone() };
    let asked = Some(chat(&[("user", "q")]));
    let conversations = [
        json!({"prompt": [user], "chosen": [says("yes")], "rejected": [says("no")]}),
        json!({"prompt": [user], "chosen": "yes", "rejected": "no"}),
        json!({"chosen": [user, says("yes")], "rejected": [user, says("no")]}),
        json!({"prompt": "q", "chosen": [user, says("yes")], "rejected": [user, says("no")], "messages": [user]}),
        json!({"prompt": null, "chosen": [user, says("yes")], "rejected": [user, {"role": "assistant", "content": "no", "name": null}]}),
    ];
    for row in conversations {
        let read = record(row.clone()).unwrap();
        assert_eq!((read.prompt, read.body), (asked.clone(), pair.clone()), "{row}");
    }
    let implicit = record(json!({"chosen": "ab", "rejected": "ac"})).unwrap();
    assert_eq!((implicit.prompt, implicit.body), (None, Body::Pair { chosen: plain("ab"), rejected: plain("ac") }));

    let responses = vec![plain("a"), plain("b")];
    let list = |scores: &[f64], labels: &[bool]| Body::List {
        responses: responses.clone(),
        scores: scores.to_vec(),
        labels: labels.to_vec(),
    };
    let p = json!("p");
    let forms = [
        (json!({"prompt": p, "responses": ["a", "b"], "scores": [0.5, 2]}), list(&[0.5, 2.0], &[])),
        (json!({"prompt": p, "completions": ["a", "b"], "ranks": [2, 1]}), list(&[-2.0, -1.0], &[])),
        (json!({"prompt": p, "responses": ["a", "b"], "labels": [true, false]}), list(&[], &[true, false])),
        (
            json!({"prompt": p, "completion": "c", "label": false}),
            Body::Unpaired { completion: plain("c"), label: false },
        ),
        (json!({"prompt": p, "completion": "c"}), Body::Completion { completion: plain("c") }),
        (
            json!({"prompt": p, "nodes": [{"parent": null, "text": "a"}, {"parent": 0, "text": "b", "score": 1}]}),
            Body::Tree {
                nodes: vec![
                    Node { parent: None, text: plain("a"), score: None, visits: None },
                    Node { parent: Some(0), text: plain("b"), score: Some(1.0), visits: None },
                ],
            },
        ),
    ];
    for (row, body) in forms {
        let read = record(row.clone()).unwrap();
        assert_eq!((read.prompt, read.body), (Some(plain("p")), body), "{row}");
    }
    assert_eq!(record(json!({"text": "t"})).unwrap().body, Body::Completion { completion: plain("t") });
    let messages = record(json!({"messages": [user, says("yes")]})).unwrap();
    let whole = chat(&[("user", "q"), ("assistant", "yes")]);
    assert_eq!((messages.prompt, messages.body), (None, Body::Completion { completion: whole }));
    let tools = record(json!({"messages": [user, says("a")], "tools": "[{\"name\": \"t\"}]"})).unwrap();
    assert_eq!(tools.tools, [json!({"name": "t"})]);
}

#[test]
fn refusals_of_every_form() {
    let user = json!({"role": "user", "content": "q"});
    let says = |text: &str| json!({"role": "assistant", "content": text});
    let rows = [
        json!({}),
        json!({"question": "q", "answer": "a"}),
        json!({"chosen": "a", "rejected": "b", "responses": []}),
        json!({"text": "a", "messages": [user]}),
        json!({"prompt": "p", "responses": ["a"]}),
        json!({"prompt": "p", "responses": ["a"], "scores": [1], "ranks": [1]}),
        json!({"prompt": "p", "responses": ["a"], "scores": [1, 2]}),
        json!({"prompt": "p", "responses": [], "scores": []}),
        json!({"prompt": "p", "responses": ["a", ""], "scores": [1, 2]}),
        json!({"prompt": "p", "responses": ["a"], "scores": ["1"]}),
        json!({"prompt": "p", "responses": ["a"], "ranks": [0]}),
        json!({"prompt": "p", "responses": ["a"], "labels": ["yes"]}),
        json!({"responses": ["a"], "labels": [true]}),
        json!({"completion": "a"}),
        json!({"prompt": "p", "text": "a"}),
        json!({"messages": [user]}),
        json!({"prompt": [], "chosen": "a", "rejected": "b"}),
        json!({"prompt": [{"content": "q"}], "chosen": "a", "rejected": "b"}),
        json!({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}),
        json!({"prompt": [user, says("a")], "chosen": "a", "rejected": "b"}),
        json!({"prompt": [user], "chosen": [user, says("a")], "rejected": "b"}),
        json!({"prompt": "other", "chosen": [user, says("a")], "rejected": [user, says("b")]}),
        json!({"prompt": "p", "chosen": [says("a")], "rejected": "b"}),
        json!({"chosen": [says("a")], "rejected": [says("b")]}),
        json!({"chosen": [user, says("a")], "rejected": [user, says("a"), user]}),
        json!({"chosen": [user, says("a")], "rejected": [user, says("a")]}),
        json!({"prompt": "p", "nodes": []}),
        json!({"prompt": "p", "nodes": [{"parent": 0, "text": "a"}]}),
        json!({"prompt": "p", "nodes": [{"parent": null}]}),
        json!({"prompt": [user], "nodes": [{"parent": null, "text": "a"}]}),
        json!({"text": "a", "tools": [1]}),
        json!({"text": "a", "tools": 3}),
    ];
    let messages: Vec<String> = rows.map(|row| record(row.clone()).expect_err(&row.to_string()).to_string()).into();
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn columns_rename_and_must_be_there() {
    let columns = Columns::from([(Column::Prompt, "question".into()), (Column::Rejected, "bad".into())]);
    let row = |bad: &str| match json!({"prompt": "other", "question": "q", "chosen": "a", bad: "b"}) {
        serde_json::Value::Object(fields) => Record::from_row(fields, &columns),
        _ => unreachable!(),
    };
    assert_eq!(row("bad").unwrap().prompt, Some(plain("q")));
    let missing = row("rejected").unwrap_err().to_string();
    assert!(missing.starts_with("column `bad` is missing, `data.columns.rejected` names it"), "{missing}");
}

#[test]
fn extra_fields_blank_lines_and_a_byte_order_mark_are_fine() {
    let file = b"\xef\xbb\xbf{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\", \"score\": 3}\r\n\n \n{}";
    let found = lines(file);
    assert_eq!(found.iter().map(|&(line, _)| line).collect::<Vec<_>>(), [1, 4]);
    let record = parse(found[0].1).unwrap();
    assert_eq!(record.prompt, Some(plain("p")));
    assert_eq!(record.body, Body::Pair { chosen: plain("a"), rejected: plain("b") });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (_, line) in lines(&bytes) {
            if let Err(error) = parse(line) {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }

    /// Damaged rows get further into the parser than random bytes.
    #[test]
    fn damaged_rows_never_panic(at in 0usize..60, byte in any::<u8>(), cut in 0usize..60) {
        let mut row = b"{\"prompt\": \"a prompt\", \"chosen\": \"yes\", \"rejected\": \"no\"}".to_vec();
        let at = at % row.len();
        row[at] = byte;
        let _ = parse(&row);
        row.truncate(cut);
        let _ = parse(&row);
    }
}

/// A good row of every form.
fn forms() -> Vec<serde_json::Value> {
    let [user, yes, no] = [("user", "q"), ("assistant", "yes"), ("assistant", "no")]
        .map(|(role, content)| json!([{"role": role, "content": content}]));
    vec![
        json!({"prompt": "p", "chosen": "a", "rejected": "b"}),
        json!({"prompt": user, "chosen": yes, "rejected": no, "tools": [{"name": "f"}], "chat_template_kwargs": {"x": 1}}),
        json!({"chosen": [user[0], yes[0]], "rejected": [user[0], no[0]]}),
        json!({"prompt": "p", "responses": ["a", "b", "c"], "scores": [1.0, 2.0, 0.5]}),
        json!({"prompt": user, "responses": [yes, no], "ranks": [2, 1]}),
        json!({"prompt": "p", "responses": ["a", "b"], "labels": [true, false]}),
        json!({"prompt": "p", "completion": "a", "label": true}),
        json!({"prompt": user, "completion": yes}),
        json!({"text": "a text"}),
        json!({"messages": [user[0], yes[0]]}),
        json!({"prompt": "p", "nodes": [{"text": "a", "parent": null, "score": 1}, {"text": "b", "parent": 0, "score": 2}]}),
    ]
}

#[test]
fn the_rows_that_are_changed_below_are_good() {
    for row in forms() {
        record(row.clone()).unwrap_or_else(|why| panic!("{row}: {why}"));
    }
}

/// Paths to every value inside `value`, itself included.
fn places(value: &serde_json::Value, at: String, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => map.iter().for_each(|(k, v)| places(v, format!("{at}/{k}"), found)),
        serde_json::Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, v)| places(v, format!("{at}/{i}"), found))
        }
        _ => {}
    }
    found.push(at);
}

fn any_value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        any::<bool>().prop_map(|v| json!(v)),
        any::<i64>().prop_map(|v| json!(v)),
        any::<f64>().prop_map(|v| json!(v)),
        ".{0,4}".prop_map(|v| json!(v)),
        Just(json!({"role": "assistant", "content": "x"})),
        Just(json!({"text": "x", "parent": 7})),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(|v| json!(v)),
            prop::collection::vec(("[a-z]{0,3}|role|content|text|parent|score", inner), 0..3)
                .prop_map(|v| serde_json::Value::Object(v.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// One or two values of a good row replaced by others, and a field renamed to another one's name: read, or refused
    /// in one line.
    #[test]
    fn changed_rows_of_every_form_are_read_or_refused_in_one_line(
        form in 0usize..11,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_value()), 0..3),
        rename in prop::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>())),
    ) {
        let mut row = forms().remove(form);
        for (at, value) in changes {
            let mut found = Vec::new();
            places(&row, String::new(), &mut found);
            found.pop();
            if let Some(place) = (!found.is_empty()).then(|| at.get(&found)).and_then(|at| row.pointer_mut(at)) {
                *place = value;
            }
        }
        let fields = row.as_object_mut().unwrap();
        if let Some((from, to)) = rename {
            let names = ["prompt", "chosen", "rejected", "responses", "scores", "ranks", "labels", "label", "completion",
                "text", "messages", "nodes", "tools", "extra"];
            let from = from.get(&fields.keys().cloned().collect::<Vec<_>>()).clone();
            let value = fields.remove(&from).unwrap();
            fields.insert((*to.get(&names)).to_owned(), value);
        }
        if let Err(why) = Record::from_row(fields.clone(), &Columns::new()) {
            let why = format!("{why:#}");
            prop_assert!(!why.is_empty() && !why.contains('\n'), "{why}");
        }
    }
}

#[test]
fn a_file_of_two_forms_names_a_row_of_each() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    let rows = [
        json!({"prompt": "Is it?", "chosen": " Yes", "rejected": " No"}),
        json!({"prompt": "Is it?", "completion": " Yes", "label": true}),
    ];
    fs::write(&file, rows.map(|row| row.to_string()).join("\n")).unwrap();
    let encoder = Encoder::new(quickstart::tokenizer(), None, EncodeOptions::new(LIMITS));
    let why = Dataset::load(&file, &Columns::new(), &encoder, OnError::Stop).unwrap_err().to_string();
    let want = format!(
        "{0}:1 is one of preference pairs, {0}:2 one of completions with a label: give rows of one form",
        file.display()
    );
    assert_eq!(why, want);
}

const FILE: &str = concat!(
    "{\"prompt\": \"Is it so?\", \"chosen\": \" Yes\", \"rejected\": \" No\"}\n",
    "{\"prompt\": \"Is it so?\", \"chosen\": \"\", \"rejected\": \" No\"}\n",
    "\n",
    "{\"prompt\": \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\", \"chosen\": \" Yes\", \"rejected\": \" No\"}\n",
    "{\"prompt\": \"Is it?\", \"chosen\": \" No no no no no\", \"rejected\": \" No\"}\n",
    "{\"prompt\": \"Is it not so?\", \"chosen\": \" No\", \"rejected\": \" Yes\"}\n",
);
const LIMITS: Limits = Limits { prompt: 10, response: 3, tree: 11 };

#[test]
fn skip_counts_and_lists_stop_names_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    fs::write(&file, FILE).unwrap();
    let encoder = |limits| Encoder::new(quickstart::tokenizer(), None, EncodeOptions::new(limits));
    let short = |text: &str| text[text.find("rows.jsonl").expect("the file is named")..].to_owned();

    let data = Dataset::load(&file, &Columns::new(), &encoder(LIMITS), OnError::Skip).unwrap();
    let names: Vec<String> = data.trees.iter().map(|tree| short(&tree.unwrap().name)).collect();
    assert_eq!(names, ["rows.jsonl:1", "rows.jsonl:6"]);
    let mut messages: Vec<String> = data.skipped.iter().map(|message| short(message)).collect();

    let stop = Dataset::load(&file, &Columns::new(), &encoder(LIMITS), OnError::Stop).unwrap_err();
    messages.push(short(&format!("{stop:#}")));
    let tight = Limits { tree: 6, ..LIMITS };
    let budget = Dataset::load(&file, &Columns::new(), &encoder(tight), OnError::Skip).unwrap_err();
    messages.push(short(&format!("{budget:#}")).replace(&folder.path().display().to_string(), ""));
    fs::write(&file, "\n\n").unwrap();
    let empty = Dataset::load(&file, &Columns::new(), &encoder(LIMITS), OnError::Stop).unwrap_err();
    messages.push(short(&format!("{empty:#}")));
    fs::remove_file(&file).unwrap();
    let missing = Dataset::load(&file, &Columns::new(), &encoder(LIMITS), OnError::Stop).unwrap_err();
    messages.push(short(&format!("{missing:#}")));
    insta::assert_snapshot!(messages.join("\n"));
}

/// Numbers and texts that some losses need; a field that is not a number is somebody else's.
#[test]
fn what_comes_along_for_some_losses() {
    use warpo::forest::Value;
    let pair = |more: &str| parse(format!(r#"{{"prompt": "a", "chosen": "b", "rejected": "c"{more}}}"#).as_bytes());
    let extras = |more: &str| pair(more).unwrap().extras;
    let found =
        extras(r#", "score_chosen": 3, "score_rejected": 1.5, "preference": 0.9, "group": 2, "margin": "wide""#);
    let wanted =
        vec![(Value::Score, vec![3.0, 1.5]), (Value::Preference, vec![0.9, 0.9]), (Value::Group, vec![2.0, 2.0])];
    assert_eq!(found.values, wanted);
    assert_eq!(extras(r#", "score_chosen": 3"#).values, [], "half of a pair of numbers is none");
    let single = parse(br#"{"prompt": "a", "completion": "b", "score": -2}"#).unwrap();
    assert_eq!(single.extras.values, [(Value::Score, vec![-2.0])]);
    let tree = parse(br#"{"prompt": "a", "nodes": [{"text": "b", "score": 1, "visits": 4}, {"text": "c", "score": 0, "visits": 1}]}"#);
    assert_eq!(tree.unwrap().extras.values, [(Value::Visits, vec![4.0, 1.0])]);
    let both = extras(r#", "rationale_prompt": "why", "rationale": "because", "rejected_prompt": "z""#);
    assert_eq!(both.rationale, Some(["why".into(), "because".into()]));
    assert_eq!(both.rejected_prompt.as_deref(), Some("z"));
    // A rationale without a prompt of its own is no field of ours.
    assert_eq!(extras(r#", "rationale": "because""#).rationale, None);
    for (more, says) in [
        (r#", "preference": 1.5"#, "a preference of 1.5: must be from 0 to 1"),
        (r#", "visits_chosen": -1, "visits_rejected": 2"#, "a visits of -1: must be 0 or more"),
        (r#", "group": 0.5"#, "a group of 0.5: must be a whole number"),
        (r#", "rationale_prompt": "why""#, "fields `rationale_prompt` and `rationale`: give both, as text"),
        (r#", "rejected_prompt": [1]"#, "`rejected_prompt`: goes with a plain `prompt`"),
    ] {
        let why = pair(more).unwrap_err().to_string();
        assert!(why.contains(says), "{why}");
    }
}
