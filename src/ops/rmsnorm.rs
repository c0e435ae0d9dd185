//! Root-mean-square normalisation.

use anyhow::{Result, ensure};

use super::{expect_len, finish_launch, slice_launch, slice_rows};
use crate::device::{Buffer, Device, Element, Float, Launch, kernels::rmsnorm as kernel};

const WARPS_PER_CTA: usize = 4;
/// Rows one warp takes at most: `kMaxRows` in the kernel.
const MAX_ROWS_PER_WARP: usize = 8;
/// Elements a warp should have to read: short rows are taken several at a time, so that one reduction serves them all.
const WARP_ELEMENTS: usize = 2048;

/// One normalisation. Rows may stand in groups inside wider rows, as a token's heads do inside its queries, keys and
/// values: row `r` begins at `(r / group) * pitch + (r % group) * hidden`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
    /// Added to every weight: 0, or 1 for Gemma.
    pub offset: f32,
    /// Rows in all groups.
    pub rows: usize,
    /// Elements of a row.
    pub hidden: usize,
    /// Rows of a group.
    pub group: usize,
    /// Elements from one group of `x` to the next.
    pub x_pitch: usize,
    /// The same for `y`, and for `dy` and `dx`.
    pub y_pitch: usize,
}

impl RmsNorm {
    /// Rows of a plain matrix.
    pub fn new(rows: usize, hidden: usize, eps: f32) -> Self {
        Self { eps, offset: 0.0, rows, hidden, group: 1, x_pitch: hidden, y_pitch: hidden }
    }

    fn check<T: Element>(&self, what: &str, buffer: &Buffer<T>, pitch: usize) -> Result<()> {
        let Self { rows, hidden, group, .. } = *self;
        ensure!(group > 0 && rows.is_multiple_of(group), "rmsnorm: {rows} rows in groups of {group}");
        ensure!(pitch >= group * hidden, "rmsnorm {what}: groups of {group} rows of {hidden} are {pitch} apart");
        ensure!(pitch <= i32::MAX as usize, "rmsnorm {what}: a pitch of {pitch} does not fit 32 bits");
        let len = (rows / group).saturating_sub(1) * pitch + group.min(rows) * hidden;
        ensure!(buffer.len() >= len, "rmsnorm {what}: expected at least {len} elements, found {}", buffer.len());
        Ok(())
    }
}

/// `y = x * rrms * (w + offset)` with `rrms = 1 / sqrt(mean(x²) + eps)` per row.
///
/// Shapes: `y`, `x` (rows, hidden) placed as `norm` says; `rrms` (rows); `w` (hidden).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn fwd<T: Float>(
    device: &Device,
    y: &Buffer<T>,
    rrms: &Buffer<f32>,
    x: &Buffer<T>,
    w: &Buffer<T>,
    norm: &RmsNorm,
) -> Result<()> {
    let RmsNorm { eps, offset, rows, hidden, group, x_pitch, y_pitch } = *norm;
    norm.check("y", y, y_pitch)?;
    norm.check("x", x, x_pitch)?;
    expect_len("rmsnorm rrms", rrms, &[rows])?;
    expect_len("rmsnorm w", w, &[hidden])?;
    let (launch, per_warp) = by_row(rows, hidden);
    let [group, x_pitch, y_pitch, rows, hidden] = [group, x_pitch, y_pitch, rows, hidden].map(|n| n as i32);
    // SAFETY: all lengths were checked above.
    unsafe {
        kernel::RmsnormFwd {
            y,
            rrms,
            x,
            w,
            eps,
            offset,
            group,
            x_pitch,
            y_pitch,
            rows_per_warp: per_warp,
            rows,
            hidden,
        }
        .launch(device, launch)
    }
}

/// One warp per `rows_per_warp` rows.
fn by_row(rows: usize, hidden: usize) -> (Launch, i32) {
    let rows_per_warp = (WARP_ELEMENTS / hidden.max(1)).clamp(1, MAX_ROWS_PER_WARP);
    (Launch::linear(rows.div_ceil(rows_per_warp * WARPS_PER_CTA), WARPS_PER_CTA * 32), rows_per_warp as i32)
}

/// Elements of `partials` that [`bwd`] needs.
pub fn bwd_partials(rows: usize, hidden: usize) -> usize {
    rows.div_ceil(slice_rows(hidden)) * hidden
}

/// Gradients of [`fwd`]: writes `dx` (adds to it if `accumulate`), adds to `dw`. `dx` may be `dy`.
///
/// Shapes: `dx`, `dy`, `x` (rows, hidden) placed as `norm` says; `dw`, `w` (hidden); `rrms` (rows); `partials` at least
/// [`bwd_partials`].
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
    norm: &RmsNorm,
    accumulate: bool,
) -> Result<()> {
    let RmsNorm { offset, rows, hidden, group, x_pitch, y_pitch, .. } = *norm;
    for (what, buffer, pitch) in [("dx", dx, y_pitch), ("dy", dy, y_pitch), ("x", x, x_pitch)] {
        norm.check(what, buffer, pitch)?;
    }
    expect_len("rmsnorm dw", dw, &[hidden])?;
    expect_len("rmsnorm w", w, &[hidden])?;
    expect_len("rmsnorm rrms", rrms, &[rows])?;
    let partials = partials.slice(0..bwd_partials(rows, hidden));
    let (slice, slices) = (slice_rows(hidden), rows.div_ceil(slice_rows(hidden)));
    let (by_slice, finish) = (slice_launch(rows, hidden, 1), finish_launch(hidden));
    let [group, x_pitch, y_pitch, slice, slices, rows, hidden] =
        [group, x_pitch, y_pitch, slice, slices, rows, hidden].map(|n| n as i32);
    let accumulate = i32::from(accumulate);
    // SAFETY: all lengths were checked above. A CTA has read what it needs of other columns before it writes dx, which may be
    // the buffer of dy.
    unsafe {
        kernel::RmsnormBwd {
            dx,
            partials: &partials,
            dy,
            x,
            w,
            rrms,
            offset,
            accumulate,
            group,
            x_pitch,
            y_pitch,
            slice_rows: slice,
            rows,
            hidden,
        }
        .launch(device, by_slice)?;
        kernel::RmsnormBwdFinish { dw, partials: &partials, slices, hidden }.launch(device, finish)
    }
}
