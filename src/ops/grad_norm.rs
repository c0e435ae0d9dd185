//! Global gradient norm, the clip factor and the check for values that are not finite.

use anyhow::{Result, ensure};

use super::expect_len;
use crate::device::{Buffer, Device, Launch, kernels::grad_norm as kernel};

/// Elements one warp sums: fixed, so that the order of additions never depends on the device.
const SLICE_ELEMENTS: usize = 16 * 1024;
const SLICES_PER_CTA: usize = 4;
const FINISH_THREADS: usize = 256;

/// Entries of `stats`.
pub const STATS: usize = 3;

/// Elements of `partials` that [`run`] needs.
pub fn partials(elements: usize) -> usize {
    elements.div_ceil(SLICE_ELEMENTS)
}

/// Writes `stats` = norm of all gradients, clip factor `min(1, max_norm / (norm + 1e-6))` and 1 if the norm is finite,
/// else 0. Nothing is clipped if `max_norm` is 0 or less. The factor is applied by [`super::adamw::step`].
///
/// Shapes: `stats` (3); `partials` at least [`partials`]; `grads` (elements).
///
/// # Errors
/// A buffer does not have its shape, or a launch fails.
pub fn run(
    device: &Device,
    stats: &Buffer<f32>,
    partials: &Buffer<f64>,
    grads: &Buffer<f32>,
    elements: usize,
    max_norm: f32,
) -> Result<()> {
    expect_len("grad_norm stats", stats, &[STATS])?;
    expect_len("grad_norm grads", grads, &[elements])?;
    let slices = self::partials(elements);
    ensure!(partials.len() >= slices, "grad_norm partials: expected {slices} elements, found {}", partials.len());
    let partials = partials.slice(0..slices);
    let by_slice = Launch::linear(slices.div_ceil(SLICES_PER_CTA), SLICES_PER_CTA * 32);
    let finish = Launch::linear(1, FINISH_THREADS).with_smem(FINISH_THREADS / 32 * size_of::<f64>());
    // SAFETY: all lengths were checked above.
    unsafe {
        let elements = elements as i64;
        kernel::GradNormPartials {
            partials: &partials,
            grads,
            slice_elements: SLICE_ELEMENTS as i32,
            slices: slices as i32,
            elements,
        }
        .launch(device, by_slice)?;
        kernel::GradNormFinish { stats, partials: &partials, max_norm, slices: slices as i32 }.launch(device, finish)
    }
}
