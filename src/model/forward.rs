//! The forward pass of one micro-batch: from token ids to the log-probability of every row.

use std::ops::Range;

use anyhow::Result;

use super::{
    Activation, Batch, LayerRanges, Linear, Model, ModelConfig, NormKind, NormRanges, QkNorm,
    linear::Turned,
    memory::{LayerSpans, Span},
};
use crate::{
    device::{Buffer, Float},
    ops::{
        attention, embedding, geglu, gelu, head,
        head::{
            HeadValues,
            distributions::{self, Divergence},
        },
        layernorm, residual,
        rmsnorm::{self, RmsNorm},
        rope::{self, Heads, Rotary},
        swiglu,
    },
};

impl<T: Float> Model<T> {
    /// Runs all layers and keeps what [`backward`](Self::backward) needs of them.
    ///
    /// # Errors
    /// A launch fails.
    pub fn forward(&self, batch: &Batch) -> Result<()> {
        self.forward_visiting(batch, &mut |_| Ok(()))
    }

    /// The same; `visit` sees every layer when it is done.
    ///
    /// # Errors
    /// A launch or a visit fails.
    pub fn forward_visiting(&self, batch: &Batch, visit: &mut dyn FnMut(&Visit<T>) -> Result<()>) -> Result<()> {
        let (tokens, hidden) = (batch.tokens, self.config.hidden);
        let spans = &self.plan.spans;
        let stream = |layer: usize| self.stream(tokens, layer);
        self.embed(batch, &stream(0))?;
        for (i, (ranges, layer)) in self.params.layout().layers.iter().zip(&spans.layers).enumerate() {
            self.attention_fwd(batch, i, ranges, layer)?;
            self.mlp_fwd(tokens, ranges, layer, &stream(i + 1))?;
            let inner = self.part(spans.inner, tokens * self.config.ffn);
            visit(&Visit { layer: i, inner, stream: stream(i + 1) })?;
        }
        let y = self.part(spans.hidden, tokens * hidden);
        self.norm(&y, spans.final_stats, &stream(self.config.layers), &self.params.layout().final_norm, tokens)
    }

    /// The residual stream that enters a layer, or leaves the last one.
    pub(super) fn stream(&self, tokens: usize, layer: usize) -> Buffer<T> {
        let spans = &self.plan.spans;
        let span = spans.layers.get(layer).map_or(spans.x_final, |layer| layer.x);
        self.part(span, tokens * self.config.hidden)
    }

    /// The log-probability of each row's target; needs [`forward`](Self::forward) on the same batch. The buffer is the
    /// model's own: the next call overwrites it.
    ///
    /// # Errors
    /// A launch fails.
    pub fn logps(&self, batch: &Batch) -> Result<Buffer<f32>> {
        Ok(self.head_values(batch)?.logps)
    }

    /// What the head says about each row; as [`logps`](Self::logps).
    ///
    /// # Errors
    /// A launch fails.
    pub fn head_values(&self, batch: &Batch) -> Result<HeadValues> {
        let spans = &self.plan.spans;
        let of = |span| self.part(span, batch.rows);
        let (logps, lse) = (of(spans.logps), of(spans.row_lse));
        let out = HeadValues { logps, lse, entropies: of(spans.entropies), top1: of(spans.top1) };
        let hidden = self.part(spans.hidden, batch.tokens * self.config.hidden);
        head::fwd(
            &self.device,
            &out,
            &self.head_scratch(batch.rows),
            &hidden,
            &self.params.weight(&self.params.layout().head),
            &batch.head_rows(),
            &self.head(),
        )?;
        Ok(out)
    }

    /// Log-probabilities of each row's target under this model and another of the same vocabulary, and the divergence
    /// between their distributions; needs [`forward`](Self::forward) on the same batch of both. Needs a plan whose head
    /// stores f32 logits.
    ///
    /// # Errors
    /// The device is out of memory, or a launch fails.
    pub fn divergence(&self, reference: &Self, batch: &Batch) -> Result<Divergence> {
        let out = Divergence::alloc(&self.device, batch.rows)?;
        let (own, other) = (self.head_scratch(batch.rows), reference.head_scratch(batch.rows));
        let [own_inputs, other_inputs] = [self, reference].map(|model| model.head_inputs(batch));
        let (policy, beside) = (self.head_source(&own_inputs, &own), reference.head_source(&other_inputs, &other));
        distributions::fwd(&self.device, &out, &policy, &beside, &batch.head_rows())?;
        Ok(out)
    }

    /// Log of the sum of squared probabilities at each row; needs [`forward`](Self::forward) on the same batch, and a plan
    /// whose head stores f32 logits.
    ///
    /// # Errors
    /// The device is out of memory, or a launch fails.
    pub fn collisions(&self, batch: &Batch) -> Result<Buffer<f32>> {
        let out = self.device.alloc(batch.rows)?;
        let (inputs, scratch) = (self.head_inputs(batch), self.head_scratch(batch.rows));
        distributions::collisions(&self.device, &out, &self.head_source(&inputs, &scratch), &batch.head_rows())?;
        Ok(out)
    }

    /// Last hidden states and output weight.
    pub(super) fn head_inputs(&self, batch: &Batch) -> [Buffer<T>; 2] {
        let hidden = self.part(self.plan.spans.hidden, batch.tokens * self.config.hidden);
        [hidden, self.params.weight(&self.params.layout().head)]
    }

    pub(super) fn head_source<'a>(
        &self,
        [hidden_states, weight]: &'a [Buffer<T>; 2],
        scratch: &'a head::Scratch<T>,
    ) -> distributions::Source<'a, T> {
        distributions::Source { hidden_states, weight, scratch, head: self.head() }
    }

    /// The stream that enters the first layer.
    fn embed(&self, batch: &Batch, x: &Buffer<T>) -> Result<()> {
        let (device, tokens, hidden) = (&self.device, batch.tokens, self.config.hidden);
        let table = self.params.weight(&self.params.layout().embedding);
        embedding::fwd(device, x, &batch.ids, &table, self.embedding_scale(), tokens, hidden, self.config.vocab)?;
        let Some(range) = &self.params.layout().positions else { return Ok(()) };
        let places = self.part(self.plan.spans.normed, tokens * hidden);
        embedding::fwd(
            device,
            &places,
            &batch.position,
            &self.params.weight(range),
            1.0,
            tokens,
            hidden,
            self.config.positions,
        )?;
        residual::add(device, x, x, &places, tokens * hidden)
    }

    /// Rounded to the model's precision, as transformers does.
    pub(super) fn embedding_scale(&self) -> f32 {
        T::from_f32(self.config.embedding_scale).to_f32()
    }

    /// Rows of the stream through a norm; `stats` keeps what its backward pass needs.
    pub(super) fn norm(
        &self,
        y: &Buffer<T>,
        stats: Span,
        x: &Buffer<T>,
        ranges: &NormRanges,
        rows: usize,
    ) -> Result<()> {
        let (hidden, eps) = (self.config.hidden, self.config.norm_eps);
        let w = self.params.weight(&ranges.weight);
        if self.config.norm == NormKind::Layer {
            let (stats, b) = (self.part(stats, 2 * rows), self.params.weight(&ranges.bias));
            return layernorm::fwd(&self.device, y, &stats, x, &w, &b, eps, rows, hidden);
        }
        rmsnorm::fwd(&self.device, y, &self.part(stats, rows), x, &w, &self.rms_norm(rows))
    }

    /// A norm of whole rows of the stream.
    pub(super) fn rms_norm(&self, rows: usize) -> RmsNorm {
        RmsNorm { offset: self.norm_offset(), ..RmsNorm::new(rows, self.config.hidden, self.config.norm_eps) }
    }

    fn norm_offset(&self) -> f32 {
        if self.config.norm == NormKind::RmsPlusOne { 1.0 } else { 0.0 }
    }

    /// What a block reads: the normed stream in the scratch, or the stream itself.
    pub(super) fn block_input(
        &self,
        x: &Buffer<T>,
        stats: Span,
        ranges: &Option<NormRanges>,
        rows: usize,
    ) -> Result<Buffer<T>> {
        let Some(ranges) = ranges else { return Ok(x.clone()) };
        let normed = self.part(self.plan.spans.normed, rows * self.config.hidden);
        self.norm(&normed, stats, x, ranges, rows)?;
        Ok(normed)
    }

    /// `y = stream + norm(x Wᵀ + b)`, or without the norm: what ends a block of the model. `out` keeps the product where a
    /// norm follows it.
    fn end_block(
        &self,
        y: &Buffer<T>,
        out: Span,
        stream: &Buffer<T>,
        x: &Buffer<T>,
        linear: &Linear,
        after: (Span, &Option<NormRanges>),
    ) -> Result<()> {
        let (stats, Some(ranges)) = after else {
            return linear.fwd(&self.params, y, Some(stream), x);
        };
        let out = self.part(out, stream.len());
        linear.fwd(&self.params, &out, None, x)?;
        let normed = self.part(self.plan.spans.normed, stream.len());
        self.norm(&normed, stats, &out, ranges, stream.len() / self.config.hidden)?;
        residual::add(&self.device, y, stream, &normed, stream.len())
    }

    fn attention_fwd(&self, batch: &Batch, index: usize, ranges: &LayerRanges, layer: &LayerSpans) -> Result<()> {
        self.project_qkv(batch, index, ranges, layer)?;
        self.attend(batch, index, layer)?;
        self.leave_attention(batch.tokens, ranges, layer)
    }

    /// Queries, keys and values of the normed stream.
    pub(super) fn project_qkv(
        &self,
        batch: &Batch,
        index: usize,
        ranges: &LayerRanges,
        layer: &LayerSpans,
    ) -> Result<()> {
        let tokens = batch.tokens;
        let x = self.part::<T>(layer.x, tokens * self.config.hidden);
        let input = self.block_input(&x, layer.before_attention, &ranges.before_attention, tokens)?;
        let qkv = self.part::<T>(layer.qkv, tokens * self.config.qkv_width());
        self.qkv_fwd(&qkv, &input, batch, index, ranges, layer)
    }

    /// What each token gathers of the values that it sees.
    pub(super) fn attend(&self, batch: &Batch, index: usize, layer: &LayerSpans) -> Result<()> {
        let (config, tokens) = (&self.config, batch.tokens);
        attention::fwd(
            &self.device,
            &self.part::<T>(layer.attended, tokens * config.q_width()),
            &self.part(layer.lse, config.heads * tokens),
            &self.part(layer.qkv, tokens * config.qkv_width()),
            &batch.mask(),
            config.attention_scale as f32,
            &self.attention_dims(index, tokens),
        )
    }

    /// The stream between attention and MLP.
    pub(super) fn leave_attention(&self, tokens: usize, ranges: &LayerRanges, layer: &LayerSpans) -> Result<()> {
        let part = |span, width: usize| self.part::<T>(span, tokens * width);
        let (x, middle) = (part(layer.x, self.config.hidden), part(layer.middle, self.config.hidden));
        let attended = part(layer.attended, self.config.q_width());
        let after = (layer.after_attention, &ranges.after_attention);
        self.end_block(&middle, layer.attention_out, &x, &attended, &ranges.o, after)
    }

    /// Queries, keys and values; queries and keys normed and turned by their positions where the model does so.
    fn qkv_fwd(
        &self,
        qkv: &Buffer<T>,
        input: &Buffer<T>,
        batch: &Batch,
        index: usize,
        ranges: &LayerRanges,
        layer: &LayerSpans,
    ) -> Result<()> {
        let rotary = self.rotary(index);
        if ranges.qk_norm.is_some() {
            self.normed_qkv(qkv, input, ranges, layer, batch.tokens)?;
            let Some(rotary) = &rotary else { return Ok(()) };
            return rope::apply(&self.device, qkv, &batch.position, rotary, false, &self.heads());
        }
        let Some(rotary) = &rotary else {
            return ranges.qkv.fwd(&self.params, qkv, None, input);
        };
        let turned = Turned { position: &batch.position, rotary, heads: self.heads() };
        ranges.qkv.fwd_turned(&self.params, qkv, input, &turned)
    }

    fn heads(&self) -> Heads {
        let ModelConfig { heads, kv_heads, head_dim, .. } = self.config;
        Heads { heads, kv_heads, head_dim }
    }

    /// Queries, keys and values, queries and keys normed.
    fn normed_qkv(
        &self,
        qkv: &Buffer<T>,
        input: &Buffer<T>,
        ranges: &LayerRanges,
        layer: &LayerSpans,
        tokens: usize,
    ) -> Result<()> {
        let Some(norms) = &ranges.qk_norm else { return Ok(()) };
        let wide = ranges.qkv.rows;
        let qk_width = wide - self.config.kv_width();
        let qk = self.part::<T>(layer.qk, tokens * qk_width);
        ranges.qkv.fwd_rows(&self.params, &qk, qk_width, input, 0..qk_width)?;
        let values = qkv.slice(qk_width..qkv.len());
        ranges.qkv.fwd_rows(&self.params, &values, wide, input, qk_width..wide)?;
        for (part, weight) in self.qk_parts(tokens).iter().zip(norms) {
            let (x, y) = (qk.slice(part.start..qk.len()), qkv.slice(part.start..qkv.len()));
            let rrms = self.part::<f32>(layer.qk_rrms, part.stats.end).slice(part.stats.clone());
            rmsnorm::fwd(&self.device, &y, &rrms, &x, &self.params.weight(weight), &part.norm)?;
        }
        Ok(())
    }

    /// How queries and keys are normed inside the rows of a token.
    pub(super) fn qk_parts(&self, tokens: usize) -> [QkPart; 2] {
        let config = &self.config;
        let mut stats = 0;
        [(config.heads, 0), (config.kv_heads, config.q_width())].map(|(heads, start)| {
            let width = heads * config.head_dim;
            let (group, hidden) = match config.qk_norm {
                QkNorm::Width => (1, width),
                _ => (heads, config.head_dim),
            };
            let rows = tokens * group;
            let norm = RmsNorm {
                offset: self.norm_offset(),
                group,
                x_pitch: config.q_width() + config.kv_width(),
                y_pitch: config.qkv_width(),
                ..RmsNorm::new(rows, hidden, config.norm_eps)
            };
            let part = QkPart { start, stats: stats..stats + rows, norm };
            stats += rows;
            part
        })
    }

    /// The tables by which a layer turns queries and keys, if it does.
    pub(super) fn rotary(&self, index: usize) -> Option<Rotary> {
        let [cos, sin] = self.rotary_table(self.config.layer_kinds[index].rope?);
        Some(Rotary { cos, sin })
    }

    fn mlp_fwd(&self, tokens: usize, ranges: &LayerRanges, layer: &LayerSpans, y: &Buffer<T>) -> Result<()> {
        let inner = self.enter_mlp(tokens, ranges, layer)?;
        self.leave_mlp(ranges, layer, &inner, y)
    }

    /// What the second matrix of the MLP reads, from the stream in the middle.
    pub(super) fn enter_mlp(&self, tokens: usize, ranges: &LayerRanges, layer: &LayerSpans) -> Result<Buffer<T>> {
        let x = self.part(layer.middle, tokens * self.config.hidden);
        let input = self.block_input(&x, layer.before_mlp, &ranges.before_mlp, tokens)?;
        self.gate_fwd(tokens, ranges, layer, &input)
    }

    /// The stream `y` that leaves the layer.
    pub(super) fn leave_mlp(
        &self,
        ranges: &LayerRanges,
        layer: &LayerSpans,
        inner: &Buffer<T>,
        y: &Buffer<T>,
    ) -> Result<()> {
        let x = self.part(layer.middle, y.len());
        let after = (layer.after_mlp, &ranges.after_mlp);
        self.end_block(y, layer.mlp_out, &x, inner, &ranges.down, after)
    }

    /// The first matrix of the MLP and its activation, in one kernel where there is one.
    fn gate_fwd(
        &self,
        tokens: usize,
        ranges: &LayerRanges,
        layer: &LayerSpans,
        input: &Buffer<T>,
    ) -> Result<Buffer<T>> {
        let gate_up = self.part::<T>(layer.gate_up, tokens * ranges.gate_up.rows);
        if self.config.activation == Activation::SwiGlu && ranges.gate_up.bias.is_none() {
            let inner = self.part(self.plan.spans.inner, tokens * self.config.ffn);
            ranges.gate_up.fwd_gated(&self.params, &inner, &gate_up, input)?;
            return Ok(inner);
        }
        ranges.gate_up.fwd(&self.params, &gate_up, None, input)?;
        self.activate(&gate_up, tokens)
    }

    /// What the second matrix of the MLP reads.
    pub(super) fn activate(&self, gate_up: &Buffer<T>, tokens: usize) -> Result<Buffer<T>> {
        let ffn = self.config.ffn;
        let inner = self.part(self.plan.spans.inner, tokens * ffn);
        match self.config.activation {
            Activation::SwiGlu => swiglu::fwd(&self.device, &inner, gate_up, tokens, ffn)?,
            Activation::GeGlu => geglu::fwd(&self.device, &inner, gate_up, tokens, ffn)?,
            Activation::Gelu => gelu::fwd(&self.device, &inner, gate_up, tokens * ffn)?,
        }
        Ok(inner)
    }
}

/// A layer that is done.
pub struct Visit<T> {
    /// Which, from 0.
    pub layer: usize,
    /// (tokens, ffn) what the second matrix of its MLP read.
    pub inner: Buffer<T>,
    /// (tokens, hidden) the stream behind it.
    pub stream: Buffer<T>,
}

/// Queries or keys inside a token's row.
pub(super) struct QkPart {
    /// First column.
    pub start: usize,
    /// Their place among the kept statistics.
    pub stats: Range<usize>,
    pub norm: RmsNorm,
}
