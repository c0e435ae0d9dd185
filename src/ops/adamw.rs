//! The optimizer step, and what the steps whose moments are narrower have in common with it.

use anyhow::{Result, ensure};

use super::{element_launch, expect_len, expect_low};
use crate::device::{Buffer, DType, Device, Float, Launch, kernels::adamw as kernel};

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

/// What a step reads and writes beside the moments.
pub struct Tensors<'a, T, G> {
    /// (elements)
    pub params: &'a Buffer<T>,
    /// (elements) the low bits of their f32 masters: see [`Float::split`]; of f32 weights (0).
    pub low: &'a Buffer<u16>,
    /// (elements)
    pub grads: &'a Buffer<G>,
    /// (3) from [`super::grad_norm::run`]: gradients are scaled by its clip factor, and if it says that they are not finite,
    /// nothing is written.
    pub stats: &'a Buffer<f32>,
    /// (5) counts the updates: see [`progress`].
    pub progress: &'a Buffer<f64>,
    /// Of the elements, from the first, that get weight decay.
    pub decay_elements: usize,
}

impl<T: Float, G: Float> Tensors<'_, T, G> {
    /// Checks all lengths but those of the moments.
    pub(super) fn check(&self) -> Result<()> {
        let (elements, decayed) = (self.params.len(), self.decay_elements);
        expect_low("adamw low", self.params, self.low)?;
        expect_len("adamw grads", self.grads, &[elements])?;
        expect_len("adamw stats", self.stats, &[3])?;
        ensure!(decayed <= elements, "adamw: decay of {decayed} of {elements} elements");
        expect_len("adamw progress", self.progress, &[PROGRESS])
    }

    /// Counts the update and computes what follows from its number.
    ///
    /// # Safety
    /// The lengths were checked.
    pub(super) unsafe fn advance(&self, device: &Device, Hyper { lr, beta1, beta2, .. }: Hyper) -> Result<()> {
        let Self { progress, stats, .. } = *self;
        // SAFETY: handed on.
        unsafe { kernel::AdamwAdvance { progress, stats, lr, beta1, beta2 }.launch(device, Launch::linear(1, 32)) }
    }
}

/// Constants of a step as the kernels take them.
pub(super) struct Constants {
    pub beta1: f32,
    pub one_minus_beta1: f32,
    pub beta2: f32,
    pub one_minus_beta2: f32,
    pub eps: f32,
    pub decay: f32,
}

impl From<Hyper> for Constants {
    fn from(Hyper { lr, beta1, beta2, eps, weight_decay }: Hyper) -> Self {
        Self {
            beta1: beta1 as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            eps: eps as f32,
            decay: (lr * weight_decay) as f32,
        }
    }
}

/// One AdamW step with PyTorch's semantics.
///
/// Shapes: `m`, `v` (elements).
///
/// # Errors
/// A buffer does not have its shape, or a launch fails.
pub fn step<T: Float, G: Float>(
    device: &Device,
    tensors: &Tensors<T, G>,
    [m, v]: [&Buffer<f32>; 2],
    hyper: Hyper,
) -> Result<()> {
    tensors.check()?;
    let Tensors { params, low, grads, stats, progress, decay_elements } = *tensors;
    let elements = params.len();
    expect_len("adamw m", m, &[elements])?;
    expect_len("adamw v", v, &[elements])?;
    let Constants { beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay } = hyper.into();
    let (decay_elements, at) = (decay_elements as i64, element_launch(elements));
    let elements = elements as i64;
    macro_rules! step {
        ($kernel:ident, $grads:expr) => {
            kernel::$kernel {
                params,
                low,
                m,
                v,
                grads: $grads,
                stats,
                progress,
                beta1,
                one_minus_beta1,
                beta2,
                one_minus_beta2,
                eps,
                decay,
                decay_elements,
                elements,
            }
            .launch(device, at)
        };
    }
    // SAFETY: all lengths were checked above, and the casts go to the type the buffer has.
    unsafe {
        tensors.advance(device, hyper)?;
        match G::DTYPE {
            DType::Bf16 => step!(AdamwStepNarrow, &grads.cast()),
            _ => step!(AdamwStep, &grads.cast()),
        }
    }
}
