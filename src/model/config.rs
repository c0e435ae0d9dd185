//! What a Hugging Face `config.json` of a Llama-style decoder says.
//!
//! Owns the refusal of everything the engine does not run: by key, value and what runs instead. Keeps the file as it
//! was read, so that a saved folder carries it on.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use crate::device::DType;

/// Name of the file in a model folder.
pub const CONFIG_FILE: &str = "config.json";

const HEAD_DIMS: [usize; 4] = [32, 64, 96, 128];
/// Rows of 16 bytes in bf16: every matrix can then be read by 16-byte copies.
const ALIGNED: usize = 8;
/// Above this a dimension is a mistake in the file; products of two still fit in 64 bits.
const LARGEST_DIM: u64 = 1 << 30;
/// Parameters; above this the file is a mistake as well.
const LARGEST_MODEL: u128 = 1 << 42;

/// Shape and constants of a decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    pub vocab: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Longest path from a root to a leaf, in tokens.
    pub positions: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    /// The output head is the embedding table.
    pub tied: bool,
    /// Standard deviation of random starting weights.
    pub initializer_range: f64,
    raw: Map<String, Value>,
}

impl ModelConfig {
    /// Reads `config.json` in a model folder.
    ///
    /// # Errors
    /// The file is missing, is not JSON or describes something that does not run here.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG_FILE);
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!("{}: a model folder needs a {CONFIG_FILE} in the Hugging Face form", path.display())
        })?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// The text is not a JSON object or describes something that does not run here.
    pub fn parse(text: &str) -> Result<Self> {
        let raw: Map<String, Value> = serde_json::from_str(text).context("not a JSON object")?;
        let fields = Fields(&raw);
        fields.check_family()?;
        fields.check_options()?;
        let hidden = fields.dim("hidden_size")?;
        let heads = fields.dim("num_attention_heads")?;
        let head_dim = match fields.optional_dim("head_dim")? {
            Some(dim) => dim,
            None => {
                ensure!(
                    hidden.is_multiple_of(heads),
                    "hidden_size {hidden} does not divide by num_attention_heads {heads}"
                );
                hidden / heads
            }
        };
        let config = Self {
            vocab: fields.dim("vocab_size")?,
            hidden,
            ffn: fields.dim("intermediate_size")?,
            layers: fields.dim("num_hidden_layers")?,
            heads,
            kv_heads: fields.optional_dim("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            positions: fields.optional_dim("max_position_embeddings")?.unwrap_or(2048),
            rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope_theta: fields.rope_theta()?,
            tied: fields.flag("tie_word_embeddings")?,
            initializer_range: fields.number("initializer_range")?.unwrap_or(0.02),
            raw,
        };
        config.check()?;
        Ok(config)
    }

    /// The text of a `config.json` for weights saved as `dtype`: the file as it was read, but for the element type.
    pub fn to_json(&self, dtype: DType) -> String {
        let mut raw = self.raw.clone();
        let name = Value::from(if dtype == DType::Bf16 { "bfloat16" } else { "float32" });
        // transformers 4 writes `torch_dtype`, transformers 5 `dtype`; both read either.
        let keys: Vec<_> = ["torch_dtype", "dtype"].into_iter().filter(|&key| raw.contains_key(key)).collect();
        for key in if keys.is_empty() { vec!["torch_dtype"] } else { keys } {
            raw.insert(key.to_owned(), name.clone());
        }
        let mut text = serde_json::to_string_pretty(&raw).expect("JSON values can be written");
        text.push('\n');
        text
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

    /// Number of parameters, a tied head counted once.
    pub fn parameters(&self) -> u128 {
        let [vocab, hidden, ffn, layers] = [self.vocab, self.hidden, self.ffn, self.layers].map(|x| x as u128);
        let attention = (self.qkv_width() + self.q_width()) as u128 * hidden;
        let tables = if self.tied { 1 } else { 2 };
        layers * (attention + 3 * ffn * hidden + 2 * hidden) + tables * vocab * hidden + hidden
    }

    fn check(&self) -> Result<()> {
        ensure!(
            HEAD_DIMS.contains(&self.head_dim),
            "head_dim {} does not run: the attention kernels exist for 32, 64, 96 and 128",
            self.head_dim
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
        for (key, value) in [
            ("rms_norm_eps", f64::from(self.rms_norm_eps)),
            ("rope_theta", self.rope_theta),
            ("initializer_range", self.initializer_range),
        ] {
            ensure!(value.is_finite() && value > 0.0, "{key} {value}: expected a positive number");
        }
        let parameters = self.parameters();
        ensure!(parameters <= LARGEST_MODEL, "the sizes make {parameters} parameters, more than {LARGEST_MODEL}");
        Ok(())
    }
}

/// The JSON object with typed look-ups; every message names key and value.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    /// A key that is absent or null counts as not given, as in transformers.
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn optional_dim(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let dim = value.as_u64().filter(|dim| (1..=LARGEST_DIM).contains(dim));
        let dim = dim.ok_or_else(|| anyhow!("{key} {value}: expected a whole number from 1 to {LARGEST_DIM}"))?;
        Ok(Some(dim as usize))
    }

    fn dim(&self, key: &str) -> Result<usize> {
        self.optional_dim(key)?.ok_or_else(|| anyhow!("{key} is missing"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| anyhow!("{key} {value}: expected a number"))
    }

    fn flag(&self, key: &str) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| anyhow!("{key} {value}: expected true or false"))
    }

    /// Only Llama-style decoders; either key may be missing, not both.
    fn check_family(&self) -> Result<()> {
        const RUNS: &str = "warpo runs Llama-style decoders (model_type \"llama\", architecture \"LlamaForCausalLM\")";
        let kind = self.get("model_type");
        let architecture = self.get("architectures").map(|list| list.get(0).unwrap_or(list));
        if let Some(kind) = kind.filter(|&kind| kind != "llama") {
            bail!("model_type {kind} does not run: {RUNS}");
        }
        if let Some(name) = architecture.filter(|&name| name != "LlamaForCausalLM") {
            bail!("architecture {name} does not run: {RUNS}");
        }
        ensure!(kind.is_some() || architecture.is_some(), "neither model_type nor architectures is given: {RUNS}");
        Ok(())
    }

    fn check_options(&self) -> Result<()> {
        self.only("hidden_act", &Value::from("silu"))?;
        self.only("attention_bias", &Value::from(false))?;
        self.only("mlp_bias", &Value::from(false))?;
        for (key, only) in [("attention_dropout", 0.0), ("partial_rotary_factor", 1.0)] {
            if let Some(value) = self.number(key)?.filter(|&value| value != only) {
                bail!("{key} {value} does not run: only {only} does");
            }
        }
        if let Some(value) = self.get("quantization_config") {
            bail!("quantization_config {value} does not run: only weights in f32, f16 or bf16 do");
        }
        if let Some(value) = self.get("rope_scaling") {
            let kind = value.get("rope_type").or_else(|| value.get("type"));
            ensure!(
                kind.is_some_and(|kind| kind == "default"),
                "rope_scaling {value} does not run: only null or type \"default\" does"
            );
        }
        Ok(())
    }

    fn only(&self, key: &str, only: &Value) -> Result<()> {
        match self.get(key) {
            Some(value) if value != only => bail!("{key} {value} does not run: only {only} does"),
            _ => Ok(()),
        }
    }

    /// `rope_theta` stands at the top in transformers 4 and in `rope_parameters` in transformers 5.
    fn rope_theta(&self) -> Result<f64> {
        const DEFAULT: f64 = 10_000.0;
        let Some(parameters) = self.get("rope_parameters") else {
            return Ok(self.number("rope_theta")?.unwrap_or(DEFAULT));
        };
        let object = parameters.as_object();
        let inner = Fields(object.ok_or_else(|| anyhow!("rope_parameters {parameters}: expected an object"))?);
        let kind = inner.get("rope_type").or_else(|| inner.get("type"));
        ensure!(
            kind.is_none_or(|kind| kind == "default"),
            "rope_parameters {parameters} does not run: only rope_type \"default\" does"
        );
        if let Some(value) = inner.number("partial_rotary_factor")?.filter(|&value| value != 1.0) {
            bail!("rope_parameters.partial_rotary_factor {value} does not run: only 1 does");
        }
        Ok(inner.number("rope_theta")?.or(self.number("rope_theta")?).unwrap_or(DEFAULT))
    }
}
