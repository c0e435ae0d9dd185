//! Token embedding: rows of the table by id, and the gradient of those rows.

use anyhow::{Result, ensure};

use super::{
    CHUNK, chunk_launch, expect_len,
    gradient::{Gradient, Narrow},
};
use crate::device::{Buffer, Device, Float, Launch, Table, kernels::embedding as kernel};

const SUM_THREADS: usize = 64;

/// `y[t] = scale * table[ids[t]]`. The ids lie in `0..vocab`; a host device checks them.
///
/// Shapes: `y` (tokens, hidden); `ids` (tokens); `table` (vocab, hidden).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
#[allow(clippy::too_many_arguments)]
pub fn fwd<T: Float>(
    device: &Device,
    y: &Buffer<T>,
    ids: &Buffer<i32>,
    table: &Buffer<T>,
    scale: f32,
    tokens: usize,
    hidden: usize,
    vocab: usize,
) -> Result<()> {
    expect_len("embedding y", y, &[tokens, hidden])?;
    expect_len("embedding ids", ids, &[tokens])?;
    expect_len("embedding table", table, &[vocab, hidden])?;
    let launch = chunk_launch("embedding", tokens, hidden)?;
    // SAFETY: all lengths were checked above; a host device checks the ids.
    let work = || unsafe {
        kernel::EmbeddingFwd { y, ids, table, scale, tokens: tokens as i32, hidden: hidden as i32 }
            .launch(device, launch)
    };
    device.with_tables(&[Table::below("embedding ids", ids, vocab)], work)
}

/// Adds to each row of `dtable` `scale` times the sum of `dy` over the tokens that carry its id; other rows are not touched. In bf16
/// every addition is rounded by chance.
///
/// Shapes: `dtable` (vocab, hidden); `dy` (tokens, hidden); `distinct_ids` (distinct), `distinct_offsets`
/// (distinct + 1), `distinct_tokens` (tokens) as in [`crate::forest::Forest`].
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
#[allow(clippy::too_many_arguments)]
pub fn bwd<T: Float>(
    device: &Device,
    dtable: impl Into<Gradient>,
    dy: &Buffer<T>,
    distinct_ids: &Buffer<i32>,
    distinct_offsets: &Buffer<i32>,
    distinct_tokens: &Buffer<i32>,
    scale: f32,
    tokens: usize,
    hidden: usize,
    vocab: usize,
) -> Result<()> {
    let (distinct, dtable) = (distinct_ids.len(), dtable.into());
    ensure!(dtable.len() == vocab * hidden, "embedding dtable: {} elements of {vocab} rows of {hidden}", dtable.len());
    expect_len("embedding dy", dy, &[tokens, hidden])?;
    expect_len("embedding distinct_offsets", distinct_offsets, &[distinct + 1])?;
    expect_len("embedding distinct_tokens", distinct_tokens, &[tokens])?;
    ensure!(distinct <= vocab.min(tokens), "embedding: {distinct} distinct ids of {tokens} tokens, vocabulary {vocab}");
    let columns = hidden.div_ceil(SUM_THREADS * CHUNK);
    let launch = Launch { grid: [distinct as u32, columns as u32, 1], ..Launch::linear(1, SUM_THREADS) };
    let width = hidden as i32;
    // SAFETY: all lengths were checked above; a host device checks the tables.
    let work = || unsafe {
        match &dtable {
            Gradient::F32(dtable) => {
                let hidden = width;
                kernel::EmbeddingBwd { dtable, dy, distinct_ids, distinct_offsets, distinct_tokens, scale, hidden }
                    .launch(device, launch)
            }
            Gradient::Bf16(Narrow { buffer, first, draw, part, .. }) => kernel::EmbeddingBwdNarrow {
                dtable: buffer,
                dy,
                distinct_ids,
                distinct_offsets,
                distinct_tokens,
                scale,
                hidden: width,
                seed: draw.seed,
                number: draw.number,
                part: part | 1,
                first: *first as i64,
            }
            .launch(device, launch),
        }
    };
    device.with_tables(
        &[
            Table::ascending("embedding distinct_ids", distinct_ids, vocab),
            Table::offsets("embedding distinct_offsets", distinct_offsets, tokens),
            Table::below("embedding distinct_tokens", distinct_tokens, tokens),
        ],
        work,
    )
}
