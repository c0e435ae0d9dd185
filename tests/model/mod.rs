//! Models of a few thousand parameters: gradients, packing, weights and what is refused.

mod config;
mod families;
mod forest;
mod golden;
mod gradients;
mod heads;
mod host_memory;
mod memory;
mod optional_keys;
mod recompute;
mod saved;
mod sets;
mod weights;

use warpo::{
    device::{DType, Device, Float, GemmBackend, HostOptions},
    forest::{Forest, Segment, Tree},
    model::{Capacity, Layout, MemoryPlan, Model, ModelConfig},
};

use crate::{
    oracles::model::Params,
    support::{fast_device, normal, with_gpu},
};

/// A model small enough for the oracle, with every width different from the others.
pub fn tiny_config(tied: bool, kv_heads: usize) -> ModelConfig {
    ModelConfig::parse(&tiny_json(tied, kv_heads)).expect("the configuration runs")
}

/// The text [`tiny_config`] reads.
pub fn tiny_json(tied: bool, kv_heads: usize) -> String {
    format!(
        r#"{{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": 67,
  "hidden_size": 48,
  "intermediate_size": 72,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": {kv_heads},
  "head_dim": 32,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-05,
  "rope_theta": 1000.0,
  "max_position_embeddings": 128,
  "initializer_range": 0.1,
  "tie_word_embeddings": {tied},
  "torch_dtype": "float16",
  "kept_as_it_is": {{"z": 1, "a": [1.5, null]}}
}}"#
    )
}

/// The host device at full speed, with the emulated kernels and with the native matrix products, and the GPU.
pub fn fast_devices() -> Vec<(Device, &'static str)> {
    let native = HostOptions { threads: 2, gemm: GemmBackend::Native, ..HostOptions::default() };
    let native = || Device::host(native).expect("the host device opens");
    with_gpu(|| vec![(fast_device(2), "host"), (native(), "host, native products")])
}

/// A model for one forest, with logits in chunks that do not divide the rows.
pub fn model_for<T: Float>(device: &Device, config: &ModelConfig, forest: &Forest) -> Model<T> {
    let rows = forest.rows();
    let capacity = Capacity { tokens: forest.len(), rows, head_chunk_rows: (2 * rows / 5).max(1) };
    let precision = if size_of::<T>() == 2 { DType::Bf16 } else { DType::F32 };
    let plan = MemoryPlan::new(config, precision, capacity).unwrap().on(device, config);
    let model = Model::new(device, config, plan).unwrap();
    device.copy_in(&model.params().values(), &random_params::<T>(config)).unwrap();
    model
}

/// Weights that leave no part of the model without effect: softmaxes far from uniform, norm weights away from 1.
pub fn random_params<T: Float>(config: &ModelConfig) -> Vec<T> {
    let layout = Layout::new(config);
    let tensor = |(i, spec): (usize, &warpo::model::TensorSpec)| {
        let (mean, deviation) = if spec.decay { (0.0, 0.15) } else { (1.0, 0.2) };
        let values = normal(100 + i as u64, spec.elements());
        values.into_iter().map(move |x| T::from_f32(mean + deviation * x)).collect::<Vec<T>>()
    };
    layout.tensors.iter().enumerate().flat_map(tensor).collect()
}

/// An arena's values under their tensors' names, as the oracle takes them.
pub fn named<T: Float>(config: &ModelConfig, values: &[T]) -> Params {
    let widen = |x: &T| f64::from(x.to_f32());
    let tensor = |spec: warpo::model::TensorSpec| {
        let values = values[spec.range()].iter().map(widen).collect();
        (spec.name, values)
    };
    Layout::new(config).tensors.into_iter().map(tensor).collect()
}

/// Random token ids below the tiny vocabulary.
pub fn tokens(seed: u64, len: usize) -> Vec<u32> {
    normal(seed, len).into_iter().map(|x| (x.abs() * 1e4) as u32 % 67).collect()
}

/// A prompt with two responses.
pub fn pair(seed: u64, [prompt, chosen, rejected]: [usize; 3]) -> Tree {
    let part = |i, len| tokens(10 * seed + i, len);
    Tree::pair(format!("pair {seed}"), part(0, prompt), part(1, chosen), part(2, rejected))
}

/// A prompt with `count` responses, the first preferred to each other.
pub fn list(seed: u64, prompt: usize, count: usize) -> Tree {
    let mut segments =
        vec![Segment { parent: None, tokens: tokens(100 * seed, prompt), scored: false, ..Segment::default() }];
    for i in 0..count {
        let tokens = tokens(100 * seed + 1 + i as u64, 3 + 2 * i);
        segments.push(Segment { parent: Some(0), tokens, scored: true, ..Segment::default() });
    }
    Tree { name: format!("list {seed}"), segments, pairs: (1..count).map(|i| [0, i]).collect(), ..Tree::default() }
}

/// A prompt, three steps of which two have continuations of their own; every step is scored.
pub fn steps(seed: u64) -> Tree {
    let segment = |i: u64, parent, len, scored| {
        let tokens = tokens(100 * seed + i, len);
        Segment { parent, tokens, scored, ..Segment::default() }
    };
    let segments = vec![
        segment(0, None, 9, false),
        segment(1, Some(0), 5, true),
        segment(2, Some(1), 4, true),
        segment(3, Some(1), 7, true),
        segment(4, Some(0), 1, true),
        segment(5, Some(4), 6, true),
        segment(6, Some(4), 1, true),
        segment(7, Some(4), 3, true),
        segment(8, Some(0), 12, true),
    ];
    let pairs = vec![[0, 3], [1, 2], [4, 5], [4, 6], [0, 7]];
    Tree { name: format!("steps {seed}"), segments, pairs, ..Tree::default() }
}

/// A plain document: its first token has nothing to be predicted from.
pub fn document(seed: u64, len: usize) -> Tree {
    let segments = vec![Segment { parent: None, tokens: tokens(seed, len), scored: true, ..Segment::default() }];
    Tree { name: format!("document {seed}"), segments, ..Tree::default() }
}
