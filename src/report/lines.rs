//! The held-out file's line in `metrics.jsonl` and on the terminal: names as in training, with `eval_` before them.

use super::metrics::MetricsRecord;
use crate::loss::MetricSums;

/// Written with their sign.
const SIGNED: [&str; 2] = ["rewards/margins", "rewards/ndcg"];

/// The line of `metrics.jsonl`.
pub fn record(step: u64, epoch: f64, metrics: &MetricSums) -> MetricsRecord {
    let mut record = MetricsRecord::new();
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
    let mut text = format!("loss {:.4}", metrics.get("loss").unwrap_or(f64::NAN));
    // Where a likelihood stands beside a preference, what is left of the loss.
    if metrics.get("nll_loss").is_some()
        && let Some((name, value)) = metrics.iter().find(|(name, _)| name.ends_with("_loss") && *name != "nll_loss")
    {
        text += &format!(" ({} {value:.4})", name.trim_end_matches("_loss"));
    }
    if let Some(accuracy) = metrics.get("rewards/accuracies") {
        text += &format!("  rewards/accuracies {accuracy:.3}");
    }
    for name in SIGNED {
        if let Some(value) = metrics.get(name) {
            text += &format!("  {name} {value:+.4}");
        }
    }
    text
}

/// The metrics of which [`preferences`] says nothing, each with two spaces before it.
pub fn others(metrics: &MetricSums) -> String {
    let said = ["loss", "rewards/accuracies"];
    let others = metrics.iter().filter(|(name, _)| !said.contains(name) && !SIGNED.contains(name));
    others.map(|(name, value)| format!("  {name} {value:.4}")).collect()
}
