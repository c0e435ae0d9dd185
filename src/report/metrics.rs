//! `metrics.jsonl` of a run: one record a line.

use std::{
    fs,
    io::{ErrorKind, Write},
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::records::Records;
use crate::files;

/// One line of `metrics.jsonl`, in the order the values are written.
pub type MetricsRecord = Map<String, Value>;

/// The file, open for appending.
pub struct Metrics {
    records: Records,
    evaluated: Option<u64>,
}

impl Metrics {
    /// Opens the file after cutting it back to the records of steps up to `step` (to none for a fresh run): a resumed
    /// run writes the rest again.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open(path: &Path, step: Option<u64>) -> Result<Self> {
        let kept = match fs::read(path) {
            Ok(bytes) => step.map(|step| keep_until(&bytes, step)).unwrap_or_default(),
            Err(why) if why.kind() == ErrorKind::NotFound => Vec::new(),
            Err(why) => return Err(why).with_context(|| format!("{}: cannot be read", path.display())),
        };
        files::write_whole(path, |file| Ok(file.write_all(&kept)?))
            .context("make room in the run folder, then go on with --resume")?;
        Ok(Self { records: Records::open(path, kept.len() as u64)?, evaluated: evaluated(&kept) })
    }

    /// The step of the evaluation that the file ended with when it was opened, if it ended with one.
    pub fn evaluated(&self) -> Option<u64> {
        self.evaluated
    }

    /// Appends one record, or keeps it in memory while the disk is full: true if it is the first that has to wait. A number
    /// that is not finite is written as `null`.
    ///
    /// # Errors
    /// The file cannot be written for another reason, or too much is waiting.
    pub fn write(&mut self, record: &MetricsRecord) -> Result<bool> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.records.write(&line)
    }

    /// Waits until everything written is on the disk.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn sync(&mut self) -> Result<()> {
        self.records.sync()
    }
}

/// The whole lines up to the first that is broken or belongs to a later step.
fn keep_until(bytes: &[u8], step: u64) -> Vec<u8> {
    let mut kept = Vec::new();
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        let record: Option<MetricsRecord> = line.ends_with(b"\n").then(|| serde_json::from_slice(line).ok()).flatten();
        let at = record.and_then(|r| r.get("step").and_then(Value::as_u64));
        if at.is_none_or(|at| at > step) {
            break;
        }
        kept.extend_from_slice(line);
    }
    kept
}

/// The step of the last record, if that is one of held-out rows.
fn evaluated(bytes: &[u8]) -> Option<u64> {
    let last = bytes.strip_suffix(b"\n")?.rsplit(|&b| b == b'\n').next()?;
    let record: MetricsRecord = serde_json::from_slice(last).ok()?;
    record.keys().any(|name| name.starts_with("eval_")).then(|| record.get("step").and_then(Value::as_u64))?
}
