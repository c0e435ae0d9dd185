//! The terminal and `metrics.jsonl`: the only part of the library that prints.

use std::{
    fs::{self, File, OpenOptions},
    io::{IsTerminal, Write, stderr, stdout},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value};

use crate::files;

/// One line of `metrics.jsonl`, in the order the values are written.
pub type Record = Map<String, Value>;

/// Where the terminal is not one, a progress line comes at least this often.
const PLAIN_EVERY: Duration = Duration::from_secs(30);

/// What people see: lines on standard output, and a progress bar on standard error if that is a terminal.
pub struct Terminal {
    bar: Option<ProgressBar>,
    first: u64,
    total: u64,
    log_every: u64,
    started: Instant,
    last_line: Instant,
}

impl Terminal {
    /// Steps `first..total` are to be run. Without a terminal there is a line every `log_every` steps.
    pub fn new(first: u64, total: u64, log_every: u64) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_position(first);
            let style = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}  {eta} left");
            bar.set_style(style.expect("the template is constant").progress_chars("=> "));
            bar.reset_eta();
            bar
        });
        Self { bar, first, total, log_every, started: Instant::now(), last_line: Instant::now() }
    }

    /// One line, above the progress bar if there is one.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say(line)),
            None => say(line),
        }
    }

    /// Shows that step `step` (counted from 1) ended.
    pub fn step(&mut self, step: u64, summary: &str) {
        self.show(step, summary);
        let due = step == self.first + 1 || step.is_multiple_of(self.log_every) || step == self.total;
        if self.bar.is_none() && (due || self.last_line.elapsed() > PLAIN_EVERY) {
            let left = self.started.elapsed().div_f64((step - self.first) as f64).mul_f64((self.total - step) as f64);
            say(&format!("step {step}/{}  {summary}  {} left", self.total, duration(left)));
            self.last_line = Instant::now();
        }
    }

    /// Moves the progress bar, if there is one.
    pub fn show(&self, position: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.to_string());
            bar.set_position(position);
        }
    }

    /// Takes the progress bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Terminal {
    /// An error's line must not stand behind a progress bar.
    fn drop(&mut self) {
        self.finish();
    }
}

/// A count without a known end, on standard error if that is a terminal; gone when dropped.
pub struct Counter(Option<ProgressBar>);

impl Counter {
    /// `what` stands before the count.
    pub fn new(what: &str) -> Self {
        let bar = stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{msg}  {human_pos} rows  {per_sec}");
            bar.set_style(style.expect("the template is constant"));
            bar.with_message(what.to_owned())
        });
        Self(bar)
    }

    /// So many are done.
    pub fn show(&self, count: usize) {
        self.0.iter().for_each(|bar| bar.set_position(count as u64));
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.0.iter().for_each(ProgressBar::finish_and_clear);
    }
}

/// One line on standard output. A reader that went away (`| head`) does not stop a run.
pub fn say(line: &str) {
    let _ = writeln!(stdout(), "{line}");
}

/// Seconds and minutes for people: `48s`, `3m05s`, `2h07m`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// `metrics.jsonl` of a run.
pub struct Metrics {
    path: PathBuf,
    file: File,
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
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(why) => return Err(why).with_context(|| format!("{}: cannot be read", path.display())),
        };
        files::write_whole(path, |file| Ok(file.write_all(&kept)?))?;
        let open = OpenOptions::new().append(true).open(path);
        let file = open.with_context(|| format!("{}: cannot be opened", path.display()))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Appends one record. A number that is not finite is written as `null`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .with_context(|| format!("{}: cannot be written: make room, then go on with --resume", self.path.display()))
    }

    /// Waits until everything written is on the disk.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .with_context(|| format!("{}: cannot be written: make room, then go on with --resume", self.path.display()))
    }
}

/// The whole lines up to the first that is broken or belongs to a later step.
fn keep_until(bytes: &[u8], step: u64) -> Vec<u8> {
    let mut kept = Vec::new();
    for line in bytes.split_inclusive(|&b| b == b'\n') {
        let record: Option<Record> = line.ends_with(b"\n").then(|| serde_json::from_slice(line).ok()).flatten();
        let at = record.and_then(|r| r.get("step").and_then(Value::as_u64));
        if at.is_none_or(|at| at > step) {
            break;
        }
        kept.extend_from_slice(line);
    }
    kept
}
