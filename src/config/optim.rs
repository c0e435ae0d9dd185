//! `[optim]`: which optimizer, and the learning rate over a run.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::source::Origins;
use crate::{
    device::DType,
    optim::{Moments, Schedule},
};

/// Which optimizer, with PyTorch's semantics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimName {
    /// Loshchilov & Hutter 2019, arXiv 1711.05101.
    #[default]
    AdamW,
    /// Tieleman & Hinton 2012, neither centred nor with momentum.
    RmsProp,
}

/// What the gradients of matrices and tables are added up in; those of vectors are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gradients {
    /// 4 bytes a parameter.
    #[default]
    F32,
    /// 2 bytes a parameter; every micro-batch rounds what it adds, at random.
    Bf16,
}

impl Gradients {
    /// Of their elements.
    pub fn dtype(self) -> DType {
        if self == Self::Bf16 { DType::Bf16 } else { DType::F32 }
    }
}

/// Whose memory the moments are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MomentsOn {
    /// The device's.
    #[default]
    Device,
    /// The host's, page-locked: every update copies them to the device and back, beside its other work.
    Host,
}

impl MomentsOn {
    /// Bytes of each of the device's windows for moments of the host.
    pub fn windows(self) -> Option<usize> {
        (self == Self::Host).then_some(WINDOW_BYTES)
    }
}

/// Both moments of four million elements in f32: half a millisecond of a link.
const WINDOW_BYTES: usize = 32 << 20;

/// Share of all steps over which `warmup_stable_decay` falls if nothing is said.
const DECAY_RATIO: f64 = 0.1;

/// `[optim]`: the optimizer and its learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimSection {
    /// Which optimizer.
    /// Example: `name = "rmsprop"`.
    pub name: OptimName,
    /// Peak learning rate; above 0.
    /// Example: `lr = 5e-7`.
    pub lr: f64,
    /// Learning rate that `linear`, `cosine` and `warmup_stable_decay` fall to, 0 to `lr`; the warm-up rises from 0 all the same.
    /// Example: `min_lr = 1e-7`.
    pub min_lr: f64,
    /// Shape of the learning rate after the warm-up.
    /// Example: `schedule = "cosine"`.
    pub schedule: Schedule,
    /// Steps of linear warm-up from 0; 0 or more. Only one of `warmup_steps` and `warmup_ratio` may be above 0.
    /// Example: `warmup_steps = 100`.
    pub warmup_steps: u64,
    /// Warm-up as a share of all steps, 0 to 1, rounded up to whole steps.
    /// Example: `warmup_ratio = 0.1`.
    pub warmup_ratio: f64,
    /// Share of all steps over which `warmup_stable_decay` falls, above 0 to 1, rounded up to whole steps; 0.1 if not given.
    /// Example: `decay_ratio = 0.2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_ratio: Option<f64>,
    /// Weight decay of the matrices (never of norm weights), 0 or more: taken off the weights by AdamW, added to the gradients
    /// by RMSprop.
    /// Example: `weight_decay = 0.01`.
    pub weight_decay: f64,
    /// AdamW: decay of the first moment, 0 up to but not including 1.
    /// Example: `beta1 = 0.9`.
    pub beta1: f64,
    /// AdamW: decay of the second moment, 0 up to but not including 1.
    /// Example: `beta2 = 0.95`.
    pub beta2: f64,
    /// RMSprop: decay of the mean of squared gradients, 0 up to but not including 1.
    /// Example: `alpha = 0.95`.
    pub alpha: f64,
    /// Added to the root of the second moment or of that mean; above 0.
    /// Example: `eps = 1e-6`.
    pub eps: f64,
    /// AdamW: what the gradients of matrices and tables are added up in over the micro-batches of a step; those of vectors (norms,
    /// biases) are f32.
    /// Example: `gradients = "bf16"`.
    pub gradients: Gradients,
    /// AdamW: what the two moments of matrices and tables are kept as; those of vectors (norms, biases) are f32. What is cut off
    /// is rounded at random, by the seed, so that nothing is lost on average.
    /// Example: `moments = "8bit"`.
    pub moments: Moments,
    /// AdamW: whose memory those moments are in. In the host's, 8 billion parameters in f32 are 64 GB, which every update copies
    /// to the device and back; the bits are the same.
    /// Example: `moments_on = "host"`.
    pub moments_on: MomentsOn,
    /// Largest global gradient norm; 0 or more. Larger gradients are scaled down to it, 0 turns clipping off.
    /// Example: `max_grad_norm = 10.0`.
    pub max_grad_norm: f64,
}

impl Default for OptimSection {
    fn default() -> Self {
        Self {
            name: OptimName::AdamW,
            lr: 1e-6,
            min_lr: 0.0,
            schedule: Schedule::Linear,
            warmup_steps: 0,
            warmup_ratio: 0.0,
            decay_ratio: None,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            alpha: 0.99,
            eps: 1e-8,
            gradients: Gradients::F32,
            moments: Moments::F32,
            moments_on: MomentsOn::Device,
            max_grad_norm: 1.0,
        }
    }
}

impl OptimSection {
    /// Refuses constants of the optimizer that is not chosen.
    fn check_used(&self, at: &Origins) -> Result<()> {
        let usual = Self::default();
        let others: &[(&str, f64, f64)] = match self.name {
            OptimName::AdamW => &[("alpha", self.alpha, usual.alpha)],
            OptimName::RmsProp => &[("beta1", self.beta1, usual.beta1), ("beta2", self.beta2, usual.beta2)],
        };
        let (own, other) = match self.name {
            OptimName::AdamW => ("adamw", "rmsprop"),
            OptimName::RmsProp => ("rmsprop", "adamw"),
        };
        if let Some((key, value, _)) = others.iter().find(|(_, value, usual)| value != usual) {
            let key = format!("optim.{key}");
            bail!(
                "{}: `{key}` = {value}: `optim.name` is \"{own}\", which has none: remove it or set optim.name = \"{other}\"",
                at.of(&key)
            );
        }
        ensure!(
            self.name == OptimName::AdamW || self.moments == Moments::F32,
            "{}: `optim.moments`: `optim.name` is \"rmsprop\", whose mean of squares is f32: remove it or set optim.name = \"adamw\"",
            at.of("optim.moments")
        );
        ensure!(
            self.name == OptimName::AdamW || self.gradients == Gradients::F32,
            "{}: `optim.gradients`: `optim.name` is \"rmsprop\", whose gradients are f32: remove it or set optim.name = \"adamw\"",
            at.of("optim.gradients")
        );
        ensure!(
            self.name == OptimName::AdamW || self.moments_on == MomentsOn::Device,
            "{}: `optim.moments_on`: `optim.name` is \"rmsprop\", which has no moments: remove it or set optim.name = \"adamw\"",
            at.of("optim.moments_on")
        );
        Ok(())
    }

    /// Steps of warm-up in a run of `total` steps.
    pub fn warmup(&self, total: u64) -> u64 {
        if self.warmup_steps > 0 { self.warmup_steps } else { (self.warmup_ratio * total as f64).ceil() as u64 }
    }

    /// Steps over which `warmup_stable_decay` falls in a run of `total` steps.
    pub fn decay(&self, total: u64) -> u64 {
        (self.decay_ratio.unwrap_or(DECAY_RATIO) * total as f64).ceil() as u64
    }

    /// Refuses what the schedule does not look at.
    fn check_schedule(&self, at: &Origins) -> Result<()> {
        let lr = self.lr;
        at.number(
            "optim.min_lr",
            self.min_lr,
            |v| (0.0..=lr).contains(&v),
            &format!("between 0 and optim.lr = {lr:?}"),
        )?;
        ensure!(
            self.min_lr == 0.0 || self.schedule != Schedule::Constant,
            "{}: `optim.min_lr` = {:?}: `optim.schedule` is \"constant\", which never falls: remove it or name another schedule",
            at.of("optim.min_lr"),
            self.min_lr
        );
        let Some(ratio) = self.decay_ratio else { return Ok(()) };
        at.number("optim.decay_ratio", ratio, |v| v > 0.0 && v <= 1.0, "above 0 and at most 1, such as 0.1")?;
        ensure!(
            self.schedule == Schedule::WarmupStableDecay,
            "{}: `optim.decay_ratio` = {ratio}: `optim.schedule` is not \"warmup_stable_decay\": remove it or set that one",
            at.of("optim.decay_ratio")
        );
        ensure!(
            self.warmup_ratio + ratio <= 1.0,
            "{}: `optim.decay_ratio` = {ratio}: with `optim.warmup_ratio` = {} it is more than all steps: lower one",
            at.of("optim.decay_ratio"),
            self.warmup_ratio
        );
        Ok(())
    }

    pub(super) fn check(&self, at: &Origins) -> Result<()> {
        at.number("optim.lr", self.lr, |v| v > 0.0, "a finite number above 0, such as 1e-6")?;
        self.check_schedule(at)?;
        at.number("optim.warmup_ratio", self.warmup_ratio, |v| (0.0..=1.0).contains(&v), "between 0 and 1")?;
        ensure!(
            self.warmup_steps == 0 || self.warmup_ratio == 0.0,
            "{}: `optim.warmup_ratio` = {}: `optim.warmup_steps` is set as well ({}); set one of them to 0",
            at.of("optim.warmup_ratio"),
            self.warmup_ratio,
            self.warmup_steps
        );
        at.number("optim.weight_decay", self.weight_decay, |v| v >= 0.0, "a finite number of 0 or more")?;
        at.number("optim.beta1", self.beta1, |v| (0.0..1.0).contains(&v), "at least 0 and below 1, such as 0.9")?;
        at.number("optim.beta2", self.beta2, |v| (0.0..1.0).contains(&v), "at least 0 and below 1, such as 0.999")?;
        at.number("optim.alpha", self.alpha, |v| (0.0..1.0).contains(&v), "at least 0 and below 1, such as 0.99")?;
        self.check_used(at)?;
        at.number("optim.eps", self.eps, |v| v > 0.0, "a finite number above 0, such as 1e-8")?;
        let clip = "a finite number of 0 or more; 0 turns clipping off";
        at.number("optim.max_grad_norm", self.max_grad_norm, |v| v >= 0.0, clip)
    }
}
