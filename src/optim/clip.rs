//! The norm of the whole gradient, and the factor that clips it.

use anyhow::Result;

use crate::{
    device::{Buffer, Float},
    model::ParamSet,
    ops::grad_norm,
};

/// Buffers of the norm. `max_norm` 0 clips nothing.
pub struct GradNorm {
    stats: Buffer<f32>,
    partials: Buffer<f64>,
    max_norm: f32,
}

impl GradNorm {
    /// # Errors
    /// The device is out of memory.
    pub fn new<T: Float>(params: &ParamSet<T>, max_norm: f32) -> Result<Self> {
        let device = params.device();
        let partials = device.alloc(Self::partials(params.narrow_grads().len(), params.elements()))?;
        Ok(Self { stats: device.zeros(grad_norm::STATS)?, partials, max_norm })
    }

    /// Bytes of its buffers for gradients of which the first `narrow` are bf16.
    pub(super) fn bytes(narrow: usize, elements: usize) -> usize {
        grad_norm::STATS * size_of::<f32>() + Self::partials(narrow, elements) * size_of::<f64>()
    }

    fn partials(narrow: usize, elements: usize) -> usize {
        grad_norm::partials(narrow) + grad_norm::partials(elements - narrow)
    }

    /// Computes norm, clip factor and whether the norm is finite, on the device, where the optimizer reads them.
    ///
    /// # Errors
    /// The launch fails.
    pub fn run<T: Float>(&self, params: &ParamSet<T>) -> Result<&Buffer<f32>> {
        let both = (params.narrow_grads(), params.grads());
        grad_norm::run_both(params.device(), &self.stats, &self.partials, both, self.max_norm)?;
        Ok(&self.stats)
    }
}
