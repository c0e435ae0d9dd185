//! What a terminal gets to see: nothing that a file or a name makes it do, and an error where nothing can be written.

use std::{
    fs::File,
    process::{Command, Output, Stdio},
};

use super::scratch::Scratch;

/// A title, a bell, a colour of eight bits, and a turn of the writing direction, as JSON has them.
const HOSTILE: &str = "\\u001b]0;owned\\u0007\\u009b31m\\u202eabc";

fn assert_harmless(output: &Output) -> String {
    let mut all = String::new();
    for bytes in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(bytes);
        let obeyed = text.chars().find(|&c| c != '\n' && (c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c)));
        assert_eq!(obeyed, None, "{text:?}");
        all += &text;
    }
    all
}

#[test]
fn rows_are_shown_and_not_obeyed() {
    let scratch = Scratch::new();
    let row =
        |chosen: &str| format!(r#"{{"prompt": "a {HOSTILE}", "chosen": " b {HOSTILE}", "rejected": "{chosen}"}}"#);
    scratch.write("train.jsonl", format!("{}\n", row(" c")));
    let text = assert_harmless(&scratch.data(&["--show", "1"]));
    for part in ["\\x1b", "\\x07"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // A row that is refused, in an error and where it is left out.
    scratch.write("train.jsonl", format!("{}\n{}\n", row(" c"), row(&format!(" b {HOSTILE}"))));
    let text = assert_harmless(&scratch.data(&[]));
    assert!(text.contains("train.jsonl:2") && text.contains("owned"), "{text}");
    assert_harmless(&scratch.data(&["--set", "data.on_error=skip"]));
    assert_harmless(&scratch.train("out", &["--device", "host", "--set", "data.on_error=skip"]));
    // The same as a key and as a value that a message repeats.
    scratch.write("train.jsonl", format!(r#"{{"{HOSTILE}": 1, "chosen": "{HOSTILE}"}}"#));
    assert_harmless(&scratch.data(&[]));
}

#[cfg(unix)]
#[test]
fn names_are_shown_and_not_obeyed() {
    let scratch = Scratch::new();
    let name = "a\x1b]0;owned\x07\n\u{202e}b.jsonl";
    std::fs::rename(scratch.path("train.jsonl"), scratch.path(name)).unwrap();
    let data = format!("data.train={}", scratch.path("a*b.jsonl").display());
    for args in [&["--show", "2"][..], &["--set", "data.max_prompt_tokens=1"]] {
        let text = assert_harmless(&scratch.data(&[&["--set", &data][..], args].concat()));
        assert!(text.contains("a\\x1b]0;owned\\x07") && text.contains("\\u{202e}b.jsonl"), "{text}");
    }
    let out = "o\x1b[31m\u{9b}1m";
    assert_harmless(&scratch.train(out, &["--device", "host", "--set", &data]));
    assert_harmless(&scratch.train(out, &["--device", "host", "--set", &data]));
    // Wrong usage repeats what was typed.
    let wrong = scratch.data(&["--\x1b[31m"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert_harmless(&wrong);
    assert_harmless(&scratch.data(&["--set", "optim.\x1b[31m=1"]));
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_that_cannot_be_written_is_an_error() {
    let scratch = Scratch::new();
    let run = scratch.path("run.toml").display().to_string();
    let shell = [&["completions", "bash"][..], &["man"], &["man", "train"]];
    let others = [&["losses"][..], &["losses", "dpo"], &["doctor"], &["data", &run], &["--help"], &["--version"]];
    for args in shell.into_iter().chain(others) {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_warpo"));
        let output = command.args(args).stdout(Stdio::from(full)).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with("error: standard output: cannot be written: "), "{args:?}: {text}");
    }
}
