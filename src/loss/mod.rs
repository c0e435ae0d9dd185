//! Losses: from the log-probability of every row to one coefficient per row, and the metrics that go with it.
//!
//! One file per family. To add a loss, copy [`dpo`]: a struct with the options and their ranges (`validate`), the head
//! itself (`run`: fill `coefficients` with d loss / d logp of every row) and the metrics (`metrics`). Nothing else in
//! the engine changes: the backward pass starts from the coefficients. This module knows nothing about text or models.

pub mod dpo;

use crate::{device::Buffer, forest::Forest};

pub use dpo::Dpo;

/// What a head reads, on the device: the rows of one micro-batch and how they form sequences and pairs.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// (rows) log-probabilities under the model in training.
    pub logps: &'a Buffer<f32>,
    /// (rows) log-probabilities under the reference.
    pub ref_logps: &'a Buffer<f32>,
    /// (sequences + 1) as in [`Forest`].
    pub sequence_rows: &'a Buffer<i32>,
    /// (pairs, 2) as in [`Forest`].
    pub pairs: &'a Buffer<i32>,
}

/// What a loss is averaged over: counted over the whole step before its first micro-batch runs, so that the packing
/// of pairs into micro-batches changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub pairs: usize,
    /// Rows of chosen sequences, counted once per pair.
    pub chosen_tokens: usize,
}

impl Totals {
    /// Counts one micro-batch.
    pub fn add(&mut self, forest: &Forest) {
        self.pairs += forest.pair_count();
        let rows = |sequence: i32| {
            let sequence = sequence as usize;
            (forest.sequence_rows[sequence + 1] - forest.sequence_rows[sequence]) as usize
        };
        self.chosen_tokens += forest.pairs.chunks(2).map(|pair| rows(pair[0])).sum::<usize>();
    }
}

impl<'a> FromIterator<&'a Forest> for Totals {
    fn from_iter<I: IntoIterator<Item = &'a Forest>>(forests: I) -> Self {
        let mut totals = Self::default();
        forests.into_iter().for_each(|forest| totals.add(forest));
        totals
    }
}

/// Metrics of a step as sums of shares: every micro-batch adds its part of the step's mean, and after the last one the
/// sums are the means. Keeps the order in which names first came.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricSums(Vec<(&'static str, f64)>);

impl MetricSums {
    /// Adds to the metric `name`.
    pub fn add(&mut self, name: &'static str, share: f64) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += share,
            None => self.0.push((name, share)),
        }
    }

    /// The metric `name`, if anything was added to it.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(known, _)| *known == name).map(|&(_, sum)| sum)
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        self.0.iter().copied()
    }
}
