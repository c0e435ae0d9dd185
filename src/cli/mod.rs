//! The command line: one file per command.

mod data;
mod doctor;
mod losses;
mod score;
mod train;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Trains transformers from preferences with hand-written CUDA kernels.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Trains a model as a TOML file says
    Train(train::Args),
    /// Shows what the rows of a run become: text, tokens, what the loss covers, lengths and packs
    Data(data::Args),
    /// Writes the log-probability a model gives to each response of a data file
    Score(score::Args),
    /// Lists the losses, or describes one: formula, gradient, parameters, data, traps
    Losses(losses::Args),
    /// Shows the devices, the driver and the kernels this program was built with
    Doctor(doctor::Args),
}

/// Reads the command line and runs the command. Wrong usage ends the process with exit code 2 (clap's own).
///
/// # Errors
/// The command failed.
pub fn run() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Train(args) => train::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Losses(args) => losses::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    }
}
