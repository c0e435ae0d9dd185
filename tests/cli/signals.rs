//! Signals to a run: the first ends it with everything saved, the second ends the process, whoever still reads its output.
#![cfg(unix)]

use std::{
    fs,
    io::Read,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::train::fixture::Fixture;

/// More steps than anybody waits for.
const ENDLESS: [&str; 6] =
    ["--set", "train.steps=100000", "--set", "train.eval_every=0", "--set", "train.save_every=0"];

/// A run that hears a hangup, even where the tests themselves were started with it ignored, as by `nohup`.
fn start(fixture: &Fixture, args: &[&str]) -> Command {
    let program = fixture.command("out", &[&ENDLESS[..], args].concat());
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP").arg(program.get_program()).args(program.get_args());
    command.env_remove("RUST_BACKTRACE").stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn wait_until(what: &str, child: &mut Child, mut done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended without {what}");
        assert!(started.elapsed() < Duration::from_secs(60), "no {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn steps(fixture: &Fixture) -> usize {
    fs::read_to_string(fixture.path("out/metrics.jsonl")).map_or(0, |text| text.matches("grad_norm").count())
}

fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// The exit of a process that must end soon.
fn end(child: &mut Child) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if started.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("still running after 60 s");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn checkpoints(fixture: &Fixture) -> usize {
    let names = fs::read_dir(fixture.path("out")).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with("checkpoint-")).count()
}

#[test]
fn a_run_that_nobody_reads_is_saved() {
    for signal in ["-TERM", "-INT", "-HUP"] {
        let fixture = Fixture::new();
        let mut child = start(&fixture, &[]).spawn().unwrap();
        wait_until("steps", &mut child, || steps(&fixture) > 2);
        drop((child.stdout.take(), child.stderr.take()));
        send(signal, &child);
        assert_eq!(end(&mut child).code(), Some(130), "{signal}");
        assert_eq!(checkpoints(&fixture), 1, "{signal}");
    }
}

/// Standard output is a pipe that is full, so the run hangs in a write.
#[test]
fn the_second_signal_ends_a_run_that_hangs() {
    let fixture = Fixture::new();
    let mut child = start(&fixture, &[]).spawn().unwrap();
    let mut last = (0, Instant::now());
    wait_until("a run that hangs", &mut child, || {
        let now = steps(&fixture);
        if now != last.0 {
            last = (now, Instant::now());
        }
        now > 100 && last.1.elapsed() > Duration::from_secs(1)
    });
    send("-TERM", &child);
    thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "the run does not hang");
    send("-TERM", &child);
    assert_eq!(end(&mut child).code(), Some(130));
    assert_eq!(checkpoints(&fixture), 0);
}

/// As `timeout` sends it: to the process, and at once to its group.
#[test]
fn one_request_that_comes_twice_is_one() {
    let fixture = Fixture::new();
    let mut child = start(&fixture, &[]).spawn().unwrap();
    wait_until("steps", &mut child, || steps(&fixture) > 2);
    let pid = child.id().to_string();
    let script = "kill -TERM $0; kill -TERM $0; kill -HUP $0";
    assert!(Command::new("sh").args(["-c", script, &pid]).status().unwrap().success());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(end(&mut child).code(), Some(130));
    assert_eq!(checkpoints(&fixture), 1);
    assert_eq!(text, "interrupted: the run ends with the step at hand, everything saved; once more ends at once\n");
}

#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    let fixture = Fixture::new();
    let program = fixture.command("out", &ENDLESS);
    let mut command = Command::new("nohup");
    command
        .env_remove("RUST_BACKTRACE")
        .arg(program.get_program())
        .args(program.get_args())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    wait_until("steps", &mut child, || steps(&fixture) > 2);
    send("-HUP", &child);
    let before = steps(&fixture);
    wait_until("steps after the hangup", &mut child, || steps(&fixture) > before + 20);
    send("-TERM", &child);
    assert_eq!(end(&mut child).code(), Some(130));
}

/// The data come from a pipe into which nobody writes.
#[test]
fn a_run_that_reads_its_data_has_nothing_to_save() {
    let fixture = Fixture::new();
    let pipe = fixture.path("pipe.jsonl");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let data = format!("data.train={}", pipe.display());
    let mut child = start(&fixture, &["--set", &data]).spawn().unwrap();
    let pid = child.id();
    wait_until("handlers", &mut child, || handles_hangup(pid));
    send("-TERM", &child);
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    let status = end(&mut child);
    assert_eq!(status.code(), Some(130), "by signal {:?}", status.signal());
    assert_eq!(text, "interrupted before a step was made: there is nothing to save\n");
    // The lock alone, as a killed process leaves it: the next run takes it over.
    assert!(!fixture.path("out/config.toml").exists() && !fixture.path("out/metrics.jsonl").exists());
}

/// Whether the process has set a handler for SIGHUP, which it does last.
fn handles_hangup(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    caught.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1)
}
