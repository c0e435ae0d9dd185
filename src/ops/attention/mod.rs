//! Attention over a packed forest: a token sees itself and what lies before it on the path from its tree's root.
//!
//! Here is what a call is and which kernels take it: those that every GPU runs, or those of Hopper's own units.

mod portable;
pub mod sm90;

use anyhow::{Result, ensure};
use half::bf16;

use crate::{
    device::{Arch, Buffer, DType, Device, Float, Launch, Table, kernels::attention_bwd as bwd_kernel},
    forest::TILE_TOKENS,
    ops::{
        self, SharedMemory, expect_len,
        rope::{self, Heads, Rotary},
    },
};
use sm90::Plan;

/// Sizes of one attention call. `heads` is a multiple of `kv_heads`; query head `h` reads key head
/// `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dims {
    /// Tokens of the pack.
    pub tokens: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys, and of values.
    pub kv_heads: usize,
    /// 32, 64, 96, 128 or 256.
    pub head_dim: usize,
    /// A token sees those before it that are less than so many positions away, itself counted.
    pub window: Option<usize>,
    /// Scores become `cap tanh(score / cap)` before the mask.
    pub softcap: Option<f32>,
}

/// Who sees whom: the tables of a [`Forest`](crate::forest::Forest) by the same names, on the device.
pub struct Mask {
    /// (tokens)
    pub subtree_end: Buffer<i32>,
    /// (tiles, 2)
    pub tile_bounds: Buffer<i32>,
    /// (tokens)
    pub position: Buffer<i32>,
    /// Keys that a query sees on average, for the choice of a tile.
    pub mean_keys: usize,
}

impl Mask {
    /// What kernels take addresses from.
    fn tables(&self, tokens: usize) -> [Table<'_>; 2] {
        [
            Table::below("attention subtree_end", &self.subtree_end, tokens + 1),
            Table::below("attention tile_bounds", &self.tile_bounds, tokens + 1),
        ]
    }
}

/// The kernels of an attention call: what a CTA owns, and what it walks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Queries, over the keys that they see.
    Fwd,
    /// Keys, over the queries that see them.
    Dkdv,
    /// As the forward pass.
    Dq,
}

impl Pass {
    /// Stem of the file of its portable kernels, and how they are called in it.
    pub(super) fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Fwd => ("attention_fwd", "fwd"),
            Self::Dkdv => ("attention_bwd", "bwd_dkdv"),
            Self::Dq => ("attention_bwd", "bwd_dq"),
        }
    }
}

/// `out = softmax(scale q kᵀ) v` under the mask; `lse` keeps the base-2 logarithm of each softmax's denominator for
/// [`bwd`].
///
/// Shapes: `out` (tokens, heads, head_dim); `lse` (heads, tokens); `qkv` (tokens, heads + 2 kv_heads, head_dim), query
/// heads first, then keys, then values.
///
/// # Errors
/// A buffer does not have its shape, there is no kernel for the head size, or the launch fails.
pub fn fwd<T: Float>(
    device: &Device,
    out: &Buffer<T>,
    lse: &Buffer<f32>,
    qkv: &Buffer<T>,
    mask: &Mask,
    scale: f32,
    dims: &Dims,
) -> Result<()> {
    dims.check_fwd(out, lse, qkv, mask)?;
    match device.arch() {
        Arch::Sm90 if sm90::takes(dims, &[out, qkv], &[lse], mask) => {
            let plan = Plan::choose(Pass::Fwd, dims, mask.mean_keys, device.sm_count());
            sm90::fwd(device, &plan, &out.cast(), lse, &qkv.cast(), mask, scale, dims)
        }
        _ => portable::fwd(device, out, lse, qkv, mask, scale, dims),
    }
}

/// [`fwd`] on Hopper's own units by a given plan.
///
/// # Errors
/// As [`fwd`]; also if the plan does not fit, the head size is neither 64 nor 128 or a buffer does not start at a multiple
/// of 16 bytes.
#[allow(clippy::too_many_arguments)]
pub fn fwd_planned(
    device: &Device,
    plan: &Plan,
    out: &Buffer<bf16>,
    lse: &Buffer<f32>,
    qkv: &Buffer<bf16>,
    mask: &Mask,
    scale: f32,
    dims: &Dims,
) -> Result<()> {
    dims.check_fwd(out, lse, qkv, mask)?;
    sm90::fwd(device, plan, out, lse, qkv, mask, scale, dims)
}

/// Gradients of [`fwd`]: writes all of `dqkv`. `delta` (heads, tokens) is scratch; the other shapes are those of
/// [`fwd`], `dqkv` like `qkv` and `dout` like `out`. With `rotary` queries and keys had been turned by their positions, and
/// their gradients are turned back.
///
/// # Errors
/// A buffer does not have its shape, there is no kernel for the head size, or a launch fails.
#[allow(clippy::too_many_arguments)]
pub fn bwd<T: Float>(
    device: &Device,
    dqkv: &Buffer<T>,
    delta: &Buffer<f32>,
    dout: &Buffer<T>,
    out: &Buffer<T>,
    lse: &Buffer<f32>,
    qkv: &Buffer<T>,
    mask: &Mask,
    rotary: Option<&Rotary>,
    scale: f32,
    dims: &Dims,
) -> Result<()> {
    dims.check_bwd(dqkv, delta, dout, out, lse, qkv, mask)?;
    self::delta(device, delta, dout, out, dims)?;
    let Dims { heads, kv_heads, head_dim, .. } = *dims;
    match device.arch() {
        Arch::Sm90 if sm90::takes(dims, &[dqkv, dout, qkv], &[lse, delta], mask) => {
            let [dqkv, dout, qkv] = [dqkv, dout, qkv].map(Buffer::cast);
            let plans = [Pass::Dkdv, Pass::Dq].map(|pass| Plan::choose(pass, dims, mask.mean_keys, device.sm_count()));
            sm90::bwd(device, &plans, &dqkv, delta, &dout, lse, &qkv, mask, rotary, scale, dims)
        }
        _ => {
            portable::bwd(device, dqkv, delta, dout, lse, qkv, mask, scale, dims)?;
            let Some(rotary) = rotary else { return Ok(()) };
            rope::apply(device, dqkv, &mask.position, rotary, true, &Heads { heads, kv_heads, head_dim })
        }
    }
}

/// [`bwd`] on Hopper's own units by given plans, of [`Pass::Dkdv`] and [`Pass::Dq`].
///
/// # Errors
/// As [`bwd`]; also if a plan does not fit, the head size is neither 64 nor 128 or a buffer does not start at a multiple
/// of 16 bytes.
#[allow(clippy::too_many_arguments)]
pub fn bwd_planned(
    device: &Device,
    plans: &[Plan; 2],
    dqkv: &Buffer<bf16>,
    delta: &Buffer<f32>,
    dout: &Buffer<bf16>,
    out: &Buffer<bf16>,
    lse: &Buffer<f32>,
    qkv: &Buffer<bf16>,
    mask: &Mask,
    rotary: Option<&Rotary>,
    scale: f32,
    dims: &Dims,
) -> Result<()> {
    dims.check_bwd(dqkv, delta, dout, out, lse, qkv, mask)?;
    self::delta(device, delta, dout, out, dims)?;
    sm90::bwd(device, plans, dqkv, delta, dout, lse, qkv, mask, rotary, scale, dims)
}

/// The kernels of [`fwd`] and, if it `trains`, of [`bwd`] for heads of a size that there are kernels for, whatever is planned.
pub fn shared_memory(device: &Device, dtype: DType, head_dim: usize, trains: bool) -> Vec<SharedMemory> {
    let all = [Pass::Fwd, Pass::Dkdv, Pass::Dq];
    let passes = if trains { &all[..] } else { &all[..1] };
    let needs = |&pass: &Pass| match device.arch() {
        Arch::Sm90 if sm90::takes_heads(dtype, head_dim) => sm90::shared_memory(pass, head_dim),
        _ => vec![portable::shared_memory(device, dtype, pass, head_dim)],
    };
    passes.iter().flat_map(needs).collect()
}

/// `delta = rowsum(dout * out)` of checked lengths.
fn delta<T: Float>(device: &Device, delta: &Buffer<f32>, dout: &Buffer<T>, out: &Buffer<T>, dims: &Dims) -> Result<()> {
    let Dims { tokens, heads, head_dim, .. } = *dims;
    let launch = Launch::linear((tokens * heads).div_ceil(DELTA_THREADS / DELTA_LANES), DELTA_THREADS);
    // SAFETY: `check_bwd` checked all lengths.
    unsafe {
        bwd_kernel::AttentionBwdDelta {
            delta,
            dout,
            out,
            tokens: tokens as i32,
            heads: heads as i32,
            head_dim: head_dim as i32,
        }
        .launch(device, launch)
    }
}

/// Threads of a CTA of the delta kernels, and how many share a row.
const DELTA_THREADS: usize = 128;
const DELTA_LANES: usize = 4;

impl Dims {
    fn qkv(&self) -> [usize; 3] {
        [self.tokens, self.heads + 2 * self.kv_heads, self.head_dim]
    }

    fn check(&self, mask: &Mask) -> Result<()> {
        let Self { tokens, heads, kv_heads, head_dim, window, softcap } = *self;
        ensure!(
            [32, 64, 96, 128, 256].contains(&head_dim),
            "attention: head_dim {head_dim}: expected 32, 64, 96, 128 or 256"
        );
        ensure!(
            kv_heads > 0 && heads > 0 && heads % kv_heads == 0,
            "attention: {heads} heads do not share {kv_heads} key heads evenly"
        );
        ensure!(
            window != Some(0),
            "attention: a window of 0 positions: a token always sees itself, expected 1 or more"
        );
        ops::softcap("attention", softcap)?;
        expect_len("attention position", &mask.position, &[tokens])?;
        expect_len("attention subtree_end", &mask.subtree_end, &[tokens])?;
        expect_len("attention tile_bounds", &mask.tile_bounds, &[tokens.div_ceil(TILE_TOKENS), 2])
    }

    fn check_fwd<T: Float>(&self, out: &Buffer<T>, lse: &Buffer<f32>, qkv: &Buffer<T>, mask: &Mask) -> Result<()> {
        self.check(mask)?;
        expect_len("attention out", out, &[self.tokens, self.heads, self.head_dim])?;
        expect_len("attention lse", lse, &[self.heads, self.tokens])?;
        expect_len("attention qkv", qkv, &self.qkv())
    }

    #[expect(clippy::too_many_arguments, reason = "the buffers of bwd")]
    fn check_bwd<T: Float>(
        &self,
        dqkv: &Buffer<T>,
        delta: &Buffer<f32>,
        dout: &Buffer<T>,
        out: &Buffer<T>,
        lse: &Buffer<f32>,
        qkv: &Buffer<T>,
        mask: &Mask,
    ) -> Result<()> {
        self.check_fwd(out, lse, qkv, mask)?;
        expect_len("attention dqkv", dqkv, &self.qkv())?;
        expect_len("attention dout", dout, &[self.tokens, self.heads, self.head_dim])?;
        expect_len("attention delta", delta, &[self.heads, self.tokens])
    }

    /// Soft cap and window as the kernels take them: 0 is none.
    pub(super) fn bounds(&self) -> Result<(f32, i32)> {
        let window = self.window.map_or(0, |window| i32::try_from(window).unwrap_or(i32::MAX));
        Ok((ops::softcap("attention", self.softcap)?, window))
    }
}
