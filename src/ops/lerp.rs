//! Part of the way from one set of numbers to another.

use anyhow::Result;

use super::{element_launch, expect_len};
use crate::device::{Buffer, Device, Float, kernels::lerp as kernel};

/// `y = y + weight (x - y)`; exact for weights 0 and 1.
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
