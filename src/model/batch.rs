//! A packed micro-batch on the device.

use std::ops::Range;

use anyhow::{Result, ensure};

use super::{MemoryPlan, ModelConfig};
use crate::{
    device::{Buffer, Device},
    forest::Forest,
    ops::{attention, head},
};

/// Elements between starts of tables: `Device::alloc`'s alignment.
const ALIGNED: usize = 64;

/// A forest's index tables, in one allocation that lives as long as any of them.
pub struct Batch {
    /// Tokens of all trees.
    pub tokens: usize,
    /// Predictions that count.
    pub rows: usize,
    /// Paths that are scored.
    pub sequences: usize,
    /// Keys that a token sees on average, itself included.
    pub mean_keys: usize,
    /// (tokens) [`Forest::tokens`]; all tables are those of [`Forest`], by the same names.
    pub ids: Buffer<i32>,
    /// (tokens)
    pub position: Buffer<i32>,
    /// (tokens)
    pub subtree_end: Buffer<i32>,
    /// (tiles, 2)
    pub tile_bounds: Buffer<i32>,
    /// (rows)
    pub row_source: Buffer<i32>,
    /// (rows)
    pub row_target: Buffer<i32>,
    /// (sequences + 1)
    pub sequence_rows: Buffer<i32>,
    /// (tokens + 1)
    pub token_row_offsets: Buffer<i32>,
    /// (rows)
    pub token_rows: Buffer<i32>,
    /// (distinct ids)
    pub distinct_ids: Buffer<i32>,
    /// (distinct ids + 1)
    pub distinct_offsets: Buffer<i32>,
    /// (tokens)
    pub distinct_tokens: Buffer<i32>,
    /// The same three tables for positions in place of token ids, where the model learns positions.
    pub by_position: Option<[Buffer<i32>; 3]>,
}

impl Batch {
    /// The tables the head reads.
    pub(super) fn head_rows(&self) -> head::HeadRows {
        head::HeadRows {
            source: self.row_source.clone(),
            target: self.row_target.clone(),
            token_row_offsets: self.token_row_offsets.clone(),
            token_rows: self.token_rows.clone(),
            rows: self.rows,
            tokens: self.tokens,
        }
    }

    /// The tables attention reads.
    pub(super) fn mask(&self) -> attention::Mask {
        attention::Mask {
            subtree_end: self.subtree_end.clone(),
            tile_bounds: self.tile_bounds.clone(),
            position: self.position.clone(),
            mean_keys: self.mean_keys,
        }
    }

    /// Copies a forest to the device in one transfer; `by_position` adds the tables of positions.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn upload(device: &Device, forest: &Forest, by_position: bool) -> Result<Self> {
        let mut joined = Vec::new();
        let mut join = |table: &[i32]| -> Range<usize> {
            joined.resize(joined.len().next_multiple_of(ALIGNED), 0);
            let start = joined.len();
            joined.extend_from_slice(table);
            start..joined.len()
        };
        let ranges = [
            &forest.tokens,
            &forest.position,
            &forest.subtree_end,
            &forest.tile_bounds,
            &forest.row_source,
            &forest.row_target,
            &forest.sequence_rows,
            &forest.token_row_offsets,
            &forest.token_rows,
            &forest.distinct_ids,
            &forest.distinct_offsets,
            &forest.distinct_tokens,
        ]
        .map(|table| join(table));
        let positions = by_position.then(|| forest.by_position().map(|table| join(&table)));
        let buffer = device.upload(&joined)?;
        let by_position = positions.map(|ranges| ranges.map(|range| buffer.slice(range)));
        let mut views = ranges.into_iter().map(|range| buffer.slice(range));
        let mut next = || views.next().expect("as many views as tables");
        Ok(Self {
            tokens: forest.len(),
            rows: forest.rows(),
            sequences: forest.sequences(),
            mean_keys: forest.mean_keys(),
            ids: next(),
            position: next(),
            subtree_end: next(),
            tile_bounds: next(),
            row_source: next(),
            row_target: next(),
            sequence_rows: next(),
            token_row_offsets: next(),
            token_rows: next(),
            distinct_ids: next(),
            distinct_offsets: next(),
            distinct_tokens: next(),
            by_position,
        })
    }
}

/// What the kernels take for granted: ids in the vocabulary, positions in the rotary table, sizes in the plan.
pub(super) fn check(forest: &Forest, config: &ModelConfig, plan: &MemoryPlan) -> Result<()> {
    let capacity = plan.capacity;
    for (what, found, planned) in
        [("tokens", forest.len(), capacity.tokens), ("prediction rows", forest.rows(), capacity.rows)]
    {
        ensure!(found <= planned, "a micro-batch of {found} {what} is larger than the plan's {planned}");
        ensure!(found > 0, "a micro-batch has no {what}");
    }
    let vocab = config.vocab;
    if let Some(id) = forest.tokens.iter().find(|&&id| id < 0 || id as usize >= vocab) {
        anyhow::bail!("token id {id} is outside the model's vocabulary of {vocab}: the tokenizer is not the model's");
    }
    let longest = forest.position.iter().map(|&position| position as usize + 1).max().unwrap_or(0);
    ensure!(
        longest <= plan.positions,
        "a path of {longest} tokens is longer than max_position_embeddings {}",
        config.positions
    );
    Ok(())
}
