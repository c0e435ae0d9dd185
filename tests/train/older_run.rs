//! Runs that older programs left go on. Their last checkpoints were taken away: `tests/fixtures/run-format-3` is one of the
//! commit 314d98d (2026-11-27), with its reference values as that program kept them, `run-f32-master` one of 34525af
//! (2026-11-28), the last whose bf16 weights had whole f32 masters beside them.

use std::fs;

use serde_json::{Map, Value, json};
use warpo::device::{Device, HostOptions};

use super::{
    fixture::{Fixture, stderr},
    resume::copy,
};
use crate::support::root;

/// The fixture's rows, a smaller model, and the settings the run had.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    let path = fixture.path("model/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in [
        ("hidden_size", json!(16)),
        ("intermediate_size", json!(16)),
        ("num_hidden_layers", json!(1)),
        ("num_attention_heads", json!(1)),
    ] {
        config[key] = value;
    }
    fs::write(path, config.to_string()).unwrap();
    fixture
}

/// Metrics without those that the older program did not log.
fn known(mut metrics: Vec<Map<String, Value>>) -> Vec<Map<String, Value>> {
    let is_new = |name: &str| ["entropy", "mean_token_accuracy"].contains(&name.trim_start_matches("eval_"));
    metrics.iter_mut().for_each(|step| step.retain(|name, _| !is_new(name)));
    metrics
}

#[test]
fn a_run_of_format_3_goes_on_to_the_bits_of_one_that_was_never_stopped() {
    goes_on("run-format-3");
}

/// The weights come from the masters, whose halves they are: on ties another one than that program had.
#[test]
fn a_run_with_f32_masters_goes_on_to_the_bits_of_one_that_was_never_stopped() {
    goes_on("run-f32-master");
}

fn goes_on(name: &str) {
    let fixture = fixture();
    let old = root().join("tests/fixtures").join(name);
    copy(&old, &fixture.path("run"));
    let set = ["--set", "train.precision=bf16", "--set", "train.save_every=4"];
    // A program that knew no "auto": its run goes on in what its config.toml says.
    let open = ["--set", "train.precision=auto"];
    let resumed = fixture.execute("run", &[&set[..], &open, &["--resume"]].concat());
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    let said = String::from_utf8(resumed.stdout).unwrap();
    assert!(said.contains("resumed after step 4 of 8"), "{said}");

    assert!(fixture.execute("straight", &set).status.success());
    let state: Value = serde_json::from_slice(&fs::read(old.join("checkpoint-4/trainer_state.json")).unwrap()).unwrap();
    let here = Device::host(HostOptions::default()).unwrap().arithmetic();
    // Where products round otherwise, only the steps since have this machine's bits.
    if state["machine"]["device"] == json!(here) {
        let [run, straight] =
            ["run", "straight"].map(|out| fs::read(fixture.path(out).join("final/model.safetensors")).unwrap());
        assert!(run == straight, "other weights");
        assert_eq!(known(fixture.timeless_metrics("run")), known(fixture.timeless_metrics("straight")));
    }
}
