//! A step of a run: launched while the one before is still at work, and read when the next one is under way.

use std::sync::Arc;

use anyhow::Result;

use super::{
    run::{Run, is_due},
    step::{Done, UnreadStep},
};
use crate::{device::Float, report::journal::StepReport};

impl<T: Float> Run<'_, T> {
    /// Launches the next step, and reads the one before while the device is at work on it.
    pub(super) fn launch(&mut self) -> Result<()> {
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
        let train = &self.session.options.config.train;
        if is_due(self.launched + 1, train.ref_model_sync_steps) {
            trainer.follow(train.ref_model_mixup_alpha)?;
        }
        let (data, epoch) = (feed.position(), feed.epochs());
        let time = [start, Arc::new(device.record()?)];
        self.read()?;
        self.launched += 1;
        self.unread = Some(UnreadStep { queued, lr, data, epoch, time });
        Ok(())
    }

    /// Waits for the step that was not read yet, if there is one, and writes what it says.
    pub(super) fn read(&mut self) -> Result<()> {
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
            recompute_flops_share: (done.recomputed_flops > 0.0).then(|| done.recomputed_flops / done.flops),
            memory_bytes: device.memory().peak,
        })
    }
}
