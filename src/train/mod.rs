//! A training run from its configuration to its last checkpoint.
//!
//! `begin` finds out everything that can be wrong, `session` makes the models, `run` steps.

mod begin;
mod best;
pub mod binding;
mod card;
pub mod checkpoint;
mod ending;
pub mod evaluation;
mod first_step;
pub mod folder;
mod health;
pub mod inputs;
mod introduction;
mod launching;
pub mod look;
mod margins;
pub mod passes;
pub mod patience;
pub mod plan;
mod references;
mod run;
mod session;
pub mod settings;
mod space;
mod start;
pub mod step;
pub mod unused;

use std::path::PathBuf;

pub use begin::{run, run_with};

use crate::{config::Config, device::Choice};

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Every setting.
    pub config: Config,
    /// Where it runs.
    pub device: Choice,
    /// Run folder: created, and refused if something is in it, unless `resume`.
    pub out: PathBuf,
    /// Go on from the last complete checkpoint in the run folder, or from the start if there is none.
    pub resume: bool,
    /// Removes the run that is in the folder before this one writes anything. Not with `resume`.
    pub overwrite: bool,
}

/// How a run ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every step is done and the model is saved.
    Finished,
    /// Stopped on request, with everything saved that a resume needs.
    Interrupted,
}
