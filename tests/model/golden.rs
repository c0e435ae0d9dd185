use serde::Deserialize;
use warpo::{
    forest::{Forest, Tree},
    model::{Capacity, MemoryPlan, Model, ModelConfig},
    ops::preference_loss::{self, STATS},
};

use super::{fast_devices, named};

/// What `tests/parity/make_golden.py` wrote.
#[derive(Deserialize)]
struct Golden {
    beta: f64,
    label_smoothing: f64,
    sft_weight: f64,
    pairs: Vec<Pair>,
    loss: f64,
    grad_norms: std::collections::BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Pair {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
    ref_chosen: f64,
    ref_rejected: f64,
    logps_chosen: f64,
    logps_rejected: f64,
}

/// transformers rounds norms and rotary tables to f32 even in its f64 model; with the engine's own f32 that leaves the
/// 1e-5 the gradients are held to.
const LIMIT: f64 = 1e-5;

#[test]
fn log_probabilities_loss_and_gradients_of_transformers() {
    let folder = crate::support::root().join("tests/fixtures/tiny-llama");
    let golden: Golden = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let config = ModelConfig::load(&folder).unwrap();
    let tree = |pair: &Pair| Tree::pair("golden", pair.prompt.clone(), pair.chosen.clone(), pair.rejected.clone());
    let trees: Vec<Tree> = golden.pairs.iter().map(tree).collect();
    let forest = Forest::pack(&trees).unwrap();
    // Only sums over sequences matter: the first row carries the whole reference value.
    let mut ref_logps = vec![0.0; forest.rows()];
    for (i, value) in golden.pairs.iter().flat_map(|pair| [pair.ref_chosen, pair.ref_rejected]).enumerate() {
        ref_logps[forest.sequence_rows[i] as usize] = value as f32;
    }
    let chosen_tokens: usize = golden.pairs.iter().map(|pair| pair.chosen.len()).sum();
    let params = preference_loss::Params {
        beta: golden.beta as f32,
        label_smoothing: golden.label_smoothing as f32,
        dpo_scale: (1.0 / trees.len() as f64) as f32,
        sft_scale: (golden.sft_weight / chosen_tokens as f64) as f32,
    };
    for (device, on) in fast_devices() {
        let capacity = Capacity { tokens: forest.len(), rows: forest.rows(), head_chunk_rows: 50 };
        let plan = MemoryPlan::new(&config, warpo::device::DType::F32, capacity).unwrap();
        let model = Model::<f32>::new(&device, &config, plan).unwrap();
        model.load(&folder).unwrap();
        let batch = model.upload(&forest).unwrap();
        model.forward(&batch).unwrap();
        let logps = model.logps(&batch).unwrap();
        let coefficients = device.alloc(batch.rows).unwrap();
        let stats = device.alloc(batch.pair_count * STATS).unwrap();
        let ref_logps = device.upload(&ref_logps).unwrap();
        let (rows, pairs, count) = (&batch.sequence_rows, &batch.pairs, batch.pair_count);
        preference_loss::pairs(&device, &coefficients, &stats, &logps, &ref_logps, rows, pairs, params, count).unwrap();
        model.backward(&batch, &coefficients).unwrap();
        let grads = named(&config, &device.download(model.grads()).unwrap());
        compare(&golden, &device.download(&stats).unwrap(), chosen_tokens, &grads, on);
    }
}

fn compare(golden: &Golden, stats: &[f32], chosen_tokens: usize, grads: &crate::oracles::model::Params, on: &str) {
    let close = |what: &str, got: f64, want: f64| {
        let error = ((got - want) / want).abs();
        assert!(error <= LIMIT, "{what} on {on}: {got} instead of {want}: relative error {error:.1e}");
        error
    };
    let mut worst = 0.0f64;
    let mut loss = 0.0;
    for (pair, stats) in golden.pairs.iter().zip(stats.chunks(STATS)) {
        let column = |i: usize| f64::from(stats[i]);
        worst = worst.max(close("chosen", column(4), pair.logps_chosen));
        worst = worst.max(close("rejected", column(5), pair.logps_rejected));
        loss += column(0) / golden.pairs.len() as f64 + golden.sft_weight * column(1) / chosen_tokens as f64;
    }
    worst = worst.max(close("loss", loss, golden.loss));
    for (name, &want) in &golden.grad_norms {
        let norm = grads[name].iter().map(|g| g * g).sum::<f64>().sqrt();
        worst = worst.max(close(name, norm, want));
    }
    println!("transformers, {on}: relative errors at most {worst:.1e}");
}
