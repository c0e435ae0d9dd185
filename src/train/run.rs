//! The run itself: reference pass, steps, evaluations, checkpoints, in that order.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use half::bf16;
use serde_json::Value;

use super::{
    Options, Outcome, batches,
    checkpoint::{self, State},
    evaluate,
    log::{self, Metrics, Record, Terminal, say},
    prepare::{self, Inputs, Start},
    reference::{self, Pass, Reference},
    settings,
    step::{Done, Queued, Trainer},
    token_mask::TokenMasks,
};
use crate::{
    config::{Config, Init, Precision},
    data::{
        Report,
        loader::{Loader, Position},
    },
    device::{Device, Event, Float, HostOptions},
    model::{MemoryPlan, Model},
    optim::{AdamW, LearningRate, Settings},
};

const REFERENCE: &str = "reference.safetensors";
const METRICS: &str = "metrics.jsonl";
/// So many steps in a row without a finite gradient norm end the run.
const SKIPS_ALLOWED: u64 = 5;

/// Trains as `options` say. `stop` ends the run after the step at hand, with everything saved.
///
/// # Errors
/// Anything that ends the run before its last step, in one line.
pub fn run(options: &Options, stop: &AtomicBool) -> Result<Outcome> {
    let host = HostOptions { threads: options.config.train.threads, ..HostOptions::default() };
    run_with(options, host, stop)
}

/// As [`run`], with a host device of the caller's choice where the run takes one.
///
/// # Errors
/// As [`run`].
pub fn run_with(options: &Options, host: HostOptions, stop: &AtomicBool) -> Result<Outcome> {
    let config = &options.config;
    let start = prepare::start(options)?;
    let device = Device::open(options.device, host)?;
    let inputs = Inputs::read(config)?;
    let plan = inputs.plan(config, &device)?;
    introduce(config, &inputs, &device, &plan)?;
    if options.resume && !matches!(start, Start::From(..)) {
        say(&format!("no checkpoint in {}: starting from the beginning", options.out.display()));
    }
    match config.train.precision {
        Precision::F32 => Run::<f32>::new(options, inputs, &device, plan, start)?.train(stop),
        Precision::Bf16 => Run::<bf16>::new(options, inputs, &device, plan, start)?.train(stop),
    }
}

/// Says what is about to happen, before it takes time.
fn introduce(config: &Config, inputs: &Inputs, device: &Device, plan: &MemoryPlan) -> Result<()> {
    say(&format!("device: {}", device.describe()));
    say(&plan.to_string());
    let eval = inputs.eval.as_ref().map_or(0, |eval| eval.trees.len());
    say(&format!("loss: {}", inputs.loss.names()));
    say(&format!("data: {} rows to train on, {eval} held out", inputs.train.rows()));
    for skipped in inputs.train.skipped.iter().chain(inputs.eval.iter().flat_map(|eval| &eval.skipped)) {
        say(&format!("left out: {skipped}"));
    }
    inputs.origins.iter().for_each(|origin| say(origin));
    for (what, data) in [("training", Some(&inputs.train)), ("held-out", inputs.eval.as_ref())] {
        let report = data.map(|data| data.report).unwrap_or_default();
        report.documents().into_iter().for_each(|documents| say(&format!("{what}: {documents}")));
        let Report { prompts_cut, responses_cut, rows_dropped, .. } = report;
        if prompts_cut + responses_cut + rows_dropped > 0 {
            say(&format!(
                "long {what} rows: {prompts_cut} prompts cut, {responses_cut} responses cut, {rows_dropped} rows dropped"
            ));
        }
    }
    let packing = batches::packing(&inputs.train, config)?;
    say(&packing.describe(&config.batch));
    Ok(())
}

/// A step that was launched, and where the run stands after it.
struct Launched {
    queued: Queued,
    lr: f64,
    data: Position,
    epoch: f64,
    /// On the device: the end of the step before, or of nothing if the device was idle, and the end of this one.
    time: [Arc<Event>; 2],
}

struct Run<'a, T> {
    options: &'a Options,
    inputs: Inputs,
    trainer: Trainer<T>,
    loader: Loader,
    rate: LearningRate,
    /// After the last step that was read.
    state: State,
    /// Steps launched, of which the last may be unread.
    launched: u64,
    unread: Option<Launched>,
    /// Records of `metrics.jsonl` up to this step stay; `None` if none does.
    resumed: Option<u64>,
}

impl<'a, T: Float> Run<'a, T> {
    fn new(options: &'a Options, inputs: Inputs, device: &Device, plan: MemoryPlan, start: Start) -> Result<Self> {
        let config = &options.config;
        let total_steps = inputs.total_steps;
        let model = Model::<T>::new(device, &inputs.model, plan)?;
        match (&start, config.model.init) {
            (Start::From(..), _) => {}
            (_, Init::Random) => model.randomize(config.train.seed)?,
            (_, Init::Pretrained) => model.load(&config.model.path)?,
        }
        let optimizer = AdamW::new(device, model.params(), model.layout(), optimizer_settings(config))?;
        let mut loader = batches::loader(&inputs.train, config)?;
        let mut state = State::new(total_steps, config.train.seed, settings::hash(config)?);
        if let Start::From(folder, saved) = &start {
            ensure!(
                saved.config_hash == state.config_hash && saved.total_steps == total_steps,
                "{}: saved by a run with other settings or other data",
                folder.display()
            );
            checkpoint::load(folder, &model, &optimizer, saved)?;
            loader.seek(saved.data)?;
            state = saved.clone();
        }
        let rate = LearningRate {
            peak: config.optim.lr,
            schedule: config.optim.schedule,
            warmup_steps: config.optim.warmup(total_steps),
            total_steps,
        };
        let resumed = matches!(start, Start::From(..)).then_some(state.step);
        let mut trainer = Trainer::new(model, optimizer, inputs.loss.clone())?;
        trainer.graphed = config.train.cuda_graph;
        if let Some(plan) = inputs.reference_plan(config, device)? {
            let beside = Model::<T>::new(device, &inputs.model, plan)?;
            match config.model.init {
                Init::Random => beside.randomize(config.train.seed)?,
                Init::Pretrained => beside.load(&config.model.path)?,
            }
            trainer.reference = Some(beside);
        }
        let settings = optimizer_settings(config);
        trainer.masks = TokenMasks::new(device, &trainer.loss, &inputs.model, config.train.seed, settings)?;
        if let (Start::From(folder, _), Some(masks)) = (&start, &trainer.masks) {
            masks.load(device, folder)?;
        }
        device.copy_in(&trainer.loss_state, &state.loss_state)?;
        let launched = state.step;
        Ok(Self { options, inputs, trainer, loader, rate, state, launched, unread: None, resumed })
    }

    fn train(mut self, stop: &AtomicBool) -> Result<Outcome> {
        // Nothing was written until here: a run refused for its inputs leaves no folder behind.
        prepare::open_folder(&self.options.out, self.config())?;
        let Some(references) = self.references(stop)? else {
            say("interrupted before the first step: there is nothing to save yet");
            return Ok(Outcome::Interrupted);
        };
        let held_out = self.held_out()?;
        let mut metrics = Metrics::open(&self.options.out.join(METRICS), self.resumed)?;
        let mut terminal = Terminal::new(self.state.step, self.state.total_steps, self.config().train.log_every);
        if let Some(step) = self.resumed {
            terminal.say(&format!("resumed after step {step} of {}", self.state.total_steps));
        } else {
            self.evaluate(&held_out, &references.1, &mut metrics, &terminal)?;
        }
        let stopped = self.steps(stop, &references, &held_out, &mut metrics, &mut terminal)?;
        terminal.finish();
        if stopped {
            let State { step, total_steps, .. } = self.state;
            say(&format!("interrupted after step {step} of {total_steps}: --resume goes on"));
            return Ok(Outcome::Interrupted);
        }
        self.finish()
    }

    /// All steps, with their evaluations and checkpoints. True if `stop` came before the last.
    fn steps(
        &mut self,
        stop: &AtomicBool,
        (train_reference, eval_reference): &(Reference, Reference),
        held_out: &[Vec<usize>],
        metrics: &mut Metrics,
        terminal: &mut Terminal,
    ) -> Result<bool> {
        while self.launched < self.state.total_steps {
            self.launch(train_reference, metrics, terminal)?;
            let step = self.launched;
            let last = step == self.state.total_steps;
            let evaluates = last || is_due(step, self.config().train.eval_every);
            let saves = last || is_due(step, self.config().train.save_every);
            // The first step's gradients are looked at before the next one overwrites them.
            let goes_on = self.trainer.model.device().runs_ahead() && step > 1;
            if goes_on && !evaluates && !saves && !stop.load(Ordering::SeqCst) {
                continue;
            }
            self.read(metrics, terminal)?;
            if evaluates {
                self.evaluate(held_out, eval_reference, metrics, terminal)?;
            }
            let stopping = !last && stop.load(Ordering::SeqCst);
            // Weights that only lead to gradients that are not finite must not push out older ones.
            let healthy = self.state.skipped_in_a_row == 0;
            if last || stopping || (healthy && saves) {
                let saved = self.save(metrics, healthy)?;
                terminal.say(&format!("saved {}", saved.display()));
            }
            if stopping {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn config(&self) -> &Config {
        &self.options.config
    }

    /// Reference log-probabilities of both files: read if they are there, computed and written if this run starts.
    /// `None` if `stop` came first.
    fn references(&self, stop: &AtomicBool) -> Result<Option<(Reference, Reference)>> {
        let loss = &self.trainer.loss;
        // A reference that runs beside the policy gives its values as they are needed.
        if loss.needs_divergence() || !loss.needs_reference() && !self.config().train.track_reference {
            return Ok(Some((Reference::none(), Reference::none())));
        }
        let path = self.options.out.join(REFERENCE);
        let (train, eval) = (&self.inputs.train.trees, self.inputs.eval.as_ref().map_or(&[][..], |eval| &eval.trees));
        if let Some(found) = reference::load(&path, train, eval)? {
            return Ok(Some(found));
        }
        ensure!(self.resumed.is_none(), "{}: missing: without it the run cannot go on", path.display());
        let Some(mut sets) = self.reference_pass(stop, "reference")? else { return Ok(None) };
        if let (Some(alpha), Some(older)) = (self.trainer.loss.acceleration(), &self.config().model.older_reference) {
            // The older model takes the place of the starting weights for one pass.
            let model = &self.trainer.model;
            let start = model.device().download(model.params())?;
            model.load(older).context("`model.older_reference`")?;
            let found = self.reference_pass(stop, "older reference");
            model.device().copy_in(model.params(), &start)?;
            let Some(older) = found? else { return Ok(None) };
            sets.iter_mut().zip(&older).for_each(|(set, older)| set.accelerate(older, alpha));
        }
        let [train_set, eval_set] = sets;
        reference::save(&path, reference::data_key(train, eval), &train_set, &eval_set)
            .context("make room, then go on with --resume")?;
        Ok(Some((train_set, eval_set)))
    }

    /// Log-probabilities of both files under the weights the model has now; `None` if `stop` came first.
    fn reference_pass(&self, stop: &AtomicBool, name: &str) -> Result<Option<[Reference; 2]>> {
        let (train, eval) = (&self.inputs.train.trees, self.inputs.eval.as_ref().map_or(&[][..], |eval| &eval.trees));
        let config = self.config();
        let started = Instant::now();
        let mut pass =
            Pass::new(&self.trainer.model, config.batch.tokens, config.cache.folder(), [train.as_slice(), eval])?;
        pass.warnings.drain(..).for_each(|warning| say(&format!("cache: {warning}")));
        say(&format!("{name}: {}", pass.describe()?));
        let missing = pass.missing();
        let bar = Terminal::new(0, missing as u64, u64::MAX);
        let sets = pass.run(|done| {
            bar.show(done as u64, "reference log-probabilities");
            !stop.load(Ordering::SeqCst)
        });
        bar.finish();
        pass.warnings.drain(..).for_each(|warning| say(&format!("cache: {warning}")));
        let sets = sets?;
        if missing > 0 && sets.is_some() {
            say(&format!("{name} log-probabilities computed in {}", log::duration(started.elapsed())));
        }
        Ok(sets)
    }

    /// The packs of the held-out file.
    fn held_out(&self) -> Result<Vec<Vec<usize>>> {
        let Some(eval) = &self.inputs.eval else { return Ok(Vec::new()) };
        batches::plan_all(&eval.trees, self.config().batch.tokens)
    }

    /// Launches the next step, and reads the one before while the device is at work on it.
    fn launch(&mut self, reference: &Reference, metrics: &mut Metrics, terminal: &mut Terminal) -> Result<()> {
        let device = self.trainer.model.device().clone();
        let start = match &self.unread {
            Some(Launched { time: [_, end], .. }) => end.clone(),
            None => Arc::new(device.record()?),
        };
        let trees = &self.inputs.train.trees;
        let step = self.loader.next_step();
        let packs = step.iter().map(|members| batches::build(trees, members)).collect::<Result<Vec<_>>>()?;
        let (lr, first) = (self.rate.at(self.launched), self.launched == 0);
        let queued = self.trainer.queue(trees, &packs, reference, lr, first)?;
        let time = [start, Arc::new(device.record()?)];
        self.read(metrics, terminal)?;
        self.launched += 1;
        self.unread = Some(Launched { queued, lr, data: self.loader.position(), epoch: self.loader.epochs(), time });
        Ok(())
    }

    /// Waits for the step that was not read yet, if there is one, and writes what it says.
    fn read(&mut self, metrics: &mut Metrics, terminal: &mut Terminal) -> Result<()> {
        let Some(Launched { queued, lr, data, epoch, time: [start, end] }) = self.unread.take() else { return Ok(()) };
        let done = self.trainer.finish(queued)?;
        let seconds = self.trainer.model.device().elapsed_ms(&start, &end)? / 1e3;
        self.advance(&done, data, epoch);
        metrics.write(&self.record(&done, lr, seconds))?;
        terminal.step(self.state.step, &summary(&done, seconds));
        if !done.update.applied {
            let State { step, skipped_steps, skipped_in_a_row, .. } = self.state;
            terminal.say(&format!(
                "step {step}: the gradient norm is {}: update skipped ({skipped_in_a_row} in a row, {skipped_steps} in \
                 all)",
                done.update.grad_norm
            ));
            ensure!(
                skipped_in_a_row < SKIPS_ALLOWED,
                "step {step}: the gradient norm was not finite {SKIPS_ALLOWED} times in a row: lower `optim.lr` = {} or \
                 lengthen the warm-up; checkpoints in {} are kept",
                self.config().optim.lr,
                self.options.out.display()
            );
        }
        Ok(())
    }

    fn advance(&mut self, done: &Done, data: Position, epoch: f64) {
        let state = &mut self.state;
        state.step += 1;
        (state.data, state.epoch) = (data, epoch);
        state.num_tokens += done.tokens as u64;
        state.loss_state = done.loss_state.clone();
        state.updates += u64::from(done.update.applied);
        state.skipped_steps += u64::from(!done.update.applied);
        state.skipped_in_a_row = if done.update.applied { 0 } else { state.skipped_in_a_row + 1 };
    }

    fn record(&self, done: &Done, lr: f64, seconds: f64) -> Record {
        let device = self.trainer.model.device();
        let peak = device.peak_flops(T::DTYPE);
        let light = if peak > 0.0 { Value::from(done.flops / (peak * seconds)) } else { Value::Null };
        let mut record = Record::new();
        record.insert("step".into(), self.state.step.into());
        record.insert("epoch".into(), self.state.epoch.into());
        for (name, value) in done.metrics.iter() {
            record.insert(name.into(), value.into());
        }
        let rest: [(&str, Value); 8] = [
            ("grad_norm", f64::from(done.update.grad_norm).into()),
            ("learning_rate", lr.into()),
            ("num_tokens", self.state.num_tokens.into()),
            ("skipped_steps", self.state.skipped_steps.into()),
            ("tokens_per_second", (done.tokens as f64 / seconds).into()),
            ("speed_of_light", light),
            ("step_ms", (seconds * 1e3).into()),
            ("memory_bytes", device.memory().peak.into()),
        ];
        record.extend(rest.map(|(name, value)| (name.to_string(), value)));
        record
    }

    fn evaluate(
        &self,
        held_out: &[Vec<usize>],
        reference: &Reference,
        metrics: &mut Metrics,
        terminal: &Terminal,
    ) -> Result<()> {
        let Some(eval) = &self.inputs.eval else { return Ok(()) };
        let State { step, epoch, .. } = self.state;
        let means = self.trainer.evaluate(&eval.trees, held_out, reference, step == 0)?;
        metrics.write(&evaluate::record(step, epoch, &means))?;
        terminal.say(&evaluate::summary(step, &means));
        Ok(())
    }

    fn save(&self, metrics: &Metrics, prune: bool) -> Result<PathBuf> {
        // The checkpoint promises the records up to its step.
        metrics.sync()?;
        let Trainer { model, optimizer, masks, .. } = &self.trainer;
        let out = &self.options.out;
        let saved = checkpoint::save(out, model, &self.config().model.path, optimizer, masks.as_ref(), &self.state)
            .with_context(|| {
                let folder = checkpoint::folder(out, self.state.step);
                format!("{}: not saved: make room there, then go on with --resume", folder.display())
            })?;
        if prune {
            checkpoint::prune(out, self.config().train.keep_checkpoints)?;
        }
        Ok(saved)
    }

    /// The last checkpoint's model files under a name that does not depend on the number of steps.
    fn finish(&self) -> Result<Outcome> {
        let out = &self.options.out;
        let last = checkpoint::folder(out, self.state.step);
        say(&format!("done: the model is in {}", checkpoint::finish(out, &last)?.display()));
        Ok(Outcome::Finished)
    }
}

fn is_due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}

fn optimizer_settings(config: &Config) -> Settings {
    let optim = &config.optim;
    Settings {
        beta1: optim.beta1,
        beta2: optim.beta2,
        eps: optim.eps,
        weight_decay: optim.weight_decay,
        max_grad_norm: optim.max_grad_norm,
    }
}

/// The step's line on the terminal.
fn summary(done: &Done, seconds: f64) -> String {
    let (norm, speed) = (done.update.grad_norm, done.tokens as f64 / seconds);
    format!("{}  grad_norm {norm:.3}  {speed:.0} tokens/s", evaluate::preferences(&done.metrics))
}
