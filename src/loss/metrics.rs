//! What a step says about itself, under TRL's names where TRL has one.

use anyhow::Result;

use super::{Groups, Loss, LossHead, Shape};
use crate::{
    device::Readback,
    ops::{
        loss_batch,
        loss_rows::{SLOPES, SUMS, VALUES},
    },
};

/// Columns of the sums.
const LOGPS: usize = 0;
const RHO: usize = 1;
const ROWS: usize = 2;
const DIVERGENCE: usize = 3;
const ENTROPY: usize = 8;
const TOP1: usize = 9;

/// Metrics that are better the higher they are.
pub const HIGHER: [&str; 5] =
    ["rewards/accuracies", "rewards/margins", "rewards/ndcg", "rewards/best_first", "mean_token_accuracy"];

/// Whether more of a metric is better; `None` where that is not known.
pub fn higher_is_better(name: &str) -> Option<bool> {
    match HIGHER.contains(&name) {
        true => Some(true),
        false => name.ends_with("loss").then_some(false),
    }
}

/// A step's sums, slopes and losses on their way from the device.
pub struct Reading {
    /// Whether there are reference values.
    pub referenced: bool,
    /// Whether all rows came with the policy's entropy and hits.
    pub described: bool,
    /// Of the step.
    pub groups: Groups,
    /// (sequences, [`SUMS`])
    pub sums: Readback<f64>,
    /// (slots)
    pub slopes: Readback<f64>,
    /// Of each part, by group.
    pub losses: Vec<Readback<f64>>,
    /// What the loss carries on.
    pub state: Readback<f64>,
}

impl Reading {
    /// Waits for them; `loss` is the step's.
    ///
    /// # Errors
    /// A launch failed.
    pub fn wait(self, loss: &Loss) -> Result<Measured<'_>> {
        Ok(Measured {
            loss,
            referenced: self.referenced,
            described: self.described,
            groups: self.groups,
            sums: self.sums.wait()?,
            slopes: self.slopes.wait()?,
            losses: self.losses.into_iter().map(Readback::wait).collect::<Result<_>>()?,
            state: self.state.wait()?,
        })
    }
}

/// A step's sums, slopes and losses.
pub struct Measured<'a> {
    /// What was minimised.
    pub loss: &'a Loss,
    /// Whether log-ratios are to a reference; without one they are log-probabilities.
    pub referenced: bool,
    /// Whether all rows came with the policy's entropy and hits.
    pub described: bool,
    /// Of the step.
    pub groups: Groups,
    /// (sequences, [`SUMS`])
    pub sums: Vec<f64>,
    /// (slots, [`SLOPES`])
    pub slopes: Vec<f64>,
    /// (groups) of each part.
    pub losses: Vec<Vec<f64>>,
    /// What the loss carries on.
    pub state: Vec<f64>,
}

/// What a pair's responses are worth: the chosen one and the rejected one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Margin {
    /// Their places in the step.
    pub sequences: [usize; 2],
    /// Their rewards.
    pub rewards: [f64; 2],
}

impl Margin {
    /// By how much the chosen one is worth more.
    pub fn margin(&self) -> f64 {
        self.rewards[0] - self.rewards[1]
    }
}

/// Metrics of a step. Keeps the order in which names first came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricSums(Vec<(String, f64)>);

impl MetricSums {
    /// Adds to the metric `name`.
    pub fn add(&mut self, name: &str, share: f64) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, sum)) => *sum += share,
            None => self.0.push((name.to_owned(), share)),
        }
    }

    /// The metric `name`, if anything was added to it.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(known, _)| known == name).map(|&(_, sum)| sum)
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> + '_ {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

/// The mean absolute log-ratio of a sequence in these sums, 0 while the policy is the reference; and the rows of a sequence
/// on average.
pub(super) fn log_ratio(sums: &[f64]) -> (f64, f64) {
    let sequences = (sums.len() / SUMS).max(1) as f64;
    let sum = |column: usize| sums.chunks_exact(SUMS).map(|sums| sums[column].abs()).sum::<f64>();
    (sum(RHO) / sequences, sum(ROWS) / sequences)
}

impl Measured<'_> {
    fn column(&self, slot: usize, column: usize) -> f64 {
        self.sums[self.groups.slots[slot] * SUMS + column]
    }

    fn reward(&self, slot: usize) -> f64 {
        self.loss.beta() * self.column(slot, RHO)
    }

    /// The step's metrics.
    pub fn metrics(&self) -> MetricSums {
        let mut sums = MetricSums::default();
        self.losses(&mut sums);
        match self.loss.shape() {
            Shape::Pair => self.pairs(&mut sums),
            Shape::List => self.lists(&mut sums),
            Shape::Labelled => self.labelled(&mut sums),
            Shape::Single => self.mean(&mut sums, "logps/chosen", |m, group| m.column(m.groups.of(group).start, LOGPS)),
        }
        self.effective_share(&mut sums);
        if self.described {
            self.describe(&mut sums);
        }
        sums
    }

    /// The policy's entropy at a row on average, over the responses of all groups; and the share of rows whose token it would
    /// have chosen itself, over the chosen ones of pairs and all of single sequences: what TRL's trainers log.
    fn describe(&self, sums: &mut MetricSums) {
        let shape = self.loss.shape();
        let responses = match shape {
            Shape::Pair => 2,
            Shape::List => usize::MAX,
            Shape::Labelled | Shape::Single => 1,
        };
        sums.add("entropy", self.mean_of_rows(responses, ENTROPY));
        if matches!(shape, Shape::Pair | Shape::Single) {
            sums.add("mean_token_accuracy", self.mean_of_rows(1, TOP1));
        }
    }

    /// The mean of a column over the rows of every group's first so many sequences.
    fn mean_of_rows(&self, sequences: usize, column: usize) -> f64 {
        let slots = (0..self.groups.len()).flat_map(|group| self.groups.of(group).take(sequences));
        let add = |(sum, rows): (f64, f64), slot| (sum + self.column(slot, column), rows + self.column(slot, ROWS));
        let (sum, rows) = slots.fold((0.0, 0.0), add);
        sum / f64::max(rows, 1.0)
    }

    /// The loss, and its parts before their weights if there are several.
    fn losses(&self, sums: &mut MetricSums) {
        let parts = self.loss.parts();
        let mut own = MetricSums::default();
        let mut total = 0.0;
        for ((term, part), losses) in parts.iter().zip(&self.losses) {
            let sum: f64 = losses.iter().sum();
            total += self.groups.scale(part.weight, part.mean) * sum;
            let name = match part.head {
                LossHead::Likelihood { .. } if self.loss.terms()[*term].definition.shape == Shape::Pair => {
                    "nll_loss".to_owned()
                }
                _ => format!("{}_loss", self.loss.terms()[*term].definition.name),
            };
            own.add(&name, self.groups.scale(1.0, part.mean) * sum);
        }
        sums.add("loss", total);
        if parts.len() > 1 {
            own.iter().for_each(|(name, value)| sums.add(name, value));
        }
    }

    /// Adds the mean over groups.
    fn mean(&self, sums: &mut MetricSums, name: &str, of: impl Fn(&Self, usize) -> f64) {
        let groups = self.groups.len();
        sums.add(name, (0..groups).map(|group| of(self, group)).sum::<f64>() / groups.max(1) as f64);
    }

    /// The margin of each pair, in the order of the groups; empty where the loss does not learn from pairs.
    pub fn margins(&self) -> Vec<Margin> {
        let pairs = if self.loss.shape() == Shape::Pair { self.groups.len() } else { 0 };
        let margin = |group: usize| {
            let slots = [0, 1].map(|place| self.groups.of(group).start + place);
            Margin {
                sequences: slots.map(|slot| self.groups.slots[slot]),
                rewards: slots.map(|slot| self.reward(slot)),
            }
        };
        (0..pairs).map(margin).collect()
    }

    fn pairs(&self, sums: &mut MetricSums) {
        let side = |place: usize, column: usize| {
            move |m: &Self, group: usize| m.column(m.groups.of(group).start + place, column)
        };
        let beta = self.loss.beta();
        let margin = move |m: &Self, group: usize| beta * (side(0, RHO)(m, group) - side(1, RHO)(m, group));
        self.mean(sums, "rewards/chosen", |m, group| beta * side(0, RHO)(m, group));
        self.mean(sums, "rewards/rejected", |m, group| beta * side(1, RHO)(m, group));
        self.mean(sums, "rewards/margins", margin);
        self.mean(sums, "rewards/accuracies", |m, group| f64::from(u8::from(margin(m, group) > 0.0)));
        self.mean(sums, "logps/chosen", side(0, LOGPS));
        self.mean(sums, "logps/rejected", side(1, LOGPS));
        if self.referenced {
            self.mean(sums, "logps/chosen_fell", |m, group| f64::from(u8::from(side(0, RHO)(m, group) < 0.0)));
        }
        if self.loss.needs_divergence() {
            let per_row =
                |place| move |m: &Self, g: usize| side(place, DIVERGENCE)(m, g) / side(place, ROWS)(m, g).max(1.0);
            self.mean(sums, "kl/chosen", per_row(0));
            self.mean(sums, "kl/rejected", per_row(1));
        }
    }

    fn lists(&self, sums: &mut MetricSums) {
        self.mean(sums, "rewards/accuracies", |m, group| m.concordant(group));
        self.mean(sums, "rewards/best_first", |m, group| {
            let order = m.order(group);
            let top = order.iter().map(|&(_, score)| score).fold(f64::NEG_INFINITY, f64::max);
            f64::from(u8::from(order[0].1 == top))
        });
        self.mean(sums, "rewards/ndcg", |m, group| m.ndcg(group));
        let best = |m: &Self, group: usize, column: usize| {
            let score = |slot: &usize| m.groups.values[slot * VALUES];
            let better = |a: usize, b: usize| if score(&b) > score(&a) { b } else { a };
            m.groups.of(group).reduce(better).map_or(0.0, |slot| m.column(slot, column))
        };
        self.mean(sums, "logps/best", |m, group| best(m, group, LOGPS));
        if self.referenced {
            self.mean(sums, "logps/best_fell", |m, group| f64::from(u8::from(best(m, group, RHO) < 0.0)));
        }
    }

    /// Share of the list's pairs of different score that the rewards order the same way.
    fn concordant(&self, group: usize) -> f64 {
        let slots = self.groups.of(group);
        let score = |slot: usize| self.groups.values[slot * VALUES];
        let (mut right, mut all) = (0.0, 0.0);
        for a in slots.clone() {
            for b in slots.clone().filter(|&b| score(a) > score(b)) {
                all += 1.0;
                right += f64::from(u8::from(self.reward(a) > self.reward(b)));
            }
        }
        right / f64::max(all, 1.0)
    }

    /// Rewards and scores, the largest reward first.
    fn order(&self, group: usize) -> Vec<(f64, f64)> {
        let pair = |slot: usize| (self.reward(slot), self.groups.values[slot * VALUES]);
        let mut order: Vec<(f64, f64)> = self.groups.of(group).map(pair).collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0));
        order
    }

    /// Normalised discounted cumulative gain with gains that begin with 0 for the list's worst.
    fn ndcg(&self, group: usize) -> f64 {
        let order = self.order(group);
        let worst = order.iter().map(|&(_, score)| score).fold(f64::INFINITY, f64::min);
        let gain = |scores: &mut dyn Iterator<Item = f64>| -> f64 {
            scores.enumerate().map(|(place, score)| ((score - worst).exp2() - 1.0) / (place as f64 + 2.0).log2()).sum()
        };
        let own = gain(&mut order.iter().map(|&(_, score)| score));
        let mut best: Vec<f64> = order.iter().map(|&(_, score)| score).collect();
        best.sort_by(|a, b| b.total_cmp(a));
        own / gain(&mut best.into_iter())
    }

    fn labelled(&self, sums: &mut MetricSums) {
        for (name, wanted) in [("chosen", true), ("rejected", false)] {
            let own = (0..self.groups.len()).map(|group| self.groups.of(group).start);
            let slots: Vec<usize> = own.filter(|slot| (self.groups.values[slot * VALUES] > 0.0) == wanted).collect();
            if slots.is_empty() {
                continue;
            }
            let mean = |of: &dyn Fn(usize) -> f64| slots.iter().map(|&slot| of(slot)).sum::<f64>() / slots.len() as f64;
            sums.add(&format!("rewards/{name}"), mean(&|slot| self.reward(slot)));
            sums.add(&format!("logps/{name}"), mean(&|slot| self.column(slot, LOGPS)));
            sums.add(&format!("count/{name}"), slots.len() as f64);
        }
        if let (Some(chosen), Some(rejected)) = (sums.get("rewards/chosen"), sums.get("rewards/rejected")) {
            sums.add("rewards/margins", chosen - rejected);
        }
        for (_, part) in self.loss.parts() {
            if let LossHead::Batch { function } = part.head {
                let name = if function == loss_batch::function::KTO { "kl" } else { "delta" };
                sums.add(name, self.state[2]);
            }
        }
    }

    /// How many of the groups the gradient comes from: (sum of slopes)^2 over the sum of squares, as a share.
    fn effective_share(&self, sums: &mut MetricSums) {
        let slopes = (0..self.groups.len()).map(|g| self.slopes[self.groups.of(g).start * SLOPES].abs());
        let (sum, squares) = slopes.fold((0.0, 0.0), |(sum, squares), s| (sum + s, squares + s * s));
        if squares > 0.0 {
            sums.add("weights/effective_share", sum * sum / (squares * self.groups.len() as f64));
        }
    }
}
