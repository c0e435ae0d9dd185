//! `warpo data`: what it shows, and the token cache behind it.

use std::{fs, process::Output};

use super::scratch::Scratch;

fn text(scratch: &Scratch, output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let folder = format!("{}/", scratch.path("").display().to_string().trim_end_matches('/'));
    String::from_utf8(output.stdout.clone()).unwrap().replace(&folder, "")
}

#[test]
fn rows_lengths_packs_and_what_was_left_out() {
    let scratch = Scratch::new();
    scratch.second_row(r#"{"prompt": "a", "chosen": " b", "rejected": " b"}"#);
    let args = ["--show", "1", "--set", "cache.dir=cache", "--set", "data.on_error=skip"];
    let first = text(&scratch, &scratch.data(&args));
    let second = text(&scratch, &scratch.data(&args));
    let tokens = |text: &str, from: &str| text.matches(from).count();
    assert_eq!((tokens(&first, " tokenised, "), tokens(&second, " read from the cache\n")), (2, 2), "{first}{second}");
    let without = |text: &str| text.lines().filter(|line| !line.starts_with("tokens: ")).collect::<Vec<_>>().join("\n");
    assert_eq!(without(&first), without(&second));
    insta::assert_snapshot!(second);
}

#[test]
fn a_damaged_cache_is_named_and_rebuilt() {
    let scratch = Scratch::new();
    let args = ["--set", "cache.dir=cache"];
    let good = text(&scratch, &scratch.data(&args));
    for entry in fs::read_dir(scratch.path("cache/tokens")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let again = text(&scratch, &scratch.data(&args));
    assert_eq!(again.matches(" was damaged: ").count(), 2, "{again}");
    assert_eq!(again.lines().next(), good.lines().next());
    assert!(text(&scratch, &scratch.data(&args)).contains("tokens: train.jsonl read from the cache"));
}

#[test]
fn columns_come_from_the_configuration() {
    let scratch = Scratch::new();
    let plain = text(&scratch, &scratch.data(&[]));
    let rows = fs::read_to_string(scratch.path("train.jsonl")).unwrap();
    scratch.write("train.jsonl", rows.replace("\"chosen\"", "\"better\"").replace("\"rejected\"", "\"worse\""));
    let rows = fs::read_to_string(scratch.path("eval.jsonl")).unwrap();
    scratch.write("eval.jsonl", rows.replace("\"chosen\"", "\"better\"").replace("\"rejected\"", "\"worse\""));
    scratch.replace("run.toml", "[batch]", "columns = { chosen = \"better\", rejected = \"worse\" }\n\n[batch]");
    let named = text(&scratch, &scratch.data(&[]));
    let without = |text: &str| text.lines().filter(|line| !line.starts_with("tokens: ")).collect::<Vec<_>>().join("\n");
    assert_eq!(without(&named), without(&plain));
    scratch.replace("run.toml", "worse", "worst");
    let output = scratch.data(&[]);
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(why.contains("train.jsonl:1: column `worst` is missing, `data.columns.rejected` names it"), "{why}");
    assert_eq!(why.lines().count(), 1);
    scratch.replace("run.toml", "rejected = ", "rejektet = ");
    let why = String::from_utf8(scratch.data(&[]).stderr).unwrap();
    assert!(why.contains("rejektet") && why.lines().count() == 1, "{why}");
}
