//! `warpo train RUN.toml`.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::{
    config::Config,
    device::Choice,
    train::{self, Outcome},
};

/// Exit code of a run that was interrupted and saved, as shells count a SIGINT.
const INTERRUPTED: u8 = 130;

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
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let config = Config::load(&args.config, &args.set)?;
    let out = args.out.clone().unwrap_or_else(|| {
        let stem = args.config.file_stem().unwrap_or_default();
        PathBuf::from("runs").join(stem)
    });
    let options = train::Options { config, device: args.device, out, resume: args.resume };
    let stop = on_interrupt()?;
    match train::run(&options, &stop)? {
        Outcome::Finished => Ok(ExitCode::SUCCESS),
        Outcome::Interrupted => Ok(ExitCode::from(INTERRUPTED)),
    }
}

/// A flag that the first Ctrl-C or SIGTERM sets; the second ends the process at once. SIGHUP is left alone, for `nohup`.
fn on_interrupt() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("the handler for Ctrl-C cannot be set")?;
    thread::spawn(move || {
        for _ in signals.forever() {
            if flag.swap(true, Ordering::SeqCst) {
                std::process::exit(i32::from(INTERRUPTED));
            }
            eprintln!("interrupted: the step is finished and saved; once more ends at once");
        }
    });
    Ok(stop)
}
