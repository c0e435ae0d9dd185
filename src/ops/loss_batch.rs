//! Losses that couple all groups of a step.

use anyhow::{Result, ensure};

use super::{
    expect_len,
    loss_rows::{GroupTables, HeadTerm},
};
use crate::device::{Buffer, Device, Launch, kernels::loss_batch as kernel};

pub use kernel::function;

const THREADS: usize = 256;

/// Sum and number of the rewards seen so far, and the reference point of the step.
pub const STATE: usize = 3;

/// Writes `losses`, adds to the slopes and moves `state` on by one step. The part's groups are all of the step.
///
/// Shapes: `losses` (groups); `state` ([`STATE`]); `sorted` (2, groups), scratch; the rest as in [`GroupTables`] and
/// [`HeadTerm`].
///
/// # Errors
/// A buffer does not have its shape, the part leaves groups out, or the launch fails.
pub fn run(
    device: &Device,
    losses: &Buffer<f64>,
    state: &Buffer<f64>,
    sorted: &Buffer<f64>,
    groups: &GroupTables,
    part: &HeadTerm,
) -> Result<()> {
    groups.check(losses, part)?;
    let count = part.groups.len();
    ensure!(count == losses.len(), "a loss that couples {} groups ran on {count} of them", losses.len());
    expect_len("loss state", state, &[STATE])?;
    expect_len("loss scratch", sorted, &[2, count])?;
    if count == 0 {
        return Ok(());
    }
    let least = if part.function == function::BCO_UNPAIRED { 1 } else { 2 };
    let GroupTables { sums, slopes, slot_sequence, group_slots, values } = groups;
    // SAFETY: all lengths were checked above; a host device checks the tables.
    let work = || unsafe {
        kernel::LossBatch {
            slopes,
            losses,
            state,
            sorted,
            sums,
            slot_sequence,
            group_slots,
            values,
            parameters: &part.parameters,
            function: part.function,
            scale: part.scale,
            groups: count as i32,
        }
        .launch(device, Launch::linear(1, THREADS))
    };
    groups.launching(device, part, [least, usize::MAX], work)
}
