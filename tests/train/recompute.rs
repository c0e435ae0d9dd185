//! Whole runs under `train.recompute`: the bits of a run that keeps everything, whatever is computed again.

use std::fs;

use serde_json::{Value, json};

use super::fixture::{Fixture, stderr};

/// Every rung, and layers on different ones; of the fixture's four layers the last is never computed again.
const RUNGS: [&str; 6] =
    ["attention", "gate_up", "qkv", "block", "block:1,attention:2,none:1", "none:1,qkv:2,gate_up:1"];

/// The fixture's run with four layers.
fn deep() -> Fixture {
    let fixture = Fixture::new();
    let path = fixture.path("model/config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["num_hidden_layers"] = json!(4);
    fs::write(&path, config.to_string()).unwrap();
    fixture
}

/// A run, and its share of FLOPs that were done again in the first step.
fn share(fixture: &Fixture, out: &str) -> Option<f64> {
    fixture.metrics(out).iter().find(|record| record.contains_key("step_ms"))?.get("recompute_flops_share")?.as_f64()
}

/// With values of the reference, a model beside, learned masks, a step that is seen before it is learnt from, a reference that
/// follows; in f32 and in bf16, with and without what a graph asks for.
#[test]
fn runs_do_not_depend_on_what_is_computed_again() {
    let fixture = deep();
    let runs: [(&str, &[&str], &[&str]); 6] = [
        ("values", &["train.cuda_graph=true"], &RUNGS),
        ("beside", &["loss={ name = \"tdpo2\" }"], &RUNGS[3..5]),
        ("masks", &["loss={ name = \"sparse_po_independent\" }"], &RUNGS[3..5]),
        ("coupled", &["loss={ name = \"bco\" }"], &RUNGS[3..5]),
        ("follows", &["train.ref_model_sync_steps=2"], &RUNGS[3..4]),
        ("bf16", &["train.precision=\"bf16\"", "train.steps=3"], &RUNGS[3..5]),
    ];
    for (name, set, rungs) in runs {
        fixture.run(name, set).unwrap();
        assert_eq!(share(&fixture, name), None);
        for (number, rung) in rungs.iter().enumerate() {
            let (out, key) = (format!("{name}-{number}"), format!("train.recompute=\"{rung}\""));
            fixture.run(&out, &[set, &[&key]].concat()).unwrap();
            fixture.assert_same_run(name, &out);
            assert!(share(&fixture, &out).unwrap() > 0.0, "{name} {rung}");
        }
    }
    // The rungs of the ladder cost more and more, and less than a whole forward pass more.
    let shares: Vec<f64> = (0..4).map(|number| share(&fixture, &format!("values-{number}")).unwrap()).collect();
    assert!(shares.is_sorted_by(|a, b| a < b) && shares[3] < 1.0 / 3.0, "{shares:?}");
}

/// A run may go on with other rungs; one that names other layers than the model has is refused.
#[test]
fn rungs_are_free_on_resume() {
    let fixture = deep();
    fixture.run("straight", &[]).unwrap();
    fixture.run("changed", &["train.recompute=\"block\""]).unwrap();
    for later in ["checkpoint-6", "checkpoint-8", "final"] {
        fs::remove_dir_all(fixture.path("changed").join(later)).unwrap();
    }
    let with =
        |rungs: &str| fixture.execute("changed", &["--resume", "--set", &format!("train.recompute=\"{rungs}\"")]);
    let refused = stderr(&with("qkv:3"));
    assert!(refused.contains("`train.recompute` = \"qkv:3\" names 3 layers, the model has 4"), "{refused}");
    let refused = stderr(&with("all"));
    assert!(refused.contains("`all`: expected auto, none, attention, gate_up, qkv, block, or rungs"), "{refused}");
    let resumed = with("qkv:2,none:2");
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    fixture.assert_same_run("straight", "changed");
}

/// Where memory is short a run computes again what it takes to fit, and says so; a repeat of it does the same wherever it runs.
#[test]
fn a_plan_is_written_into_the_run_folder() {
    let fixture = deep();
    fixture.run("out", &["train.recompute=\"auto\""]).unwrap();
    let key = |out: &str, key: &str| {
        let text = fs::read_to_string(fixture.path(out).join("config.toml")).unwrap();
        text.parse::<toml::Table>().unwrap()["train"].get(key).cloned()
    };
    assert_eq!(key("out", "recompute"), Some("none".into()));
    assert_eq!(key("out", "head_chunk_rows"), None);
    fixture.run("rung", &["train.recompute=\"block:1,none:3\"", "train.head_chunk_rows=9"]).unwrap();
    assert_eq!(key("rung", "recompute"), Some("block:1,none:3".into()));
    assert_eq!(key("rung", "head_chunk_rows"), Some(9.into()));
    // The chunk binds, and is the run's where the configuration leaves it open.
    for later in ["checkpoint-8", "final"] {
        fs::remove_dir_all(fixture.path("rung").join(later)).unwrap();
    }
    let refused = stderr(&fixture.execute("rung", &["--resume", "--set", "train.head_chunk_rows=8"]));
    assert!(
        refused.contains("`train.head_chunk_rows` = 8: the run in ") && refused.contains("began with 9"),
        "{refused}"
    );
    let resumed = fixture.execute("rung", &["--resume"]);
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    assert_eq!(key("rung", "head_chunk_rows"), Some(9.into()));
    assert_eq!(key("rung", "recompute"), Some("none".into()));
    fixture.run("again", &["train.head_chunk_rows=9"]).unwrap();
    fixture.assert_same_run("again", "rung");
}

/// Memory in use at most, beside what was planned: index tables that are smaller than they might be, and a few bytes a row.
#[test]
fn a_run_takes_what_is_planned_on_every_rung() {
    let fixture = deep();
    for (number, rung) in RUNGS.iter().enumerate() {
        let (out, set) = (format!("run-{number}"), format!("train.recompute=\"{rung}\""));
        fixture.run(&out, &["train.steps=3", "train.eval_every=0", &set]).unwrap();
        let took =
            fixture.metrics(&out).iter().filter_map(|record| record.get("memory_bytes")?.as_u64()).max().unwrap();
        let planned = planned(&fixture, &set);
        println!("{rung}: {took} of {planned}");
        assert!(took.abs_diff(planned) < 32 << 10, "{rung}: {took} bytes, {planned} planned");
    }
}

fn planned(fixture: &Fixture, set: &str) -> u64 {
    let host = warpo::device::Device::host(warpo::device::HostOptions::default()).unwrap();
    let target = warpo::train::look::Target { device: host, free: 0, precision: None };
    let look = warpo::train::look::Look::at_run(&fixture.config(&[set]), target).unwrap();
    look.decide().unwrap().plan.total() as u64
}
