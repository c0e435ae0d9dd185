//! Matrix products of bf16 on Hopper's own units: which tile, how many slots, which tensor maps. [`super::gemm`] decides
//! when they are taken.

use anyhow::{Result, bail, ensure};
use half::bf16;

use super::gemm::{Extras, Gemm, Order};
use crate::device::{Buffer, DType, Device, Float, Launch, TensorMap, TensorShape, kernels::gemm_sm90 as kernel};

/// Two multiplying groups and one that fetches.
const THREADS: usize = 384;
const CLUSTER_CTAS: usize = 2;
/// Terms of a sum that one slot of the ring holds.
const BLOCK_K: usize = 64;
/// Rows of 128 bytes in a panel of a swizzled copy.
const PANEL_ROWS: usize = 64;
pub(super) const PANEL_BYTES: usize = PANEL_ROWS * 128;
/// Barriers and notes at the head of shared memory.
pub(super) const BARRIER_BYTES: usize = 1024;
/// Barriers, and two panels a group through which results leave.
const FIXED_SMEM_BYTES: usize = BARRIER_BYTES + 4 * PANEL_BYTES;
/// Shared memory of a CTA that has an SM to itself.
pub(super) const MAX_SMEM_BYTES: usize = 232_448;
pub(super) const MAX_STAGES: usize = 8;

/// The tile of D that one CTA computes at a time, rows by columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    M128N256,
    M256N128,
    M128N192,
    M128N128,
}

impl Tile {
    /// All, the best for large products first.
    pub const ALL: [Self; 4] = [Self::M128N256, Self::M256N128, Self::M128N192, Self::M128N128];

    /// Rows and columns.
    pub fn sides(self) -> [usize; 2] {
        match self {
            Self::M128N256 => [128, 256],
            Self::M256N128 => [256, 128],
            Self::M128N192 => [128, 192],
            Self::M128N128 => [128, 128],
        }
    }

    /// Bytes of one slot: both operands' block of k.
    fn slot_bytes(self) -> usize {
        let [rows, columns] = self.sides();
        (rows + columns) * BLOCK_K * size_of::<bf16>()
    }

    /// Slots that fit shared memory.
    fn max_stages(self) -> usize {
        ((MAX_SMEM_BYTES - FIXED_SMEM_BYTES) / self.slot_bytes()).min(MAX_STAGES)
    }

    /// Clocks of one tile with `blocks` blocks of k: the slower of the tensor cores (4096 FLOP a clock) and the L2 cache
    /// (6150 bytes a clock for all of 132 SMs, as DeepGEMM's model has it; half of B comes from the other CTA), then the
    /// epilogue, 2000 clocks for 128 x 256. A model, not a measurement.
    fn clocks(self, blocks: usize) -> usize {
        let [rows, columns] = self.sides();
        let multiply = 2 * rows * columns * BLOCK_K / 4096;
        let fetch = (rows + columns / CLUSTER_CTAS) * BLOCK_K * size_of::<bf16>() * 132 / 6150;
        blocks * multiply.max(fetch) + 2000 * rows * columns / (128 * 256)
    }
}

/// How a product is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub tile: Tile,
    /// Slots of the ring between the thread that fetches and the groups that multiply.
    pub stages: usize,
    /// Pairs of CTAs in the grid.
    pub clusters: usize,
}

impl Plan {
    /// The tile with the fewest clocks: whole waves of clusters times the clocks of a tile. Large products take
    /// 128 x 256, which moves the fewest bytes per FLOP; a weight's gradient that would leave half of the last wave idle
    /// takes a smaller one.
    pub fn choose(gemm: &Gemm, sm_count: usize) -> Self {
        let clusters = (sm_count / CLUSTER_CTAS).max(1);
        let tile = Tile::ALL.into_iter().min_by_key(|tile| {
            let waves = pairs(gemm, *tile).div_ceil(clusters);
            waves * tile.clocks(gemm.k.div_ceil(BLOCK_K))
        });
        Self::with_tile(gemm, tile.expect("there are tiles"), sm_count)
    }

    /// The plan for a given tile, with as many slots as fit.
    pub fn with_tile(gemm: &Gemm, tile: Tile, sm_count: usize) -> Self {
        let clusters = (sm_count / CLUSTER_CTAS).clamp(1, pairs(gemm, tile).max(1));
        Self { tile, stages: tile.max_stages(), clusters }
    }
}

impl Plan {
    /// Dynamic shared memory of a CTA.
    pub fn smem_bytes(&self) -> usize {
        FIXED_SMEM_BYTES + self.stages * self.tile.slot_bytes()
    }

    pub(super) fn launch(&self) -> Launch {
        Launch::linear(self.clusters * CLUSTER_CTAS, THREADS).with_smem(self.smem_bytes())
    }
}

/// Pairs of tiles that D has.
fn pairs(gemm: &Gemm, tile: Tile) -> usize {
    let [rows, columns] = tile.sides();
    gemm.m.div_ceil(CLUSTER_CTAS * rows) * gemm.n.div_ceil(columns)
}

/// Whether these kernels can write such a D: it starts at a multiple of 16 bytes and so does every row, and it holds the whole
/// 16 bytes with which bulk stores end the last one; what is added to bf16 results comes in pairs.
pub fn takes<T: Float, O: Float>(gemm: &Gemm, d: &Buffer<O>, extras: &Extras<T>) -> bool {
    let row_bytes = gemm.ldd * size_of::<O>();
    let aligned = row_bytes.is_multiple_of(16) && d.address().is_multiple_of(16);
    let written = gemm.n.next_multiple_of(16 / size_of::<O>());
    let held = gemm.m.saturating_sub(1) * gemm.ldd + written <= d.len();
    let added = [extras.bias, extras.addend].into_iter().flatten();
    let paired = added.clone().all(|x| x.address().is_multiple_of(4)) && gemm.n.is_multiple_of(2);
    let adds = gemm.accumulate || added.count() > 0;
    T::DTYPE == DType::Bf16 && aligned && held && (O::DTYPE == DType::F32 || !adds || paired)
}

/// Runs a product whose lengths were checked, as planned.
///
/// # Errors
/// The plan does not fit shared memory, D cannot be written in bulk, or the launch fails.
pub(super) fn run<O: Float>(
    device: &Device,
    plan: &Plan,
    gemm: &Gemm,
    d: &Buffer<O>,
    a: &Buffer<bf16>,
    b: &Buffer<bf16>,
    extras: &Extras<bf16>,
) -> Result<()> {
    let stages = plan.tile.max_stages();
    ensure!((1..=stages).contains(&plan.stages), "{plan:?}: 1 to {stages} slots fit shared memory");
    ensure!(takes(gemm, d, extras), "{gemm:?}: D cannot be written in bulk");
    let [a_map, b_map] = operand_maps(device, plan.tile, gemm, a, b)?;
    let d_map = panel_map(device, d, [gemm.m, gemm.n], gemm.ldd)?;
    let at = plan.launch();
    let sizes = Sizes { m: gemm.m as i32, n: gemm.n as i32, k: gemm.k as i32, stages: plan.stages as i32 };
    match O::DTYPE {
        DType::F32 => {
            // SAFETY: `gemm::run` checked the lengths; the maps carry them.
            unsafe { launch_wide(device, at, plan.tile, gemm, [&d_map, &a_map, &b_map], sizes) }
        }
        DType::Bf16 => {
            let d = d.cast::<bf16>();
            let extras = if gemm.accumulate { Extras { addend: Some(&d), ..*extras } } else { *extras };
            // SAFETY: as above; `gemm::run` checked the extras too.
            unsafe { launch_bf16(device, at, plan.tile, gemm, [&d_map, &a_map, &b_map], &d, &extras, sizes) }
        }
        other => bail!("{gemm:?}: no {other:?} results"),
    }
}

/// Boxes of one panel of a matrix (rows, columns): 64 rows of 128 bytes.
pub(super) fn panel_map<O: Float>(
    device: &Device,
    d: &Buffer<O>,
    [rows, columns]: [usize; 2],
    pitch: usize,
) -> Result<TensorMap> {
    device.tensor_map(d, &TensorShape::matrix(rows, columns, pitch, [PANEL_ROWS, 128 / size_of::<O>()]))
}

/// Boxes of one slot: an operand along k comes in one (of B half), across k in panels of 64 columns.
pub(super) fn operand_maps(
    device: &Device,
    tile: Tile,
    gemm: &Gemm,
    a: &Buffer<bf16>,
    b: &Buffer<bf16>,
) -> Result<[TensorMap; 2]> {
    let [rows, columns] = tile.sides();
    let Gemm { m, n, k, lda, ldb, .. } = *gemm;
    let a_shape = match gemm.order {
        Order::Nt | Order::Nn => TensorShape::matrix(m, k, lda, [rows, BLOCK_K]),
        Order::Tn => TensorShape::matrix(k, m, lda, [BLOCK_K, PANEL_ROWS]),
    };
    let b_shape = match gemm.order {
        Order::Nt => TensorShape::matrix(n, k, ldb, [columns / CLUSTER_CTAS, BLOCK_K]),
        Order::Nn | Order::Tn => TensorShape::matrix(k, n, ldb, [BLOCK_K / CLUSTER_CTAS, PANEL_ROWS]),
    };
    Ok([device.tensor_map(a, &a_shape)?, device.tensor_map(b, &b_shape)?])
}

#[derive(Clone, Copy)]
struct Sizes {
    m: i32,
    n: i32,
    k: i32,
    stages: i32,
}

/// # Safety
/// The maps describe D, A and B of this product.
unsafe fn launch_wide(
    device: &Device,
    at: Launch,
    tile: Tile,
    gemm: &Gemm,
    [d, a, b]: [&TensorMap; 3],
    Sizes { m, n, k, stages }: Sizes,
) -> Result<()> {
    use Order::{Nn, Nt, Tn};
    use Tile::{M128N128, M128N192, M128N256, M256N128};
    let launcher = match (gemm.order, tile) {
        (Nt, M128N256) => kernel::gemm_nt_128x256_wide_bf16,
        (Nt, M256N128) => kernel::gemm_nt_256x128_wide_bf16,
        (Nt, M128N192) => kernel::gemm_nt_128x192_wide_bf16,
        (Nt, M128N128) => kernel::gemm_nt_128x128_wide_bf16,
        (Nn, M128N256) => kernel::gemm_nn_128x256_wide_bf16,
        (Nn, M256N128) => kernel::gemm_nn_256x128_wide_bf16,
        (Nn, M128N192) => kernel::gemm_nn_128x192_wide_bf16,
        (Nn, M128N128) => kernel::gemm_nn_128x128_wide_bf16,
        (Tn, M128N256) => kernel::gemm_tn_128x256_wide_bf16,
        (Tn, M256N128) => kernel::gemm_tn_256x128_wide_bf16,
        (Tn, M128N192) => kernel::gemm_tn_128x192_wide_bf16,
        (Tn, M128N128) => kernel::gemm_tn_128x128_wide_bf16,
    };
    // SAFETY: handed on; the caller keeps the contract.
    unsafe { launcher(device, at, d, a, b, i32::from(gemm.accumulate), m, n, k, stages) }
}

/// # Safety
/// The maps describe D, A and B of this product; the extras are as long as D says.
#[expect(clippy::too_many_arguments, reason = "a kernel's own list")]
unsafe fn launch_bf16(
    device: &Device,
    at: Launch,
    tile: Tile,
    gemm: &Gemm,
    [d, a, b]: [&TensorMap; 3],
    unused: &Buffer<bf16>,
    extras: &Extras<bf16>,
    Sizes { m, n, k, stages }: Sizes,
) -> Result<()> {
    use Order::{Nn, Nt, Tn};
    use Tile::{M128N128, M128N192, M128N256, M256N128};
    let launcher = match (gemm.order, tile) {
        (Nt, M128N256) => kernel::gemm_nt_128x256_bf16,
        (Nt, M256N128) => kernel::gemm_nt_256x128_bf16,
        (Nt, M128N192) => kernel::gemm_nt_128x192_bf16,
        (Nt, M128N128) => kernel::gemm_nt_128x128_bf16,
        (Nn, M128N256) => kernel::gemm_nn_128x256_bf16,
        (Nn, M256N128) => kernel::gemm_nn_256x128_bf16,
        (Nn, M128N192) => kernel::gemm_nn_128x192_bf16,
        (Nn, M128N128) => kernel::gemm_nn_128x128_bf16,
        (Tn, M128N256) => kernel::gemm_tn_128x256_bf16,
        (Tn, M256N128) => kernel::gemm_tn_256x128_bf16,
        (Tn, M128N192) => kernel::gemm_tn_128x192_bf16,
        (Tn, M128N128) => kernel::gemm_tn_128x128_bf16,
    };
    let (bias, addend) = (extras.bias.unwrap_or(unused), extras.addend.unwrap_or(unused));
    let [with_bias, with_addend] = [extras.bias, extras.addend].map(|x| i32::from(x.is_some()));
    let pitch = gemm.ldd as i32;
    // SAFETY: handed on; the caller keeps the contract.
    unsafe { launcher(device, at, d, a, b, addend, bias, pitch, with_addend, with_bias, m, n, k, stages) }
}
