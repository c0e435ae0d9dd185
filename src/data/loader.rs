//! Which rows each step takes: epochs shuffled by seed, a position that can be stored and resumed exactly.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::rng::{Philox, Purpose};

/// Where the next step starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Whole passes over the data behind it.
    pub epoch: u64,
    /// Rows of this epoch behind it.
    pub index: usize,
}

/// Endless steps over `rows` rows. Every epoch has its own order, a function of seed and epoch alone. The last step of
/// an epoch takes what is left, so it can be smaller; no step spans two epochs.
#[derive(Clone, Debug)]
pub struct Loader {
    seed: u64,
    rows: usize,
    pairs: usize,
    position: Position,
    order: Vec<usize>,
}

impl Loader {
    /// A loader at the start of epoch 0, with `pairs` rows a step. Both counts are at least 1.
    pub fn new(seed: u64, rows: usize, pairs: usize) -> Self {
        assert!(rows > 0 && pairs > 0, "{rows} rows in steps of {pairs}");
        let mut loader = Self { seed, rows, pairs, position: Position::default(), order: Vec::new() };
        loader.shuffle();
        loader
    }

    /// Continues at a stored position.
    ///
    /// # Errors
    /// A position outside the data: the file has changed since.
    pub fn seek(&mut self, position: Position) -> Result<()> {
        let (index, rows) = (position.index, self.rows);
        ensure!(index < rows, "stored position: row {index} of {rows}: the training file has changed, start a new run");
        self.position = position;
        self.shuffle();
        Ok(())
    }

    /// Where the next step starts.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Steps in one epoch, a smaller last one counted in.
    pub fn steps_per_epoch(&self) -> u64 {
        self.rows.div_ceil(self.pairs) as u64
    }

    /// Rows of the next step.
    pub fn next_step(&mut self) -> Vec<usize> {
        let start = self.position.index;
        let end = self.rows.min(start + self.pairs);
        let step = self.order[start..end].to_vec();
        self.position.index = end;
        if end == self.rows {
            self.position = Position { epoch: self.position.epoch + 1, index: 0 };
            self.shuffle();
        }
        step
    }

    fn shuffle(&mut self) {
        let stream = Philox::new(self.seed, Purpose::Shuffle, self.position.epoch as u32);
        self.order = stream.permutation(self.rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_once_an_epoch_and_a_smaller_last_step() {
        let mut loader = Loader::new(1, 10, 4);
        assert_eq!(loader.steps_per_epoch(), 3);
        let mut orders = Vec::new();
        for epoch in 0..3 {
            let steps: Vec<Vec<usize>> = (0..3).map(|_| loader.next_step()).collect();
            assert_eq!(steps.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2]);
            let order = steps.concat();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
            assert_eq!(loader.position(), Position { epoch: epoch + 1, index: 0 });
            orders.push(order);
        }
        assert_ne!(orders[0], orders[1]);
        assert_ne!(orders[1], orders[2]);
    }

    #[test]
    fn a_stored_position_continues_exactly() {
        let mut straight = Loader::new(9, 7, 3);
        for steps in 0..8 {
            let text = serde_json::to_string(&straight.position()).unwrap();
            let mut resumed = Loader::new(9, 7, 3);
            resumed.seek(serde_json::from_str(&text).unwrap()).unwrap();
            assert_eq!(resumed.clone().next_step(), straight.clone().next_step(), "after {steps} steps");
            straight.next_step();
        }
        assert!(Loader::new(9, 7, 3).seek(Position { epoch: 0, index: 7 }).is_err());
    }
}
