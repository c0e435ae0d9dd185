//! What each family of decoders makes of its `config.json`: which keys it reads and which switches they set.

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use super::{
    Activation, LayerKind, ModelConfig, NormKind, QkNorm,
    class::{Class, HeadDim},
    fields::Fields,
    ropes,
};

/// Families by `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `llama`.
    Llama,
    /// `mistral`.
    Mistral,
    /// `qwen2`.
    Qwen2,
    /// `qwen3`.
    Qwen3,
    /// `smollm3`.
    SmolLm3,
    /// `phi3`.
    Phi3,
    /// `gemma2`.
    Gemma2,
    /// `gemma3_text`.
    Gemma3,
    /// `olmo2`.
    Olmo2,
    /// `gpt2`.
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
    let fields = Fields::new(raw);
    let family = Family::read(&fields)?;
    refuse(&fields)?;
    if family == Family::Gpt2 {
        return gpt2(&fields);
    }
    let mut config = base(family, &fields)?;
    match family {
        Family::Qwen2 => config.qkv_bias = true,
        Family::Qwen3 => config.qk_norm = QkNorm::Head,
        Family::SmolLm3 => without_rope(&mut config, &fields)?,
        Family::Olmo2 => {
            config.qk_norm = QkNorm::Width;
            (config.norm_before, config.norm_after) = (false, true);
        }
        Family::Gemma2 | Family::Gemma3 => gemma(&mut config, &fields)?,
        Family::Llama | Family::Mistral | Family::Phi3 | Family::Gpt2 => {}
    }
    windows(&mut config, &fields)?;
    Ok(config)
}

/// Keys that every class of transformers reads, or its loader, and that ask for another model than the one that runs.
fn refuse(fields: &Fields) -> Result<()> {
    for key in ["quantization_config", "compression_config"] {
        fields.nothing(key, "only weights in f32, f16 or bf16 do")?;
    }
    fields.nothing("per_layer_config", "only models whose layers have one size do")?;
    for key in ["transformers_weights", "configuration_files"] {
        fields.nothing(key, "name the files as transformers saves them, and remove the key")?;
    }
    fields.only("is_causal", &true.into())?;
    for key in ["use_bidirectional_attention", "is_encoder_decoder"] {
        if fields.get(key).is_some() {
            fields.only(key, &false.into())?;
        }
    }
    Ok(())
}

/// What all families but GPT-2 have in common.
fn base(family: Family, fields: &Fields) -> Result<ModelConfig> {
    let class = family.class();
    let is_gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    if is_gemma {
        fields.only("hidden_activation", &"gelu_pytorch_tanh".into())?;
        if fields.get("hidden_act").is_some() {
            fields.only("hidden_act", &"gelu_pytorch_tanh".into())?;
        }
    } else {
        fields.only("hidden_act", &"silu".into())?;
    }
    class.biases.iter().try_for_each(|bias| fields.only(bias, &false.into()))?;
    fields.only_number("attention_dropout", 0.0, class.dropout_null)?;
    let hidden = fields.dim("hidden_size", class.hidden)?;
    let heads = fields.dim("num_attention_heads", class.heads)?;
    let head_dim = head_dim(class, fields, hidden, heads)?;
    let layers = fields.layers("num_hidden_layers", class.layers)?;
    let positions = fields.dim("max_position_embeddings", class.positions)?;
    Ok(ModelConfig {
        family,
        vocab: fields.dim("vocab_size", class.vocab)?,
        hidden,
        ffn: fields.dim("intermediate_size", class.ffn)?,
        layers,
        heads,
        kv_heads: kv_heads(class, fields, heads)?,
        head_dim,
        positions,
        norm: NormKind::Rms,
        norm_eps: fields.positive("rms_norm_eps", class.norm_eps)? as f32,
        norm_before: true,
        norm_after: false,
        qk_norm: QkNorm::None,
        ropes: ropes::read(family, fields, positions)?,
        layer_kinds: vec![LayerKind { rope: Some(0), window: None }; layers],
        qkv_bias: false,
        bias: false,
        activation: if is_gemma { Activation::GeGlu } else { Activation::SwiGlu },
        embedding_scale: 1.0,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        attention_softcap: None,
        final_softcap: None,
        tied: fields.flag("tie_word_embeddings", class.tied)?,
        initializer_range: fields.positive("initializer_range", 0.02)?,
        raw: fields.raw().clone(),
    })
}

fn kv_heads(class: &Class, fields: &Fields, heads: usize) -> Result<usize> {
    const KEY: &str = "num_key_value_heads";
    let default = class.kv_heads.unwrap_or(heads);
    if class.kv_heads_null {
        Ok(fields.nullable_dim(KEY, Some(default))?.unwrap_or(heads))
    } else {
        fields.dim(KEY, default)
    }
}

fn head_dim(class: &Class, fields: &Fields, hidden: usize, heads: usize) -> Result<usize> {
    let given = match class.head_dim {
        HeadDim::QuotientOrNull => fields.nullable_dim("head_dim", None)?,
        HeadDim::Quotient => fields.given("head_dim").map(|_| fields.dim("head_dim", 0)).transpose()?,
        HeadDim::Fixed(dim) => Some(fields.dim("head_dim", dim)?),
    };
    ensure!(
        hidden.is_multiple_of(heads) || (given.is_some() && !class.divides),
        "hidden_size {hidden} does not divide by num_attention_heads {heads}"
    );
    Ok(given.unwrap_or(hidden / heads))
}

/// Which layers see a window, and how far.
fn windows(config: &mut ModelConfig, fields: &Fields) -> Result<()> {
    const KEY: &str = "sliding_window";
    let layers = config.layers;
    let flag = || fields.flag("use_sliding_window", false);
    let (window, windowed) = match config.family {
        Family::Llama | Family::Olmo2 | Family::Gpt2 => (None, uniform(fields, layers)?),
        Family::Mistral => {
            // With this key the file is loaded as another family, whose layers differ.
            fields.nothing(
                "layer_types",
                "transformers takes such a file for a Ministral; remove the key if it is none",
            )?;
            (fields.nullable_dim(KEY, Some(4096))?, uniform(fields, layers)?)
        }
        Family::Phi3 => (fields.nullable_dim(KEY, None)?, uniform(fields, layers)?),
        Family::Qwen2 | Family::Qwen3 => {
            let window = if flag()? { fields.nullable_dim(KEY, Some(4096))? } else { None };
            let first = fields.count("max_window_layers", 28)?;
            (window, layer_types(fields, layers, |i| window.is_some() && i >= first)?)
        }
        Family::SmolLm3 => {
            let window = if flag()? { fields.nullable_dim(KEY, None)? } else { None };
            let without_rope = |i: usize| config.layer_kinds[i].rope.is_none();
            (window, layer_types(fields, layers, |i| window.is_some() && without_rope(i))?)
        }
        Family::Gemma2 => (Some(fields.dim(KEY, 4096)?), layer_types(fields, layers, |i| i.is_multiple_of(2))?),
        Family::Gemma3 => {
            // `layer_types`, where it is there, counts alone.
            let listed = fields.get("layer_types").is_some();
            let pattern = if listed { 1 } else { fields.dim("sliding_window_pattern", 6)? };
            let windowed = layer_types(fields, layers, |i| !(i + 1).is_multiple_of(pattern))?;
            (Some(fields.dim(KEY, 4096)?), windowed)
        }
    };
    let only_some = !matches!(config.family, Family::Llama | Family::Olmo2 | Family::Mistral | Family::Phi3);
    ensure!(
        window.is_some() || !only_some || !windowed.contains(&true),
        "layer_types names \"sliding_attention\" and there is no window: set use_sliding_window to true and \
         sliding_window to its length, or take \"sliding_attention\" out"
    );
    for (kind, windowed) in config.layer_kinds.iter_mut().zip(windowed) {
        kind.window = window.filter(|_| windowed);
        if config.family == Family::Gemma3 {
            kind.rope = Some(usize::from(windowed));
        }
    }
    Ok(())
}

/// All layers alike: `layer_types` is not read by these families, but for its length.
fn uniform(fields: &Fields, layers: usize) -> Result<Vec<bool>> {
    fields.list("layer_types", layers)?;
    Ok(vec![true; layers])
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
    let interval = fields.dim("no_rope_layer_interval", 4)?;
    let listed = fields.list_of_at_least("no_rope_layers", config.layers)?;
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
    config.norm = NormKind::RmsPlusOne;
    config.norm_after = true;
    config.embedding_scale = (config.hidden as f64).sqrt() as f32;
    config.attention_scale = (fields.dim("query_pre_attn_scalar", 256)? as f64).powf(-0.5);
    let is_third = config.family == Family::Gemma3;
    let cap = |key, default: f64| -> Result<Option<f32>> {
        // Gemma 2 has caps unless the file says null; Gemma 3 has none unless it gives them.
        let default = if is_third { None } else { Some(default) };
        Ok(fields.nullable_positive(key, default)?.map(|cap| cap as f32))
    };
    config.final_softcap = cap("final_logit_softcapping", 30.0)?;
    if is_third {
        config.qk_norm = QkNorm::Head;
        // transformers reads it and leaves it out of the attention.
        fields.nothing("attn_logit_softcapping", "only null does in Gemma 3")?;
    } else {
        config.attention_softcap = cap("attn_logit_softcapping", 50.0)?;
    }
    Ok(())
}

/// GPT-2 under its own key names. Its dropout rates are read over: preference training switches dropout off, as TRL does.
fn gpt2(fields: &Fields) -> Result<ModelConfig> {
    fields.only("activation_function", &"gelu_new".into())?;
    fields.only("scale_attn_weights", &true.into())?;
    fields.only("scale_attn_by_inverse_layer_idx", &false.into())?;
    fields.only("add_cross_attention", &false.into())?;
    let dim = |key, alias, default| renamed(fields, key, alias)?.dim(default);
    let (hidden, heads) = (dim("n_embd", "hidden_size", 768)?, dim("n_head", "num_attention_heads", 12)?);
    let layers = renamed(fields, "n_layer", "num_hidden_layers")?.layers(12)?;
    uniform(fields, layers)?;
    ensure!(hidden.is_multiple_of(heads), "n_embd {hidden} does not divide by n_head {heads}");
    let head_dim = hidden / heads;
    Ok(ModelConfig {
        family: Family::Gpt2,
        vocab: fields.dim("vocab_size", 50_257)?,
        hidden,
        ffn: fields.nullable_dim("n_inner", None)?.unwrap_or(4 * hidden),
        layers,
        heads,
        kv_heads: heads,
        head_dim,
        positions: dim("n_positions", "max_position_embeddings", 1024)?,
        norm: NormKind::Layer,
        norm_eps: fields.positive("layer_norm_epsilon", 1e-5)? as f32,
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
        tied: fields.flag("tie_word_embeddings", true)?,
        initializer_range: fields.positive("initializer_range", 0.02)?,
        raw: fields.raw().clone(),
    })
}

/// A key of GPT-2 that transformers also takes under the name that other families have for it.
struct Renamed<'a> {
    fields: &'a Fields<'a>,
    key: &'a str,
}

fn renamed<'a>(fields: &'a Fields<'a>, key: &'a str, other: &'a str) -> Result<Renamed<'a>> {
    let values = [key, other].map(|key| fields.given(key));
    if let [Some(value), Some(second)] = values {
        ensure!(value == second, "{key} {value} and {other} {second} are one setting: remove one of them");
    }
    Ok(Renamed { fields, key: if values[1].is_some() { other } else { key } })
}

impl Renamed<'_> {
    fn dim(&self, default: usize) -> Result<usize> {
        self.fields.dim(self.key, default)
    }

    fn layers(&self, default: usize) -> Result<usize> {
        self.fields.layers(self.key, default)
    }
}
