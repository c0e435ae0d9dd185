//! Which rows each step takes and how they share packs: epochs shuffled by seed, or in another order, rows taken as often as they weigh, a
//! position that can be stored and resumed exactly.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::pack::{self, Packs};
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

/// The order in which an epoch takes the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Shuffled anew each epoch, by `train.seed`.
    #[default]
    Random,
    /// As the files have them, one file behind the other, every epoch the same.
    File,
    /// Shuffled, and of the rows of every 50 steps the longest first, so that those of a step are of much the same length, as
    /// `transformers` groups them by length. Not with `batch.packs`.
    Length,
}

/// Steps whose rows are sorted by length together: as `transformers`' `LengthGroupedSampler`.
const SORTED_STEPS: usize = 50;

/// What a loader goes over.
#[derive(Clone, Debug)]
pub struct EpochPlan {
    /// Of an epoch's rows.
    pub order: Order,
    /// Of the shuffles.
    pub seed: u64,
    /// Tokens of each row's tree.
    pub lengths: Arc<Vec<u32>>,
    /// How often an epoch takes each row; empty for once each.
    pub weights: Vec<f32>,
    /// How much a step takes.
    pub size: StepSize,
    /// Tokens of a pack at most.
    pub budget: usize,
}

/// Endless steps. Every epoch has its own order, a function of seed and epoch alone: row r comes `floor(weight)` times,
/// and once more with the probability that is left. The last step of an epoch takes what is left, so it can be smaller;
/// no step spans two epochs.
#[derive(Clone, Debug)]
pub struct Loader {
    plan: EpochPlan,
    position: Position,
    /// The epoch that was planned last, and its number.
    planned: (u64, Arc<Epoch>),
}

/// One epoch in the order it is taken.
#[derive(Clone, Debug)]
enum Epoch {
    Rows(Vec<u32>),
    Packs { packs: Packs, order: Vec<u32> },
}

impl Epoch {
    fn len(&self) -> usize {
        match self {
            Self::Rows(rows) => rows.len(),
            Self::Packs { order, .. } => order.len(),
        }
    }
}

impl Loader {
    /// A loader at the start of epoch 0.
    ///
    /// # Errors
    /// No row, a step of nothing, a row longer than the budget, or a weight that is none.
    pub fn new(plan: EpochPlan) -> Result<Self> {
        let EpochPlan { lengths, weights, budget, .. } = &plan;
        let (StepSize::Rows(size) | StepSize::Packs(size)) = plan.size;
        let rows = lengths.len();
        ensure!(rows > 0 && size > 0, "{rows} rows in steps of {size}");
        if let Some(row) = lengths.iter().position(|&tokens| tokens as usize > *budget) {
            let tokens = lengths[row];
            anyhow::bail!("row {row} has {tokens} tokens, `batch.tokens` = {budget}: raise batch.tokens");
        }
        ensure!(weights.is_empty() || weights.len() == rows, "{} weights for {rows} rows", weights.len());
        if let Some(weight) = weights.iter().find(|weight| !(0.0..=WEIGHT).contains(*weight)) {
            anyhow::bail!("a row weighs {weight}: give a weight from 0 to {WEIGHT}");
        }
        let planned = (0, Arc::new(plan.epoch(0)));
        Ok(Self { plan, position: Position::default(), planned })
    }

    /// Continues at a stored position.
    ///
    /// # Errors
    /// A position outside the data: the file has changed since.
    pub fn seek(&mut self, position: Position) -> Result<()> {
        self.plan_epoch(position.epoch);
        let (index, len) = (position.index, self.planned.1.len());
        ensure!(index < len, "stored position: {index} of {len}: the training data has changed, start a new run");
        self.position = position;
        Ok(())
    }

    /// Where the next step starts.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Passes over the data behind the next step.
    pub fn epochs(&self) -> f64 {
        // At the start of an epoch, which may not be planned yet, none of its rows is behind.
        self.position.epoch as f64 + self.position.index as f64 / self.planned.1.len() as f64
    }

    /// Tokens of a pack at most.
    pub fn budget(&self) -> usize {
        self.plan.budget
    }

    /// How much a step takes.
    pub fn size(&self) -> StepSize {
        self.plan.size
    }

    /// Steps of the first `epochs` epochs, a smaller last one of each counted in. `None` if there are too many to count.
    pub fn steps_in(&self, epochs: u64) -> Option<u64> {
        let (StepSize::Rows(size) | StepSize::Packs(size)) = self.plan.size;
        let steps = |len: usize| len.div_ceil(size) as u64;
        if self.plan.weights.is_empty() && matches!(self.plan.size, StepSize::Rows(_)) {
            return epochs.checked_mul(steps(self.plan.lengths.len()));
        }
        let len = |epoch: u64| match self.plan.size {
            _ if epoch == self.planned.0 => self.planned.1.len(),
            StepSize::Rows(_) => self.plan.taken(epoch).len(),
            StepSize::Packs(_) => self.plan.epoch(epoch).len(),
        };
        (epochs <= COUNTED_EPOCHS).then(|| (0..epochs).map(|epoch| steps(len(epoch))).sum())
    }

    /// All steps of the planned epoch, from its start on; the loader stays where it is.
    pub fn planned_steps(&self) -> impl Iterator<Item = Vec<Vec<usize>>> {
        let (StepSize::Rows(size) | StepSize::Packs(size)) = self.plan.size;
        (0..self.planned.1.len()).step_by(size).map(move |start| self.step(start, size))
    }

    /// Whether every epoch takes every row once.
    pub fn takes_all_once(&self) -> bool {
        self.plan.weights.is_empty()
    }

    /// The next step: the rows of each of its packs.
    pub fn next_step(&mut self) -> Vec<Vec<usize>> {
        let (StepSize::Rows(size) | StepSize::Packs(size)) = self.plan.size;
        self.plan_epoch(self.position.epoch);
        let step = self.step(self.position.index, size);
        let len = self.planned.1.len();
        self.position.index = len.min(self.position.index.saturating_add(size));
        if self.position.index == len {
            self.position = Position { epoch: self.position.epoch + 1, index: 0 };
        }
        step
    }

    /// Up to `size` rows or packs of the planned epoch, in packs.
    fn step(&self, start: usize, size: usize) -> Vec<Vec<usize>> {
        let epoch = &*self.planned.1;
        let places = start..epoch.len().min(start.saturating_add(size));
        let rows = |pack: &[u32]| pack.iter().map(|&row| row as usize).collect();
        match epoch {
            Epoch::Rows(order) => self.plan.packs(&order[places]).iter().map(rows).collect(),
            Epoch::Packs { packs, order } => {
                order[places].iter().map(|&pack| rows(packs.pack(pack as usize))).collect()
            }
        }
    }

    fn plan_epoch(&mut self, epoch: u64) {
        if self.planned.0 != epoch {
            self.planned = (epoch, Arc::new(self.plan.epoch(epoch)));
        }
    }
}

impl EpochPlan {
    fn random(&self, purpose: Purpose, epoch: u64) -> Philox {
        Philox::new(self.seed, purpose, epoch as u32)
    }

    fn epoch(&self, epoch: u64) -> Epoch {
        let order = self.rows_in_order(epoch);
        match self.size {
            StepSize::Rows(_) => Epoch::Rows(order),
            StepSize::Packs(_) if self.order == Order::File => {
                let packs = self.in_turn(&order);
                let order = (0..packs.len() as u32).collect();
                Epoch::Packs { packs, order }
            }
            StepSize::Packs(_) => {
                let packs = self.look_ahead(&order);
                let order = self.random(Purpose::Packs, epoch).permutation(packs.len());
                Epoch::Packs { packs, order }
            }
        }
    }

    /// The rows that the epoch takes, in its order.
    fn rows_in_order(&self, epoch: u64) -> Vec<u32> {
        let rows: Option<Vec<u32>> = (!self.weights.is_empty()).then(|| self.taken(epoch));
        let len = rows.as_ref().map_or(self.lengths.len(), Vec::len);
        let mut order = match self.order {
            Order::File => (0..len as u32).collect(),
            Order::Random | Order::Length => self.random(Purpose::Shuffle, epoch).permutation(len),
        };
        rows.iter().for_each(|rows| order.iter_mut().for_each(|place| *place = rows[*place as usize]));
        if let (Order::Length, StepSize::Rows(size)) = (self.order, self.size) {
            let longest_first = |row: &u32| std::cmp::Reverse(self.lengths[*row as usize]);
            order.chunks_mut(size.saturating_mul(SORTED_STEPS)).for_each(|rows| rows.sort_by_key(longest_first));
        }
        order
    }

    /// Packs of rows that follow each other, each as full as the next row lets it be.
    fn in_turn(&self, order: &[u32]) -> Packs {
        let (mut packs, mut pack, mut tokens) = (Packs::default(), Vec::new(), 0);
        for &row in order {
            let own = self.lengths[row as usize] as usize;
            if tokens + own > self.budget {
                packs.push(&pack);
                (pack, tokens) = (Vec::new(), 0);
            }
            pack.push(row);
            tokens += own;
        }
        packs.push(&pack);
        packs
    }

    /// Every row as often as the epoch takes it, in the order of the data, where rows weigh.
    fn taken(&self, epoch: u64) -> Vec<u32> {
        let random = self.random(Purpose::Weights, epoch);
        let times = |row: usize| std::iter::repeat_n(row as u32, self.drawn(row, &random));
        let rows: Vec<u32> = (0..self.lengths.len()).flat_map(times).collect();
        // Small weights can draw nothing at all, and an epoch has a step.
        if rows.is_empty() { vec![0] } else { rows }
    }

    /// How often a row is drawn: always as often as its weight has whole ones.
    fn drawn(&self, row: usize, random: &Philox) -> usize {
        let weight = self.weights[row];
        let uniform = f64::from(random.block(row as u64)[0]) / 4_294_967_296.0;
        weight as usize + usize::from(uniform < f64::from(weight.fract()))
    }

    /// The packs of an epoch. A window's emptiest pack goes back to be filled from the next window.
    fn look_ahead(&self, order: &[u32]) -> Packs {
        let windows = order.len().div_ceil(LOOK_AHEAD);
        let tokens = |pack: &[u32]| pack.iter().map(|&row| u64::from(self.lengths[row as usize])).sum::<u64>();
        let mut packs = Packs::default();
        let mut left: Vec<u32> = Vec::new();
        for window in order.chunks(order.len().div_ceil(windows)) {
            left.extend_from_slice(window);
            let planned = self.packs(&left);
            let emptiest = (0..planned.len()).min_by_key(|&pack| tokens(planned.pack(pack)));
            (0..planned.len()).filter(|&pack| Some(pack) != emptiest).for_each(|pack| packs.push(planned.pack(pack)));
            left = emptiest.map(|pack| planned.pack(pack).to_vec()).unwrap_or_default();
        }
        packs.push(&left);
        packs
    }

    fn packs(&self, rows: &[u32]) -> Packs {
        let lengths: Vec<u32> = rows.iter().map(|&row| self.lengths[row as usize]).collect();
        let packs = pack::plan(&lengths, self.budget).expect("no row is longer than the budget");
        packs.renamed(|place| rows[place as usize])
    }
}

#[cfg(test)]
mod tests;
