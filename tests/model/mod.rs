//! Models of a few thousand parameters: gradients, packing, weights and what is refused.

mod config;
mod weights;

use warpo::model::ModelConfig;

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
