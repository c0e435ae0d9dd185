//! A training run from its configuration to its last checkpoint.
//!
//! Knows `data`, `model`, `loss` and `optim`; [`log`] alone prints.

pub mod batches;
pub mod binding;
pub mod checkpoint;
pub mod disk;
pub mod evaluate;
pub mod folder;
mod hash;
mod health;
pub mod log;
pub mod metrics;
pub mod prepare;
pub mod reference;
pub mod reference_cache;
pub mod reshape;
mod run;
pub mod score;
pub mod settings;
mod space;
pub mod step;
mod stop;
pub mod token_mask;
pub mod unused;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{
    config::Config,
    device::{Choice, Device, HostOptions, host::workers},
};

pub use run::{run, run_with};
pub use stop::{Phase, Stop};

/// What the command line asks for.
#[derive(Clone, Debug)]
pub struct Options {
    pub config: Config,
    pub device: Choice,
    /// Run folder: created, and refused if something is in it, unless `resume`.
    pub out: PathBuf,
    /// Go on from the last complete checkpoint in the run folder, or from the start if there is none.
    pub resume: bool,
}

/// How a run ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    /// Stopped on request, with everything saved that a resume needs.
    Interrupted,
}

/// Opens the device that was asked for; `key` names the number of worker threads in messages.
fn open_device(choice: Choice, host: HostOptions, key: &str) -> Result<Device> {
    let opened = Device::open(choice, host);
    if host.threads > workers::most() { opened.with_context(|| format!("`{key}` = {}", host.threads)) } else { opened }
}
