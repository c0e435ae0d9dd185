//! From gradients to the next weights: clipping, rules, the learning-rate schedule. Knows of a model its set of weights.

mod adamw;
pub mod clip;
pub mod ema;
mod moments;
mod rmsprop;
mod rule;
pub mod schedule;
mod streamed;

use anyhow::Result;

pub use ema::Ema;
pub use moments::Moments;
pub use rule::Rule;
pub use schedule::{LearningRate, Schedule};

use crate::{
    device::{Buffer, DType, Float, Readback},
    model::{AnyBuffer, Group, ParamSet},
    ops,
};
use clip::GradNorm;

/// What does not change during a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Which rule, and its constants.
    pub rule: RuleKind,
    /// Of groups that are decayed.
    pub weight_decay: f64,
    /// Largest gradient norm; 0 clips nothing.
    pub max_grad_norm: f64,
}

/// Which rule, and its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RuleKind {
    /// Decay is taken off the weights.
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the root of the second moment.
        eps: f64,
        /// What both moments of matrices and tables are kept as.
        moments: Moments,
        /// Bytes of each of three windows on the device, where these moments are in the host's memory.
        windows: Option<usize>,
    },
    /// Decay is added to the gradients.
    RmsProp {
        /// Decay of the mean of squares.
        alpha: f64,
        /// Added to its root.
        eps: f64,
    },
}

impl RuleKind {
    /// AdamW with moments in f32.
    pub const fn adamw(beta1: f64, beta2: f64, eps: f64) -> Self {
        Self::AdamW { beta1, beta2, eps, moments: Moments::F32, windows: None }
    }

    /// Bytes of everything that an optimizer with this rule has beside weights and gradients in these groups.
    pub fn bytes(&self, groups: &[Group], gradients: DType) -> usize {
        let narrow = if gradients == DType::Bf16 { boundary(groups) } else { 0 };
        let elements = groups.last().map_or(0, |group| group.range.end);
        let remembered = match self {
            Self::AdamW { moments, windows, .. } => adamw::AdamW::bytes(*moments, *windows, gradients, groups),
            Self::RmsProp { .. } => rmsprop::RmsProp::bytes(groups),
        };
        remembered + GradNorm::bytes(narrow, elements)
    }

    /// Bytes of page-locked memory of the host that it takes, all of which are copied to the device and back in every update.
    pub fn host_bytes(&self, groups: &[Group]) -> usize {
        match self {
            Self::AdamW { moments, windows: Some(_), .. } => adamw::AdamW::host_bytes(*moments, groups),
            Self::AdamW { .. } | Self::RmsProp { .. } => 0,
        }
    }
}

impl Settings {
    fn rule<T: Float>(&self, params: &ParamSet<T>) -> Result<Box<dyn Rule<T>>> {
        let weight_decay = self.weight_decay;
        Ok(match self.rule {
            RuleKind::AdamW { beta1, beta2, eps, moments, windows } => {
                let hyper = ops::adamw::Hyper { lr: 0.0, beta1, beta2, eps, weight_decay };
                Box::new(adamw::AdamW::new(params, hyper, moments, windows)?)
            }
            RuleKind::RmsProp { alpha, eps } => {
                let hyper = ops::rmsprop::Hyper { lr: 0.0, alpha, eps, weight_decay };
                Box::new(rmsprop::RmsProp::new(params, hyper)?)
            }
        })
    }
}

/// Where vectors begin: behind the first groups that are decayed.
fn boundary(groups: &[Group]) -> usize {
    let elements = groups.last().map_or(0, |group| group.range.end);
    groups.iter().find(|group| !group.decay).map_or(elements, |group| group.range.start)
}

/// What one update did.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Before clipping.
    pub grad_norm: f32,
    /// False if the norm was not finite: weights and state are then as before.
    pub applied: bool,
}

/// An update on its way.
pub struct QueuedUpdate(Readback<f32>);

impl QueuedUpdate {
    /// Waits for it.
    ///
    /// # Errors
    /// An earlier launch failed.
    pub fn wait(self) -> Result<Update> {
        let stats = self.0.wait()?;
        Ok(Update { grad_norm: stats[0], applied: stats[2] != 0.0 })
    }
}

/// What trains a set of weights: the norm of all its gradients, and a rule.
pub struct Optimizer<T> {
    params: ParamSet<T>,
    norm: GradNorm,
    rule: Box<dyn Rule<T>>,
}

impl<T: Float> Optimizer<T> {
    /// For weights that were never updated. They are made their own masters.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(params: &ParamSet<T>, settings: &Settings) -> Result<Self> {
        params.start()?;
        Self::allocate(params, settings)
    }

    /// As [`new`](Self::new), for weights whose masters are there or will be.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn allocate(params: &ParamSet<T>, settings: &Settings) -> Result<Self> {
        Ok(Self {
            norm: GradNorm::new(params, settings.max_grad_norm as f32)?,
            rule: settings.rule(params)?,
            params: params.clone(),
        })
    }

    /// Clips and applies the gradients; skips the update on the device if their norm is not finite. Waits for nothing.
    ///
    /// # Errors
    /// A launch fails.
    pub fn queue(&self, learning_rate: f64) -> Result<QueuedUpdate> {
        Ok(QueuedUpdate(self.params.device().read(self.launch(learning_rate)?)?))
    }

    /// As [`queue`](Self::queue), where nobody asks what the update did.
    ///
    /// # Errors
    /// As [`queue`](Self::queue).
    pub fn apply(&self, learning_rate: f64) -> Result<()> {
        self.launch(learning_rate).map(drop)
    }

    /// As [`queue`](Self::queue), and waits for the update.
    ///
    /// # Errors
    /// As [`queue`](Self::queue).
    pub fn step(&self, learning_rate: f64) -> Result<Update> {
        self.queue(learning_rate)?.wait()
    }

    fn launch(&self, learning_rate: f64) -> Result<&Buffer<f32>> {
        let stats = self.norm.run(&self.params)?;
        self.rule.step(&self.params, stats, learning_rate)?;
        Ok(stats)
    }

    /// What has to be saved beside the weights, by name: what the rule remembers, and the masters where they are not the weights.
    pub fn tensors(&self) -> Vec<(&'static str, AnyBuffer)> {
        let mut tensors = self.rule.tensors();
        if T::DTYPE != DType::F32 {
            let all = 0..self.params.elements();
            let weights = self.params.weight(&all).cast();
            tensors.push(("master", AnyBuffer::masters(&weights, &self.params.low(&all))));
        }
        tensors
    }

    /// Updates applied so far.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn updates(&self) -> Result<u64> {
        self.rule.updates(self.params.device())
    }

    /// Goes on as after so many updates; [`tensors`](Self::tensors) are the caller's to fill.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn resume(&self, updates: u64) -> Result<()> {
        self.rule.resume(self.params.device(), updates)
    }
}
