use serde_json::{Value, json};
use warpo::{
    device::DType,
    model::{Layout, ModelConfig, Rope, Scaling},
};

use super::{tiny_config, tiny_json};

/// The tiny configuration with some keys set; null takes a key away.
fn with(changes: Value) -> String {
    let mut config: Value = serde_json::from_str(&tiny_json(true, 2)).unwrap();
    let config = config.as_object_mut().unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config.shift_remove(key);
        if !value.is_null() {
            config.insert(key.clone(), value.clone());
        }
    }
    Value::Object(config.clone()).to_string()
}

#[test]
fn defaults_are_those_of_transformers() {
    let config = ModelConfig::parse(
        r#"{"model_type": "llama", "vocab_size": 10, "hidden_size": 128, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2}"#,
    )
    .unwrap();
    assert_eq!((config.kv_heads, config.head_dim, config.positions), (2, 64, 2048));
    assert_eq!((config.norm_eps, config.ropes[0].theta, config.initializer_range), (1e-6, 1e4, 0.02));
    assert!(!config.tied);
}

#[test]
fn transformers_5_rope_parameters() {
    let config = |parameters| ModelConfig::parse(&with(json!({"rope_parameters": parameters, "rope_theta": null})));
    let read = config(json!({"rope_type": "default", "rope_theta": 5e5})).unwrap();
    assert_eq!(read.ropes, [Rope { theta: 5e5, scaling: Scaling::None }]);
    let refused = config(json!({"rope_type": "longrope", "rope_theta": 5e5})).unwrap_err();
    assert!(refused.to_string().contains("longrope"), "{refused}");
}

#[test]
fn what_does_not_run_is_named() {
    let cases = [
        (json!({"model_type": "mamba"}), &["model_type \"mamba\"", "\"llama\"", "\"qwen3\"", "\"gpt2\""][..]),
        (json!({"architectures": ["MistralForCausalLM"]}), &["architecture \"MistralForCausalLM\"", "\"llama\""]),
        (json!({"model_type": null, "architectures": ["MambaForCausalLM"]}), &["\"MambaForCausalLM\"", "\"gemma2\""]),
        (json!({"model_type": "gemma3", "architectures": null}), &["model_type \"gemma3\"", "\"gemma3_text\""]),
        (json!({"model_type": null, "architectures": null}), &["neither model_type nor architectures"]),
        (json!({"hidden_act": "gelu"}), &["hidden_act \"gelu\"", "\"silu\""]),
        (json!({"attention_bias": true}), &["attention_bias true", "false"]),
        (json!({"mlp_bias": true}), &["mlp_bias true", "false"]),
        (json!({"attention_dropout": 0.1}), &["attention_dropout 0.1"]),
        (json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4}}), &["rope_scaling", "dynamic", "yarn"]),
        (json!({"rope_scaling": {"rope_type": "llama3", "factor": 4}}), &["rope_scaling.low_freq_factor is missing"]),
        (json!({"quantization_config": {"bits": 4}}), &["quantization_config", "bf16"]),
        (json!({"head_dim": 80}), &["head_dim 80", "32, 64, 96, 128 and 256"]),
        (json!({"hidden_size": 44}), &["hidden_size 44", "multiple of 8"]),
        (json!({"intermediate_size": 100}), &["intermediate_size 100", "multiple of 8"]),
        (json!({"num_key_value_heads": 3}), &["num_attention_heads 4", "num_key_value_heads 3"]),
        (json!({"num_hidden_layers": 0}), &["num_hidden_layers 0", "whole number"]),
        (json!({"num_hidden_layers": 1_000_000_000}), &["num_hidden_layers 1000000000", "10000"]),
        (json!({"num_hidden_layers": 9_999, "hidden_size": 1 << 24}), &["parameters"]),
        (json!({"vocab_size": -3}), &["vocab_size -3", "whole number"]),
        (json!({"rope_scaling": {"rope_type": "yarn"}}), &["rope_scaling.factor is missing"]),
        (json!({"rms_norm_eps": "small"}), &["rms_norm_eps \"small\"", "number"]),
        (json!({"rope_theta": 0}), &["rope_theta 0", "positive"]),
        (json!({"tie_word_embeddings": 1}), &["tie_word_embeddings 1", "true or false"]),
    ];
    for (changes, wanted) in cases {
        let message = format!("{:#}", ModelConfig::parse(&with(changes.clone())).expect_err(&changes.to_string()));
        for part in wanted {
            assert!(message.contains(part), "{changes}: {message}");
        }
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn the_file_is_carried_with_the_element_type_of_the_run() {
    let json = Value::Object(tiny_config(true, 2).to_map(DType::Bf16));
    let mut want: Value = serde_json::from_str(&tiny_json(true, 2)).unwrap();
    want["torch_dtype"] = "bfloat16".into();
    assert_eq!(json, want);

    let renamed = ModelConfig::parse(&with(json!({"torch_dtype": null, "dtype": "bfloat16"}))).unwrap();
    assert_eq!(renamed.to_map(DType::F32)["dtype"], "float32");
}

#[test]
fn layout_is_aligned_and_adjacent() {
    for tied in [true, false] {
        let config = tiny_config(tied, 2);
        let layout = Layout::new(&config);
        let mut end = 0;
        for spec in &layout.tensors {
            assert_eq!(spec.offset, end, "{}", spec.name);
            assert_eq!(spec.offset % 8, 0, "{}", spec.name);
            assert_eq!(spec.decay, spec.offset < layout.groups()[0].range.end, "{}", spec.name);
            assert_eq!(spec.decay, !spec.name.contains("norm"), "{}", spec.name);
            end = spec.range().end;
        }
        assert_eq!(end, layout.elements);
        assert_eq!(end as u128, config.parameters());
        let range = |name: &str| layout.get(&format!("model.layers.1.{name}.weight")).unwrap().range();
        let layer = &layout.layers[1];
        assert_eq!(range("self_attn.q_proj").end, range("self_attn.k_proj").start);
        assert_eq!(range("self_attn.k_proj").end, range("self_attn.v_proj").start);
        assert_eq!(layer.qkv.weight, range("self_attn.q_proj").start..range("self_attn.v_proj").end);
        assert_eq!(layer.gate_up.weight, range("mlp.gate_proj").start..range("mlp.up_proj").end);
        assert_eq!(range("mlp.gate_proj").end, range("mlp.up_proj").start);
        assert_eq!(layer.before_mlp.as_ref().unwrap().weight, range("post_attention_layernorm"));
        assert!(layer.after_mlp.is_none() && layer.qkv.bias.is_none() && layer.qk_norm.is_none());
        assert_eq!(layout.head == layout.embedding, tied);
        assert_eq!(layout.get("lm_head.weight").is_none(), tied);
    }
}
