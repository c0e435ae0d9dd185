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
    assert!(refused.contains("`all`: there are none, attention, gate_up, qkv, block"), "{refused}");
    let resumed = with("qkv:2,none:2");
    assert!(resumed.status.success(), "{}", stderr(&resumed));
    fixture.assert_same_run("straight", "changed");
}
