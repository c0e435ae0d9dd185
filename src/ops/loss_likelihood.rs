//! Losses of a sequence's own likelihood.

use anyhow::Result;

use super::loss_rows::{GroupTables, HEAD_THREADS, HeadTerm};
use crate::device::{Buffer, Device, kernels::loss_likelihood as kernel};

pub use kernel::function;

/// Writes `losses` of the part's groups and adds to their slopes. `place` is the slot in its group, -1 for all.
///
/// Shapes: `losses` (groups of the step); the rest as in [`GroupTables`] and [`HeadTerm`].
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn run(device: &Device, losses: &Buffer<f64>, groups: &GroupTables, part: &HeadTerm, place: i32) -> Result<()> {
    let Some(launch) = groups.launch(losses, part, HEAD_THREADS)? else { return Ok(()) };
    let least = usize::try_from(place).map_or(0, |place| place + 1);
    let GroupTables { sums, slopes, slot_sequence, group_slots, values } = groups;
    let (first, count) = (part.groups.start as i32, part.groups.len() as i32);
    // SAFETY: all lengths were checked above; a host device checks the tables.
    let work = || unsafe {
        kernel::LossLikelihood {
            slopes,
            losses,
            sums,
            slot_sequence,
            group_slots,
            values,
            parameters: &part.parameters,
            function: part.function,
            place,
            scale: part.scale,
            first_group: first,
            groups: count,
        }
        .launch(device, launch)
    };
    groups.launching(device, part, [least, usize::MAX], work)
}
