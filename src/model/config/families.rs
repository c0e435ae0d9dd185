//! What each family of decoders makes of its `config.json`: which keys it reads and which switches they set.

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use super::{
    super::rope::{Rope, Scaling},
    Activation, LayerKind, ModelConfig, NormKind, QkNorm,
    fields::Fields,
};

/// Families by `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    SmolLm3,
    Phi3,
    Gemma2,
    Gemma3,
    Olmo2,
    Gpt2,
}

/// `model_type` and architecture of each.
const FAMILIES: [(Family, &str, &str); 10] = [
    (Family::Llama, "llama", "LlamaForCausalLM"),
    (Family::Mistral, "mistral", "MistralForCausalLM"),
    (Family::Qwen2, "qwen2", "Qwen2ForCausalLM"),
    (Family::Qwen3, "qwen3", "Qwen3ForCausalLM"),
    (Family::SmolLm3, "smollm3", "SmolLM3ForCausalLM"),
    (Family::Phi3, "phi3", "Phi3ForCausalLM"),
    (Family::Gemma2, "gemma2", "Gemma2ForCausalLM"),
    (Family::Gemma3, "gemma3_text", "Gemma3ForCausalLM"),
    (Family::Olmo2, "olmo2", "Olmo2ForCausalLM"),
    (Family::Gpt2, "gpt2", "GPT2LMHeadModel"),
];

impl Family {
    /// By `model_type`, or by the architecture where a file has only that.
    pub(super) fn read(fields: &Fields) -> Result<Self> {
        let runs = || {
            let names: Vec<String> = FAMILIES.iter().map(|(_, kind, _)| format!("\"{kind}\"")).collect();
            format!("warpo runs model_type {}", names.join(", "))
        };
        let architecture = fields.get("architectures").map(|list| list.get(0).unwrap_or(list));
        let named = |name: &Value| FAMILIES.iter().find(|(.., known)| name == known);
        let Some(kind) = fields.get("model_type") else {
            let name =
                architecture.ok_or_else(|| anyhow!("neither model_type nor architectures is given: {}", runs()))?;
            let (family, ..) = named(name).ok_or_else(|| anyhow!("architecture {name} does not run: {}", runs()))?;
            return Ok(*family);
        };
        let Some((family, kind, own)) = FAMILIES.iter().find(|(_, known, _)| kind == known) else {
            bail!("model_type {kind} does not run: {}", runs());
        };
        if let Some(name) = architecture.filter(|name| name != own) {
            bail!("architecture {name} does not run: model_type \"{kind}\" has {own}");
        }
        Ok(*family)
    }
}

/// Reads the whole file.
pub(super) fn read(raw: &Map<String, Value>) -> Result<ModelConfig> {
    let fields = Fields(raw);
    let family = Family::read(&fields)?;
    if let Some(value) = fields.get("quantization_config") {
        bail!("quantization_config {value} does not run: only weights in f32, f16 or bf16 do");
    }
    if family == Family::Gpt2 {
        return gpt2(&fields);
    }
    let mut config = base(family, &fields)?;
    match family {
        Family::Mistral => {
            // The class's own default is a window of 4096; null is none.
            let window =
                if raw.contains_key("sliding_window") { fields.optional_dim("sliding_window")? } else { Some(4096) };
            config.layer_kinds.iter_mut().for_each(|kind| kind.window = window);
        }
        Family::Phi3 => {
            let window = fields.optional_dim("sliding_window")?;
            config.layer_kinds.iter_mut().for_each(|kind| kind.window = window);
        }
        Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 => optional_window(&mut config, &fields)?,
        _ => {}
    }
    match family {
        Family::Qwen2 => config.qkv_bias = true,
        Family::Qwen3 => config.qk_norm = QkNorm::Head,
        Family::SmolLm3 => without_rope(&mut config, &fields)?,
        Family::Olmo2 => {
            config.qk_norm = QkNorm::Width;
            (config.norm_before, config.norm_after) = (false, true);
        }
        Family::Gemma2 | Family::Gemma3 => gemma(&mut config, &fields)?,
        _ => {}
    }
    Ok(config)
}

/// What all families but GPT-2 have in common.
fn base(family: Family, fields: &Fields) -> Result<ModelConfig> {
    let is_gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    if is_gemma {
        fields.only("hidden_activation", &"gelu_pytorch_tanh".into())?;
        fields.only("hidden_act", &"gelu_pytorch_tanh".into())?;
    } else {
        fields.only("hidden_act", &"silu".into())?;
    }
    fields.only("attention_bias", &false.into())?;
    fields.only("mlp_bias", &false.into())?;
    for (key, only) in [("attention_dropout", 0.0), ("partial_rotary_factor", 1.0)] {
        if let Some(value) = fields.number(key)?.filter(|&value| value != only) {
            bail!("{key} {value} does not run: only {only} does");
        }
    }
    let (hidden, heads) = (fields.dim("hidden_size")?, fields.dim("num_attention_heads")?);
    let head_dim = match fields.optional_dim("head_dim")? {
        Some(dim) => dim,
        None if is_gemma => 256,
        None => {
            ensure!(
                hidden.is_multiple_of(heads),
                "hidden_size {hidden} does not divide by num_attention_heads {heads}"
            );
            hidden / heads
        }
    };
    let layers = fields.layers("num_hidden_layers")?;
    let positions = fields.optional_dim("max_position_embeddings")?.unwrap_or(2048);
    let tied_default = is_gemma || family == Family::SmolLm3;
    Ok(ModelConfig {
        family,
        vocab: fields.dim("vocab_size")?,
        hidden,
        ffn: fields.dim("intermediate_size")?,
        layers,
        heads,
        kv_heads: fields.optional_dim("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        positions,
        norm: NormKind::Rms,
        norm_eps: fields.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        norm_before: true,
        norm_after: false,
        qk_norm: QkNorm::None,
        ropes: if family == Family::Gemma3 { gemma3_ropes(fields, positions)? } else { vec![rope(fields, positions)?] },
        layer_kinds: vec![LayerKind { rope: Some(0), window: None }; layers],
        qkv_bias: false,
        bias: false,
        activation: Activation::SwiGlu,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        attention_softcap: None,
        final_softcap: None,
        tied: if fields.get("tie_word_embeddings").is_some() {
            fields.flag("tie_word_embeddings")?
        } else {
            tied_default
        },
        initializer_range: fields.positive("initializer_range")?.unwrap_or(0.02),
        raw: fields.0.clone(),
    })
}

/// Qwen and SmolLM3 write a window into the file and switch it on by another key.
fn optional_window(config: &mut ModelConfig, fields: &Fields) -> Result<()> {
    if !fields.flag("use_sliding_window")? {
        return Ok(());
    }
    let Some(window) = fields.optional_dim("sliding_window")? else { return Ok(()) };
    let first = fields.number("max_window_layers")?.unwrap_or(28.0) as usize;
    let is_windowed = layer_types(fields, config.layers, |i| i >= first)?;
    for (kind, windowed) in config.layer_kinds.iter_mut().zip(is_windowed) {
        kind.window = windowed.then_some(window);
    }
    Ok(())
}

/// Which layers have a window: by `layer_types`, or by the family's rule.
fn layer_types(fields: &Fields, layers: usize, rule: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let Some(list) = fields.list("layer_types", layers)? else { return Ok((0..layers).map(rule).collect()) };
    let read = |value: &Value| match value.as_str() {
        Some("sliding_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => bail!("layer_types {value}: expected \"full_attention\" or \"sliding_attention\""),
    };
    list.iter().map(read).collect()
}

/// SmolLM3: every fourth layer has no rotary positions, or those the file lists with 0.
fn without_rope(config: &mut ModelConfig, fields: &Fields) -> Result<()> {
    let interval = fields.optional_dim("no_rope_layer_interval")?.unwrap_or(4);
    let listed = fields.list("no_rope_layers", config.layers)?;
    for (i, kind) in config.layer_kinds.iter_mut().enumerate() {
        let turns = match listed.map(|list| &list[i]) {
            None => !(i + 1).is_multiple_of(interval),
            Some(value) => match value.as_u64() {
                Some(flag @ (0 | 1)) => flag == 1,
                _ => bail!("no_rope_layers {value}: expected 0 or 1"),
            },
        };
        kind.rope = turns.then_some(0);
    }
    Ok(())
}

fn gemma(config: &mut ModelConfig, fields: &Fields) -> Result<()> {
    let is_third = config.family == Family::Gemma3;
    config.norm = NormKind::RmsPlusOne;
    config.norm_after = true;
    config.activation = Activation::GeGlu;
    config.embedding_scale = (config.hidden as f64).sqrt() as f32;
    config.attention_scale = fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5);
    let cap = |key, default: f64| -> Result<Option<f32>> {
        // Gemma 2 has caps unless the file says null; Gemma 3 has none unless it gives them.
        if fields.0.contains_key(key) || is_third {
            return Ok(fields.positive(key)?.map(|cap| cap as f32));
        }
        Ok(Some(default as f32))
    };
    config.attention_softcap = cap("attn_logit_softcapping", 50.0)?;
    config.final_softcap = cap("final_logit_softcapping", 30.0)?;
    if is_third {
        config.qk_norm = QkNorm::Head;
    }
    let window = fields.optional_dim("sliding_window")?.unwrap_or(4096);
    let pattern = fields.optional_dim("sliding_window_pattern")?.unwrap_or(if is_third { 6 } else { 2 });
    let is_windowed = layer_types(fields, config.layers, |i| !(i + 1).is_multiple_of(pattern))?;
    for (kind, windowed) in config.layer_kinds.iter_mut().zip(is_windowed) {
        kind.window = windowed.then_some(window);
        kind.rope = Some(usize::from(is_third && windowed));
    }
    Ok(())
}

/// Table 0 is for layers that see everything, table 1 for those with a window.
fn gemma3_ropes(fields: &Fields, positions: usize) -> Result<Vec<Rope>> {
    if let Some(parameters) = fields.object("rope_parameters")?
        && let (Some(full), Some(sliding)) =
            (parameters.object("full_attention")?, parameters.object("sliding_attention")?)
    {
        return Ok(vec![scaled_rope(&full, &full, 1e6, positions)?, scaled_rope(&sliding, &sliding, 1e4, positions)?]);
    }
    let theta = fields.positive("rope_theta")?.unwrap_or(1e6);
    let local = fields.positive("rope_local_base_freq")?.unwrap_or(1e4);
    let global = match fields.object("rope_scaling")? {
        Some(scaling) => Rope { theta, scaling: scaling_of(&scaling, "rope_scaling", positions)? },
        None => Rope { theta, scaling: Scaling::None },
    };
    Ok(vec![global, Rope { theta: local, scaling: Scaling::None }])
}

/// `rope_theta` and `rope_scaling` stand at the top in transformers 4 and in `rope_parameters` in transformers 5.
fn rope(fields: &Fields, positions: usize) -> Result<Rope> {
    const DEFAULT: f64 = 10_000.0;
    if let Some(parameters) = fields.object("rope_parameters")? {
        return scaled_rope(&parameters, fields, DEFAULT, positions);
    }
    let theta = fields.positive("rope_theta")?.unwrap_or(DEFAULT);
    let scaling = match fields.object("rope_scaling")? {
        Some(scaling) => scaling_of(&scaling, "rope_scaling", positions)?,
        None => Scaling::None,
    };
    Ok(Rope { theta, scaling })
}

fn scaled_rope(parameters: &Fields, outer: &Fields, default: f64, positions: usize) -> Result<Rope> {
    if let Some(value) = parameters.number("partial_rotary_factor")?.filter(|&value| value != 1.0) {
        bail!("rope_parameters.partial_rotary_factor {value} does not run: only 1 does");
    }
    let theta = parameters.positive("rope_theta")?.or(outer.positive("rope_theta")?).unwrap_or(default);
    Ok(Rope { theta, scaling: scaling_of(parameters, "rope_parameters", positions)? })
}

/// By the formulas of transformers' `modeling_rope_utils`.
fn scaling_of(fields: &Fields, key: &str, positions: usize) -> Result<Scaling> {
    let kind = fields.get("rope_type").or_else(|| fields.get("type"));
    let need = |name: &str| -> Result<f64> { fields.positive(name)?.ok_or_else(|| anyhow!("{key}.{name} is missing")) };
    let original =
        || -> Result<f64> { Ok(fields.positive("original_max_position_embeddings")?.unwrap_or(positions as f64)) };
    match kind.map(|kind| kind.as_str().unwrap_or_default()) {
        None | Some("default") => Ok(Scaling::None),
        Some("linear") => Ok(Scaling::Linear { factor: need("factor")? }),
        Some("llama3") => Ok(Scaling::Llama3 {
            factor: need("factor")?,
            low_freq_factor: need("low_freq_factor")?,
            high_freq_factor: need("high_freq_factor")?,
            original_positions: original()?,
        }),
        Some("yarn") => {
            let factor = need("factor")?;
            Ok(Scaling::Yarn {
                factor,
                attention_factor: yarn_attention_factor(fields, factor)?,
                beta_fast: fields.positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: fields.positive("beta_slow")?.unwrap_or(1.0),
                truncate: fields.get("truncate").is_none() || fields.flag("truncate")?,
                original_positions: original()?,
            })
        }
        Some(_) => bail!(
            "{key} {} does not run: only rope_type \"default\", \"linear\", \"llama3\" and \"yarn\" do",
            Value::Object(fields.0.clone())
        ),
    }
}

fn yarn_attention_factor(fields: &Fields, factor: f64) -> Result<f64> {
    let by = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    if let Some(given) = fields.positive("attention_factor")? {
        return Ok(given);
    }
    Ok(match (fields.positive("mscale")?, fields.positive("mscale_all_dim")?) {
        (Some(scale), Some(all)) => by(scale) / by(all),
        _ => by(1.0),
    })
}

/// GPT-2 under its own key names. Its dropout rates are read over: preference training switches dropout off, as TRL does.
fn gpt2(fields: &Fields) -> Result<ModelConfig> {
    fields.only("activation_function", &"gelu_new".into())?;
    fields.only("scale_attn_weights", &true.into())?;
    fields.only("scale_attn_by_inverse_layer_idx", &false.into())?;
    fields.only("add_cross_attention", &false.into())?;
    let (hidden, heads, layers) = (fields.dim("n_embd")?, fields.dim("n_head")?, fields.layers("n_layer")?);
    ensure!(hidden.is_multiple_of(heads), "n_embd {hidden} does not divide by n_head {heads}");
    let head_dim = hidden / heads;
    Ok(ModelConfig {
        family: Family::Gpt2,
        vocab: fields.dim("vocab_size")?,
        hidden,
        ffn: fields.optional_dim("n_inner")?.unwrap_or(4 * hidden),
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        positions: fields.optional_dim("n_positions")?.unwrap_or(1024),
        norm: NormKind::Layer,
        norm_eps: fields.positive("layer_norm_epsilon")?.unwrap_or(1e-5) as f32,
        norm_before: true,
        norm_after: false,
        qk_norm: QkNorm::None,
        ropes: Vec::new(),
        layer_kinds: vec![LayerKind { rope: None, window: None }; layers],
        qkv_bias: true,
        bias: true,
        activation: Activation::Gelu,
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        attention_softcap: None,
        final_softcap: None,
        tied: fields.get("tie_word_embeddings").is_none() || fields.flag("tie_word_embeddings")?,
        initializer_range: fields.positive("initializer_range")?.unwrap_or(0.02),
        raw: fields.0.clone(),
    })
}
