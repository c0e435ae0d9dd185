//! The held-out file's line in `metrics.jsonl` and on the terminal: names as in training, with `eval_` before them.

use super::log::Record;
use crate::loss::MetricSums;

/// The line of `metrics.jsonl`.
pub fn record(step: u64, epoch: f64, metrics: &MetricSums) -> Record {
    let mut record = Record::new();
    record.insert("step".into(), step.into());
    record.insert("epoch".into(), epoch.into());
    for (name, value) in metrics.iter() {
        record.insert(format!("eval_{name}"), value.into());
    }
    record
}

/// The line on the terminal.
pub fn summary(step: u64, metrics: &MetricSums) -> String {
    format!("eval after step {step}: {}", preferences(metrics))
}

/// What a line on the terminal says about preferences, in training and on the held-out file.
pub fn preferences(metrics: &MetricSums) -> String {
    let value = |name| metrics.get(name).unwrap_or(f64::NAN);
    let part = metrics.get("dpo_loss").map(|loss| format!(" (dpo {loss:.4})")).unwrap_or_default();
    format!(
        "loss {:.4}{part}  rewards/accuracies {:.3}  rewards/margins {:+.4}",
        value("loss"),
        value("rewards/accuracies"),
        value("rewards/margins")
    )
}
