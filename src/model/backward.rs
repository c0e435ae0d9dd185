//! The backward pass of one micro-batch: adds every parameter's gradient to the gradient arena.
//!
//! Norm and SwiGLU outputs are computed again from what the forward pass kept. One buffer carries the gradient of the
//! residual stream from the last layer to the first; others change their meaning within a layer as the memory plan
//! says.

use std::ops::Range;

use anyhow::{Result, ensure};

use super::{Batch, LayerRanges, Model, memory::LayerSpans};
use crate::{
    device::{Buffer, Float},
    ops::{
        attention, embedding,
        gemm::{self, Gemm},
        head, rmsnorm, rope, swiglu,
    },
};

impl<T: Float> Model<T> {
    /// Gradients of the loss whose slope at each row's log-probability is `coefficients` (rows); needs
    /// [`logps`](Self::logps) on the same batch just before: the last logits are taken from there and overwritten.
    ///
    /// # Errors
    /// `coefficients` has another length, or a launch fails.
    pub fn backward(&self, batch: &Batch, coefficients: &Buffer<f32>) -> Result<()> {
        ensure!(coefficients.len() == batch.rows, "{} coefficients for {} rows", coefficients.len(), batch.rows);
        let (tokens, hidden) = (batch.tokens, self.config.hidden);
        let spans = &self.plan.spans;
        let dx = self.part(spans.dx, tokens * hidden);
        self.head_bwd(batch, coefficients)?;
        let rrms = self.part(spans.final_rrms, tokens);
        self.norm_bwd(&dx, &self.part(spans.x_final, tokens * hidden), &rrms, &self.layout.final_norm, false)?;
        for (ranges, layer) in self.layout.layers.iter().zip(&spans.layers).rev() {
            self.mlp_bwd(tokens, ranges, layer, &dx)?;
            self.attention_bwd(batch, ranges, layer, &dx)?;
        }
        embedding::bwd(
            &self.device,
            &self.grad(&self.layout.embedding),
            &dx,
            &batch.distinct_ids,
            &batch.distinct_offsets,
            &batch.distinct_tokens,
            tokens,
            hidden,
            self.config.vocab,
        )
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

    /// Takes the gradient of a norm's output from `normed`.
    fn norm_bwd(
        &self,
        dx: &Buffer<T>,
        x: &Buffer<T>,
        rrms: &Buffer<f32>,
        weight: &Range<usize>,
        accumulate: bool,
    ) -> Result<()> {
        let (rows, hidden) = (rrms.len(), self.config.hidden);
        let partials = self.part(self.plan.spans.partials, rmsnorm::bwd_partials(rows, hidden));
        let dy = self.part(self.plan.spans.normed, rows * hidden);
        let (dw, w) = (self.grad(weight), self.weight(weight));
        rmsnorm::bwd(&self.device, dx, &dw, &partials, &dy, x, &w, rrms, accumulate, rows, hidden)
    }

    fn mlp_bwd(&self, tokens: usize, ranges: &LayerRanges, layer: &LayerSpans, dx: &Buffer<T>) -> Result<()> {
        let (device, hidden, ffn) = (&self.device, self.config.hidden, self.config.ffn);
        let spans = &self.plan.spans;
        let gate_up = self.part::<T>(layer.gate_up, tokens * 2 * ffn);
        let inner = self.part::<T>(spans.inner, tokens * ffn);
        swiglu::fwd(device, &inner, &gate_up, tokens, ffn)?;
        self.weight_grad(&ranges.down, [tokens, hidden, ffn], dx, &inner)?;
        let dinner = inner;
        gemm::run(device, &Gemm::nn(tokens, ffn, hidden), &dinner, dx, &self.weight(&ranges.down))?;
        let dgate_up = self.part::<T>(spans.wide, tokens * 2 * ffn);
        swiglu::bwd(device, &dgate_up, &dinner, &gate_up, tokens, ffn)?;

        let x = self.part(layer.middle, tokens * hidden);
        let rrms = self.part(layer.post_rrms, tokens);
        let normed = self.part(spans.normed, tokens * hidden);
        self.norm(&normed, &rrms, &x, &ranges.post_norm)?;
        self.weight_grad(&ranges.gate_up, [tokens, 2 * ffn, hidden], &dgate_up, &normed)?;
        let dnormed = normed;
        gemm::run(device, &Gemm::nn(tokens, hidden, 2 * ffn), &dnormed, &dgate_up, &self.weight(&ranges.gate_up))?;
        self.norm_bwd(dx, &x, &rrms, &ranges.post_norm, true)
    }

    fn attention_bwd(&self, batch: &Batch, ranges: &LayerRanges, layer: &LayerSpans, dx: &Buffer<T>) -> Result<()> {
        let (device, config, tokens) = (&self.device, &self.config, batch.tokens);
        let (hidden, q, wide) = (config.hidden, config.q_width(), config.qkv_width());
        let spans = &self.plan.spans;
        let attended = self.part::<T>(layer.attended, tokens * q);
        self.weight_grad(&ranges.o, [tokens, hidden, q], dx, &attended)?;
        let dattended = self.part::<T>(spans.inner, tokens * q);
        gemm::run(device, &Gemm::nn(tokens, q, hidden), &dattended, dx, &self.weight(&ranges.o))?;

        let dqkv = self.part::<T>(spans.wide, tokens * wide);
        self.attention_core_bwd(batch, layer, &dqkv, &dattended, &attended)?;

        let x = self.part(layer.x, tokens * hidden);
        let rrms = self.part(layer.input_rrms, tokens);
        let normed = self.part(spans.normed, tokens * hidden);
        self.norm(&normed, &rrms, &x, &ranges.input_norm)?;
        self.weight_grad(&ranges.qkv, [tokens, wide, hidden], &dqkv, &normed)?;
        let dnormed = normed;
        gemm::run(device, &Gemm::nn(tokens, hidden, wide), &dnormed, &dqkv, &self.weight(&ranges.qkv))?;
        self.norm_bwd(dx, &x, &rrms, &ranges.input_norm, true)
    }

    /// Through the softmax and back through the rotation.
    fn attention_core_bwd(
        &self,
        batch: &Batch,
        layer: &LayerSpans,
        dqkv: &Buffer<T>,
        dattended: &Buffer<T>,
        attended: &Buffer<T>,
    ) -> Result<()> {
        let (config, tokens) = (&self.config, batch.tokens);
        let (heads, kv_heads, head_dim) = (config.heads, config.kv_heads, config.head_dim);
        attention::bwd(
            &self.device,
            dqkv,
            &self.part(self.plan.spans.delta, heads * tokens),
            dattended,
            attended,
            &self.part(layer.lse, heads * tokens),
            &self.part(layer.qkv, tokens * config.qkv_width()),
            &batch.subtree_end,
            &batch.tile_bounds,
            &batch.position,
            self.attention_scale(),
            &self.attention_dims(tokens),
        )?;
        let [cos, sin] = self.rotary_table();
        rope::apply(&self.device, dqkv, &batch.position, &cos, &sin, true, tokens, heads, kv_heads, head_dim)
    }

    /// Adds `dyᵀ x` to the gradient of a matrix (rows, columns).
    fn weight_grad(
        &self,
        weight: &Range<usize>,
        [tokens, rows, columns]: [usize; 3],
        dy: &Buffer<T>,
        x: &Buffer<T>,
    ) -> Result<()> {
        let gemm = Gemm { accumulate: true, ..Gemm::tn(rows, columns, tokens) };
        gemm::run(&self.device, &gemm, &self.grad(weight), dy, x)
    }
}
