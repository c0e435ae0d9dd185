//! The gated activation of the feed-forward layer.

use anyhow::Result;

use super::{chunk_launch, expect_len};
use crate::device::{Buffer, Device, Float, kernels::swiglu as kernel};

/// `y = silu(gate) * up`.
///
/// Shapes: `y` (rows, ffn); `gate_up` (rows, 2 * ffn), gate first.
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn fwd<T: Float>(device: &Device, y: &Buffer<T>, gate_up: &Buffer<T>, rows: usize, ffn: usize) -> Result<()> {
    expect_len("swiglu y", y, &[rows, ffn])?;
    expect_len("swiglu gate_up", gate_up, &[rows, 2, ffn])?;
    let launch = chunk_launch("swiglu", rows, ffn)?;
    // SAFETY: all lengths were checked above.
    unsafe { kernel::swiglu_fwd(device, launch, y, gate_up, rows as i32, ffn as i32) }
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
    expect_len("swiglu dgate_up", dgate_up, &[rows, 2, ffn])?;
    expect_len("swiglu dy", dy, &[rows, ffn])?;
    expect_len("swiglu gate_up", gate_up, &[rows, 2, ffn])?;
    let launch = chunk_launch("swiglu", rows, ffn)?;
    // SAFETY: all lengths were checked above.
    unsafe { kernel::swiglu_bwd(device, launch, dgate_up, dy, gate_up, rows as i32, ffn as i32) }
}
