//! The optimizer step with moments in bf16.

use anyhow::Result;
use half::bf16;

use super::{
    adamw::{Constants, Hyper, Tensors},
    element_launch, expect_chunk, expect_len,
};
use crate::{
    device::{Buffer, DType, Device, Float, kernels::adamw_bf16 as kernel},
    rng::Draw,
};

/// Up to here a first moment to nearest follows its gradients: a step of 1 - beta1 of it is more than half a unit, which is 2^-9
/// of a number at most.
const NEAREST_BETA1: f64 = 0.99;

/// As [`adamw::step`](super::adamw::step) with moments in bf16: v is rounded by chance, and m where beta1 is above 0.99. The
/// elements begin at element `first` of the arena, a multiple of 8; `draw` is of the step.
///
/// Shapes: `m`, `v` (elements).
///
/// # Errors
/// A buffer does not have its shape, `first` is no multiple of 8, or a launch fails.
pub fn step<T: Float, G: Float>(
    device: &Device,
    tensors: &Tensors<T, G>,
    [m, v]: [&Buffer<bf16>; 2],
    hyper: Hyper,
    draw: Draw,
    first: usize,
) -> Result<()> {
    tensors.check()?;
    let Tensors { params, low, grads, stats, progress, decay_elements } = *tensors;
    let elements = params.len();
    expect_len("adamw_bf16 m", m, &[elements])?;
    expect_len("adamw_bf16 v", v, &[elements])?;
    expect_chunk("adamw_bf16", first, 8)?;
    let Constants { beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay } = hyper.into();
    let (at, random_m) = (element_launch(elements), i32::from(hyper.beta1 > NEAREST_BETA1));
    let [decay_elements, elements, first] = [decay_elements, elements, first].map(|x| x as i64);
    let Draw { seed, number } = draw;
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
                seed,
                number,
                first,
                random_m,
            }
            .launch(device, at)
        };
    }
    // SAFETY: all lengths were checked above, and the casts go to the type the buffer has.
    unsafe {
        tensors.advance(device, hyper)?;
        match G::DTYPE {
            DType::Bf16 => step!(AdamwBf16StepNarrow, &grads.cast()),
            _ => step!(AdamwBf16Step, &grads.cast()),
        }
    }
}
