//! The run itself: steps, evaluations, checkpoints, in that order.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    Outcome,
    checkpoint::State,
    evaluation,
    folder::METRICS,
    health::CourseWatch,
    margins,
    patience::Patience,
    session::{Session, Supplies},
    step::UnreadStep,
};
use crate::{
    config::Config,
    device::Float,
    optim::LearningRate,
    report::{
        events::Events,
        journal::Journal,
        metrics::Metrics,
        terminal::{Terminal, conclude},
    },
    stop::{Phase, Stop},
};

/// A run on its way.
pub struct Run<'a, T> {
    pub(super) session: Session<'a, T>,
    pub(super) supplies: Supplies<T>,
    pub(super) stop: &'a Stop,
    pub(super) journal: Journal,
    pub(super) rate: LearningRate,
    pub(super) watch: CourseWatch,
    /// Steps launched, of which the last may be unread.
    pub(super) launched: u64,
    pub(super) unread: Option<UnreadStep>,
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
        let events = options.config.train.tensorboard.then(|| Events::begin(&options.out, *resumed)).transpose()?;
        let terminal = Terminal::new(state.step, state.total_steps, options.config.train.log_every);
        let rate = options.config.learning_rate(state.total_steps);
        Ok(Self {
            launched: state.step,
            unread: None,
            journal: Journal::new(metrics, events, terminal),
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

    /// Writes a record of the held-out rows, if there are any. False, and no record, if the stop came first.
    fn evaluate(&mut self) -> Result<bool> {
        let Some(rows) = &self.supplies.held_out else { return Ok(true) };
        let State { step, epoch, ref loss_state, .. } = self.session.state;
        let means = evaluation::watched(&self.session.trainer.passes(), rows, loss_state, step == 0, self.stop)?;
        let Some((means, margins)) = means else { return Ok(false) };
        if let Some(tokenizer) = self.session.inputs.tokenizer.as_ref().filter(|_| !margins.is_empty() && step > 0) {
            // Before the record: where that is, this is.
            let written = margins::write(&self.session.options.out, rows, &margins, tokenizer);
            written.unwrap_or_else(|why| self.journal.say(&format!("warning: {why:#}")));
        }
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

/// Whether a step is one of every so many; never where that is 0.
pub(super) fn is_due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
