//! One optimizer step: micro-batches forward and backward, one update.
//!
//! The loss is normalised over the whole step, so how pairs are packed into micro-batches changes rounding only.

use std::f64::consts::LN_2;

use anyhow::{Result, ensure};

use super::{
    batches::{self, MicroBatch, flops},
    reference::Reference,
};
use crate::{
    device::{Buffer, DType, Float},
    forest::Tree,
    loss::{Dpo, MetricSums, Rows, Totals, dpo},
    model::{Batch, Model},
    optim::{AdamW, Update},
};

/// How far the first preference loss may be from ln 2: the policy is the reference then, and only the packing differs.
const FIRST_LOSS_TOLERANCE: f64 = 1e-3;

/// What rounding to bf16 may move one log-probability by when a row stands elsewhere in a pack: half a unit in the last
/// place of numbers from 4 to 8, the size of a confident model's logits.
const BF16_ROW_NOISE: f64 = 1.0 / 64.0;

/// Model, optimizer and loss of a run on their device.
pub struct Trainer<T> {
    pub model: Model<T>,
    pub optimizer: AdamW<T>,
    pub loss: Dpo,
}

/// What one step did.
pub struct Done {
    pub metrics: MetricSums,
    pub update: Update,
    pub tokens: usize,
    /// Floating-point operations the model's matrix products and attention need for these tokens, nothing recomputed.
    pub flops: f64,
}

impl<T: Float> Trainer<T> {
    /// Trains on the pairs of one step. On the first step of a run `first` asks for the checks that only make sense
    /// there.
    ///
    /// # Errors
    /// A launch fails, or a check of the first step does not hold.
    pub fn step(&mut self, batches: &[MicroBatch], reference: &Reference, lr: f64, first: bool) -> Result<Done> {
        let totals = batches.iter().map(|batch| &batch.forest).collect();
        self.model.zero_grads()?;
        let mut stats = Vec::with_capacity(batches.len());
        for batch in batches {
            stats.push(self.accumulate(batch, reference, totals)?);
        }
        let metrics = self.metrics(&stats, totals)?;
        if first {
            let rows: usize = batches.iter().map(|batch| batch.forest.rows()).sum();
            self.check_first_loss(&metrics, rows, totals)?;
            self.check_gradients()?;
        }
        let update = self.optimizer.step(self.model.device(), self.model.grads(), lr)?;
        let tokens = batches.iter().map(|batch| batch.forest.len()).sum();
        let flops = 3.0 * batches.iter().map(|batch| flops(self.model.config(), &batch.forest)).sum::<f64>();
        Ok(Done { metrics, update, tokens, flops })
    }

    /// The same metrics over planned packs of `trees` without a gradient, as means over all of them. One pack's index
    /// tables are in memory at a time.
    ///
    /// # Errors
    /// A launch fails.
    pub fn evaluate(
        &self,
        trees: &[Tree],
        packs: &[Vec<usize>],
        reference: &Reference,
        at_start: bool,
    ) -> Result<MetricSums> {
        let mut totals = Totals::default();
        for members in packs {
            totals.add(&batches::build(trees, members)?.forest);
        }
        let mut stats = Vec::with_capacity(packs.len());
        for members in packs {
            let batch = batches::build(trees, members)?;
            let ref_logps = self.model.device().upload(&reference.of(&batch.examples))?;
            let on_device = self.model.upload(&batch.forest)?;
            let logps = if at_start {
                // The policy is the reference, whose values are at hand.
                ref_logps.clone()
            } else {
                self.model.forward(&on_device)?;
                self.model.logps(&on_device)?
            };
            stats.push(self.run_loss(&on_device, &logps, &ref_logps, totals)?.1);
        }
        self.metrics(&stats, totals)
    }

    /// Forward and backward of one micro-batch; returns the statistics of its pairs.
    fn accumulate(&self, batch: &MicroBatch, reference: &Reference, totals: Totals) -> Result<Buffer<f32>> {
        let ref_logps = self.model.device().upload(&reference.of(&batch.examples))?;
        let on_device = self.model.upload(&batch.forest)?;
        self.model.forward(&on_device)?;
        let logps = self.model.logps(&on_device)?;
        let (coefficients, stats) = self.run_loss(&on_device, &logps, &ref_logps, totals)?;
        self.model.backward(&on_device, &coefficients)?;
        Ok(stats)
    }

    /// Coefficients of the rows and statistics of the pairs.
    fn run_loss(
        &self,
        batch: &Batch,
        logps: &Buffer<f32>,
        ref_logps: &Buffer<f32>,
        totals: Totals,
    ) -> Result<(Buffer<f32>, Buffer<f32>)> {
        let coefficients = self.model.device().alloc(logps.len())?;
        let stats = self.model.device().alloc(batch.pair_count * dpo::STATS)?;
        let rows = Rows { logps, ref_logps, sequence_rows: &batch.sequence_rows, pairs: &batch.pairs };
        self.loss.run(self.model.device(), &coefficients, &stats, rows, totals)?;
        Ok((coefficients, stats))
    }

    fn metrics(&self, stats: &[Buffer<f32>], totals: Totals) -> Result<MetricSums> {
        let mut sums = MetricSums::default();
        for stats in stats {
            self.loss.metrics(&mut sums, &self.model.device().download(stats)?, totals);
        }
        Ok(sums)
    }

    fn check_first_loss(&self, metrics: &MetricSums, rows: usize, totals: Totals) -> Result<()> {
        // Without an SFT term the loss is the preference term, times its weight.
        let weighted = || metrics.get("loss").map(|loss| loss / self.loss.weight);
        let preference = metrics.get("dpo_loss").or_else(weighted).unwrap_or(f64::NAN);
        let limit = first_loss_limit::<T>(self.loss.beta, rows, totals.pairs);
        ensure!(
            (preference - LN_2).abs() <= limit,
            "the first preference loss is {preference:.6} instead of ln 2 = {LN_2:.6}, further than rounding explains \
             ({limit:.1e}): the reference log-probabilities are not those of the starting weights; remove the run folder"
        );
        Ok(())
    }

    /// Every trainable tensor takes part: a gradient of zeros after the first backward pass means that it does not.
    fn check_gradients(&self) -> Result<()> {
        for spec in &self.model.layout().tensors {
            let grads = self.model.device().download(&self.model.grads().slice(spec.range()))?;
            ensure!(
                grads.iter().any(|&g| g != 0.0),
                "tensor `{}` receives no gradient: every element is 0 after the first backward pass",
                spec.name
            );
        }
        Ok(())
    }
}

/// The loss moves by half of a change of the mean margin. The noise of a step's rows is independent, so the mean margin
/// moves by `beta * BF16_ROW_NOISE * sqrt(rows) / pairs`; eight times that is allowed.
fn first_loss_limit<T: Float>(beta: f64, rows: usize, pairs: usize) -> f64 {
    let noise = match T::DTYPE {
        DType::Bf16 => BF16_ROW_NOISE,
        _ => 0.0,
    };
    FIRST_LOSS_TOLERANCE + 8.0 * 0.5 * beta * noise * (rows as f64).sqrt() / pairs.max(1) as f64
}
