//! What can be told after a run's first backward pass and before its first update.

use anyhow::{Result, ensure};

use super::step::Trainer;
use crate::{
    device::{DType, Float},
    feed::Work,
    forest::{Forest, Tree},
    loss::Step,
    model::{TensorSpec, pieces},
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

/// Elements of gradients that are in host memory at a time.
const PIECE: usize = 4 << 20;

impl<T: Float> Trainer<T> {
    /// What can be told before the first update: refuses a wrong reference, and notes what does not learn.
    pub(super) fn look_at_first(&self, step: &Step, work: &Work) -> Result<Vec<String>> {
        self.check_first_ratios(step, work)?;
        match self.loss.moves_at_the_reference() {
            true => Ok(self.without_gradient()?.into_iter().collect()),
            false => Ok(Vec::new()),
        }
    }

    /// At the first step the policy is the reference, and every log-ratio is 0 but for rounding.
    fn check_first_ratios(&self, step: &Step, work: &Work) -> Result<()> {
        if !self.loss.needs_reference() || self.loss.acceleration().is_some() {
            return Ok(());
        }
        let (ratio, rows) = step.log_ratio()?;
        let mut limit = first_ratio_limit::<T>(rows);
        if ratio > limit {
            // Logits of any size and responses of any length: what rounding does to these very rows.
            limit = limit.max(NOISE_ALLOWED * self.packing_noise(work)?);
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
    fn packing_noise(&self, work: &Work) -> Result<f64> {
        let trees = &work.trees;
        let capacity = self.roles.policy.model.plan().capacity;
        let fits = |pack: &[usize]| {
            let sum = |of: fn(&Tree) -> usize| pack.iter().map(|&example| of(&trees[example])).sum::<usize>();
            sum(Tree::tokens) <= capacity.tokens && sum(Tree::rows) <= capacity.rows
        };
        let mut moved = Vec::new();
        for example in 0..trees.len().min(NOISE_EXAMPLES) {
            let alone = self.last_of(trees, &[example])?;
            for company in 1..=NOISE_COMPANY {
                let others = (1..=company).map(|step| (example + step) % trees.len());
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
        let forest = Forest::pack(pack.iter().map(|&example| &trees[example]))?;
        let batch = self.roles.policy.model.upload(&forest)?;
        self.roles.policy.model.forward(&batch)?;
        let logps = self.roles.policy.model.device().download(&self.roles.policy.model.logps(&batch)?)?;
        let ends = forest.sequence_rows.windows(2);
        let sums =
            ends.map(|ends| logps[ends[0] as usize..ends[1] as usize].iter().map(|&x| f64::from(x)).sum::<f64>());
        let own = pack.last().map_or(0, |&example| trees[example].sequences().count());
        Ok(sums.skip(forest.sequence_rows.len() - 1 - own).collect())
    }

    /// Whether a tensor's gradient is 0 everywhere.
    fn is_still(&self, spec: &TensorSpec) -> Result<bool> {
        let params = self.model().params();
        for piece in pieces(spec.range(), PIECE) {
            if params.download_gradient(&piece)?.iter().any(|&g| g != 0.0) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The tensors whose gradient is 0 everywhere after the first backward pass, if there are any. It may be right: weights of
    /// zero let nothing through, and rows that contradict each other cancel.
    fn without_gradient(&self) -> Result<Option<String>> {
        let tensors = &self.roles.policy.model.layout().tensors;
        let mut still = Vec::new();
        for spec in tensors {
            if self.is_still(spec)? {
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

/// The noise of a sequence's rows is independent: its sum grows with the root of their number. Eight times that is allowed.
fn first_ratio_limit<T: Float>(rows: f64) -> f64 {
    let noise = match T::DTYPE {
        DType::Bf16 => BF16_ROW_NOISE,
        _ => 0.0,
    };
    FIRST_RATIO_TOLERANCE + 8.0 * noise * rows.sqrt()
}
