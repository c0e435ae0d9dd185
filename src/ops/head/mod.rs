//! The language-model head over prediction rows: hidden states to log-probabilities, and back from one coefficient per
//! row to the gradients of hidden states and weight.
//!
//! HeadRows are taken in chunks, so the logits of a whole batch never exist. With R rows, hidden size H and vocabulary V,
//! [`fwd`] takes 2RHV FLOPs and [`bwd`] 4RHV plus 2HV for every row whose logits are no longer in the scratch: 6RHV
//! together for a single chunk, else 8RHV less 2HV times the rows of the last chunk.

pub mod distributions;
pub mod sm90;

use std::ops::Range;

use anyhow::{Result, ensure};
use half::bf16;

use super::{
    chunk_launch, embedding, expect_len,
    gemm::{self, Gemm},
    gradient::Gradient,
};
use crate::device::{Arch, Buffer, DType, Device, Float, Launch, Table, kernels::head as kernel};
use sm90::Logits;

const WARPS_PER_CTA: usize = 4;
/// The row pitch of logits is a multiple of this, so that every row starts on 16 bytes in either type.
const PITCH: usize = 8;

/// Sizes of a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadShape {
    /// Words: rows of the weight.
    pub vocab: usize,
    /// Width of a hidden state.
    pub hidden: usize,
    /// HeadRows whose logits exist at a time.
    pub chunk_rows: usize,
    /// Logits become `cap tanh(logit / cap)`.
    pub softcap: Option<f32>,
}

impl HeadShape {
    /// Elements from one row of logits to the next.
    pub fn ld(&self) -> usize {
        self.vocab.next_multiple_of(PITCH)
    }

    /// Multiplications and additions of [`fwd`] and [`bwd`] together.
    pub fn flops(&self, rows: usize) -> f64 {
        let product = |rows: usize| 2.0 * rows as f64 * self.hidden as f64 * self.vocab as f64;
        let kept = self.chunks(rows).last().map_or(0, |chunk| chunk.len());
        3.0 * product(rows) + product(rows - kept)
    }

    /// The last chunk is a whole one, because its logits are still there when the backward pass begins.
    fn chunks(&self, rows: usize) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator + use<> {
        let step = self.chunk_rows;
        let from_the_end = move |chunks: usize| rows.saturating_sub(chunks * step);
        (0..rows.div_ceil(step)).rev().map(move |later| from_the_end(later + 1)..from_the_end(later))
    }
}

/// Memory that [`fwd`] and [`bwd`] need and nobody else reads.
pub struct Scratch<T> {
    /// (chunk_rows, hidden)
    pub x_rows: Buffer<T>,
    /// (chunk_rows, ld); with [`keeps_exponentials`] only
    /// [`statistics_elements`](sm90::statistics_elements).
    pub logits: Buffer<f32>,
    /// (chunk_rows, ld), or empty if no backward pass follows; for f32 this may be `logits`.
    pub dlogits: Buffer<T>,
    /// (rows, hidden), backward only; may be longer.
    pub dx_rows: Buffer<T>,
}

/// Which hidden state each row reads, what it predicts, and the way back: see [`crate::forest::Forest`].
pub struct HeadRows {
    /// (rows)
    pub source: Buffer<i32>,
    /// (rows)
    pub target: Buffer<i32>,
    /// (tokens + 1)
    pub token_row_offsets: Buffer<i32>,
    /// (rows)
    pub token_rows: Buffer<i32>,
    /// Prediction rows.
    pub rows: usize,
    /// Tokens of the pack.
    pub tokens: usize,
}

/// What the head says about its rows, each (rows).
#[derive(Clone)]
pub struct HeadValues {
    /// Log-probability of the target.
    pub logps: Buffer<f32>,
    /// Log of the sum of exponentials of the logits, which [`bwd`] needs.
    pub lse: Buffer<f32>,
    /// Entropy of the distribution, in nats.
    pub entropies: Buffer<f32>,
    /// 1 where no token has a larger logit than the target, else 0. Where several share the largest, TRL counts the one of
    /// the lowest id alone.
    pub top1: Buffer<f32>,
}

impl HeadValues {
    /// Room for so many rows.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn alloc(device: &Device, rows: usize) -> Result<Self> {
        let part = || device.alloc(rows);
        Ok(Self { logps: part()?, lse: part()?, entropies: part()?, top1: part()? })
    }

    fn slice(&self, rows: &Range<usize>) -> Self {
        let part = |buffer: &Buffer<f32>| buffer.slice(rows.clone());
        let Self { logps, lse, entropies, top1 } = self;
        Self { logps: part(logps), lse: part(lse), entropies: part(entropies), top1: part(top1) }
    }

    fn check(&self, rows: usize) -> Result<()> {
        expect_len("head logps", &self.logps, &[rows])?;
        expect_len("head lse", &self.lse, &[rows])?;
        expect_len("head entropies", &self.entropies, &[rows])?;
        expect_len("head top1", &self.top1, &[rows])
    }
}

/// What the head says about each row; see [`HeadValues`].
///
/// Shapes: `out` (rows) each; `hidden_states` (tokens, hidden); `weight` (vocab, hidden).
///
/// # Errors
/// A buffer does not have its shape, or a launch fails.
#[allow(clippy::too_many_arguments)]
pub fn fwd<T: Float>(
    device: &Device,
    out: &HeadValues,
    scratch: &Scratch<T>,
    hidden_states: &Buffer<T>,
    weight: &Buffer<T>,
    rows: &HeadRows,
    head: &HeadShape,
) -> Result<()> {
    ensure!(head.chunk_rows > 0, "head: chunks of no rows");
    out.check(rows.rows)?;
    for chunk in head.chunks(rows.rows) {
        let target = rows.target.slice(chunk.clone());
        if keeps_exponentials::<T>(device, head) {
            // What the next chunk overwrites need not be stored.
            let stored = chunk.end == rows.rows && !scratch.dlogits.is_empty();
            let logits = chunk_exponentials(device, scratch, hidden_states, weight, rows, head, &chunk, stored)?;
            sm90::finish(device, &out.slice(&chunk), &logits, head)?;
            continue;
        }
        let logits = chunk_logits(device, scratch, hidden_states, weight, rows, head, &chunk)?;
        let (count, ld) = (chunk.len(), head.ld());
        head_values(device, &out.slice(&chunk), &logits, &target, head.softcap, count, head.vocab, ld)?;
    }
    Ok(())
}

/// Gradients of [`fwd`] for `coefficients` = dLoss / dlogp: writes `dhidden`, or adds to what another head left there if
/// `accumulate`; adds to `dweight`, which in bf16 the first chunk of a step overwrites.
///
/// The chunks are walked from the last to the first. If `kept`, the scratch still holds what [`fwd`] left there for
/// the same inputs, and the last chunk's logits are not computed again.
///
/// Shapes: `dhidden`, `hidden_states` (tokens, hidden); `dweight`, `weight` (vocab, hidden); `lse`, `coefficients`
/// (rows).
///
/// # Errors
/// A buffer does not have its shape, or a launch fails.
#[allow(clippy::too_many_arguments)]
pub fn bwd<T: Float>(
    device: &Device,
    dhidden: &Buffer<T>,
    dweight: impl Into<Gradient>,
    scratch: &Scratch<T>,
    hidden_states: &Buffer<T>,
    weight: &Buffer<T>,
    lse: &Buffer<f32>,
    coefficients: &Buffer<f32>,
    rows: &HeadRows,
    head: &HeadShape,
    kept: bool,
    accumulate: bool,
) -> Result<()> {
    ensure!(head.chunk_rows > 0, "head: chunks of no rows");
    expect_len("head lse", lse, &[rows.rows])?;
    expect_len("head coefficients", coefficients, &[rows.rows])?;
    let HeadShape { vocab, hidden, .. } = *head;
    let dweight = dweight.into();
    ensure!(dweight.len() == vocab * hidden, "head dweight: {} elements of {vocab} rows of {hidden}", dweight.len());
    let ld = head.ld();
    for (i, chunk) in head.chunks(rows.rows).rev().enumerate() {
        let (count, kept) = (chunk.len(), kept && i == 0);
        let dz = scratch.dlogits.slice(0..count * ld);
        let [own_lse, c] = [lse, coefficients].map(|x| x.slice(chunk.clone()));
        let target = rows.target.slice(chunk.clone());
        if keeps_exponentials::<T>(device, head) {
            let logits = match kept {
                true => Logits::new(dz.cast(), &scratch.logits, count, vocab),
                false => chunk_exponentials(device, scratch, hidden_states, weight, rows, head, &chunk, true)?,
            };
            sm90::dlogits(device, &logits, &own_lse, &c, &target, head)?;
        } else {
            let logits = match kept {
                true => scratch.logits.slice(0..count * ld),
                false => chunk_logits(device, scratch, hidden_states, weight, rows, head, &chunk)?,
            };
            dlogits(device, &dz, &logits, &own_lse, &c, &target, head.softcap, count, vocab, ld)?;
        }
        let dx = scratch.dx_rows.slice(chunk.start * hidden..chunk.end * hidden);
        let by_rows = Gemm { lda: ld, ..Gemm::nn(count, hidden, vocab) };
        gemm::run(device, &by_rows, &dx, &dz, weight)?;
        let by_weight = Gemm { lda: ld, ..Gemm::tn(vocab, hidden, count).accumulating() };
        gemm::run_gradient(device, &by_weight, &dweight.after(i), &dz, &scratch.x_rows, None)?;
    }
    let dx_rows = scratch.dx_rows.slice(0..rows.rows * hidden);
    scatter(device, dhidden, &dx_rows, rows, accumulate, hidden)
}

/// Of a chunk by default: more than 10,000 rows of 128,256 words.
const EXPONENTIALS_BYTES: usize = 5 << 29;
/// HeadRows of a chunk by default where logits are f32.
pub const F32_CHUNK_ROWS: usize = 1024;

/// Whether the head keeps bf16 exponentials and statistics in place of f32 logits: bf16 on Hopper, whose product makes
/// them on the way, if rows start on 16 bytes.
pub fn keeps_exponentials<T: Float>(device: &Device, head: &HeadShape) -> bool {
    match gemm::arch(device) {
        Arch::Sm90 => T::DTYPE == DType::Bf16 && head.hidden.is_multiple_of(PITCH),
        Arch::Portable => false,
    }
}

/// HeadRows whose logits exist at a time, if nothing else is asked for. Every chunk reads and writes the f32 gradient of the
/// weight once, and all but one are computed twice: 8192 of 10240 rows again were 4 % of the FLOPs of a 1B model's step.
/// Where a logit takes two bytes instead of six, chunks are as large as `EXPONENTIALS_BYTES` allow, in whole tiles.
pub fn default_chunk_rows(device: &Device, precision: DType, vocab: usize, hidden: usize) -> usize {
    const TILE_ROWS: usize = 256;
    let head = HeadShape { vocab, hidden, chunk_rows: 1, softcap: None };
    let exponentials = precision == DType::Bf16 && keeps_exponentials::<bf16>(device, &head);
    let most = EXPONENTIALS_BYTES / (size_of::<bf16>() * head.ld().max(1));
    if exponentials { (most / TILE_ROWS * TILE_ROWS).max(TILE_ROWS) } else { F32_CHUNK_ROWS }
}

/// The hidden states that a chunk's rows read.
fn chunk_rows<T: Float>(
    device: &Device,
    scratch: &Scratch<T>,
    hidden_states: &Buffer<T>,
    rows: &HeadRows,
    head: &HeadShape,
    chunk: &Range<usize>,
) -> Result<Buffer<T>> {
    let x_rows = scratch.x_rows.slice(0..chunk.len() * head.hidden);
    let source = rows.source.slice(chunk.clone());
    gather(device, &x_rows, hidden_states, &source, chunk.len(), rows.tokens, head.hidden)?;
    Ok(x_rows)
}

/// As `chunk_logits`; the exponentials are only stored if asked for.
#[expect(clippy::too_many_arguments, reason = "as fwd")]
fn chunk_exponentials<T: Float>(
    device: &Device,
    scratch: &Scratch<T>,
    hidden_states: &Buffer<T>,
    weight: &Buffer<T>,
    rows: &HeadRows,
    head: &HeadShape,
    chunk: &Range<usize>,
    stored: bool,
) -> Result<Logits> {
    let count = chunk.len();
    let x_rows = chunk_rows(device, scratch, hidden_states, rows, head, chunk)?;
    let exponentials = scratch.dlogits.slice(0..if stored { count * head.ld() } else { 0 });
    let logits = Logits::new(exponentials.cast(), &scratch.logits, count, head.vocab);
    let (plan, target) = (sm90::plan(count, head, device.sm_count()), rows.target.slice(chunk.clone()));
    sm90::project(device, &plan, &logits, &x_rows.cast(), &weight.cast(), &target, head)?;
    Ok(logits)
}

/// Gathers a chunk's hidden states and multiplies them with the weight.
fn chunk_logits<T: Float>(
    device: &Device,
    scratch: &Scratch<T>,
    hidden_states: &Buffer<T>,
    weight: &Buffer<T>,
    rows: &HeadRows,
    head: &HeadShape,
    chunk: &Range<usize>,
) -> Result<Buffer<f32>> {
    let (count, ld) = (chunk.len(), head.ld());
    let x_rows = chunk_rows(device, scratch, hidden_states, rows, head, chunk)?;
    let logits = scratch.logits.slice(0..count * ld);
    let product = Gemm { ldd: ld, ..Gemm::nt(count, head.vocab, head.hidden) };
    gemm::run(device, &product, &logits, &x_rows, weight)?;
    Ok(logits)
}

/// `x_rows[r] = hidden_states[row_source[r]]`.
///
/// Shapes: `x_rows` (rows, hidden); `hidden_states` (tokens, hidden); `row_source` (rows).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn gather<T: Float>(
    device: &Device,
    x_rows: &Buffer<T>,
    hidden_states: &Buffer<T>,
    row_source: &Buffer<i32>,
    rows: usize,
    tokens: usize,
    hidden: usize,
) -> Result<()> {
    embedding::fwd(device, x_rows, row_source, hidden_states, 1.0, rows, hidden, tokens)
}

/// [`HeadValues`] of logits under `softcap`: `lse = log sum exp(logits)`, `logps = logits[target] - lse`,
/// `entropies = lse - sum p logits`.
///
/// Shapes: `out` (rows) each; `targets` (rows); `logits` (rows, ld). Targets lie in `0..vocab`; a host device checks
/// them.
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
#[allow(clippy::too_many_arguments)]
pub fn head_values(
    device: &Device,
    out: &HeadValues,
    logits: &Buffer<f32>,
    targets: &Buffer<i32>,
    softcap: Option<f32>,
    rows: usize,
    vocab: usize,
    ld: usize,
) -> Result<()> {
    out.check(rows)?;
    check_logits(logits.len(), targets, rows, vocab, ld)?;
    let launch = Launch::linear(rows.div_ceil(WARPS_PER_CTA), WARPS_PER_CTA * 32);
    let (limit, HeadValues { logps, lse, entropies, top1 }) = (vocab, out);
    let (softcap, rows, vocab, ld) = (super::softcap("head", softcap)?, rows as i32, vocab as i32, ld as i32);
    // SAFETY: all lengths were checked above; a host device checks the targets.
    let work = || unsafe {
        kernel::HeadLogps { logps, lse, entropies, top1, logits, targets, softcap, rows, vocab, ld }
            .launch(device, launch)
    };
    device.with_tables(&[Table::below("head targets", targets, limit)], work)
}

/// `dlogits = coefficients * (onehot(target) - exp(logits - lse))`, and 0 in the columns from `vocab` on. With a soft cap
/// `logits` are those before it, as the gradients are.
///
/// Shapes: `dlogits`, `logits` (rows, ld), for f32 they may be the same buffer; `lse`, `coefficients`, `targets`
/// (rows). `ld` is a multiple of 8.
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
#[allow(clippy::too_many_arguments)]
pub fn dlogits<T: Float>(
    device: &Device,
    dlogits: &Buffer<T>,
    logits: &Buffer<f32>,
    lse: &Buffer<f32>,
    coefficients: &Buffer<f32>,
    targets: &Buffer<i32>,
    softcap: Option<f32>,
    rows: usize,
    vocab: usize,
    ld: usize,
) -> Result<()> {
    expect_len("head dlogits", dlogits, &[rows, ld])?;
    expect_len("head lse", lse, &[rows])?;
    expect_len("head coefficients", coefficients, &[rows])?;
    check_logits(logits.len(), targets, rows, vocab, ld)?;
    let launch = chunk_launch("head dlogits", rows, ld)?;
    let (softcap, rows, vocab, ld) = (super::softcap("head", softcap)?, rows as i32, vocab as i32, ld as i32);
    // SAFETY: all lengths were checked above.
    unsafe {
        kernel::HeadDlogits { dlogits, logits, lse, coefficients, targets, softcap, rows, vocab, ld }
            .launch(device, launch)
    }
}

fn check_logits(found: usize, targets: &Buffer<i32>, rows: usize, vocab: usize, ld: usize) -> Result<()> {
    let len = rows * ld;
    ensure!(found == len, "head logits: expected {:?} = {len} elements, found {found}", [rows, ld]);
    ensure!(ld >= vocab && ld.is_multiple_of(PITCH), "head logits: rows of {vocab} with a pitch of {ld}");
    expect_len("head targets", targets, &[rows])
}

/// Writes the sum of the gradients of the rows that read each token, 0 where none does; or adds it to `dhidden`.
///
/// Shapes: `dhidden` (tokens, hidden); `dx_rows` (rows, hidden).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
#[allow(clippy::too_many_arguments)]
pub fn scatter<T: Float>(
    device: &Device,
    dhidden: &Buffer<T>,
    dx_rows: &Buffer<T>,
    rows: &HeadRows,
    accumulate: bool,
    hidden: usize,
) -> Result<()> {
    let HeadRows { token_row_offsets, token_rows, tokens, .. } = rows;
    expect_len("head dhidden", dhidden, &[*tokens, hidden])?;
    expect_len("head dx_rows", dx_rows, &[rows.rows, hidden])?;
    expect_len("head token_row_offsets", token_row_offsets, &[tokens + 1])?;
    expect_len("head token_rows", token_rows, &[rows.rows])?;
    let launch = chunk_launch("head scatter", *tokens, hidden)?;
    let tables = [
        Table::offsets("head token_row_offsets", token_row_offsets, rows.rows),
        Table::below("head token_rows", token_rows, rows.rows),
    ];
    let (add, tokens, hidden) = (i32::from(accumulate), *tokens as i32, hidden as i32);
    // SAFETY: all lengths were checked above; a host device checks the tables.
    let work = || unsafe {
        kernel::HeadScatter { dhidden, dx_rows, token_row_offsets, token_rows, add, tokens, hidden }
            .launch(device, launch)
    };
    device.with_tables(&tables, work)
}
