//! The gated activation of the feed-forward layer, alone and with the product before it.

use anyhow::{Result, ensure};
use half::bf16;

use super::{
    chunk_launch, expect_len,
    gemm::{
        self, Gemm,
        sm90::{self, Plan, Tile},
    },
};
use crate::device::{Arch, Buffer, DType, Device, Float, kernels::swiglu as kernel, kernels::swiglu_sm90 as fused};

/// `gate_up = x wᵀ`, `y = silu(gate) * up`: one kernel on Hopper, two elsewhere; y has the same bits for the same gate_up.
///
/// Shapes: `y` (rows, ffn); `gate_up` (rows, 2 * ffn), gate first; `x` (rows, hidden); `w` (2 * ffn, hidden).
///
/// # Errors
/// A buffer does not have its shape, or a launch fails.
pub fn project<T: Float>(
    device: &Device,
    y: &Buffer<T>,
    gate_up: &Buffer<T>,
    x: &Buffer<T>,
    w: &Buffer<T>,
    [rows, ffn, hidden]: [usize; 3],
) -> Result<()> {
    let gemm = Gemm::nt(rows, 2 * ffn, hidden);
    let whole = [ffn, hidden].iter().all(|width| width.is_multiple_of(8));
    match gemm::arch(device) {
        Arch::Sm90 if T::DTYPE == DType::Bf16 && whole && rows > 0 => {
            // Each tile has 128 columns of the gate and 128 of up.
            let plan = Plan::with_tile(&gemm, Tile::M128N256, device.sm_count());
            project_planned(device, &plan, &y.cast(), &gate_up.cast(), &x.cast(), &w.cast(), [rows, ffn, hidden])
        }
        _ => {
            gemm::run(device, &gemm, gate_up, x, w)?;
            fwd(device, y, gate_up, rows, ffn)
        }
    }
}

/// [`project`] on Hopper's own units.
///
/// # Errors
/// As [`project`]; also if the plan's tile is not 128 x 256 or a width is no multiple of 8.
pub fn project_planned(
    device: &Device,
    plan: &Plan,
    y: &Buffer<bf16>,
    gate_up: &Buffer<bf16>,
    x: &Buffer<bf16>,
    w: &Buffer<bf16>,
    [rows, ffn, hidden]: [usize; 3],
) -> Result<()> {
    expect_len("swiglu y", y, &[rows, ffn])?;
    expect_len("swiglu gate_up", gate_up, &[rows, 2, ffn])?;
    expect_len("swiglu x", x, &[rows, hidden])?;
    expect_len("swiglu w", w, &[2, ffn, hidden])?;
    ensure!(plan.tile == Tile::M128N256, "swiglu: {plan:?}: the kernel has tiles of 128 x 256");
    let [x_map, w_map] = sm90::operand_maps(device, plan.tile, &Gemm::nt(rows, 2 * ffn, hidden), x, w)?;
    let y_map = sm90::panel_map(device, y, [rows, ffn], ffn)?;
    let [gate, up] = [gate_up.clone(), gate_up.slice(ffn..gate_up.len())];
    let gate_map = sm90::panel_map(device, &gate, [rows, ffn], 2 * ffn)?;
    let up_map = sm90::panel_map(device, &up, [rows, ffn], 2 * ffn)?;
    let [rows, ffn, hidden, stages] = [rows, ffn, hidden, plan.stages].map(|x| x as i32);
    let at = plan.launch();
    // SAFETY: all lengths were checked above; the maps carry them.
    unsafe {
        fused::SwigluProjectBf16 {
            y_map: &y_map,
            gate_map: &gate_map,
            up_map: &up_map,
            x_map: &x_map,
            w_map: &w_map,
            rows,
            ffn,
            hidden,
            stages,
        }
        .launch(device, at)
    }
}

/// `y = silu(gate) * up`.
///
/// Shapes: `y` (rows, ffn); `gate_up` (rows, 2 * ffn), gate first.
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn fwd<T: Float>(device: &Device, y: &Buffer<T>, gate_up: &Buffer<T>, rows: usize, ffn: usize) -> Result<()> {
    expect_len("swiglu y", y, &[rows, ffn])?;
    expect_len("swiglu gate_up", gate_up, &[rows, 2, ffn])?;
    let launch = chunk_launch("swiglu", rows, ffn)?;
    // SAFETY: all lengths were checked above.
    unsafe { kernel::SwigluFwd { y, gate_up, rows: rows as i32, ffn: ffn as i32 }.launch(device, launch) }
}

/// Gradient of [`fwd`], and its `y` again with the same bits, which the gradient of the next matrix reads. `dgate_up` may be
/// `gate_up`, `y` may be `dy`.
///
/// Shapes: `dgate_up`, `gate_up` (rows, 2 * ffn); `y`, `dy` (rows, ffn).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn bwd<T: Float>(
    device: &Device,
    dgate_up: &Buffer<T>,
    y: &Buffer<T>,
    dy: &Buffer<T>,
    gate_up: &Buffer<T>,
    rows: usize,
    ffn: usize,
) -> Result<()> {
    expect_len("swiglu dgate_up", dgate_up, &[rows, 2, ffn])?;
    expect_len("swiglu y", y, &[rows, ffn])?;
    expect_len("swiglu dy", dy, &[rows, ffn])?;
    expect_len("swiglu gate_up", gate_up, &[rows, 2, ffn])?;
    let launch = chunk_launch("swiglu", rows, ffn)?;
    // SAFETY: all lengths were checked above.
    unsafe { kernel::SwigluBwd { dgate_up, y, dy, gate_up, rows: rows as i32, ffn: ffn as i32 }.launch(device, launch) }
}
