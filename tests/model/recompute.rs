//! What is computed again has the bits of what was kept: gradients under every rung, in every family, and the bytes that this
//! saves.

use std::path::PathBuf;

use half::bf16;
use serde_json::Value;
use warpo::{
    device::{DType, Device, Float},
    forest::{Forest, Tree},
    model::{Capacity, MemoryPlan, Model, ModelConfig, Rung, Slopes, flops, recomputed_flops},
};

use super::{families::FAMILIES, fast_devices, list, pair, random_params, steps, tiny_json};
use crate::support::{fast_device, fast_hopper, normal, root};

fn fixtures() -> PathBuf {
    root().join("tests/fixtures/parity")
}

/// A model under these rungs: the weights of a folder, or random ones.
fn model<T: Float>(
    device: &Device,
    config: &ModelConfig,
    folder: Option<&str>,
    forest: &Forest,
    levels: &[Rung],
) -> Model<T> {
    let rows = forest.rows();
    let capacity = Capacity { tokens: forest.len() + 7, rows: rows + 3, head_chunk_rows: rows / 2 };
    let plan = MemoryPlan::new(config, T::DTYPE, capacity).unwrap().on(device, config);
    let plan = plan.recomputing(config, levels.to_vec()).unwrap();
    let model = Model::new(device, config, plan).unwrap();
    match folder {
        Some(name) => model.load(&fixtures().join(name)).unwrap(),
        None => device.copy_in(&model.params().values(), &random_params::<T>(config)).unwrap(),
    }
    model
}

/// Gradients of one pack, after another one has been through the same memory.
fn grads<T: Float>(device: &Device, model: &Model<T>, forest: &Forest) -> Vec<u32> {
    let batch = model.upload(forest).unwrap();
    let coefficients = device.upload(&normal(5, forest.rows())).unwrap();
    for _ in 0..2 {
        model.zero_grads().unwrap();
        model.forward(&batch).unwrap();
        model.logps(&batch).unwrap();
        device.graphed(|| model.backward(&batch, &Slopes::by_logps(&coefficients))).unwrap();
    }
    device.download(model.params().grads()).unwrap().into_iter().map(f32::to_bits).collect()
}

/// All layers on each rung, then a rung for each of them, up and down.
fn ladders(layers: usize) -> Vec<Vec<Rung>> {
    let mixed = |start: usize| (0..layers).map(|layer| Rung::ALL[(start + 2 * layer) % 5]).collect();
    let alike = Rung::ALL.into_iter().skip(1).map(|rung| vec![rung; layers]);
    alike.chain((0..5).map(mixed)).collect()
}

fn every_rung_has_the_same_gradients<T: Float>(
    device: &Device,
    on: &str,
    config: &ModelConfig,
    folder: Option<&str>,
    trees: &[Tree],
) {
    let forest = Forest::pack(trees).unwrap();
    let of = |levels: &[Rung]| grads(device, &model::<T>(device, config, folder, &forest, levels), &forest);
    let want = of(&vec![Rung::None; config.layers]);
    assert!(want.iter().any(|&bits| bits != 0));
    for levels in ladders(config.layers) {
        let got = of(&levels);
        let off = got.iter().zip(&want).filter(|(got, want)| got != want).count();
        assert_eq!(off, 0, "{folder:?} in {:?} on {on}, {levels:?}: {off} of {} gradients", T::DTYPE, want.len());
    }
}

fn trees() -> Vec<Tree> {
    vec![pair(1, [12, 7, 5]), steps(2), list(3, 6, 3), pair(5, [40, 30, 2])]
}

fn family(name: &str) -> ModelConfig {
    ModelConfig::load(&fixtures().join(name)).unwrap()
}

/// Four layers of heads that attention on Hopper's units takes.
fn deep() -> ModelConfig {
    let mut config: Value = serde_json::from_str(&tiny_json(true, 2)).unwrap();
    for (name, value) in [("num_hidden_layers", 4), ("head_dim", 64)] {
        config[name] = value.into();
    }
    ModelConfig::parse(&config.to_string()).unwrap()
}

#[test]
fn gradients_of_every_family_do_not_depend_on_the_rungs() {
    for name in FAMILIES {
        for (device, on) in fast_devices().into_iter().filter(|&(_, on)| on != "host") {
            every_rung_has_the_same_gradients::<f32>(&device, on, &family(name), Some(name), &trees());
        }
    }
}

#[test]
fn gradients_by_every_kind_of_kernel_do_not_depend_on_the_rungs() {
    let config = deep();
    for (device, on) in [(fast_device(2), "portable kernels"), (fast_hopper(2), "Hopper's kernels")] {
        every_rung_has_the_same_gradients::<bf16>(&device, on, &config, None, &trees());
    }
    for (device, on) in fast_devices() {
        every_rung_has_the_same_gradients::<f32>(&device, on, &config, None, &trees());
    }
}

#[test]
#[ignore = "half an hour of emulated kernels: .ci/long"]
fn the_whole_matrix_of_families_kernels_and_rungs() {
    for name in FAMILIES {
        for (device, on) in [(fast_device(2), "portable kernels"), (fast_hopper(2), "Hopper's kernels")] {
            every_rung_has_the_same_gradients::<f32>(&device, on, &family(name), Some(name), &trees());
            every_rung_has_the_same_gradients::<bf16>(&device, on, &family(name), Some(name), &trees());
        }
    }
}

/// Without another forward pass the last layer's slot holds what its own wrote: nothing of it is computed again, or counted.
#[test]
fn what_is_computed_again_is_counted() {
    let config = deep();
    let forest = Forest::pack(&trees()).unwrap();
    let tokens = forest.len() as f64;
    let count = |levels: [Rung; 4]| recomputed_flops(&config, &forest, &levels);
    use Rung::{Attention, Block, GateUp, None, Qkv};
    assert_eq!(count([None, None, None, Block]), 0.0);
    let gate_up = 2.0 * (2 * 72 * 48) as f64 * tokens;
    let attention = count([Attention, None, None, None]);
    assert_eq!(count([None, GateUp, None, None]), attention + gate_up);
    let qkv = 2.0 * ((4 + 2 * 2) * 64 * 48) as f64 * tokens;
    assert_eq!(count([Qkv, Attention, None, None]), 2.0 * attention + gate_up + qkv);
    let o = 2.0 * (4 * 64 * 48) as f64 * tokens;
    let block = count([Block, Block, Block, Block]);
    assert_eq!(block, 3.0 * (attention + gate_up + qkv + o));
    assert!(block < flops(&config, &forest));
}

/// The arena is as large as the plan says, and a step of the largest micro-batch needs nothing beside it but its index tables
/// and a few bytes a row.
fn allocated_is_planned<T: Float>(device: &Device, config: &ModelConfig) {
    let forest = Forest::pack(&trees()).unwrap();
    let capacity = Capacity { tokens: forest.len(), rows: forest.rows(), head_chunk_rows: 16 };
    let [mut most, mut least] = [0, usize::MAX];
    for levels in ladders(config.layers) {
        let plan = MemoryPlan::new(config, T::DTYPE, capacity).unwrap().on(device, config);
        let plan = plan.recomputing(config, levels.clone()).unwrap();
        assert_eq!(plan.arena, plan.saved + plan.scratch + plan.head);
        let before = device.memory().allocated;
        let model = Model::<T>::new(device, config, plan.clone()).unwrap();
        assert_eq!(
            device.memory().allocated - before,
            plan.parameters + plan.low + plan.gradients + plan.arena,
            "{levels:?}"
        );
        most = most.max(plan.saved);
        least = least.min(plan.saved);
        grads(device, &model, &forest);
    }
    assert!(least < most);
}

#[test]
fn allocated_is_planned_on_every_rung() {
    for device in [fast_device(2), fast_hopper(2)] {
        allocated_is_planned::<bf16>(&device, &deep());
        for name in ["gemma2", "olmo2", "gpt2", "qwen3"] {
            allocated_is_planned::<f32>(&device, &family(name));
        }
    }
}

#[test]
fn rungs_of_another_model_are_refused() {
    let config = deep();
    let capacity = Capacity { tokens: 64, rows: 64, head_chunk_rows: 16 };
    let why = |plan: MemoryPlan, layers| plan.recomputing(&config, vec![Rung::Block; layers]).unwrap_err().to_string();
    let plan = MemoryPlan::new(&config, DType::F32, capacity).unwrap();
    assert_eq!(why(plan, 3), "3 rungs for 4 layers");
    let plan = MemoryPlan::forward_only(&config, DType::F32, capacity).unwrap();
    assert_eq!(why(plan, 4), "nothing is computed again without a backward pass");
}
