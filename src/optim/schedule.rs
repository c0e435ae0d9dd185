//! The learning rate of each step, by the formulas of Hugging Face `transformers`.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// Shape of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Straight down to 0 at the last step.
    #[default]
    Linear,
    /// Half a cosine down to 0 at the last step.
    Cosine,
    /// The peak throughout.
    Constant,
}

/// Learning rate over a run: a linear rise from zero during warm-up, then the schedule's own shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LearningRate {
    /// At the end of the warm-up.
    pub peak: f64,
    /// Its shape from there on.
    pub schedule: Schedule,
    /// Steps of the rise.
    pub warmup_steps: u64,
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
            Schedule::Cosine => (0.5 * (1.0 + (PI * (step - warmup) / rest).cos())).max(0.0),
        };
        self.peak * factor
    }
}
