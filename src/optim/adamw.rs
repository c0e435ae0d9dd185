//! AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) as PyTorch defines it.

use anyhow::Result;

use super::rule::{Rule, Sweep, sweeps};
use crate::{
    device::{Buffer, Device, Float},
    model::{AnyBuffer, ParamSet},
    ops::adamw::{self, Hyper},
};

/// First and second moments, and what counts the updates.
pub(super) struct AdamW {
    m: Buffer<f32>,
    v: Buffer<f32>,
    /// Each with its own count: see [`adamw::progress`].
    sweeps: Vec<(Sweep, Buffer<f64>)>,
    /// At a learning rate of 0.
    hyper: Hyper,
}

impl AdamW {
    /// Bytes of moments of one weight.
    pub(super) const BYTES: usize = 8;

    /// # Errors
    /// The device is out of memory.
    pub(super) fn new<T: Float>(params: &ParamSet<T>, hyper: Hyper) -> Result<Self> {
        let (device, elements) = (params.device(), params.grads().len());
        let counted = |sweep| Ok((sweep, device.upload(&adamw::progress(0, hyper.beta1, hyper.beta2))?));
        Ok(Self {
            m: device.zeros(elements)?,
            v: device.zeros(elements)?,
            sweeps: sweeps(params.groups()).into_iter().map(counted).collect::<Result<_>>()?,
            hyper,
        })
    }
}

impl<T: Float> Rule<T> for AdamW {
    fn step(&self, params: &ParamSet<T>, stats: &Buffer<f32>, lr: f64) -> Result<()> {
        for (Sweep { range, decay_elements, lr_scale }, progress) in &self.sweeps {
            let [m, v, grads] = [&self.m, &self.v, params.grads()].map(|all| all.slice(range.clone()));
            let (weights, low) = (params.weight(range), params.low(range));
            let hyper = Hyper { lr: lr * lr_scale, ..self.hyper };
            let (device, elements) = (params.device(), range.len());
            adamw::step(device, &weights, &low, &m, &v, &grads, stats, progress, hyper, *decay_elements, elements)?;
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(&'static str, AnyBuffer)> {
        vec![("m", AnyBuffer::from(&self.m)), ("v", AnyBuffer::from(&self.v))]
    }

    fn updates(&self, device: &Device) -> Result<u64> {
        let Some((_, progress)) = self.sweeps.first() else { return Ok(0) };
        Ok(device.download(progress)?[adamw::UPDATES] as u64)
    }

    fn resume(&self, device: &Device, updates: u64) -> Result<()> {
        let progress = adamw::progress(updates, self.hyper.beta1, self.hyper.beta2);
        self.sweeps.iter().try_for_each(|(_, at)| device.copy_in(at, &progress))
    }
}
