//! Which rows each step takes and how they share packs: epochs shuffled by seed, rows taken as often as they weigh, a
//! position that can be stored and resumed exactly.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::pack;
use crate::rng::{Philox, Purpose};

/// Rows packed at a time where steps are counted in packs: enough choice for full packs, and other neighbours for a row
/// in every epoch.
const LOOK_AHEAD: usize = 8192;
/// The most a row may weigh.
const WEIGHT: f32 = 1000.0;
/// Epochs that are planned one by one to count their steps, where they are not all alike.
const COUNTED_EPOCHS: u64 = 1000;

/// Where the next step starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Whole passes over the data behind it.
    pub epoch: u64,
    /// Rows of this epoch behind it, or packs where steps are counted in packs.
    pub index: usize,
}

/// How much a step takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepSize {
    /// So many rows, in as few packs as best fit finds.
    Rows(usize),
    /// So many packs of the epoch.
    Packs(usize),
}

/// What a loader goes over.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Tokens of each row's tree.
    pub lengths: Vec<usize>,
    /// How often an epoch takes each row; empty for once each.
    pub weights: Vec<f32>,
    pub size: StepSize,
    /// Tokens of a pack at most.
    pub budget: usize,
}

/// Endless steps. Every epoch has its own order, a function of seed and epoch alone: row r comes `floor(weight)` times,
/// and once more with the probability that is left. The last step of an epoch takes what is left, so it can be smaller;
/// no step spans two epochs.
#[derive(Clone, Debug)]
pub struct Loader {
    plan: Plan,
    position: Position,
    epoch: Epoch,
}

/// One epoch in the order it is taken.
#[derive(Clone, Debug)]
enum Epoch {
    Rows(Vec<usize>),
    Packs(Vec<Vec<usize>>),
}

impl Epoch {
    fn len(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.len(),
            Self::Packs(packs) => packs.len(),
        }
    }
}

impl Loader {
    /// A loader at the start of epoch 0.
    ///
    /// # Errors
    /// No row, a step of nothing, a row longer than the budget, or a weight that is none.
    pub fn new(plan: Plan) -> Result<Self> {
        let Plan { lengths, weights, budget, .. } = &plan;
        let (StepSize::Rows(size) | StepSize::Packs(size)) = plan.size;
        let rows = lengths.len();
        ensure!(rows > 0 && size > 0, "{rows} rows in steps of {size}");
        if let Some(row) = lengths.iter().position(|tokens| tokens > budget) {
            let tokens = lengths[row];
            anyhow::bail!("row {row} has {tokens} tokens, `batch.tokens` = {budget}: raise batch.tokens");
        }
        ensure!(weights.is_empty() || weights.len() == rows, "{} weights for {rows} rows", weights.len());
        if let Some(weight) = weights.iter().find(|weight| !(0.0..=WEIGHT).contains(*weight)) {
            anyhow::bail!("a row weighs {weight}: give a weight from 0 to {WEIGHT}");
        }
        let epoch = plan.epoch(0);
        Ok(Self { plan, position: Position::default(), epoch })
    }

    /// Continues at a stored position.
    ///
    /// # Errors
    /// A position outside the data: the file has changed since.
    pub fn seek(&mut self, position: Position) -> Result<()> {
        let epoch = self.plan.epoch(position.epoch);
        let (index, len) = (position.index, epoch.len());
        ensure!(index < len, "stored position: {index} of {len}: the training data has changed, start a new run");
        (self.position, self.epoch) = (position, epoch);
        Ok(())
    }

    /// Tokens of a pack at most.
    pub fn budget(&self) -> usize {
        self.plan.budget
    }

    /// Where the next step starts.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Passes over the data behind the next step.
    pub fn epochs(&self) -> f64 {
        self.position.epoch as f64 + self.position.index as f64 / self.epoch.len() as f64
    }

    /// Steps of the first `epochs` epochs, a smaller last one of each counted in. `None` if there are too many to count.
    pub fn steps_in(&self, epochs: u64) -> Option<u64> {
        let (StepSize::Rows(size) | StepSize::Packs(size)) = self.plan.size;
        let steps = |len: usize| len.div_ceil(size) as u64;
        if self.plan.weights.is_empty() && matches!(self.plan.size, StepSize::Rows(_)) {
            return epochs.checked_mul(steps(self.plan.lengths.len()));
        }
        (epochs <= COUNTED_EPOCHS).then(|| (0..epochs).map(|epoch| steps(self.plan.epoch(epoch).len())).sum())
    }

    /// The next step: the rows of each of its packs.
    pub fn next_step(&mut self) -> Vec<Vec<usize>> {
        let (StepSize::Rows(size) | StepSize::Packs(size)) = self.plan.size;
        let start = self.position.index;
        let end = self.epoch.len().min(start.saturating_add(size));
        let step = match &self.epoch {
            Epoch::Rows(rows) => self.plan.packs(&rows[start..end]),
            Epoch::Packs(packs) => packs[start..end].to_vec(),
        };
        self.position.index = end;
        if end == self.epoch.len() {
            self.position = Position { epoch: self.position.epoch + 1, index: 0 };
            self.epoch = self.plan.epoch(self.position.epoch);
        }
        step
    }
}

impl Plan {
    fn epoch(&self, epoch: u64) -> Epoch {
        let stream = |purpose| Philox::new(self.seed, purpose, epoch as u32);
        let rows = self.rows(&stream(Purpose::Weights));
        let order = stream(Purpose::Shuffle).permutation(rows.len());
        let order: Vec<usize> = order.into_iter().map(|place| rows[place]).collect();
        match self.size {
            StepSize::Rows(_) => Epoch::Rows(order),
            StepSize::Packs(_) => {
                let packs = self.look_ahead(&order);
                let order = stream(Purpose::Packs).permutation(packs.len());
                Epoch::Packs(order.into_iter().map(|pack| packs[pack].clone()).collect())
            }
        }
    }

    /// Every row as often as it is taken, in the order of the data.
    fn rows(&self, random: &Philox) -> Vec<usize> {
        if self.weights.is_empty() {
            return (0..self.lengths.len()).collect();
        }
        let times = |row: usize| {
            let weight = self.weights[row];
            let uniform = f64::from(random.block(row as u64)[0]) / 4_294_967_296.0;
            weight as usize + usize::from(uniform < f64::from(weight.fract()))
        };
        let rows: Vec<usize> = (0..self.lengths.len()).flat_map(|row| std::iter::repeat_n(row, times(row))).collect();
        // Small weights can draw nothing at all, and an epoch has a step.
        if rows.is_empty() { vec![0] } else { rows }
    }

    /// The packs of an epoch. A window's emptiest pack goes back to be filled from the next window.
    fn look_ahead(&self, order: &[usize]) -> Vec<Vec<usize>> {
        let windows = order.len().div_ceil(LOOK_AHEAD);
        let tokens = |pack: &Vec<usize>| pack.iter().map(|&row| self.lengths[row]).sum::<usize>();
        let mut packs = Vec::new();
        let mut left: Vec<usize> = Vec::new();
        for window in order.chunks(order.len().div_ceil(windows)) {
            left.extend_from_slice(window);
            let mut planned = self.packs(&left);
            let emptiest = (0..planned.len()).min_by_key(|&pack| tokens(&planned[pack]));
            left = emptiest.map(|pack| planned.remove(pack)).unwrap_or_default();
            packs.append(&mut planned);
        }
        packs.push(left);
        packs
    }

    fn packs(&self, rows: &[usize]) -> Vec<Vec<usize>> {
        let lengths: Vec<usize> = rows.iter().map(|&row| self.lengths[row]).collect();
        let mut packs = pack::plan(&lengths, self.budget).expect("no row is longer than the budget");
        packs.iter_mut().flatten().for_each(|place| *place = rows[*place]);
        packs
    }
}

#[cfg(test)]
mod tests;
