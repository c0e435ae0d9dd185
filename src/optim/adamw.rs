//! AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) as PyTorch defines it.

use anyhow::Result;

use super::{
    boundary,
    moments::{Moments, State},
    rule::{Rule, Sweep, cut, sweeps},
};
use crate::{
    device::{Buffer, DType, Device, Float},
    model::{AnyBuffer, Group, ParamSet},
    ops::{
        adamw::{self, Hyper, PROGRESS, Tensors},
        gradient::Gradient,
    },
};

/// First and second moments, and what counts the updates.
pub(super) struct AdamW {
    /// Of the matrices and tables that the arena begins with.
    matrices: State,
    /// Of everything after them, in f32.
    vectors: State,
    /// Where these begin.
    boundary: usize,
    /// Each with its own count: see [`adamw::progress`].
    sweeps: Vec<(Sweep, Buffer<f64>)>,
    /// At a learning rate of 0.
    hyper: Hyper,
}

impl AdamW {
    /// Bytes of the whole state for weights in these groups.
    pub(super) fn bytes(moments: Moments, gradients: DType, groups: &[Group]) -> usize {
        let (sweeps, boundary) = launches(moments, gradients, groups);
        let elements = groups.last().map_or(0, |group| group.range.end);
        let counts = sweeps.len() * PROGRESS * size_of::<f64>();
        moments.bytes(boundary) + Moments::F32.bytes(elements - boundary) + counts
    }

    /// # Errors
    /// The device is out of memory, or a group of matrices begins within a block of moments.
    pub(super) fn new<T: Float>(params: &ParamSet<T>, hyper: Hyper, moments: Moments) -> Result<Self> {
        let (device, elements) = (params.device(), params.elements());
        let gradients = if params.narrow_grads().is_empty() { DType::F32 } else { DType::Bf16 };
        let (sweeps, boundary) = launches(moments, gradients, params.groups());
        let matrices = State::new(device, moments, boundary)?;
        sweeps
            .iter()
            .filter(|sweep| sweep.range.start < boundary)
            .try_for_each(|sweep| matrices.check(sweep.range.start))?;
        let counted = |sweep| Ok((sweep, device.upload(&adamw::progress(0, hyper.beta1, hyper.beta2))?));
        Ok(Self {
            matrices,
            vectors: State::new(device, Moments::F32, elements - boundary)?,
            boundary,
            sweeps: sweeps.into_iter().map(counted).collect::<Result<_>>()?,
            hyper,
        })
    }
}

/// The launches of a step, and where the moments of vectors begin: nowhere apart if all are alike.
fn launches(moments: Moments, gradients: DType, groups: &[Group]) -> (Vec<Sweep>, usize) {
    let elements = groups.last().map_or(0, |group| group.range.end);
    let (all, boundary) = (sweeps(groups), boundary(groups));
    match (moments, gradients) {
        (Moments::F32, DType::F32) => (all, elements),
        (Moments::F32, _) => (cut(all, boundary), elements),
        _ => (cut(all, boundary), boundary),
    }
}

impl<T: Float> Rule<T> for AdamW {
    fn step(&self, params: &ParamSet<T>, stats: &Buffer<f32>, lr: f64) -> Result<()> {
        for (Sweep { range, decay_elements, lr_scale }, progress) in &self.sweeps {
            let (weights, low) = (params.weight(range), params.low(range));
            let (decay_elements, hyper) = (*decay_elements, Hyper { lr: lr * lr_scale, ..self.hyper });
            let (state, start) =
                if range.start < self.boundary { (&self.matrices, 0) } else { (&self.vectors, self.boundary) };
            let (device, draw, place) = (params.device(), params.draw(), (range, start));
            match params.gradient(range) {
                Gradient::F32(grads) => {
                    let tensors =
                        Tensors { params: &weights, low: &low, grads: &grads, stats, progress, decay_elements };
                    state.step(device, &tensors, hyper, draw, place)?;
                }
                Gradient::Bf16(narrow) => {
                    let grads = &narrow.buffer;
                    let tensors = Tensors { params: &weights, low: &low, grads, stats, progress, decay_elements };
                    state.step(device, &tensors, hyper, draw, place)?;
                }
            }
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(&'static str, AnyBuffer)> {
        let mut tensors = self.matrices.tensors(false);
        if !matches!(self.matrices, State::F32(_)) {
            tensors.extend(self.vectors.tensors(true));
        }
        tensors
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
