//! The run itself: reference pass, steps, evaluations, checkpoints, in that order.

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    Outcome,
    checkpoint::State,
    folder::METRICS,
    health::CourseWatch,
    patience::Patience,
    session::{Session, Supplies},
    step::{Done, QueuedStep},
};
use crate::{
    config::Config,
    data::loader::Position,
    device::{Event, Float},
    optim::LearningRate,
    report::{
        journal::{Journal, StepReport},
        metrics::Metrics,
        terminal::{Terminal, conclude},
    },
    stop::{Phase, Stop},
};

/// A step that was launched, and where the run stands after it.
struct UnreadStep {
    queued: QueuedStep,
    lr: f64,
    data: Position,
    epoch: f64,
    /// On the device: the end of the step before, or of nothing if the device was idle, and the end of this one.
    time: [Arc<Event>; 2],
}

/// A run on its way.
pub struct Run<'a, T> {
    pub(super) session: Session<'a, T>,
    pub(super) supplies: Supplies<T>,
    pub(super) stop: &'a Stop,
    pub(super) journal: Journal,
    rate: LearningRate,
    pub(super) watch: CourseWatch,
    /// Steps launched, of which the last may be unread.
    launched: u64,
    unread: Option<UnreadStep>,
    /// When the last checkpoint was saved, or the first step began.
    saved: Instant,
    pub(super) patience: Patience,
}

impl<'a, T: Float> Run<'a, T> {
    /// A run that is about to look at its held-out rows, and to step.
    ///
    /// # Errors
    /// The records of the run folder cannot be read.
    pub fn new(session: Session<'a, T>, mut supplies: Supplies<T>, stop: &'a Stop) -> Result<Self> {
        let Session { options, state, resumed, .. } = &session;
        let metrics = Metrics::open(&options.out.join(METRICS), *resumed)?;
        let terminal = Terminal::new(state.step, state.total_steps, options.config.train.log_every);
        let rate = options.config.learning_rate(state.total_steps);
        Ok(Self {
            launched: state.step,
            unread: None,
            journal: Journal::new(metrics, terminal),
            watch: CourseWatch::new(std::mem::take(&mut supplies.first_row)),
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
            conclude(&format!("interrupted after step {step} of {total_steps}: --resume goes on"));
            return Ok(Outcome::Interrupted);
        }
        self.finish()
    }

    /// All steps, with their evaluations and checkpoints. True if the stop came before the last.
    fn steps(&mut self) -> Result<bool> {
        self.saved = Instant::now();
        self.journal.begin();
        while self.launched < self.state().total_steps && !self.is_over() {
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
            let last = last || self.is_over();
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
            Some(UnreadStep { time: [_, end], .. }) => end.clone(),
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
        self.unread = Some(UnreadStep { queued, lr, data, epoch, time });
        Ok(())
    }

    /// Waits for the step that was not read yet, if there is one, and writes what it says.
    fn read(&mut self) -> Result<()> {
        let Some(UnreadStep { queued, lr, data, epoch, time: [start, end] }) = self.unread.take() else {
            return Ok(());
        };
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

    /// Writes a record of the held-out rows, if there are any. False, and no record, if the stop came first.
    fn evaluate(&mut self) -> Result<bool> {
        let Some(rows) = &self.supplies.held_out else { return Ok(true) };
        let State { step, epoch, .. } = self.session.state;
        let (bar, packs) = (Terminal::new(0, rows.packs() as u64, u64::MAX), Cell::new(0));
        let means = self.session.trainer.evaluate(rows, step == 0, || {
            bar.show(packs.replace(packs.get() + 1), "evaluating");
            !self.stop.requested()
        })?;
        bar.finish();
        let Some(means) = means else { return Ok(false) };
        self.watch.evaluation(means.get("loss"));
        self.journal.evaluation(step, epoch, &means)?;
        self.judge(&means)?;
        Ok(true)
    }

    pub(super) fn config(&self) -> &Config {
        &self.session.options.config
    }

    pub(super) fn state(&self) -> &State {
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
