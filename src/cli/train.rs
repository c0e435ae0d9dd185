//! `warpo train RUN.toml`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;

use super::{
    signals::{self, INTERRUPTED},
    talk,
};
use crate::{
    config::Config,
    device::Choice,
    stop::Stop,
    train::{self, Outcome},
};

#[derive(clap::Args)]
pub struct Args {
    /// Run configuration
    #[arg(value_name = "RUN.toml")]
    config: PathBuf,
    /// Overrides a key of the configuration, such as `optim.lr=1e-6`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// auto, cuda, cuda:N or host; auto takes the first GPU if there is one
    #[arg(long, default_value = "auto")]
    device: Choice,
    /// Run folder; `runs/RUN` if not given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Goes on from the last complete checkpoint in the run folder
    #[arg(long)]
    resume: bool,
    /// Begins anew in the run folder: the run in it is removed once everything was checked
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    #[command(flatten)]
    talk: talk::Args,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    talk::set(&args.talk);
    let config = Config::load(&args.config, &args.set)?;
    let out = args.out.clone().unwrap_or_else(|| {
        let stem = args.config.file_stem().unwrap_or_default();
        PathBuf::from("runs").join(stem)
    });
    let options = train::Options { config, device: args.device, out, resume: args.resume, overwrite: args.overwrite };
    let stop = Stop::default();
    signals::listen(&stop)?;
    match train::run(&options, &stop)? {
        Outcome::Finished => Ok(ExitCode::SUCCESS),
        Outcome::Interrupted => Ok(ExitCode::from(INTERRUPTED)),
    }
}
