//! Bad input: exit code 1 or 2 and one line that names file, line or key, value and remedy, before anything is trained
//! or written.

use std::{fs, process::Output};

use super::scratch::Scratch;

/// One thing that is wrong.
struct Case {
    name: &'static str,
    damage: fn(&Scratch),
    args: &'static [&'static str],
    /// What the line has to say, in this order: place, value, remedy.
    says: &'static [&'static str],
}

const fn file(name: &'static str, damage: fn(&Scratch), says: &'static [&'static str]) -> Case {
    Case { name, damage, args: &[], says }
}

const fn set(name: &'static str, args: &'static [&'static str], says: &'static [&'static str]) -> Case {
    Case { name, damage: |_| (), args, says }
}

const CONFIGURATION: &[Case] = &[
    file("no configuration", |s| s.remove("run.toml"), &["run.toml", "cannot be read", "name an existing TOML file"]),
    file(
        "a configuration that is not TOML",
        |s| s.replace("run.toml", "lr = 1e-4", "lr = = 1e-4"),
        &["run.toml:13:", "correct the TOML"],
    ),
    file(
        "an unknown key",
        |s| s.replace("run.toml", "lr =", "learning_rate ="),
        &["run.toml:13:", "`optim.learning_rate`", "correct the name", "`lr`"],
    ),
    file(
        "an unknown section",
        |s| s.replace("run.toml", "[optim]", "[optimizer]"),
        &["run.toml:12:", "`optimizer`", "correct the name", "`optim`"],
    ),
    file(
        "a learning rate of -1",
        |s| s.replace("run.toml", "1e-4", "-1"),
        &["run.toml:13:", "`optim.lr` = -1", "must be a finite number above 0"],
    ),
    file(
        "a learning rate that is NaN",
        |s| s.replace("run.toml", "1e-4", "nan"),
        &["run.toml:13:", "`optim.lr` = NaN", "must be a finite number above 0"],
    ),
    set("-1 by --set", &["--set", "optim.lr=-1"], &["--set optim.lr=-1", "`optim.lr` = -1", "must be a finite number"]),
    set("NaN by --set", &["--set", "optim.lr=nan"], &["--set optim.lr=nan", "= NaN", "must be a finite number"]),
    set("an unknown key by --set", &["--set", "optim.lrr=1"], &["--set optim.lrr=1", "`optim.lrr`", "`lr`"]),
];

/// A row whose chosen response alone is longer than the model reads.
fn long_row() -> String {
    format!(r#"{{"prompt": "Well?", "chosen": "{}", "rejected": " no"}}"#, " yes and no".repeat(120))
}

const DATA: &[Case] = &[
    file("no training file", |s| s.remove("train.jsonl"), &["train.jsonl", "cannot be read", "name an existing file"]),
    file("no evaluation file", |s| s.remove("eval.jsonl"), &["eval.jsonl", "cannot be read", "name an existing file"]),
    file(
        "an empty training file",
        |s| s.write("train.jsonl", ""),
        &["train.jsonl", "no usable row", "give at least one"],
    ),
    file(
        "broken JSON",
        |s| s.second_row(r#"{"prompt": "a", "chosen": "b" "rejected": "c"}"#),
        &["train.jsonl:2:", "broken JSON", "column 31", "write one JSON object a line"],
    ),
    file(
        "a missing field",
        |s| s.second_row(r#"{"prompt": "a", "chosen": "b"}"#),
        &["train.jsonl:2:", "`rejected` is missing", "a preference pair needs"],
    ),
    file(
        "a field that is no text",
        |s| s.second_row(r#"{"prompt": 5, "chosen": "b", "rejected": "c"}"#),
        &["train.jsonl:2:", "`prompt` is the number 5", "give text or a list"],
    ),
    file(
        "an empty response",
        |s| s.second_row(r#"{"prompt": "a", "chosen": "", "rejected": "c"}"#),
        &["train.jsonl:2:", "`chosen` is empty", "give the response or remove the row"],
    ),
    file(
        "equal responses",
        |s| s.second_row(r#"{"prompt": "a", "chosen": "same", "rejected": "same"}"#),
        &["train.jsonl:2:", "`chosen` and `rejected` are equal", "\"same\"", "remove the row"],
    ),
    file(
        "bytes that are not UTF-8",
        |s| s.second_row(b"{\"prompt\": \"\xff\", \"chosen\": \"b\", \"rejected\": \"c\"}"),
        &["train.jsonl:2:", "byte 13", "0xff", "save the file as UTF-8"],
    ),
    set(
        "a prompt over the limit",
        &["--set", "data.max_prompt_tokens=9"],
        &["train.jsonl:1:", "`prompt` has", "`data.max_prompt_tokens` = 9", "raise data.max_prompt_tokens"],
    ),
    set(
        "a response over the limit",
        &["--set", "data.max_response_tokens=1"],
        &[
            "train.jsonl:1:",
            "`chosen` has 2 tokens",
            "`data.max_response_tokens` = 1",
            "raise data.max_response_tokens",
        ],
    ),
    set(
        "rows that are all dropped",
        &["--set", "data.max_prompt_tokens=1", "--set", "data.long_prompt=drop"],
        &["train.jsonl: no row is left: 4 of 4 were dropped", "data.long_prompt", "train.jsonl:1: `prompt` has"],
    ),
    Case {
        name: "a response over the positions of the model",
        damage: |s| s.second_row(long_row()),
        args: &["--set", "batch.tokens=2048", "--set", "data.max_response_tokens=1000"],
        says: &["train.jsonl:2: prompt and response have", "256 positions", "data.long_response", "data.on_error"],
    },
    set(
        "a tree over the budget of a micro-batch",
        &["--set", "batch.tokens=12"],
        &["train.jsonl:1:", "tokens, `batch.tokens` = 12", "raise batch.tokens"],
    ),
];

const MODEL: &[Case] = &[
    set("no model folder", &["--set", "model.path=elsewhere"], &["elsewhere/config.json", "needs a config.json"]),
    file("no config.json", |s| s.remove("model/config.json"), &["model/config.json", "needs a config.json"]),
    file(
        "no tokenizer",
        |s| s.remove("model/tokenizer.json"),
        &["model/tokenizer.json", "cannot be read", "needs the"],
    ),
    file(
        "an architecture that does not run",
        |s| {
            s.replace("model/config.json", "LlamaForCausalLM", "MambaForCausalLM");
            s.replace("model/config.json", "\"model_type\": \"llama\"", "\"model_type\": \"mamba\"");
        },
        &["model/config.json", "mamba", "warpo runs model_type \"llama\", \"mistral\""],
    ),
    file("no weights", |s| s.remove("model/model.safetensors"), &["model", "model.safetensors", "init"]),
    file(
        "a tensor with a wrong shape",
        |s| s.write_weights(64),
        &["model/model.safetensors", "`model.norm.weight`", "expected [32], found [64]", "config.json"],
    ),
    file(
        "truncated weights",
        |s| {
            let bytes = fs::read(s.path("model/model.safetensors")).unwrap();
            s.write("model/model.safetensors", &bytes[..bytes.len() / 2]);
        },
        &["model/model.safetensors", "truncated: expected", "found", "again"],
    ),
];

const MACHINE: &[Case] = &[
    set(
        "more worker threads than fit into memory",
        &["--set", "train.threads=100000"],
        &["`train.threads` = 100000", "at most ", "vm.max_map_count", "lower it"],
    ),
    set("the cache's folder as a run folder", &["--set", "cache.dir=out"], &["run folder out", "`cache.dir`", "--out"]),
];

/// The last line of a refusal, checked for its form.
fn refusal(case: &str, output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{case}: {:?}: {stderr}", output.status);
    assert_eq!(stderr.lines().count(), 1, "{case}: {stderr}");
    assert!(stderr.starts_with("error: "), "{case}: {stderr}");
    stderr
}

pub(super) fn check_says(case: &str, line: &str, says: &[&str]) {
    let mut rest = line;
    for part in says {
        let at = rest.find(part).unwrap_or_else(|| panic!("{case}: `{part}` is not in its place: {line}"));
        rest = &rest[at + part.len()..];
    }
}

/// Runs each case on a scratch folder of its own and shows every failure, not only the first.
fn check(cases: &[Case]) {
    for case in cases {
        let scratch = Scratch::new();
        (case.damage)(&scratch);
        let before = scratch.files();
        let args = [&["--device", "host"], case.args].concat();
        let line = refusal(case.name, &scratch.train("out", &args));
        println!("{line}");
        check_says(case.name, &line, case.says);
        assert!(scratch.files() == before, "{}: a refused run changes no file and makes no folder", case.name);
    }
}

#[test]
fn the_undamaged_folder_trains() {
    let scratch = Scratch::new();
    let output = scratch.train("out", &["--device", "host"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(scratch.path("out/metrics.jsonl").is_file());
}

#[test]
fn no_option_is_ignored_silently() {
    check(CONFIGURATION);
}

#[test]
fn data() {
    check(DATA);
}

#[test]
fn model() {
    check(MODEL);
}

#[test]
fn machine() {
    check(MACHINE);
}

/// The model's positions are one more limit of the policies for long rows.
#[test]
fn rows_over_the_positions_follow_the_policies() {
    let scratch = Scratch::new();
    scratch.second_row(long_row());
    let common = ["--device", "host", "--set", "batch.tokens=2048", "--set", "data.max_response_tokens=1000"];
    for (out, policy, said) in [
        ("skipped", "data.on_error=skip", "left out: "),
        ("dropped", "data.long_response=drop", "long training rows: 0 prompts cut, 0 responses cut, 1 rows dropped"),
        ("cut", "data.long_response=keep_start", "long training rows: 0 prompts cut, 1 responses cut, 0 rows dropped"),
    ] {
        let output = scratch.train(out, &[&common[..], &["--set", policy]].concat());
        assert!(output.status.success(), "{policy}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(said), "{policy}: {text}");
        let output = scratch.data(&[&common[2..], &["--set", policy, "--show", "2"]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        let rows = if out == "cut" { "train: 4 rows" } else { "train: 3 rows" };
        assert!(text.contains(rows), "{policy}: {text}");
    }
}

#[test]
fn cuda_without_a_driver() {
    if warpo::device::Device::cuda(0).is_ok() {
        println!("skipped: there is an NVIDIA driver");
        return;
    }
    let scratch = Scratch::new();
    let before = scratch.files();
    let line = refusal("--device cuda", &scratch.train("out", &["--device", "cuda"]));
    check_says("--device cuda", &line, &["driver", "--device host"]);
    assert!(scratch.files() == before);
}

#[test]
fn an_output_folder_that_is_a_file() {
    let scratch = Scratch::new();
    scratch.write("out", "precious");
    let before = scratch.files();
    let line = refusal("a file", &scratch.train("out", &["--device", "host"]));
    check_says("a file", &line, &["out", "--out"]);
    let line = refusal("below a file", &scratch.train("out/run", &["--device", "host"]));
    check_says("below a file", &line, &["out/run", "--out"]);
    assert!(scratch.files() == before);
}

#[test]
fn an_output_folder_in_use() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("out")).unwrap();
    scratch.write("out/notes.txt", "precious");
    let before = scratch.files();
    let line = refusal("in use", &scratch.train("out", &["--device", "host"]));
    check_says("in use", &line, &["out", "--out"]);
    assert!(scratch.files() == before);
}

/// Not even root can make a folder in `/proc`.
#[cfg(target_os = "linux")]
#[test]
fn an_output_folder_that_cannot_be_written() {
    let scratch = Scratch::new();
    let before = scratch.files();
    let line = refusal("read-only", &scratch.train("/proc/warpo-run", &["--device", "host"]));
    check_says("read-only", &line, &["/proc/warpo-run", "--out"]);
    assert!(scratch.files() == before);
}

#[cfg(unix)]
#[test]
fn a_full_disk_keeps_the_checkpoints_there_are() {
    let scratch = Scratch::new();
    let args = ["--device", "host", "--set", "train.steps=2", "--set", "train.save_every=1"];
    let output = scratch.train("out", &args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // As if the run had been killed before the second checkpoint.
    fs::remove_dir_all(scratch.path("out/checkpoint-2")).unwrap();
    let keep = |scratch: &Scratch| {
        let mut files = scratch.files();
        files.retain(|path, _| path.iter().any(|part| part == "checkpoint-1"));
        files
    };
    let before = keep(&scratch);
    assert!(!before.is_empty());

    let line = refusal("full", &scratch.train_on_a_full_disk(&[&args[..], &["--resume"]].concat()));
    check_says("full", &line, &["out/checkpoint-2: not saved", "make room", "--resume", "cannot be written"]);
    assert!(keep(&scratch) == before);
    assert!(!scratch.path("out/checkpoint-2").exists());

    let output = scratch.train("out", &[&args[..], &["--resume"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(scratch.path("out/checkpoint-2").is_dir());
}
