//! One run at a time in a run folder, whoever comes first, and a lock that dies with its process.

use std::{
    fs,
    process::{Child, Output},
};

use super::{
    bits::{LONG, start, wait_for},
    fixture::{Fixture, stderr},
};

#[test]
fn a_second_start_or_resume_is_refused_and_the_first_notices_nothing() {
    let fixture = Fixture::new();
    assert!(fixture.execute("straight", &LONG).status.success());
    let mut child = start(&fixture, "run", &LONG);
    let holder = format!("run: in use by process {} on ", child.id());
    wait_for(&fixture.path("run/checkpoint-2"), &mut child);
    for again in [&[][..], &["--resume"]] {
        let refused = fixture.execute("run", &[&LONG[..], again].concat());
        let why = stderr(&refused);
        assert_eq!(refused.status.code(), Some(1), "{why}");
        assert!(why.contains(&holder) && why.contains(" UTC: wait for its end or stop it, or name another"), "{why}");
        assert_eq!(why.lines().count(), 1);
    }
    assert!(child.try_wait().unwrap().is_none(), "the first run ended too early for this test");
    assert!(child.wait().unwrap().success());
    fixture.assert_same_run("straight", "run");
    assert!(!fixture.path("run/run.lock").exists());
}

#[test]
fn of_two_runs_that_start_together_one_runs_and_one_is_refused() {
    let fixture = Fixture::new();
    assert!(fixture.execute("straight", &[]).status.success());
    for round in 0..5 {
        let out = format!("race-{round}");
        let spawn = || -> Child {
            let mut command = fixture.command(&out, &[]);
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap()
        };
        let outputs: Vec<Output> =
            [spawn(), spawn()].into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        let ends: Vec<bool> = outputs.iter().map(|output| output.status.success()).collect();
        assert!(ends == [true, false] || ends == [false, true], "{outputs:?}");
        let refused = outputs.iter().find(|output| !output.status.success()).unwrap();
        // One that comes when the other is done finds its folder.
        let why = stderr(refused);
        assert!(why.contains("in use by process ") || why.contains("is not empty"), "{why}");
        fixture.assert_same_run("straight", &out);
    }
}

#[test]
fn the_lock_of_a_killed_run_does_not_block() {
    let fixture = Fixture::new();
    let mut child = start(&fixture, "run", &LONG);
    wait_for(&fixture.path("run/checkpoint-2"), &mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    let left = fs::read_to_string(fixture.path("run/run.lock")).unwrap();
    assert!(left.starts_with(&format!("process {} on ", child.id())), "{left}");
    let resumed = fixture.execute("run", &[&LONG[..], &["--resume"]].concat());
    assert!(resumed.status.success(), "{}", stderr(&resumed));
}

/// A run that is refused for its inputs takes away what it made, and no more.
#[test]
fn a_refused_run_leaves_no_folder() {
    let fixture = Fixture::new();
    let missing = "data.train=\"/no/such/file.jsonl\"";
    assert!(fixture.run("a/b/run", &[missing]).is_err());
    assert!(!fixture.path("a").exists());
    fs::create_dir_all(fixture.path("c/run")).unwrap();
    assert!(fixture.run("c/run", &[missing]).is_err());
    assert_eq!(fs::read_dir(fixture.path("c/run")).unwrap().count(), 0);
    // What a run leaves that is killed while it writes its first file is no run.
    fs::write(fixture.path("c/run/config.toml.part"), "[mod").unwrap();
    fixture.run("c/run", &["train.steps=1"]).unwrap();
}
