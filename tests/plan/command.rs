//! `warpo plan`: what it prints, for people and for programs.

use std::{
    fs,
    process::{Command, Output},
};

use serde_json::Value;

use crate::{support::root, train::fixture::Fixture};

fn plan(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_warpo")).arg("plan").args(args).current_dir(root()).output().unwrap()
}

fn text(args: &[&str]) -> String {
    let done = plan(args);
    let why = String::from_utf8(done.stderr).unwrap();
    String::from_utf8(done.stdout).unwrap() + &why
}

fn json(args: &[&str]) -> (Value, Option<i32>) {
    let done = plan(&[args, &["--json"]].concat());
    (serde_json::from_slice(&done.stdout).unwrap(), done.status.code())
}

/// The models that people ask about, at 4k, 8k and 16k tokens a micro-batch on an 80 GB card.
#[test]
fn budgets_of_released_models() {
    let mut all = String::new();
    let exact = ["optim.gradients=f32", "optim.moments=f32"];
    let small = ["optim.gradients=bf16", "optim.moments=8bit"];
    for (model, [gradients, moments]) in [
        ("llama-3.2-1b", exact),
        ("llama-3.2-3b", exact),
        ("qwen2.5-3b", exact),
        ("llama-3-8b", small),
        ("qwen2.5-7b", small),
        ("qwen2.5-14b", small),
    ] {
        for tokens in ["4096", "8192", "16384"] {
            let tokens = format!("batch.tokens={tokens}");
            let sets = ["--set", gradients, "--set", moments, "--set", &tokens];
            let args = [&["--model", model, "--device-memory", "82.0GB"][..], &sets].concat();
            all += &format!("$ warpo plan {}\n{}\n", args.join(" "), text(&args));
        }
    }
    insta::assert_snapshot!(all);
}

/// What the host's memory takes, and what that costs; and a remedy where it is not asked for.
#[test]
fn moments_of_the_host() {
    let model = ["--model", "llama-3-8b", "--device-memory", "82.0GB", "--set", "batch.tokens=4096"];
    let there = ["--set", "optim.moments_on=host"];
    let (found, _) = json(&[&model[..], &there].concat());
    // Two moments of 4 bytes of 8,030,261,248 parameters.
    assert_eq!(found["host_bytes"], 64_242_089_984_u64);
    assert!((found["link_seconds"].as_f64().unwrap() - 64.242e9 / 50e9).abs() < 1e-3);
    let said = text(&[&model[..], &there].concat());
    assert!(
        said.contains("moments: 64.2 GB of the host's memory; an update copies them in and out, 1.28 s at 50 GB/s"),
        "{said}"
    );
    let (without, _) = json(&model);
    assert_eq!(without["host_bytes"], 0);
    // Three windows in the place of the moments, and a count of 40 bytes for each of 1915 pieces instead of one for all.
    let state = |found: &Value| found["parts"]["optimizer_state"].as_u64().unwrap();
    assert_eq!(state(&without) - state(&found), 64_242_089_984 - 3 * (32 << 20) - 40 * (1915 - 1));
    assert!(text(&model).contains("optim.moments_on = \"host\": "), "{}", text(&model));
}

#[test]
fn numbers_for_programs() {
    let args = ["--model", "llama-3.2-3b", "--device-memory", "62GB", "--set", "batch.tokens=8192"];
    let (found, code) = json(&args);
    assert_eq!((found["fits"].as_bool(), code), (Some(true), Some(0)));
    insta::assert_snapshot!(serde_json::to_string_pretty(&found).unwrap());
    let (found, code) = json(&["--model", "llama-3-8b", "--device-memory", "80GB"]);
    assert_eq!((found["fits"].as_bool(), code), (Some(false), Some(1)));
    assert!(found["total_bytes"].as_u64() > found["device_bytes"].as_u64());
    let sum: u64 = found["parts"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(found["total_bytes"], sum);
}

/// Of a run: its own rows, no weights, and the table that training prints.
#[test]
fn a_run_is_planned_as_it_is_trained() {
    let fixture = Fixture::new();
    let file = fixture.path("run.toml").display().to_string();
    let planned = text(&[&file, "--device", "host"]);
    fs::remove_file(fixture.path("model/tokenizer_config.json")).unwrap();
    let trained = fixture.execute("out", &["--set", "train.steps=1"]);
    let trained = String::from_utf8(trained.stdout).unwrap();
    let table = |text: &str| -> Vec<String> {
        let lines = text.lines().skip_while(|line| !line.starts_with("memory for")).skip(1);
        lines.take_while(|line| line.starts_with("  ")).map(str::to_owned).collect()
    };
    assert!(table(&planned).len() > 6, "{planned}");
    assert_eq!(table(&planned), table(&trained));
    let (found, _) = json(&[&file, "--device", "host"]);
    assert_eq!(found["tokens"], 160);
    assert!(found["longest_row"].as_u64().unwrap() <= 160);
}

#[test]
fn what_cannot_be_planned_is_one_line() {
    let model = ["--model", "llama-3-8b", "--device-memory", "80GB"];
    let with = |more: &[&str]| text(&[&model[..], more].concat());
    for (said, want) in [
        (text(&["--model", "llama-4"]), "error: --model llama-4: no folder, and none of gpt2-124m, llama-3.2-1b,"),
        (with(&["--set", "data.order=file"]), "error: --set data.order=file: `data.order` takes no memory"),
        (
            with(&["--set", "train.recompute=qkv:3"]),
            "error: `train.recompute` = \"qkv:3\" names 3 layers, the model has 32",
        ),
        (with(&["--set", "train.recompute=all"]), "`all`: expected auto, none, attention,"),
        (with(&["--set", "train.head_chunk_rows=0"]), "`train.head_chunk_rows` = 0: must be at least 1"),
        (text(&["--model", "llama-3-8b", "--device-memory", "80 boxes"]), "expected bytes as in 80GB, 74.5GiB"),
        (text(&["missing.toml", "--device-memory", "80GB"]), "error: configuration `missing.toml` cannot be read"),
    ] {
        assert!(said.contains(want), "{said}");
    }
    assert_eq!(plan(&[]).status.code(), Some(2));
    assert_eq!(plan(&["run.toml", "--model", "llama-3-8b"]).status.code(), Some(2));
}
