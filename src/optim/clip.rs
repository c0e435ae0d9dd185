//! The norm of the whole gradient, and the factor that clips it.

use anyhow::Result;

use crate::{
    device::{Buffer, Device},
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
    pub fn new(device: &Device, elements: usize, max_norm: f32) -> Result<Self> {
        let partials = device.alloc(grad_norm::partials(elements))?;
        Ok(Self { stats: device.zeros(grad_norm::STATS)?, partials, max_norm })
    }

    /// Bytes of its buffers.
    pub(super) fn bytes(elements: usize) -> usize {
        grad_norm::STATS * size_of::<f32>() + grad_norm::partials(elements) * size_of::<f64>()
    }

    /// Computes norm, clip factor and whether the norm is finite, on the device, where the optimizer reads them.
    ///
    /// # Errors
    /// The launch fails.
    pub fn run(&self, device: &Device, grads: &Buffer<f32>) -> Result<&Buffer<f32>> {
        grad_norm::run(device, &self.stats, &self.partials, grads, grads.len(), self.max_norm)?;
        Ok(&self.stats)
    }
}
