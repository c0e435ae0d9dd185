//! Where each named tensor lies in the flat arenas of parameters, gradients and optimizer state.
//!
//! Matrices come first and are decayed; norm weights and biases follow. What one matrix product serves lies side by
//! side: q, k and v of a layer, and gate and up. Names and orientation in a file are those of the family.

use std::ops::Range;

use super::{
    Group, Linear, ModelConfig,
    config::{Activation, Family, NormKind, QkNorm},
};

/// One tensor under its Hugging Face name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// In a file.
    pub name: String,
    /// In the arena: (outputs, inputs) for a matrix.
    pub shape: Vec<usize>,
    /// The file has it as (inputs, outputs), as GPT-2's.
    pub transposed: bool,
    /// First element in the arena, a multiple of 8.
    pub offset: usize,
    /// Weight decay applies.
    pub decay: bool,
}

impl TensorSpec {
    /// Elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Its place in an arena.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.elements()
    }

    /// The place of some of its elements.
    pub fn part(&self, elements: Range<usize>) -> Range<usize> {
        self.offset + elements.start..self.offset + elements.end
    }

    /// The shape in a file.
    pub fn file_shape(&self) -> Vec<usize> {
        let mut shape = self.shape.clone();
        if self.transposed {
            shape.reverse();
        }
        shape
    }
}

/// A norm's parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NormRanges {
    /// (width)
    pub weight: Range<usize>,
    /// (width) of a layer norm, else empty.
    pub bias: Range<usize>,
}

/// Places of one layer's weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerRanges {
    /// To (heads * head_dim + 2 * kv_heads * head_dim).
    pub qkv: Linear,
    /// From (heads * head_dim) to (hidden).
    pub o: Linear,
    /// To (2 * ffn), gate first; to (ffn) without a gate.
    pub gate_up: Linear,
    /// From (ffn) to (hidden).
    pub down: Linear,
    /// Of the stream that attention and MLP read, and of what they add to it.
    pub before_attention: Option<NormRanges>,
    /// Of what attention adds.
    pub after_attention: Option<NormRanges>,
    /// Of the stream that the MLP reads.
    pub before_mlp: Option<NormRanges>,
    /// Of what the MLP adds.
    pub after_mlp: Option<NormRanges>,
    /// Weights for queries and keys.
    pub qk_norm: Option<[Range<usize>; 2]>,
}

/// All tensors of a model in arena order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// In arena order.
    pub tensors: Vec<TensorSpec>,
    /// Of all tensors.
    pub elements: usize,
    /// (vocab, hidden)
    pub embedding: Range<usize>,
    /// (positions, hidden) where positions are learned.
    pub positions: Option<Range<usize>>,
    /// (vocab, hidden); the embedding again if the head is tied.
    pub head: Range<usize>,
    /// Before the head.
    pub final_norm: NormRanges,
    /// From the first that runs.
    pub layers: Vec<LayerRanges>,
}

impl Layout {
    /// The layout of a model.
    pub fn new(config: &ModelConfig) -> Self {
        let mut layout = Self::default();
        let ModelConfig { vocab, hidden, .. } = *config;
        let names = Names { family: config.family };
        layout.embedding = layout.push(names.embedding(), &[vocab, hidden]);
        if config.learned_positions() {
            layout.positions = Some(layout.push("transformer.wpe.weight", &[config.positions, hidden]));
        }
        for index in 0..config.layers {
            let ranges = layout.push_matrices(config, &names.layer(index));
            layout.layers.push(ranges);
        }
        layout.head =
            if config.tied { layout.embedding.clone() } else { layout.push("lm_head.weight", &[vocab, hidden]) };
        for index in 0..config.layers {
            layout.push_vectors(config, &names, index);
        }
        layout.final_norm = layout.push_norm(config, names.final_norm());
        layout
    }

    /// Tensors one after the other in the order they are given in: name, shape, and whether weight decay applies.
    pub fn of(tensors: impl IntoIterator<Item = (String, Vec<usize>, bool)>) -> Self {
        let mut layout = Self::default();
        for (name, shape, decay) in tensors {
            layout.push(&name, &shape);
            layout.tensors.last_mut().expect("pushed just now").decay = decay;
        }
        layout
    }

    /// Elements of the matrices and tables that come first; vectors follow.
    pub fn matrices(&self) -> usize {
        self.tensors.iter().find(|spec| !spec.decay).map_or(self.elements, |spec| spec.offset)
    }

    /// What an optimizer treats alike: neighbours that are both decayed or both not.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for spec in &self.tensors {
            match groups.last_mut() {
                Some(last) if last.decay == spec.decay => last.range.end = spec.range().end,
                _ => {
                    let name = if spec.decay { "decayed" } else { "not decayed" }.to_owned();
                    groups.push(Group { name, range: spec.range(), decay: spec.decay, lr_scale: 1.0 });
                }
            }
        }
        groups
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorSpec> {
        self.tensors.iter().find(|spec| spec.name == name)
    }

    fn push_matrices(&mut self, config: &ModelConfig, prefix: &str) -> LayerRanges {
        let (hidden, ffn) = (config.hidden, config.ffn);
        let (q, kv) = (config.q_width(), config.kv_width());
        // What stands side by side and is multiplied at once: names and rows.
        let mut push = |parts: &[(&str, usize)], columns| {
            let start = self.elements;
            for (name, rows) in parts {
                self.push(&format!("{prefix}.{name}.weight"), &[*rows, columns]);
                self.tensors.last_mut().expect("pushed just now").transposed = config.family == Family::Gpt2;
            }
            let rows = parts.iter().map(|(_, rows)| rows).sum();
            Linear { weight: start..self.elements, bias: None, rows, columns }
        };
        let [qkv, o, gate_up, down]: [Vec<(&str, usize)>; 4] = match config.family {
            Family::Gpt2 => [
                vec![("attn.c_attn", q + 2 * kv)],
                vec![("attn.c_proj", hidden)],
                vec![("mlp.c_fc", ffn)],
                vec![("mlp.c_proj", hidden)],
            ],
            Family::Phi3 => [
                vec![("self_attn.qkv_proj", q + 2 * kv)],
                vec![("self_attn.o_proj", hidden)],
                vec![("mlp.gate_up_proj", 2 * ffn)],
                vec![("mlp.down_proj", hidden)],
            ],
            _ => [
                vec![("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)],
                vec![("self_attn.o_proj", hidden)],
                vec![("mlp.gate_proj", ffn), ("mlp.up_proj", ffn)],
                vec![("mlp.down_proj", hidden)],
            ],
        };
        LayerRanges {
            qkv: push(&qkv, hidden),
            o: push(&o, q),
            gate_up: push(&gate_up, hidden),
            down: push(&down, ffn),
            ..LayerRanges::default()
        }
    }

    /// Norm weights and biases of a layer.
    fn push_vectors(&mut self, config: &ModelConfig, names: &Names, index: usize) {
        let prefix = names.layer(index);
        let mut layer = std::mem::take(&mut self.layers[index]);
        let [before_attention, after_attention, before_mlp, after_mlp] = names.norms(config);
        let mut norm = |name: &str| self.push_norm(config, &format!("{prefix}.{name}"));
        if config.norm_before {
            layer.before_attention = Some(norm(before_attention));
            layer.before_mlp = Some(norm(before_mlp));
        }
        if config.norm_after {
            layer.after_attention = Some(norm(after_attention));
            layer.after_mlp = Some(norm(after_mlp));
        }
        let (hidden, q, kv) = (config.hidden, config.q_width(), config.kv_width());
        let mut push = |name: &str, width| self.push(&format!("{prefix}.{name}"), &[width]);
        if config.qk_norm != QkNorm::None {
            let [q, k] = if config.qk_norm == QkNorm::Head { [config.head_dim; 2] } else { [q, kv] };
            layer.qk_norm = Some([push("self_attn.q_norm.weight", q), push("self_attn.k_norm.weight", k)]);
        }
        if config.family == Family::Gpt2 {
            layer.qkv.bias = Some(push("attn.c_attn.bias", q + 2 * kv));
            layer.o.bias = Some(push("attn.c_proj.bias", hidden));
            layer.gate_up.bias = Some(push("mlp.c_fc.bias", config.gate_width()));
            layer.down.bias = Some(push("mlp.c_proj.bias", hidden));
        } else if config.qkv_bias {
            let start = push("self_attn.q_proj.bias", q).start;
            push("self_attn.k_proj.bias", kv);
            layer.qkv.bias = Some(start..push("self_attn.v_proj.bias", kv).end);
        }
        debug_assert!(config.activation != Activation::Gelu || config.family == Family::Gpt2);
        self.layers[index] = layer;
    }

    fn push_norm(&mut self, config: &ModelConfig, name: &str) -> NormRanges {
        let weight = self.push(&format!("{name}.weight"), &[config.hidden]);
        let has_bias = config.norm == NormKind::Layer;
        let bias = if has_bias { self.push(&format!("{name}.bias"), &[config.hidden]) } else { 0..0 };
        NormRanges { weight, bias }
    }

    /// The config's checks make every size a multiple of 8, so offsets need no padding.
    fn push(&mut self, name: &str, shape: &[usize]) -> Range<usize> {
        let spec = TensorSpec {
            name: name.to_owned(),
            shape: shape.to_vec(),
            transposed: false,
            offset: self.elements,
            decay: shape.len() > 1,
        };
        let range = spec.range();
        self.elements = range.end;
        self.tensors.push(spec);
        range
    }
}

/// What a family calls its tensors.
struct Names {
    family: Family,
}

impl Names {
    fn embedding(&self) -> &'static str {
        if self.family == Family::Gpt2 { "transformer.wte.weight" } else { "model.embed_tokens.weight" }
    }

    fn layer(&self, index: usize) -> String {
        if self.family == Family::Gpt2 { format!("transformer.h.{index}") } else { format!("model.layers.{index}") }
    }

    fn final_norm(&self) -> &'static str {
        if self.family == Family::Gpt2 { "transformer.ln_f" } else { "model.norm" }
    }

    /// Before and after attention, before and after the MLP. One name means another norm where a family has both kinds.
    fn norms(&self, config: &ModelConfig) -> [&'static str; 4] {
        if self.family == Family::Gpt2 {
            return ["ln_1", "", "ln_2", ""];
        }
        let before_mlp = if config.norm_after { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        ["input_layernorm", "post_attention_layernorm", before_mlp, "post_feedforward_layernorm"]
    }
}
