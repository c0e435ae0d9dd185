//! The forward pass of one micro-batch: from token ids to the log-probability of every row.

use anyhow::Result;

use super::{Batch, LayerRanges, Model, memory::LayerSpans};
use crate::{
    device::{Buffer, Float},
    ops::{
        attention, embedding,
        gemm::{self, Gemm},
        head, residual, rmsnorm, rope, swiglu,
    },
};

impl<T: Float> Model<T> {
    /// Runs all layers and keeps what [`backward`](Self::backward) needs of them.
    ///
    /// # Errors
    /// A launch fails.
    pub fn forward(&self, batch: &Batch) -> Result<()> {
        let (tokens, hidden) = (batch.tokens, self.config.hidden);
        let spans = &self.plan.spans;
        let stream = |layer: usize| {
            let span = spans.layers.get(layer).map_or(spans.x_final, |layer| layer.x);
            self.part::<T>(span, tokens * hidden)
        };
        let table = self.weight(&self.layout.embedding);
        embedding::fwd(&self.device, &stream(0), &batch.ids, &table, tokens, hidden, self.config.vocab)?;
        for (i, (ranges, layer)) in self.layout.layers.iter().zip(&spans.layers).enumerate() {
            self.attention_fwd(batch, ranges, layer)?;
            self.mlp_fwd(tokens, ranges, layer, &stream(i + 1))?;
        }
        let y = self.part(spans.hidden, tokens * hidden);
        let rrms = self.part(spans.final_rrms, tokens);
        self.norm(&y, &rrms, &stream(self.config.layers), &self.layout.final_norm)
    }

    /// The log-probability of each row's target; needs [`forward`](Self::forward) on the same batch. The buffer is the
    /// model's own: the next call overwrites it.
    ///
    /// # Errors
    /// A launch fails.
    pub fn logps(&self, batch: &Batch) -> Result<Buffer<f32>> {
        let spans = &self.plan.spans;
        let logps = self.part(spans.logps, batch.rows);
        let hidden = self.part(spans.hidden, batch.tokens * self.config.hidden);
        head::fwd(
            &self.device,
            &logps,
            &self.part(spans.row_lse, batch.rows),
            &self.head_scratch(batch.rows),
            &hidden,
            &self.weight(&self.layout.head),
            &batch.head_rows(),
            &self.head(),
        )?;
        Ok(logps)
    }

    /// Rows of the stream through a norm.
    pub(super) fn norm(
        &self,
        y: &Buffer<T>,
        rrms: &Buffer<f32>,
        x: &Buffer<T>,
        weight: &std::ops::Range<usize>,
    ) -> Result<()> {
        let (rows, hidden) = (rrms.len(), self.config.hidden);
        rmsnorm::fwd(&self.device, y, rrms, x, &self.weight(weight), self.config.rms_norm_eps, rows, hidden)
    }

    fn attention_fwd(&self, batch: &Batch, ranges: &LayerRanges, layer: &LayerSpans) -> Result<()> {
        let (device, config, tokens) = (&self.device, &self.config, batch.tokens);
        let (hidden, q, wide) = (config.hidden, config.q_width(), config.qkv_width());
        let x = self.part(layer.x, tokens * hidden);
        let normed = self.part(self.plan.spans.normed, tokens * hidden);
        self.norm(&normed, &self.part(layer.input_rrms, tokens), &x, &ranges.input_norm)?;

        let qkv = self.part::<T>(layer.qkv, tokens * wide);
        gemm::run(device, &Gemm::nt(tokens, wide, hidden), &qkv, &normed, &self.weight(&ranges.qkv))?;
        let [cos, sin] = self.rotary_table();
        let (heads, kv_heads, head_dim) = (config.heads, config.kv_heads, config.head_dim);
        rope::apply(device, &qkv, &batch.position, &cos, &sin, false, tokens, heads, kv_heads, head_dim)?;

        let attended = self.part::<T>(layer.attended, tokens * q);
        let lse = self.part(layer.lse, heads * tokens);
        let (scale, dims) = (self.attention_scale(), self.attention_dims(tokens));
        attention::fwd(
            device,
            &attended,
            &lse,
            &qkv,
            &batch.subtree_end,
            &batch.tile_bounds,
            &batch.position,
            scale,
            &dims,
        )?;

        let projected = normed;
        gemm::run(device, &Gemm::nt(tokens, hidden, q), &projected, &attended, &self.weight(&ranges.o))?;
        residual::add(device, &self.part(layer.middle, tokens * hidden), &x, &projected, tokens * hidden)
    }

    fn mlp_fwd(&self, tokens: usize, ranges: &LayerRanges, layer: &LayerSpans, y: &Buffer<T>) -> Result<()> {
        let (device, hidden, ffn) = (&self.device, self.config.hidden, self.config.ffn);
        let x = self.part(layer.middle, tokens * hidden);
        let normed = self.part(self.plan.spans.normed, tokens * hidden);
        self.norm(&normed, &self.part(layer.post_rrms, tokens), &x, &ranges.post_norm)?;

        let gate_up = self.part::<T>(layer.gate_up, tokens * 2 * ffn);
        gemm::run(device, &Gemm::nt(tokens, 2 * ffn, hidden), &gate_up, &normed, &self.weight(&ranges.gate_up))?;
        let inner = self.part(self.plan.spans.inner, tokens * ffn);
        swiglu::fwd(device, &inner, &gate_up, tokens, ffn)?;

        let projected = normed;
        gemm::run(device, &Gemm::nt(tokens, hidden, ffn), &projected, &inner, &self.weight(&ranges.down))?;
        residual::add(device, y, &x, &projected, tokens * hidden)
    }
}
