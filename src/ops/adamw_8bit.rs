//! The optimizer step with moments in eight bits.

use anyhow::Result;

use super::{
    adamw::{Constants, Hyper, Tensors},
    element_launch, expect_chunk, expect_len,
};
use crate::{
    device::{Buffer, DType, Device, Float, kernels::adamw_8bit as kernel},
    rng::Draw,
};

/// Elements that share an exponent.
pub const BLOCK: usize = 256;

/// Up to here a first moment to nearest follows its gradients: a step of 1 - beta1 of it is more than half a code, which is 1/16
/// of a number at most.
const NEAREST_BETA1: f64 = 0.93;

/// Both moments: codes, and an exponent a block.
#[derive(Clone)]
pub struct Moments {
    /// (elements)
    pub m: Buffer<u8>,
    /// (elements)
    pub v: Buffer<u8>,
    /// (blocks)
    pub m_exponents: Buffer<u8>,
    /// (blocks)
    pub v_exponents: Buffer<u8>,
}

/// As [`adamw::step`](super::adamw::step) with moments in eight bits: v is rounded by chance, and m where beta1 is above 0.93.
/// The elements begin at element `first` of the arena, a multiple of [`BLOCK`]; `draw` is of the step.
///
/// # Errors
/// A buffer does not have its shape, `first` is not where a block begins, or a launch fails.
pub fn step<T: Float, G: Float>(
    device: &Device,
    tensors: &Tensors<T, G>,
    moments: &Moments,
    hyper: Hyper,
    draw: Draw,
    first: usize,
) -> Result<()> {
    tensors.check()?;
    let Tensors { params, low, grads, stats, progress, decay_elements } = *tensors;
    let Moments { m, v, m_exponents, v_exponents } = moments;
    let elements = params.len();
    for (what, codes) in [("m", m), ("v", v)] {
        expect_len(&format!("adamw_8bit {what}"), codes, &[elements])?;
    }
    for (what, exponents) in [("m", m_exponents), ("v", v_exponents)] {
        expect_len(&format!("adamw_8bit exponents of {what}"), exponents, &[elements.div_ceil(BLOCK)])?;
    }
    expect_chunk("adamw_8bit", first, BLOCK)?;
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
                m_exponents,
                v_exponents,
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
            DType::Bf16 => step!(Adamw8bitStepNarrow, &grads.cast()),
            _ => step!(Adamw8bitStep, &grads.cast()),
        }
    }
}
