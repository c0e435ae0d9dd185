//! Attention on the kernels that every GPU runs. [`super`] checks shapes and decides when they are taken.

use anyhow::Result;
use half::bf16;

use super::{Dims, Mask, Pass};
use crate::{
    device::{
        Buffer, DType, Device, Float, Launch,
        kernels::{attention_bwd as bwd_kernel, attention_fwd as fwd_kernel},
    },
    forest::TILE_TOKENS,
    ops::SharedMemory,
};

/// Threads of a CTA of the f32 kernels, one row each; half of them where shared memory has no room for their sums.
const ROW_THREADS: usize = 64;
/// Threads of a CTA of the bf16 kernels: four warps of 16 rows.
const TILE_THREADS: usize = 128;

/// Runs a forward pass whose lengths were checked.
///
/// # Errors
/// The launch fails.
pub(super) fn fwd<T: Float>(
    device: &Device,
    out: &Buffer<T>,
    lse: &Buffer<f32>,
    qkv: &Buffer<T>,
    mask: &Mask,
    scale: f32,
    dims: &Dims,
) -> Result<()> {
    let Dims { tokens, heads, kv_heads, head_dim, .. } = *dims;
    let kernel = match head_dim {
        32 => fwd_kernel::attention_fwd_hd32::<T>,
        64 => fwd_kernel::attention_fwd_hd64::<T>,
        96 => fwd_kernel::attention_fwd_hd96::<T>,
        128 => fwd_kernel::attention_fwd_hd128::<T>,
        _ => fwd_kernel::attention_fwd_hd256::<T>,
    };
    let (softcap, window) = dims.bounds()?;
    let args = fwd_kernel::AttentionFwd {
        out,
        lse,
        qkv,
        subtree_end: &mask.subtree_end,
        tile_bounds: &mask.tile_bounds,
        position: &mask.position,
        scale,
        softcap,
        window,
        tokens: tokens as i32,
        heads: heads as i32,
        kv_heads: kv_heads as i32,
    };
    // SAFETY: `attention::fwd` checked all lengths; a host device checks the tables.
    let work = || unsafe { kernel(device, dims.launch(device, T::DTYPE, Pass::Fwd), args) };
    device.with_tables(&mask.tables(tokens), work)
}

type Gradient<T> = unsafe fn(&Device, Launch, bwd_kernel::AttentionBwd<T>) -> Result<()>;

/// Runs a backward pass whose lengths were checked and whose `delta` is there: [`Pass::Dkdv`], then [`Pass::Dq`].
///
/// # Errors
/// A launch fails.
#[expect(clippy::too_many_arguments, reason = "as attention::bwd")]
pub(super) fn bwd<T: Float>(
    device: &Device,
    dqkv: &Buffer<T>,
    delta: &Buffer<f32>,
    dout: &Buffer<T>,
    lse: &Buffer<f32>,
    qkv: &Buffer<T>,
    mask: &Mask,
    scale: f32,
    dims: &Dims,
) -> Result<()> {
    let Dims { tokens, heads, kv_heads, head_dim, .. } = *dims;
    let [dkdv, dq]: [Gradient<T>; 2] = match head_dim {
        32 => [bwd_kernel::attention_bwd_dkdv_hd32, bwd_kernel::attention_bwd_dq_hd32],
        64 => [bwd_kernel::attention_bwd_dkdv_hd64, bwd_kernel::attention_bwd_dq_hd64],
        96 => [bwd_kernel::attention_bwd_dkdv_hd96, bwd_kernel::attention_bwd_dq_hd96],
        128 => [bwd_kernel::attention_bwd_dkdv_hd128, bwd_kernel::attention_bwd_dq_hd128],
        _ => [bwd_kernel::attention_bwd_dkdv_hd256, bwd_kernel::attention_bwd_dq_hd256],
    };
    let (softcap, window) = dims.bounds()?;
    let args = bwd_kernel::AttentionBwd {
        dqkv,
        dout,
        lse,
        delta,
        qkv,
        subtree_end: &mask.subtree_end,
        tile_bounds: &mask.tile_bounds,
        position: &mask.position,
        scale,
        softcap,
        window,
        tokens: tokens as i32,
        heads: heads as i32,
        kv_heads: kv_heads as i32,
    };
    let [by_key, by_query] = [Pass::Dkdv, Pass::Dq].map(|pass| dims.launch(device, T::DTYPE, pass));
    // SAFETY: `attention::bwd` checked all lengths; a host device checks the tables.
    let work = || unsafe {
        dkdv(device, by_key, args)?;
        dq(device, by_query, args)
    };
    device.with_tables(&mask.tables(tokens), work)
}

/// The kernel of a pass.
pub(super) fn shared_memory(device: &Device, dtype: DType, pass: Pass, head_dim: usize) -> SharedMemory {
    let name = if dtype == DType::Bf16 { "bf16" } else { "f32" };
    let (module, stem) = pass.names();
    let bytes = tile(device, dtype, pass, head_dim).smem_bytes;
    SharedMemory { module, kernel: format!("attention_{stem}_hd{head_dim}_{name}"), bytes }
}

impl Dims {
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
