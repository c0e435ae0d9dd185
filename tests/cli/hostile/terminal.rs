//! Control characters from files, wherever the program speaks.

use std::fs;

use super::{
    super::scratch::Scratch,
    Case, check, data, harmless, refusal,
    sizes::size,
    templates::template,
    train, watch,
    weights::{edit_header, index},
};

/// What would clear a screen, ring, rename a window, start a line again, or turn text around.
const EVIL: &str = "\u{1b}[2J\u{7}\u{1b}]0;owned\u{7}\r\u{8}\u{9b}31m\u{7f}\u{202e}";

/// As a text of JSON or TOML.
fn quoted() -> String {
    let escape = |c: char| format!("\\u{:04x}", c as u32);
    format!("\"{}\"", EVIL.chars().map(|c| if c.is_ascii_graphic() { c.into() } else { escape(c) }).collect::<String>())
}

/// `EVIL` in every place that an error quotes.
const QUOTES: &[Case] = &[
    data("a field", |s| s.second_row(format!("{{{}: 1}}", quoted())), &["train.jsonl:2:"]),
    data(
        "a response",
        |s| s.second_row(format!("{{\"prompt\": \"p\", \"chosen\": {0}, \"rejected\": {0}}}", quoted())),
        &["train.jsonl:2:"],
    ),
    data(
        "a role",
        |s| s.second_row(format!("{{\"messages\": [{{\"role\": {}, \"content\": 1}}]}}", quoted())),
        &["train.jsonl:2:"],
    ),
    data("raw bytes of a row", |s| s.second_row(EVIL), &["train.jsonl:2:"]),
    data("a key of the configuration", |s| s.write("run.toml", format!("{} = 1", quoted())), &["run.toml:1:"]),
    data(
        "a value of the configuration",
        |s| s.write("run.toml", format!("[train]\nprecision = {}", quoted())),
        &["run.toml:2:"],
    ),
    data("raw bytes of the configuration", |s| s.write("run.toml", EVIL), &["run.toml:1:"]),
    data("a path", |s| s.replace("run.toml", "\"train.jsonl\"", &quoted()), &["data.train"]),
    data("a pattern", |s| s.replace("run.toml", "\"train.jsonl\"", &quoted().replace("owned", "*")), &["data.train"]),
    data(
        "a loss",
        |s| {
            s.write(
                "run.toml",
                fs::read_to_string(s.path("run.toml")).unwrap() + &format!("[loss]\nname = {}", quoted()),
            )
        },
        &["run.toml"],
    ),
    data("a model folder", |s| s.replace("run.toml", "\"model\"", &quoted()), &["config.json"]),
    data(
        "a column",
        |s| s.replace("run.toml", "[batch]", &format!("columns = {{ chosen = {} }}\n[batch]", quoted())),
        &["train.jsonl:1:"],
    ),
    data("a family", |s| size(s, "model_type", &quoted()), &["config.json"]),
    data("a size", |s| size(s, "vocab_size", &quoted()), &["config.json", "vocab_size"]),
    data("a scaling", |s| size(s, "rope_scaling", &format!("{{\"rope_type\": {}}}", quoted())), &["config.json"]),
    data(
        "a template's own words",
        |s| template(s, &format!("{{{{ raise_exception({}) }}}}", quoted())),
        &["chat template"],
    ),
    data(
        "a template's name of a filter",
        |s| template(s, &format!("{{% include {} %}}", quoted())),
        &["chat template"],
    ),
    data("raw bytes of a template", |s| template(s, &format!("{{{{ {EVIL} }}}}")), &["chat template"]),
    data(
        "a tokenizer",
        |s| s.write("model/tokenizer.json", format!("{{\"version\": {}}}", quoted())),
        &["tokenizer.json"],
    ),
    train("a tensor", |s| edit_header(s, "\"model.norm.weight\"", &quoted()), &["model.safetensors"]),
    train("an element type", |s| edit_header(s, "\"F32\"", &quoted()), &["model.safetensors"]),
    train("a shard", |s| index(s, EVIL), &["model.safetensors.index.json"]),
];

#[test]
fn nothing_raw_in_errors() {
    check(QUOTES);
}

#[test]
fn nothing_raw_in_errors_about_arguments() {
    let arguments: &[&[&str]] = &[
        &["data", EVIL],
        &["data", "run.toml", "--set", EVIL],
        &["data", "run.toml", "--set", "optim.lr=\u{1b}[2J"],
        &["train", "run.toml", "--device", "host", "--out", "/proc/\u{1b}[2J"],
        &["score", "--model", "\u{1b}[2J", "--data", "train.jsonl", "--out", "scores.jsonl"],
        &["score", "--model", "model", "--data", "\u{1b}[2J", "--out", "scores.jsonl"],
        &["losses", "\u{1b}[2J"],
    ];
    for args in arguments {
        let scratch = Scratch::new();
        refusal(&format!("{args:?}"), &watch("arguments", &scratch, args));
    }
}

/// `warpo data` shows rows, names of files and rows left out, as text and token by token.
#[test]
fn nothing_raw_in_what_data_shows() {
    let scratch = Scratch::new();
    let rows = [
        format!("{{\"prompt\": {0}, \"chosen\": {0}, \"rejected\": \"no\"}}", quoted()),
        format!("{{\"prompt\": \"p\", {}: 1}}", quoted()),
        format!("{{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\", {0}: {0}}}", quoted()),
    ];
    let name = "\u{1b}]0;owned\u{7}.jsonl";
    scratch.write(name, rows.join("\n"));
    scratch.replace("run.toml", "\"train.jsonl\"", "\"\\u001b]0;owned\\u0007.jsonl\"");
    let args = ["data", "run.toml", "--show", "3", "--set", "data.on_error=skip"];
    let seen = watch("shown", &scratch, &args);
    assert!(seen.status.success(), "{}", seen.stderr);
    assert!(seen.stdout.contains("owned"), "{}", seen.stdout);
    for text in [&seen.stdout, &seen.stderr] {
        assert!(harmless(text), "{text:?}");
    }
}
