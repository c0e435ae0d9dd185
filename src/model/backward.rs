//! The backward pass of one micro-batch: adds every parameter's gradient to the gradient arena.
//!
//! Outputs of norms before a product and of the activation are computed again from what the forward pass kept, and so is
//! what the plan's rungs dropped. One buffer carries the gradient of the residual stream from the last layer to the first; others change their meaning
//! within a layer as the memory plan says.

use std::ops::Range;

use anyhow::{Result, bail, ensure};

use super::{
    Activation, Batch, LayerRanges, Layout, Linear, Model, NormKind, NormRanges, OutputHead, memory::LayerSpans,
    memory::Span,
};
use crate::{
    device::{Buffer, Float},
    ops::{
        attention, embedding, geglu, gelu, head,
        head::distributions::{self, Divergence},
        layernorm, rmsnorm, swiglu,
    },
};

/// Slopes of a loss by what a model says of a batch's rows; what the loss does not look at is left out.
pub struct Slopes<'a, T> {
    /// (rows) by each row's log-probability.
    pub logps: Option<&'a Buffer<f32>>,
    /// By each row's divergence from a model beside.
    pub divergences: Option<DivergenceSlopes<'a, T>>,
    /// By what further heads say: each adds to the gradient of the last hidden states.
    pub heads: &'a [&'a dyn OutputHead<T>],
}

impl<T> Default for Slopes<'_, T> {
    fn default() -> Self {
        Self { logps: None, divergences: None, heads: &[] }
    }
}

impl<'a, T> Slopes<'a, T> {
    /// Of a loss of log-probabilities alone.
    pub fn by_logps(logps: &'a Buffer<f32>) -> Self {
        Self { logps: Some(logps), ..Self::default() }
    }
}

/// Slopes by divergences, and what [`Model::divergence`] gave on the same batch just before.
pub struct DivergenceSlopes<'a, T> {
    /// (rows)
    pub slopes: &'a Buffer<f32>,
    /// The model beside.
    pub reference: &'a Model<T>,
    /// What the forward passes of both gave.
    pub kept: &'a Divergence,
}

impl<T: Float> Model<T> {
    /// Adds to the gradients those of the loss with these slopes. Those by log-probabilities alone need
    /// [`logps`](Self::logps) on the same batch just before: the last logits are taken from there and overwritten.
    ///
    /// # Errors
    /// There are no slopes, or not one a row; the plan runs forward only, or a launch fails.
    pub fn backward(&self, batch: &Batch, slopes: &Slopes<T>) -> Result<()> {
        ensure!(self.plan.trains, "the memory plan is for forward passes only");
        if let Some(logps) = slopes.logps {
            ensure!(logps.len() == batch.rows, "{} coefficients for {} rows", logps.len(), batch.rows);
        }
        self.clear_tables(slopes.logps.is_some() || slopes.divergences.is_some())?;
        let dhidden = self.part(self.plan.spans.normed, batch.tokens * self.config.hidden);
        match (slopes.logps, &slopes.divergences) {
            (Some(logps), None) => self.head_bwd(batch, logps)?,
            (Some(logps), Some(beside)) => self.divergence_bwd(batch, logps, beside)?,
            (None, Some(beside)) => self.divergence_bwd(batch, &self.device.zeros(batch.rows)?, beside)?,
            (None, None) if slopes.heads.is_empty() => bail!("a backward pass without slopes"),
            (None, None) => self.device.fill_zero(&dhidden)?,
        }
        let hidden = self.hidden(batch);
        slopes.heads.iter().try_for_each(|head| head.backward(&dhidden, &hidden, batch))?;
        self.body_bwd(batch)?;
        self.params.added();
        Ok(())
    }

    /// Zeroes the bf16 gradients that a step's first micro-batch would not overwrite: of tables that ids are looked up in, of which it
    /// touches some rows, unless the head of the same table has overwritten it before, and of a head that no slopes reach.
    fn clear_tables(&self, head_runs: bool) -> Result<()> {
        if !self.params.is_fresh() {
            return Ok(());
        }
        let Layout { embedding, positions, head, .. } = self.params.layout();
        let tied = embedding == head;
        let cleared =
            [(!tied || !head_runs).then_some(embedding), (!tied && !head_runs).then_some(head), positions.as_ref()];
        let mut tables = cleared.into_iter().flatten();
        tables.try_for_each(|range| self.device.fill_zero(&self.params.narrow_grads().slice(range.clone())))
    }

    /// Leaves the gradient of the head's input in `normed`.
    fn divergence_bwd(&self, batch: &Batch, logps: &Buffer<f32>, beside: &DivergenceSlopes<T>) -> Result<()> {
        let DivergenceSlopes { slopes, reference, kept } = *beside;
        let (own, other) = (self.head_scratch(batch.rows), reference.head_scratch(batch.rows));
        let [own_inputs, other_inputs] = [self, reference].map(|model| model.head_inputs(batch));
        distributions::bwd(
            &self.device,
            &self.part(self.plan.spans.normed, batch.tokens * self.config.hidden),
            self.params.gradient(&self.params.layout().head),
            &self.head_source(&own_inputs, &own),
            &reference.head_source(&other_inputs, &other),
            kept,
            &distributions::RowSlopes { logps, divergences: slopes },
            &batch.head_rows(),
            false,
        )
    }

    /// From the gradient of the last hidden states back to the embeddings.
    fn body_bwd(&self, batch: &Batch) -> Result<()> {
        let (tokens, hidden) = (batch.tokens, self.config.hidden);
        let spans = &self.plan.spans;
        let dx = self.part(spans.dx, tokens * hidden);
        let (dy, x) = (self.part(spans.normed, tokens * hidden), self.part(spans.x_final, tokens * hidden));
        self.norm_bwd(&dx, &dy, &x, spans.final_stats, &self.params.layout().final_norm, false)?;
        for (i, (ranges, layer)) in self.params.layout().layers.iter().zip(&spans.layers).enumerate().rev() {
            self.recompute(batch, i)?;
            self.mlp_bwd(tokens, ranges, layer, &dx)?;
            self.attention_bwd(batch, i, ranges, layer, &dx)?;
        }
        self.embed_bwd(batch, &dx)
    }

    fn embed_bwd(&self, batch: &Batch, dx: &Buffer<T>) -> Result<()> {
        let (tokens, hidden) = (batch.tokens, self.config.hidden);
        let ids = [&batch.distinct_ids, &batch.distinct_offsets, &batch.distinct_tokens];
        let add = |range: &Range<usize>, [distinct, offsets, order]: [&Buffer<i32>; 3], scale, rows| {
            embedding::bwd(
                &self.device,
                self.params.gradient(range),
                dx,
                distinct,
                offsets,
                order,
                scale,
                tokens,
                hidden,
                rows,
            )
        };
        add(&self.params.layout().embedding, ids, self.embedding_scale(), self.config.vocab)?;
        match (&self.params.layout().positions, &batch.by_position) {
            (Some(range), Some(tables)) => add(range, tables.each_ref(), 1.0, self.config.positions),
            _ => Ok(()),
        }
    }

    /// Leaves the gradient of the head's input in `normed`.
    fn head_bwd(&self, batch: &Batch, coefficients: &Buffer<f32>) -> Result<()> {
        let spans = &self.plan.spans;
        let elements = batch.tokens * self.config.hidden;
        head::bwd(
            &self.device,
            &self.part(spans.normed, elements),
            self.params.gradient(&self.params.layout().head),
            &self.head_scratch(batch.rows),
            &self.part(spans.hidden, elements),
            &self.params.weight(&self.params.layout().head),
            &self.part(spans.row_lse, batch.rows),
            coefficients,
            &batch.head_rows(),
            &self.head(),
            true,
            false,
        )
    }

    /// Back through a norm over rows of the stream; `dx` may be `dy`.
    fn norm_bwd(
        &self,
        dx: &Buffer<T>,
        dy: &Buffer<T>,
        x: &Buffer<T>,
        stats: Span,
        ranges: &NormRanges,
        accumulate: bool,
    ) -> Result<()> {
        let hidden = self.config.hidden;
        let rows = x.len() / hidden;
        let (dw, w) = (self.params.grad(&ranges.weight), self.params.weight(&ranges.weight));
        if self.config.norm == NormKind::Layer {
            let partials = self.partials(layernorm::bwd_partials(rows, hidden));
            let (db, stats) = (self.params.grad(&ranges.bias), self.part(stats, 2 * rows));
            return layernorm::bwd(&self.device, dx, &dw, &db, &partials, dy, x, &w, &stats, accumulate, rows, hidden);
        }
        let partials = self.partials(rmsnorm::bwd_partials(rows, hidden));
        let norm = self.rms_norm(rows);
        rmsnorm::bwd(&self.device, dx, &dw, &partials, dy, x, &w, &self.part(stats, rows), &norm, accumulate)
    }

    fn partials(&self, elements: usize) -> Buffer<f32> {
        self.part(self.plan.spans.partials, elements)
    }

    /// All the room for parts of sums.
    fn workspace(&self) -> Buffer<f32> {
        self.partials(self.plan.spans.partials.bytes / size_of::<f32>())
    }

    /// The gradient of what a block adds to the stream: `dx` itself, or through the norm after it, in `normed`.
    fn block_output_bwd(
        &self,
        dx: &Buffer<T>,
        out: Span,
        stats: Span,
        ranges: &Option<NormRanges>,
    ) -> Result<Buffer<T>> {
        let Some(ranges) = ranges else { return Ok(dx.clone()) };
        let dout = self.part(self.plan.spans.normed, dx.len());
        self.norm_bwd(&dout, dx, &self.part(out, dx.len()), stats, ranges, false)?;
        Ok(dout)
    }

    /// Adds to `dx` what comes back through a block's first product and the norm before it.
    fn block_input_bwd(
        &self,
        dx: &Buffer<T>,
        dy: &Buffer<T>,
        linear: &Linear,
        x: &Buffer<T>,
        stats: Span,
        ranges: &Option<NormRanges>,
    ) -> Result<()> {
        let Some(ranges) = ranges else {
            return linear.dx(&self.params, dx, dy, true);
        };
        let dnormed = self.part(self.plan.spans.normed, x.len());
        linear.dx(&self.params, &dnormed, dy, false)?;
        self.norm_bwd(dx, &dnormed, x, stats, ranges, true)
    }

    fn mlp_bwd(&self, tokens: usize, ranges: &LayerRanges, layer: &LayerSpans, dx: &Buffer<T>) -> Result<()> {
        let (device, hidden, ffn) = (&self.device, self.config.hidden, self.config.ffn);
        let gate = ranges.gate_up.rows;
        let dout = self.block_output_bwd(dx, layer.mlp_out, layer.after_mlp, &ranges.after_mlp)?;
        let gate_up = self.part::<T>(layer.gate_up, tokens * gate);
        // The gradient of the activation's output; then, in its place, that output.
        let inner = self.part(self.plan.spans.inner, tokens * ffn);
        ranges.down.dx(&self.params, &inner, &dout, false)?;
        let dgate_up = self.part::<T>(self.plan.spans.wide, tokens * gate);
        match self.config.activation {
            Activation::SwiGlu => swiglu::bwd(device, &dgate_up, &inner, &inner, &gate_up, tokens, ffn)?,
            Activation::GeGlu => geglu::bwd(device, &dgate_up, &inner, &inner, &gate_up, tokens, ffn)?,
            Activation::Gelu => gelu::bwd(device, &dgate_up, &inner, &inner, &gate_up, tokens * ffn)?,
        }
        ranges.down.dw(&self.params, &self.workspace(), &dout, &inner)?;
        let x = self.part(layer.middle, tokens * hidden);
        let input = self.block_input(&x, layer.before_mlp, &ranges.before_mlp, tokens)?;
        ranges.gate_up.dw(&self.params, &self.workspace(), &dgate_up, &input)?;
        self.block_input_bwd(dx, &dgate_up, &ranges.gate_up, &x, layer.before_mlp, &ranges.before_mlp)
    }

    fn attention_bwd(
        &self,
        batch: &Batch,
        index: usize,
        ranges: &LayerRanges,
        layer: &LayerSpans,
        dx: &Buffer<T>,
    ) -> Result<()> {
        let (tokens, hidden) = (batch.tokens, self.config.hidden);
        let (q, wide) = (ranges.o.columns, ranges.qkv.rows);
        let dout = self.block_output_bwd(dx, layer.attention_out, layer.after_attention, &ranges.after_attention)?;
        let attended = self.part::<T>(layer.attended, tokens * q);
        ranges.o.dw(&self.params, &self.workspace(), &dout, &attended)?;
        let dattended = self.part::<T>(self.plan.spans.inner, tokens * q);
        ranges.o.dx(&self.params, &dattended, &dout, false)?;

        let dqkv = self.part::<T>(self.plan.spans.wide, tokens * wide);
        self.attention_core_bwd(batch, index, layer, &dqkv, &dattended, &attended)?;
        self.qk_norm_bwd(&dqkv, ranges, layer, tokens)?;

        let x = self.part(layer.x, tokens * hidden);
        let input = self.block_input(&x, layer.before_attention, &ranges.before_attention, tokens)?;
        ranges.qkv.dw(&self.params, &self.workspace(), &dqkv, &input)?;
        self.block_input_bwd(dx, &dqkv, &ranges.qkv, &x, layer.before_attention, &ranges.before_attention)
    }

    /// Through the softmax and the rotation.
    fn attention_core_bwd(
        &self,
        batch: &Batch,
        index: usize,
        layer: &LayerSpans,
        dqkv: &Buffer<T>,
        dattended: &Buffer<T>,
        attended: &Buffer<T>,
    ) -> Result<()> {
        let (tokens, heads) = (batch.tokens, self.config.heads);
        attention::bwd(
            &self.device,
            dqkv,
            &self.part(self.plan.spans.delta, heads * tokens),
            dattended,
            attended,
            &self.part(layer.lse, heads * tokens),
            &self.part(layer.qkv, tokens * self.config.qkv_width()),
            &batch.mask(),
            self.rotary(index).as_ref(),
            self.config.attention_scale as f32,
            &self.attention_dims(index, tokens),
        )
    }

    /// Back through the norms of queries and keys, in place.
    fn qk_norm_bwd(&self, dqkv: &Buffer<T>, ranges: &LayerRanges, layer: &LayerSpans, tokens: usize) -> Result<()> {
        let Some(norms) = &ranges.qk_norm else { return Ok(()) };
        let qk = self.part::<T>(layer.qk, tokens * (self.config.q_width() + self.config.kv_width()));
        for (part, range) in self.qk_parts(tokens).iter().zip(norms) {
            let (x, d) = (qk.slice(part.start..qk.len()), dqkv.slice(part.start..dqkv.len()));
            let rrms = self.part::<f32>(layer.qk_rrms, part.stats.end).slice(part.stats.clone());
            let partials = self.partials(rmsnorm::bwd_partials(part.norm.rows, part.norm.hidden));
            let (dw, w) = (self.params.grad(range), self.params.weight(range));
            rmsnorm::bwd(&self.device, &d, &dw, &partials, &d, &x, &w, &rrms, &part.norm, false)?;
        }
        Ok(())
    }
}
