//! `scripts/forward-metrics.py`, with modules that say what they are called with in the place of those it sends to.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A module of each name: what it is called with is a line of standard output.
const STUB: &str = r#"
import json
def said(name):
    return lambda *values, **named: print(json.dumps([name, list(values), named]), flush=True)
class Run:
    id = "run7"
    class info:
        run_id = "run7"
    log, define_metric, finish = map(staticmethod, map(said, ["log", "define_metric", "finish"]))
def init(**named):
    said("init")(**named)
    return Run()
def start_run(**named):
    said("start_run")(**named)
    return Run()
log, finish, set_experiment, log_params, log_metrics, end_run = map(
    said, ["log", "finish", "set_experiment", "log_params", "log_metrics", "end_run"])
"#;

const CONFIG: &str =
    "[optim]\nlr = 1e-5\nbetas = [0.9, 0.95]\n\n[[loss]]\nname = \"dpo\"\n\n[[loss]]\nname = \"sft\"\n";

/// A run's folder `run`, and the modules; nothing where there is no Python or no script, as in a bundle.
fn place() -> Option<(TempDir, PathBuf)> {
    let script = crate::support::root().join("scripts/forward-metrics.py");
    let python = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
    if !python || !script.is_file() {
        println!("skipped: no python3, or no scripts here");
        return None;
    }
    let place = tempfile::tempdir().unwrap();
    for module in ["wandb", "trackio", "mlflow"] {
        fs::write(place.path().join(format!("{module}.py")), STUB).unwrap();
    }
    fs::create_dir(place.path().join("run")).unwrap();
    fs::write(place.path().join("run/config.toml"), CONFIG).unwrap();
    Some((place, script))
}

fn forward(place: &Path, script: &Path, args: &[&str]) -> Child {
    let mut command = Command::new("python3");
    command.arg("-B").arg(script).arg("run").args(args).current_dir(place).env("PYTHONPATH", place);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Lines of JSON, and what was said beside.
fn end(child: Child) -> (Vec<Value>, String) {
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).unwrap();
    (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), said)
}

#[test]
fn each_target_gets_every_number_with_its_step() {
    let Some((place, script)) = place() else { return };
    let metrics = "{\"step\":0,\"epoch\":0,\"eval_loss\":0.5}\n{\"step\":1,\"loss\":0.25,\"speed_of_light\":null}\n";
    fs::write(place.path().join("run/metrics.jsonl"), metrics).unwrap();
    let config = json!({"optim.lr": 1e-5, "optim.betas": [0.9, 0.95], "loss.0.name": "dpo", "loss.1.name": "sft"});
    let [first, second] = [json!({"eval/loss": 0.5}), json!({"train/loss": 0.25})];
    let sent = |to: &str, more: &[&str]| end(forward(place.path(), &script, &[&["--once", "--to", to], more].concat()));
    let (lines, said) = sent("wandb", &[]);
    assert!(said.contains("wandb run run7\n2 records were sent\n"), "{said}");
    let init = json!({"project": "warpo", "name": "run", "config": config, "id": null, "resume": null});
    let metric = |side: &str| json!(["define_metric", [side], {"step_metric": "step"}]);
    let logs = [json!({"step": 0, "eval/loss": 0.5}), json!({"step": 1, "train/loss": 0.25})];
    let [log0, log1] = logs.map(|values| json!(["log", [values], {}]));
    let want = [json!(["init", [], init]), metric("train/*"), metric("eval/*"), log0, log1, json!(["finish", [], {}])];
    assert_eq!(lines, want);
    let (lines, _) = sent("trackio", &["--name", "other", "--project", "p", "--after", "0"]);
    let init = json!({"project": "p", "name": "other", "config": config, "resume": "never"});
    assert_eq!(lines, [json!(["init", [], init]), json!(["log", [second], {"step": 1}]), json!(["finish", [], {}])]);
    let (lines, _) = sent("mlflow", &[]);
    let want = [
        json!(["set_experiment", ["warpo"], {}]),
        json!(["start_run", [], {"run_id": null, "run_name": "run"}]),
        json!(["log_params", [config], {}]),
        json!(["log_metrics", [first], {"step": 0}]),
        json!(["log_metrics", [second], {"step": 1}]),
        json!(["end_run", [], {}]),
    ];
    assert_eq!(lines, want);
}

/// A run on its way: half a line waits for its end, a resumed run's file is the start of the one before, and what it writes
/// again is sent again.
#[test]
fn a_run_is_followed_to_its_end() {
    let Some((place, script)) = place() else { return };
    let path = place.path().join("run/metrics.jsonl");
    let line = |step: u64, loss: f64| format!("{{\"step\":{step},\"loss\":{loss}}}\n");
    let first = [1, 2, 3].map(|step| line(step, step as f64 + 0.5)).concat();
    let child = forward(place.path(), &script, &["--to", "print", "--every", "0.02"]);
    let pause = || thread::sleep(Duration::from_millis(300));
    pause();
    fs::write(&path, &first[..first.len() - 4]).unwrap();
    pause();
    fs::write(&path, format!("{first}nonsense\n")).unwrap();
    pause();
    // As the program does it: written beside, then renamed. More was written to it before anybody looked.
    let kept = first.split_inclusive('\n').next().unwrap();
    let beside = place.path().join("beside");
    fs::write(&beside, format!("{kept}{}", line(2, 20.0))).unwrap();
    fs::rename(&beside, &path).unwrap();
    pause();
    fs::write(&path, format!("{kept}{}{}", line(2, 20.0), line(3, 30.0))).unwrap();
    fs::create_dir(place.path().join("run/final")).unwrap();
    let started = Instant::now();
    let (lines, said) = end(child);
    assert!(started.elapsed() < Duration::from_secs(20));
    let sent: Vec<(u64, f64)> =
        lines[1..].iter().map(|line| (line["step"].as_u64().unwrap(), line["train/loss"].as_f64().unwrap())).collect();
    assert_eq!(sent, [(1, 1.5), (2, 2.5), (3, 3.5), (2, 20.0), (3, 30.0)], "{said}");
    assert!(said.contains("metrics.jsonl:4: no record, left out"), "{said}");
    assert!(said.contains("the run was resumed: sending goes on at line 2"), "{said}");
}
