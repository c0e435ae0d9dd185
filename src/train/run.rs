//! The run itself: reference pass, steps, evaluations, checkpoints, in that order.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Outcome,
    checkpoint::{self, State},
    health::{Verdict, Watch},
    patience::Patience,
    session::{Session, Supplies},
    step::{Done, Queued},
};
use crate::{
    config::Config,
    data::loader::Position,
    device::{Event, Float},
    optim::LearningRate,
    report::{
        journal::{Journal, StepReport},
        metrics::Metrics,
        terminal::{Terminal, say},
    },
    stop::{Phase, Stop},
};

const METRICS: &str = "metrics.jsonl";
/// So many steps in a row without a finite gradient norm end the run.
const SKIPS_ALLOWED: u64 = 5;

/// A step that was launched, and where the run stands after it.
struct Launched {
    queued: Queued,
    lr: f64,
    data: Position,
    epoch: f64,
    /// On the device: the end of the step before, or of nothing if the device was idle, and the end of this one.
    time: [Arc<Event>; 2],
}

/// A run on its way.
pub struct Run<'a, T> {
    session: Session<'a, T>,
    supplies: Supplies<T>,
    stop: &'a Stop,
    journal: Journal,
    rate: LearningRate,
    watch: Watch,
    /// Steps launched, of which the last may be unread.
    launched: u64,
    unread: Option<Launched>,
    /// When the last checkpoint was saved, or the first step began.
    saved: Instant,
    patience: Patience,
}

impl<'a, T: Float> Run<'a, T> {
    /// A run that is about to look at its held-out rows, and to step.
    ///
    /// # Errors
    /// The records of the run folder cannot be read.
    pub fn new(session: Session<'a, T>, supplies: Supplies<T>, stop: &'a Stop) -> Result<Self> {
        let Session { options, state, resumed, .. } = &session;
        let metrics = Metrics::open(&options.out.join(METRICS), *resumed)?;
        let terminal = Terminal::new(state.step, state.total_steps, options.config.train.log_every);
        let rate = options.config.learning_rate(state.total_steps);
        Ok(Self {
            launched: state.step,
            unread: None,
            journal: Journal::new(metrics, terminal),
            watch: Watch::new(supplies.first_row.clone()),
            saved: Instant::now(),
            patience: Patience::default(),
            session,
            supplies,
            stop,
            rate,
        })
    }

    /// Trains to the last step, or to where it is stopped.
    ///
    /// # Errors
    /// Anything that ends the run before its last step.
    pub fn train(mut self) -> Result<Outcome> {
        if let Some(step) = self.session.resumed {
            self.journal.say(&format!("resumed after step {step} of {}", self.state().total_steps));
        }
        // An interruption may have left off the evaluation that belongs to the checkpoint.
        let evaluated = self.journal.evaluated();
        if self.session.resumed.is_none_or(|step| self.evaluates(step) && evaluated != Some(step)) {
            self.evaluate()?;
        }
        if self.stop.requested() {
            self.journal.finish();
            return Ok(self.session.interrupted_early());
        }
        self.look_before()?;
        self.stop.enter(Phase::Stepping);
        let stopped = self.steps()?;
        self.journal.finish();
        if stopped {
            let State { step, total_steps, .. } = self.state();
            say(&format!("interrupted after step {step} of {total_steps}: --resume goes on"));
            return Ok(Outcome::Interrupted);
        }
        self.finish()
    }

    /// All steps, with their evaluations and checkpoints. True if the stop came before the last.
    fn steps(&mut self) -> Result<bool> {
        self.saved = Instant::now();
        while self.launched < self.state().total_steps {
            self.launch()?;
            let step = self.launched;
            let last = step == self.state().total_steps;
            let evaluates = self.evaluates(step);
            let saves = last || is_due(step, self.config().train.save_every) || self.is_overdue();
            // The first step's gradients are looked at before the next one overwrites them.
            let goes_on = self.session.trainer.device().runs_ahead() && step > 1;
            if goes_on && !evaluates && !saves && !self.stop.requested() {
                continue;
            }
            self.read()?;
            let done = !evaluates || self.evaluate()?;
            let stopping = self.stop.requested() && !(last && done);
            // Weights that only lead to gradients that are not finite must not push out older ones.
            let healthy = self.state().skipped_in_a_row == 0;
            if last && !stopping {
                self.stop.enter(Phase::Ending);
                self.look_after()?;
            }
            if last || stopping || (healthy && saves) {
                let saved = self.save(healthy)?;
                self.saved = Instant::now();
                self.journal.say(&format!("saved {}", saved.display()));
            }
            if stopping {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Launches the next step, and reads the one before while the device is at work on it.
    fn launch(&mut self) -> Result<()> {
        let trainer = &self.session.trainer;
        let device = trainer.device().clone();
        let start = match &self.unread {
            Some(Launched { time: [_, end], .. }) => end.clone(),
            None => Arc::new(device.record()?),
        };
        let feed = &mut self.supplies.feed;
        let work = feed.next(&trainer.roles, self.stop)?;
        let (lr, first) = (self.rate.at(self.launched), self.launched == 0);
        let queued = trainer.queue(&work, lr, first)?;
        let (data, epoch) = (feed.position(), feed.epochs());
        let time = [start, Arc::new(device.record()?)];
        self.read()?;
        self.launched += 1;
        self.unread = Some(Launched { queued, lr, data, epoch, time });
        Ok(())
    }

    /// Waits for the step that was not read yet, if there is one, and writes what it says.
    fn read(&mut self) -> Result<()> {
        let Some(Launched { queued, lr, data, epoch, time: [start, end] }) = self.unread.take() else { return Ok(()) };
        let trainer = &self.session.trainer;
        let done = trainer.finish(queued)?;
        let seconds = trainer.device().elapsed_ms(&start, &end)? / 1e3;
        self.watch.step(done.metrics.get("loss"), done.update.grad_norm);
        self.session.state.advance(&done, data, epoch);
        self.report(&done, lr, seconds)?;
        done.notes.iter().for_each(|note| self.journal.say(note));
        if done.update.applied { Ok(()) } else { self.skipped(done.update.grad_norm) }
    }

    fn report(&mut self, done: &Done, lr: f64, seconds: f64) -> Result<()> {
        let device = self.session.trainer.device();
        let peak = device.peak_flops(T::DTYPE);
        let state = &self.session.state;
        self.journal.step(&StepReport {
            step: state.step,
            epoch: state.epoch,
            metrics: &done.metrics,
            grad_norm: done.update.grad_norm,
            lr,
            num_tokens: state.num_tokens,
            skipped_steps: state.skipped_steps,
            tokens: done.tokens,
            seconds,
            speed_of_light: (peak > 0.0).then(|| done.flops / (peak * seconds)),
            memory_bytes: device.memory().peak,
        })
    }

    /// An update that was not applied: said, and the end of the run if there were too many.
    fn skipped(&self, grad_norm: f32) -> Result<()> {
        let State { step, skipped_steps, skipped_in_a_row, .. } = *self.state();
        self.journal.say(&format!(
            "step {step}: the gradient norm is {grad_norm}: update skipped ({skipped_in_a_row} in a row, {skipped_steps} in all)"
        ));
        ensure!(
            skipped_in_a_row < SKIPS_ALLOWED,
            "step {step}: the gradient norm was not finite {SKIPS_ALLOWED} times in a row: lower `optim.lr` = {:?} or lengthen \
             the warm-up; checkpoints in {} are kept",
            self.config().optim.lr,
            self.session.options.out.display()
        );
        Ok(())
    }

    /// Writes a record of the held-out rows, if there are any. False, and no record, if the stop came first.
    fn evaluate(&mut self) -> Result<bool> {
        let Some(rows) = &self.supplies.held_out else { return Ok(true) };
        let State { step, epoch, .. } = self.session.state;
        let means = self.session.trainer.evaluate(rows, step == 0, || !self.stop.requested())?;
        let Some(means) = means else { return Ok(false) };
        self.watch.evaluation(means.get("loss"));
        self.journal.evaluation(step, epoch, &means)?;
        Ok(true)
    }

    /// Says before the first step what cannot go well.
    fn look_before(&mut self) -> Result<()> {
        let fresh = self.session.resumed.is_none();
        let warning = self.watch.begin(self.session.trainer.model(), self.config().optim.lr, fresh)?;
        warning.iter().for_each(|warning| self.journal.say(warning));
        Ok(())
    }

    /// Refuses weights that are of no use, and says what speaks against the others.
    fn look_after(&self) -> Result<()> {
        match self.watch.end(self.session.trainer.model())? {
            Verdict::Sound => Ok(()),
            Verdict::Doubtful(warning) => Ok(self.journal.say(&warning)),
            Verdict::Useless(why) => bail!(
                "the run diverged: {why}: the model is not saved; lower `optim.lr` = {:?} or lengthen the warm-up; checkpoints \
                 in {} are kept",
                self.config().optim.lr,
                self.session.options.out.display()
            ),
        }
    }

    /// A full disk is waited for; what is there stays.
    fn save(&mut self, prune: bool) -> Result<PathBuf> {
        let Self { session, journal, patience, stop, .. } = self;
        let Session { options, trainer, companions, state, .. } = session;
        let journal = std::cell::RefCell::new(journal);
        let attempt = || {
            // The checkpoint promises the records up to its step.
            journal.borrow_mut().sync()?;
            checkpoint::save(&options.out, &trainer.roles.policy, companions, state)
        };
        let saved = patience.run(stop, |line| journal.borrow().say(line), attempt);
        let saved = saved.with_context(|| checkpoint::not_saved(&options.out, state.step))?;
        if prune {
            checkpoint::prune(&options.out, options.config.train.keep_checkpoints)?;
        }
        Ok(saved)
    }

    /// The last checkpoint's model files under a name that does not depend on the number of steps.
    fn finish(&self) -> Result<Outcome> {
        let (out, state) = (&self.session.options.out, self.state());
        let last = checkpoint::folder(out, state.step);
        if let Some(why) = state.unsound_end().or_else(|| self.watch.unsound_loss()) {
            bail!(
                "the run diverged: {why}: no final model is made; lower `optim.lr` = {:?} or lengthen the warm-up; the last \
                 weights are in {}",
                self.config().optim.lr,
                last.display()
            );
        }
        // Saved by an interruption, and not looked at then.
        if self.session.resumed == Some(state.total_steps) && !out.join("final").exists() {
            self.look_after()?;
        }
        let made = self.patience.run(self.stop, say, || checkpoint::finish(out, &last));
        let made = made.context("make room there, then finish with --resume: every step is done and saved")?;
        say(&format!("done: the model is in {}", made.display()));
        Ok(Outcome::Finished)
    }

    fn config(&self) -> &Config {
        &self.session.options.config
    }

    fn state(&self) -> &State {
        &self.session.state
    }

    /// Whether the held-out rows are looked at after this step.
    fn evaluates(&self, step: u64) -> bool {
        step == self.state().total_steps || is_due(step, self.config().train.eval_every)
    }

    /// Whether the clock asks for a checkpoint.
    fn is_overdue(&self) -> bool {
        let minutes = self.config().train.save_minutes;
        let due = Duration::try_from_secs_f64(60.0 * minutes).unwrap_or(Duration::MAX);
        minutes > 0.0 && self.saved.elapsed() >= due
    }
}

fn is_due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
