//! The residual stream's addition.

use anyhow::Result;

use super::{element_launch, expect_len};
use crate::device::{Buffer, Device, Float, kernels::residual as kernel};

/// `y = a + b`; `y` may be `a` or `b`.
///
/// Shapes: `y`, `a`, `b` (elements).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn add<T: Float>(device: &Device, y: &Buffer<T>, a: &Buffer<T>, b: &Buffer<T>, elements: usize) -> Result<()> {
    for (what, buffer) in [("residual y", y), ("residual a", a), ("residual b", b)] {
        expect_len(what, buffer, &[elements])?;
    }
    // SAFETY: all lengths were checked above.
    unsafe { kernel::ResidualAdd { y, a, b, elements: elements as i64 }.launch(device, element_launch(elements)) }
}
