//! Token masks from a model's activations: fixed ones, and learned ones with their gradients.

use anyhow::Result;

use super::expect_len;
use crate::device::{Buffer, Device, Float, Launch, Table, kernels::token_mask as kernel};

const THREADS: usize = 128;
const WARPS_PER_CTA: usize = THREADS / 32;

fn by_warps(count: usize) -> Launch {
    Launch::linear(count.div_ceil(WARPS_PER_CTA), THREADS)
}

/// The activations a row reads its token's from.
#[derive(Clone, Copy)]
pub struct Activations<'a, T> {
    /// (tokens, width)
    pub x: &'a Buffer<T>,
    /// (rows)
    pub row_source: &'a Buffer<i32>,
    /// Elements of a token.
    pub width: usize,
}

impl<T: Float> Activations<'_, T> {
    fn sources(&self) -> Table<'_> {
        Table::below("token mask row_source", self.row_source, self.x.len() / self.width)
    }

    fn rows(&self) -> Result<usize> {
        let tokens = self.x.len() / self.width;
        expect_len("token mask activations", self.x, &[tokens, self.width])?;
        Ok(self.row_source.len())
    }
}

/// Mean activation at each row's token: `means` (rows).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn means<T: Float>(device: &Device, means: &Buffer<f32>, from: Activations<T>) -> Result<()> {
    let rows = from.rows()?;
    expect_len("token mask means", means, &[rows])?;
    // SAFETY: lengths were checked above; a host device checks the sources.
    let work = || unsafe {
        kernel::TokenMaskMeans {
            means,
            x: from.x,
            row_source: from.row_source,
            rows: rows as i32,
            width: from.width as i32,
        }
        .launch(device, by_warps(rows))
    };
    device.with_tables(&[from.sources()], work)
}

/// Adds `share` of the means, stretched to 0..1 over each sequence, to `mask`; both (rows), `sequence_rows`
/// (sequences + 1).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn stretch(
    device: &Device,
    mask: &Buffer<f32>,
    means: &Buffer<f32>,
    sequence_rows: &Buffer<i32>,
    share: f32,
) -> Result<()> {
    expect_len("token mask", mask, &[means.len()])?;
    let sequences = sequence_rows.len() - 1;
    // SAFETY: lengths were checked above; a host device checks the table.
    let work = || unsafe {
        kernel::TokenMaskStretch { mask, means, sequence_rows, share, sequences: sequences as i32 }
            .launch(device, by_warps(sequences))
    };
    device.with_tables(&[Table::offsets("token mask sequence_rows", sequence_rows, means.len())], work)
}

/// What one layer of a learned mask is made of, or their gradients.
#[derive(Clone)]
pub struct Weights {
    /// (width) each, shared by all layers.
    pub norm_weight: Buffer<f32>,
    /// (width), shared by all layers.
    pub norm_bias: Buffer<f32>,
    /// (width)
    pub w: Buffer<f32>,
    /// (1)
    pub b: Buffer<f32>,
}

impl Weights {
    fn check(&self, width: usize) -> Result<()> {
        for buffer in [&self.norm_weight, &self.norm_bias, &self.w] {
            expect_len("token mask weights", buffer, &[width])?;
        }
        expect_len("token mask bias", &self.b, &[1])
    }
}

/// One layer's part of a learned mask before its activation: `pre` (rows), and `stats` (rows, 2) for [`layer_bwd`].
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn layer<T: Float>(
    device: &Device,
    pre: &Buffer<f32>,
    stats: &Buffer<f32>,
    from: Activations<T>,
    weights: &Weights,
) -> Result<()> {
    let rows = from.rows()?;
    weights.check(from.width)?;
    expect_len("token mask pre", pre, &[rows])?;
    expect_len("token mask stats", stats, &[rows, 2])?;
    let Weights { norm_weight, norm_bias, w, b } = weights;
    let (count, width) = (rows as i32, from.width as i32);
    // SAFETY: lengths were checked above; a host device checks the sources.
    let work = || unsafe {
        kernel::TokenMaskLayer {
            pre,
            stats,
            x: from.x,
            row_source: from.row_source,
            norm_weight,
            norm_bias,
            w,
            b,
            rows: count,
            width,
        }
        .launch(device, by_warps(rows))
    };
    device.with_tables(&[from.sources()], work)
}

/// `mask` (rows) from all layers' parts: `pre` (layers, rows), `gamma` (layers).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn mix(device: &Device, mask: &Buffer<f32>, pre: &Buffer<f32>, gamma: &Buffer<f32>) -> Result<()> {
    let (rows, layers) = (mask.len(), gamma.len());
    expect_len("token mask pre", pre, &[layers, rows])?;
    let launch = Launch::linear(rows.div_ceil(THREADS), THREADS);
    // SAFETY: lengths were checked above.
    unsafe {
        kernel::TokenMaskMix { mask, pre, gamma, rows: rows as i32, layers: layers as i32 }.launch(device, launch)
    }
}

/// Back through [`mix`]: writes `dpre` (layers, rows), adds to `dgamma` (layers).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn mix_bwd(
    device: &Device,
    dpre: &Buffer<f32>,
    dgamma: &Buffer<f32>,
    dmask: &Buffer<f32>,
    mask: &Buffer<f32>,
    pre: &Buffer<f32>,
    gamma: &Buffer<f32>,
) -> Result<()> {
    let (rows, layers) = (mask.len(), gamma.len());
    expect_len("token mask dpre", dpre, &[layers, rows])?;
    expect_len("token mask pre", pre, &[layers, rows])?;
    expect_len("token mask dgamma", dgamma, &[layers])?;
    expect_len("token mask slopes", dmask, &[rows])?;
    let launch = Launch::linear(layers, THREADS).with_smem(WARPS_PER_CTA * size_of::<f32>());
    // SAFETY: lengths were checked above.
    unsafe {
        kernel::TokenMaskMixBwd { dpre, dgamma, dmask, mask, pre, gamma, rows: rows as i32 }.launch(device, launch)
    }
}

/// Back through [`layer`]: adds to `grads`. `dpre` (rows), `stats` (rows, 2).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn layer_bwd<T: Float>(
    device: &Device,
    grads: &Weights,
    dpre: &Buffer<f32>,
    stats: &Buffer<f32>,
    from: Activations<T>,
    weights: &Weights,
) -> Result<()> {
    let rows = from.rows()?;
    weights.check(from.width)?;
    grads.check(from.width)?;
    expect_len("token mask dpre", dpre, &[rows])?;
    expect_len("token mask stats", stats, &[rows, 2])?;
    let launch = Launch::linear(from.width.div_ceil(THREADS), THREADS);
    let Weights { norm_weight, norm_bias, w, .. } = weights;
    let (count, width) = (rows as i32, from.width as i32);
    // SAFETY: lengths were checked above; a host device checks the sources.
    let work = || unsafe {
        kernel::TokenMaskLayerBwd {
            dnorm_weight: &grads.norm_weight,
            dnorm_bias: &grads.norm_bias,
            dw: &grads.w,
            db: &grads.b,
            dpre,
            stats,
            x: from.x,
            row_source: from.row_source,
            norm_weight,
            norm_bias,
            w,
            rows: count,
            width,
        }
        .launch(device, launch)
    };
    device.with_tables(&[from.sources()], work)
}
