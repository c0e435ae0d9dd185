//! The budget of one rendering: work and memory, counted per thread while a template runs.
//!
//! Work is counted in steps: an expression or statement is one, and 64 bytes of text that are read or written are one.

use std::cell::Cell;

use super::{Fault, Result};

/// Bytes of text that cost one step.
const STEP_BYTES: usize = 64;

/// What one rendering may use.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub steps: usize,
    /// Bytes of values and output that are alive at one time.
    pub bytes: usize,
}

/// What one rendering has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Of the interpreter.
    pub steps: usize,
    /// Of texts and values that were made.
    pub bytes: usize,
}

#[derive(Clone, Copy)]
struct Meter {
    steps: usize,
    held: isize,
    most: isize,
    budget: Budget,
}

thread_local! {
    static METER: Cell<Meter> = const {
        Cell::new(Meter { steps: 0, held: 0, most: 0, budget: Budget { steps: usize::MAX, bytes: usize::MAX } })
    };
}

/// Begins a rendering.
pub fn start(budget: Budget) {
    METER.set(Meter { steps: 0, held: 0, most: 0, budget });
}

/// What was used since [`start`].
pub fn used() -> Used {
    let meter = METER.get();
    Used { steps: meter.steps, bytes: meter.most.unsigned_abs() }
}

/// Counts `steps` and looks whether the budget still holds.
///
/// # Errors
/// The budget is used up.
pub fn spend(steps: usize) -> Result<()> {
    let mut meter = METER.get();
    meter.steps = meter.steps.saturating_add(steps);
    meter.most = meter.most.max(meter.held);
    METER.set(meter);
    if meter.steps > meter.budget.steps {
        return Err(Fault::budget(format!(
            "takes more than {} steps for this conversation: it loops without end, or does far too much",
            meter.budget.steps
        )));
    }
    room(0)
}

/// Counts the reading of `bytes` of text.
///
/// # Errors
/// The budget is used up.
pub fn scan(bytes: usize) -> Result<()> {
    spend(bytes / STEP_BYTES)
}

/// Looks whether `bytes` more would fit, before they are made.
///
/// # Errors
/// They would not.
pub fn room(bytes: usize) -> Result<()> {
    let meter = METER.get();
    let held = meter.held.max(0).unsigned_abs();
    if held.saturating_add(bytes) > meter.budget.bytes {
        return Err(Fault::budget(format!(
            "takes more than {} bytes of memory for this conversation: what it builds grows without end",
            meter.budget.bytes
        )));
    }
    Ok(())
}

/// Bytes that are held until this is dropped.
#[derive(Debug)]
pub struct Charge(usize);

impl Charge {
    /// Counts `bytes` as held, and the work of writing them.
    pub fn new(bytes: usize) -> Self {
        let mut meter = METER.get();
        meter.held += bytes.cast_signed();
        meter.steps = meter.steps.saturating_add(bytes / STEP_BYTES);
        METER.set(meter);
        Self(bytes)
    }

    /// Counts `bytes` more.
    pub fn grow(&mut self, bytes: usize) {
        let more = Self::new(bytes);
        self.0 += more.0;
        std::mem::forget(more);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut meter = METER.get();
        meter.held -= self.0.cast_signed();
        METER.set(meter);
    }
}
