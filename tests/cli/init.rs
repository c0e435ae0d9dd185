//! `warpo init`: what it writes is taken by `warpo data`, and nothing of another tool's file goes unsaid.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Map, Value, json};

use super::scratch::Scratch;
use crate::support::root;

fn warpo(scratch: &Scratch, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_warpo")).args(args).current_dir(scratch.path("")).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Writes `made.toml` and shows what becomes of the rows; gives the configuration and what was said.
fn made(scratch: &Scratch, args: &[&str]) -> (String, String) {
    let _ = fs::remove_file(scratch.path("made.toml"));
    let output = warpo(scratch, &[&["init", "--out", "made.toml"], args].concat());
    let said = text(&output.stderr);
    assert!(output.status.success() && output.stdout.is_empty(), "{args:?}: {said}");
    let toml = fs::read_to_string(scratch.path("made.toml")).unwrap();
    let data = warpo(scratch, &["data", "made.toml", "--set", "cache.dir=off"]);
    assert!(data.status.success(), "{args:?}: {}\n{toml}", text(&data.stderr));
    (toml, said)
}

fn table(toml: &str) -> toml::Table {
    toml.parse().unwrap()
}

/// Every YAML file of `tests/fixtures/init`, by tool.
fn foreign() -> Vec<PathBuf> {
    let folder = |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let tools = folder(&root().join("tests/fixtures/init")).into_iter().filter(|path| path.is_dir());
    let mut files: Vec<PathBuf> = tools.flat_map(|tool| folder(&tool)).collect();
    files.sort();
    files
}

/// The keys of a file whose tables stand at the left margin: what the test knows of YAML.
fn keys(yaml: &str) -> Vec<&str> {
    let lines = yaml.lines().filter(|line| !line.starts_with([' ', '-', '#']));
    lines.filter_map(|line| line.split_once(':')).map(|(key, _)| key).collect()
}

#[test]
fn every_key_of_real_files_is_carried_over_or_listed() {
    let scratch = Scratch::new();
    let files = foreign();
    assert_eq!(files.len(), 15);
    for file in files {
        let name = file.display().to_string();
        let yaml = fs::read_to_string(&file).unwrap();
        let (toml, said) = made(&scratch, &["--from", &name, "--model", "model", "--data", "train.jsonl"]);
        assert!(keys(&yaml).len() > 20, "{name}");
        for key in keys(&yaml) {
            let quoted = format!("`{key}`");
            let listed = toml.lines().filter(|line| line.starts_with(&format!("# * {quoted} = "))).count();
            let told = said.lines().filter(|line| line.starts_with(&format!("not carried over: {quoted} = "))).count();
            let carried = toml.lines().any(|line| !line.starts_with("# * ") && line.contains(&quoted));
            assert!(listed == told && listed < 2, "{name}: {key}: {listed} in the file, {told} on the terminal");
            assert!(listed == 1 || carried, "{name}: {key} is nowhere:\n{toml}");
        }
        // Without rows and model there is a place for both.
        let open = text(&warpo(&scratch, &["init", "--from", &name]).stdout);
        let data = table(&open)["data"].as_table().unwrap().clone();
        assert_eq!(data["train"].as_str(), Some("ROWS.jsonl"), "{open}");
        assert!(table(&open)["model"]["path"].as_str().unwrap().contains('/'), "{open}");
    }
}

/// What the files say, one value of each kind.
#[test]
fn values_of_other_tools_are_values_here() {
    let scratch = Scratch::new();
    let folder = root().join("tests/fixtures/init");
    let of = |name: &str| {
        table(
            &made(
                &scratch,
                &["--from", &folder.join(name).display().to_string(), "--model", "model", "--data", "train.jsonl"],
            )
            .0,
        )
    };
    let number = |table: &toml::Table, key: &str| {
        let (section, key) = key.split_once('.').unwrap();
        let value = table[section].get(key).unwrap_or_else(|| panic!("no {key}: {table}"));
        value.as_float().or(value.as_integer().map(|whole| whole as f64)).unwrap()
    };
    let word = |table: &toml::Table, key: &str| {
        let (section, key) = key.split_once('.').unwrap();
        table[section][key].as_str().unwrap().to_owned()
    };
    let dpo = of("trl/dpo.yaml");
    assert_eq!((word(&dpo, "loss.name").as_str(), number(&dpo, "loss.beta")), ("dpo", 0.2));
    for (key, want) in [
        ("optim.lr", 3e-6),
        ("batch.pairs", 15.0),
        ("optim.warmup_ratio", 0.05),
        ("data.max_prompt_tokens", 1000.0),
        ("data.max_response_tokens", 2000.0),
        ("train.epochs", 2.0),
        ("train.save_every", 70.0),
        ("train.keep_checkpoints", 4.0),
        ("train.log_every", 7.0),
        ("train.seed", 11.0),
    ] {
        assert_eq!(number(&dpo, key), want, "{key}");
    }
    assert_eq!((word(&dpo, "optim.schedule").as_str(), word(&dpo, "train.precision").as_str()), ("cosine", "bf16"));
    let apo = of("trl/apo.yaml");
    assert_eq!((word(&apo, "loss.name").as_str(), number(&apo, "optim.min_lr")), ("apo_zero", 1.5e-6));
    // ORPO's `beta` is the weight of the odds ratio.
    let orpo = of("trl/orpo.yaml");
    assert_eq!((word(&orpo, "loss.name").as_str(), number(&orpo, "loss.lambda")), ("orpo", 0.2));
    assert_eq!((number(&orpo, "optim.warmup_steps"), number(&orpo, "train.save_every")), (40.0, 0.0));
    assert_eq!(orpo["train"]["tensorboard"].as_bool(), Some(true));
    let orpo = of("axolotl/orpo.yaml");
    assert_eq!((number(&orpo, "loss.lambda"), number(&orpo, "data.eval_fraction")), (0.3, 0.25));
    let kto = of("axolotl/kto.yaml");
    assert_eq!(word(&kto, "loss.name"), "kto");
    assert_eq!((number(&kto, "loss.beta"), number(&kto, "loss.desirable_weight")), (0.2, 0.7));
    assert_eq!((number(&kto, "batch.pairs"), word(&kto, "data.long_response").as_str()), (15.0, "drop"));
    let pretrained = of("llama-factory/pretrain.yaml");
    assert_eq!((word(&pretrained, "loss.name"), word(&pretrained, "data.long_text")), ("sft".into(), "split".into()));
    let sft = of("axolotl/sft-lora.yaml");
    assert_eq!(
        (number(&sft, "optim.beta2"), number(&sft, "optim.eps"), number(&sft, "optim.weight_decay")),
        (0.97, 2e-6, 0.02)
    );
    assert_eq!((number(&sft, "train.eval_every"), number(&sft, "train.early_stop")), (60.0, 2.0));
}

#[test]
fn the_loss_is_for_the_rows_and_columns_are_recognised() {
    let scratch = Scratch::new();
    let pair = json!({"question": "a b", "response_j": " good", "response_k": " bad"});
    let cases: [(Value, &str, Value); 8] = [
        (json!({"prompt": "a", "chosen": " b", "rejected": " c"}), "dpo", json!({})),
        (pair, "dpo", json!({"prompt": "question", "chosen": "response_j", "rejected": "response_k"})),
        (json!({"prompt": "a", "completion": " b", "label": true}), "kto", json!({})),
        (
            json!({"query": "a", "response": " b", "is_good": false}),
            "kto",
            json!({"prompt": "query", "completion": "response", "label": "is_good"}),
        ),
        (json!({"prompt": "a", "responses": [" b", " c"], "scores": [1, 0]}), "tpo", json!({})),
        (json!({"prompt": "a", "responses": [" b", " c"], "labels": [true, false]}), "infonca", json!({})),
        (json!({"question": "a", "answer": " b"}), "sft", json!({"prompt": "question", "completion": "answer"})),
        (json!({"content": "a document"}), "sft", json!({"text": "content"})),
    ];
    for (row, loss, columns) in cases {
        scratch.write("rows.jsonl", format!("{row}\n{row}\n"));
        let (toml, said) = made(&scratch, &["--model", "model", "--data", "rows.jsonl"]);
        assert_eq!(said, "wrote made.toml\n");
        let table = table(&toml);
        assert_eq!(table["loss"]["name"].as_str(), Some(loss), "{row}: {toml}");
        let found = table["data"].get("columns").map_or(Map::new(), |columns| {
            columns
                .as_table()
                .unwrap()
                .iter()
                .map(|(key, value)| (key.clone(), value.as_str().unwrap().into()))
                .collect()
        });
        assert_eq!(Value::Object(found), columns, "{row}: {toml}");
        // A line of words above every key.
        let lines: Vec<&str> = toml.lines().collect();
        let keys = lines.iter().enumerate().filter(|(_, line)| !line.starts_with(['#', '[']) && !line.is_empty());
        keys.for_each(|(at, line)| assert!(lines[at - 1].starts_with("# "), "{line}: {toml}"));
    }
}

/// Limits hold the rows that there are, and a run begins.
#[test]
fn a_run_trains_from_what_it_writes() {
    let scratch = Scratch::new();
    let (toml, _) = made(&scratch, &["--model", "model", "--data", "train.jsonl"]);
    assert!(table(&toml)["data"]["max_prompt_tokens"].as_integer().unwrap() <= 256, "{toml}");
    let run = warpo(
        &scratch,
        &["train", "made.toml", "--out", "out", "--device", "host", "--set", "train.steps=1", "--set", "cache.dir=off"],
    );
    assert!(run.status.success(), "{}", text(&run.stderr));
    // In another folder paths still lead to the files.
    fs::create_dir(scratch.path("deep")).unwrap();
    let args = ["init", "--model", "model", "--data", "train.jsonl", "--out", "deep/run.toml"];
    assert!(warpo(&scratch, &args).status.success());
    assert!(warpo(&scratch, &["data", "deep/run.toml", "--set", "cache.dir=off"]).status.success());
}

#[test]
fn refusals() {
    let scratch = Scratch::new();
    scratch.write("odd.jsonl", "{\"left\": 1, \"right\": 2}\n");
    scratch.write("empty.jsonl", "");
    let yaml = |text: &str| scratch.write("a.yaml", text);
    let refused = |args: &[&str], part: &str| {
        let output = warpo(&scratch, &[&["init"], args].concat());
        let why = text(&output.stderr);
        assert!(
            output.status.code() == Some(1) && output.stdout.is_empty() && why.lines().count() == 1,
            "{args:?}: {why}"
        );
        assert!(why.starts_with("error: ") && why.contains(part), "{args:?}: {why}");
    };
    let model = ["--model", "model", "--data"];
    refused(&[&model[..], &["train.jsonl", "--out", "run.toml"]].concat(), "run.toml: exists already");
    refused(&[&model[..], &["odd.jsonl"]].concat(), "odd.jsonl`: no known form: the row has `left`, `right`");
    refused(&[&model[..], &["empty.jsonl"]].concat(), "empty.jsonl` has no row");
    refused(&[&model[..], &["none.jsonl"]].concat(), "none.jsonl");
    refused(&["--model", "none", "--data", "train.jsonl"], "none");
    let from = ["--from", "a.yaml"];
    refused(&from, "a.yaml: cannot be read");
    yaml("a: [1, 2\n");
    refused(&from, "a.yaml: ");
    yaml("- 1\n");
    refused(&from, "a.yaml: is no table of settings");
    yaml("colour: red\n");
    refused(&from, "a.yaml: no setting of TRL, axolotl or LLaMA-Factory is in it");
    yaml("stage: ppo\nmodel_name_or_path: a/b\n");
    refused(&from, "a.yaml: `stage` = \"ppo\": it trains on samples of the policy");
    yaml("model_name_or_path: a/b\nloss_type: sigmoit\n");
    refused(&from, "`loss_type` = \"sigmoit\": there is no loss of this name: did you mean `sigmoid`?");
    yaml("model_name_or_path: a/b\nbeta: 0.1\nlearning_rate: fast\n");
    refused(&from, "`learning_rate` = \"fast\": is no number");
    yaml("model_name_or_path: a/b\nbeta: -1\n");
    refused(&from, "`loss.beta` = -1");
    let usage = warpo(&scratch, &["init", "--model", "model"]);
    assert_eq!(usage.status.code(), Some(2));
}
