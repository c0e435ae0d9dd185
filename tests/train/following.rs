//! Weights that follow the trained ones: a running mean that is saved beside them, and a reference that is moved to them.

use std::{collections::BTreeMap, fs};

use safetensors::SafeTensors;

use super::{evaluation::assert_as_recorded, fixture::Fixture};

/// The tensors of a folder, by name.
fn weights(fixture: &Fixture, folder: &str) -> BTreeMap<String, Vec<f64>> {
    let bytes = fs::read(fixture.path(folder).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |data: &[u8]| {
        data.chunks_exact(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect()
    };
    file.tensors().into_iter().map(|(name, tensor)| (name, values(tensor.data()))).collect()
}

/// `steps` blends, each of which rounds three numbers of at most the size of the largest weight to f32.
fn assert_near(got: &BTreeMap<String, Vec<f64>>, want: &BTreeMap<String, Vec<f64>>, steps: usize) {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (name, want) in want {
        let most = want.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        let limit = 3.0 * steps as f64 * most * 2f64.powi(-24);
        for (got, want) in got[name].iter().zip(want) {
            assert!((got - want).abs() <= limit, "{name}: {got} is not {want}");
        }
    }
}

fn blend(from: &mut BTreeMap<String, Vec<f64>>, to: &BTreeMap<String, Vec<f64>>, weight: f64) {
    for (name, from) in from {
        from.iter_mut().zip(&to[name]).for_each(|(from, to)| *from = (1.0 - weight) * *from + weight * to);
    }
}

/// A folder with the starting weights: those of a run whose rate is too small to move one.
fn start(fixture: &Fixture) -> BTreeMap<String, Vec<f64>> {
    fixture.run("start", &["train.steps=1", "optim.lr=1e-30", "optim.warmup_steps=0", "optim.weight_decay=0"]).unwrap();
    weights(fixture, "start/final")
}

#[test]
fn a_running_mean_is_that_of_all_steps() {
    let fixture = Fixture::new();
    let set = ["train.ema=0.7", "train.save_every=1"];
    fixture.run("run", &set).unwrap();
    let mut mean = start(&fixture);
    for step in 1..=8 {
        blend(&mut mean, &weights(&fixture, &format!("run/checkpoint-{step}")), 1.0 - 0.7);
    }
    assert_near(&weights(&fixture, "run/ema"), &mean, 8);
    // The trained weights do not know of it.
    fixture.run("without", &["train.save_every=1"]).unwrap();
    assert_eq!(weights(&fixture, "run/final"), weights(&fixture, "without/final"));
    assert!(!fixture.path("run/final/ema").exists());
    // A run that goes on has the same mean, and so has one that had only to make its last folders.
    for cut in [&["checkpoint-6", "checkpoint-7", "checkpoint-8", "final", "ema"][..], &["final", "ema"]] {
        cut.iter().for_each(|name| fs::remove_dir_all(fixture.path("run").join(name)).unwrap());
        let flags: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).chain(["--resume"]).collect();
        assert!(fixture.execute("run", &flags).status.success());
        assert_near(&weights(&fixture, "run/ema"), &mean, 8);
    }
}

#[test]
fn a_reference_follows_the_policy() {
    let fixture = Fixture::new();
    let set = ["train.ref_model_sync_steps=3", "train.ref_model_mixup_alpha=0.6", "train.save_every=1"];
    fixture.run("run", &set).unwrap();
    let mut reference = start(&fixture);
    for step in 1..=8 {
        if step % 3 == 0 {
            blend(&mut reference, &weights(&fixture, &format!("run/checkpoint-{step}")), 0.6);
        }
        assert_near(&weights(&fixture, &format!("run/checkpoint-{step}/reference")), &reference, 2);
    }
    assert!(!fixture.path("run/final/reference").exists());
    assert_as_recorded(&fixture, &set, "run", "checkpoint-8");
    fixture.run("again", &set).unwrap();
    for later in ["checkpoint-5", "checkpoint-6", "checkpoint-7", "checkpoint-8", "final"] {
        fs::remove_dir_all(fixture.path("again").join(later)).unwrap();
    }
    let flags: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).chain(["--resume"]).collect();
    assert!(fixture.execute("again", &flags).status.success());
    fixture.assert_same_run("run", "again");
}

/// The policy that is put in the reference's place after every step is the reference of the next one.
#[test]
fn a_reference_that_is_the_policy_has_no_margin() {
    let fixture = Fixture::new();
    let set = ["train.ref_model_sync_steps=1", "train.ref_model_mixup_alpha=1", "loss.sft_weight=0"];
    fixture.run("run", &set).unwrap();
    let steps: Vec<_> = fixture.metrics("run").into_iter().filter(|record| record.contains_key("loss")).collect();
    assert_eq!(steps.len(), 8);
    for record in steps {
        assert_eq!(record["loss"].as_f64(), Some(std::f64::consts::LN_2), "{record:?}");
        assert!(record["grad_norm"].as_f64().unwrap() > 0.0);
    }
}

/// A reference that does not move before the run ends is the one of values computed before it.
#[test]
fn a_reference_that_never_moves_is_the_starting_weights() {
    let fixture = Fixture::new();
    fixture.run("values", &[]).unwrap();
    fixture.run("beside", &["train.ref_model_sync_steps=100"]).unwrap();
    let loss = |out: &str| {
        let of = |record: &serde_json::Map<String, serde_json::Value>| record.get("loss")?.as_f64();
        fixture.metrics(out).iter().filter_map(of).collect::<Vec<_>>()
    };
    // A row of a pack of other rows may differ in its last bits: eight steps of a few units in 2^24.
    loss("values").iter().zip(&loss("beside")).for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{a} is not {b}"));
}
