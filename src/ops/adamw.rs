//! The optimizer step.

use anyhow::{Result, ensure};

use super::{element_launch, expect_len, expect_low};
use crate::device::{Buffer, Device, Float, Launch, kernels::adamw as kernel};

/// Entries of what is kept from update to update: see [`progress`].
pub const PROGRESS: usize = 5;
/// Which of them counts the updates.
pub const UPDATES: usize = 2;

/// What one step of AdamW needs to know besides the tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Step size.
    pub lr: f64,
    /// Decay of the first moment, 0 to 1.
    pub beta1: f64,
    /// Decay of the second moment, 0 to 1.
    pub beta2: f64,
    /// Added to the second moment's root.
    pub eps: f64,
    /// Share of a weight that a step of size 1 takes off.
    pub weight_decay: f64,
}

/// What the device keeps after so many updates: beta1^t and beta2^t, multiplied up as the device does it so that a resumed run
/// has the same bits, t, and room for the step size and the correction of the next.
pub fn progress(updates: u64, beta1: f64, beta2: f64) -> [f64; PROGRESS] {
    let power = |beta: f64| (0..updates).fold(1.0, |power, _| power * beta);
    [power(beta1), power(beta2), updates as f64, 0.0, 0.0]
}

/// One AdamW step with PyTorch's semantics; the first `decay_elements` elements get weight decay.
///
/// The f32 masters are `params` with `low`: see [`Float::split`]. f32 weights have no low bits.
/// `stats` comes from [`super::grad_norm::run`]: the gradients are scaled by its clip factor, and if it says that they
/// are not finite, nothing is written. `progress` counts the updates that are.
///
/// Shapes: `params`, `m`, `v`, `grads` (elements); `low` (elements), of f32 weights (0); `stats` (3); `progress` (5).
///
/// # Errors
/// A buffer does not have its shape, or a launch fails.
#[allow(clippy::too_many_arguments)]
pub fn step<T: Float>(
    device: &Device,
    params: &Buffer<T>,
    low: &Buffer<u16>,
    m: &Buffer<f32>,
    v: &Buffer<f32>,
    grads: &Buffer<f32>,
    stats: &Buffer<f32>,
    progress: &Buffer<f64>,
    hyper: Hyper,
    decay_elements: usize,
    elements: usize,
) -> Result<()> {
    expect_len("adamw params", params, &[elements])?;
    expect_low("adamw low", params, low)?;
    for (what, buffer) in [("adamw m", m), ("adamw v", v), ("adamw grads", grads)] {
        expect_len(what, buffer, &[elements])?;
    }
    expect_len("adamw stats", stats, &[3])?;
    ensure!(decay_elements <= elements, "adamw: decay of {decay_elements} of {elements} elements");
    expect_len("adamw progress", progress, &[PROGRESS])?;
    let Hyper { lr, beta1, beta2, eps, weight_decay } = hyper;
    // SAFETY: all lengths were checked above.
    unsafe {
        kernel::AdamwAdvance { progress, stats, lr, beta1, beta2 }.launch(device, Launch::linear(1, 32))?;
        kernel::AdamwStep {
            params,
            low,
            m,
            v,
            grads,
            stats,
            progress,
            beta1: beta1 as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            eps: eps as f32,
            decay: (lr * weight_decay) as f32,
            decay_elements: decay_elements as i64,
            elements: elements as i64,
        }
        .launch(device, element_launch(elements))
    }
}
