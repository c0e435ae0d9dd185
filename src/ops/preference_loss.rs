//! The pairwise loss head: from row log-probabilities to one coefficient per row.

use anyhow::{Result, ensure};

use super::expect_len;
use crate::device::{Buffer, Device, Launch, kernels::preference_loss as kernel};

/// Columns of `stats`: loss of the pair; negative log-likelihood of the chosen sequence (a sum); rewards and
/// log-probabilities of the chosen and the rejected sequence; slopes of the step's loss in the two log-probabilities.
pub const STATS: usize = 8;
const WARPS_PER_CTA: usize = 4;

/// Strength and normalisation of the two terms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    pub beta: f32,
    pub label_smoothing: f32,
    /// Weight of the preference term divided by the pairs of the whole step.
    pub dpo_scale: f32,
    /// Weight of the likelihood term divided by the chosen tokens of the whole step.
    pub sft_scale: f32,
}

/// Writes `stats` and `coefficients` = d loss / d logp of every row for the mean loss of the whole step. A row whose
/// sequence stands in no pair gets 0, one whose sequence stands in several gets the sum.
///
/// Shapes: `coefficients`, `logps`, `ref_logps` (rows); `stats` (pairs, [`STATS`]); `sequence_rows` (sequences + 1),
/// which covers all rows; `pair_table` (pairs, 2) chosen and rejected sequence.
///
/// # Errors
/// A buffer does not have its shape, or a launch fails.
#[allow(clippy::too_many_arguments)]
pub fn pairs(
    device: &Device,
    coefficients: &Buffer<f32>,
    stats: &Buffer<f32>,
    logps: &Buffer<f32>,
    ref_logps: &Buffer<f32>,
    sequence_rows: &Buffer<i32>,
    pair_table: &Buffer<i32>,
    params: Params,
    pairs: usize,
) -> Result<()> {
    let rows = logps.len();
    expect_len("preference_loss coefficients", coefficients, &[rows])?;
    expect_len("preference_loss ref_logps", ref_logps, &[rows])?;
    expect_len("preference_loss stats", stats, &[pairs, STATS])?;
    expect_len("preference_loss pairs", pair_table, &[pairs, 2])?;
    ensure!(!sequence_rows.is_empty(), "preference_loss sequence_rows: expected sequences + 1 elements, found 0");
    if pairs == 0 {
        return device.fill_zero(coefficients);
    }
    let sequences = sequence_rows.len() - 1;
    let warps = |count: usize| Launch::linear(count.div_ceil(WARPS_PER_CTA), WARPS_PER_CTA * 32);
    let Params { beta, label_smoothing, dpo_scale, sft_scale } = params;
    let (by_pair, by_sequence) = (warps(pairs), warps(sequences));
    let (pairs, sequences) = (pairs as i32, sequences as i32);
    // SAFETY: all lengths were checked above; the tables come from a forest, which keeps them in range.
    unsafe {
        kernel::preference_loss_pairs(
            device,
            by_pair,
            stats,
            logps,
            ref_logps,
            sequence_rows,
            pair_table,
            beta,
            label_smoothing,
            dpo_scale,
            sft_scale,
            pairs,
        )?;
        kernel::preference_loss_rows(
            device,
            by_sequence,
            coefficients,
            stats,
            sequence_rows,
            pair_table,
            pairs,
            sequences,
        )
    }
}
