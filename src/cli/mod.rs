//! The command line: one file per command.

#[cfg(feature = "bench")]
mod bench;
mod completions;
mod data;
mod doctor;
mod eval;
mod init;
mod losses;
mod man;
mod plan;
mod report;
mod score;
mod signals;
mod talk;
mod train;

use std::{
    env::args_os,
    ffi::OsString,
    io::{ErrorKind, Write, stderr, stdout},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, Subcommand};

use crate::escape::{visible, visible_lines};

/// Trains transformers from preferences with hand-written CUDA kernels.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Writes a first configuration for a model and a data file, or from a YAML file of TRL, axolotl or LLaMA-Factory
    Init(init::Args),
    /// Trains a model as a TOML file says
    Train(train::Args),
    /// Shows what a run would take of a device, what it would compute again to fit, and what would help
    Plan(plan::Args),
    /// Shows what the rows of a run become: text, tokens, what the loss covers, lengths and packs
    Data(data::Args),
    /// Writes the log-probability a model gives to each response of a data file
    Score(score::Args),
    /// Says what a model is worth on held-out rows
    Eval(eval::Args),
    /// Shows how runs went: their metrics side by side, and where their configurations differ
    Report(report::Args),
    /// Lists the losses, or describes one: formula, gradient, parameters, data, traps
    Losses(losses::Args),
    /// Times kernels and whole steps, compares results, draws a roofline
    #[cfg(feature = "bench")]
    Bench(bench::Args),
    /// Shows the devices, the driver and the kernels this program was built with
    Doctor(doctor::Args),
    /// Writes the script by which a shell completes commands and options
    #[command(after_help = completions::PLACES)]
    Completions(completions::Args),
    /// Writes the page of a command for `man`, or the pages of all into a folder
    Man(man::Args),
}

/// All commands with their options.
fn tree() -> clap::Command {
    Cli::command()
}

/// The program: runs the command that the command line says, its errors one line each. Exit code 0: done; 1: failed; 2: wrong
/// usage; 130: interrupted and saved.
pub fn main() -> ExitCode {
    exit(run(args_os()))
}

/// The program as these words, behind which come those of the command line but for `--bench`, which `cargo bench` adds.
pub fn main_of(words: &[&str]) -> ExitCode {
    let own = ["warpo"].iter().chain(words).map(OsString::from);
    exit(run(own.chain(args_os().skip(1).filter(|word| word != "--bench"))))
}

fn exit(done: Result<ExitCode>) -> ExitCode {
    done.unwrap_or_else(|why| {
        let line = format!("{why:#}").split_whitespace().collect::<Vec<_>>().join(" ");
        // Whoever reads may be gone: the exit code still tells.
        let _ = writeln!(stderr(), "error: {}", visible(&line));
        ExitCode::FAILURE
    })
}

/// Runs the command that `words` say, the first of which is the program's name. Wrong usage gives exit code 2 (clap's own).
///
/// # Errors
/// The command failed.
pub fn run(words: impl Iterator<Item = OsString>) -> Result<ExitCode> {
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(why) => return wrong_usage(&why),
    };
    match cli.command {
        Command::Init(args) => init::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Score(args) => score::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Losses(args) => losses::run(&args),
        #[cfg(feature = "bench")]
        Command::Bench(args) => bench::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Completions(args) => completions::run(&args, tree()),
        Command::Man(args) => man::run(&args, tree()),
    }
}

/// Help and the version as clap shows them; a mistake without its colours, for it repeats what was typed.
fn wrong_usage(why: &clap::Error) -> Result<ExitCode> {
    if !why.use_stderr() {
        match why.print() {
            Err(why) if why.kind() == ErrorKind::BrokenPipe => {}
            done => done.context("standard output: cannot be written")?,
        }
    } else {
        let _ = write!(stderr(), "{}", visible_lines(&why.render().to_string()));
    }
    Ok(ExitCode::from(u8::try_from(why.exit_code()).unwrap_or(2)))
}

/// Writes what a command makes to standard output.
///
/// # Errors
/// It cannot be written, but for a reader that has seen enough (`| head`).
fn print(text: &str) -> Result<()> {
    match stdout().write_all(text.as_bytes()).and_then(|()| stdout().flush()) {
        Err(why) if why.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.context("standard output: cannot be written"),
    }
}
