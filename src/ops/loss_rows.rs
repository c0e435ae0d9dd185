//! Between rows and the heads of losses: rows to sums of sequences, and slopes of sequences back to rows.

use std::ops::Range;

use anyhow::{Context, Result, ensure};

use super::expect_len;
use crate::device::{
    Buffer, Device, Launch, Table,
    kernels::loss_rows::{self as kernel, input},
};

/// Columns of `sums`: of a sequence's rows, log-probability, log-ratio to the reference (both weighted), number,
/// divergence, log(1 - p), logp - log(sum of squared probabilities), weight, divergence weight, entropy, and rows whose
/// target no other token is likelier than.
pub const SUMS: usize = 10;
/// Columns of `slopes`: the step's loss by a slot's log-probability (or log-ratio), divergence and log(1 - p).
pub const SLOPES: usize = 3;
/// Numbers of a slot that came with the data.
pub const VALUES: usize = 2;
/// Numbers a head takes.
pub const PARAMETERS: usize = 8;
pub(super) const HEAD_THREADS: usize = 128;
const WARPS_PER_CTA: usize = HEAD_THREADS / 32;

/// The groups of a step and their slots, on the device: a slot is one sequence's place in a group.
#[derive(Clone)]
pub struct GroupTables {
    /// (sequences, [`SUMS`])
    pub sums: Buffer<f64>,
    /// (slots, [`SLOPES`]) heads add to it.
    pub slopes: Buffer<f64>,
    /// (slots)
    pub slot_sequence: Buffer<i32>,
    /// (groups + 1)
    pub group_slots: Buffer<i32>,
    /// (slots, [`VALUES`])
    pub values: Buffer<f64>,
}

/// What one head does: which function, with which numbers, on which groups.
#[derive(Clone)]
pub struct HeadTerm {
    /// Of the head's table.
    pub function: i32,
    /// ([`PARAMETERS`])
    pub parameters: Buffer<f64>,
    /// Multiplies the slopes.
    pub scale: f64,
    /// Of the step's.
    pub groups: Range<usize>,
}

impl GroupTables {
    /// The launch of a head with so many groups a CTA, `None` if there is nothing to do. Checks lengths as
    /// [`check`](Self::check) does.
    pub(super) fn launch(
        &self,
        losses: &Buffer<f64>,
        part: &HeadTerm,
        groups_per_cta: usize,
    ) -> Result<Option<Launch>> {
        self.check(losses, part)?;
        let ctas = part.groups.len().div_ceil(groups_per_cta);
        Ok((ctas > 0).then(|| Launch::linear(ctas, HEAD_THREADS)))
    }

    /// Runs a head on tables whose entries lie within the step's slots and sums. The part's groups have `sizes[0]` to `sizes[1]`
    /// slots.
    pub(super) fn launching(
        &self,
        device: &Device,
        part: &HeadTerm,
        sizes: [usize; 2],
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let (slots, sequences) = (self.slot_sequence.len(), self.sums.len() / SUMS);
        let ends = self.group_slots.slice(part.groups.start..part.groups.end + 1);
        let of_slots = Table::below("loss slot_sequence", &self.slot_sequence, sequences);
        device.with_tables(&[of_slots, Table::runs("loss group_slots", &ends, slots, sizes)], work)
    }

    /// Checks the lengths of what a head is handed; `losses` has one element a group of the step.
    pub(super) fn check(&self, losses: &Buffer<f64>, part: &HeadTerm) -> Result<()> {
        let (slots, groups) = (self.slot_sequence.len(), self.group_slots.len().saturating_sub(1));
        expect_len("loss slopes", &self.slopes, &[slots, SLOPES])?;
        expect_len("loss values", &self.values, &[slots, VALUES])?;
        expect_len("losses", losses, &[groups])?;
        expect_len("loss parameters", &part.parameters, &[PARAMETERS])?;
        ensure!(part.groups.end <= groups, "groups {:?} of {groups}", part.groups);
        ensure!(self.sums.len().is_multiple_of(SUMS), "loss sums: {} elements", self.sums.len());
        Ok(())
    }
}

/// What the rows of a micro-batch have, each (rows). What is absent is not read.
#[derive(Clone, Default)]
pub struct RowInputs {
    /// The policy's log-probabilities.
    pub logps: Option<Buffer<f32>>,
    /// The reference's log-probabilities.
    pub ref_logps: Option<Buffer<f32>>,
    /// Weight of each row, else 1.
    pub weights: Option<Buffer<f32>>,
    /// KL(reference || policy) at each row.
    pub divergences: Option<Buffer<f32>>,
    /// Weight of each row's divergence, else 1.
    pub divergence_weights: Option<Buffer<f32>>,
    /// Log of the sum of squared probabilities at each row.
    pub collisions: Option<Buffer<f32>>,
    /// Entropy of the policy's distribution at each row, and 1 where no token is likelier than the target, else 0.
    pub described: Option<[Buffer<f32>; 2]>,
    /// Whether log(1 - p) is summed.
    pub complements: bool,
}

impl RowInputs {
    fn inputs(&self) -> i32 {
        let given = |buffer: &Option<Buffer<f32>>, bit| if buffer.is_some() { bit } else { 0 };
        given(&self.ref_logps, input::REFERENCE)
            | given(&self.weights, input::ROW_WEIGHTS)
            | given(&self.divergences, input::DIVERGENCES)
            | given(&self.divergence_weights, input::DIVERGENCE_ROW_WEIGHTS)
            | given(&self.collisions, input::COLLISIONS)
            | if self.described.is_some() { input::DESCRIBED } else { 0 }
            | if self.complements { input::COMPLEMENTS } else { 0 }
    }

    fn logps(&self) -> Result<&Buffer<f32>> {
        self.logps.as_ref().context("loss rows: no log-probabilities")
    }

    /// One of the other buffers, or in its place something as long that is not read.
    fn or_logps(&self, what: &str, buffer: &Option<Buffer<f32>>) -> Result<Buffer<f32>> {
        let logps = self.logps()?;
        let buffer = buffer.as_ref().unwrap_or(logps);
        expect_len(&format!("loss rows: {what}"), buffer, &[logps.len()])?;
        Ok(buffer.clone())
    }
}

fn launch(sequences: usize) -> Launch {
    Launch::linear(sequences.div_ceil(WARPS_PER_CTA), HEAD_THREADS)
}

/// Adds up the rows of each sequence, in f64 and always in the same order.
///
/// Shapes: `sums` (sequences, [`SUMS`]); `sequence_rows` (sequences + 1), which covers all rows.
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn sum(device: &Device, sums: &Buffer<f64>, rows: &RowInputs, sequence_rows: &Buffer<i32>) -> Result<()> {
    let sequences = sequence_rows.len().saturating_sub(1);
    expect_len("loss sums", sums, &[sequences, SUMS])?;
    if sequences == 0 {
        return Ok(());
    }
    let logps = rows.logps()?;
    let (ref_logps, weights) = (rows.or_logps("reference", &rows.ref_logps)?, rows.or_logps("weights", &rows.weights)?);
    let (divergences, divergence_weights) = (
        rows.or_logps("divergences", &rows.divergences)?,
        rows.or_logps("divergence weights", &rows.divergence_weights)?,
    );
    let collisions = rows.or_logps("collisions", &rows.collisions)?;
    let [entropies, top1] = [0, 1].map(|i| rows.described.as_ref().map(|described| described[i].clone()));
    let (entropies, top1) = (rows.or_logps("entropies", &entropies)?, rows.or_logps("top1", &top1)?);
    // SAFETY: all lengths were checked above; a host device checks the table.
    let work = || unsafe {
        kernel::LossRowsSum {
            sums,
            logps,
            ref_logps: &ref_logps,
            weights: &weights,
            divergences: &divergences,
            divergence_weights: &divergence_weights,
            collisions: &collisions,
            entropies: &entropies,
            top1: &top1,
            sequence_rows,
            inputs: rows.inputs(),
            sequences: sequences as i32,
        }
        .launch(device, launch(sequences))
    };
    device.with_tables(&[Table::offsets("loss sequence_rows", sequence_rows, logps.len())], work)
}

/// Slopes of the loss by the weights of rows and of their divergences, where both are learned; `penalties` are what each
/// weight adds to the loss by itself.
///
/// Shapes: `by_weights` two of (rows); the rest as in [`spread`].
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn by_weights(
    device: &Device,
    by_weights: [&Buffer<f32>; 2],
    slopes: &Buffer<f64>,
    rows: &RowInputs,
    sequence_rows: &Buffer<i32>,
    of: &SequenceSlots,
    penalties: [f64; 2],
) -> Result<()> {
    let sequences = sequence_rows.len().saturating_sub(1);
    let logps = rows.logps()?;
    by_weights.iter().try_for_each(|buffer| expect_len("loss by weights", buffer, &[logps.len()]))?;
    expect_len("loss sequence slots", &of.ends, &[sequences + 1])?;
    expect_len("loss slopes", slopes, &[of.slots.len(), SLOPES])?;
    let (Some(ref_logps), Some(divergences)) = (&rows.ref_logps, &rows.divergences) else {
        anyhow::bail!("loss rows: weights are learned from log-ratios and divergences");
    };
    expect_len("loss reference", ref_logps, &[logps.len()])?;
    expect_len("loss divergences", divergences, &[logps.len()])?;
    if sequences == 0 {
        return Ok(());
    }
    // SAFETY: all lengths were checked above; a host device checks the tables.
    let work = || unsafe {
        kernel::LossRowsByWeights {
            by_weights: by_weights[0],
            by_divergence_weights: by_weights[1],
            slopes,
            logps,
            ref_logps,
            divergences,
            sequence_rows,
            sequence_slot_ends: &of.ends,
            sequence_slots: &of.slots,
            penalty: penalties[0],
            divergence_penalty: penalties[1],
            sequences: sequences as i32,
        }
        .launch(device, launch(sequences))
    };
    device.with_tables(&of.tables(sequence_rows, logps.len()), work)
}

/// Where each sequence of a micro-batch finds its slots.
#[derive(Clone)]
pub struct SequenceSlots {
    /// (sequences + 1) places in `slots`.
    pub ends: Buffer<i32>,
    /// (slots of the step) slots by sequence, ascending.
    pub slots: Buffer<i32>,
}

impl SequenceSlots {
    fn tables<'a>(&'a self, sequence_rows: &'a Buffer<i32>, rows: usize) -> [Table<'a>; 3] {
        let slots = self.slots.len();
        [
            Table::offsets("loss sequence_rows", sequence_rows, rows),
            Table::offsets("loss sequence slots", &self.ends, slots),
            Table::below("loss slots", &self.slots, slots),
        ]
    }
}

/// Writes every row's share of its sequence's slopes, 0 where the sequence stands in no group.
///
/// Shapes: `coefficients`, and `divergence_coefficients` if the rows have divergences, (rows); `slopes` (slots,
/// [`SLOPES`]) of the step; `sequence_rows` (sequences + 1).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn spread(
    device: &Device,
    coefficients: &Buffer<f32>,
    divergence_coefficients: Option<&Buffer<f32>>,
    slopes: &Buffer<f64>,
    rows: &RowInputs,
    sequence_rows: &Buffer<i32>,
    of: &SequenceSlots,
) -> Result<()> {
    let sequences = sequence_rows.len().saturating_sub(1);
    let logps = rows.logps()?;
    expect_len("loss coefficients", coefficients, &[logps.len()])?;
    expect_len("loss sequence slots", &of.ends, &[sequences + 1])?;
    expect_len("loss slopes", slopes, &[of.slots.len(), SLOPES])?;
    ensure!(
        divergence_coefficients.is_some() == rows.divergences.is_some(),
        "loss rows: divergences and their coefficients come together"
    );
    let divergence_coefficients = divergence_coefficients.unwrap_or(coefficients);
    expect_len("loss divergence coefficients", divergence_coefficients, &[logps.len()])?;
    let weights = rows.or_logps("weights", &rows.weights)?;
    let divergence_weights = rows.or_logps("divergence weights", &rows.divergence_weights)?;
    if sequences == 0 {
        return Ok(());
    }
    // SAFETY: all lengths were checked above; a host device checks the tables.
    let work = || unsafe {
        kernel::LossRowsSpread {
            coefficients,
            divergence_coefficients,
            slopes,
            logps,
            weights: &weights,
            divergence_weights: &divergence_weights,
            sequence_rows,
            sequence_slot_ends: &of.ends,
            sequence_slots: &of.slots,
            inputs: rows.inputs(),
            sequences: sequences as i32,
        }
        .launch(device, launch(sequences))
    };
    device.with_tables(&of.tables(sequence_rows, logps.len()), work)
}
