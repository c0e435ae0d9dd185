//! AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) as PyTorch defines it.

use std::ops::Range;

use anyhow::Result;

use super::{
    boundary,
    moments::{Moments, State},
    rule::{Rule, Sweep, cut, cut_at_every, sweeps},
    streamed::{Streamed, WINDOWS, window_elements},
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
    matrices: Placed,
    /// Of everything after them, in f32.
    vectors: State,
    /// Where these begin.
    boundary: usize,
    /// Whether they are apart in a checkpoint.
    has_vectors: bool,
    /// Each with its own count: see [`adamw::progress`].
    sweeps: Vec<(Sweep, Buffer<f64>)>,
    /// At a learning rate of 0.
    hyper: Hyper,
}

/// Moments where they are kept.
enum Placed {
    OnDevice(State),
    OnHost(Streamed),
}

impl AdamW {
    /// Bytes of the whole state on the device for weights in these groups.
    pub(super) fn bytes(moments: Moments, windows: Option<usize>, gradients: DType, groups: &[Group]) -> usize {
        let (sweeps, boundary) = launches(moments, windows, gradients, groups);
        let elements = groups.last().map_or(0, |group| group.range.end);
        let counts = sweeps.len() * PROGRESS * size_of::<f64>();
        let matrices = match windows {
            Some(bytes) => WINDOWS * moments.bytes(window_elements(moments, bytes).min(boundary)),
            None => moments.bytes(boundary),
        };
        matrices + Moments::F32.bytes(elements - boundary) + counts
    }

    /// Bytes of moments in the host's memory.
    pub(super) fn host_bytes(moments: Moments, groups: &[Group]) -> usize {
        moments.bytes(launches(moments, None, DType::F32, groups).1)
    }

    /// # Errors
    /// The device or the host is out of memory, or a group of matrices begins within a block of moments.
    pub(super) fn new<T: Float>(
        params: &ParamSet<T>,
        hyper: Hyper,
        moments: Moments,
        windows: Option<usize>,
    ) -> Result<Self> {
        let (device, elements) = (params.device(), params.elements());
        let gradients = if params.narrow_grads().is_empty() { DType::F32 } else { DType::Bf16 };
        let (sweeps, boundary) = launches(moments, windows, gradients, params.groups());
        let of_matrices = sweeps.iter().map(|sweep| sweep.range.start).filter(|&start| start < boundary);
        of_matrices.into_iter().try_for_each(|start| moments.check(start))?;
        let matrices = match windows {
            Some(bytes) => Placed::OnHost(Streamed::new(device, moments, boundary, window_elements(moments, bytes))?),
            None => Placed::OnDevice(State::new(device, moments, boundary)?),
        };
        let counted = |sweep| Ok((sweep, device.upload(&adamw::progress(0, hyper.beta1, hyper.beta2))?));
        Ok(Self {
            matrices,
            vectors: State::new(device, Moments::F32, elements - boundary)?,
            boundary,
            has_vectors: moments != Moments::F32,
            sweeps: sweeps.into_iter().map(counted).collect::<Result<_>>()?,
            hyper,
        })
    }

    /// A launch, with the moments where they are.
    fn sweep<T: Float, G: Float>(
        &self,
        params: &ParamSet<T>,
        tensors: &Tensors<T, G>,
        hyper: Hyper,
        range: &Range<usize>,
    ) -> Result<()> {
        let (device, draw) = (params.device(), params.draw());
        match &self.matrices {
            _ if range.start >= self.boundary => {
                self.vectors.step(device, tensors, hyper, draw, (range, self.boundary))
            }
            Placed::OnDevice(state) => state.step(device, tensors, hyper, draw, (range, 0)),
            Placed::OnHost(streamed) => streamed.step(tensors, hyper, draw, (range, 0)),
        }
    }
}

/// The launches of a step, and where the moments of vectors begin: nowhere apart if all are alike. Those of moments in the
/// host's memory are cut to what a window holds.
fn launches(moments: Moments, windows: Option<usize>, gradients: DType, groups: &[Group]) -> (Vec<Sweep>, usize) {
    let elements = groups.last().map_or(0, |group| group.range.end);
    let (all, boundary) = (sweeps(groups), boundary(groups));
    let (all, boundary) = match (moments, gradients) {
        (Moments::F32, DType::F32) => (all, elements),
        (Moments::F32, _) => (cut(all, boundary), elements),
        _ => (cut(all, boundary), boundary),
    };
    match windows {
        Some(bytes) => (cut_at_every(all, window_elements(moments, bytes), boundary), boundary),
        None => (all, boundary),
    }
}

impl<T: Float> Rule<T> for AdamW {
    fn step(&self, params: &ParamSet<T>, stats: &Buffer<f32>, lr: f64) -> Result<()> {
        if let Placed::OnHost(streamed) = &self.matrices {
            streamed.begin()?;
        }
        for (Sweep { range, decay_elements, lr_scale }, progress) in &self.sweeps {
            let (weights, low) = (params.weight(range), params.low(range));
            let (decay_elements, hyper) = (*decay_elements, Hyper { lr: lr * lr_scale, ..self.hyper });
            match params.gradient(range) {
                Gradient::F32(grads) => {
                    let tensors =
                        Tensors { params: &weights, low: &low, grads: &grads, stats, progress, decay_elements };
                    self.sweep(params, &tensors, hyper, range)?;
                }
                Gradient::Bf16(narrow) => {
                    let grads = &narrow.buffer;
                    let tensors = Tensors { params: &weights, low: &low, grads, stats, progress, decay_elements };
                    self.sweep(params, &tensors, hyper, range)?;
                }
            }
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<(&'static str, AnyBuffer)> {
        let mut tensors = match &self.matrices {
            Placed::OnDevice(state) => state.tensors(false),
            Placed::OnHost(streamed) => streamed.tensors(),
        };
        if self.has_vectors {
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
