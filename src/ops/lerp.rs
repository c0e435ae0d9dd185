//! Part of the way from one set of numbers to another.

use anyhow::Result;

use half::bf16;

use super::{element_launch, expect_len, expect_low};
use crate::device::{Buffer, DType, Device, Float, kernels::lerp as kernel};

/// `y = y + weight (x - y)` of weights; exact for weights 0 and 1. bf16 results are rounded as weights are: see [`Float::split`].
///
/// Shapes: `y`, `x` (elements).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn lerp<T: Float>(device: &Device, y: &Buffer<T>, x: &Buffer<T>, weight: f32, elements: usize) -> Result<()> {
    for (what, buffer) in [("lerp y", y), ("lerp x", x)] {
        expect_len(what, buffer, &[elements])?;
    }
    // SAFETY: both lengths were checked above.
    unsafe { kernel::Lerp { y, x, weight, elements: elements as i64 }.launch(device, element_launch(elements)) }
}

/// The same for `y` in f32 and the f32 masters of weights: `x` with `low`, of f32 weights without.
///
/// Shapes: `y`, `x` (elements); `low` (elements), of f32 weights (0).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn master<T: Float>(
    device: &Device,
    y: &Buffer<f32>,
    x: &Buffer<T>,
    low: &Buffer<u16>,
    weight: f32,
    elements: usize,
) -> Result<()> {
    expect_low("lerp low", x, low)?;
    if T::DTYPE == DType::F32 {
        return lerp(device, y, &x.cast(), weight, elements);
    }
    expect_len("lerp y", y, &[elements])?;
    expect_len("lerp x", x, &[elements])?;
    let x = &x.cast::<bf16>();
    // SAFETY: all lengths were checked above.
    unsafe {
        kernel::LerpMasterBf16 { y, x, low, weight, elements: elements as i64 }.launch(device, element_launch(elements))
    }
}
