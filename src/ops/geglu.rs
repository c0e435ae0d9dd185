//! The gated activation of Gemma's feed-forward layer.

use anyhow::Result;

use super::{chunk_launch, expect_len};
use crate::device::{Buffer, Device, Float, kernels::geglu as kernel};

/// `y = gelu(gate) * up`, gelu in its tanh form.
///
/// Shapes: `y` (rows, ffn); `gate_up` (rows, 2 * ffn), gate first.
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn fwd<T: Float>(device: &Device, y: &Buffer<T>, gate_up: &Buffer<T>, rows: usize, ffn: usize) -> Result<()> {
    expect_len("geglu y", y, &[rows, ffn])?;
    expect_len("geglu gate_up", gate_up, &[rows, 2, ffn])?;
    let launch = chunk_launch("geglu", rows, ffn)?;
    // SAFETY: all lengths were checked above.
    unsafe { kernel::GegluFwd { y, gate_up, rows: rows as i32, ffn: ffn as i32 }.launch(device, launch) }
}

/// Gradient of [`fwd`], and its `y` again with the same bits, which the gradient of the next matrix reads. `dgate_up` may be
/// `gate_up`, `y` may be `dy`.
///
/// Shapes: `dgate_up`, `gate_up` (rows, 2 * ffn); `y`, `dy` (rows, ffn).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn bwd<T: Float>(
    device: &Device,
    dgate_up: &Buffer<T>,
    y: &Buffer<T>,
    dy: &Buffer<T>,
    gate_up: &Buffer<T>,
    rows: usize,
    ffn: usize,
) -> Result<()> {
    expect_len("geglu dgate_up", dgate_up, &[rows, 2, ffn])?;
    expect_len("geglu y", y, &[rows, ffn])?;
    expect_len("geglu dy", dy, &[rows, ffn])?;
    expect_len("geglu gate_up", gate_up, &[rows, 2, ffn])?;
    let launch = chunk_launch("geglu", rows, ffn)?;
    // SAFETY: all lengths were checked above.
    unsafe { kernel::GegluBwd { dgate_up, y, dy, gate_up, rows: rows as i32, ffn: ffn as i32 }.launch(device, launch) }
}
