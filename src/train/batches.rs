//! Packs of whole examples for the device, and what they cost.

use anyhow::Result;

use crate::{
    config::Config,
    data::{loader::Loader, pack},
    forest::{Forest, Tree},
    model::ModelConfig,
};

/// Examples packed at a time where all of a file are run.
pub const GROUP: usize = 512;
/// Steps looked at to say how well packs are filled.
const PACKING_STEPS: u64 = 64;

/// One pack and the examples in it, in the pack's order.
pub struct MicroBatch {
    pub forest: Forest,
    pub examples: Vec<usize>,
}

/// Packs these examples of `trees` into as few micro-batches of at most `budget` tokens as first fit finds.
///
/// # Errors
/// An example is longer than the budget.
pub fn pack(trees: &[Tree], examples: &[usize], budget: usize) -> Result<Vec<MicroBatch>> {
    let chosen: Vec<&Tree> = examples.iter().map(|&example| &trees[example]).collect();
    let packs = pack::micro_batches(&chosen, budget)?;
    let name = |pack: pack::MicroBatch| MicroBatch {
        examples: pack.members.iter().map(|&member| examples[member]).collect(),
        forest: pack.forest,
    };
    Ok(packs.into_iter().map(name).collect())
}

/// Every example of a file, a group at a time: only one group's index tables are in memory.
pub fn groups(trees: &[Tree], budget: usize) -> impl Iterator<Item = Result<Vec<MicroBatch>>> {
    (0..trees.len()).step_by(GROUP).map(move |start| {
        let examples: Vec<usize> = (start..trees.len().min(start + GROUP)).collect();
        pack(trees, &examples, budget)
    })
}

/// Share of the token budget in use, and of the tokens that shared prompts save.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Packing {
    /// Micro-batches a step, on average.
    pub packs: f64,
    pub fill: f64,
    pub saved: f64,
}

/// How the first steps of a run fill their packs.
///
/// # Errors
/// An example is longer than the budget.
pub fn packing(trees: &[Tree], config: &Config) -> Result<Packing> {
    let mut loader = Loader::new(config.train.seed, trees.len(), config.batch.pairs);
    let steps = loader.steps_per_epoch().min(PACKING_STEPS);
    let (mut packs, mut tokens, mut unshared) = (0, 0, 0);
    for _ in 0..steps {
        let examples = loader.next_step();
        unshared += examples.iter().map(|&example| trees[example].unshared_tokens()).sum::<usize>();
        for batch in pack(trees, &examples, config.batch.tokens)? {
            packs += 1;
            tokens += batch.forest.len();
        }
    }
    Ok(Packing {
        packs: f64::from(packs) / steps as f64,
        fill: tokens as f64 / (f64::from(packs) * config.batch.tokens as f64),
        saved: 1.0 - tokens as f64 / unshared as f64,
    })
}

/// Floating-point operations of a forward pass over a pack: matrix products, attention over visible tokens, and the
/// head over its rows. Two a multiply-add.
pub fn flops(config: &ModelConfig, forest: &Forest) -> f64 {
    let (hidden, ffn) = (config.hidden as f64, config.ffn as f64);
    let projections = hidden * (config.qkv_width() + config.q_width()) as f64 + 3.0 * hidden * ffn;
    // A token sees its ancestors and itself: one more than its depth. Two products of head_dim per visible token.
    let visible: f64 = forest.position.iter().map(|&depth| f64::from(depth) + 1.0).sum();
    let layer = 2.0 * projections * forest.len() as f64 + 4.0 * config.q_width() as f64 * visible;
    config.layers as f64 * layer + 2.0 * hidden * config.vocab as f64 * forest.rows() as f64
}
