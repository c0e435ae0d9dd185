//! The held-out metric that `train.save_best` and `train.early_stop` watch.

use std::str::FromStr;

use anyhow::{Error, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::loss::{HIGHER, higher_is_better};

/// A held-out metric by which weights are the best of a run, by its name in `metrics.jsonl`, such as `eval_loss`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BestMetric(String);

impl BestMetric {
    /// With `eval_`, as in `metrics.jsonl`.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Without it, as in training.
    pub fn in_training(&self) -> &str {
        self.0.trim_start_matches("eval_")
    }

    /// Whether `value` is better than `best`.
    pub fn is_better(&self, value: f64, best: f64) -> bool {
        if higher_is_better(self.in_training()) == Some(true) { value > best } else { value < best }
    }
}

impl Default for BestMetric {
    fn default() -> Self {
        Self("eval_loss".into())
    }
}

impl FromStr for BestMetric {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let name = text.trim_start_matches("eval_");
        ensure!(
            higher_is_better(name).is_some(),
            "`{text}`: whether more of it is better is not known: name eval_loss, another eval_..._loss or one of {}",
            HIGHER.map(|name| format!("eval_{name}")).join(", ")
        );
        Ok(Self(format!("eval_{name}")))
    }
}

impl TryFrom<String> for BestMetric {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<BestMetric> for String {
    fn from(metric: BestMetric) -> Self {
        metric.0
    }
}
