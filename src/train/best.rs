//! The best held-out metric of a run so far: the weights that had it can be kept, and a run that gets no better can end.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    config::{BestMetric, TrainSection},
    device::Float,
    files,
    loss::MetricSums,
    model::{Companions, Model},
};

/// The best weights' folder in the run folder.
pub const FOLDER: &str = "best";

/// The best value so far, kept in a checkpoint's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its name in `metrics.jsonl`.
    pub metric: String,
    /// Finite.
    pub value: f64,
    /// After which it was measured.
    pub step: u64,
    /// Evaluations since then.
    pub since: u64,
}

impl Best {
    /// Takes in an evaluation after `step`. True if it is the best so far; what is not finite never is.
    ///
    /// # Errors
    /// The held-out rows have no such metric.
    pub fn update(best: &mut Option<Self>, wanted: &BestMetric, step: u64, found: &MetricSums) -> Result<bool> {
        let metric = wanted.name();
        let names = || found.iter().map(|(name, _)| format!("eval_{name}")).collect::<Vec<_>>().join(", ");
        let value = found.get(wanted.in_training());
        let value = value.with_context(|| format!("`train.save_best` = {metric}: this loss has only {}", names()))?;
        // Of another metric, before the run was resumed under this one.
        best.take_if(|best| best.metric != metric);
        let better = value.is_finite() && best.as_ref().is_none_or(|best| wanted.is_better(value, best.value));
        match best {
            _ if better => *best = Some(Self { metric: metric.to_owned(), value, step, since: 0 }),
            Some(best) => best.since += 1,
            None => {}
        }
        Ok(better)
    }

    /// Whether the run has been getting no better for as long as it may.
    pub fn ends(best: &Option<Self>, train: &TrainSection) -> bool {
        train.early_stop > 0 && best.as_ref().is_some_and(|best| best.since >= train.early_stop)
    }

    /// For people.
    pub fn describe(&self) -> String {
        format!("{} {:.4} after step {}", self.metric, self.value, self.step)
    }
}

/// Refuses before the first step a metric that the held-out rows do not have.
///
/// # Errors
/// Names those they have.
pub fn check(train: &TrainSection, found: &MetricSums) -> Result<()> {
    let Some(wanted) = train.watched() else { return Ok(()) };
    let update = Best::update(&mut None, &wanted, 0, found)?;
    ensure!(
        update,
        "`train.save_best`: {} of the starting weights is not finite: nothing can be compared with it",
        wanted.name()
    );
    Ok(())
}

/// Puts a model into `out/best`, in the place of the one that was the best before.
///
/// # Errors
/// The folder cannot be written.
pub fn save<T: Float>(out: &Path, model: &Model<T>, companions: &Companions) -> Result<()> {
    files::folder_replaced(&out.join(FOLDER), |folder| model.save(folder, companions))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(value: f64) -> MetricSums {
        let mut sums = MetricSums::default();
        sums.add("loss", value);
        sums
    }

    #[test]
    fn the_best_is_the_lowest_loss_and_evaluations_since_are_counted() {
        let wanted: BestMetric = "eval_loss".parse().unwrap();
        let train = TrainSection { early_stop: 2, ..TrainSection::default() };
        let mut best = None;
        let values = [0.7, f64::NAN, 0.5, 0.5, f64::INFINITY, 0.4];
        let better: Vec<bool> = (1..)
            .zip(values)
            .map(|(step, value)| {
                let better = Best::update(&mut best, &wanted, step, &found(value)).unwrap();
                assert_eq!(Best::ends(&best, &train), step == 5, "{best:?}");
                better
            })
            .collect();
        assert_eq!(better, [true, false, true, false, false, true]);
        assert_eq!(best, Some(Best { metric: "eval_loss".into(), value: 0.4, step: 6, since: 0 }));
        let other: BestMetric = "rewards/margins".parse().unwrap();
        let why = Best::update(&mut best, &other, 7, &found(0.3)).unwrap_err().to_string();
        assert_eq!(why, "`train.save_best` = eval_rewards/margins: this loss has only eval_loss");
    }
}
