//! An L2 cache that holds nothing of the run to come, and nothing that has yet to be written back while it runs.

use anyhow::Result;

use crate::{
    device::{Buffer, Device},
    ops::grad_norm,
};

/// More than the L2 cache of any GPU.
const BYTES: usize = 256 << 20;

/// Numbers that are read over: filling them instead would leave up to a cache full of lines to write back.
pub struct Flush {
    numbers: Buffer<f32>,
    partials: Buffer<f64>,
    stats: Buffer<f32>,
}

impl Flush {
    pub fn new(device: &Device) -> Result<Self> {
        let numbers = device.zeros(BYTES / size_of::<f32>())?;
        let partials = device.alloc(grad_norm::partials(numbers.len()))?;
        Ok(Self { numbers, partials, stats: device.alloc(grad_norm::STATS)? })
    }

    pub fn run(&self, device: &Device) -> Result<()> {
        grad_norm::run(device, &self.stats, &self.partials, &self.numbers, self.numbers.len(), 0.0)
    }
}
