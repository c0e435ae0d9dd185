//! Layer normalisation with weight and bias.

use anyhow::{Result, ensure};

use super::{expect_len, finish_launch, slice_launch, slice_rows};
use crate::device::{Buffer, Device, Float, Launch, kernels::layernorm as kernel};

const WARPS_PER_CTA: usize = 4;

/// `y = (x - mean) * rstd * w + b` with `rstd = 1 / sqrt(mean((x - mean)²) + eps)` per row.
///
/// Shapes: `y`, `x` (rows, hidden); `stats` (rows, 2) mean and rstd; `w`, `b` (hidden).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
#[allow(clippy::too_many_arguments)]
pub fn fwd<T: Float>(
    device: &Device,
    y: &Buffer<T>,
    stats: &Buffer<f32>,
    x: &Buffer<T>,
    w: &Buffer<T>,
    b: &Buffer<T>,
    eps: f32,
    rows: usize,
    hidden: usize,
) -> Result<()> {
    for (what, buffer) in [("layernorm y", y), ("layernorm x", x)] {
        expect_len(what, buffer, &[rows, hidden])?;
    }
    for (what, buffer) in [("layernorm w", w), ("layernorm b", b)] {
        expect_len(what, buffer, &[hidden])?;
    }
    expect_len("layernorm stats", stats, &[rows, 2])?;
    // SAFETY: all lengths were checked above.
    unsafe {
        kernel::LayernormFwd { y, stats, x, w, b, eps, rows: rows as i32, hidden: hidden as i32 }
            .launch(device, by_row(rows))
    }
}

/// One warp per row.
fn by_row(rows: usize) -> Launch {
    Launch::linear(rows.div_ceil(WARPS_PER_CTA), WARPS_PER_CTA * 32)
}

/// Elements of `partials` that [`bwd`] needs.
pub fn bwd_partials(rows: usize, hidden: usize) -> usize {
    2 * rows.div_ceil(slice_rows(hidden)) * hidden
}

/// Gradients of [`fwd`]: writes `dx` (adds to it if `accumulate`), adds to `dw` and `db`. `dx` may be `dy`.
///
/// Shapes: `dx`, `dy`, `x` (rows, hidden); `dw`, `db`, `w` (hidden); `stats` (rows, 2); `partials` at least
/// [`bwd_partials`].
///
/// # Errors
/// A buffer does not have its shape, or a launch fails.
#[allow(clippy::too_many_arguments)]
pub fn bwd<T: Float>(
    device: &Device,
    dx: &Buffer<T>,
    dw: &Buffer<f32>,
    db: &Buffer<f32>,
    partials: &Buffer<f32>,
    dy: &Buffer<T>,
    x: &Buffer<T>,
    w: &Buffer<T>,
    stats: &Buffer<f32>,
    accumulate: bool,
    rows: usize,
    hidden: usize,
) -> Result<()> {
    for (what, buffer) in [("layernorm dx", dx), ("layernorm dy", dy), ("layernorm x", x)] {
        expect_len(what, buffer, &[rows, hidden])?;
    }
    for (what, buffer) in [("layernorm dw", dw), ("layernorm db", db)] {
        expect_len(what, buffer, &[hidden])?;
    }
    expect_len("layernorm w", w, &[hidden])?;
    expect_len("layernorm stats", stats, &[rows, 2])?;
    let needed = bwd_partials(rows, hidden);
    ensure!(partials.len() >= needed, "layernorm partials: expected {needed} elements, found {}", partials.len());
    let partials = partials.slice(0..needed);
    let (slice, slices) = (slice_rows(hidden), rows.div_ceil(slice_rows(hidden)));
    let (by_slice, by_part) = (slice_launch(rows, hidden, 2), finish_launch(hidden));
    let finish = Launch { grid: [by_part.grid[0], 2, 1], ..by_part };
    let accumulate = i32::from(accumulate);
    let [slice, slices, rows, hidden] = [slice, slices, rows, hidden].map(|n| n as i32);
    // SAFETY: all lengths were checked above. A CTA has read what it needs of other columns before it writes dx, which may be
    // the buffer of dy.
    unsafe {
        kernel::LayernormBwd { dx, partials: &partials, dy, x, w, stats, accumulate, slice_rows: slice, rows, hidden }
            .launch(device, by_slice)?;
        kernel::LayernormBwdFinish { dw, db, partials: &partials, slices, hidden }.launch(device, finish)
    }
}
