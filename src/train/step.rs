//! One optimizer step: micro-batches forward and backward, one update.
//!
//! The loss is normalised over the whole step, so how examples are packed into micro-batches changes rounding only. A loss
//! that couples the whole step sees all of it before the first gradient: then every micro-batch runs forward twice.

use anyhow::{Result, ensure};

use super::{
    batches::{self, MicroBatch, flops},
    reference::Reference,
    token_mask::{Masked, TokenMasks},
};
use crate::{
    device::{Buffer, DType, Float, Readback},
    forest::Tree,
    loss::{Groups, Loss, MetricSums, Outputs, Reading, Step},
    model::{Batch, Model},
    ops::{
        head::distributions::{Divergence, Slopes},
        loss_batch,
        loss_rows::Rows,
    },
    optim::{self, AdamW, Update},
};

/// How far a sequence's log-ratio may be from 0, in nats, while the policy is the reference: only the packing differs.
const FIRST_RATIO_TOLERANCE: f64 = 1e-2;

/// What rounding to bf16 may move one log-probability by when a row stands elsewhere in a pack: half a unit in the last
/// place of numbers from 4 to 8, the size of a confident model's logits.
const BF16_ROW_NOISE: f64 = 1.0 / 64.0;

/// Log-ratios further from 0 are measured against what another place in a pack does to the same rows: both are mean
/// absolute differences between two roundings of one model. Those of two sequences, the fewest there are, are above four
/// times their expectation (3.2 standard deviations on average over both) in one of 10^5 runs.
const NOISE_ALLOWED: f64 = 4.0;

/// Examples of the first step that this is measured on, and how many others stand before each.
const NOISE_EXAMPLES: usize = 8;
const NOISE_COMPANY: usize = 3;

/// Model, optimizer and loss of a run on their device.
pub struct Trainer<T> {
    pub model: Model<T>,
    pub optimizer: AdamW<T>,
    pub loss: Loss,
    /// What the loss carries from step to step: see [`loss_batch::STATE`].
    pub loss_state: Buffer<f64>,
    /// The starting weights, where the loss looks at their whole distributions.
    pub reference: Option<Model<T>>,
    /// Weights of tokens from the reference's activations, where the loss has them.
    pub masks: Option<TokenMasks>,
    /// Whether a micro-batch is launched as a graph, where its passes only launch: see [`Device::graphed`].
    ///
    /// [`Device::graphed`]: crate::device::Device::graphed
    pub graphed: bool,
}

/// A micro-batch on the device.
struct Loaded {
    batch: Batch,
    ref_logps: Option<Buffer<f32>>,
}

/// What a micro-batch's forward pass leaves for its backward pass.
struct Forwarded {
    rows: Rows,
    /// Both models' normalisers, where the reference ran beside the policy.
    divergence: Option<Divergence>,
    masked: Option<Masked>,
}

/// A step that was launched.
pub struct Queued {
    reading: Reading,
    update: optim::Queued,
    /// Of each micro-batch, where the loss has masks.
    masks: Vec<[Readback<f32>; 2]>,
    tokens: usize,
    flops: f64,
    notes: Vec<String>,
}

/// What one step did.
pub struct Done {
    pub metrics: MetricSums,
    pub update: Update,
    pub tokens: usize,
    /// Floating-point operations the model's matrix products and attention need for these tokens, nothing recomputed.
    pub flops: f64,
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
    pub fn new(model: Model<T>, optimizer: AdamW<T>, loss: Loss) -> Result<Self> {
        let loss_state = model.device().zeros(loss_batch::STATE)?;
        Ok(Self { model, optimizer, loss, loss_state, reference: None, masks: None, graphed: false })
    }

    /// Trains on the examples of one step, which stand in `trees`. On the first step of a run `first` asks for the checks
    /// that only make sense there.
    ///
    /// # Errors
    /// A launch fails, or a check of the first step does not hold.
    pub fn step(
        &self,
        trees: &[Tree],
        batches: &[MicroBatch],
        reference: &Reference,
        lr: f64,
        first: bool,
    ) -> Result<Done> {
        self.finish(self.queue(trees, batches, reference, lr, first)?)
    }

    /// Launches everything that a step does, and waits for nothing of it; but for a run's first step, which is looked at
    /// before it changes a weight.
    ///
    /// # Errors
    /// A launch fails, or a check of the first step does not hold.
    pub fn queue(
        &self,
        trees: &[Tree],
        batches: &[MicroBatch],
        reference: &Reference,
        lr: f64,
        first: bool,
    ) -> Result<Queued> {
        let groups = batches.iter().map(|batch| self.groups(trees, &batch.examples)).collect::<Result<Vec<_>>>()?;
        let step = Step::new(self.model.device(), &self.loss, &self.loss_state, &groups)?;
        self.model.zero_grads()?;
        let device = self.model.device();
        self.masks.iter().try_for_each(|masks| masks.zero_grads(device))?;
        let mut masks = Vec::new();
        let coupled = self.loss.couples_the_step();
        if coupled && batches.len() > 1 {
            for (micro, batch) in batches.iter().enumerate() {
                self.forward(&step, micro, &self.load(batch, reference)?)?;
            }
            step.run(None)?;
        }
        // Other losses allocate on the way.
        let graphed = self.graphed && !coupled && self.reference.is_none() && !self.loss.needs_collisions();
        for (micro, batch) in batches.iter().enumerate() {
            let loaded = self.load(batch, reference)?;
            let coefficients = device.alloc(loaded.batch.rows)?;
            let passes = || {
                let forwarded = self.forward(&step, micro, &loaded)?;
                if !coupled || batches.len() == 1 {
                    step.run((!coupled).then_some(micro))?;
                }
                self.backward(&step, micro, &loaded.batch, &forwarded, &coefficients)?;
                Ok(forwarded)
            };
            let forwarded = if graphed { device.graphed(passes) } else { passes() }?;
            if let Some(Masked { weights: [reward, divergence], .. }) = &forwarded.masked {
                masks.push([device.read(reward)?, device.read(divergence)?]);
            }
        }
        let notes = if first { self.look_at_first(&step, trees, batches)? } else { Vec::new() };
        let reading = step.read()?;
        self.masks.iter().try_for_each(|masks| masks.update(device, lr))?;
        let update = self.optimizer.queue(device, self.model.grads(), lr)?;
        let tokens = batches.iter().map(|batch| batch.forest.len()).sum();
        // A second forward pass where the step is seen first, and the reference's where it runs beside the policy.
        let passes = 3.0 + [coupled && batches.len() > 1, self.reference.is_some()].map(f64::from).iter().sum::<f64>();
        let flops = passes * batches.iter().map(|batch| flops(self.model.config(), &batch.forest)).sum::<f64>();
        Ok(Queued { reading, update, masks, tokens, flops, notes })
    }

    /// Waits for a step, and no longer if others were launched after it.
    ///
    /// # Errors
    /// A launch failed.
    pub fn finish(&self, queued: Queued) -> Result<Done> {
        let Queued { reading, update, masks, tokens, flops, notes } = queued;
        let measured = reading.wait(&self.loss)?;
        let mut metrics = measured.metrics();
        sparsity(masks, &mut metrics)?;
        Ok(Done { metrics, update: update.wait()?, tokens, flops, loss_state: measured.state, notes })
    }

    /// The same metrics over planned packs of `trees` without a gradient, as one step over all of them. One pack's index
    /// tables are in memory at a time. `None` if `go_on`, asked before each pack, says no.
    ///
    /// # Errors
    /// A launch fails.
    pub fn evaluate(
        &self,
        trees: &[Tree],
        packs: &[Vec<usize>],
        reference: &Reference,
        at_start: bool,
        go_on: impl Fn() -> bool,
    ) -> Result<Option<MetricSums>> {
        let device = self.model.device();
        let groups = packs.iter().map(|members| self.groups(trees, members)).collect::<Result<Vec<_>>>()?;
        // Evaluation leaves no trace in what the loss carries on, and does not move it.
        let carried = device.download(&self.loss_state)?;
        let (loss, state) = (self.loss.held(&carried), device.upload(&carried)?);
        let step = Step::new(device, &loss, &state, &groups)?;
        for (micro, members) in packs.iter().enumerate() {
            if !go_on() {
                return Ok(None);
            }
            let batch = batches::build(trees, members)?;
            let at_hand =
                !reference.is_empty() && !self.loss.needs_distributions() && self.loss.acceleration().is_none();
            if at_start && at_hand {
                // The policy is the reference, whose values are there.
                let logps = device.upload(&reference.of(&batch.examples))?;
                let rows = Rows { ref_logps: Some(logps.clone()), logps: Some(logps), ..Rows::default() };
                step.sum(micro, &rows, &self.model.upload(&batch.forest)?.sequence_rows)?;
            } else {
                self.forward(&step, micro, &self.load(&batch, reference)?)?;
            }
        }
        step.run(None)?;
        Ok(Some(step.measured()?.metrics()))
    }

    fn groups(&self, trees: &[Tree], examples: &[usize]) -> Result<Groups> {
        self.loss.groups(examples.iter().map(|&example| &trees[example]))
    }

    /// Copies to the device what a micro-batch's passes read.
    fn load(&self, batch: &MicroBatch, reference: &Reference) -> Result<Loaded> {
        let device = self.model.device();
        let beside = self.reference.is_some() || reference.is_empty();
        let ref_logps = (!beside).then(|| device.upload(&reference.of(&batch.examples))).transpose()?;
        Ok(Loaded { batch: self.model.upload(&batch.forest)?, ref_logps })
    }

    /// Log-probabilities of a micro-batch's rows, and their sums in the step.
    fn forward(&self, step: &Step, micro: usize, Loaded { batch, ref_logps }: &Loaded) -> Result<Forwarded> {
        self.model.forward(batch)?;
        let mut rows = Rows::default();
        let (mut divergence, mut masked) = (None, None);
        if let Some(beside) = &self.reference {
            match &self.masks {
                Some(masks) => {
                    let made = masks.forward(beside, batch)?;
                    let [weights, divergence_weights] = made.weights.clone();
                    (rows.weights, rows.divergence_weights) = (Some(weights), Some(divergence_weights));
                    masked = Some(made);
                }
                None => beside.forward(batch)?,
            }
            let both = self.model.divergence(beside, batch)?;
            rows.logps = Some(both.logps.clone());
            rows.ref_logps = Some(both.ref_logps.clone());
            rows.divergences = Some(both.divergences.clone());
            divergence = Some(both);
        } else {
            if self.loss.needs_collisions() {
                // Before the log-probabilities, whose logits the backward pass takes over.
                rows.collisions = Some(self.model.collisions(batch)?);
            }
            rows.logps = Some(self.model.logps(batch)?);
            rows.ref_logps = ref_logps.clone();
        }
        step.sum(micro, &rows, &batch.sequence_rows)?;
        Ok(Forwarded { rows, divergence, masked })
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
        let device = self.model.device();
        let (Some(kept), Some(beside)) = (divergence, &self.reference) else {
            let outputs = Outputs { coefficients, divergence_coefficients: None };
            step.spread(micro, outputs, rows, &batch.sequence_rows)?;
            return self.model.backward(batch, coefficients);
        };
        let by_divergence = device.alloc(batch.rows)?;
        let outputs = Outputs { coefficients, divergence_coefficients: Some(&by_divergence) };
        step.spread(micro, outputs, rows, &batch.sequence_rows)?;
        let slopes = Slopes { logps: coefficients, divergences: &by_divergence };
        self.model.backward_beside(beside, batch, kept, &slopes)?;
        if let (Some(masks), Some(masked)) = (&self.masks, masked) {
            masks.backward(step, micro, masked, rows, beside, batch)?;
        }
        Ok(())
    }

    /// What can be told before the first update: refuses a wrong reference, and notes what does not learn.
    fn look_at_first(&self, step: &Step, trees: &[Tree], batches: &[MicroBatch]) -> Result<Vec<String>> {
        self.check_first_ratios(step, trees, batches)?;
        match self.loss.moves_at_the_reference() {
            true => Ok(self.without_gradient()?.into_iter().collect()),
            false => Ok(Vec::new()),
        }
    }

    /// At the first step the policy is the reference, and every log-ratio is 0 but for rounding.
    fn check_first_ratios(&self, step: &Step, trees: &[Tree], batches: &[MicroBatch]) -> Result<()> {
        if !self.loss.needs_reference() || self.loss.acceleration().is_some() {
            return Ok(());
        }
        let (ratio, rows) = step.log_ratio()?;
        let mut limit = first_ratio_limit::<T>(rows);
        if ratio > limit {
            // Logits of any size and responses of any length: what rounding does to these very rows.
            limit = limit.max(NOISE_ALLOWED * self.packing_noise(trees, batches)?);
        }
        ensure!(
            ratio <= limit,
            "the first log-ratios to the reference are {ratio:.2e} nats on average instead of 0, further than rounding \
             explains ({limit:.1e}): the reference log-probabilities are not those of the starting weights; remove the \
             run folder"
        );
        Ok(())
    }

    /// The mean absolute difference, over sequences of the step, between their log-probabilities alone in a pack and behind
    /// others: rounding, as the weights are the same. 0 where no two examples fit into a pack, for then none had company in
    /// the reference pass either.
    fn packing_noise(&self, trees: &[Tree], batches: &[MicroBatch]) -> Result<f64> {
        let examples: Vec<usize> = batches.iter().flat_map(|batch| &batch.examples).copied().collect();
        let capacity = self.model.plan().capacity;
        let fits = |pack: &[usize]| {
            let sum = |of: fn(&Tree) -> usize| pack.iter().map(|&example| of(&trees[example])).sum::<usize>();
            sum(Tree::tokens) <= capacity.tokens && sum(Tree::rows) <= capacity.rows
        };
        let mut moved = Vec::new();
        for (at, &example) in examples.iter().enumerate().take(NOISE_EXAMPLES) {
            let alone = self.last_of(trees, &[example])?;
            for company in 1..=NOISE_COMPANY {
                let others = (1..=company).map(|step| examples[(at + step) % examples.len()]);
                let pack: Vec<usize> = others.chain([example]).collect();
                if fits(&pack) {
                    let behind = self.last_of(trees, &pack)?;
                    moved.extend(alone.iter().zip(&behind).map(|(alone, behind)| (alone - behind).abs()));
                }
            }
        }
        Ok(moved.iter().sum::<f64>() / moved.len().max(1) as f64)
    }

    /// Log-probabilities of the sequences of a pack's last example.
    fn last_of(&self, trees: &[Tree], pack: &[usize]) -> Result<Vec<f64>> {
        let forest = batches::build(trees, pack)?.forest;
        let batch = self.model.upload(&forest)?;
        self.model.forward(&batch)?;
        let logps = self.model.device().download(&self.model.logps(&batch)?)?;
        let ends = forest.sequence_rows.windows(2);
        let sums =
            ends.map(|ends| logps[ends[0] as usize..ends[1] as usize].iter().map(|&x| f64::from(x)).sum::<f64>());
        let own = pack.last().map_or(0, |&example| trees[example].sequences().count());
        Ok(sums.skip(forest.sequence_rows.len() - 1 - own).collect())
    }

    /// The tensors whose gradient is 0 everywhere after the first backward pass, if there are any. It may be right: weights of
    /// zero let nothing through, and rows that contradict each other cancel.
    fn without_gradient(&self) -> Result<Option<String>> {
        let tensors = &self.model.layout().tensors;
        let mut still = Vec::new();
        for spec in tensors {
            let grads = self.model.device().download(&self.model.grads().slice(spec.range()))?;
            if grads.iter().all(|&g| g == 0.0) {
                still.push(&spec.name);
            }
        }
        Ok(still.first().map(|first| {
            format!(
                "note: {} of {} tensors get no gradient in the first step, `{first}` first: weights that start at zero, or rows \
                 that contradict each other, explain it",
                still.len(),
                tensors.len()
            )
        }))
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

/// The noise of a sequence's rows is independent: its sum grows with the root of their number. Eight times that is allowed.
fn first_ratio_limit<T: Float>(rows: f64) -> f64 {
    let noise = match T::DTYPE {
        DType::Bf16 => BF16_ROW_NOISE,
        _ => 0.0,
    };
    FIRST_RATIO_TOLERANCE + 8.0 * noise * rows.sqrt()
}
