//! Forms of published sets: what is read where there is one sensible reading, and what is named where there is none.

use serde_json::{Value, json};
use warpo::data::{
    notes::{Note, Notes},
    records::{Body, Column, Record, Text},
};

fn with(columns: &[(Column, &str)], row: Value) -> anyhow::Result<Record> {
    let Value::Object(fields) = row else { panic!("{row}") };
    Record::from_row(fields, &columns.iter().map(|&(column, name)| (column, name.to_owned())).collect())
}

fn read(row: Value) -> Record {
    let shown = row.to_string();
    with(&[], row).unwrap_or_else(|why| panic!("{shown}: {why:#}"))
}

fn refusal(row: Value) -> String {
    format!("{:#}", with(&[], row).unwrap_err())
}

fn plain(text: &str) -> Text {
    Text::Plain(text.into())
}

fn chat(messages: &[(&str, &str)]) -> Text {
    Text::Chat(messages.iter().map(|(role, content)| json!({"role": role, "content": content})).collect())
}

fn pair(chosen: Text, rejected: Text) -> Body {
    Body::Pair { chosen, rejected }
}

fn unread(names: &[&str]) -> Vec<Note> {
    names.iter().map(|name| Note::Unread(format!("`{name}`"))).collect()
}

#[test]
fn fields_that_nothing_reads_are_named() {
    let row = json!({"id": 7, "prompt": "p", "chosen": "a", "rejected": "b", "source": "s", "nothing": null, "score_chosen": 2.0});
    assert_eq!(read(row).notes, unread(&["id", "source", "score_chosen"]));
    let row = json!({"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 2.0, "score_rejected": 1.0});
    assert_eq!(read(row).notes, []);
    assert_eq!(
        read(json!({"prompt": "p", "completion": "a", "rationale": "r", "score": "high"})).notes,
        unread(&["rationale", "score"])
    );
    let nodes = json!([{"parent": null, "text": "a", "mood": 1}]);
    assert_eq!(read(json!({"prompt": "p", "nodes": nodes})).notes, [Note::Unread("`mood` of nodes".into())]);
    // Another's name for a column of ours is not read under ours.
    let row = json!({"prompt": "p", "question": "q", "chosen": "a", "rejected": "b"});
    assert_eq!(with(&[(Column::Prompt, "question")], row).unwrap().notes, unread(&["prompt"]));
    let escape = json!({"prompt": "p", "chosen": "a", "rejected": "b", "\u{1b}[31m": 1});
    assert_eq!(read(escape).notes, [Note::Unread("`\\u{1b}[31m`".into())]);
}

#[test]
fn notes_are_lines_with_counts_and_first_rows() {
    let mut notes = Notes::default();
    let says = || Note::Template("leaves out the tools".into());
    notes.add(":3", vec![says(), says(), Note::Unread("`id`".into())]);
    notes.add(":9", vec![says(), Note::Unread("`a`".into())]);
    let want = [
        "note: x.jsonl gives what nothing reads: `a`, `id`",
        "note: the chat template leaves out the tools: 2 rows of x.jsonl, the first is line 3",
    ];
    assert_eq!(notes.lines("x.jsonl"), want);
    notes.0.clear();
    notes.add(": row 4", vec![Note::Reading("`b` is read".into())]);
    assert_eq!(notes.lines("y.parquet"), ["note: `b` is read: 1 row of y.parquet, the first is row 4"]);
}

#[test]
fn a_system_text_of_its_own_column_stands_in_front() {
    let messages = json!([{"role": "user", "content": "q"}]);
    let row = json!({"system": "be kind", "prompt": messages, "chosen": "a", "rejected": "b"});
    let found = read(row);
    assert_eq!((found.prompt, found.notes), (Some(chat(&[("system", "be kind"), ("user", "q")])), vec![]));
    let row = json!({"system": "be kind", "messages": [messages[0], {"role": "assistant", "content": "a"}]});
    let want = chat(&[("system", "be kind"), ("user", "q"), ("assistant", "a")]);
    assert_eq!(read(row).body, Body::Completion { completion: want });
    let own = json!([{"role": "system", "content": "be kind"}, messages[0]]);
    let row = |system: &str| json!({"system": system, "prompt": own, "chosen": "a", "rejected": "b"});
    assert_eq!(read(row("be kind ")).prompt, Some(chat(&[("system", "be kind"), ("user", "q")])));
    assert_eq!(refusal(row("be rude")), "`system` and the first message are two system texts: remove one");
    let plainly = read(json!({"system": "be kind", "prompt": "q", "chosen": "a", "rejected": "b"}));
    assert_eq!(plainly.prompt, Some(plain("be kind\n\nq")));
    assert!(matches!(&plainly.notes[..], [Note::Reading(what)] if what.contains("`system`")), "{:?}", plainly.notes);
    let empty = read(json!({"system": "", "prompt": "q", "chosen": "a", "rejected": "b"}));
    assert_eq!((empty.prompt, empty.notes), (Some(plain("q")), vec![]));
    assert_eq!(read(json!({"system": "be kind", "text": "a"})).notes, unread(&["system"]));
    let named = with(&[(Column::System, "persona")], json!({"persona": "s", "prompt": messages, "completion": "a"}));
    assert_eq!(named.unwrap().prompt, Some(chat(&[("system", "s"), ("user", "q")])));
}

#[test]
fn messages_may_come_as_their_json_text() {
    let text =
        |answer: &str| json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]).to_string();
    let found = read(json!({"chosen": text("yes"), "rejected": text("no")}));
    let want = (Some(chat(&[("user", "q")])), pair(chat(&[("assistant", "yes")]), chat(&[("assistant", "no")])));
    assert_eq!((found.prompt, found.body), want);
    let whole = chat(&[("user", "q"), ("assistant", "yes")]);
    for name in ["messages", "text"] {
        assert_eq!(read(json!({name: text("yes")})).body, Body::Completion { completion: whole.clone() }, "{name}");
    }
    // JSON that is no conversation is text.
    for text in ["[1, 2]", "[{\"role\": 3}]", "[\"role\"]", "{\"role\": \"user\"}"] {
        assert_eq!(read(json!({"prompt": "p", "completion": text})).body, Body::Completion { completion: plain(text) });
    }
    let python = json!({"prompt": "p", "completion": "[{'role': 'user', 'content': 'q'}]"});
    assert!(refusal(python).contains("is the text of a Python list of messages"));
    let list = json!({"prompt": "p", "responses": "[\"a\", \"b\"]", "scores": "[1, 2]"});
    let Body::List { responses, scores, .. } = read(list).body else { panic!() };
    assert_eq!((responses, scores), (vec![plain("a"), plain("b")], vec![1.0, 2.0]));
    let tools = json!(["{\"name\": \"t\"}", {"name": "u"}]);
    let row =
        json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": tools});
    assert_eq!(read(row).tools, [json!({"name": "t"}), json!({"name": "u"})]);
}

#[test]
fn sharegpt_in_place_of_messages() {
    let talk =
        json!([{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]);
    let whole = chat(&[("system", "s"), ("user", "q"), ("assistant", "a")]);
    for name in ["conversations", "messages"] {
        assert_eq!(read(json!({name: talk})).body, Body::Completion { completion: whole.clone() }, "{name}");
    }
    let ask = json!([{"from": "human", "value": "q"}]);
    let row = json!({"conversations": ask, "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}});
    assert!(refusal(row.clone()).contains("data.columns = { prompt = \"conversations\" }"));
    let found = with(&[(Column::Prompt, "conversations")], row).unwrap();
    let want = (Some(chat(&[("user", "q")])), pair(chat(&[("assistant", "a")]), chat(&[("assistant", "b")])));
    assert_eq!((found.prompt, found.body), want);
    let odd = json!({"conversations": [{"from": "human", "value": "q"}, {"from": "narrator", "value": "a"}]});
    assert!(refusal(odd).contains("`conversations[1].from` is \"narrator\": give `human`"));
    let call = r#"{"name": "weather", "arguments": {"town": "Ulm"}}"#;
    let row = json!({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": call},
        {"from": "observation", "value": "cold"}, {"from": "gpt", "value": "a"}]});
    let Body::Completion { completion: Text::Chat(messages) } = read(row).body else { panic!() };
    assert_eq!(messages[1]["tool_calls"][0]["function"]["arguments"]["town"], "Ulm");
    assert_eq!((&messages[2]["role"], &messages[2]["content"]), (&json!("tool"), &json!("cold")));
}

#[test]
fn alpacas_fields_are_a_conversation() {
    let row =
        json!({"instruction": "add", "input": "1 and 2", "output": "3", "system": "count", "history": [["hi", "ho"]]});
    let found = read(row);
    let want = chat(&[("system", "count"), ("user", "hi"), ("assistant", "ho"), ("user", "add\n1 and 2")]);
    assert_eq!((found.prompt, found.body), (Some(want), Body::Completion { completion: chat(&[("assistant", "3")]) }));
    let found = read(json!({"instruction": "add", "input": "", "chosen": "3", "rejected": "4"}));
    assert_eq!(
        (found.prompt, found.body),
        (Some(chat(&[("user", "add")])), pair(chat(&[("assistant", "3")]), chat(&[("assistant", "4")])))
    );
    // A file whose columns are named is read as they say, and nothing of it is dropped.
    let row = json!({"instruction": "add", "input": "1 and 2", "chosen": "3", "rejected": "4"});
    let found = with(&[(Column::Prompt, "instruction")], row).unwrap();
    assert_eq!((found.prompt, found.body), (Some(plain("add\n1 and 2")), pair(plain("3"), plain("4"))));
    assert!(
        refusal(json!({"instruction": "add", "output": "3", "history": [["hi"]]}))
            .contains("`history[0]` is a list of 1")
    );
}

#[test]
fn pairs_whose_parts_come_in_different_forms() {
    let [yes, no] = ["yes", "no"].map(|text| json!([{"role": "assistant", "content": text}]));
    let found = read(json!({"prompt": "q", "chosen": yes, "rejected": no}));
    let want = (Some(chat(&[("user", "q")])), pair(chat(&[("assistant", "yes")]), chat(&[("assistant", "no")])));
    assert_eq!((found.prompt, found.body), want, "a plain question and answers that are messages");
    let ask = |id: u32| json!({"role": "user", "content": "q", "id": id});
    let found = read(json!({"chosen": [ask(1), yes[0]], "rejected": [ask(2), no[0]]}));
    assert_eq!(
        found.body,
        pair(chat(&[("assistant", "yes")]), chat(&[("assistant", "no")])),
        "an id is no other message"
    );
    let columns = [(Column::Chosen, "a"), (Column::Rejected, "b")];
    assert!(with(&columns, json!({"prompt": "p", "a": "x", "b": "y", "labels": 1})).is_ok());
    let why = with(&columns, json!({"prompt": "p", "a": "x", "b": "y", "labels": 0})).unwrap_err().to_string();
    assert!(
        why.starts_with("`labels` is the number 0 beside `a` and `b`, so the second would be the better one"),
        "{why}"
    );
    assert!(refusal(json!({"question": "q", "answer": "a"})).contains("data.columns names the fields"));
}
