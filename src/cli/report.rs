//! `warpo report RUN...`: how runs went.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;

use crate::{
    escape::visible_lines,
    report::{history::History, summary},
};

#[derive(clap::Args)]
pub struct Args {
    /// Folders of runs, live or finished
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let runs = History::read_all(&args.runs)?;
    super::print(&visible_lines(&summary::text(&runs)))?;
    Ok(ExitCode::SUCCESS)
}
