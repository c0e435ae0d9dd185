//! GELU in its tanh form, without a gate.

use anyhow::Result;

use super::{element_launch, expect_len};
use crate::device::{Buffer, Device, Float, kernels::gelu as kernel};

/// `y = gelu(x) = x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³)))`; `y` may be `x`.
///
/// Shapes: `y`, `x` (elements).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn fwd<T: Float>(device: &Device, y: &Buffer<T>, x: &Buffer<T>, elements: usize) -> Result<()> {
    expect_len("gelu y", y, &[elements])?;
    expect_len("gelu x", x, &[elements])?;
    // SAFETY: all lengths were checked above.
    unsafe { kernel::GeluFwd { y, x, elements: elements as i64 }.launch(device, element_launch(elements)) }
}

/// Gradient of [`fwd`], and its `y` again with the same bits, which the gradient of the next matrix reads. `dx` may be `x`,
/// `y` may be `dy`.
///
/// Shapes: `dx`, `y`, `dy`, `x` (elements).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn bwd<T: Float>(
    device: &Device,
    dx: &Buffer<T>,
    y: &Buffer<T>,
    dy: &Buffer<T>,
    x: &Buffer<T>,
    elements: usize,
) -> Result<()> {
    for (what, buffer) in [("gelu dx", dx), ("gelu y", y), ("gelu dy", dy), ("gelu x", x)] {
        expect_len(what, buffer, &[elements])?;
    }
    // SAFETY: all lengths were checked above.
    unsafe { kernel::GeluBwd { dx, y, dy, x, elements: elements as i64 }.launch(device, element_launch(elements)) }
}
