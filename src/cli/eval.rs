//! `warpo eval WORD`: what a model is worth, a word an evaluation.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::{Map, Value};

use super::{
    signals::{self, INTERRUPTED},
    talk,
};
use crate::{
    config::Config,
    device::Choice,
    loss::MetricSums,
    report::{
        history::HELD_OUT,
        terminal::{conclude, leave_output_alone},
    },
    stop::Stop,
    train::evaluation::{self, EvaluationOptions},
};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The held-out metrics of a run for any model folder, without training
    Run(RunArgs),
}

#[derive(clap::Args)]
struct RunArgs {
    /// Run configuration, or the config.toml of a run folder
    #[arg(value_name = "RUN.toml")]
    config: PathBuf,
    /// Whose metrics are wanted: a Hugging Face folder, such as `final`, `best` or a checkpoint of the run
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Writes one JSON object to standard output, names as in metrics.jsonl; all other lines go to standard error
    #[arg(long)]
    json: bool,
    /// Overrides a key of the configuration, such as `data.eval=other.jsonl`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// auto, cuda, cuda:N or host; auto takes the first GPU if there is one
    #[arg(long, default_value = "auto")]
    device: Choice,
    #[command(flatten)]
    talk: talk::Args,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let What::Run(args) = &args.what;
    talk::set(&args.talk);
    if args.json {
        leave_output_alone();
    }
    let config = Config::load(&args.config, &args.set)?;
    let options = EvaluationOptions { config, model: args.model.clone(), device: args.device };
    let stop = Stop::default();
    signals::listen(&stop)?;
    let found = evaluation::run(&options, &stop).with_context(|| args.config.display().to_string())?;
    let Some(found) = found else {
        conclude("interrupted: nothing was written");
        return Ok(ExitCode::from(INTERRUPTED));
    };
    if args.json {
        super::print(&json(&found)?)?
    } else {
        conclude(&line(&found))
    }
    Ok(ExitCode::SUCCESS)
}

/// Every metric, by the name it has in `metrics.jsonl`.
fn json(found: &MetricSums) -> Result<String> {
    let named = found.iter().map(|(name, value)| (format!("{HELD_OUT}{name}"), Value::from(value)));
    Ok(format!("{}\n", serde_json::to_string(&Map::from_iter(named))?))
}

fn line(found: &MetricSums) -> String {
    let text: Vec<String> = found.iter().map(|(name, value)| format!("{HELD_OUT}{name} {value:.4}")).collect();
    text.join("  ")
}
