use serde::Deserialize;
use warpo::{
    forest::{Forest, Tree},
    loss::Loss,
    model::{Capacity, MemoryPlan, Model, ModelConfig, Slopes},
};

use super::{fast_devices, named};
use crate::loss::on_rows;

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
    let parameters =
        [("beta", golden.beta), ("label_smoothing", golden.label_smoothing), ("sft_weight", golden.sft_weight)];
    let loss = Loss::with("dpo", &parameters).unwrap();
    for (device, on) in fast_devices() {
        let capacity = Capacity { tokens: forest.len(), rows: forest.rows(), head_chunk_rows: 50 };
        let plan = MemoryPlan::new(&config, warpo::device::DType::F32, capacity).unwrap();
        let model = Model::<f32>::new(&device, &config, plan).unwrap();
        model.load(&folder).unwrap();
        let batch = model.upload(&forest).unwrap();
        model.forward(&batch).unwrap();
        let logps = model.logps(&batch).unwrap();
        let ref_logps = device.upload(&ref_logps).unwrap();
        let groups = loss.groups(&trees).unwrap();
        let (coefficients, metrics) = on_rows(&device, &loss, &groups, &logps, &ref_logps, &batch.sequence_rows);
        let rows = device.download(&logps).unwrap();
        model.backward(&batch, &Slopes::by_logps(&coefficients)).unwrap();
        let grads = named(&config, &device.download(model.params().grads()).unwrap());
        let sums: Vec<f64> =
            forest.sequence_rows.windows(2).map(|ends| sum(&rows[ends[0] as usize..ends[1] as usize])).collect();
        compare(&golden, &sums, metrics.get("loss").unwrap(), &grads, on);
    }
}

fn sum(rows: &[f32]) -> f64 {
    rows.iter().map(|&row| f64::from(row)).sum()
}

fn compare(golden: &Golden, sums: &[f64], loss: f64, grads: &crate::oracles::model::Params, on: &str) {
    let close = |what: &str, got: f64, want: f64| {
        let error = ((got - want) / want).abs();
        assert!(error <= LIMIT, "{what} on {on}: {got} instead of {want}: relative error {error:.1e}");
        error
    };
    let mut worst = 0.0f64;
    for (pair, sums) in golden.pairs.iter().zip(sums.chunks(2)) {
        worst = worst.max(close("chosen", sums[0], pair.logps_chosen));
        worst = worst.max(close("rejected", sums[1], pair.logps_rejected));
    }
    worst = worst.max(close("loss", loss, golden.loss));
    for (name, &want) in &golden.grad_norms {
        let norm = grads[name].iter().map(|g| g * g).sum::<f64>().sqrt();
        worst = worst.max(close(name, norm, want));
    }
    println!("transformers, {on}: relative errors at most {worst:.1e}");
}
