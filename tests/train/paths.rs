//! Training on Hopper's units beside training on the kernels that every GPU runs.

use half::bf16;
use serde_json::Value;
use warpo::{
    data::{
        Dataset, Limits, OnError,
        encode::{EncodeOptions, Encoder},
        records::Columns,
        trees::Trees,
    },
    device::{DType, Device, Float, HostOptions},
    feed::Work,
    loss::Loss,
    model::{Capacity, MemoryPlan, Model, ModelConfig},
    optim::{Optimizer, RuleKind, Settings},
    roles::reference::compute,
};

use super::fixture::trainer;

use crate::{
    data::quickstart,
    support::{fast_device, fast_hopper, root},
};

const STEPS: usize = 4;
const PAIRS: usize = 4;
const BUDGET: usize = 1024;
const SETTINGS: Settings = Settings { rule: RuleKind::adamw(0.9, 0.999, 1e-8), weight_decay: 0.01, max_grad_norm: 1.0 };

/// The quickstart's model with heads of 64 instead of 32, which attention on Hopper's units takes.
fn shape() -> ModelConfig {
    let text = std::fs::read_to_string(root().join("examples/quickstart-model/config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (name, value) in [("head_dim", 64), ("num_attention_heads", 3), ("num_key_value_heads", 1)] {
        config[name] = value.into();
    }
    ModelConfig::parse(&config.to_string()).unwrap()
}

fn data() -> Dataset {
    let encoder = Encoder::new(
        quickstart::tokenizer(),
        None,
        EncodeOptions::new(Limits { prompt: 128, response: 16, tree: 160 }),
    );
    let path = root().join("examples/data/persona_agreeableness/train.jsonl");
    Dataset::load(&path, &Columns::new(), &encoder, OnError::Stop).unwrap()
}

/// The loss of each step of a run over the first rows, as the quickstart has it.
fn losses<T: Float>(device: &Device, precision: DType, data: &Dataset) -> Vec<f64> {
    let shape = shape();
    let capacity = Capacity { tokens: BUDGET, rows: BUDGET, head_chunk_rows: 512 };
    let plan = MemoryPlan::new(&shape, precision, capacity).unwrap().on(device, &shape);
    let model = Model::<T>::new(device, &shape, plan).unwrap();
    model.randomize(1).unwrap();
    let trees = data.trees.iter().take(STEPS * PAIRS).collect::<Result<Trees, _>>().unwrap();
    let reference = compute(&model, &trees, BUDGET).unwrap();
    let optimizer = Optimizer::new(model.params(), &SETTINGS).unwrap();
    let loss = Loss::with("dpo", &[("sft_weight", 1.0)]).unwrap();
    let trainer = trainer(model, optimizer, loss);
    let step = |step: usize| {
        let rows: Vec<u32> = (step * PAIRS..(step + 1) * PAIRS).map(|row| row as u32).collect();
        let work = Work::of(&trees, &rows, BUDGET, &reference).unwrap();
        trainer.step(&work, 5e-4, step == 0).unwrap().metrics.get("loss").unwrap()
    };
    (0..STEPS).map(step).collect()
}

/// Both drift from a run in f32 as bf16 does; neither may drift more than twice as far as the other, plus what one rounding
/// to bf16 moves a loss by. The loss falls on both.
#[test]
fn both_paths_train_alike() {
    let data = data();
    let native = Device::host(HostOptions { threads: 2, ..HostOptions::default() }).unwrap();
    let want = losses::<f32>(&native, DType::F32, &data);
    let drift = |losses: &[f64]| -> f64 {
        losses.iter().zip(&want).map(|(loss, want)| ((loss - want) / want).abs()).fold(0.0, f64::max)
    };
    let [portable, hopper] = [fast_device(2), fast_hopper(2)].map(|device| losses::<bf16>(&device, DType::Bf16, &data));
    let (ours, theirs, one_rounding) = (drift(&hopper), drift(&portable), 2f64.powi(-9));
    println!("drift from f32 over {STEPS} steps: sm_90a {ours:.2e}, portable {theirs:.2e}; losses {hopper:?}");
    assert!(ours <= 2.0 * theirs + one_rounding, "sm_90a {hopper:?}, f32 {want:?}");
    assert!(theirs <= 2.0 * ours + one_rounding, "portable {portable:?}, f32 {want:?}");
    for losses in [&portable, &hopper] {
        assert!(losses[STEPS - 1] < 0.9 * losses[0], "the loss does not fall: {losses:?}");
    }
}
