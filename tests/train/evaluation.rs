//! `warpo eval run`: the numbers that the run itself had on its held-out rows, for the folders it left and for others.

use std::{fs, process::Command};

use serde_json::{Map, Value};
use warpo::{
    device::Choice,
    train::evaluation::{self, EvaluationOptions},
};

use super::fixture::Fixture;

/// The held-out metrics of the last record that has any, without what belongs to the record.
fn recorded(fixture: &Fixture, out: &str) -> Map<String, Value> {
    let mut last = fixture.metrics(out).into_iter().rfind(|record| record.contains_key("eval_loss")).unwrap();
    last.retain(|name, _| name.starts_with("eval_"));
    last
}

/// That the folder has the metrics of the run's last evaluation, to the bit.
pub fn assert_as_recorded(fixture: &Fixture, set: &[&str], out: &str, folder: &str) {
    let (config, model) = (fixture.config(set), fixture.path(out).join(folder));
    let options = EvaluationOptions { config, model, device: Choice::Host };
    let found = evaluation::run(&options, &false.into()).unwrap().unwrap();
    let found: Map<String, Value> = found.iter().map(|(name, value)| (format!("eval_{name}"), value.into())).collect();
    assert_eq!(found, recorded(fixture, out), "{out}/{folder} {set:?}");
}

fn command(fixture: &Fixture, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warpo"));
    command.args(["eval", "run"]).arg(fixture.path("run.toml")).args(["--device", "host"]).args(args);
    command
}

#[test]
fn a_folder_has_the_metrics_that_the_run_had() {
    let fixture = Fixture::new();
    fixture.run("run", &[]).unwrap();
    let want = recorded(&fixture, "run");
    let folder = fixture.path("run/final").display().to_string();
    let output = command(&fixture, &["--json", "--model", &folder]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let found: Map<String, Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found, want);
    assert!(said.contains("data: 5 rows held out"), "{said}");
    // From the run folder's own configuration, for people.
    let mut own = Command::new(env!("CARGO_BIN_EXE_warpo"));
    own.args(["eval", "run", "--quiet", "--device", "host"]).arg(fixture.path("run/config.toml"));
    let output = own.args(["--model", &folder]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.starts_with("eval_loss ") && text.lines().count() == 1 && text.contains("eval_rewards/margins"),
        "{text}"
    );
    // An earlier checkpoint has others.
    let folder = fixture.path("run/checkpoint-2").display().to_string();
    let output = command(&fixture, &["--json", "--model", &folder]).output().unwrap();
    let other: Map<String, Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_ne!(other["eval_loss"], want["eval_loss"]);
}

#[test]
fn what_cannot_be_evaluated_is_named() {
    let fixture = Fixture::new();
    let refused = |args: &[&str]| {
        let output = command(&fixture, args).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        said.lines().last().unwrap().to_owned()
    };
    let model = fixture.path("model").display().to_string();
    let why = refused(&["--model", &model, "--set", "data.eval="]);
    assert!(why.contains("`data.eval` is not set: the run has no held-out rows"), "{why}");
    let why = refused(&["--model", &fixture.path("nowhere").display().to_string()]);
    assert!(why.contains("nowhere"), "{why}");
    // A model that counts its tokens otherwise.
    let other = fixture.path("other");
    fs::create_dir(&other).unwrap();
    let text = fs::read_to_string(fixture.path("model/config.json")).unwrap();
    fs::write(other.join("config.json"), text.replace("1024", "1000")).unwrap();
    let why = refused(&["--model", &other.display().to_string()]);
    assert!(why.contains("1000 tokens, `model.path` = ") && why.contains("has 1024"), "{why}");
}
