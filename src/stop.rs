//! The wish to end a run before its last step, and what the run is at when it comes.
//!
//! Knows nothing of signals: the command line turns them into requests.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

/// What a run is at: what a request to end leaves behind depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Data are tokenised, weights are loaded; the run folder is not touched.
    Preparing,
    /// The reference pass and the evaluation before the first step.
    Starting,
    /// Steps, their evaluations and checkpoints.
    Stepping,
    /// Every step is done.
    Ending,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Preparing, Self::Starting, Self::Stepping, Self::Ending];

    /// What follows a request to end that comes now.
    pub fn answer(self) -> &'static str {
        match self {
            Self::Preparing => "interrupted before a step was made: there is nothing to save",
            Self::Starting => {
                "interrupted: the run ends with the pack at hand, before its next step; once more ends at once"
            }
            Self::Stepping => {
                "interrupted: the run ends with the step at hand, everything saved; once more ends at once"
            }
            Self::Ending => "interrupted after the last step: the model is being saved; once more ends at once",
        }
    }
}

/// A request to end, which a run looks at between packs and steps. Clones are one and the same.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    phase: Arc<AtomicU8>,
}

impl From<bool> for Stop {
    /// Requested from the start, or not yet.
    fn from(requested: bool) -> Self {
        Self { requested: Arc::new(requested.into()), phase: Arc::default() }
    }
}

impl Stop {
    /// Whether the run is to end.
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Asks the run to end.
    pub fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
    }

    /// What a signal handler sets.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.requested.clone()
    }

    /// What the run is at.
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::SeqCst))]
    }

    /// Says what the run is at from now on.
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
    }
}
