//! Whether a run's weights can learn, and whether what it ends with can be used.

use anyhow::Result;
use half::bf16;

use crate::{
    device::{DType, Float},
    forest::{Forest, Tree},
    model::Model,
    optim::RuleKind,
};

/// Elements of a matrix that are looked at for its size.
const SAMPLE: usize = 1 << 16;
/// Elements that are on the host at a time.
const PIECE: usize = 1 << 24;
/// A rate that can replace the weights within so many steps learns nothing from the others.
const STEPS_TO_REPLACE: f64 = 10.0;
/// Weights that grew by so much are those of another model: at the rates above, no run gets there.
const GROWTH: f64 = 1000.0;
/// A loss that rose by so many times what it was at the start (and 1 at least) is that of another model.
const LOSS_RISE: f64 = 10.0;

/// A line if `lr` is far above what weights of this size can take: both rules divide a gradient by its own size, so a step
/// moves every weight by about the rate, whatever the loss; RMSprop's first step, whose mean begins at 0, by more.
fn too_fast(rule: &RuleKind, lr: f64, typical: f64) -> Option<String> {
    let (name, times) = match rule {
        RuleKind::AdamW { .. } => ("AdamW", 1.0),
        RuleKind::RmsProp { alpha, .. } => ("RMSprop", 1.0 / (1.0 - alpha).sqrt()),
    };
    let much = if times > 1.0 { format!("up to {times:.0} times so much") } else { "about so much".into() };
    let steps = (typical / (lr * times)).ceil().max(1.0);
    (typical > 0.0 && steps < STEPS_TO_REPLACE).then(|| {
        let steps = if steps > 1.0 { format!("{steps} steps replace") } else { "one step replaces".into() };
        format!(
            "warning: `optim.lr` = {lr:?}: a step of {name} moves every weight by {much}, and the weights are {typical:.2} \
             in size: {steps} what the model knows; rates from 1e-7 to 1e-4 are usual when all weights are trained"
        )
    })
}

/// What a format with so many bits of mantissa tells apart at that size.
fn unit(size: f64, mantissa: i32) -> f64 {
    2f64.powi(size.log2().floor() as i32 - mantissa)
}

/// A line if the rate is lost in what is stored: a step in the f32 masters, or a whole run in the weights that are saved. A step
/// moves a weight by about the rate.
fn too_slow(lr: f64, steps: u64, typical: f64, dtype: DType) -> Option<String> {
    let (trained, most) = (unit(typical, f32::MANTISSA_DIGITS as i32 - 1), lr * steps as f64);
    if typical > 0.0 && lr < trained / 2.0 {
        return Some(format!(
            "warning: `optim.lr` = {lr:?}: a step moves a weight by about so much, and at the weights' size, {typical:.1e}, f32 tells \
             apart what differs by {trained:.0e}: nothing is learnt; rates from 1e-7 to 1e-4 are usual when all weights are trained"
        ));
    }
    let saved = unit(typical, bf16::MANTISSA_DIGITS as i32 - 1);
    (typical > 0.0 && dtype == DType::Bf16 && most < saved / 2.0).then(|| {
        format!(
            "`optim.lr` = {lr:?}: {steps} steps move a weight by {most:.0e} at most, and at the weights' size, {typical:.1e}, bf16 tells \
             apart what differs by {saved:.0e}: few of the saved weights will be others than at the start, though their f32 masters \
             in the checkpoints are; train.precision = \"f32\" saves all of the change"
        )
    })
}

/// The root mean square of a matrix that is neither among the small nor among the large ones; those of zeros do not count.
fn typical_weight<T: Float>(model: &Model<T>) -> Result<f64> {
    let mut sizes = Vec::new();
    for spec in model.layout().tensors.iter().filter(|spec| spec.shape.len() == 2) {
        let start = spec.range().start;
        let values = model.device().download(&model.params().weight(&(start..start + spec.elements().min(SAMPLE))))?;
        let squares: f64 = values.iter().map(|x| f64::from(x.to_f32()).powi(2)).sum();
        sizes.push((squares / values.len().max(1) as f64).sqrt());
    }
    sizes.retain(|&size| size > 0.0);
    sizes.sort_by(f64::total_cmp);
    Ok(sizes.get(sizes.len() / 2).copied().unwrap_or(0.0))
}

/// The size of a model's weights, and what it says about one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probe {
    /// Root mean square of a usual matrix.
    pub size: f64,
    /// Mean log-probability of a token in the likeliest response, in nats; not finite if that of any response is not.
    pub nats: f64,
}

impl Probe {
    /// Runs the row through the model.
    ///
    /// # Errors
    /// A launch fails.
    pub fn of<T: Float>(model: &Model<T>, tree: &Tree) -> Result<Self> {
        let forest = Forest::pack([tree])?;
        let batch = model.upload(&forest)?;
        model.forward(&batch)?;
        let logps = model.device().download(&model.logps(&batch)?)?;
        let mean = |ends: &[i32]| {
            let own = &logps[ends[0] as usize..ends[1] as usize];
            own.iter().map(|&logp| f64::from(logp)).sum::<f64>() / own.len().max(1) as f64
        };
        let means: Vec<f64> = forest.sequence_rows.windows(2).map(mean).collect();
        let finite = means.iter().all(|mean| mean.is_finite());
        let size = typical_weight(model)?;
        Ok(Self { size, nats: if finite { means.into_iter().fold(f64::NEG_INFINITY, f64::max) } else { f64::NAN } })
    }
}

/// Why the weights are of no use to anybody, if they are not; `start` is from before the first step, where it is known.
///
/// # Errors
/// A launch fails.
pub fn useless<T: Float>(model: &Model<T>, start: Option<Probe>, end: Probe) -> Result<Option<String>> {
    for spec in &model.layout().tensors {
        let mut rest = spec.range();
        while !rest.is_empty() {
            let piece = rest.start..rest.end.min(rest.start + PIECE);
            rest.start = piece.end;
            let values = model.device().download(&model.params().weight(&piece))?;
            if values.iter().any(|x| !x.to_f32().is_finite()) {
                return Ok(Some(format!("tensor `{}` holds numbers that are not finite", spec.name)));
            }
        }
    }
    if !end.nats.is_finite() {
        return Ok(Some("the log-probabilities that the trained weights give are not finite".into()));
    }
    Ok(start.and_then(|start| outgrown(start.size, end.size)))
}

fn outgrown(before: f64, after: f64) -> Option<String> {
    (before > 0.0 && after > GROWTH * before)
        .then(|| format!("the weights grew from {before:.1e} to {after:.1e} in the root mean square"))
}

/// Where a run began and where it ended, as far as this process saw both.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Course {
    pub probes: Option<[Probe; 2]>,
    pub losses: Option<[f64; 2]>,
    pub grad_norms: Option<[f64; 2]>,
}

impl Course {
    /// A line if the weights are finite and yet no language model any more.
    pub fn warning(&self, vocab: usize) -> Option<String> {
        let guess = (vocab as f64).ln();
        // As bad as guessing, and twice as bad as at the start: where that was a guess already, or worse, twice that.
        if let Some([before, after]) = self.probes.map(|probes| probes.map(|probe| probe.nats))
            && after < (-0.9 * guess).min(2.0 * before)
        {
            return Some(format!(
                "warning: the model ends with {after:.1} nats a token for the likeliest response of the first row, from \
                 {before:.1} at the start, where a guess has {:.1}: it has most likely diverged; lower `optim.lr`",
                -guess
            ));
        }
        if let Some([before, after]) = self.losses
            && after - before > LOSS_RISE * before.abs().max(1.0)
        {
            return Some(format!(
                "warning: the loss ends at {after:.4}, from {before:.4} at the start: the run has most likely diverged; lower \
                 `optim.lr`"
            ));
        }
        let [before, after] = self.grad_norms?;
        (before > 0.0 && after == 0.0).then(|| {
            format!(
                "warning: the gradient norm is 0 in the last step, from {before:.3} in the first: the run has nothing left to \
                 learn, or has diverged"
            )
        })
    }
}

/// What is watched over from a run's first step to its last.
pub struct CourseWatch {
    row: Tree,
    /// What the row was given before the first step, where this process saw that.
    start: Option<Probe>,
    /// Of the first and the last step that were read.
    losses: Option<[f64; 2]>,
    grad_norms: Option<[f64; 2]>,
    /// Of the held-out rows, the last time they were looked at.
    eval_loss: Option<f64>,
}

impl CourseWatch {
    /// Nothing was seen yet; `row` is what the model will be asked about.
    pub fn new(row: Tree) -> Self {
        Self { row, start: None, losses: None, grad_norms: None, eval_loss: None }
    }

    /// Asks the model before the first step, which `fresh` weights take as they are, and gives a line on what cannot go well
    /// under the rule at the rate `lr` in so many steps.
    ///
    /// # Errors
    /// A launch fails.
    pub fn begin<T: Float>(
        &mut self,
        model: &Model<T>,
        (rule, lr, steps): (RuleKind, f64, u64),
        fresh: bool,
    ) -> Result<Option<String>> {
        let probe = Probe::of(model, &self.row)?;
        self.start = fresh.then_some(probe);
        Ok(too_fast(&rule, lr, probe.size).or_else(|| too_slow(lr, steps, probe.size, T::DTYPE)))
    }

    /// A step was read.
    pub fn step(&mut self, loss: Option<f64>, grad_norm: f32) {
        let course = |seen: Option<[f64; 2]>, now: f64| Some([seen.map_or(now, |[first, _]| first), now]);
        self.losses = loss.and_then(|loss| course(self.losses, loss));
        self.grad_norms = course(self.grad_norms, f64::from(grad_norm));
    }

    /// The held-out rows were looked at.
    pub fn evaluation(&mut self, loss: Option<f64>) {
        self.eval_loss = loss;
    }

    /// After the last step: why the weights are of no use, or else what speaks against them.
    ///
    /// # Errors
    /// A launch fails.
    pub fn end<T: Float>(&self, model: &Model<T>) -> Result<Verdict> {
        let end = Probe::of(model, &self.row)?;
        if let Some(why) = useless(model, self.start, end)? {
            return Ok(Verdict::Useless(why));
        }
        let probes = self.start.map(|start| [start, end]);
        let course = Course { probes, losses: self.losses, grad_norms: self.grad_norms };
        Ok(course.warning(model.config().vocab).map_or(Verdict::Sound, Verdict::Doubtful))
    }

    /// What the last step and the last evaluation say against the weights.
    pub fn unsound_loss(&self) -> Option<String> {
        let losses = [("last step's", self.losses.map(|[_, last]| last)), ("held-out rows'", self.eval_loss)];
        let (whose, loss) = losses.into_iter().find(|(_, loss)| loss.is_some_and(|loss| !loss.is_finite()))?;
        Some(format!("the {whose} loss is {}", loss?))
    }
}

/// What is thought of trained weights.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    Sound,
    /// They are saved, with this warning.
    Doubtful(String),
    /// They are not saved, and why.
    Useless(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADAMW: RuleKind = RuleKind::adamw(0.9, 0.999, 1e-8);

    #[test]
    fn a_rate_is_measured_by_the_rule() {
        let rmsprop = RuleKind::RmsProp { alpha: 0.99, eps: 1e-8 };
        assert_eq!(too_fast(&ADAMW, 1e-3, 0.02), None);
        let line = too_fast(&rmsprop, 1e-3, 0.015).expect("a warning");
        assert!(
            line.contains("a step of RMSprop moves every weight by up to 10 times so much") && line.contains("2 steps"),
            "{line}"
        );
    }

    #[test]
    fn a_rate_is_measured_against_the_weights() {
        for (lr, typical) in [(1e-6, 0.02), (1e-4, 0.02), (5e-4, 0.02), (1e-3, 0.02), (1e-1, 0.0), (0.01, 0.1)] {
            assert_eq!(too_fast(&ADAMW, lr, typical), None, "{lr} {typical}");
        }
        for (lr, typical, part) in
            [(0.1, 0.04, "one step replaces"), (0.01, 0.04, "4 steps replace"), (1e30, 0.02, "one step replaces")]
        {
            let line = too_fast(&ADAMW, lr, typical).expect("a warning");
            assert!(line.starts_with("warning: `optim.lr` = ") && line.contains(part), "{line}");
        }
    }

    #[test]
    fn a_rate_is_measured_against_what_is_stored() {
        let slow = |lr, steps, dtype| too_slow(lr, steps, 0.02, dtype);
        for (lr, steps, dtype) in [(1e-8, 1, DType::F32), (5e-7, 1, DType::F32), (5e-7, 400, DType::Bf16)] {
            assert_eq!(slow(lr, steps, dtype), None, "{lr} {steps}");
        }
        // f32 has 2^-29 at 0.02, bf16 2^-13.
        for dtype in [DType::F32, DType::Bf16] {
            let line = slow(9e-10, 1000, dtype).expect("a warning");
            assert!(
                line.starts_with("warning: `optim.lr` = 9e-10")
                    && line.contains("f32 tells apart what differs by 2e-9"),
                "{line}"
            );
        }
        let line = slow(5e-7, 100, DType::Bf16).expect("a line");
        assert!(line.contains("100 steps move a weight by 5e-5 at most") && line.contains("differs by 1e-4"), "{line}");
        assert_eq!(too_slow(1e-30, 1, 0.0, DType::F32), None);
    }

    #[test]
    fn weights_of_another_size() {
        assert_eq!(
            [(0.02, 0.03), (0.02, 10.0), (0.0, 5.0)].map(|(before, after)| outgrown(before, after)),
            [None, None, None]
        );
        let line = outgrown(0.05, 1e30).unwrap();
        assert_eq!(line, "the weights grew from 5.0e-2 to 1.0e30 in the root mean square");
    }

    #[test]
    fn garbage_is_told_from_learning() {
        let probe = |nats| Probe { size: 0.02, nats };
        let probes = |before, after| Course { probes: Some([probe(before), probe(after)]), ..Course::default() };
        let losses = |before, after| Course { losses: Some([before, after]), ..Course::default() };
        let norms = |before, after| Course { grad_norms: Some([before, after]), ..Course::default() };
        // A guess among 50000 has -10.8 nats.
        for sound in [
            probes(-1.5, -3.0),
            probes(-10.8, -15.0),
            // Large logits, and random words: as bad as at the start.
            probes(-60.0, -65.0),
            losses(0.693, 0.1),
            losses(0.693, 8.0),
            losses(-0.5, -20.0),
            losses(3.0, 9.0),
            norms(0.0, 0.0),
            norms(3.0, 1e-9),
            Course::default(),
        ] {
            assert_eq!(sound.warning(50_000), None, "{sound:?}");
        }
        for garbage in [
            probes(-1.5, -10.8),
            probes(-1.5, -22.0),
            probes(-10.8, -1e6),
            losses(0.693, 12.0),
            losses(-0.5, 11.0),
            norms(3.0, 0.0),
        ] {
            assert!(garbage.warning(50_000).is_some_and(|line| line.contains("diverged")), "{garbage:?}");
        }
    }
}
