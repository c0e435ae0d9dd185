//! Pipes, folders and endless files in the places of files.

use std::{fs, path::Path, process::Command};

use super::{
    super::{bad_input::check_says, scratch::Scratch},
    refusal, watch,
};

/// An endless file in the place of another.
fn endless(scratch: &Scratch, name: &str) {
    let _ = fs::remove_file(scratch.path(name));
    std::os::unix::fs::symlink("/dev/zero", scratch.path(name)).unwrap();
}

/// A pipe that nobody writes to.
fn pipe(scratch: &Scratch, name: &str) {
    let _ = fs::remove_file(scratch.path(name));
    assert!(Command::new("mkfifo").arg(scratch.path(name)).status().unwrap().success());
}

fn folder(scratch: &Scratch, name: &str) {
    let _ = fs::remove_file(scratch.path(name));
    fs::create_dir(scratch.path(name)).unwrap();
}

const FILES: [&str; 8] = [
    "model/config.json",
    "model/tokenizer.json",
    "model/tokenizer_config.json",
    "model/generation_config.json",
    "model/special_tokens_map.json",
    "model/chat_template.jinja",
    "model/chat_template.json",
    "model/model.safetensors",
];

/// Each file of a run as something that is none: the refusal names it.
#[test]
fn special_files() {
    let kinds = [("endless", endless as fn(&Scratch, &str)), ("a pipe", pipe), ("a folder", folder)];
    // A run's own file may be a pipe: whoever names it writes to it.
    let named = ["run.toml", "train.jsonl"].into_iter().map(|name| (name, vec![kinds[0], kinds[2]]));
    for (name, kinds) in FILES.into_iter().map(|name| (name, kinds.to_vec())).chain(named) {
        for (what, make) in kinds {
            let scratch = Scratch::new();
            make(&scratch, name);
            let case = format!("{name} is {what}");
            let seen = watch(&case, &scratch, &["train", "run.toml", "--out", "out", "--device", "host"]);
            let line = refusal(&case, &seen);
            let file = Path::new(name).file_name().unwrap().to_str().unwrap();
            println!("  {line}");
            check_says(&case, &line, &[file]);
        }
    }
}

/// What never ends, by name.
#[test]
fn devices() {
    for (key, device) in [("template", "zero"), ("train", "zero"), ("train", "urandom"), ("train", "null")] {
        let scratch = Scratch::new();
        let set = format!("data.{key}=/dev/{device}");
        let line = refusal(&set, &watch(&set, &scratch, &["data", "run.toml", "--set", &set]));
        println!("  {line}");
        check_says(&set, &line, &[&format!("/dev/{device}")]);
    }
}
