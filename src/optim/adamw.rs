//! AdamW over one flat arena, as PyTorch defines it: state, and one update per step.

use anyhow::Result;

use super::clip::GradNorm;
use crate::{
    device::{Buffer, DType, Device, Float, Readback},
    model::Layout,
    ops::adamw::{self, Hyper},
};

/// Elements of the master that are in host memory at a time.
const CHUNK: usize = 1 << 24;

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

    /// State for parameters that were never updated. The master is what the parameters are now.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(device: &Device, params: &Buffer<T>, layout: &Layout, settings: Settings) -> Result<Self> {
        let optimizer = Self::allocate(device, params, layout, settings)?;
        optimizer.start(device)?;
        Ok(optimizer)
    }

    /// As [`new`](Self::new), with a master that is undefined until it is [started](Self::start), loaded or read back.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn allocate(device: &Device, params: &Buffer<T>, layout: &Layout, settings: Settings) -> Result<Self> {
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

    /// Fills the master with the parameters.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn start(&self, device: &Device) -> Result<()> {
        if T::DTYPE == DType::F32 {
            return Ok(());
        }
        for start in (0..self.params.len()).step_by(CHUNK) {
            let range = start..self.params.len().min(start + CHUNK);
            let values = device.download(&self.params.slice(range.clone()))?;
            let wide: Vec<f32> = values.into_iter().map(T::to_f32).collect();
            device.copy_in(&self.master.slice(range), &wide)?;
        }
        Ok(())
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
