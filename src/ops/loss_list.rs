//! Losses over lists of up to 32 responses.

use anyhow::Result;

use super::loss_rows::{GroupTables, HEAD_THREADS, HeadTerm};
use crate::device::{Buffer, Device, kernels::loss_list as kernel};

pub use kernel::function;

/// Bytes of `Response` in `kernels/loss_list.cu`: six f64, an i32 and what aligns it.
const RESPONSE: usize = 56;
/// Responses of one list.
pub const LONGEST: usize = 32;

/// Writes `losses` of the part's groups and adds to their slopes.
///
/// Shapes: `losses` (groups of the step); the rest as in [`GroupTables`] and [`HeadTerm`].
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn run(device: &Device, losses: &Buffer<f64>, groups: &GroupTables, part: &HeadTerm) -> Result<()> {
    let Some(launch) = groups.launch(losses, part, HEAD_THREADS / 32)? else { return Ok(()) };
    let launch = launch.with_smem(HEAD_THREADS * RESPONSE);
    let GroupTables { sums, slopes, slot_sequence, group_slots, values } = groups;
    let (first, count) = (part.groups.start as i32, part.groups.len() as i32);
    // SAFETY: all lengths were checked above; a host device checks the tables.
    let work = || unsafe {
        kernel::LossList {
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
    groups.launching(device, part, [1, LONGEST], work)
}
