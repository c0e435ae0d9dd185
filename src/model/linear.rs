//! Products with a layer's weights, forward and back: the one file of the model that multiplies by a weight.
//!
//! What comes beside a weight (an adapter) or in place of it (codes that are decoded) is a change of this file. The head's
//! products are those of `ops::head` and `ops::head_distributions`.

use std::ops::Range;

use anyhow::Result;
use half::bf16;

use super::{ModelConfig, ParamSet};
use crate::{
    device::{Buffer, Device, Float},
    ops::{
        bias,
        gemm::{self, Epilogue, Gemm},
        rope::{self, Heads, Rotary},
        swiglu,
    },
};

/// `y (tokens, rows) = x (tokens, columns) Wᵀ + b`. What one product serves lies side by side: queries, keys and values of
/// a layer, and gate and up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Linear {
    /// (rows, columns) in the layout.
    pub weight: Range<usize>,
    /// (rows) in the layout, where there is one.
    pub bias: Option<Range<usize>>,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
}

/// Positions and tables by which a product's rows are turned.
pub(super) struct Turned<'a> {
    /// (tokens)
    pub position: &'a Buffer<i32>,
    pub rotary: &'a Rotary,
    pub heads: Heads,
}

impl Linear {
    /// `y = x Wᵀ + b`, added to `stream` (tokens, rows) if there is one.
    ///
    /// # Errors
    /// A launch fails.
    pub(super) fn fwd<T: Float>(
        &self,
        params: &ParamSet<T>,
        y: &Buffer<T>,
        stream: Option<&Buffer<T>>,
        x: &Buffer<T>,
    ) -> Result<()> {
        let bias = self.bias_of(params);
        let extras = Epilogue { bias: bias.as_ref(), addend: stream };
        let product = Gemm::nt(x.len() / self.columns, self.rows, self.columns);
        gemm::run_adding(params.device(), &product, y, x, &params.weight(&self.weight), &extras)
    }

    /// The same for some of its rows, without the bias; rows of `y` are `pitch` elements apart.
    ///
    /// # Errors
    /// A launch fails.
    pub(super) fn fwd_rows<T: Float>(
        &self,
        params: &ParamSet<T>,
        y: &Buffer<T>,
        pitch: usize,
        x: &Buffer<T>,
        rows: Range<usize>,
    ) -> Result<()> {
        let start = self.weight.start;
        let weight = params.weight(&(start + rows.start * self.columns..start + rows.end * self.columns));
        let product = Gemm { ldd: pitch, ..Gemm::nt(x.len() / self.columns, rows.len(), self.columns) };
        gemm::run(params.device(), &product, y, x, &weight)
    }

    /// The same for queries, keys and values, queries and keys turned by their positions.
    ///
    /// # Errors
    /// A launch fails.
    pub(super) fn fwd_turned<T: Float>(
        &self,
        params: &ParamSet<T>,
        y: &Buffer<T>,
        x: &Buffer<T>,
        Turned { position, rotary, heads }: &Turned,
    ) -> Result<()> {
        let (bias, shape) = (self.bias_of(params), [x.len() / self.columns, self.columns]);
        let weight = params.weight(&self.weight);
        rope::project(params.device(), y, x, &weight, bias.as_ref(), position, rotary, heads, shape)
    }

    /// The same for gate and up without a bias, and `inner = silu(gate) * up` (tokens, rows / 2).
    ///
    /// # Errors
    /// A launch fails.
    pub(super) fn fwd_gated<T: Float>(
        &self,
        params: &ParamSet<T>,
        inner: &Buffer<T>,
        y: &Buffer<T>,
        x: &Buffer<T>,
    ) -> Result<()> {
        let shape = [x.len() / self.columns, self.rows / 2, self.columns];
        swiglu::project(params.device(), inner, y, x, &params.weight(&self.weight), shape)
    }

    /// `dx (tokens, columns) = dy W`, or added to `dx`.
    ///
    /// # Errors
    /// A launch fails.
    pub(super) fn dx<T: Float>(
        &self,
        params: &ParamSet<T>,
        dx: &Buffer<T>,
        dy: &Buffer<T>,
        accumulate: bool,
    ) -> Result<()> {
        let product = Gemm { accumulate, ..Gemm::nn(dy.len() / self.rows, self.columns, self.rows) };
        gemm::run(params.device(), &product, dx, dy, &params.weight(&self.weight))
    }

    /// Adds `dyᵀ x` to the weight's gradient, and the sum of `dy` over tokens to the bias's. `partials` is room for parts of
    /// sums, as much as [`dw_partials`] says for all to be fast.
    ///
    /// # Errors
    /// A launch fails.
    pub(super) fn dw<T: Float>(
        &self,
        params: &ParamSet<T>,
        partials: &Buffer<f32>,
        dy: &Buffer<T>,
        x: &Buffer<T>,
    ) -> Result<()> {
        let (device, tokens) = (params.device(), dy.len() / self.rows);
        let product = Gemm::tn(self.rows, self.columns, tokens).accumulating();
        gemm::run_gradient(device, &product, &params.gradient(&self.weight), dy, x, Some(partials))?;
        let Some(range) = &self.bias else { return Ok(()) };
        let partials = partials.slice(0..bias::bwd_partials(tokens, self.rows));
        bias::bwd(device, &params.grad(range), &partials, dy, tokens, self.rows)
    }

    fn bias_of<T: Float>(&self, params: &ParamSet<T>) -> Option<Buffer<T>> {
        self.bias.as_ref().map(|range| params.weight(range))
    }
}

/// Elements that parts of the largest split gradient of a weight need.
pub(super) fn dw_partials(device: &Device, config: &ModelConfig, tokens: usize) -> usize {
    let ModelConfig { hidden, ffn, .. } = *config;
    let weights =
        [(config.qkv_width(), hidden), (hidden, config.q_width()), (config.gate_width(), hidden), (hidden, ffn)];
    let parts = weights.map(|(rows, columns)| gemm::split_workspace::<bf16>(device, &Gemm::tn(rows, columns, tokens)));
    parts.into_iter().max().unwrap_or_default()
}
