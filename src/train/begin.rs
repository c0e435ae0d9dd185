//! What a run does before it steps: everything that can be found wrong is found here, in the order of what it costs.

use anyhow::{Result, ensure};
use half::bf16;

use super::{
    Options, Outcome,
    folder::{self, RunFolder},
    inputs::Inputs,
    introduction::introduce,
    look::Look,
    plan,
    run::Run,
    session::Session,
    start::{self, Start},
};
use crate::{
    config::{Config, Recompute},
    device::{DType, Device, Float, HostOptions},
    error::Error,
    model::{self, ModelConfig},
    report::terminal::say,
    roles::{Decision, RunPlan},
    stop::{Phase, Stop},
};

/// Trains as `options` say. `stop` ends the run after the pack or the step at hand, with everything saved.
///
/// # Errors
/// Anything that ends the run before its last step, in one line.
pub fn run(options: &Options, stop: &Stop) -> Result<Outcome, Error> {
    run_with(options, options.config.host(), stop)
}

/// As [`run`], with a host device of the caller's choice where the run takes one.
///
/// # Errors
/// As [`run`].
pub fn run_with(options: &Options, host: HostOptions, stop: &Stop) -> Result<Outcome, Error> {
    Ok(begin(options, host, stop)?)
}

fn begin(options: &Options, host: HostOptions, stop: &Stop) -> Result<Outcome> {
    refuse_cache(options)?;
    // Before anything in the folder is read, and until the run has ended.
    let folder = RunFolder::open(&options.out)?;
    if !folder.is_locked() {
        say(&format!(
            "run folder {}: its file system has no locks: nothing keeps a second run out of it",
            options.out.display()
        ));
    }
    let mut options = start::settled(options)?;
    let refused = |why: anyhow::Error| Error::Resume { folder: options.out.clone(), line: format!("{why:#}") };
    let start = start::start(&options).map_err(refused)?;
    let device = options.config.open_device(options.device, host)?;
    let said = options.config.train.precision.describe(&device);
    // From here on, and in the run folder, it is what it stands for.
    options.config.train.precision = options.config.train.precision.settled(&device);
    let config = &options.config;
    let shape = ModelConfig::load(&config.model.path)?;
    let kernels = model::check_kernels(&device, &shape, config.train.precision.on(&device), true);
    kernels.map_err(|why| Error::Device { line: format!("{why:#}") })?;
    let inputs = Inputs::read(config)?;
    let resumed = start::check_resumed(&start, &inputs, &options.out, config, &device).map_err(refused)?;
    let found = Look::at_start(&inputs, config, &device, &start)?.decide()?;
    found.check()?;
    remember(&mut options.config, &found);
    let (options, config, plan) = (&options, &options.config, &found.plan);
    let space = plan::check_disk(&inputs, options, &plan.policy, &start)?;
    introduce(config, &inputs, &device, &found, &said)?;
    resumed.iter().chain(&space).for_each(|line| say(line));
    if options.resume && !matches!(start, Start::From(..)) {
        say(&format!("no checkpoint in {}: starting from the beginning", options.out.display()));
    }
    match config.train.precision.on(&device) {
        DType::Bf16 => train::<bf16>(options, inputs, &device, plan, &start, stop),
        _ => train::<f32>(options, inputs, &device, plan, &start, stop),
    }
}

/// Puts what the plan chose into the configuration, so that a repeat does not depend on what is free then. The usual chunk of
/// the head is none of it: a run that began without the key goes on without it.
fn remember(config: &mut Config, found: &Decision) {
    let policy = &found.plan.policy;
    config.train.recompute = Recompute::of(&policy.levels);
    if policy.capacity.head_chunk_rows < found.usual_chunk_rows.min(policy.capacity.rows) {
        config.train.head_chunk_rows = Some(policy.capacity.head_chunk_rows);
    }
}

/// A run must not end up among what the cache keeps, as `warpo train cache.toml` would.
fn refuse_cache(options: &Options) -> Result<()> {
    let Some(cache) = options.config.cache.folder() else { return Ok(()) };
    let same = std::path::absolute(&options.out)? == std::path::absolute(cache)?;
    ensure!(
        !same,
        "run folder {}: it is the folder of the cache (`cache.dir`): name another by --out",
        options.out.display()
    );
    Ok(())
}

fn train<T: Float>(
    options: &Options,
    inputs: Inputs,
    device: &Device,
    plan: &RunPlan,
    start: &Start,
    stop: &Stop,
) -> Result<Outcome> {
    let mut session = Session::<T>::open(options, inputs, device, plan, start)?;
    stop.enter(Phase::Starting);
    // Nothing was written until here: a run refused for its inputs leaves no folder behind.
    if options.overwrite && options.out.join(folder::CONFIG).exists() {
        start::remove_run(&options.out)?;
    }
    folder::write_config(&options.out, &options.config)?;
    if let Start::From(_, saved) = start {
        start::set_final_aside(&options.out, saved, session.state.total_steps, &options.config.train)?
            .iter()
            .for_each(|line| say(line));
    }
    let Some(values) = session.references(stop)? else { return Ok(session.interrupted_early()) };
    let supplies = session.supplies(values)?;
    Run::new(session, supplies, stop)?.train()
}
