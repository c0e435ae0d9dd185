//! AdamW over one flat arena, as PyTorch defines it: state, and one update per step.

use anyhow::Result;

use super::clip::GradNorm;
use crate::{
    device::{Buffer, DType, Device, Float, Readback},
    model::Layout,
    ops::adamw::{self, Hyper},
};

/// Parameters widened to f32 at a time: 64 MiB of them.
const WIDENED: usize = 16 << 20;

/// What does not change during a run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Largest gradient norm; 0 clips nothing.
    pub max_grad_norm: f64,
}

/// What one update did.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Before clipping.
    pub grad_norm: f32,
    /// False if the norm was not finite: parameters and state are then as before.
    pub applied: bool,
}

/// An update on its way.
pub struct Queued(Readback<f32>);

impl Queued {
    /// Waits for it.
    ///
    /// # Errors
    /// An earlier launch failed.
    pub fn wait(self) -> Result<Update> {
        let stats = self.0.wait()?;
        Ok(Update { grad_norm: stats[0], applied: stats[2] != 0.0 })
    }
}

/// Optimizer state. `master` is the parameter arena itself when that is f32.
pub struct AdamW<T> {
    pub master: Buffer<f32>,
    pub m: Buffer<f32>,
    pub v: Buffer<f32>,
    /// See [`adamw::progress`].
    progress: Buffer<f64>,
    params: Buffer<T>,
    norm: GradNorm,
    settings: Settings,
    decay_elements: usize,
}

impl<T: Float> AdamW<T> {
    /// Bytes of state for `elements` parameters.
    pub fn bytes(elements: usize) -> usize {
        let per_element = if T::DTYPE == DType::F32 { 8 } else { 12 };
        elements * per_element + crate::ops::grad_norm::partials(elements) * 8
    }

    /// State for parameters that were never updated.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(device: &Device, params: &Buffer<T>, layout: &Layout, settings: Settings) -> Result<Self> {
        let optimizer = Self::blank(device, params, layout, settings)?;
        if T::DTYPE != DType::F32 {
            for start in (0..params.len()).step_by(WIDENED) {
                let piece = start..params.len().min(start + WIDENED);
                let wide: Vec<f32> =
                    device.download(&params.slice(piece.clone()))?.into_iter().map(T::to_f32).collect();
                device.copy_in(&optimizer.master.slice(piece), &wide)?;
            }
        }
        Ok(optimizer)
    }

    /// The same with a master that is undefined where it is not the parameters: for state that is read from a checkpoint.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn blank(device: &Device, params: &Buffer<T>, layout: &Layout, settings: Settings) -> Result<Self> {
        let elements = layout.elements;
        Ok(Self {
            master: if T::DTYPE == DType::F32 { params.cast() } else { device.alloc(elements)? },
            m: device.zeros(elements)?,
            v: device.zeros(elements)?,
            progress: device.upload(&adamw::progress(0, settings.beta1, settings.beta2))?,
            params: params.clone(),
            norm: GradNorm::new(device, elements, settings.max_grad_norm as f32)?,
            settings,
            decay_elements: layout.decay_elements,
        })
    }

    /// Clips and applies `grads`; skips the update on the device if their norm is not finite. Waits for nothing.
    ///
    /// # Errors
    /// A launch fails.
    pub fn queue(&self, device: &Device, grads: &Buffer<f32>, learning_rate: f64) -> Result<Queued> {
        Ok(Queued(device.read(self.launch(device, grads, learning_rate)?)?))
    }

    /// As [`queue`](Self::queue), where nobody asks what the update did.
    ///
    /// # Errors
    /// As [`queue`](Self::queue).
    pub fn apply(&self, device: &Device, grads: &Buffer<f32>, learning_rate: f64) -> Result<()> {
        self.launch(device, grads, learning_rate).map(drop)
    }

    fn launch(&self, device: &Device, grads: &Buffer<f32>, learning_rate: f64) -> Result<&Buffer<f32>> {
        let stats = self.norm.run(device, grads)?;
        let Settings { beta1, beta2, eps, weight_decay, .. } = self.settings;
        let hyper = Hyper { lr: learning_rate, beta1, beta2, eps, weight_decay };
        let Self { params, master, m, v, progress, .. } = self;
        adamw::step(device, params, master, m, v, grads, stats, progress, hyper, self.decay_elements, grads.len())?;
        Ok(stats)
    }

    /// As [`queue`](Self::queue), and waits for the update.
    ///
    /// # Errors
    /// As [`queue`](Self::queue).
    pub fn step(&self, device: &Device, grads: &Buffer<f32>, learning_rate: f64) -> Result<Update> {
        self.queue(device, grads, learning_rate)?.wait()
    }

    /// Updates applied so far: what the bias correction counts.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn updates(&self, device: &Device) -> Result<u64> {
        Ok(device.download(&self.progress)?[adamw::UPDATES] as u64)
    }

    /// Goes on as after so many updates; `m`, `v` and `master` are the caller's.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn resume(&self, device: &Device, updates: u64) -> Result<()> {
        device.copy_in(&self.progress, &adamw::progress(updates, self.settings.beta1, self.settings.beta2))
    }
}
