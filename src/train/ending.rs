//! What a run does about its weights: looks at them before and after, saves them, refuses those that are of no use.

use std::{cell::RefCell, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Outcome,
    best::{self, Best},
    card::card,
    checkpoint::{self, State},
    folder::MEAN,
    health::Verdict,
    plan,
    run::Run,
    session::Session,
};
use crate::{
    device::Float,
    files,
    loss::MetricSums,
    report::terminal::{conclude, say},
};

/// So many steps in a row without a finite gradient norm end the run.
const SKIPS_ALLOWED: u64 = 5;

impl<T: Float> Run<'_, T> {
    /// An update that was not applied: said, and the end of the run if there were too many.
    pub(super) fn skipped(&self, grad_norm: f32) -> Result<()> {
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

    /// Says before the first step what cannot go well.
    pub(super) fn look_before(&mut self) -> Result<()> {
        let fresh = self.session.resumed.is_none();
        let (rule, lr) = (self.config().optimizer().rule, self.config().optim.lr);
        let steps = self.state().total_steps;
        let warning = self.watch.begin(self.session.trainer.model(), (rule, lr, steps), fresh)?;
        warning.iter().for_each(|warning| self.journal.say(warning));
        Ok(())
    }

    /// Refuses weights that are of no use, and says what speaks against the others.
    pub(super) fn look_after(&self) -> Result<()> {
        match self.watch.end(self.session.trainer.model())? {
            Verdict::Sound => {}
            Verdict::Doubtful(warning) => self.journal.say(&warning),
            Verdict::Useless(why) => bail!(
                "the run diverged: {why}: the model is not saved; lower `optim.lr` = {:?} or lengthen the warm-up; checkpoints \
                 in {} are kept",
                self.config().optim.lr,
                self.session.options.out.display()
            ),
        }
        Ok(())
    }

    /// A full disk is waited for; what is there stays.
    pub(super) fn save(&mut self, prune: bool) -> Result<PathBuf> {
        let Self { session, journal, patience, stop, .. } = self;
        let Session { options, trainer, companions, state, .. } = session;
        let (journal, follows) = (RefCell::new(journal), plan::follows(&options.config, &trainer.loss));
        let attempt = || {
            // The checkpoint promises the records up to its step.
            journal.borrow_mut().sync()?;
            checkpoint::save(&options.out, &trainer.roles, follows, companions, state)
        };
        let saved = patience.run(stop, |line| journal.borrow().say(line), attempt);
        let saved = saved.with_context(|| checkpoint::not_saved(&options.out, state.step))?;
        if prune {
            checkpoint::prune(&options.out, options.config.train.keep_checkpoints)?;
        }
        Ok(saved)
    }

    /// Takes in an evaluation after the step at hand: keeps weights that are the best so far, says when the run gets no better.
    pub(super) fn judge(&mut self, means: &MetricSums) -> Result<()> {
        let train = self.config().train.clone();
        let (Some(wanted), step) = (train.watched(), self.state().step) else { return Ok(()) };
        if step == 0 {
            return best::check(&train, means);
        }
        let better = Best::update(&mut self.session.state.best, &wanted, step, means)?;
        if better && train.save_best.is_some() {
            let Self { session, journal, patience, stop, .. } = self;
            let Session { options, trainer, companions, .. } = session;
            let save = || best::save(&options.out, trainer.model(), companions);
            patience.run(stop, |line| journal.say(line), save).context("make room there, then go on with --resume")?;
        }
        if let Some(best) = self.state().best.as_ref().filter(|_| self.is_over()) {
            let (found, since) = (best.describe(), best.since);
            self.journal.say(&format!("early stop after step {step}: no better in {since} evaluations than {found}"));
        }
        Ok(())
    }

    /// Whether `train.early_stop` ends the run.
    pub(super) fn is_over(&self) -> bool {
        Best::ends(&self.state().best, &self.config().train)
    }

    /// The last checkpoint's model files under a name that does not depend on the number of steps.
    pub(super) fn finish(&self) -> Result<Outcome> {
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
        if self.session.resumed == Some(state.step) && !out.join("final").exists() {
            self.look_after()?;
        }
        let made =
            self.patience.run(self.stop, say, || checkpoint::finish(out, &last, || card(out, self.config(), state)));
        let made = made.context("make room there, then finish with --resume: every step is done and saved")?;
        let kept =
            state.best.as_ref().filter(|_| self.config().train.save_best.is_some() && out.join(best::FOLDER).exists());
        let best =
            kept.map(|best| format!("; the best, {}, is in {}", best.describe(), out.join(best::FOLDER).display()));
        let mean = self.save_mean()?;
        let mean = mean.map(|mean| format!("; the mean of its weights is in {}", mean.display())).unwrap_or_default();
        conclude(&format!("done: the model is in {}{mean}{}", made.display(), best.unwrap_or_default()));
        Ok(Outcome::Finished)
    }

    /// Writes `ema/`, where a running mean is kept. It takes the place of the weights, which nobody needs any more.
    fn save_mean(&self) -> Result<Option<PathBuf>> {
        let Session { options, trainer, companions, .. } = &self.session;
        let Some(ema) = &trainer.roles.policy.ema else { return Ok(None) };
        let target = options.out.join(MEAN);
        ema.replace(trainer.model().params())?;
        let write = || files::folder_replaced(&target, |folder| trainer.model().save(folder, companions));
        let written = self.patience.run(self.stop, say, write);
        written.context("make room there, then finish with --resume: every step is done and saved")?;
        Ok(Some(target))
    }
}
