//! A device whose launches return before they are done has the next step launched before one is read: nothing but the order of
//! the host's work may change.

use std::time::{Duration, Instant};

use warpo::{
    device::{Choice, HostOptions},
    stop::Stop,
    train::{Options, Outcome, run_with},
};

use super::fixture::Fixture;

/// No evaluation or checkpoint before the last step, so that all steps but the first are read late.
const FREE: [&str; 2] = ["train.eval_every=0", "train.save_every=0"];

fn options(fixture: &Fixture, out: &str, set: &[&str], resume: bool) -> Options {
    Options { config: fixture.config(set), device: Choice::Host, out: fixture.path(out), resume, overwrite: false }
}

fn ahead(options: &Options, stop: &Stop) -> anyhow::Result<Outcome> {
    Ok(run_with(options, HostOptions { threads: 2, ahead: true, ..HostOptions::default() }, stop)?)
}

#[test]
fn the_run_is_the_same() {
    // A pair loss, one that carries numbers from step to step, one with a model beside and masks that learn.
    for loss in ["\"dpo\"", "\"kto\"", "\"sparsepo_independent\""] {
        for plan in [&FREE[..], &["train.eval_every=3", "train.save_every=2"]] {
            let fixture = Fixture::new();
            let name = format!("loss={{ name = {loss} }}");
            let set = [plan, &[name.as_str()]].concat();
            fixture.run("straight", &set).unwrap();
            assert_eq!(ahead(&options(&fixture, "ahead", &set, false), &false.into()).unwrap(), Outcome::Finished);
            fixture.assert_same_run("straight", "ahead");
        }
    }
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bits() {
    let fixture = Fixture::new();
    let set = [&FREE[..], &["train.steps=40"]].concat();
    fixture.run("straight", &set).unwrap();
    let stop = Stop::default();
    let from_outside = options(&fixture, "ahead", &set, false);
    let outcome = std::thread::scope(|scope| {
        let run = scope.spawn(|| ahead(&from_outside, &stop));
        let started = Instant::now();
        while !std::fs::read_to_string(fixture.path("ahead/metrics.jsonl")).is_ok_and(|text| text.lines().count() > 4) {
            assert!(started.elapsed() < Duration::from_secs(60), "no metrics");
            std::thread::sleep(Duration::from_millis(1));
        }
        stop.request();
        run.join().unwrap().unwrap()
    });
    assert_eq!(outcome, Outcome::Interrupted);
    // The step that was launched when the stop came is read, written and saved.
    let last = fixture.metrics("ahead").last().unwrap()["step"].as_u64().unwrap();
    assert!(last < 40 && fixture.path(&format!("ahead/checkpoint-{last}")).is_dir(), "{last}");
    assert_eq!(ahead(&options(&fixture, "ahead", &set, true), &false.into()).unwrap(), Outcome::Finished);
    fixture.assert_same_run("straight", "ahead");
}

#[test]
fn gradients_that_are_not_finite_end_the_run() {
    let fixture = Fixture::new();
    let set = [&FREE[..], &["optim.lr=1e30", "optim.warmup_steps=0", "train.steps=20"]].concat();
    let why = fixture.run("straight", &set).unwrap_err().to_string();
    assert!(why.contains("not finite 5 times in a row"), "{why}");
    let late = ahead(&options(&fixture, "ahead", &set, false), &false.into()).unwrap_err().to_string();
    assert_eq!(late.replace("/ahead", "/straight"), why);
    let [straight, ahead] = ["straight", "ahead"].map(|out| fixture.timeless_metrics(out));
    assert_eq!(ahead, straight);
}
