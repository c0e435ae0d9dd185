//! A running mean of trained weights: an exponential moving average, as Polyak and Ruppert's averages are approximated.
//!
//! `mean = decay mean + (1 - decay) weights` after every step, from the starting weights on, in f32.

use anyhow::Result;

use crate::{
    device::{Buffer, Device, Float},
    model::{AnyBuffer, ParamSet, pieces},
    ops::lerp,
};

/// Elements of the mean that are in host memory at a time.
const PIECE: usize = 4 << 20;

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
    /// The launch fails.
    pub fn start<T: Float>(&self, params: &ParamSet<T>) -> Result<()> {
        self.approach(params, 1.0)
    }

    /// Takes in the weights. Waits for nothing.
    ///
    /// # Errors
    /// The launch fails.
    pub fn step<T: Float>(&self, params: &ParamSet<T>) -> Result<()> {
        self.approach(params, (1.0 - self.decay) as f32)
    }

    fn approach<T: Float>(&self, params: &ParamSet<T>, way: f32) -> Result<()> {
        let all = 0..self.mean.len();
        lerp::master(&self.device, &self.mean, &params.weight(&all), &params.low(&all), way, all.end)
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
        for piece in pieces(0..self.mean.len(), PIECE) {
            let mean = self.device.download(&self.mean.slice(piece.clone()))?;
            params.fill(&piece, &mean)?;
        }
        Ok(())
    }
}
