//! The same bits: on any number of worker threads, after a kill, after an interruption.

use std::{
    fs,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use super::fixture::{Fixture, stderr};

/// Enough steps that a run cannot end before it is killed at its first checkpoint.
pub const LONG: [&str; 2] = ["--set", "train.steps=60"];

#[test]
fn worker_threads_and_repetition_change_nothing() {
    let fixture = Fixture::new();
    fixture.run("one", &["train.threads=1"]).unwrap();
    fixture.run("two", &["train.threads=2"]).unwrap();
    fixture.run("again", &["train.threads=2"]).unwrap();
    fixture.assert_same_run("one", "two");
    fixture.assert_same_run("two", "again");
}

#[test]
fn bf16_repeats_its_bits() {
    let fixture = Fixture::new();
    fixture.run("one", &["train.precision=\"bf16\"", "train.threads=1"]).unwrap();
    fixture.run("two", &["train.precision=\"bf16\"", "train.threads=2"]).unwrap();
    fixture.assert_same_run("one", "two");
    let losses: Vec<f64> = fixture.metrics("one").iter().filter_map(|r| r.get("loss")?.as_f64()).collect();
    assert_eq!(losses.len(), 8);
    assert!(losses[7] < losses[0], "{losses:?}");
}

#[test]
fn killed_and_resumed_is_never_stopped() {
    for threads in ["train.threads=1", "train.threads=2"] {
        let fixture = Fixture::new();
        let set = [&LONG[..], &["--set", threads]].concat();
        assert!(fixture.execute("straight", &set).status.success());
        let mut child = start(&fixture, "killed", &set);
        wait_for(&fixture.path("killed/checkpoint-4"), &mut child);
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None, "the run ended before it was killed");
        let resumed = fixture.execute("killed", &[&set[..], &["--resume"]].concat());
        assert!(resumed.status.success(), "{}", stderr(&resumed));
        fixture.assert_same_run("straight", "killed");
    }
}

#[test]
fn steps_of_full_packs_resume_to_the_same_bits() {
    let fixture = Fixture::new();
    let text = fs::read_to_string(fixture.path("run.toml")).unwrap();
    fs::write(fixture.path("run.toml"), text.replace("pairs = 4, tokens", "packs = 2, tokens")).unwrap();
    let straight = fixture.execute("straight", &LONG);
    assert!(straight.status.success(), "{}", stderr(&straight));
    let text = String::from_utf8(straight.stdout).unwrap();
    assert!(text.contains("packs: 2 a step, ") && text.contains(" pairs on average, "), "{text}");
    let mut child = start(&fixture, "killed", &LONG);
    wait_for(&fixture.path("killed/checkpoint-4"), &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    let resumed = fixture.execute("killed", &[&LONG[..], &["--resume"]].concat());
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    fixture.assert_same_run("straight", "killed");
    // An epoch of 22 pairs ends where it should: passes over the data grow by whole epochs.
    let epochs: Vec<f64> = fixture.metrics("straight").iter().map(|r| r["epoch"].as_f64().unwrap()).collect();
    assert!(epochs.is_sorted() && epochs.contains(&1.0) && epochs.contains(&2.0), "{epochs:?}");
}

#[test]
fn an_interrupted_run_saves_and_goes_on() {
    let fixture = Fixture::new();
    assert!(fixture.execute("straight", &LONG).status.success());
    // Ctrl-C, and what schedulers send.
    for signal in ["-INT", "-TERM"] {
        let out = format!("interrupted{signal}");
        let mut child = start(&fixture, &out, &LONG);
        wait_for(&fixture.path(&format!("{out}/checkpoint-2")), &mut child);
        send(signal, &child);
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert!(!fixture.path(&format!("{out}/final")).exists());
        let resumed = fixture.execute(&out, &[&LONG[..], &["--resume"]].concat());
        assert!(resumed.status.success(), "{}", stderr(&resumed));
        fixture.assert_same_run("straight", &out);
    }
}

#[test]
fn a_finished_run_resumes_to_nothing() {
    let fixture = Fixture::new();
    assert!(fixture.execute("out", &[]).status.success());
    let before = fixture.files("out");
    let status: ExitStatus = fixture.execute("out", &["--resume"]).status;
    assert!(status.success());
    assert_eq!(fixture.files("out"), before);
}

pub fn start(fixture: &Fixture, out: &str, args: &[&str]) -> Child {
    fixture.command(out, args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

pub fn wait_for(path: &Path, child: &mut Child) {
    let started = Instant::now();
    while !path.exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended without {}", path.display());
        assert!(started.elapsed() < Duration::from_secs(120), "no {}", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// An interruption during an evaluation saves the step and leaves the evaluation to whoever resumes.
#[test]
fn an_evaluation_that_was_left_off_is_made_up_for() {
    let fixture = Fixture::new();
    let set = ["train.save_every=3"];
    fixture.run("straight", &set).unwrap();
    fixture.run("cut", &set).unwrap();
    for folder in ["final", "checkpoint-6", "checkpoint-8"] {
        fs::remove_dir_all(fixture.path("cut").join(folder)).unwrap();
    }
    let metrics = fixture.path("cut/metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    let trained = |line: &&str| !(line.contains("\"step\":3,") && line.contains("eval_loss"));
    let kept: Vec<&str> = text.lines().filter(trained).collect();
    assert_eq!(kept.len() + 1, text.lines().count());
    fs::write(&metrics, kept.join("\n") + "\n").unwrap();
    let resumed = fixture.execute("cut", &["--set", set[0], "--resume"]);
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    fixture.assert_same_run("straight", "cut");
}
