//! The bytes a model takes on its device, computed before anything is allocated.
//!
//! Owns the places of activations and scratch in their one arena, and the refusal of a model that does not fit.
//! Knows nothing about what is computed in them.

use anyhow::{Result, ensure};
use half::bf16;

use super::{
    Layout, ModelConfig, Rung,
    config::{NormKind, QkNorm},
    linear::dw_partials,
};
use crate::{
    device::{DType, Device},
    forest::TILE_TOKENS,
    ops::{
        bias,
        head::{self, HeadShape},
        layernorm, rmsnorm,
    },
};

/// Where parts of the arena begin: what `Device::alloc` aligns to.
const ALIGNMENT: usize = 256;

/// The largest micro-batch a model is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Of all trees of a micro-batch.
    pub tokens: usize,
    /// Prediction rows.
    pub rows: usize,
    /// Rows whose logits exist at the same time.
    pub head_chunk_rows: usize,
}

/// A part of the arena. A smaller micro-batch uses the start of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    /// First byte.
    pub start: usize,
    /// Room.
    pub bytes: usize,
}

/// What one layer's backward pass needs of its forward pass; outputs of norms before a product and of the activation are
/// recomputed. A part the model has no use for is empty; one that the layer's rung drops lies where that of every other layer
/// lies that drops it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LayerSpans {
    /// (tokens, hidden) the residual stream that enters the layer
    pub x: Span,
    /// (tokens), or (tokens, 2) for a layer norm
    pub before_attention: Span,
    /// (tokens, heads + kv_heads, head_dim) queries and keys before their norm
    pub qk: Span,
    /// (tokens, heads), then (tokens, kv_heads); (tokens) each for norms over the width
    pub qk_rrms: Span,
    /// (tokens, heads + 2 * kv_heads, head_dim) after the rotation
    pub qkv: Span,
    /// (tokens, heads, head_dim)
    pub attended: Span,
    /// (heads, tokens)
    pub lse: Span,
    /// (tokens, hidden) what attention adds, before its norm
    pub attention_out: Span,
    pub after_attention: Span,
    /// (tokens, hidden) the residual stream between attention and MLP
    pub middle: Span,
    pub before_mlp: Span,
    /// (tokens, 2 * ffn), or (tokens, ffn) without a gate
    pub gate_up: Span,
    /// (tokens, hidden) what the MLP adds, before its norm
    pub mlp_out: Span,
    pub after_mlp: Span,
}

/// Places of everything in the arena.
#[derive(Clone, Debug, Default)]
pub(super) struct Spans {
    pub layers: Vec<LayerSpans>,
    /// (tokens, hidden) the residual stream that leaves the last layer
    pub x_final: Span,
    /// (tokens), or (tokens, 2) for a layer norm
    pub final_stats: Span,
    /// (tokens, hidden) what the head reads
    pub hidden: Span,
    /// (tokens, hidden) norm outputs, projections, and gradients of norm outputs
    pub normed: Span,
    /// (tokens, max(ffn, heads * head_dim)) SwiGLU outputs and their gradients; gradients of the attention output
    pub inner: Span,
    /// (tokens, max(2 * ffn, qkv)) gradients of gate and up, then of q, k and v
    pub wide: Span,
    /// (tokens, hidden) gradient of the residual stream; before that (rows, hidden), the gradient each row sends
    pub dx: Span,
    /// (heads, tokens)
    pub delta: Span,
    /// Slices of the gradients of norm weights and biases; parts of a weight's gradient.
    pub partials: Span,
    /// (tables, positions, head_dim / 2) each
    pub cos: Span,
    pub sin: Span,
    /// (rows) each
    pub logps: Span,
    pub row_lse: Span,
    pub entropies: Span,
    pub top1: Span,
    /// (chunk rows, hidden)
    pub x_rows: Span,
    /// (chunk rows, vocab rounded up) in f32, or the statistics that stand in place of it
    pub logits: Span,
    /// (chunk rows, vocab rounded up); empty without a backward pass
    pub dlogits: Span,
}

/// Sizes of every arena of a model and its optimizer.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// Element type of parameters and activations.
    pub precision: DType,
    /// The largest micro-batch.
    pub capacity: Capacity,
    /// Whether there is room for what a backward pass and an optimizer need.
    pub trains: bool,
    /// What each layer computes again on the way back, from the first that runs.
    pub levels: Vec<Rung>,
    /// Rows of the rotary table: no path can be longer.
    pub positions: usize,
    /// Whether the head keeps exponentials in bf16 instead of logits in f32: see [`head::keeps_exponentials`].
    pub exponentials: bool,
    /// Bytes of the named parts, in the order of the table.
    pub parameters: usize,
    /// What the f32 masters of trained bf16 weights have beside them.
    pub low: usize,
    /// Element type of the gradients of matrices and tables; those of vectors are f32.
    pub gradient: DType,
    /// Of the trained weights.
    pub gradients: usize,
    /// What the optimizer remembers.
    pub optimizer: usize,
    /// Activations that the backward pass needs.
    pub saved: usize,
    /// Activations that nothing needs later.
    pub scratch: usize,
    /// Rows, logits and their gradients.
    pub head: usize,
    /// Index tables of one micro-batch, with at most one pair a token.
    pub tables: usize,
    /// Bytes of the arena of activations, scratch and head.
    pub arena: usize,
    /// Elements for parts of weights' gradients.
    pub(super) parts: usize,
    pub(super) spans: Spans,
}

impl MemoryPlan {
    /// Plans the training of a model in f32 or bf16.
    ///
    /// # Errors
    /// The capacity is empty or larger than the kernels can index.
    pub fn new(config: &ModelConfig, precision: DType, capacity: Capacity) -> Result<Self> {
        Self::plan(config, precision, capacity, true)
    }

    /// Plans a model that runs forward only: no gradients, and one layer's activations for all of them.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn forward_only(config: &ModelConfig, precision: DType, capacity: Capacity) -> Result<Self> {
        Self::plan(config, precision, capacity, false)
    }

    fn plan(config: &ModelConfig, precision: DType, capacity: Capacity, trains: bool) -> Result<Self> {
        for (what, count) in
            [("tokens", capacity.tokens), ("rows", capacity.rows), ("head chunk rows", capacity.head_chunk_rows)]
        {
            ensure!((1..1 << 30).contains(&count), "memory plan: {count} {what}: expected 1 to {}", (1 << 30) - 1);
        }
        ensure!(matches!(precision, DType::F32 | DType::Bf16), "memory plan: {precision:?} is not a precision");
        let capacity = Capacity { head_chunk_rows: capacity.head_chunk_rows.min(capacity.rows), ..capacity };
        let elements = Layout::new(config).elements;
        let low = if precision == DType::Bf16 { 2 } else { 0 };
        let mut plan = Self {
            precision,
            capacity,
            trains,
            levels: vec![Rung::None; config.layers],
            positions: config.positions.min(capacity.tokens),
            exponentials: false,
            parameters: elements * width(precision),
            low: if trains { elements * low } else { 0 },
            gradient: DType::F32,
            gradients: if trains { elements * 4 } else { 0 },
            optimizer: if trains { elements * 8 } else { 0 },
            saved: 0,
            scratch: 0,
            head: 0,
            tables: table_bytes(capacity, config.learned_positions()),
            arena: 0,
            parts: 0,
            spans: Spans::default(),
        };
        plan.place(config);
        Ok(plan)
    }

    /// Finds the places of everything in the arena.
    fn place(&mut self, config: &ModelConfig) {
        let mut arena = Places { width: width(self.precision), end: 0, trains: self.trains };
        let mut spans = Spans::default();
        arena.place_saved(&mut spans, config, self.capacity.tokens, &self.levels);
        self.saved = arena.end;
        arena.place_scratch(&mut spans, config, self.capacity, self.positions, self.parts);
        self.scratch = arena.end - self.saved;
        arena.place_head(&mut spans, config, self.capacity, self.exponentials);
        self.head = arena.end - self.saved - self.scratch;
        (self.arena, self.spans) = (arena.end, spans);
    }

    /// The same plan on a device: where the head keeps exponentials, the memory for logits in f32 is saved; where sums of
    /// weights' gradients are split, their parts have room.
    pub fn on(mut self, device: &Device, config: &ModelConfig) -> Self {
        let is_bf16 = self.precision == DType::Bf16;
        self.exponentials = is_bf16 && head::keeps_exponentials::<bf16>(device, &head(config, self.capacity));
        self.parts = if is_bf16 { dw_partials(device, config, self.capacity.tokens) } else { 0 };
        self.place(config);
        self
    }

    /// The same plan with so much of each layer computed again on the way back. What a layer drops lies in one slot for all.
    ///
    /// # Errors
    /// There is not one rung a layer, or the plan is for forward passes only.
    pub fn recomputing(mut self, config: &ModelConfig, levels: Vec<Rung>) -> Result<Self> {
        ensure!(levels.len() == config.layers, "{} rungs for {} layers", levels.len(), config.layers);
        ensure!(self.trains, "nothing is computed again without a backward pass");
        self.levels = levels;
        self.place(config);
        Ok(self)
    }

    /// The same plan with gradients of matrices and tables in f32 or bf16; without this they are f32.
    pub fn adding_up_in(mut self, config: &ModelConfig, gradients: DType) -> Self {
        let layout = Layout::new(config);
        let narrow = if gradients == DType::Bf16 { layout.matrices() } else { 0 };
        self.gradients = if self.trains { 4 * layout.elements - 2 * narrow } else { 0 };
        self.gradient = gradients;
        self
    }

    /// The same plan for an optimizer that takes so many bytes; without this it is two moments in f32.
    pub fn remembering(mut self, bytes: usize) -> Self {
        self.optimizer = if self.trains { bytes } else { 0 };
        self
    }

    /// Bytes in all.
    pub fn total(&self) -> usize {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Bytes that grow with the micro-batch.
    pub fn growing(&self) -> usize {
        self.arena + self.tables
    }

    /// Bytes by what they are for.
    pub fn parts(&self) -> [(&'static str, usize); 8] {
        [
            ("parameters", self.parameters),
            ("rest of masters", self.low),
            ("gradients", self.gradients),
            ("optimizer state", self.optimizer),
            ("saved activations", self.saved),
            ("scratch", self.scratch),
            ("head", self.head),
            ("batch tables", self.tables),
        ]
    }
}

/// Bytes of an activation.
fn width(precision: DType) -> usize {
    if precision == DType::Bf16 { 2 } else { 4 }
}

/// Index tables of a forest: seven per token (two of them one longer), sequences at most one per token,
/// three per row and two per tile, each table aligned; three more per token (one of them one longer) by position.
fn table_bytes(capacity: Capacity, by_position: bool) -> usize {
    let Capacity { tokens, rows, .. } = capacity;
    let aligned = |len: usize| (len * 4).next_multiple_of(ALIGNMENT);
    5 * aligned(tokens)
        + 3 * aligned(tokens + 1)
        + 3 * aligned(rows)
        + aligned(2 * tokens.div_ceil(TILE_TOKENS))
        + if by_position { 2 * aligned(tokens) + aligned(tokens + 1) } else { 0 }
}

/// Elements that the largest of the gradients of norm weights and biases needs.
fn partials(config: &ModelConfig, tokens: usize) -> usize {
    let stream = match config.norm {
        NormKind::Layer => layernorm::bwd_partials(tokens, config.hidden),
        _ => rmsnorm::bwd_partials(tokens, config.hidden),
    };
    let heads = match config.qk_norm {
        QkNorm::None => 0,
        QkNorm::Head => rmsnorm::bwd_partials(tokens * config.heads, config.head_dim),
        QkNorm::Width => rmsnorm::bwd_partials(tokens, config.q_width()),
    };
    let widest = match (config.qkv_bias, config.bias) {
        (_, true) => config.qkv_width().max(config.gate_width()).max(config.hidden),
        (true, false) => config.qkv_width(),
        (false, false) => 0,
    };
    stream.max(heads).max(bias::bwd_partials(tokens, widest))
}

/// Hands out the arena from its start.
struct Places {
    /// Bytes of an activation.
    width: usize,
    end: usize,
    trains: bool,
}

impl Places {
    /// A part for elements of the model's precision.
    fn wide(&mut self, elements: usize) -> Span {
        self.take(elements * self.width)
    }

    /// A part for f32.
    fn exact(&mut self, elements: usize) -> Span {
        self.take(elements * 4)
    }

    /// A part that only a backward pass uses, of `elements`.
    fn backward(&self, elements: usize) -> usize {
        if self.trains { elements } else { 0 }
    }

    fn take(&mut self, bytes: usize) -> Span {
        let start = self.end;
        self.end += bytes.next_multiple_of(ALIGNMENT);
        Span { start, bytes }
    }

    fn place_saved(&mut self, spans: &mut Spans, config: &ModelConfig, tokens: usize, levels: &[Rung]) {
        let highest = levels.iter().max().copied().unwrap_or_default();
        let slot = self.layer(config, tokens, |rung| rung <= highest, &LayerSpans::default());
        // A layer reads its stream before it writes the next one's, so forward alone all of them can be one place.
        for level in if self.trains { levels } else { &levels[..1] } {
            let x = self.wide(tokens * config.hidden);
            let kept = self.layer(config, tokens, |rung| rung > *level, &slot);
            spans.layers.push(LayerSpans { x, ..kept });
        }
        if !self.trains {
            spans.layers.resize(config.layers, spans.layers[0]);
        }
        spans.x_final = if self.trains { self.wide(tokens * config.hidden) } else { spans.layers[0].x };
        spans.final_stats = self.exact(stats(config, tokens));
        spans.hidden = self.wide(tokens * config.hidden);
    }

    /// All that a layer keeps beside its stream: what the rungs that are `here` drop gets a place, the rest has the slot's.
    fn layer(
        &mut self,
        config: &ModelConfig,
        tokens: usize,
        here: impl Fn(Rung) -> bool,
        slot: &LayerSpans,
    ) -> LayerSpans {
        let width = self.width;
        let mut part = |rung, place: Span, bytes: usize| if here(rung) { self.take(bytes) } else { place };
        let stream = tokens * config.hidden * width;
        let stats = 4 * stats(config, tokens);
        let [before, after] = [config.norm_before, config.norm_after].map(usize::from);
        let qk_norms = match config.qk_norm {
            QkNorm::None => 0,
            QkNorm::Head => config.heads + config.kv_heads,
            QkNorm::Width => 2,
        };
        let qk = if qk_norms == 0 { 0 } else { config.q_width() + config.kv_width() };
        LayerSpans {
            x: slot.x,
            before_attention: part(Rung::Qkv, slot.before_attention, before * stats),
            qk: part(Rung::Qkv, slot.qk, tokens * qk * width),
            qk_rrms: part(Rung::Qkv, slot.qk_rrms, tokens * qk_norms * 4),
            qkv: part(Rung::Qkv, slot.qkv, tokens * config.qkv_width() * width),
            attended: part(Rung::Attention, slot.attended, tokens * config.q_width() * width),
            lse: part(Rung::Attention, slot.lse, config.heads * tokens * 4),
            attention_out: part(Rung::Block, slot.attention_out, after * stream),
            after_attention: part(Rung::Block, slot.after_attention, after * stats),
            middle: part(Rung::Block, slot.middle, stream),
            before_mlp: part(Rung::Block, slot.before_mlp, before * stats),
            gate_up: part(Rung::GateUp, slot.gate_up, tokens * config.gate_width() * width),
            mlp_out: part(Rung::Block, slot.mlp_out, after * stream),
            after_mlp: part(Rung::Block, slot.after_mlp, after * stats),
        }
    }

    /// `parts` are elements for parts of gradients.
    fn place_scratch(
        &mut self,
        spans: &mut Spans,
        config: &ModelConfig,
        capacity: Capacity,
        positions: usize,
        parts: usize,
    ) {
        let Capacity { tokens, rows, .. } = capacity;
        spans.normed = self.wide(tokens * config.hidden);
        spans.inner = self.wide(tokens * config.ffn.max(config.q_width()));
        spans.wide = self.wide(self.backward(tokens * config.gate_width().max(config.qkv_width())));
        spans.dx = self.wide(self.backward(tokens.max(rows) * config.hidden));
        spans.delta = self.exact(self.backward(config.heads * tokens));
        spans.partials = self.exact(self.backward(partials(config, tokens).max(parts)));
        let table = config.ropes.len() * positions * config.head_dim / 2;
        spans.cos = self.exact(table);
        spans.sin = self.exact(table);
    }

    fn place_head(&mut self, spans: &mut Spans, config: &ModelConfig, capacity: Capacity, exponentials: bool) {
        let Capacity { rows, head_chunk_rows, .. } = capacity;
        let logits = head_chunk_rows * head(config, capacity).ld();
        spans.logps = self.exact(rows);
        spans.row_lse = self.exact(rows);
        spans.entropies = self.exact(rows);
        spans.top1 = self.exact(rows);
        spans.x_rows = self.wide(head_chunk_rows * config.hidden);
        spans.logits = self.exact(match exponentials {
            true => head::sm90::statistics_elements(head_chunk_rows, config.vocab),
            false => logits,
        });
        // In f32 the gradient overwrites the logits.
        spans.dlogits = if self.width == 4 { spans.logits } else { self.wide(self.backward(logits)) };
    }
}

/// Elements that a norm of the stream keeps.
fn stats(config: &ModelConfig, tokens: usize) -> usize {
    if config.norm == NormKind::Layer { 2 * tokens } else { tokens }
}

fn head(config: &ModelConfig, capacity: Capacity) -> HeadShape {
    let chunk_rows = capacity.head_chunk_rows;
    HeadShape { vocab: config.vocab, hidden: config.hidden, chunk_rows, softcap: config.final_softcap }
}
