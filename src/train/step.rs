//! One optimizer step: micro-batches forward and backward, one update.
//!
//! The loss is normalised over the whole step, so how examples are packed into micro-batches changes rounding only. A loss
//! that couples the whole step sees all of it before the first gradient: then every micro-batch runs forward twice.

use std::sync::Arc;

use anyhow::Result;

use super::passes::{Forwarded, LoadedPack, Passes};
use crate::{
    data::loader::Position,
    device::{Buffer, Device, Event, Float, Readback},
    feed::Work,
    forest::Forest,
    loss::{Loss, MetricSums, Outputs, Reading, Step},
    model::{Batch, DivergenceSlopes, Masked, Model, Slopes, flops, recomputed_flops},
    ops::{lerp, loss_batch},
    optim::{self, Update},
    roles::{Policy, Roles},
};

/// The models and the loss of a run on their device.
pub struct Trainer<T> {
    /// The models.
    pub roles: Roles<T>,
    /// What is minimised.
    pub loss: Loss,
    /// What the loss carries from step to step: see [`loss_batch::STATE`].
    pub loss_state: Buffer<f64>,
    options: StepOptions,
}

/// How steps are launched.
#[derive(Clone, Copy, Debug, Default)]
pub struct StepOptions {
    /// Whether a micro-batch is launched as a graph, where its passes only launch: see [`Device::graphed`].
    ///
    /// [`Device::graphed`]: crate::device::Device::graphed
    pub graphed: bool,
}

/// A step that was launched.
pub struct QueuedStep {
    reading: Reading,
    update: optim::QueuedUpdate,
    /// Of each micro-batch, where the loss has masks.
    masks: Vec<[Readback<f32>; 2]>,
    tokens: usize,
    flops: f64,
    again: f64,
    notes: Vec<String>,
}

/// A step that was launched, and where the run stands after it.
pub(super) struct UnreadStep {
    pub queued: QueuedStep,
    pub lr: f64,
    pub data: Position,
    pub epoch: f64,
    /// On the device: the end of the step before, or of nothing if the device was idle, and the end of this one.
    pub time: [Arc<Event>; 2],
}

/// What one step did.
pub struct Done {
    /// Means of the loss and of what comes with it.
    pub metrics: MetricSums,
    /// What the optimizer did.
    pub update: Update,
    /// Trained on, shared prompts counted once.
    pub tokens: usize,
    /// Floating-point operations the model's matrix products and attention need for these tokens, nothing recomputed.
    pub flops: f64,
    /// Those that the memory plan has computed again beside them.
    pub recomputed_flops: f64,
    /// What the loss carries on to the next step: see [`loss_batch::STATE`].
    pub loss_state: Vec<f64>,
    /// What a first step shows that people should know, a line each.
    pub notes: Vec<String>,
}

impl<T: Float> Trainer<T> {
    /// A trainer whose loss has seen nothing yet.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn new(roles: Roles<T>, loss: Loss, options: StepOptions) -> Result<Self> {
        let loss_state = roles.policy.model.device().zeros(loss_batch::STATE)?;
        Ok(Self { roles, loss, loss_state, options })
    }

    /// The model that is trained.
    pub fn model(&self) -> &Model<T> {
        &self.roles.policy.model
    }

    /// The device of all models.
    pub fn device(&self) -> &Device {
        self.model().device()
    }

    /// Its forward passes.
    pub fn passes(&self) -> Passes<'_, T> {
        let Roles { policy, reference } = &self.roles;
        Passes { model: &policy.model, masks: policy.masks.as_ref(), reference, loss: &self.loss }
    }

    /// Trains on the rows of one step. On the first step of a run `first` asks for the checks that only make sense there.
    ///
    /// # Errors
    /// A launch fails, or a check of the first step does not hold.
    pub fn step(&self, work: &Work, lr: f64, first: bool) -> Result<Done> {
        self.finish(self.queue(work, lr, first)?)
    }

    /// Launches everything that a step does, and waits for nothing of it; but for a run's first step, which is looked at
    /// before it changes a weight.
    ///
    /// # Errors
    /// A launch fails, or a check of the first step does not hold.
    pub fn queue(&self, work: &Work, lr: f64, first: bool) -> Result<QueuedStep> {
        let (device, Policy { model, optimizer, masks, ema }) = (self.device(), &self.roles.policy);
        let forests = work.forests()?;
        let groups = work.packs.iter().map(|pack| self.loss.groups(&work.trees[pack.clone()]));
        let groups = groups.collect::<Result<Vec<_>>>()?;
        let step = Step::new(device, &self.loss, &self.loss_state, &groups)?;
        model.zero_grads()?;
        masks.iter().try_for_each(|masks| masks.masks.params().zero_grads())?;
        let seen = self.see_all(&step, work, &forests)?;
        let mut made = Vec::new();
        for (micro, forest) in forests.iter().enumerate() {
            let forwarded = self.pass(&step, micro, &self.passes().load(forest, work, micro)?, seen)?;
            if let Some(Masked { weights: [reward, divergence], .. }) = &forwarded.masked {
                made.push([device.read(reward)?, device.read(divergence)?]);
            }
        }
        let notes = if first { self.look_at_first(&step, work)? } else { Vec::new() };
        let reading = step.read()?;
        masks.iter().try_for_each(|masks| masks.update(lr))?;
        let update = optimizer.queue(lr)?;
        ema.iter().try_for_each(|ema| ema.step(model.params()))?;
        let tokens = forests.iter().map(Forest::len).sum();
        let (flops, again) = (self.flops(&forests, seen), self.recomputed_flops(&forests));
        Ok(QueuedStep { reading, update, masks: made, tokens, flops, again, notes })
    }

    /// Moves a reference that runs beside the policy part of the way to it: TR-DPO, Gorbatovski et al. 2024, arXiv 2404.09656;
    /// `alpha` 1 is its hard update.
    ///
    /// # Errors
    /// The launch fails.
    pub fn follow(&self, alpha: f64) -> Result<()> {
        let Some(reference) = self.roles.reference.beside() else { return Ok(()) };
        let (theirs, ours) = (reference.params().values(), self.model().params().values());
        lerp::lerp(self.device(), &theirs, &ours, alpha as f32, ours.len())
    }

    /// Where a loss couples micro-batches, runs all of them forward and the loss's heads over the whole step. True if it did.
    fn see_all(&self, step: &Step, work: &Work, forests: &[Forest]) -> Result<bool> {
        if !self.loss.couples_the_step() || forests.len() == 1 {
            return Ok(false);
        }
        for (micro, forest) in forests.iter().enumerate() {
            self.passes().forward(step, micro, &self.passes().load(forest, work, micro)?)?;
        }
        step.run(None)?;
        Ok(true)
    }

    /// Forward and backward pass of a micro-batch; the heads of its loss in between, unless they have `seen` the whole step.
    fn pass(&self, step: &Step, micro: usize, loaded: &LoadedPack, seen: bool) -> Result<Forwarded> {
        let device = self.device();
        let coupled = self.loss.couples_the_step();
        let coefficients = device.alloc(loaded.batch.rows)?;
        let passes = || {
            let forwarded = self.passes().forward(step, micro, loaded)?;
            if !seen {
                step.run((!coupled).then_some(micro))?;
            }
            self.backward(step, micro, &loaded.batch, &forwarded, &coefficients)?;
            Ok(forwarded)
        };
        // Other losses allocate on the way.
        let only_launches = !coupled && self.roles.reference.beside().is_none() && !self.loss.needs_collisions();
        if self.options.graphed && only_launches { device.graphed(passes) } else { passes() }
    }

    /// Of all passes of a step: a second forward pass where the step is seen first, and the reference's where it runs beside
    /// the policy.
    fn flops(&self, forests: &[Forest], seen: bool) -> f64 {
        let passes = 3.0 + [seen, self.roles.reference.beside().is_some()].map(f64::from).iter().sum::<f64>();
        passes * forests.iter().map(|forest| flops(self.model().config(), forest)).sum::<f64>()
    }

    fn recomputed_flops(&self, forests: &[Forest]) -> f64 {
        let (config, levels) = (self.model().config(), &self.model().plan().levels);
        forests.iter().map(|forest| recomputed_flops(config, forest, levels)).sum()
    }

    /// Waits for a step, and no longer if others were launched after it.
    ///
    /// # Errors
    /// A launch failed.
    pub fn finish(&self, queued: QueuedStep) -> Result<Done> {
        let QueuedStep { reading, update, masks, tokens, flops, again, notes } = queued;
        let measured = reading.wait(&self.loss)?;
        let mut metrics = measured.metrics();
        sparsity(masks, &mut metrics)?;
        let (update, recomputed_flops) = (update.wait()?, again);
        Ok(Done { metrics, update, tokens, flops, recomputed_flops, loss_state: measured.state, notes })
    }

    /// `coefficients` (rows) is room for the slopes of the rows.
    fn backward(
        &self,
        step: &Step,
        micro: usize,
        batch: &Batch,
        forwarded: &Forwarded,
        coefficients: &Buffer<f32>,
    ) -> Result<()> {
        let Forwarded { rows, divergence, masked } = forwarded;
        let (device, model) = (self.device(), self.model());
        let (Some(kept), Some(beside)) = (divergence, self.roles.reference.beside()) else {
            let outputs = Outputs { coefficients, divergence_coefficients: None };
            step.spread(micro, outputs, rows, &batch.sequence_rows)?;
            return model.backward(batch, &Slopes::by_logps(coefficients));
        };
        let by_divergence = device.alloc(batch.rows)?;
        let outputs = Outputs { coefficients, divergence_coefficients: Some(&by_divergence) };
        step.spread(micro, outputs, rows, &batch.sequence_rows)?;
        let divergences = Some(DivergenceSlopes { slopes: &by_divergence, reference: beside, kept });
        model.backward(batch, &Slopes { logps: Some(coefficients), divergences, ..Slopes::default() })?;
        if let (Some(masks), Some(masked)) = (&self.roles.policy.masks, masked) {
            masks.backward((step, micro), masked, rows, beside, batch)?;
        }
        Ok(())
    }
}

/// Share of the step's rows that masks leave out.
fn sparsity(masks: Vec<[Readback<f32>; 2]>, metrics: &mut MetricSums) -> Result<()> {
    let mut counts = [("mask/reward_sparsity", 0, 0), ("mask/divergence_sparsity", 0, 0)];
    for sides in masks {
        for ((_, zeros, rows), side) in counts.iter_mut().zip(sides) {
            let values = side.wait()?;
            *zeros += values.iter().filter(|&&value| value == 0.0).count();
            *rows += values.len();
        }
    }
    let any = counts.into_iter().filter(|&(_, _, rows)| rows > 0);
    any.for_each(|(name, zeros, rows)| metrics.add(name, zeros as f64 / rows as f64));
    Ok(())
}
