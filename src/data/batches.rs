//! Packs of whole examples for the device, and how full they are.

use anyhow::Result;

use super::{
    Dataset,
    loader::{Loader, Plan, StepSize},
    pack,
};
use crate::forest::{Forest, Tree};

/// One pack and the examples in it, in the pack's order.
pub struct MicroBatch {
    pub forest: Forest,
    pub examples: Vec<usize>,
}

/// Which of these examples share a pack of at most `budget` tokens.
///
/// # Errors
/// An example is longer than the budget.
pub fn plan(trees: &[Tree], examples: &[usize], budget: usize) -> Result<Vec<Vec<usize>>> {
    pack::check(examples.iter().map(|&example| &trees[example]), budget)?;
    let lengths: Vec<usize> = examples.iter().map(|&example| trees[example].tokens()).collect();
    let mut packs = pack::plan(&lengths, budget)?;
    packs.iter_mut().flatten().for_each(|member| *member = examples[*member]);
    Ok(packs)
}

/// The same for every example of a file. A plan is small: [`build`] makes the index tables of one pack when its turn
/// comes.
///
/// # Errors
/// An example is longer than the budget.
pub fn plan_all(trees: &[Tree], budget: usize) -> Result<Vec<Vec<usize>>> {
    plan(trees, &(0..trees.len()).collect::<Vec<_>>(), budget)
}

/// One planned pack.
///
/// # Errors
/// A tree makes no sense.
pub fn build(trees: &[Tree], examples: &[usize]) -> Result<MicroBatch> {
    let forest = Forest::pack(examples.iter().map(|&example| &trees[example]))?;
    Ok(MicroBatch { forest, examples: examples.to_vec() })
}

/// Packs these examples of `trees` into micro-batches of at most `budget` tokens.
///
/// # Errors
/// An example is longer than the budget.
pub fn pack(trees: &[Tree], examples: &[usize], budget: usize) -> Result<Vec<MicroBatch>> {
    plan(trees, examples, budget)?.iter().map(|members| build(trees, members)).collect()
}

/// The steps over a set, from its first epoch on, in an order that follows from `seed`. `budget` is the tokens of a pack at
/// most.
///
/// # Errors
/// An example is longer than the budget.
pub fn loader(data: &Dataset, seed: u64, size: StepSize, budget: usize) -> Result<Loader> {
    pack::check(&data.trees, budget)?;
    let lengths = data.trees.iter().map(Tree::tokens).collect();
    Loader::new(Plan { seed, lengths, weights: data.weights.clone(), size, budget })
}

/// Tokens and rows of the largest micro-batch of at most `budget` tokens there can be: never more tokens than an epoch has,
/// and no more rows in a token than in the densest example.
pub fn largest(files: &[&Dataset], budget: usize) -> [usize; 2] {
    let all = files.iter().map(|file| file.epoch_tokens()).max().unwrap_or(1);
    let tokens = budget.min(all);
    let trees = files.iter().flat_map(|file| &file.trees);
    let rows = trees.map(|tree| (tree.rows() * tokens).div_ceil(tree.tokens())).max().unwrap_or(1);
    [tokens, rows]
}

/// How packs are filled, and what shared prompts save.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Packing {
    pub packs: usize,
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
    /// Nothing counted yet, in packs of `budget` tokens.
    pub fn new(budget: usize) -> Self {
        Self { budget, ..Self::default() }
    }

    /// Counts one step of these packs.
    pub fn add(&mut self, trees: &[Tree], step: &[Vec<usize>]) {
        self.steps += 1;
        self.packs += step.len();
        for tree in step.iter().flatten().map(|&example| &trees[example]) {
            self.examples += 1;
            self.tokens += tree.tokens();
            self.unshared += tree.unshared_tokens();
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

/// How the first epoch of a loader at its start fills its packs.
pub fn packing(data: &Dataset, mut loader: Loader) -> Packing {
    let mut packing = Packing::new(loader.budget());
    while loader.position().epoch == 0 {
        packing.add(&data.trees, &loader.next_step());
    }
    packing
}
