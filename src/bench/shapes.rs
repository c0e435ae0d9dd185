//! Model shapes with random weights, and the batches that are timed.

use crate::{
    forest::{Segment, Tree},
    model::{Model, ModelConfig, released},
};
use anyhow::{Context, Result};
use half::bf16;

use super::random::Random;

/// Released models that are timed.
const TIMED: [&str; 5] = ["gpt2-124m", "llama-3.2-1b", "qwen2.5-1.5b", "qwen2.5-3b", "llama-3-8b"];
/// For the host device.
const SMALL: &str = "small";

/// Names and shapes of the released models that are timed.
///
/// # Errors
/// A shape is not one that warpo runs.
pub fn released() -> Result<Vec<(String, ModelConfig)>> {
    TIMED.into_iter().map(named).collect()
}

/// The shape for the host device.
///
/// # Errors
/// It is not one that warpo runs.
pub fn small() -> Result<(String, ModelConfig)> {
    named(SMALL)
}

fn named(name: &str) -> Result<(String, ModelConfig)> {
    let shape = released::shape(name)?.with_context(|| format!("benches/shapes.json has no {name}"))?;
    Ok((name.to_owned(), shape))
}

/// How the two responses of a pair lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One prompt for both.
    Shared,
    /// A copy of the prompt for each, but for its first token: what engines without shared prompts compute.
    Separate,
}

impl Layout {
    pub const ALL: [Self; 2] = [Self::Shared, Self::Separate];

    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Separate => "separate",
        }
    }
}

/// Tokens of each part of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    pub prompt: usize,
    pub response: usize,
}

/// Pairs of random tokens, uniform over the vocabulary.
pub fn pairs(count: usize, layout: Layout, lengths: Lengths, vocab: usize) -> Vec<Tree> {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut token = || (random.bits() >> 33) as u32 % vocab as u32;
    let mut tokens = |len: usize| -> Vec<u32> { (0..len).map(|_| token()).collect() };
    (0..count)
        .map(|i| {
            let (prompt, chosen, rejected) =
                (tokens(lengths.prompt), tokens(lengths.response), tokens(lengths.response));
            let name = format!("pair {i}");
            match layout {
                Layout::Shared => Tree::pair(name, prompt, chosen, rejected),
                Layout::Separate => separate(name, &prompt, [&chosen, &rejected]),
            }
        })
        .collect()
}

/// A root of one token with two branches, each the rest of the prompt and a response.
fn separate(name: String, prompt: &[u32], responses: [&[u32]; 2]) -> Tree {
    let (first, rest) = prompt.split_at(1);
    let branch = |response: &[u32]| Segment {
        parent: Some(0),
        tokens: [rest, response].concat(),
        scored: true,
        unscored: if rest.is_empty() { vec![] } else { std::iter::once(0..rest.len()).collect() },
        ..Segment::default()
    };
    let root = Segment { tokens: first.to_vec(), ..Segment::default() };
    let segments = [root].into_iter().chain(responses.map(branch)).collect();
    Tree { name, segments, pairs: vec![[0, 1]], ..Tree::default() }
}

/// Normally distributed weights, norms around 1. A block of values is repeated, because billions of them would take longer
/// to draw than to train on.
///
/// # Errors
/// The copy fails.
pub fn fill(model: &Model<bf16>) -> Result<()> {
    const BLOCK: usize = 1 << 20;
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let block: Vec<f32> = (0..BLOCK).map(|_| random.normal()).collect();
    for spec in &model.layout().tensors {
        let is_norm = !spec.decay && !spec.name.ends_with("bias");
        let mean = if is_norm { 1.0 } else { 0.0 };
        let weights: Vec<bf16> = block.iter().map(|x| bf16::from_f32(mean + 0.02 * x)).collect();
        for start in spec.range().step_by(BLOCK) {
            let part = start..spec.range().end.min(start + BLOCK);
            model.device().copy_in(&model.params().weight(&part), &weights[..part.len()])?;
        }
    }
    Ok(())
}
