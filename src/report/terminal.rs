//! The terminal: the only part of the library that prints.

use std::{
    io::{IsTerminal, Write, stderr, stdout},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::bar::Bar;
use crate::{escape::visible, units::duration};

/// Where the terminal is not one, a progress line comes at least this often.
const PLAIN_EVERY: Duration = Duration::from_secs(30);

/// What people see: lines on standard output, and a progress bar on standard error if that is a terminal.
pub struct Terminal {
    bar: Option<Bar>,
    first: u64,
    total: u64,
    log_every: u64,
    started: Instant,
    last_line: Instant,
}

impl Terminal {
    /// Steps `first..total` are to be run. Without a terminal there is a line every `log_every` steps.
    pub fn new(first: u64, total: u64, log_every: u64) -> Self {
        let bar = stderr().is_terminal().then(|| Bar::of_steps(first, total)).flatten();
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
            bar.set_message(message);
            bar.set_position(position);
        }
    }

    /// Takes the progress bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.clear();
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
struct Counter(Option<Bar>);

impl Counter {
    /// `what` stands before the count.
    fn new(what: &str) -> Self {
        Self(stderr().is_terminal().then(|| Bar::of_rows(&visible(what))).flatten())
    }

    /// So many are done.
    fn show(&self, count: usize) {
        self.0.iter().for_each(|bar| bar.set_position(count as u64));
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.0.iter().for_each(Bar::clear);
    }
}

/// Whether standard output holds what a command makes, so that lines for people go to standard error.
static OUTPUT_TAKEN: AtomicBool = AtomicBool::new(false);

/// From now on lines for people go to standard error: standard output holds what the command makes.
pub fn leave_output_alone() {
    OUTPUT_TAKEN.store(true, Ordering::SeqCst);
}

/// One line on standard output, shown as a terminal may see it. A reader that went away (`| head`) does not stop a run.
pub fn say(line: &str) {
    let line = visible(line);
    let _ = match OUTPUT_TAKEN.load(Ordering::SeqCst) {
        false => writeln!(stdout(), "{line}"),
        true => writeln!(stderr(), "{line}"),
    };
}

/// Counts the rows of a file on standard error if that is a terminal: what hears how many are done.
pub fn counting_rows(file: &Path) -> Box<dyn FnMut(usize)> {
    let counter = Counter::new(&format!("tokenising {}", file.file_name().unwrap_or_default().display()));
    Box::new(move |rows| counter.show(rows))
}
