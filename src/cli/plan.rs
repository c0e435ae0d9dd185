//! `warpo plan`: what a run takes of a device, before there is one.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail, ensure};
use clap::{ArgGroup, builder::NonEmptyStringValueParser};

use crate::{
    config::{Config, Precision},
    device::{Choice, Device, GemmBackend, HostOptions},
    model::{ModelConfig, released},
    roles::Decision,
    train::look::{Look, Target},
    units,
};

#[derive(clap::Args)]
#[command(group = ArgGroup::new("what").required(true))]
pub struct Args {
    /// Run configuration: its rows are read, its weights are not
    #[arg(value_name = "RUN.toml", group = "what")]
    config: Option<PathBuf>,
    /// A released model by name, such as `llama-3-8b`, or a Hugging Face folder, of which config.json is enough
    #[arg(long, value_name = "NAME|DIR", group = "what", value_parser = NonEmptyStringValueParser::new())]
    model: Option<String>,
    /// Memory that may be used, such as `80GB` or `74.5GiB`, on a GPU like an H100; without it the device's own
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    device_memory: Option<usize>,
    /// auto, cuda, cuda:N or host: whose kernels, and whose memory if --device-memory is not given
    #[arg(long)]
    device: Option<Choice>,
    /// Overrides a key of the configuration, such as `batch.tokens=8192`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Writes one JSON object to standard output
    #[arg(long)]
    json: bool,
}

fn bytes(text: &str) -> Result<usize, String> {
    units::bytes(text).ok_or_else(|| "expected bytes as in 80GB, 74.5GiB or 82000000000".into())
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let (target, device) = target(args)?;
    let look = match (&args.config, &args.model) {
        (Some(file), _) => Look::at_run(&Config::load(file, &args.set)?, target)?,
        (None, model) => at_model(model.as_deref().unwrap_or_default(), &args.set, target)?,
    };
    let decision = look.decide()?;
    super::print(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&decision.json())?),
        false => format!("{device}\n{decision}\n{}", help(&decision)),
    })?;
    ensure!(
        decision.fits(),
        "the run takes {}, and {} may be used",
        units::gigabytes(decision.plan.total()),
        units::gigabytes(decision.free)
    );
    Ok(ExitCode::SUCCESS)
}

/// What would help, a line each.
fn help(decision: &Decision) -> String {
    match &decision.remedies()[..] {
        [] if decision.fits() => String::new(),
        [] => format!("nothing would help: {}\n", decision.no_remedy()),
        remedies => format!("what would help:\n  {}\n", remedies.join("\n  ")),
    }
}

/// The device that is planned for, and the line that says which.
fn target(args: &Args) -> Result<(Target, String)> {
    let Some(free) = args.device_memory.filter(|_| args.device.is_none()) else {
        let device = Device::open(args.device.unwrap_or(Choice::Auto), HostOptions::default())?;
        let line = format!("device: {}", device.describe());
        let free = args.device_memory.unwrap_or_else(|| device.memory().free);
        return Ok((Target { precision: None, free, device }, line));
    };
    // Emulated, and never launched on.
    let host = HostOptions { hopper: true, gemm: GemmBackend::Kernel, ..HostOptions::default() };
    let target = Target { device: Device::host(host)?, free, precision: Some(Precision::Bf16) };
    Ok((target, "device: as on an H100".into()))
}

/// A model without rows.
fn at_model(name: &str, set: &[String], target: Target) -> Result<Look> {
    let folder = PathBuf::from(name);
    let shape = match released::shape(name)? {
        Some(shape) => shape,
        None if folder.is_dir() => ModelConfig::load(&folder)?,
        None => {
            let names = released::names()?.join(", ");
            bail!("--model {name}: no folder, and none of {names}")
        }
    };
    set.iter().try_for_each(|text| refuse_unused(text))?;
    let mut config = Config::default();
    config.model.path = folder;
    config.data.train = PathBuf::from("rows").into();
    Look::at_model(shape, &config.with_overrides(set)?, target)
}

/// What decides about memory.
const USED: [&str; 6] = [
    "data.max_prompt_tokens",
    "data.max_response_tokens",
    "batch.tokens",
    "train.precision",
    "train.recompute",
    "train.head_chunk_rows",
];
const MORE: [&str; 2] = ["train.ema", "train.ref_model_sync_steps"];
const SECTIONS: [&str; 2] = ["loss", "optim"];

fn refuse_unused(text: &str) -> Result<()> {
    let key = text.split('=').next().unwrap_or_default().trim();
    let section = key.split('.').next().unwrap_or_default();
    ensure!(
        USED.contains(&key) || MORE.contains(&key) || SECTIONS.contains(&section),
        "--set {text}: `{key}` takes no memory: remove it; [loss], [optim] and {} do",
        [&USED[..], &MORE].concat().join(", ")
    );
    Ok(())
}
