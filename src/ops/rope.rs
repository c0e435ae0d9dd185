//! Rotary position embedding.

use anyhow::{Result, ensure};

use super::{chunk_launch, expect_len};
use crate::device::{Buffer, Device, Float, kernels::rope as kernel};

/// Rotates the queries and keys of `qkv` in place by their positions, or back if `inverse` (the backward pass).
///
/// Pairs are `(d, d + head_dim / 2)`, as Hugging Face's `rotate_half` has them. Positions must be rows of `cos`: they
/// are on the device and are not checked here.
///
/// Shapes: `qkv` (tokens, heads + 2 * kv_heads, head_dim); `position` (tokens); `cos`, `sin` (positions, head_dim / 2).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
#[allow(clippy::too_many_arguments)]
pub fn apply<T: Float>(
    device: &Device,
    qkv: &Buffer<T>,
    position: &Buffer<i32>,
    cos: &Buffer<f32>,
    sin: &Buffer<f32>,
    inverse: bool,
    tokens: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
) -> Result<()> {
    ensure!(head_dim >= 2 && head_dim.is_multiple_of(2), "rope: head_dim {head_dim} is not a positive even number");
    let half = head_dim / 2;
    expect_len("rope qkv", qkv, &[tokens, heads + 2 * kv_heads, head_dim])?;
    expect_len("rope position", position, &[tokens])?;
    expect_len("rope cos", cos, &[cos.len() / half, half])?;
    expect_len("rope sin", sin, &[cos.len() / half, half])?;
    let launch = chunk_launch("rope", tokens * (heads + kv_heads), half)?;
    let inverse = i32::from(inverse);
    let (tokens, heads, kv_heads, head_dim) = (tokens as i32, heads as i32, kv_heads as i32, head_dim as i32);
    // SAFETY: all lengths were checked above; positions are in range by this function's contract.
    unsafe { kernel::rope_apply(device, launch, qkv, position, cos, sin, inverse, tokens, heads, kv_heads, head_dim) }
}
