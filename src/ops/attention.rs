//! Attention over a packed forest: a token sees itself and what lies before it on the path from its tree's root.

use anyhow::{Result, ensure};
use half::bf16;

use super::{
    SharedMemory,
    attention_sm90::{self, Plan},
    expect_len,
    rope::{self, Heads, Rotary},
};
use crate::{
    device::{
        Buffer, DType, Device, Float, Launch,
        kernels::{attention_bwd as bwd_kernel, attention_fwd as fwd_kernel},
    },
    forest::TILE_TOKENS,
};

/// Sizes of one attention call. `heads` is a multiple of `kv_heads`; query head `h` reads key head
/// `h / (heads / kv_heads)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dims {
    pub tokens: usize,
    pub heads: usize,
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
    if device.is_hopper() && attention_sm90::takes(dims, &[out, qkv], &[lse], mask) {
        let plan = Plan::choose(Pass::Fwd, dims, mask.mean_keys, device.sm_count());
        return attention_sm90::fwd(device, &plan, &out.cast(), lse, &qkv.cast(), mask, scale, dims);
    }
    let Dims { tokens, heads, kv_heads, head_dim, .. } = *dims;
    let kernel = match head_dim {
        32 => fwd_kernel::attention_fwd_hd32::<T>,
        64 => fwd_kernel::attention_fwd_hd64::<T>,
        96 => fwd_kernel::attention_fwd_hd96::<T>,
        128 => fwd_kernel::attention_fwd_hd128::<T>,
        _ => fwd_kernel::attention_fwd_hd256::<T>,
    };
    let launch = dims.launch(device, T::DTYPE, Pass::Fwd);
    let ((softcap, window), [t, h, g]) = (dims.bounds()?, [tokens as i32, heads as i32, kv_heads as i32]);
    let Mask { subtree_end, tile_bounds, position, .. } = mask;
    // SAFETY: all lengths were checked above.
    unsafe {
        kernel(device, launch, out, lse, qkv, subtree_end, tile_bounds, position, scale, softcap, window, t, h, g)
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
    attention_sm90::fwd(device, plan, out, lse, qkv, mask, scale, dims)
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
    if device.is_hopper() && attention_sm90::takes(dims, &[dqkv, dout, qkv], &[lse, delta], mask) {
        let [dqkv, dout, qkv] = [dqkv, dout, qkv].map(Buffer::cast);
        let plans = [Pass::Dkdv, Pass::Dq].map(|pass| Plan::choose(pass, dims, mask.mean_keys, device.sm_count()));
        return attention_sm90::bwd(device, &plans, &dqkv, delta, &dout, lse, &qkv, mask, rotary, scale, dims);
    }
    let Dims { tokens, heads, kv_heads, head_dim, .. } = *dims;
    let dkdv: Gradient<T> = match head_dim {
        32 => bwd_kernel::attention_bwd_dkdv_hd32::<T>,
        64 => bwd_kernel::attention_bwd_dkdv_hd64::<T>,
        96 => bwd_kernel::attention_bwd_dkdv_hd96::<T>,
        128 => bwd_kernel::attention_bwd_dkdv_hd128::<T>,
        _ => bwd_kernel::attention_bwd_dkdv_hd256::<T>,
    };
    let dq: Gradient<T> = match head_dim {
        32 => bwd_kernel::attention_bwd_dq_hd32::<T>,
        64 => bwd_kernel::attention_bwd_dq_hd64::<T>,
        96 => bwd_kernel::attention_bwd_dq_hd96::<T>,
        128 => bwd_kernel::attention_bwd_dq_hd128::<T>,
        _ => bwd_kernel::attention_bwd_dq_hd256::<T>,
    };
    let [by_key, by_query] = [Pass::Dkdv, Pass::Dq].map(|pass| dims.launch(device, T::DTYPE, pass));
    let (t, h, g) = (tokens as i32, heads as i32, kv_heads as i32);
    let ((cap, w), Mask { subtree_end: ends, tile_bounds: bounds, position: at, .. }) = (dims.bounds()?, mask);
    // SAFETY: all lengths were checked above.
    unsafe {
        dkdv(device, by_key, dqkv, dout, lse, delta, qkv, ends, bounds, at, scale, cap, w, t, h, g)?;
        dq(device, by_query, dqkv, dout, lse, delta, qkv, ends, bounds, at, scale, cap, w, t, h, g)?;
    }
    let Some(rotary) = rotary else { return Ok(()) };
    rope::apply(device, dqkv, &mask.position, rotary, true, &Heads { heads, kv_heads, head_dim })
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
    attention_sm90::bwd(device, plans, dqkv, delta, dout, lse, qkv, mask, rotary, scale, dims)
}

/// The kernels of [`fwd`] and, if it `trains`, of [`bwd`] for heads of a size that there are kernels for, whatever is planned.
pub fn shared_memory(device: &Device, dtype: DType, head_dim: usize, trains: bool) -> Vec<SharedMemory> {
    let all = [Pass::Fwd, Pass::Dkdv, Pass::Dq];
    let passes = if trains { &all[..] } else { &all[..1] };
    if device.is_hopper() && attention_sm90::takes_heads(dtype, head_dim) {
        return passes.iter().flat_map(|&pass| attention_sm90::shared_memory(pass, head_dim)).collect();
    }
    let name = if dtype == DType::Bf16 { "bf16" } else { "f32" };
    let needs = |&pass: &Pass| {
        let (module, stem) = pass.names();
        let bytes = tile(device, dtype, pass, head_dim).smem_bytes;
        SharedMemory { module, kernel: format!("attention_{stem}_hd{head_dim}_{name}"), bytes }
    };
    passes.iter().map(needs).collect()
}

/// `delta = rowsum(dout * out)` of checked lengths.
fn delta<T: Float>(device: &Device, delta: &Buffer<f32>, dout: &Buffer<T>, out: &Buffer<T>, dims: &Dims) -> Result<()> {
    let Dims { tokens, heads, head_dim, .. } = *dims;
    let launch = Launch::linear((tokens * heads).div_ceil(DELTA_THREADS / DELTA_LANES), DELTA_THREADS);
    // SAFETY: `check_bwd` checked all lengths.
    unsafe {
        bwd_kernel::attention_bwd_delta(device, launch, delta, dout, out, tokens as i32, heads as i32, head_dim as i32)
    }
}

/// The launchers of the two backward kernels take the same arguments.
type Gradient<T> = unsafe fn(
    &Device,
    Launch,
    &Buffer<T>,
    &Buffer<T>,
    &Buffer<f32>,
    &Buffer<f32>,
    &Buffer<T>,
    &Buffer<i32>,
    &Buffer<i32>,
    &Buffer<i32>,
    f32,
    f32,
    i32,
    i32,
    i32,
    i32,
) -> Result<()>;

/// Threads of a CTA of the f32 kernels, one row each; half of them where shared memory has no room for their sums.
const ROW_THREADS: usize = 64;
/// Threads of a CTA of the delta kernels, and how many share a row.
const DELTA_THREADS: usize = 128;
const DELTA_LANES: usize = 4;
/// Threads of a CTA of the bf16 kernels: four warps of 16 rows.
const TILE_THREADS: usize = 128;

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
        super::softcap("attention", softcap)?;
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
        Ok((super::softcap("attention", self.softcap)?, window))
    }

    /// One CTA per tile of tokens and per head it owns.
    fn launch(&self, device: &Device, dtype: DType, pass: Pass) -> Launch {
        let owners = if pass == Pass::Dkdv { self.kv_heads } else { self.heads };
        // In bf16 several CTAs share the columns of the largest heads: `kOwnColumns` in the kernels.
        let sharers = match (dtype, self.head_dim, pass) {
            (DType::Bf16, 256, Pass::Fwd) => 2,
            (DType::Bf16, 256, _) => 4,
            _ => 1,
        };
        let tile = tile(device, dtype, pass, self.head_dim);
        let grid = [self.tokens.div_ceil(tile.tokens) as u32, owners as u32, sharers];
        Launch { grid, ..Launch::linear(1, tile.threads) }.with_smem(tile.smem_bytes)
    }
}

/// What a CTA of the portable kernels owns and takes.
struct Tile {
    tokens: usize,
    threads: usize,
    smem_bytes: usize,
}

fn tile(device: &Device, dtype: DType, pass: Pass, head_dim: usize) -> Tile {
    if dtype == DType::Bf16 {
        return Tile { tokens: TILE_TOKENS, threads: TILE_THREADS, smem_bytes: tile_bytes(pass, head_dim) };
    }
    // Half as many rows where the accumulators of all do not fit; only the kernel of two gradients takes that many.
    let fits = pass != Pass::Dkdv || row_bytes(pass, head_dim, ROW_THREADS) <= device.max_smem_bytes();
    let rows = if fits { ROW_THREADS } else { ROW_THREADS / 2 };
    Tile { tokens: rows, threads: rows, smem_bytes: row_bytes(pass, head_dim, rows) }
}

/// f32: one padded row of accumulators per thread and gradient it owns.
fn row_bytes(pass: Pass, head_dim: usize, threads: usize) -> usize {
    let rows = if pass == Pass::Dkdv { 2 * threads } else { threads };
    rows * (head_dim + 1) * size_of::<f32>()
}

/// bf16: padded tiles of queries, keys and values; in the backward pass two tiles stay and two are walked, with a second
/// stage where it fits.
fn tile_bytes(pass: Pass, head_dim: usize) -> usize {
    let tile = TILE_TOKENS * (head_dim + 8) * size_of::<bf16>();
    let stages = if head_dim <= 96 { 2 } else { 1 };
    match pass {
        Pass::Fwd => 3 * tile,
        Pass::Dkdv => 2 * tile + stages * (2 * tile + 2 * TILE_TOKENS * size_of::<f32>()),
        Pass::Dq => (2 + 2 * stages) * tile,
    }
}
