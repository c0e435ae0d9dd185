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
    unsafe { kernel::geglu_fwd(device, launch, y, gate_up, rows as i32, ffn as i32) }
}

/// Gradient of [`fwd`]; `dgate_up` may be `gate_up`.
///
/// Shapes: `dgate_up`, `gate_up` (rows, 2 * ffn); `dy` (rows, ffn).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn bwd<T: Float>(
    device: &Device,
    dgate_up: &Buffer<T>,
    dy: &Buffer<T>,
    gate_up: &Buffer<T>,
    rows: usize,
    ffn: usize,
) -> Result<()> {
    expect_len("geglu dgate_up", dgate_up, &[rows, 2, ffn])?;
    expect_len("geglu dy", dy, &[rows, ffn])?;
    expect_len("geglu gate_up", gate_up, &[rows, 2, ffn])?;
    let launch = chunk_launch("geglu", rows, ffn)?;
    // SAFETY: all lengths were checked above.
    unsafe { kernel::geglu_bwd(device, launch, dgate_up, dy, gate_up, rows as i32, ffn as i32) }
}
