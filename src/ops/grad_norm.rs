//! Global gradient norm, the clip factor and the check for values that are not finite.

use anyhow::{Result, ensure};

use super::expect_len;
use crate::device::{Buffer, Device, Float, Launch, kernels::grad_norm as kernel};

/// Elements one warp sums: fixed, so that the order of additions never depends on the device.
const SLICE_ELEMENTS: usize = 16 * 1024;
const SLICES_PER_CTA: usize = 4;
const FINISH_THREADS: usize = 256;

/// Entries of `stats`.
pub const STATS: usize = 3;

/// Elements of `partials` that gradients of so many elements need; those of several buffers add up.
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
pub fn run<G: Float>(
    device: &Device,
    stats: &Buffer<f32>,
    partials: &Buffer<f64>,
    grads: &Buffer<G>,
    elements: usize,
    max_norm: f32,
) -> Result<()> {
    expect_len("grad_norm grads", grads, &[elements])?;
    let slices = sums(device, partials, grads)?;
    finish(device, stats, &partials.slice(0..slices), max_norm)
}

/// The same for gradients of which a part is bf16.
///
/// Shapes: `stats` (3); `partials` as much as both need.
///
/// # Errors
/// As [`run`].
pub fn run_both<G: Float>(
    device: &Device,
    stats: &Buffer<f32>,
    partials: &Buffer<f64>,
    (narrow, wide): (&Buffer<G>, &Buffer<f32>),
    max_norm: f32,
) -> Result<()> {
    let slices = sums(device, partials, narrow)?;
    let more = sums(device, &partials.slice(slices..partials.len()), wide)?;
    finish(device, stats, &partials.slice(0..slices + more), max_norm)
}

/// Sums of squares by slice, at the start of `partials`; how many.
fn sums<G: Float>(device: &Device, partials: &Buffer<f64>, grads: &Buffer<G>) -> Result<usize> {
    let elements = grads.len();
    let slices = self::partials(elements);
    ensure!(partials.len() >= slices, "grad_norm partials: expected {slices} elements, found {}", partials.len());
    if slices == 0 {
        return Ok(0);
    }
    let by_slice = Launch::linear(slices.div_ceil(SLICES_PER_CTA), SLICES_PER_CTA * 32);
    let partials = &partials.slice(0..slices);
    let (slice_elements, slices, elements) = (SLICE_ELEMENTS as i32, slices as i32, elements as i64);
    // SAFETY: all lengths were checked above.
    unsafe {
        kernel::GradNormPartials { partials, grads, slice_elements, slices, elements }.launch(device, by_slice)?;
    }
    Ok(partials.len())
}

fn finish(device: &Device, stats: &Buffer<f32>, partials: &Buffer<f64>, max_norm: f32) -> Result<()> {
    expect_len("grad_norm stats", stats, &[STATS])?;
    let at = Launch::linear(1, FINISH_THREADS).with_smem(FINISH_THREADS / 32 * size_of::<f64>());
    // SAFETY: the lengths are those that the kernel is told.
    unsafe { kernel::GradNormFinish { stats, partials, max_norm, slices: partials.len() as i32 }.launch(device, at) }
}
