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
    super::print(&match &args.name {
        Some(name) => describe(name)?,
        None => page::list(),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The loss of this name; by which name it goes here comes first, where that is another.
fn describe(name: &str) -> Result<String> {
    let loss = find(name).with_context(|| format!("`{name}`"))?;
    let known = if loss.name.eq_ignore_ascii_case(name) {
        String::new()
    } else {
        format!("`{name}` is `{}` here\n\n", loss.name)
    };
    Ok(format!("{known}{}\n", page::entry(loss).trim_start_matches("### ").trim_end()))
}
