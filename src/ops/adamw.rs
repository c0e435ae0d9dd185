//! The optimizer step.

use anyhow::{Result, ensure};

use super::{element_launch, expect_len};
use crate::device::{Buffer, Device, Float, kernels::adamw as kernel};

/// What one step of AdamW needs to know besides the tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Number of this update, counted from 1: the exponent of the bias corrections.
    pub step: u64,
}

/// One AdamW step with PyTorch's semantics; the first `decay_elements` elements get weight decay.
///
/// `master` holds the weights in f32 and `params` becomes their rounded copy; for `T = f32` both may be one buffer.
/// `stats` comes from [`super::grad_norm::run`]: the gradients are scaled by its clip factor, and if it says that they
/// are not finite, nothing is written.
///
/// Shapes: `params`, `master`, `m`, `v`, `grads` (elements); `stats` (3).
///
/// # Errors
/// A buffer does not have its shape, `step` is 0, or the launch fails.
#[allow(clippy::too_many_arguments)]
pub fn step<T: Float>(
    device: &Device,
    params: &Buffer<T>,
    master: &Buffer<f32>,
    m: &Buffer<f32>,
    v: &Buffer<f32>,
    grads: &Buffer<f32>,
    stats: &Buffer<f32>,
    hyper: Hyper,
    decay_elements: usize,
    elements: usize,
) -> Result<()> {
    expect_len("adamw params", params, &[elements])?;
    for (what, buffer) in [("adamw master", master), ("adamw m", m), ("adamw v", v), ("adamw grads", grads)] {
        expect_len(what, buffer, &[elements])?;
    }
    expect_len("adamw stats", stats, &[3])?;
    ensure!(decay_elements <= elements, "adamw: decay of {decay_elements} of {elements} elements");
    ensure!(hyper.step >= 1, "adamw: steps count from 1, found {}", hyper.step);
    let Hyper { lr, beta1, beta2, eps, weight_decay, step } = hyper;
    let step_size = lr / (1.0 - beta1.powf(step as f64));
    let correction = 1.0 / (1.0 - beta2.powf(step as f64)).sqrt();
    // SAFETY: all lengths were checked above.
    unsafe {
        kernel::adamw_step(
            device,
            element_launch(elements),
            params,
            master,
            m,
            v,
            grads,
            stats,
            step_size as f32,
            correction as f32,
            beta1 as f32,
            (1.0 - beta1) as f32,
            beta2 as f32,
            (1.0 - beta2) as f32,
            eps as f32,
            (lr * weight_decay) as f32,
            decay_elements as i64,
            elements as i64,
        )
    }
}
