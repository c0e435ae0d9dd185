//! What a model and its loss say about rows, without a gradient: forward passes, and the metrics of held-out rows.

use anyhow::Result;

use crate::{
    device::{Buffer, Float},
    feed::{HeldOut, Work},
    forest::Forest,
    loss::{Loss, Margin, MetricSums, Step},
    model::{Batch, Masked, Model},
    ops::{
        head::{HeadValues, distributions::Divergence},
        loss_rows::RowInputs,
    },
    roles::{Reference, TrainedMasks},
};

/// A model beside what it is compared with, under a loss.
pub struct Passes<'a, T> {
    /// Whose log-probabilities count.
    pub model: &'a Model<T>,
    /// Weights of tokens, where the loss has them.
    pub masks: Option<&'a TrainedMasks>,
    /// What it is compared with.
    pub reference: &'a Reference<T>,
    /// What is minimised.
    pub loss: &'a Loss,
}

/// A micro-batch on the device.
pub(super) struct LoadedPack {
    pub batch: Batch,
    pub ref_logps: Option<Buffer<f32>>,
}

/// What a micro-batch's forward pass leaves for its backward pass.
pub(super) struct Forwarded {
    pub rows: RowInputs,
    /// Both models' normalisers, where the reference ran beside the policy.
    pub divergence: Option<Divergence>,
    pub masked: Option<Masked>,
}

impl<T: Float> Passes<'_, T> {
    /// The same metrics over rows that are held out, without a gradient, as one step over all of them, and the margins of pairs. What the
    /// loss has `carried` so far stays as it is: see [`loss_batch::STATE`]. `None` if `go_on`, asked before each pack, says no.
    ///
    /// [`loss_batch::STATE`]: crate::ops::loss_batch::STATE
    ///
    /// # Errors
    /// A launch fails.
    pub fn evaluate(
        &self,
        rows: &HeldOut,
        carried: &[f64],
        at_start: bool,
        go_on: impl Fn() -> bool,
    ) -> Result<Option<(MetricSums, Vec<Margin>)>> {
        let device = self.model.device();
        let groups = (0..rows.packs()).map(|pack| self.loss.groups(&rows.trees(pack)?)).collect::<Result<Vec<_>>>()?;
        let (loss, state) = (self.loss.held(carried), device.upload(carried)?);
        let step = Step::new(device, &loss, &state, &groups)?;
        for pack in 0..rows.packs() {
            if !go_on() {
                return Ok(None);
            }
            let work = rows.work(pack)?;
            let forest = Forest::pack(&work.trees)?;
            let at_hand = at_start && !self.loss.needs_distributions() && self.loss.acceleration().is_none();
            match at_hand.then(|| work.reference_of(&work.packs[0])).flatten() {
                // The policy is the reference, whose values are there.
                Some(values) => {
                    let logps = device.upload(&values)?;
                    let rows = RowInputs { ref_logps: Some(logps.clone()), logps: Some(logps), ..RowInputs::default() };
                    step.sum(pack, &rows, &self.model.upload(&forest)?.sequence_rows)?;
                }
                None => drop(self.forward(&step, pack, &self.load(&forest, &work, 0)?)?),
            }
        }
        step.run(None)?;
        let measured = step.measured()?;
        Ok(Some((measured.metrics(), measured.margins())))
    }

    /// Copies to the device what the passes of a pack of `work` read.
    pub(super) fn load(&self, forest: &Forest, work: &Work, pack: usize) -> Result<LoadedPack> {
        let values = match self.reference {
            Reference::Values => work.reference_of(&work.packs[pack]),
            Reference::None | Reference::Beside(_) => None,
        };
        let ref_logps = values.map(|values| self.model.device().upload(&values)).transpose()?;
        Ok(LoadedPack { batch: self.model.upload(forest)?, ref_logps })
    }

    /// Log-probabilities of a micro-batch's rows, and their sums in the step.
    pub(super) fn forward(&self, step: &Step, micro: usize, loaded: &LoadedPack) -> Result<Forwarded> {
        let batch = &loaded.batch;
        self.model.forward(batch)?;
        let forwarded = match self.reference.beside() {
            Some(beside) if self.loss.needs_divergence() => self.whole_distributions(beside, batch)?,
            beside => self.log_probabilities(beside, loaded)?,
        };
        step.sum(micro, &forwarded.rows, &batch.sequence_rows)?;
        Ok(forwarded)
    }

    /// What both models say of every token, and of the one that came.
    fn whole_distributions(&self, beside: &Model<T>, batch: &Batch) -> Result<Forwarded> {
        let mut rows = RowInputs::default();
        let masked = self.masks.map(|masks| masks.masks.forward(beside, batch)).transpose()?;
        match &masked {
            Some(Masked { weights: [weights, divergence_weights], .. }) => {
                (rows.weights, rows.divergence_weights) = (Some(weights.clone()), Some(divergence_weights.clone()));
            }
            None => beside.forward(batch)?,
        }
        let both = self.model.divergence(beside, batch)?;
        rows.logps = Some(both.logps.clone());
        rows.ref_logps = Some(both.ref_logps.clone());
        rows.divergences = Some(both.divergences.clone());
        rows.described = Some([both.entropies.clone(), both.top1.clone()]);
        Ok(Forwarded { rows, divergence: Some(both), masked })
    }

    /// What the model says of the tokens that came, and the reference: a model that runs beside, or its values.
    fn log_probabilities(&self, beside: Option<&Model<T>>, loaded: &LoadedPack) -> Result<Forwarded> {
        let (batch, mut rows) = (&loaded.batch, RowInputs::default());
        rows.ref_logps = match beside {
            Some(beside) => {
                beside.forward(batch)?;
                Some(beside.logps(batch)?)
            }
            None => loaded.ref_logps.clone(),
        };
        if self.loss.needs_collisions() {
            // Before the log-probabilities, whose logits the backward pass takes over.
            rows.collisions = Some(self.model.collisions(batch)?);
        }
        let HeadValues { logps, entropies, top1, .. } = self.model.head_values(batch)?;
        (rows.logps, rows.described) = (Some(logps), Some([entropies, top1]));
        Ok(Forwarded { rows, divergence: None, masked: None })
    }
}
