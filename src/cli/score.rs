//! `warpo score`: log-probabilities of the responses in a data file.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};

use crate::{
    config::{Config, Precision},
    device::Choice,
    eval::score::{self, ScoreOptions},
    report::terminal::{self, Talk},
};

#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face folder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Rows to score: every form and file type that `warpo train` reads; a pattern in quotes for several files
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// JSON lines, one a row: a file that does not exist, a pipe, or `-` for standard output
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Adds the log-probability of every token
    #[arg(long)]
    per_token: bool,
    /// Arithmetic of weights and activations; auto is bf16 on a GPU and f32 on the host device
    #[arg(long, value_name = "auto|f32|bf16", default_value = "auto")]
    precision: Precision,
    /// Tokens of one micro-batch at most, shared prompts counted once; 4096 if not given, or those of the longest row
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// auto, cuda, cuda:N or host; auto takes the first GPU if there is one
    #[arg(long, default_value = "auto")]
    device: Choice,
    /// Worker threads of the host device; 0 takes all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Sets a key that `warpo train` has in its TOML, such as `data.max_prompt_tokens=1024`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Says nothing but errors and the last line
    #[arg(short, long)]
    quiet: bool,
}

/// What no row is longer than: the model's positions are the limit.
const NO_LIMIT: usize = 1 << 40;

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut config = Config::default();
    config.model.path.clone_from(&args.model);
    config.data.train = args.data.clone().into();
    config.batch.tokens = args.tokens.unwrap_or(config.batch.tokens);
    (config.data.max_prompt_tokens, config.data.max_response_tokens) = (NO_LIMIT, NO_LIMIT);
    config.train.precision = args.precision;
    config.train.threads = args.threads;
    let config = config.with_overrides(&args.set)?;
    args.set.iter().try_for_each(|text| refuse_unused(text))?;
    if args.quiet {
        terminal::talk(Talk::Quiet);
    }
    let named = args.set.iter().any(|text| text.trim_start().starts_with("batch.tokens"));
    let options = ScoreOptions {
        config,
        grows: args.tokens.is_none() && !named,
        device: args.device,
        out: args.out.clone(),
        per_token: args.per_token,
    };
    score::run(&options)?;
    Ok(ExitCode::SUCCESS)
}

/// Keys that `warpo score` reads, and sections of which it reads the other keys too.
const USED: [&str; 5] = ["model.path", "data.train", "batch.tokens", "train.precision", "train.threads"];
const SECTIONS: [&str; 2] = ["data.", "cache."];
/// Keys of these sections that it does not read.
const UNUSED: [&str; 3] = ["data.eval", "data.eval_fraction", "data.order"];

/// Refuses an override that would change nothing.
fn refuse_unused(text: &str) -> Result<()> {
    let key = text.split('=').next().unwrap_or_default().trim();
    let whole = SECTIONS.iter().any(|section| key.starts_with(section));
    ensure!(
        USED.contains(&key) || whole && !UNUSED.contains(&key),
        "--set {text}: `{key}` has no effect on `warpo score`: remove it; [data], [cache] and {} have one",
        USED.join(", ")
    );
    Ok(())
}
