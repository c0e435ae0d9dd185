//! The backward pass of one micro-batch: adds every parameter's gradient to the gradient arena.
//!
//! Outputs of norms before a product and of the activation are computed again from what the forward pass kept. One
//! buffer carries the gradient of the residual stream from the last layer to the first; others change their meaning
//! within a layer as the memory plan says.

use std::ops::Range;

use anyhow::{Result, ensure};

use super::{Activation, Batch, LayerRanges, Model, NormKind, NormRanges, memory::LayerSpans, memory::Span};
use crate::{
    device::{Buffer, Float},
    ops::{
        attention, bias, embedding, geglu, gelu,
        gemm::{self, Gemm},
        head::{self, distributions},
        layernorm, rmsnorm, swiglu,
    },
};

impl<T: Float> Model<T> {
    /// Gradients of the loss whose slope at each row's log-probability is `coefficients` (rows); needs
    /// [`logps`](Self::logps) on the same batch just before: the last logits are taken from there and overwritten.
    ///
    /// # Errors
    /// `coefficients` has another length, the plan runs forward only, or a launch fails.
    pub fn backward(&self, batch: &Batch, coefficients: &Buffer<f32>) -> Result<()> {
        ensure!(self.plan.trains, "the memory plan is for forward passes only");
        ensure!(coefficients.len() == batch.rows, "{} coefficients for {} rows", coefficients.len(), batch.rows);
        self.head_bwd(batch, coefficients)?;
        self.body_bwd(batch)
    }

    /// As [`backward`](Self::backward), for a loss with slopes at each row's divergence as well; `kept` is what
    /// [`divergence`](Self::divergence) gave on the same batch just before.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn backward_beside(
        &self,
        reference: &Self,
        batch: &Batch,
        kept: &distributions::Divergence,
        slopes: &distributions::Slopes,
    ) -> Result<()> {
        ensure!(self.plan.trains, "the memory plan is for forward passes only");
        let (own, other) = (self.head_scratch(batch.rows), reference.head_scratch(batch.rows));
        let [own_inputs, other_inputs] = [self, reference].map(|model| model.head_inputs(batch));
        distributions::bwd(
            &self.device,
            &self.part(self.plan.spans.normed, batch.tokens * self.config.hidden),
            &self.grad(&self.layout.head),
            &self.head_source(&own_inputs, &own),
            &reference.head_source(&other_inputs, &other),
            kept,
            slopes,
            &batch.head_rows(),
        )?;
        self.body_bwd(batch)
    }

    /// From the gradient of the last hidden states back to the embeddings.
    fn body_bwd(&self, batch: &Batch) -> Result<()> {
        let (tokens, hidden) = (batch.tokens, self.config.hidden);
        let spans = &self.plan.spans;
        let dx = self.part(spans.dx, tokens * hidden);
        let (dy, x) = (self.part(spans.normed, tokens * hidden), self.part(spans.x_final, tokens * hidden));
        self.norm_bwd(&dx, &dy, &x, spans.final_stats, &self.layout.final_norm, false)?;
        for (i, (ranges, layer)) in self.layout.layers.iter().zip(&spans.layers).enumerate().rev() {
            self.mlp_bwd(tokens, ranges, layer, &dx)?;
            self.attention_bwd(batch, i, ranges, layer, &dx)?;
        }
        self.embed_bwd(batch, &dx)
    }

    fn embed_bwd(&self, batch: &Batch, dx: &Buffer<T>) -> Result<()> {
        let (tokens, hidden) = (batch.tokens, self.config.hidden);
        let ids = [&batch.distinct_ids, &batch.distinct_offsets, &batch.distinct_tokens];
        let add = |range: &Range<usize>, [distinct, offsets, order]: [&Buffer<i32>; 3], scale, rows| {
            embedding::bwd(&self.device, &self.grad(range), dx, distinct, offsets, order, scale, tokens, hidden, rows)
        };
        add(&self.layout.embedding, ids, self.embedding_scale(), self.config.vocab)?;
        match (&self.layout.positions, &batch.by_position) {
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
            &self.grad(&self.layout.head),
            &self.head_scratch(batch.rows),
            &self.part(spans.hidden, elements),
            &self.weight(&self.layout.head),
            &self.part(spans.row_lse, batch.rows),
            coefficients,
            &batch.head_rows(),
            &self.head(),
            true,
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
        let (dw, w) = (self.grad(&ranges.weight), self.weight(&ranges.weight));
        if self.config.norm == NormKind::Layer {
            let partials = self.partials(layernorm::bwd_partials(rows, hidden));
            let (db, stats) = (self.grad(&ranges.bias), self.part(stats, 2 * rows));
            return layernorm::bwd(&self.device, dx, &dw, &db, &partials, dy, x, &w, &stats, accumulate, rows, hidden);
        }
        let partials = self.partials(rmsnorm::bwd_partials(rows, hidden));
        let norm = self.rms_norm(rows);
        rmsnorm::bwd(&self.device, dx, &dw, &partials, dy, x, &w, &self.part(stats, rows), &norm, accumulate)
    }

    fn partials(&self, elements: usize) -> Buffer<f32> {
        self.part(self.plan.spans.partials, elements)
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

    /// Adds to `dx` what comes back through a block's first matrix (rows, hidden) and the norm before it.
    fn block_input_bwd(
        &self,
        dx: &Buffer<T>,
        dy: &Buffer<T>,
        weight: &Range<usize>,
        x: &Buffer<T>,
        stats: Span,
        ranges: &Option<NormRanges>,
    ) -> Result<()> {
        let hidden = self.config.hidden;
        let product = Gemm::nn(x.len() / hidden, hidden, weight.len() / hidden);
        let w = self.weight(weight);
        let Some(ranges) = ranges else {
            return gemm::run(&self.device, &product.accumulating(), dx, dy, &w);
        };
        let dnormed = self.part(self.plan.spans.normed, x.len());
        gemm::run(&self.device, &product, &dnormed, dy, &w)?;
        self.norm_bwd(dx, &dnormed, x, stats, ranges, true)
    }

    fn mlp_bwd(&self, tokens: usize, ranges: &LayerRanges, layer: &LayerSpans, dx: &Buffer<T>) -> Result<()> {
        let (device, hidden, ffn, gate) = (&self.device, self.config.hidden, self.config.ffn, self.config.gate_width());
        let dout = self.block_output_bwd(dx, layer.mlp_out, layer.after_mlp, &ranges.after_mlp)?;
        let gate_up = self.part::<T>(layer.gate_up, tokens * gate);
        // The gradient of the activation's output; then, in its place, that output.
        let inner = self.part(self.plan.spans.inner, tokens * ffn);
        gemm::run(device, &Gemm::nn(tokens, ffn, hidden), &inner, &dout, &self.weight(&ranges.down))?;
        let dgate_up = self.part::<T>(self.plan.spans.wide, tokens * gate);
        match self.config.activation {
            Activation::SwiGlu => swiglu::bwd(device, &dgate_up, &inner, &inner, &gate_up, tokens, ffn)?,
            Activation::GeGlu => geglu::bwd(device, &dgate_up, &inner, &inner, &gate_up, tokens, ffn)?,
            Activation::Gelu => gelu::bwd(device, &dgate_up, &inner, &inner, &gate_up, tokens * ffn)?,
        }
        self.linear_grad(&ranges.down, &ranges.down_bias, [tokens, hidden, ffn], &dout, &inner)?;
        let x = self.part(layer.middle, tokens * hidden);
        let input = self.block_input(&x, layer.before_mlp, &ranges.before_mlp, tokens)?;
        self.linear_grad(&ranges.gate_up, &ranges.gate_up_bias, [tokens, gate, hidden], &dgate_up, &input)?;
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
        let (config, tokens) = (&self.config, batch.tokens);
        let (hidden, q, wide) = (config.hidden, config.q_width(), config.qkv_width());
        let dout = self.block_output_bwd(dx, layer.attention_out, layer.after_attention, &ranges.after_attention)?;
        let attended = self.part::<T>(layer.attended, tokens * q);
        self.linear_grad(&ranges.o, &ranges.o_bias, [tokens, hidden, q], &dout, &attended)?;
        let dattended = self.part::<T>(self.plan.spans.inner, tokens * q);
        gemm::run(&self.device, &Gemm::nn(tokens, q, hidden), &dattended, &dout, &self.weight(&ranges.o))?;

        let dqkv = self.part::<T>(self.plan.spans.wide, tokens * wide);
        self.attention_core_bwd(batch, index, layer, &dqkv, &dattended, &attended)?;
        self.qk_norm_bwd(&dqkv, ranges, layer, tokens)?;

        let x = self.part(layer.x, tokens * hidden);
        let input = self.block_input(&x, layer.before_attention, &ranges.before_attention, tokens)?;
        self.linear_grad(&ranges.qkv, &ranges.qkv_bias, [tokens, wide, hidden], &dqkv, &input)?;
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
            let (dw, w) = (self.grad(range), self.weight(range));
            rmsnorm::bwd(&self.device, &d, &dw, &partials, &d, &x, &w, &rrms, &part.norm, false)?;
        }
        Ok(())
    }

    /// Adds `dyᵀ x` to the gradient of a matrix (rows, columns), and the sum of `dy` to that of its bias.
    fn linear_grad(
        &self,
        weight: &Range<usize>,
        bias: &Option<Range<usize>>,
        [tokens, rows, columns]: [usize; 3],
        dy: &Buffer<T>,
        x: &Buffer<T>,
    ) -> Result<()> {
        let gemm = Gemm::tn(rows, columns, tokens).accumulating();
        let workspace = self.partials(self.plan.spans.partials.bytes / size_of::<f32>());
        gemm::run_split(&self.device, &gemm, &self.grad(weight), dy, x, &workspace)?;
        let Some(range) = bias else { return Ok(()) };
        let partials = self.partials(bias::bwd_partials(tokens, rows));
        bias::bwd(&self.device, &self.grad(range), &partials, dy, tokens, rows)
    }
}
