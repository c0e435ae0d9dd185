//! One step of RMSprop.

use anyhow::{Result, ensure};

use super::{element_launch, expect_len, expect_low};
use crate::device::{Buffer, Device, Float, kernels::rmsprop as kernel};

/// What one step of RMSprop needs to know besides the tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyper {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the mean of squares.
    pub alpha: f64,
    /// Added to its root.
    pub eps: f64,
    /// Times the weight, added to its gradient.
    pub weight_decay: f64,
}

/// What a step reads and writes.
pub struct Tensors<'a, T> {
    /// (elements)
    pub params: &'a Buffer<T>,
    /// (elements) the low bits of their f32 masters: see [`Float::split`]; of f32 weights (0).
    pub low: &'a Buffer<u16>,
    /// (elements)
    pub square_avg: &'a Buffer<f32>,
    /// (elements)
    pub grads: &'a Buffer<f32>,
    /// (3) from [`super::grad_norm::run`].
    pub stats: &'a Buffer<f32>,
    /// (1) counts the updates.
    pub updates: &'a Buffer<f64>,
}

/// One step of RMSprop with PyTorch's semantics; the first `decay_elements` elements get weight decay, as a part of their
/// gradient.
///
/// The gradients are scaled by the clip factor in `stats`, and if that says that they are not finite, nothing is written.
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn step<T: Float>(device: &Device, tensors: &Tensors<T>, hyper: Hyper, decay_elements: usize) -> Result<()> {
    let Tensors { params, low, square_avg, grads, stats, updates } = *tensors;
    let elements = params.len();
    expect_low("rmsprop low", params, low)?;
    for (what, buffer) in [("square_avg", square_avg), ("grads", grads)] {
        expect_len(&format!("rmsprop {what}"), buffer, &[elements])?;
    }
    expect_len("rmsprop stats", stats, &[3])?;
    expect_len("rmsprop updates", updates, &[1])?;
    ensure!(decay_elements <= elements, "rmsprop: decay of {decay_elements} of {elements} elements");
    let Hyper { lr, alpha, eps, weight_decay } = hyper;
    // SAFETY: all lengths were checked above.
    unsafe {
        kernel::RmspropStep {
            params,
            low,
            square_avg,
            updates,
            grads,
            stats,
            lr: lr as f32,
            alpha: alpha as f32,
            one_minus_alpha: (1.0 - alpha) as f32,
            eps: eps as f32,
            decay: weight_decay as f32,
            decay_elements: decay_elements as i64,
            elements: elements as i64,
        }
        .launch(device, element_launch(elements))
    }
}
