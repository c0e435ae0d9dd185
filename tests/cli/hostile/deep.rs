//! Values in values in values.

use super::{Case, LEVELS, check, data, nested, train, weights::header};

const DEEP: &[Case] = &[
    data(
        "a deep row",
        |s| s.second_row(format!("{{\"prompt\": {}}}", nested())),
        &["train.jsonl:2:", "nested more than 128 deep"],
    ),
    data(
        "a deep row that does not end",
        |s| s.second_row("{\"a\":".repeat(LEVELS)),
        &["train.jsonl:2:", "nested more than 128 deep"],
    ),
    data(
        "a deep element of an array",
        |s| {
            s.write("rows.json", format!("[{}]", nested()));
            s.replace("run.toml", "train.jsonl", "rows.json");
        },
        &["rows.json: row 1:", "nested more than 128 deep"],
    ),
    data(
        "deep tools in a text",
        |s| {
            let row = r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": "TOOLS"}"#;
            s.second_row(row.replace("TOOLS", &nested()));
        },
        &["train.jsonl:2:", "`tools`"],
    ),
    data("a deep config.json", |s| s.write("model/config.json", nested()), &["model/config.json", "JSON"]),
    data(
        "a deep value in config.json",
        |s| s.write("model/config.json", format!("{{\"model_type\": {}}}", nested())),
        &["model/config.json", "recursion limit"],
    ),
    data("a deep tokenizer.json", |s| s.write("model/tokenizer.json", nested()), &["model/tokenizer.json"]),
    data(
        "a deep tokenizer_config.json",
        |s| s.write("model/tokenizer_config.json", format!("{{\"chat_template\": {}}}", nested())),
        &["tokenizer_config.json", "broken JSON"],
    ),
    data("a deep configuration", |s| s.write("run.toml", format!("x = {}", nested())), &["run.toml:1:"]),
    data(
        "a deep table of a configuration",
        |s| s.write("run.toml", format!("[{}]", vec!["a"; LEVELS].join("."))),
        &["run.toml"],
    ),
    data("a deep inline table", |s| s.write("run.toml", format!("x = {}", "{a=".repeat(LEVELS))), &["run.toml:1:"]),
    train(
        "a deep index",
        |s| {
            s.remove("model/model.safetensors");
            s.write("model/model.safetensors.index.json", nested());
        },
        &["model.safetensors.index.json"],
    ),
    train("a deep header", |s| header(s, &nested(), 0), &["model.safetensors", "broken header", "copy the file again"]),
];

#[test]
fn deep_nesting() {
    check(DEEP);
}
