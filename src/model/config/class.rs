//! What each family's configuration class of transformers 5.24 has where a file says nothing, and what it reads.

use super::Family;

/// The defaults of a family with rotary positions.
pub(super) struct Class {
    pub vocab: usize,
    pub hidden: usize,
    pub ffn: usize,
    pub layers: usize,
    pub heads: usize,
    /// None: as many as query heads.
    pub kv_heads: Option<usize>,
    /// Whether null stands for as many as query heads; otherwise it is refused.
    pub kv_heads_null: bool,
    pub head_dim: HeadDim,
    pub positions: usize,
    pub norm_eps: f64,
    pub rope_theta: f64,
    pub tied: bool,
    /// Keys that give projections a bias.
    pub biases: &'static [&'static str],
    /// Whether `attention_dropout` may be null.
    pub dropout_null: bool,
    /// `hidden_size` has to divide by `num_attention_heads`, even where `head_dim` is given.
    pub divides: bool,
}

/// The width of a head where the file does not say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadDim {
    /// `hidden_size` over `num_attention_heads`.
    Quotient,
    /// The same, and null stands for it too.
    QuotientOrNull,
    Fixed(usize),
}

/// Llama's, from which the others differ.
const LLAMA: Class = Class {
    vocab: 32_000,
    hidden: 4096,
    ffn: 11_008,
    layers: 32,
    heads: 32,
    kv_heads: None,
    kv_heads_null: true,
    head_dim: HeadDim::QuotientOrNull,
    positions: 2048,
    norm_eps: 1e-6,
    rope_theta: 1e4,
    tied: false,
    biases: &["attention_bias", "mlp_bias"],
    dropout_null: true,
    divides: true,
};

const MISTRAL: Class = Class {
    ffn: 14_336,
    kv_heads: Some(8),
    kv_heads_null: false,
    positions: 131_072,
    biases: &[],
    dropout_null: false,
    divides: false,
    ..LLAMA
};

const QWEN2: Class = Class {
    vocab: 151_936,
    ffn: 22_016,
    kv_heads: Some(32),
    head_dim: HeadDim::Quotient,
    positions: 32_768,
    biases: &[],
    dropout_null: false,
    divides: false,
    ..LLAMA
};

const QWEN3: Class = Class { head_dim: HeadDim::Fixed(128), biases: &["attention_bias"], ..QWEN2 };

const SMOLLM3: Class = Class {
    vocab: 128_256,
    hidden: 2048,
    ffn: 11_008,
    layers: 36,
    heads: 16,
    kv_heads: Some(4),
    rope_theta: 2e6,
    tied: true,
    biases: &["attention_bias", "mlp_bias"],
    ..QWEN2
};

const PHI3: Class = Class {
    vocab: 32_064,
    hidden: 3072,
    ffn: 8192,
    head_dim: HeadDim::Quotient,
    positions: 4096,
    norm_eps: 1e-5,
    biases: &[],
    dropout_null: false,
    divides: false,
    ..LLAMA
};

const GEMMA2: Class = Class {
    vocab: 256_000,
    hidden: 2304,
    ffn: 9216,
    layers: 26,
    heads: 8,
    kv_heads: Some(4),
    kv_heads_null: false,
    head_dim: HeadDim::Fixed(256),
    positions: 8192,
    tied: true,
    biases: &["attention_bias"],
    ..LLAMA
};

const GEMMA3: Class = Class { vocab: 262_208, positions: 131_072, rope_theta: 1e6, ..GEMMA2 };

const OLMO2: Class = Class {
    vocab: 50_304,
    head_dim: HeadDim::Quotient,
    norm_eps: 1e-5,
    biases: &["attention_bias"],
    dropout_null: false,
    divides: false,
    ..LLAMA
};

impl Family {
    /// The defaults of a family; GPT-2's, which has no rotary positions, stand where it is read.
    pub(super) fn class(self) -> &'static Class {
        match self {
            Self::Llama | Self::Gpt2 => &LLAMA,
            Self::Mistral => &MISTRAL,
            Self::Qwen2 => &QWEN2,
            Self::Qwen3 => &QWEN3,
            Self::SmolLm3 => &SMOLLM3,
            Self::Phi3 => &PHI3,
            Self::Gemma2 => &GEMMA2,
            Self::Gemma3 => &GEMMA3,
            Self::Olmo2 => &OLMO2,
        }
    }
}
