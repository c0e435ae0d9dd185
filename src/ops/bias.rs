//! A bias: one vector added to every row.

use anyhow::{Result, ensure};

use super::{CHUNK, chunk_launch, expect_len, finish_launch};
use crate::device::{Buffer, Device, Float, Launch, kernels::bias as kernel};

const COLUMN_THREADS: usize = 64;
/// Rows one CTA of the gradient sums: fixed, so that the order of additions never depends on the device.
const SLICE_ROWS: usize = 64;

/// `y += b` for every row.
///
/// Shapes: `y` (rows, width); `b` (width).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn add<T: Float>(device: &Device, y: &Buffer<T>, b: &Buffer<T>, rows: usize, width: usize) -> Result<()> {
    expect_len("bias y", y, &[rows, width])?;
    expect_len("bias b", b, &[width])?;
    let launch = chunk_launch("bias", rows, width)?;
    // SAFETY: all lengths were checked above.
    unsafe { kernel::BiasAdd { y, b, rows: rows as i32, width: width as i32 }.launch(device, launch) }
}

/// Elements of `partials` that [`bwd`] needs.
pub fn bwd_partials(rows: usize, width: usize) -> usize {
    rows.div_ceil(SLICE_ROWS) * width
}

/// Adds the sum of `dy` over its rows to `db`.
///
/// Shapes: `db` (width); `dy` (rows, width); `partials` at least [`bwd_partials`].
///
/// # Errors
/// A buffer does not have its shape, or a launch fails.
pub fn bwd<T: Float>(
    device: &Device,
    db: &Buffer<f32>,
    partials: &Buffer<f32>,
    dy: &Buffer<T>,
    rows: usize,
    width: usize,
) -> Result<()> {
    expect_len("bias db", db, &[width])?;
    expect_len("bias dy", dy, &[rows, width])?;
    let needed = bwd_partials(rows, width);
    ensure!(partials.len() >= needed, "bias partials: expected {needed} elements, found {}", partials.len());
    let partials = partials.slice(0..needed);
    let (columns, slices) = (width.div_ceil(COLUMN_THREADS * CHUNK), rows.div_ceil(SLICE_ROWS));
    let by_slice = Launch { grid: [columns as u32, slices as u32, 1], ..Launch::linear(1, COLUMN_THREADS) };
    let finish = finish_launch(width);
    // SAFETY: all lengths were checked above.
    unsafe {
        kernel::BiasBwd {
            partials: &partials,
            dy,
            slice_rows: SLICE_ROWS as i32,
            rows: rows as i32,
            width: width as i32,
        }
        .launch(device, by_slice)?;
        kernel::BiasBwdFinish { db, partials: &partials, slices: slices as i32, width: width as i32 }
            .launch(device, finish)
    }
}
