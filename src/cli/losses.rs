//! `warpo losses [NAME]`: what can be minimised, and how.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::{
    loss::{find, page},
    train::log::say,
};

/// Arguments of `warpo losses`.
#[derive(clap::Args)]
pub struct Args {
    /// The loss to describe; without it all are listed
    name: Option<String>,
}

/// Lists the losses, or describes one.
///
/// # Errors
/// There is no loss of this name.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.name {
        Some(name) => {
            let entry = page::entry(find(name).with_context(|| format!("`{name}`"))?);
            say(entry.trim_start_matches("### ").trim_end());
        }
        None => say(page::list().trim_end()),
    }
    Ok(ExitCode::SUCCESS)
}
