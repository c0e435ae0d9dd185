//! `--quiet` and `-v`: how much a command says.

use crate::report::terminal::{self, Talk};

/// The two options.
#[derive(clap::Args)]
pub struct Args {
    /// Says nothing but errors and the last line
    #[arg(short, long, conflicts_with = "verbose")]
    quiet: bool,
    /// Says every step with every metric, and the resolved configuration
    #[arg(short, long)]
    verbose: bool,
}

/// From now on so much is said.
pub fn set(args: &Args) {
    terminal::talk(match args {
        Args { quiet: true, .. } => Talk::Quiet,
        Args { verbose: true, .. } => Talk::Verbose,
        _ => Talk::Usual,
    });
}
