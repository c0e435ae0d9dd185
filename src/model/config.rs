//! What a Hugging Face `config.json` of a decoder says: sizes, and the switches in which families differ.
//!
//! Owns the refusal of everything the engine does not run: by key, value and what runs instead. Keeps the file as it
//! was read, so that a saved folder carries it on.

mod class;
mod families;
mod fields;
mod ropes;

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Map, Value};

pub use families::Family;

use super::{folder, rope::Rope};
use crate::{
    device::DType,
    files::{LARGEST_TEXT, read_regular},
};

/// Name of the file in a model folder.
pub const CONFIG_FILE: &str = "config.json";

const HEAD_DIMS: [usize; 5] = [32, 64, 96, 128, 256];
/// Rows of 16 bytes in bf16: every matrix can then be read by 16-byte copies.
const ALIGNED: usize = 8;
/// Above this a dimension is a mistake in the file; products of two still fit in 64 bits.
const LARGEST_DIM: u64 = 1 << 30;
/// Above this a number of layers is one.
const LARGEST_DEPTH: usize = 10_000;
/// Parameters; above this the file is a mistake as well.
const LARGEST_MODEL: u128 = 1 << 42;

/// Sizes and switches of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Names and layouts of the tensors in a file.
    pub family: Family,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width between the two products of the MLP.
    pub ffn: usize,
    /// Blocks of attention and MLP.
    pub layers: usize,
    /// Of queries.
    pub heads: usize,
    /// Of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Longest path from a root to a leaf, in tokens.
    pub positions: usize,
    /// Of the stream.
    pub norm: NormKind,
    /// Added to the mean square, or to the variance.
    pub norm_eps: f32,
    /// Attention and MLP read a normed stream.
    pub norm_before: bool,
    /// What attention and MLP add to the stream is normed.
    pub norm_after: bool,
    /// Of queries and keys, before they are turned.
    pub qk_norm: QkNorm,
    /// Rotary tables; none means learned positions.
    pub ropes: Vec<Rope>,
    /// One a layer.
    pub layer_kinds: Vec<LayerKind>,
    /// Queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// All other projections have one too.
    pub bias: bool,
    /// Of the MLP.
    pub activation: Activation,
    /// Embeddings are multiplied by it, rounded to the model's precision.
    pub embedding_scale: f32,
    /// Scores are multiplied by it.
    pub attention_scale: f64,
    /// Scores become `cap tanh(score / cap)`.
    pub attention_softcap: Option<f32>,
    /// Logits become `cap tanh(logit / cap)`.
    pub final_softcap: Option<f32>,
    /// The output head is the embedding table.
    pub tied: bool,
    /// Standard deviation of random starting weights.
    pub initializer_range: f64,
    raw: Map<String, Value>,
}

/// How a stream is normed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square.
    Rms,
    /// Root mean square with 1 added to every weight (Gemma).
    RmsPlusOne,
    /// Mean and variance, with a bias (GPT-2).
    Layer,
}

/// Whether queries and keys are normed before the rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Neither.
    None,
    /// Each head by itself; all heads share a weight.
    Head,
    /// All heads of a token together.
    Width,
}

/// What stands between the two matrices of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// SiLU gate times value.
    SwiGlu,
    /// GELU gate (tanh form) times value.
    GeGlu,
    /// GELU (tanh form), no gate.
    Gelu,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerKind {
    /// Which of the rotary tables.
    pub rope: Option<usize>,
    /// A token sees those less than so many positions back.
    pub window: Option<usize>,
}

impl ModelConfig {
    /// Reads `config.json` in a model folder.
    ///
    /// # Errors
    /// The file is missing, is not JSON or describes something that does not run here.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG_FILE);
        folder::check(folder)?;
        let bytes = read_regular(&path, LARGEST_TEXT)?.with_context(|| folder::without_config(folder))?;
        let text = String::from_utf8(bytes).map_err(|_| anyhow!("{}: is not UTF-8", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// The text is not a JSON object or describes something that does not run here.
    pub fn parse(text: &str) -> Result<Self> {
        let raw: Map<String, Value> = serde_json::from_str(text).context("not a JSON object")?;
        let config = families::read(&raw)?;
        config.check()?;
        Ok(config)
    }

    /// A `config.json` for weights saved as `dtype`: the file as it was read, but for the element type.
    pub fn to_map(&self, dtype: DType) -> Map<String, Value> {
        let mut raw = self.raw.clone();
        let name = Value::from(if dtype == DType::Bf16 { "bfloat16" } else { "float32" });
        // transformers 4 writes `torch_dtype`, transformers 5 `dtype`; both read either.
        let keys: Vec<_> = ["torch_dtype", "dtype"].into_iter().filter(|&key| raw.contains_key(key)).collect();
        for key in if keys.is_empty() { vec!["torch_dtype"] } else { keys } {
            raw.insert(key.to_owned(), name.clone());
        }
        raw
    }

    /// Width of all query heads.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads, and of all value heads.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Width of queries, keys and values together.
    pub fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    /// Width of what the MLP's first matrix gives: gate and value, or the value alone.
    pub fn gate_width(&self) -> usize {
        if self.activation == Activation::Gelu { self.ffn } else { 2 * self.ffn }
    }

    /// Positions are learned and added to the embeddings.
    pub fn learned_positions(&self) -> bool {
        self.ropes.is_empty()
    }

    /// Number of parameters, a tied head counted once.
    pub fn parameters(&self) -> u128 {
        let [vocab, hidden, ffn, layers] = [self.vocab, self.hidden, self.ffn, self.layers].map(|x| x as u128);
        let (qkv, q) = (self.qkv_width() as u128, self.q_width() as u128);
        let gate = self.gate_width() as u128;
        let matrices = (qkv + q) * hidden + (gate + ffn) * hidden;
        let norm = if self.norm == NormKind::Layer { 2 * hidden } else { hidden };
        let norms = norm * 2 * (u128::from(self.norm_before) + u128::from(self.norm_after));
        let qk_norm = match self.qk_norm {
            QkNorm::None => 0,
            QkNorm::Head => 2 * self.head_dim as u128,
            QkNorm::Width => (self.q_width() + self.kv_width()) as u128,
        };
        let biases = if self.qkv_bias { qkv } else { 0 } + if self.bias { gate + 2 * hidden } else { 0 };
        let tables = if self.tied { 1 } else { 2 };
        let positions = if self.learned_positions() { self.positions as u128 * hidden } else { 0 };
        layers * (matrices + norms + qk_norm + biases) + tables * vocab * hidden + positions + norm
    }

    fn check(&self) -> Result<()> {
        let [hidden, heads] = match self.family {
            Family::Gpt2 => ["n_embd", "n_head"],
            _ => ["hidden_size", "num_attention_heads"],
        };
        ensure!(
            HEAD_DIMS.contains(&self.head_dim),
            "head_dim {} does not run, with {hidden} {} and {heads} {}: the attention kernels exist for 32, 64, 96, 128 and \
             256",
            self.head_dim,
            self.hidden,
            self.heads
        );
        ensure!(
            self.heads.is_multiple_of(self.kv_heads),
            "num_attention_heads {} does not divide by num_key_value_heads {}",
            self.heads,
            self.kv_heads
        );
        for (key, value) in [("hidden_size", self.hidden), ("intermediate_size", self.ffn)] {
            ensure!(
                value.is_multiple_of(ALIGNED),
                "{key} {value} does not run: the kernels need a multiple of {ALIGNED}"
            );
        }
        let parameters = self.parameters();
        ensure!(parameters <= LARGEST_MODEL, "the sizes make {parameters} parameters, more than {LARGEST_MODEL}");
        Ok(())
    }
}
