//! What a run says while it goes on: a record of each step in `metrics.jsonl` and, if that is wanted, as an event, and a line on
//! the terminal.

use anyhow::Result;
use serde_json::Value;

use super::{
    events::Events,
    lines,
    metrics::{Metrics, MetricsRecord},
    terminal::{Talk, Terminal, talks},
};
use crate::loss::MetricSums;

/// The places.
pub struct Journal {
    metrics: Metrics,
    events: Option<Events>,
    terminal: Terminal,
}

/// What is known of a step when it is done.
#[derive(Clone, Copy, Debug)]
pub struct StepReport<'a> {
    /// Counted from 1.
    pub step: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Means of the loss and of what comes with it.
    pub metrics: &'a MetricSums,
    /// Before clipping.
    pub grad_norm: f32,
    /// The learning rate it was done with.
    pub lr: f64,
    /// Trained on since the run began.
    pub num_tokens: u64,
    /// Steps of the run whose update was not applied.
    pub skipped_steps: u64,
    /// Trained on in this step.
    pub tokens: usize,
    /// What the step took on the device.
    pub seconds: f64,
    /// Share of the device's peak; `None` where that is not known.
    pub speed_of_light: Option<f64>,
    /// FLOPs that the memory plan has computed again, relative to those that the step needs; `None` if nothing is.
    pub recompute_flops_share: Option<f64>,
    /// Device memory, at most so far.
    pub memory_bytes: usize,
}

impl Journal {
    /// A journal in these places.
    pub fn new(metrics: Metrics, events: Option<Events>, terminal: Terminal) -> Self {
        Self { metrics, events, terminal }
    }

    /// The last step whose evaluation is in the records.
    pub fn evaluated(&self) -> Option<u64> {
        self.metrics.evaluated()
    }

    /// One line on the terminal.
    pub fn say(&self, line: &str) {
        self.terminal.say(line);
    }

    /// The first step begins.
    pub fn begin(&self) {
        self.terminal.begin();
    }

    /// Takes the progress bar away.
    pub fn finish(&self) {
        self.terminal.finish();
    }

    /// A step's record and line.
    ///
    /// # Errors
    /// The records cannot be written, other than for lack of room.
    pub fn step(&mut self, report: &StepReport) -> Result<()> {
        self.write(&report.record())?;
        self.terminal.step(report.step, &report.summary());
        Ok(())
    }

    /// The record and the line of an evaluation.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn evaluation(&mut self, step: u64, epoch: f64, metrics: &MetricSums) -> Result<()> {
        self.write(&lines::record(step, epoch, metrics))?;
        self.terminal.say(&format!("{}{}", lines::summary(step, metrics), more(metrics)));
        Ok(())
    }

    /// Waits until every record is on the disk.
    ///
    /// # Errors
    /// The disk has no room for those that wait, or fails.
    pub fn sync(&mut self) -> Result<()> {
        self.events.iter_mut().try_for_each(Events::sync)?;
        self.metrics.sync()
    }

    fn write(&mut self, record: &MetricsRecord) -> Result<()> {
        if self.metrics.write(record)? {
            self.terminal.say("disk full: the records of metrics.jsonl wait in memory");
        }
        if let Some(events) = &mut self.events
            && events.write(record)?
        {
            self.terminal.say("disk full: the events for TensorBoard wait in memory");
        }
        Ok(())
    }
}

impl StepReport<'_> {
    fn record(&self) -> MetricsRecord {
        let mut record = MetricsRecord::new();
        record.insert("step".into(), self.step.into());
        record.insert("epoch".into(), self.epoch.into());
        for (name, value) in self.metrics.iter() {
            record.insert(name.into(), value.into());
        }
        let rest: [(&str, Value); 8] = [
            ("grad_norm", f64::from(self.grad_norm).into()),
            ("learning_rate", self.lr.into()),
            ("num_tokens", self.num_tokens.into()),
            ("skipped_steps", self.skipped_steps.into()),
            ("tokens_per_second", (self.tokens as f64 / self.seconds).into()),
            ("speed_of_light", self.speed_of_light.into()),
            ("step_ms", (self.seconds * 1e3).into()),
            ("memory_bytes", self.memory_bytes.into()),
        ];
        record.extend(rest.map(|(name, value)| (name.to_string(), value)));
        record.extend(self.recompute_flops_share.map(|share| ("recompute_flops_share".to_string(), share.into())));
        record
    }

    /// The step's line on the terminal.
    fn summary(&self) -> String {
        let speed = self.tokens as f64 / self.seconds;
        let more = more(self.metrics);
        format!("{}  grad_norm {:.3}  {speed:.0} tokens/s{more}", lines::preferences(self.metrics), self.grad_norm)
    }
}

/// All other metrics, where every word is wanted.
fn more(metrics: &MetricSums) -> String {
    if talks(Talk::Verbose) { lines::others(metrics) } else { String::new() }
}
