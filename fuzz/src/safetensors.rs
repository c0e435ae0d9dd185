//! Weight files of a small model: lengths, headers, offsets, types and indices that may lie.

use std::path::{Path, PathBuf};

use anyhow::Result;
use safetensors::{
    Dtype,
    tensor::{TensorView, serialize},
};
use serde_json::{Map, Value, json};
use warpo::{
    device::{Device, Float, HostOptions},
    model::{Layout, ModelConfig, ParamSet, weights},
};

use super::{Target, check_refusal, input, remove, split, write};

/// The file comes in pieces, an index first.
const SHARDED: u8 = 0x01;
/// The header's length is written by the target, so that mutations of a header reach behind it: the header ends with its line.
const MEASURED: u8 = 0x02;
const UNTIED: u8 = 0x04;
const GPT2: u8 = 0x08;
/// Between the pieces.
const BETWEEN: &[u8] = b"\n-- \0 --\n";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// Weight files.
pub struct Safetensors {
    folder: PathBuf,
    device: Device,
}

impl Target for Safetensors {
    fn seeds() -> Vec<Vec<u8>> {
        let mut seeds = Vec::new();
        for (choice, dtype) in [(0, Dtype::F32), (UNTIED, Dtype::BF16), (GPT2, Dtype::F16), (GPT2 | UNTIED, Dtype::F32)]
        {
            let layout = Layout::new(&config(choice));
            let whole = file(&layout, dtype, |_| true);
            seeds.push(input(choice | MEASURED, &by_line(&whole)));
            seeds.push(input(choice, &whole));
            let half = layout.tensors.len() / 2;
            let pieces = [file(&layout, dtype, |i| i < half), file(&layout, dtype, |i| i >= half)];
            let place = |(i, spec): (usize, &warpo::model::TensorSpec)| {
                (spec.name.clone(), Value::from(SHARDS[usize::from(i >= half)]))
            };
            let map: Map<String, Value> = layout.tensors.iter().enumerate().map(place).collect();
            let index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string().into_bytes();
            let [a, b] = pieces.map(|piece| by_line(&piece));
            seeds.push(input(choice | MEASURED | SHARDED, &[index, a, b].join(BETWEEN)));
        }
        let lies = [
            r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "BF16", "shape": [1], "data_offsets": [4, 6]}}"#,
            r#"{"a": {"dtype": "F4", "shape": [18446744073709551615, 2], "data_offsets": [8, 0]}}"#,
            r#"{"__metadata__": {"format": "pt"}, "a": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}}"#,
        ];
        seeds.extend(lies.map(|header| input(MEASURED, format!("{header}\n01234567").as_bytes())));
        seeds.push(input(0, &u64::MAX.to_le_bytes()));
        seeds.push(input(SHARDED, br#"{"weight_map": {"a": "../a", "b": "/etc/passwd", "c": "x\u0000"}}"#));
        seeds
    }

    fn new(folder: &Path) -> Self {
        let device = Device::host(HostOptions { threads: 1, ..HostOptions::default() }).expect("the host device opens");
        Self { folder: folder.to_owned(), device }
    }

    fn run(&self, bytes: &[u8]) {
        let [choice, bytes @ ..] = bytes else { return };
        remove(&self.folder, &[SINGLE, INDEX, SHARDS[0], SHARDS[1]]);
        let files = split(bytes, BETWEEN);
        let names = if choice & SHARDED > 0 { vec![INDEX, SHARDS[0], SHARDS[1]] } else { vec![SINGLE] };
        for (name, bytes) in names.into_iter().zip(files) {
            let measured = choice & MEASURED > 0 && name != INDEX;
            write(&self.folder.join(name), if measured { with_length(bytes) } else { bytes.to_vec() });
        }
        let config = config(*choice);
        match self.load::<f32>(&config) {
            Ok(values) => assert!(values.iter().all(|value| value.is_finite()), "a weight that is no number"),
            Err(why) => check_refusal(&why),
        }
    }
}

impl Safetensors {
    fn load<T: Float>(&self, config: &ModelConfig) -> Result<Vec<T>> {
        let params = ParamSet::<T>::frozen(&self.device, Layout::new(config))?;
        weights::load(&params, config, &self.folder)?;
        self.device.download(&params.values())
    }
}

/// The smallest models there are.
fn config(choice: u8) -> ModelConfig {
    let tied = choice & UNTIED == 0;
    let text = if choice & GPT2 > 0 {
        json!({"model_type": "gpt2", "n_embd": 32, "n_head": 1, "n_layer": 1, "n_inner": 8, "n_positions": 2,
               "vocab_size": 2, "tie_word_embeddings": tied})
    } else {
        json!({"model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 32,
               "num_attention_heads": 1, "vocab_size": 4, "tie_word_embeddings": tied})
    };
    ModelConfig::parse(&text.to_string()).expect("the small model runs")
}

/// The tensors of the layout that are `wanted`, all values 1.
fn file(layout: &Layout, dtype: Dtype, wanted: impl Fn(usize) -> bool) -> Vec<u8> {
    let one: &[u8] = match dtype {
        Dtype::BF16 => &[0x80, 0x3f],
        Dtype::F16 => &[0x00, 0x3c],
        _ => &[0, 0, 0x80, 0x3f],
    };
    let specs = layout.tensors.iter().enumerate().filter(|&(i, _)| wanted(i));
    let tensors: Vec<_> =
        specs.map(|(_, spec)| (spec.name.clone(), spec.file_shape(), one.repeat(spec.elements()))).collect();
    let view = |(name, shape, bytes)| (name, TensorView::new(dtype, shape, bytes).expect("sizes fit"));
    serialize(tensors.iter().map(|(name, shape, bytes)| view((name, shape.clone(), bytes))), None).expect("a file")
}

/// The file without its length, the header on a line of its own.
fn by_line(file: &[u8]) -> Vec<u8> {
    let (length, rest) = file.split_at(8);
    let length = u64::from_le_bytes(length.try_into().expect("8 bytes")) as usize;
    [&rest[..length], b"\n", &rest[length..]].concat()
}

fn with_length(bytes: &[u8]) -> Vec<u8> {
    let at = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
    let (header, body) = (&bytes[..at], bytes.get(at + 1..).unwrap_or_default());
    [&(header.len() as u64).to_le_bytes(), header, body].concat()
}
