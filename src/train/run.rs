//! The run itself: reference pass, steps, evaluations, checkpoints, in that order.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use serde_json::Value;

use super::{
    Options, Outcome, Phase, Stop, batches,
    binding::{self, Hashes, Machine, REFERENCE},
    checkpoint::{self, State},
    disk::Patience,
    evaluate,
    folder::RunFolder,
    health::{self, Course, Probe},
    log::{self, Terminal, say},
    metrics::{Metrics, Record},
    open_device,
    prepare::{self, Inputs, Start},
    reference::{self, Pass, Reference},
    settings,
    step::{Done, Queued, Trainer},
    token_mask::TokenMasks,
    unused::{self, Facts},
};
use crate::{
    config::{Config, Init, Precision},
    data::{
        Report,
        loader::{Loader, Position},
    },
    device::{Device, Event, Float, HostOptions},
    model::{Companions, MemoryPlan, Model},
    optim::{AdamW, LearningRate, Settings},
};

const METRICS: &str = "metrics.jsonl";
/// So many steps in a row without a finite gradient norm end the run.
const SKIPS_ALLOWED: u64 = 5;

/// Trains as `options` say. `stop` ends the run after the pack or the step at hand, with everything saved.
///
/// # Errors
/// Anything that ends the run before its last step, in one line.
pub fn run(options: &Options, stop: &Stop) -> Result<Outcome> {
    let host = HostOptions { threads: options.config.train.threads, ..HostOptions::default() };
    run_with(options, host, stop)
}

/// As [`run`], with a host device of the caller's choice where the run takes one.
///
/// # Errors
/// As [`run`].
pub fn run_with(options: &Options, host: HostOptions, stop: &Stop) -> Result<Outcome> {
    refuse_cache(options)?;
    // Before anything in the folder is read, and until the run has ended.
    let folder = RunFolder::open(&options.out)?;
    if !folder.is_locked() {
        say(&format!(
            "run folder {}: its file system has no locks: nothing keeps a second run out of it",
            options.out.display()
        ));
    }
    let options = &prepare::dated(options)?;
    let config = &options.config;
    let start = prepare::start(options)?;
    let device = open_device(options.device, host, "train.threads")?;
    prepare::check_kernels(config, &device)?;
    let inputs = Inputs::read(config)?;
    let resumed = prepare::check_resumed(&start, &inputs, &options.out, config, &device)?;
    let plan = inputs.plan(config, &device)?;
    let space = inputs.check_space(options, &plan, &start)?;
    introduce(config, &inputs, &device, &plan)?;
    resumed.iter().chain(&space).for_each(|line| say(line));
    if options.resume && !matches!(start, Start::From(..)) {
        say(&format!("no checkpoint in {}: starting from the beginning", options.out.display()));
    }
    match config.train.precision {
        Precision::F32 => Run::<f32>::new(options, inputs, &device, plan, start)?.train(stop),
        Precision::Bf16 => Run::<bf16>::new(options, inputs, &device, plan, start)?.train(stop),
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

/// Says what is about to happen, before it takes time.
fn introduce(config: &Config, inputs: &Inputs, device: &Device, plan: &MemoryPlan) -> Result<()> {
    say(&format!("device: {}", device.describe()));
    plan.to_string().lines().for_each(say);
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
    let facts = Facts { config, loss: &inputs.loss, total_steps: inputs.total_steps, device: Some(device) };
    unused::notes(&facts)?.iter().for_each(|note| say(note));
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
    companions: Companions,
    /// Records of `metrics.jsonl` up to this step stay; `None` if none does.
    resumed: Option<u64>,
    /// When the last checkpoint was saved, or the first step began.
    saved: Instant,
    patience: Patience,
    /// What the first training row was given before the first step.
    start: Option<Probe>,
    /// Of the first and the last step that were read.
    losses: Option<[f64; 2]>,
    grad_norms: Option<[f64; 2]>,
    /// Of the held-out rows, the last time they were looked at.
    eval_loss: Option<f64>,
}

impl<'a, T: Float> Run<'a, T> {
    fn new(options: &'a Options, inputs: Inputs, device: &Device, plan: MemoryPlan, start: Start) -> Result<Self> {
        let config = &options.config;
        let total_steps = inputs.total_steps;
        let model = Model::<T>::new(device, &inputs.model, plan)?;
        let optimizer = AdamW::allocate(device, model.params(), model.layout(), optimizer_settings(config))?;
        match (&start, config.model.init) {
            (Start::From(..), _) => {}
            (_, Init::Random) => {
                model.randomize(config.train.seed)?;
                optimizer.start(device)?;
            }
            (_, Init::Pretrained) => model.load_with(&optimizer.master, &config.model.path)?,
        }
        let companions = Companions::new(&config.model.path, config.data.template.as_deref())?;
        let mut loader = batches::loader(&inputs.train, config)?;
        let mut state = State::new(total_steps, config.train.seed, settings::text(config)?, Machine::here(device));
        state.bound = inputs.bound.hashes();
        if let Start::From(folder, saved) = &start {
            ensure!(
                saved.total_steps == total_steps,
                "{}: saved by a run of {} steps, the settings and rows there are give {total_steps}: restore them, or \
                 start another run with --out",
                folder.display(),
                saved.total_steps
            );
            checkpoint::load(folder, &model, &optimizer, saved)?;
            loader.seek(saved.data)?;
            state = state.after(saved);
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
        let run = Self {
            options,
            inputs,
            trainer,
            loader,
            rate,
            state,
            launched,
            unread: None,
            companions,
            resumed,
            saved: Instant::now(),
            patience: Patience::default(),
            start: None,
            losses: None,
            grad_norms: None,
            eval_loss: None,
        };
        Ok(run)
    }

    fn train(mut self, stop: &Stop) -> Result<Outcome> {
        stop.enter(Phase::Starting);
        // Nothing was written until here: a run refused for its inputs leaves no folder behind.
        prepare::open_folder(&self.options.out, self.config())?;
        let Some(references) = self.references(stop)? else {
            return Ok(self.interrupted_early());
        };
        let before = std::mem::take(&mut self.state.bound);
        self.state.bound = self.inputs.bound.clone().with_reference(&self.options.out.join(REFERENCE))?.hashes();
        self.state.bound.extend(before);
        let held_out = self.held_out()?;
        let mut metrics = Metrics::open(&self.options.out.join(METRICS), self.resumed)?;
        let mut terminal = Terminal::new(self.state.step, self.state.total_steps, self.config().train.log_every);
        if let Some(step) = self.resumed {
            terminal.say(&format!("resumed after step {step} of {}", self.state.total_steps));
        }
        // An interruption may have left off the evaluation that belongs to the checkpoint.
        let owed = self.resumed.is_none_or(|step| self.evaluates(step) && metrics.evaluated() != Some(step));
        if owed {
            self.evaluate(stop, &held_out, &references.1, &mut metrics, &terminal)?;
        }
        if stop.requested() {
            terminal.finish();
            return Ok(self.interrupted_early());
        }
        self.look_before(&terminal)?;
        stop.enter(Phase::Stepping);
        let stopped = self.steps(stop, &references, &held_out, &mut metrics, &mut terminal)?;
        terminal.finish();
        if stopped {
            let State { step, total_steps, .. } = self.state;
            say(&format!("interrupted after step {step} of {total_steps}: --resume goes on"));
            return Ok(Outcome::Interrupted);
        }
        self.finish(stop, &terminal)
    }

    /// Says before the first step what cannot go well.
    fn look_before(&mut self, terminal: &Terminal) -> Result<()> {
        let probe = Probe::of(&self.trainer.model, &self.inputs.train.trees[0])?;
        health::too_fast(self.config().optim.lr, probe.size).iter().for_each(|warning| terminal.say(warning));
        self.start = self.resumed.is_none().then_some(probe);
        Ok(())
    }

    /// Refuses weights that are of no use, and says what speaks against the others.
    fn look_after(&self, terminal: &Terminal) -> Result<()> {
        let Trainer { model, .. } = &self.trainer;
        let end = Probe::of(model, &self.inputs.train.trees[0])?;
        if let Some(why) = health::useless(model, self.start, end)? {
            bail!(
                "the run diverged: {why}: the model is not saved; lower `optim.lr` = {:?} or lengthen the warm-up; checkpoints \
                 in {} are kept",
                self.config().optim.lr,
                self.options.out.display()
            );
        }
        let probes = self.start.map(|start| [start, end]);
        let course = Course { probes, losses: self.losses, grad_norms: self.grad_norms };
        course.warning(model.config().vocab).iter().for_each(|warning| terminal.say(warning));
        Ok(())
    }

    /// All steps, with their evaluations and checkpoints. True if `stop` came before the last.
    fn steps(
        &mut self,
        stop: &Stop,
        (train_reference, eval_reference): &(Reference, Reference),
        held_out: &[Vec<usize>],
        metrics: &mut Metrics,
        terminal: &mut Terminal,
    ) -> Result<bool> {
        self.saved = Instant::now();
        while self.launched < self.state.total_steps {
            self.launch(train_reference, metrics, terminal)?;
            let step = self.launched;
            let last = step == self.state.total_steps;
            let evaluates = self.evaluates(step);
            let saves = last || is_due(step, self.config().train.save_every) || self.is_overdue();
            // The first step's gradients are looked at before the next one overwrites them.
            let goes_on = self.trainer.model.device().runs_ahead() && step > 1;
            if goes_on && !evaluates && !saves && !stop.requested() {
                continue;
            }
            self.read(metrics, terminal)?;
            let done = !evaluates || self.evaluate(stop, held_out, eval_reference, metrics, terminal)?;
            let stopping = stop.requested() && !(last && done);
            // Weights that only lead to gradients that are not finite must not push out older ones.
            let healthy = self.state.skipped_in_a_row == 0;
            if last && !stopping {
                stop.enter(Phase::Ending);
                self.look_after(terminal)?;
            }
            if last || stopping || (healthy && saves) {
                let saved = self.save(metrics, terminal, healthy, stop)?;
                self.saved = Instant::now();
                terminal.say(&format!("saved {}", saved.display()));
            }
            if stopping {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the clock asks for a checkpoint.
    fn is_overdue(&self) -> bool {
        let minutes = self.config().train.save_minutes;
        let due = Duration::try_from_secs_f64(60.0 * minutes).unwrap_or(Duration::MAX);
        minutes > 0.0 && self.saved.elapsed() >= due
    }

    fn config(&self) -> &Config {
        &self.options.config
    }

    /// Whether the held-out rows are looked at after this step.
    fn evaluates(&self, step: u64) -> bool {
        step == self.state.total_steps || is_due(step, self.config().train.eval_every)
    }

    fn interrupted_early(&self) -> Outcome {
        match self.resumed {
            None => say("interrupted before the first step: there is nothing to save yet"),
            Some(step) => say(&format!("interrupted before another step: the checkpoint of step {step} is as it was")),
        }
        Outcome::Interrupted
    }

    /// Reference log-probabilities of both files: read if they are there, computed and written if this run starts.
    /// `None` if `stop` came first.
    fn references(&self, stop: &Stop) -> Result<Option<(Reference, Reference)>> {
        let loss = &self.trainer.loss;
        // A reference that runs beside the policy gives its values as they are needed.
        if loss.needs_divergence() || !loss.needs_reference() && !self.config().train.track_reference {
            return Ok(Some((Reference::none(), Reference::none())));
        }
        let path = self.options.out.join(REFERENCE);
        let (train, eval) = (&self.inputs.train.trees, self.inputs.eval.as_ref().map_or(&[][..], |eval| &eval.trees));
        if let Some((train, eval, made_from)) = reference::load(&path, train, eval)? {
            self.check_made_from(&path, &made_from)?;
            return Ok(Some((train, eval)));
        }
        ensure!(
            self.resumed.is_none(),
            "{}: missing: without it the run cannot go on: restore it, or start another run with --out",
            path.display()
        );
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
        let (key, bound) = (reference::data_key(train, eval), self.inputs.bound.hashes());
        let save = || reference::save(&path, key, &bound, &train_set, &eval_set);
        self.patience.run(stop, say, save).context("make room, then go on with --resume")?;
        Ok(Some((train_set, eval_set)))
    }

    /// A run that saved nothing begins again: with the values in its folder only if they are those of its weights. What a
    /// checkpoint is bound to was checked before.
    fn check_made_from(&self, path: &Path, made_from: &Hashes) -> Result<()> {
        let changed = self.inputs.bound.changed(made_from);
        match changed.first() {
            Some(name) if self.resumed.is_none() => bail!(
                "{}: {} changed since it was made: restore what was there, or remove this file, which is then made anew",
                path.display(),
                binding::describe(name)
            ),
            _ => Ok(()),
        }
    }

    /// Log-probabilities of both files under the weights the model has now; `None` if `stop` came first.
    fn reference_pass(&self, stop: &Stop, name: &str) -> Result<Option<[Reference; 2]>> {
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
            !stop.requested()
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
        let course = |seen: Option<[f64; 2]>, now: f64| Some([seen.map_or(now, |[first, _]| first), now]);
        self.losses = done.metrics.get("loss").and_then(|loss| course(self.losses, loss));
        self.grad_norms = course(self.grad_norms, f64::from(done.update.grad_norm));
        let seconds = self.trainer.model.device().elapsed_ms(&start, &end)? / 1e3;
        self.advance(&done, data, epoch);
        if metrics.write(&self.record(&done, lr, seconds))? {
            terminal.say("disk full: the records of metrics.jsonl wait in memory");
        }
        terminal.step(self.state.step, &summary(&done, seconds));
        done.notes.iter().for_each(|note| terminal.say(note));
        if !done.update.applied {
            let State { step, skipped_steps, skipped_in_a_row, .. } = self.state;
            terminal.say(&format!(
                "step {step}: the gradient norm is {}: update skipped ({skipped_in_a_row} in a row, {skipped_steps} in \
                 all)",
                done.update.grad_norm
            ));
            ensure!(
                skipped_in_a_row < SKIPS_ALLOWED,
                "step {step}: the gradient norm was not finite {SKIPS_ALLOWED} times in a row: lower `optim.lr` = {:?} or \
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

    /// Writes a record of the held-out rows, if there are any. False, and no record, if `stop` came first.
    fn evaluate(
        &mut self,
        stop: &Stop,
        held_out: &[Vec<usize>],
        reference: &Reference,
        metrics: &mut Metrics,
        terminal: &Terminal,
    ) -> Result<bool> {
        let Some(eval) = &self.inputs.eval else { return Ok(true) };
        let State { step, epoch, .. } = self.state;
        let go_on = || !stop.requested();
        let means = self.trainer.evaluate(&eval.trees, held_out, reference, step == 0, go_on)?;
        let Some(means) = means else { return Ok(false) };
        self.eval_loss = means.get("loss");
        if metrics.write(&evaluate::record(step, epoch, &means))? {
            terminal.say("disk full: the records of metrics.jsonl wait in memory");
        }
        terminal.say(&evaluate::summary(step, &means));
        Ok(true)
    }

    /// A full disk is waited for; what is there stays.
    fn save(&self, metrics: &mut Metrics, terminal: &Terminal, prune: bool, stop: &Stop) -> Result<PathBuf> {
        let Trainer { model, optimizer, masks, .. } = &self.trainer;
        let out = &self.options.out;
        let attempt = || {
            // The checkpoint promises the records up to its step.
            metrics.sync()?;
            checkpoint::save(out, model, &self.companions, optimizer, masks.as_ref(), &self.state)
        };
        let saved = self.patience.run(stop, |line| terminal.say(line), attempt).with_context(|| self.not_saved())?;
        if prune {
            checkpoint::prune(out, self.config().train.keep_checkpoints)?;
        }
        Ok(saved)
    }

    /// What to do about a checkpoint that could not be written.
    fn not_saved(&self) -> String {
        let out = &self.options.out;
        let there = checkpoint::list(out).unwrap_or_default();
        let (from, spare) = match &there[..] {
            [] => ("it begins at the start, nothing was saved".to_owned(), ""),
            [(step, _)] => (format!("it begins after step {step}"), ""),
            [.., (step, _)] => (format!("it begins after step {step}"), " (all checkpoints but the newest may go)"),
        };
        let folder = checkpoint::folder(out, self.state.step);
        format!("{}: not saved: make room there{spare}, then go on with --resume: {from}", folder.display())
    }

    /// What the last steps and the last evaluation say against the weights.
    fn unsound_end(&self) -> Option<String> {
        let State { skipped_in_a_row, total_steps, .. } = self.state;
        if skipped_in_a_row > 0 {
            return Some(format!(
                "the gradient norm was not finite in the last {skipped_in_a_row} of {total_steps} steps"
            ));
        }
        let losses = [("last step's", self.losses.map(|[_, last]| last)), ("held-out rows'", self.eval_loss)];
        let (whose, loss) = losses.into_iter().find(|(_, loss)| loss.is_some_and(|loss| !loss.is_finite()))?;
        Some(format!("the {whose} loss is {}", loss?))
    }

    /// The last checkpoint's model files under a name that does not depend on the number of steps.
    fn finish(&self, stop: &Stop, terminal: &Terminal) -> Result<Outcome> {
        let out = &self.options.out;
        let last = checkpoint::folder(out, self.state.step);
        if let Some(why) = self.unsound_end() {
            bail!(
                "the run diverged: {why}: no final model is made; lower `optim.lr` = {:?} or lengthen the warm-up; the last \
                 weights are in {}",
                self.config().optim.lr,
                last.display()
            );
        }
        // Saved by an interruption, and not looked at then.
        if self.resumed == Some(self.state.total_steps) && !out.join("final").exists() {
            self.look_after(terminal)?;
        }
        let made = self.patience.run(stop, say, || checkpoint::finish(out, &last));
        let made = made.context("make room there, then finish with --resume: every step is done and saved")?;
        say(&format!("done: the model is in {}", made.display()));
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
