//! Attention on Hopper's own units: which tile, how many slots, which tensor maps. [`super::attention`] decides when it is
//! taken.

use anyhow::{Result, ensure};
use half::bf16;

use super::{
    attention::Dims,
    gemm_sm90::{BARRIER_BYTES, MAX_SMEM_BYTES, MAX_STAGES, PANEL_BYTES, panel_map},
};
use crate::device::{
    Buffer, DType, Device, Float, Launch, Swizzle, TensorMap, TensorShape, kernels::attention_fwd_sm90 as fwd_kernel,
};

const GROUP_THREADS: usize = 128;
/// Room for the keys' `subtree_end` in a slot.
const ENDS_BYTES: usize = 1024;
/// What a resident CTA takes of an SM's shared memory beside its own.
const CTA_SMEM_BYTES: usize = 1024;

/// Queries that one CTA owns, by keys that it takes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// Two groups that compute, one CTA an SM.
    Q128K128,
    /// One group, two CTAs an SM: fills short sequences better.
    Q64K64,
}

impl Tile {
    /// All, the best for long sequences first.
    pub const ALL: [Self; 2] = [Self::Q128K128, Self::Q64K64];

    fn side(self) -> usize {
        match self {
            Self::Q128K128 => 128,
            Self::Q64K64 => 64,
        }
    }

    /// Groups that compute, 64 queries each.
    fn groups(self) -> usize {
        self.side() / 64
    }

    /// Threads of the groups that compute, and of the warp that fetches: of a whole group where registers change hands.
    fn threads(self) -> usize {
        match self {
            Self::Q128K128 => 3 * GROUP_THREADS,
            Self::Q64K64 => GROUP_THREADS + 32,
        }
    }

    /// Barriers and the queries, which the results replace.
    fn fixed_bytes(self) -> usize {
        BARRIER_BYTES + self.groups() * 2 * PANEL_BYTES
    }

    /// Keys, values and the keys' `subtree_end`.
    fn slot_bytes(self, head_dim: usize) -> usize {
        2 * self.side() * head_dim * size_of::<bf16>() + ENDS_BYTES
    }

    /// Slots that fit beside the CTAs that share an SM.
    fn max_stages(self, head_dim: usize) -> usize {
        let ctas = 2 / self.groups();
        let share = (MAX_SMEM_BYTES + CTA_SMEM_BYTES) / ctas - CTA_SMEM_BYTES;
        ((share - self.fixed_bytes()) / self.slot_bytes(head_dim)).min(MAX_STAGES)
    }
}

/// How a forward pass is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub tile: Tile,
    /// Slots of the ring between the warp that fetches and the groups that compute.
    pub stages: usize,
}

impl Plan {
    /// Large tiles, unless they would leave SMs without a CTA.
    pub fn choose(dims: &Dims, sm_count: usize) -> Self {
        let large = dims.tokens.div_ceil(Tile::Q128K128.side()) * dims.heads;
        Self::with_tile(dims, if large >= sm_count { Tile::Q128K128 } else { Tile::Q64K64 })
    }

    /// The plan for a given tile, with as many slots as fit.
    pub fn with_tile(dims: &Dims, tile: Tile) -> Self {
        Self { tile, stages: tile.max_stages(dims.head_dim) }
    }

    fn launch(&self, dims: &Dims) -> Launch {
        let grid = [dims.heads as u32, dims.tokens.div_ceil(self.tile.side()) as u32, 1];
        let smem_bytes = self.tile.fixed_bytes() + self.stages * self.tile.slot_bytes(dims.head_dim);
        Launch { grid, ..Launch::linear(1, self.tile.threads()) }.with_smem(smem_bytes)
    }
}

/// Whether there is such a kernel: bf16, heads of 64 or 128, buffers that start at multiples of 16 bytes.
pub fn takes<T: Float>(dims: &Dims, out: &Buffer<T>, qkv: &Buffer<T>, subtree_end: &Buffer<i32>) -> bool {
    let starts = [out.address(), qkv.address(), subtree_end.address()];
    let aligned = starts.iter().all(|start| start.is_multiple_of(16));
    T::DTYPE == DType::Bf16 && [64, 128].contains(&dims.head_dim) && aligned
}

/// Runs a forward pass whose lengths were checked, as planned.
///
/// # Errors
/// The plan does not fit shared memory, there is no kernel for the head size, or the launch fails.
#[expect(clippy::too_many_arguments, reason = "as attention::fwd")]
pub(super) fn fwd(
    device: &Device,
    plan: &Plan,
    out: &Buffer<bf16>,
    lse: &Buffer<f32>,
    qkv: &Buffer<bf16>,
    subtree_end: &Buffer<i32>,
    tile_bounds: &Buffer<i32>,
    position: &Buffer<i32>,
    scale: f32,
    dims: &Dims,
) -> Result<()> {
    let Dims { tokens, heads, kv_heads, head_dim, .. } = *dims;
    ensure!(takes(dims, out, qkv, subtree_end), "{dims:?}: expected heads of 64 or 128 at multiples of 16 bytes");
    let stages = plan.tile.max_stages(head_dim);
    ensure!((1..=stages).contains(&plan.stages), "{plan:?}: 1 to {stages} slots fit shared memory");
    let (softcap, window) = dims.bounds()?;
    let bounded = softcap > 0.0 || window > 0;
    let [columns, qkv_columns] = [heads * head_dim, (heads + 2 * kv_heads) * head_dim];
    let out_map = panel_map(device, out, [tokens, columns], columns)?;
    let qkv_map = panel_map(device, qkv, [tokens, qkv_columns], qkv_columns)?;
    let ends_map = ends_map(device, subtree_end, plan.tile.side())?;
    let launcher = match (head_dim, plan.tile, bounded) {
        (64, Tile::Q64K64, false) => fwd_kernel::attention_fwd_hd64_64x64_bf16,
        (64, Tile::Q64K64, true) => fwd_kernel::attention_fwd_hd64_64x64_bounded_bf16,
        (64, Tile::Q128K128, false) => fwd_kernel::attention_fwd_hd64_128x128_bf16,
        (64, Tile::Q128K128, true) => fwd_kernel::attention_fwd_hd64_128x128_bounded_bf16,
        (_, Tile::Q64K64, false) => fwd_kernel::attention_fwd_hd128_64x64_bf16,
        (_, Tile::Q64K64, true) => fwd_kernel::attention_fwd_hd128_64x64_bounded_bf16,
        (_, Tile::Q128K128, false) => fwd_kernel::attention_fwd_hd128_128x128_bf16,
        (_, Tile::Q128K128, true) => fwd_kernel::attention_fwd_hd128_128x128_bounded_bf16,
    };
    let [t, h, g, s] = [tokens, heads, kv_heads, plan.stages].map(|x| x as i32);
    let at = plan.launch(dims);
    // SAFETY: `attention::fwd` checked the lengths; the maps carry them.
    unsafe {
        launcher(
            device,
            at,
            &out_map,
            lse,
            &qkv_map,
            &ends_map,
            tile_bounds,
            position,
            scale,
            softcap,
            window,
            t,
            h,
            g,
            s,
        )
    }
}

/// The ends of one tile of keys; past the last token they read 0, which hides the key.
fn ends_map(device: &Device, subtree_end: &Buffer<i32>, keys: usize) -> Result<TensorMap> {
    let tokens = subtree_end.len();
    // A pitch of whole 16 bytes, though there is one row.
    let (dims, pitches) = (vec![tokens, 1], vec![tokens.next_multiple_of(4)]);
    device.tensor_map(subtree_end, &TensorShape { dims, pitches, tile: vec![keys, 1], swizzle: Swizzle::None })
}
