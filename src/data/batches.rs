//! Packs of whole examples for the device, and how full they are.

use anyhow::Result;

use super::{
    Dataset,
    loader::{EpochPlan, Loader, Order, StepSize},
    pack::{self, Packs},
    trees::Trees,
};
use crate::forest::{Forest, Tree};

/// One pack and the rows in it, in the pack's order.
pub struct MicroBatch {
    /// Its index tables.
    pub forest: Forest,
    /// The examples themselves.
    pub trees: Vec<Tree>,
    /// The trees' numbers.
    pub rows: Vec<u32>,
}

/// Which of these rows share a pack of at most `budget` tokens.
///
/// # Errors
/// A row is longer than the budget.
pub fn plan(trees: &Trees, rows: &[u32], budget: usize) -> Result<Packs> {
    pack::check(trees, budget)?;
    let lengths: Vec<u32> = rows.iter().map(|&row| trees.tokens()[row as usize]).collect();
    Ok(pack::plan(&lengths, budget)?.renamed(|member| rows[member as usize]))
}

/// The same for every row of a file. A plan is small: [`build`] makes the index tables of one pack when its turn comes.
///
/// # Errors
/// A row is longer than the budget.
pub fn plan_all(trees: &Trees, budget: usize) -> Result<Packs> {
    pack::check(trees, budget)?;
    pack::plan(trees.tokens(), budget)
}

/// One planned pack.
///
/// # Errors
/// A tree makes no sense, or cannot be read.
pub fn build(trees: &Trees, rows: &[u32]) -> Result<MicroBatch> {
    let read = rows.iter().map(|&row| trees.tree(row as usize)).collect::<Result<Vec<_>>>()?;
    Ok(MicroBatch { forest: Forest::pack(&read)?, trees: read, rows: rows.to_vec() })
}

/// The steps over a set, from its first epoch on, in this order, where it is random one that follows from `seed`. `budget` is the tokens of a pack at
/// most.
///
/// # Errors
/// A row is longer than the budget.
pub fn loader(data: &Dataset, order: Order, seed: u64, size: StepSize, budget: usize) -> Result<Loader> {
    pack::check(&data.trees, budget)?;
    let lengths = data.trees.tokens().clone();
    Loader::new(EpochPlan { order, seed, lengths, weights: data.weights.clone(), size, budget })
}

/// Tokens and rows of the largest micro-batch of at most `budget` tokens there can be: never more tokens than an epoch has,
/// and no more rows in a token than in the densest example.
pub fn largest(files: &[&Dataset], budget: usize) -> [usize; 2] {
    let all = files.iter().map(|file| file.epoch_tokens()).max().unwrap_or(1);
    let tokens = budget.min(all);
    let trees = files.iter().flat_map(|file| file.trees.rows().iter().zip(file.trees.tokens().iter()));
    let rows = trees.map(|(&rows, &own)| (rows as usize * tokens).div_ceil(own as usize)).max().unwrap_or(1);
    [tokens, rows]
}

/// How packs are filled, and what shared prompts save.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Packing {
    /// Packs taken.
    pub packs: usize,
    /// Steps taken.
    pub steps: usize,
    /// Examples taken.
    pub examples: usize,
    /// Tokens in all packs.
    pub tokens: usize,
    /// Tokens without shared prompts.
    pub unshared: usize,
    budget: usize,
}

impl Packing {
    /// That of one step of these packs of all `trees`.
    pub fn of_all(trees: &Trees, packs: &Packs, budget: usize) -> Self {
        Self {
            packs: packs.len(),
            steps: 1,
            examples: trees.len(),
            tokens: sum(trees.tokens()),
            unshared: trees.unshared_tokens(),
            budget,
        }
    }

    /// Share of the token budget in use.
    pub fn fill(&self) -> f64 {
        self.tokens as f64 / (self.packs as f64 * self.budget as f64)
    }

    /// The line that says all this.
    pub fn describe(&self, size: StepSize) -> String {
        let a_step = |count: usize| count as f64 / self.steps as f64;
        let step = match size {
            StepSize::Packs(packs) => format!("{packs} a step, {:.1} pairs on average", a_step(self.examples)),
            StepSize::Rows(rows) => format!("{:.1} a step of {rows} pairs", a_step(self.packs)),
        };
        let (fill, saved) = (100.0 * self.fill(), 100.0 * self.saved());
        format!("packs: {step}, {fill:.0} % full; shared prompts save {saved:.0} % of the tokens")
    }

    /// Share of the tokens that shared prompts save.
    pub fn saved(&self) -> f64 {
        1.0 - self.tokens as f64 / self.unshared as f64
    }
}

fn sum(tokens: &[u32]) -> usize {
    tokens.iter().map(|&tokens| tokens as usize).sum()
}

/// How the epoch that a loader stands at fills its packs.
///
/// # Errors
/// A tree cannot be read.
pub fn packing(trees: &Trees, loader: &Loader) -> Result<Packing> {
    let mut packing = Packing { budget: loader.budget(), ..Packing::default() };
    // How often each row is taken, where that differs.
    let mut times = vec![0; if loader.takes_all_once() { 0 } else { trees.len() }];
    for step in loader.planned_steps() {
        packing.steps += 1;
        packing.packs += step.len();
        for row in step.into_iter().flatten() {
            packing.examples += 1;
            packing.tokens += trees.tokens()[row] as usize;
            times.get_mut(row).into_iter().for_each(|times| *times += 1);
        }
    }
    packing.unshared = trees.unshared_tokens();
    if !loader.takes_all_once() {
        let mut times = times.into_iter();
        packing.unshared = 0;
        trees.visit(Tree::unshared_tokens, |_, tokens| {
            packing.unshared += times.next().unwrap_or(0) * tokens;
            Ok(())
        })?;
    }
    Ok(packing)
}
