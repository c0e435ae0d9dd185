//! A running mean of trained weights: an exponential moving average, as Polyak and Ruppert's averages are approximated.
//!
//! `mean = decay mean + (1 - decay) weights` after every step, from the starting weights on, in f32.

use anyhow::Result;

use super::{Optimizer, PIECE};
use crate::{
    device::{Buffer, Device, Float},
    model::{AnyBuffer, ParamSet, pieces},
    ops::lerp,
};

/// Bytes of a weight's mean.
pub const BYTES: usize = size_of::<f32>();

/// The mean of one model's weights.
pub struct Ema {
    device: Device,
    mean: Buffer<f32>,
    decay: f64,
}

impl Ema {
    /// A mean that is undefined until it is [started](Self::start) or loaded.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn allocate(device: &Device, elements: usize, decay: f64) -> Result<Self> {
        Ok(Self { device: device.clone(), mean: device.alloc(elements)?, decay })
    }

    /// The mean is what the weights are.
    ///
    /// # Errors
    /// The copy fails.
    pub fn start<T: Float>(&self, optimizer: &Optimizer<T>) -> Result<()> {
        self.device.copy(&self.mean, optimizer.master())
    }

    /// Takes in the weights. Waits for nothing.
    ///
    /// # Errors
    /// The launch fails.
    pub fn step<T: Float>(&self, optimizer: &Optimizer<T>) -> Result<()> {
        lerp::lerp(&self.device, &self.mean, optimizer.master(), (1.0 - self.decay) as f32, self.mean.len())
    }

    /// What has to be saved: its name and values.
    pub fn tensor(&self) -> (&'static str, AnyBuffer) {
        ("ema", AnyBuffer::from(&self.mean))
    }

    /// Puts the mean in the place of the weights.
    ///
    /// # Errors
    /// A copy fails.
    pub fn replace<T: Float>(&self, params: &ParamSet<T>) -> Result<()> {
        let values = params.values();
        for piece in pieces(0..values.len(), PIECE) {
            let mean = self.device.download(&self.mean.slice(piece.clone()))?;
            let narrow: Vec<T> = mean.into_iter().map(T::from_f32).collect();
            self.device.copy_in(&values.slice(piece), &narrow)?;
        }
        Ok(())
    }
}
