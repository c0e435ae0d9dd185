//! The head where a loss looks at whole distributions: the reference's beside the policy's, chunk by chunk, so that the
//! logits of a batch never exist; and the sum of squared probabilities.

use anyhow::Result;

use super::{HeadRows, HeadShape, Scratch};
use crate::{
    device::{Buffer, Device, Float, Launch, Table, kernels::head_distributions as kernel},
    ops::{
        self, chunk_launch, expect_len,
        gemm::{self, Gemm},
        gradient::Gradient,
    },
};

const WARPS_PER_CTA: usize = 4;

/// A head's inputs: a model's last hidden states, its output weight, and memory for a chunk's rows and f32 logits.
pub struct Source<'a, T> {
    /// (tokens, hidden)
    pub hidden_states: &'a Buffer<T>,
    /// (vocab, hidden)
    pub weight: &'a Buffer<T>,
    /// Memory for a chunk of rows.
    pub scratch: &'a Scratch<T>,
    /// Its sizes.
    pub head: HeadShape,
}

/// What [`fwd`] writes, each (rows).
#[derive(Clone)]
pub struct Divergence {
    /// The policy's log-probability of each target.
    pub logps: Buffer<f32>,
    /// Log of the sum of exponentials of its logits.
    pub lse: Buffer<f32>,
    /// The reference's log-probability of each target.
    pub ref_logps: Buffer<f32>,
    /// Log of the sum of exponentials of its logits.
    pub ref_lse: Buffer<f32>,
    /// KL(reference || policy).
    pub divergences: Buffer<f32>,
    /// Entropy of the policy's distribution, in nats.
    pub entropies: Buffer<f32>,
    /// 1 where no token has a larger logit under the policy than the target, else 0.
    pub top1: Buffer<f32>,
}

impl Divergence {
    /// Room for so many rows.
    ///
    /// # Errors
    /// The device is out of memory.
    pub fn alloc(device: &Device, rows: usize) -> Result<Self> {
        let part = || device.alloc(rows);
        Ok(Self {
            logps: part()?,
            lse: part()?,
            ref_logps: part()?,
            ref_lse: part()?,
            divergences: part()?,
            entropies: part()?,
            top1: part()?,
        })
    }

    fn slice(&self, rows: &std::ops::Range<usize>) -> Self {
        let part = |buffer: &Buffer<f32>| buffer.slice(rows.clone());
        Self {
            logps: part(&self.logps),
            lse: part(&self.lse),
            ref_logps: part(&self.ref_logps),
            ref_lse: part(&self.ref_lse),
            divergences: part(&self.divergences),
            entropies: part(&self.entropies),
            top1: part(&self.top1),
        }
    }
}

/// Log-probabilities of each row's target under both models, and the divergence between them.
///
/// # Errors
/// A buffer does not have its shape, or a launch fails.
pub fn fwd<T: Float>(
    device: &Device,
    out: &Divergence,
    policy: &Source<T>,
    reference: &Source<T>,
    rows: &HeadRows,
) -> Result<()> {
    for chunk in policy.head.chunks(rows.rows) {
        let [z, zq] = [policy, reference].map(|source| source.logits(device, rows, &chunk));
        divergence_rows(device, &out.slice(&chunk), &z?, &zq?, &rows.target.slice(chunk.clone()), &policy.head)?;
    }
    Ok(())
}

impl<T: Float> Source<'_, T> {
    fn logits(&self, device: &Device, rows: &HeadRows, chunk: &std::ops::Range<usize>) -> Result<Buffer<f32>> {
        super::chunk_logits(device, self.scratch, self.hidden_states, self.weight, rows, &self.head, chunk)
    }
}

/// RowSlopes of the loss by what [`fwd`] wrote, each (rows).
pub struct RowSlopes<'a> {
    /// By log-probabilities.
    pub logps: &'a Buffer<f32>,
    /// By divergences.
    pub divergences: &'a Buffer<f32>,
}

/// Gradients of [`fwd`]: writes `dhidden`, or adds to it if `accumulate`; adds to `dweight`. Both models' logits are computed again.
///
/// Shapes: `dhidden` (tokens, hidden); `dweight` (vocab, hidden).
///
/// # Errors
/// A buffer does not have its shape, or a launch fails.
#[expect(clippy::too_many_arguments, reason = "outputs, inputs, sizes")]
pub fn bwd<T: Float>(
    device: &Device,
    dhidden: &Buffer<T>,
    dweight: impl Into<Gradient>,
    policy: &Source<T>,
    reference: &Source<T>,
    kept: &Divergence,
    slopes: &RowSlopes,
    rows: &HeadRows,
    accumulate: bool,
) -> Result<()> {
    let HeadShape { vocab, hidden, .. } = policy.head;
    let (ld, scratch, dweight) = (policy.head.ld(), policy.scratch, dweight.into());
    for (i, chunk) in policy.head.chunks(rows.rows).enumerate() {
        let [z, zq] = [policy, reference].map(|source| source.logits(device, rows, &chunk));
        let (z, zq, count) = (z?, zq?, chunk.len());
        let dz = scratch.dlogits.slice(0..count * ld);
        let part = |buffer: &Buffer<f32>| buffer.slice(chunk.clone());
        let normalisers = [&part(&kept.lse), &part(&kept.ref_lse)];
        let slopes = RowSlopes { logps: &part(slopes.logps), divergences: &part(slopes.divergences) };
        dlogits(device, &dz, [&z, &zq], normalisers, &slopes, &rows.target.slice(chunk.clone()), &policy.head)?;
        let dx = scratch.dx_rows.slice(chunk.start * hidden..chunk.end * hidden);
        gemm::run(device, &Gemm { lda: ld, ..Gemm::nn(count, hidden, vocab) }, &dx, &dz, policy.weight)?;
        let by_weight = Gemm { lda: ld, ..Gemm::tn(vocab, hidden, count).accumulating() };
        gemm::run_gradient(device, &by_weight, &dweight.after(i), &dz, &scratch.x_rows, None)?;
    }
    let dx_rows = scratch.dx_rows.slice(0..rows.rows * hidden);
    super::scatter(device, dhidden, &dx_rows, rows, accumulate, hidden)
}

/// Log of the sum of squared probabilities of each row.
///
/// Shapes: `out` (rows).
///
/// # Errors
/// A buffer does not have its shape, or a launch fails.
pub fn collisions<T: Float>(device: &Device, out: &Buffer<f32>, policy: &Source<T>, rows: &HeadRows) -> Result<()> {
    for chunk in policy.head.chunks(rows.rows) {
        let logits = policy.logits(device, rows, &chunk)?;
        collision_rows(device, &out.slice(chunk.clone()), &logits, &policy.head)?;
    }
    Ok(())
}

fn by_rows(rows: usize) -> Launch {
    Launch::linear(rows.div_ceil(WARPS_PER_CTA), WARPS_PER_CTA * 32)
}

/// [`fwd`] from logits.
///
/// Shapes: `out` and `targets` (rows); `logits`, `ref_logits` (rows, ld). Targets lie in `0..vocab`; a host device checks
/// them.
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn divergence_rows(
    device: &Device,
    out: &Divergence,
    logits: &Buffer<f32>,
    ref_logits: &Buffer<f32>,
    targets: &Buffer<i32>,
    head: &HeadShape,
) -> Result<()> {
    let (rows, ld) = (targets.len(), head.ld());
    let Divergence { logps, lse, ref_logps, ref_lse, divergences, entropies, top1 } = out;
    for buffer in [logps, lse, ref_logps, ref_lse, divergences, entropies, top1] {
        expect_len("head divergence", buffer, &[rows])?;
    }
    expect_len("head logits", logits, &[rows, ld])?;
    expect_len("head reference logits", ref_logits, &[rows, ld])?;
    let softcap = ops::softcap("head", head.softcap)?;
    // SAFETY: all lengths were checked above; a host device checks the targets.
    let work = || unsafe {
        kernel::HeadDivergenceRows {
            logps,
            lse,
            ref_logps,
            ref_lse,
            divergences,
            entropies,
            top1,
            logits,
            ref_logits,
            targets,
            softcap,
            rows: rows as i32,
            vocab: head.vocab as i32,
            ld: ld as i32,
        }
        .launch(device, by_rows(rows))
    };
    device.with_tables(&[Table::below("head targets", targets, head.vocab)], work)
}

/// Gradients of [`divergence_rows`] by the policy's logits: `dlogits` (rows, ld), which for f32 may be the logits.
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn dlogits<T: Float>(
    device: &Device,
    dlogits: &Buffer<T>,
    [logits, ref_logits]: [&Buffer<f32>; 2],
    [lse, ref_lse]: [&Buffer<f32>; 2],
    slopes: &RowSlopes,
    targets: &Buffer<i32>,
    head: &HeadShape,
) -> Result<()> {
    let (rows, ld) = (targets.len(), head.ld());
    expect_len("head dlogits", dlogits, &[rows, ld])?;
    expect_len("head logits", logits, &[rows, ld])?;
    expect_len("head reference logits", ref_logits, &[rows, ld])?;
    for buffer in [lse, ref_lse, slopes.logps, slopes.divergences] {
        expect_len("head divergence", buffer, &[rows])?;
    }
    let launch = chunk_launch("head dlogits", rows, ld)?;
    let softcap = ops::softcap("head", head.softcap)?;
    let (vocab, ld, rows) = (head.vocab as i32, ld as i32, rows as i32);
    // SAFETY: all lengths were checked above.
    unsafe {
        kernel::HeadDlogitsDivergence {
            dlogits,
            logits,
            ref_logits,
            lse,
            ref_lse,
            coefficients: slopes.logps,
            divergence_coefficients: slopes.divergences,
            targets,
            softcap,
            rows,
            vocab,
            ld,
        }
        .launch(device, launch)
    }
}

/// [`collisions`] from logits (rows, ld).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn collision_rows(device: &Device, out: &Buffer<f32>, logits: &Buffer<f32>, head: &HeadShape) -> Result<()> {
    let (rows, ld) = (out.len(), head.ld());
    expect_len("head logits", logits, &[rows, ld])?;
    let softcap = ops::softcap("head", head.softcap)?;
    // SAFETY: all lengths were checked above.
    unsafe {
        kernel::HeadCollisions {
            collisions: out,
            logits,
            softcap,
            rows: rows as i32,
            vocab: head.vocab as i32,
            ld: ld as i32,
        }
        .launch(device, by_rows(rows))
    }
}
