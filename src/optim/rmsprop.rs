//! RMSprop (Tieleman & Hinton 2012) as PyTorch defines it, neither centred nor with momentum.

use anyhow::{Result, ensure};

use super::rule::{Rule, Sweep, sweeps};
use crate::{
    device::{Buffer, Device, Float},
    model::{AnyBuffer, Group, ParamSet},
    ops::rmsprop::{self, Hyper},
};

/// The running mean of squared gradients, and what counts the updates.
pub(super) struct RmsProp {
    square_avg: Buffer<f32>,
    /// Each with its own count.
    sweeps: Vec<(Sweep, Buffer<f64>)>,
    /// At a learning rate of 0.
    hyper: Hyper,
}

impl RmsProp {
    /// Bytes of the whole state for weights in these groups.
    pub(super) fn bytes(groups: &[Group]) -> usize {
        let elements = groups.last().map_or(0, |group| group.range.end);
        elements * size_of::<f32>() + sweeps(groups).len() * size_of::<f64>()
    }

    /// # Errors
    /// The device is out of memory.
    pub(super) fn new<T: Float>(params: &ParamSet<T>, hyper: Hyper) -> Result<Self> {
        ensure!(params.narrow_grads().is_empty(), "rmsprop: gradients in bf16 are for adamw");
        let device = params.device();
        let counted = |sweep| Ok((sweep, device.zeros(1)?));
        Ok(Self {
            square_avg: device.zeros(params.elements())?,
            sweeps: sweeps(params.groups()).into_iter().map(counted).collect::<Result<_>>()?,
            hyper,
        })
    }
}

impl<T: Float> Rule<T> for RmsProp {
    fn step(&self, params: &ParamSet<T>, stats: &Buffer<f32>, lr: f64) -> Result<()> {
        for (Sweep { range, decay_elements, lr_scale }, updates) in &self.sweeps {
            let [square_avg, grads] = [&self.square_avg, params.grads()].map(|all| all.slice(range.clone()));
            let tensors = rmsprop::Tensors {
                params: &params.weight(range),
                low: &params.low(range),
                square_avg: &square_avg,
                grads: &grads,
                stats,
                updates,
            };
            let hyper = Hyper { lr: lr * lr_scale, ..self.hyper };
            rmsprop::step(params.device(), &tensors, hyper, *decay_elements)?;
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(&'static str, AnyBuffer)> {
        vec![("square_avg", AnyBuffer::from(&self.square_avg))]
    }

    fn updates(&self, device: &Device) -> Result<u64> {
        let Some((_, updates)) = self.sweeps.first() else { return Ok(0) };
        Ok(device.download(updates)?[0] as u64)
    }

    fn resume(&self, device: &Device, updates: u64) -> Result<()> {
        self.sweeps.iter().try_for_each(|(_, at)| device.copy_in(at, &[updates as f64]))
    }
}
