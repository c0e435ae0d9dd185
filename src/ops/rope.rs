//! Rotary position embedding, alone and with the product before it.

use anyhow::{Result, ensure};
use half::bf16;

use super::{
    chunk_launch, expect_len,
    gemm::{
        self, Epilogue, Gemm,
        sm90::{self, Plan, Tile},
    },
};
use crate::device::{Arch, Buffer, DType, Device, Float, Table, kernels::rope as kernel, kernels::rope_sm90 as fused};

/// Cosines and sines by position: (positions, head_dim / 2) each.
pub struct Rotary {
    /// Cosines.
    pub cos: Buffer<f32>,
    /// Sines.
    pub sin: Buffer<f32>,
}

impl Rotary {
    /// Both tables have whole rows, of the same number of positions.
    pub(super) fn check(&self, head_dim: usize) -> Result<()> {
        let half = head_dim / 2;
        ensure!(head_dim >= 2 && head_dim.is_multiple_of(2), "rope: head_dim {head_dim} is not a positive even number");
        expect_len("rope cos", &self.cos, &[self.cos.len() / half, half])?;
        expect_len("rope sin", &self.sin, &[self.cos.len() / half, half])
    }

    /// [`check`](Self::check) for kernels that read two values at a time.
    pub(super) fn check_pairs(&self, head_dim: usize) -> Result<()> {
        let paired = [&self.cos, &self.sin].iter().all(|table| table.address().is_multiple_of(8));
        ensure!(paired, "rope: expected tables at multiples of 8 bytes");
        self.check(head_dim)
    }
}

/// Heads of a token's row: queries, then keys, then as many values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Of queries.
    pub heads: usize,
    /// Of keys, and of values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl Heads {
    /// Columns of a row.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// `qkv = x wᵀ + bias`, queries and keys turned by their positions: one kernel on Hopper for heads of 64 and 128, elsewhere
/// one after the other, each of which rounds.
///
/// Shapes: `qkv` (tokens, width); `x` (tokens, hidden); `w` (width, hidden); `bias` (width); `position` (tokens), each a row
/// of the tables.
///
/// # Errors
/// A buffer does not have its shape, or a launch fails.
#[expect(clippy::too_many_arguments, reason = "two ops in one")]
pub fn project<T: Float>(
    device: &Device,
    qkv: &Buffer<T>,
    x: &Buffer<T>,
    w: &Buffer<T>,
    bias: Option<&Buffer<T>>,
    position: &Buffer<i32>,
    rotary: &Rotary,
    heads: &Heads,
    [tokens, hidden]: [usize; 2],
) -> Result<()> {
    let gemm = Gemm::nt(tokens, heads.width(), hidden);
    match gemm::arch(device) {
        Arch::Sm90 if tokens > 0 && takes::<T>(heads, hidden) => {
            let plan = Plan::with_tile(&gemm, Tile::M128N256, device.sm_count());
            let (qkv, x, w, bias) = (qkv.cast(), x.cast(), w.cast(), bias.map(Buffer::cast));
            project_planned(device, &plan, &qkv, &x, &w, bias.as_ref(), position, rotary, heads, [tokens, hidden])
        }
        _ => {
            gemm::run_adding(device, &gemm, qkv, x, w, &Epilogue { bias, addend: None })?;
            apply(device, qkv, position, rotary, false, heads)
        }
    }
}

/// Whether there is a kernel of Hopper's own units for such heads.
fn takes<T: Float>(heads: &Heads, hidden: usize) -> bool {
    T::DTYPE == DType::Bf16 && [64, 128].contains(&heads.head_dim) && hidden.is_multiple_of(8)
}

/// [`project`] on Hopper's own units.
///
/// # Errors
/// As [`project`]; also if the plan's tile is not 128 x 256, hidden is no multiple of 8 or there is no kernel for the heads.
#[expect(clippy::too_many_arguments, reason = "as project")]
pub fn project_planned(
    device: &Device,
    plan: &Plan,
    qkv: &Buffer<bf16>,
    x: &Buffer<bf16>,
    w: &Buffer<bf16>,
    bias: Option<&Buffer<bf16>>,
    position: &Buffer<i32>,
    rotary: &Rotary,
    heads: &Heads,
    [tokens, hidden]: [usize; 2],
) -> Result<()> {
    let width = heads.width();
    expect_len("rope qkv", qkv, &[tokens, width])?;
    expect_len("rope x", x, &[tokens, hidden])?;
    expect_len("rope w", w, &[width, hidden])?;
    expect_len("rope position", position, &[tokens])?;
    bias.map_or(Ok(()), |bias| expect_len("rope bias", bias, &[width]))?;
    rotary.check_pairs(heads.head_dim)?;
    ensure!(plan.tile == Tile::M128N256, "rope: {plan:?}: the kernel has tiles of 128 x 256");
    let launch = match heads.head_dim {
        64 => fused::rope_project_hd64_bf16,
        128 => fused::rope_project_hd128_bf16,
        other => anyhow::bail!("rope: heads of {other}: expected 64 or 128"),
    };
    let [x_map, w_map] = sm90::operand_maps(device, plan.tile, &Gemm::nt(tokens, width, hidden), x, w)?;
    let qkv_map = sm90::panel_map(device, qkv, [tokens, width], width)?;
    let turned = (heads.heads + heads.kv_heads) * heads.head_dim;
    let [turned, tokens, width, hidden, stages] =
        [turned, tokens, width, hidden, plan.stages].map(|count| count as i32);
    let args = fused::RopeProjectBf16 {
        qkv_map: &qkv_map,
        x_map: &x_map,
        w_map: &w_map,
        bias: bias.unwrap_or(qkv),
        position,
        cos: &rotary.cos,
        sin: &rotary.sin,
        with_bias: i32::from(bias.is_some()),
        turned,
        tokens,
        width,
        hidden,
        stages,
    };
    let positions = rotary.cos.len() / (heads.head_dim / 2);
    // SAFETY: all lengths were checked above; the maps carry them; without a bias its place is not read; a host device checks
    // the positions.
    let work = || unsafe { launch(device, plan.launch(), args) };
    device.with_tables(&[Table::below("rope position", position, positions)], work)
}

/// Rotates the queries and keys of `qkv` in place by their positions, or back if `inverse` (the backward pass).
///
/// Pairs are `(d, d + head_dim / 2)`, as Hugging Face's `rotate_half` has them. Positions must be rows of the tables:
/// a host device checks them.
///
/// Shapes: `qkv` (tokens, heads + 2 * kv_heads, head_dim); `position` (tokens), each a row of the tables.
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn apply<T: Float>(
    device: &Device,
    qkv: &Buffer<T>,
    position: &Buffer<i32>,
    rotary: &Rotary,
    inverse: bool,
    heads: &Heads,
) -> Result<()> {
    let (tokens, Heads { heads, kv_heads, head_dim }) = (position.len(), *heads);
    rotary.check(head_dim)?;
    expect_len("rope qkv", qkv, &[tokens, heads + 2 * kv_heads, head_dim])?;
    let launch = chunk_launch("rope", tokens * (heads + kv_heads), head_dim / 2)?;
    let (inverse, half, Rotary { cos, sin }) = (i32::from(inverse), head_dim / 2, rotary);
    let (tokens, heads, kv_heads, head_dim) = (tokens as i32, heads as i32, kv_heads as i32, head_dim as i32);
    // SAFETY: all lengths were checked above; a host device checks the positions.
    let work = || unsafe {
        kernel::RopeApply { qkv, position, cos, sin, inverse, tokens, heads, kv_heads, head_dim }.launch(device, launch)
    };
    device.with_tables(&[Table::below("rope position", position, rotary.cos.len() / half)], work)
}
