//! Bytes and operations of every rung against `tests/parity/make_memory_vectors.py`.

use serde_json::Value;
use warpo::{
    device::DType,
    model::{Capacity, LayerFlops, MemoryPlan, ModelConfig, Rung},
};

use super::shape;
use crate::{formats::vector, support::root};

fn model(name: &str) -> ModelConfig {
    match name {
        "quickstart" => ModelConfig::load(&root().join("examples/quickstart-model")).unwrap(),
        name => shape(name),
    }
}

/// Saved activations of so many tokens.
fn saved(config: &ModelConfig, tokens: usize, levels: Vec<Rung>) -> u64 {
    let capacity = Capacity { tokens, rows: tokens, head_chunk_rows: 64 };
    let plan = MemoryPlan::new(config, DType::Bf16, capacity).unwrap();
    plan.recomputing(config, levels).unwrap().saved as u64
}

fn models() -> Vec<Value> {
    vector("recompute")["models"].as_array().unwrap().clone()
}

#[test]
fn rungs_have_their_names_and_order() {
    let names: Vec<Value> = Rung::ALL.map(|rung| rung.name().into()).to_vec();
    assert_eq!(vector("recompute")["rungs"], Value::from(names));
}

#[test]
fn parameters_are_counted() {
    for row in models() {
        assert_eq!(row["parameters"], model(row["model"].as_str().unwrap()).parameters() as u64, "{}", row["model"]);
    }
}

/// Whole runs of layers, and mixed ones.
#[test]
fn saved_bytes_are_those_of_the_vectors() {
    for row in models() {
        let config = model(row["model"].as_str().unwrap());
        for (number, rung) in Rung::ALL.into_iter().enumerate() {
            let Some(want) = row["saved_16384"].get(format!("rung{number}")) else { continue };
            assert_eq!(*want, saved(&config, 16384, vec![rung; config.layers]), "{} {rung}", row["model"]);
        }
        let half = config.layers / 2;
        let levels = [vec![Rung::GateUp; half], vec![Rung::None; config.layers - half]].concat();
        assert_eq!(row["saved_mixed_half"], saved(&config, 4096, levels), "{}", row["model"]);
    }
    for row in vector("budget_levels")["rows"].as_array().unwrap() {
        let config = model(row["model"].as_str().unwrap());
        let level = |number: &Value| Rung::ALL[number.as_u64().unwrap() as usize];
        let levels = row["levels"].as_array().unwrap().iter().map(level).collect();
        let tokens = row["tokens"].as_u64().unwrap() as usize;
        assert_eq!(row["saved"], saved(&config, tokens, levels), "{row}");
        assert_eq!(row["saved_without"], saved(&config, tokens, vec![Rung::None; config.layers]), "{row}");
    }
}

/// Bytes a token and layer. All layers on a rung save what each of them drops, once less than there are layers: that is the slot.
#[test]
fn bytes_of_a_token_and_layer_are_those_of_the_vectors() {
    for row in models() {
        let config = model(row["model"].as_str().unwrap());
        let (tokens, layers) = (1 << 14, config.layers as u64);
        let of = |rung| saved(&config, tokens, vec![rung; config.layers]) / tokens as u64;
        // The stream behind the last layer, its norm's, and the norm's statistics.
        let kept = (of(Rung::None) - 4 * config.hidden as u64 - 4) / layers;
        for (rung, want) in Rung::ALL.into_iter().zip(row["ladder_bf16"].as_array().unwrap()) {
            let bytes = kept - (of(Rung::None) - of(rung)) / (layers - 1);
            assert_eq!(want["bytes_a_token_a_layer"], bytes, "{} {rung}", row["model"]);
        }
    }
}

/// Shares of a layer's products that a rung computes again, to the last bit of the fraction.
#[test]
fn operations_are_those_of_the_vectors() {
    for row in models() {
        let config = model(row["model"].as_str().unwrap());
        let layer = LayerFlops::new(&config, 1.0, 0.0);
        assert_eq!(row["linear_a_layer"].as_f64().unwrap(), layer.all() / 2.0);
        for (rung, want) in Rung::ALL.into_iter().zip(row["ladder_bf16"].as_array().unwrap()) {
            let share = layer.again(rung) / layer.all();
            assert!((want["linear_again"].as_f64().unwrap() - share).abs() < 1e-15, "{} {rung}", row["model"]);
        }
    }
}
