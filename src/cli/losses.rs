//! `warpo losses [NAME]`: what can be minimised, and how.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::loss::{find, page};

/// Arguments of `warpo losses`.
#[derive(clap::Args)]
pub struct Args {
    /// The loss to describe; without it all are listed
    name: Option<String>,
}

/// Lists the losses, or describes one.
///
/// # Errors
/// There is no loss of this name, or standard output cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let text = match &args.name {
        Some(name) => page::entry(find(name).with_context(|| format!("`{name}`"))?),
        None => page::list(),
    };
    super::print(&format!("{}\n", text.trim_start_matches("### ").trim_end()))?;
    Ok(ExitCode::SUCCESS)
}
