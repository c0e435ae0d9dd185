//! The learning rate of each step, by the formulas of Hugging Face `transformers`.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Shape of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Straight down to the floor after the last step.
    #[default]
    Linear,
    /// Half a cosine down to the floor after the last step.
    Cosine,
    /// The peak throughout.
    Constant,
    /// The peak, and over the last steps half a cosine down to the floor: `get_wsd_schedule` with its default shapes.
    WarmupStableDecay,
}

/// Learning rate over a run: a linear rise from zero during warm-up, then the schedule's own shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// At the end of the warm-up.
    pub peak: f64,
    /// What it falls to, where it falls; at most the peak.
    pub floor: f64,
    /// Its shape from there on.
    pub schedule: Schedule,
    /// Steps of the rise.
    pub warmup_steps: u64,
    /// Steps of the fall of [`Schedule::WarmupStableDecay`], which others do not look at.
    pub decay_steps: u64,
    /// Steps of the run.
    pub total_steps: u64,
}

impl LearningRate {
    /// The rate of step `step`, counted from 0: `transformers` starts a warm-up at zero, so step 0 then learns nothing.
    pub fn at(&self, step: u64) -> f64 {
        let (step, warmup, total) = (step as f64, self.warmup_steps as f64, self.total_steps as f64);
        if step < warmup {
            return self.peak * (step / warmup.max(1.0));
        }
        let rest = (total - warmup).max(1.0);
        let factor = match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Linear => ((total - step) / rest).max(0.0),
            Schedule::Cosine => half_cosine(step - warmup, rest),
            Schedule::WarmupStableDecay => {
                let decay = (self.decay_steps as f64).min(total - warmup).max(1.0);
                half_cosine((step - (total - decay)).max(0.0), decay)
            }
        };
        self.floor + (self.peak - self.floor) * factor
    }
}

/// From 1 to 0 as `done` goes from 0 to `all`.
fn half_cosine(done: f64, all: f64) -> f64 {
    (0.5 * (1.0 + (PI * done / all).cos())).max(0.0)
}
