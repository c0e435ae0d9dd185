//! Root-mean-square normalisation.

use anyhow::Result;

use super::{CHUNK, expect_len};
use crate::device::{Buffer, Device, Float, Launch, kernels::rmsnorm as kernel};

const WARPS_PER_CTA: usize = 4;
/// Rows one warp takes at most: `kMaxRows` in the kernel.
const MAX_ROWS_PER_WARP: usize = 8;
/// Elements a warp should have to read: short rows are taken several at a time, so that one reduction serves them all.
const WARP_ELEMENTS: usize = 2048;
const COLUMN_THREADS: usize = 64;
/// Rows one CTA of the weight gradient sums: fixed, so that the order of additions never depends on the device.
const SLICE_ROWS: usize = 64;

/// `y = x * rrms * w` with `rrms = 1 / sqrt(mean(x²) + eps)` per row.
///
/// Shapes: `y`, `x` (rows, hidden); `rrms` (rows); `w` (hidden).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
#[allow(clippy::too_many_arguments)]
pub fn fwd<T: Float>(
    device: &Device,
    y: &Buffer<T>,
    rrms: &Buffer<f32>,
    x: &Buffer<T>,
    w: &Buffer<T>,
    eps: f32,
    rows: usize,
    hidden: usize,
) -> Result<()> {
    expect_len("rmsnorm y", y, &[rows, hidden])?;
    expect_len("rmsnorm rrms", rrms, &[rows])?;
    expect_len("rmsnorm x", x, &[rows, hidden])?;
    expect_len("rmsnorm w", w, &[hidden])?;
    let (launch, rows_per_warp) = by_row(rows, hidden);
    // SAFETY: all lengths were checked above.
    unsafe { kernel::rmsnorm_fwd(device, launch, y, rrms, x, w, eps, rows_per_warp, rows as i32, hidden as i32) }
}

/// One warp per `rows_per_warp` rows.
fn by_row(rows: usize, hidden: usize) -> (Launch, i32) {
    let rows_per_warp = (WARP_ELEMENTS / hidden.max(1)).clamp(1, MAX_ROWS_PER_WARP);
    (Launch::linear(rows.div_ceil(rows_per_warp * WARPS_PER_CTA), WARPS_PER_CTA * 32), rows_per_warp as i32)
}

/// Elements of `partials` that [`bwd`] needs.
pub fn bwd_partials(rows: usize, hidden: usize) -> usize {
    rows.div_ceil(SLICE_ROWS) * hidden
}

/// Gradients of [`fwd`]: writes `dx` (adds to it if `accumulate`), adds to `dw`.
///
/// Shapes: `dx`, `dy`, `x` (rows, hidden); `dw`, `w` (hidden); `rrms` (rows); `partials` at least [`bwd_partials`].
///
/// # Errors
/// A buffer does not have its shape, or a launch fails.
#[allow(clippy::too_many_arguments)]
pub fn bwd<T: Float>(
    device: &Device,
    dx: &Buffer<T>,
    dw: &Buffer<f32>,
    partials: &Buffer<f32>,
    dy: &Buffer<T>,
    x: &Buffer<T>,
    w: &Buffer<T>,
    rrms: &Buffer<f32>,
    accumulate: bool,
    rows: usize,
    hidden: usize,
) -> Result<()> {
    for (what, buffer) in [("rmsnorm dx", dx), ("rmsnorm dy", dy), ("rmsnorm x", x)] {
        expect_len(what, buffer, &[rows, hidden])?;
    }
    expect_len("rmsnorm dw", dw, &[hidden])?;
    expect_len("rmsnorm w", w, &[hidden])?;
    expect_len("rmsnorm rrms", rrms, &[rows])?;
    let partials = partials.slice(0..bwd_partials(rows, hidden));
    let slices = rows.div_ceil(SLICE_ROWS);
    let columns = hidden.div_ceil(COLUMN_THREADS * CHUNK);
    let by_slice = Launch { grid: [columns as u32, slices as u32, 1], ..Launch::linear(1, COLUMN_THREADS) };
    let (by_row, rows_per_warp) = by_row(rows, hidden);
    let (rows, hidden) = (rows as i32, hidden as i32);
    // SAFETY: all lengths were checked above; the weight gradient is launched first because it reads dy, which may be
    // the buffer that dx overwrites.
    unsafe {
        kernel::rmsnorm_bwd_weight(device, by_slice, &partials, dy, x, rrms, SLICE_ROWS as i32, rows, hidden)?;
        let finish = Launch::linear(columns, COLUMN_THREADS);
        kernel::rmsnorm_bwd_weight_finish(device, finish, dw, &partials, slices as i32, hidden)?;
        let accumulate = i32::from(accumulate);
        kernel::rmsnorm_bwd(device, by_row, dx, dy, x, w, rrms, accumulate, rows_per_warp, rows, hidden)
    }
}
