//! Losses that look at the log-ratios of a chosen and a rejected sequence one by one.

use anyhow::Result;

use super::loss_rows::{GroupTables, HEAD_THREADS, HeadTerm};
use crate::device::{Buffer, Device, kernels::loss_separate as kernel};

pub use kernel::function;

/// Writes `losses` of the part's groups and adds to their slopes.
///
/// Shapes: `losses` (groups of the step); the rest as in [`GroupTables`] and [`HeadTerm`].
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn run(device: &Device, losses: &Buffer<f64>, groups: &GroupTables, part: &HeadTerm) -> Result<()> {
    let Some(launch) = groups.launch(losses, part, HEAD_THREADS)? else { return Ok(()) };
    let GroupTables { sums, slopes, slot_sequence, group_slots, values } = groups;
    let (first, count) = (part.groups.start as i32, part.groups.len() as i32);
    // SAFETY: all lengths were checked above; a host device checks the tables.
    let work = || unsafe {
        kernel::LossSeparate {
            slopes,
            losses,
            sums,
            slot_sequence,
            group_slots,
            values,
            parameters: &part.parameters,
            function: part.function,
            scale: part.scale,
            first_group: first,
            groups: count,
        }
        .launch(device, launch)
    };
    groups.launching(device, part, [2, usize::MAX], work)
}
