//! Where each named tensor lies in the flat arenas of parameters, gradients and optimizer state.
//!
//! Matrices come first and are decayed; norm weights follow. What one matrix product serves lies side by side: q, k
//! and v of a layer, and gate and up.

use std::ops::Range;

use super::ModelConfig;

/// One tensor under its Hugging Face name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
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
}

/// Places of one layer's weights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerRanges {
    /// (heads * head_dim + 2 * kv_heads * head_dim, hidden)
    pub qkv: Range<usize>,
    /// (hidden, heads * head_dim)
    pub o: Range<usize>,
    /// (2 * ffn, hidden), gate first
    pub gate_up: Range<usize>,
    /// (hidden, ffn)
    pub down: Range<usize>,
    /// (hidden)
    pub input_norm: Range<usize>,
    /// (hidden)
    pub post_norm: Range<usize>,
}

/// All tensors of a model in arena order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    pub tensors: Vec<TensorSpec>,
    pub elements: usize,
    /// Elements before this one are decayed.
    pub decay_elements: usize,
    /// (vocab, hidden)
    pub embedding: Range<usize>,
    /// (vocab, hidden); the embedding again if the head is tied.
    pub head: Range<usize>,
    /// (hidden)
    pub final_norm: Range<usize>,
    pub layers: Vec<LayerRanges>,
}

impl Layout {
    /// The layout of a model.
    pub fn new(config: &ModelConfig) -> Self {
        let mut layout = Self::default();
        let ModelConfig { vocab, hidden, ffn, .. } = *config;
        layout.embedding = layout.push("model.embed_tokens.weight", &[vocab, hidden]);
        for index in 0..config.layers {
            let ranges = layout.push_matrices(config, &format!("model.layers.{index}"), hidden, ffn);
            layout.layers.push(ranges);
        }
        layout.head =
            if config.tied { layout.embedding.clone() } else { layout.push("lm_head.weight", &[vocab, hidden]) };
        layout.decay_elements = layout.elements;
        for index in 0..config.layers {
            let prefix = format!("model.layers.{index}");
            layout.layers[index].input_norm = layout.push(&format!("{prefix}.input_layernorm.weight"), &[hidden]);
            layout.layers[index].post_norm =
                layout.push(&format!("{prefix}.post_attention_layernorm.weight"), &[hidden]);
        }
        layout.final_norm = layout.push("model.norm.weight", &[hidden]);
        layout
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&TensorSpec> {
        self.tensors.iter().find(|spec| spec.name == name)
    }

    fn push_matrices(&mut self, config: &ModelConfig, prefix: &str, hidden: usize, ffn: usize) -> LayerRanges {
        let mut push = |name: &str, rows, columns| self.push(&format!("{prefix}.{name}.weight"), &[rows, columns]);
        let q = push("self_attn.q_proj", config.q_width(), hidden);
        let _k = push("self_attn.k_proj", config.kv_width(), hidden);
        let v = push("self_attn.v_proj", config.kv_width(), hidden);
        let o = push("self_attn.o_proj", hidden, config.q_width());
        let gate = push("mlp.gate_proj", ffn, hidden);
        let up = push("mlp.up_proj", ffn, hidden);
        let down = push("mlp.down_proj", hidden, ffn);
        LayerRanges { qkv: q.start..v.end, o, gate_up: gate.start..up.end, down, ..LayerRanges::default() }
    }

    /// The config's checks make every size a multiple of 8, so offsets need no padding.
    fn push(&mut self, name: &str, shape: &[usize]) -> Range<usize> {
        let decay = shape.len() > 1;
        let spec = TensorSpec { name: name.to_owned(), shape: shape.to_vec(), offset: self.elements, decay };
        let range = spec.range();
        self.elements = range.end;
        self.tensors.push(spec);
        range
    }
}
