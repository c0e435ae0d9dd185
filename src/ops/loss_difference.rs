//! Losses of one margin between a chosen and a rejected sequence.

use anyhow::Result;

use super::loss_rows::{GroupTables, HEAD_THREADS, HeadTerm};
use crate::device::{Buffer, Device, kernels::loss_difference as kernel};

pub use kernel::{flag, map, parameter, phi};

/// Writes `losses` of the part's groups and adds to their slopes. `map` and `flags` say how the margin is made.
///
/// Shapes: `losses` (groups of the step); the rest as in [`GroupTables`] and [`HeadTerm`].
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn run(
    device: &Device,
    losses: &Buffer<f64>,
    groups: &GroupTables,
    part: &HeadTerm,
    map: i32,
    flags: i32,
) -> Result<()> {
    let Some(launch) = groups.launch(losses, part, HEAD_THREADS)? else { return Ok(()) };
    let GroupTables { sums, slopes, slot_sequence, group_slots, values } = groups;
    let (first, count) = (part.groups.start as i32, part.groups.len() as i32);
    // SAFETY: all lengths were checked above; a host device checks the tables.
    let work = || unsafe {
        kernel::LossDifference {
            slopes,
            losses,
            sums,
            slot_sequence,
            group_slots,
            values,
            parameters: &part.parameters,
            function: part.function,
            map,
            flags,
            scale: part.scale,
            first_group: first,
            groups: count,
        }
        .launch(device, launch)
    };
    groups.launching(device, part, [2, usize::MAX], work)
}
