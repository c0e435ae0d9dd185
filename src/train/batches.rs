//! Packs of whole examples for the device, and what they cost.

use anyhow::Result;

use crate::{
    config::{self, Config},
    data::{
        Dataset,
        loader::{Loader, Plan, StepSize},
        pack,
    },
    forest::{Forest, Tree},
    model::ModelConfig,
};

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

/// The steps of a run, from its first epoch on.
///
/// # Errors
/// An example is longer than the budget.
pub fn loader(data: &Dataset, config: &Config) -> Result<Loader> {
    let budget = config.batch.tokens;
    pack::check(&data.trees, budget)?;
    let size = config.batch.packs.map_or(StepSize::Rows(config.batch.pairs()), StepSize::Packs);
    let lengths = data.trees.iter().map(Tree::tokens).collect();
    Loader::new(Plan { seed: config.train.seed, lengths, weights: data.weights.clone(), size, budget })
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
    pub fn describe(&self, batch: &config::Batch) -> String {
        let a_step = |count: usize| count as f64 / self.steps as f64;
        let step = match batch.packs {
            Some(packs) => format!("{packs} a step, {:.1} pairs on average", a_step(self.examples)),
            None => format!("{:.1} a step of {} pairs", a_step(self.packs), batch.pairs()),
        };
        let (fill, saved) = (100.0 * self.fill(), 100.0 * self.saved());
        format!("packs: {step}, {fill:.0} % full; shared prompts save {saved:.0} % of the tokens")
    }

    /// Share of the tokens that shared prompts save.
    pub fn saved(&self) -> f64 {
        1.0 - self.tokens as f64 / self.unshared as f64
    }
}

/// How the first epoch of a run fills its packs.
///
/// # Errors
/// An example is longer than the budget.
pub fn packing(data: &Dataset, config: &Config) -> Result<Packing> {
    let mut loader = loader(data, config)?;
    let mut packing = Packing::new(config.batch.tokens);
    while loader.position().epoch == 0 {
        packing.add(&data.trees, &loader.next_step());
    }
    Ok(packing)
}

/// Floating-point operations of a forward pass over a pack: matrix products, attention over visible tokens, and the
/// head over its rows. Two a multiply-add.
pub fn flops(config: &ModelConfig, forest: &Forest) -> f64 {
    let (hidden, mlp) = (config.hidden as f64, (config.gate_width() + config.ffn) as f64);
    let projections = 2.0 * hidden * ((config.qkv_width() + config.q_width()) as f64 + mlp) * forest.len() as f64;
    // A token sees its ancestors and itself: one more than its depth. Two products of head_dim per visible token.
    let attention = |window: Option<usize>| -> f64 {
        let seen = |&depth: &i32| f64::from(depth) + 1.0;
        let visible: f64 = forest.position.iter().map(seen).map(|n| n.min(window.map_or(n, |w| w as f64))).sum();
        4.0 * config.q_width() as f64 * visible
    };
    let layers: f64 = config.layer_kinds.iter().map(|kind| projections + attention(kind.window)).sum();
    layers + 2.0 * hidden * config.vocab as f64 * forest.rows() as f64
}
