//! Matrix products of bf16 on Hopper's own units: which tile, how many slots, which tensor maps. [`super`] decides when
//! they are taken.

use anyhow::{Result, bail, ensure};
use half::bf16;

use super::{Epilogue, Gemm, Narrow, Order};
use crate::{
    device::{Buffer, DType, Device, Float, Launch, TensorMap, TensorShape, kernels::gemm_sm90 as kernel},
    ops::{CHUNK, SharedMemory},
};

/// Two multiplying groups and one that fetches.
const THREADS: usize = 384;
const CLUSTER_CTAS: usize = 2;
/// Terms of a sum that one slot of the ring holds.
const BLOCK_K: usize = 64;
/// Rows of 128 bytes in a panel of a swizzled copy.
const PANEL_ROWS: usize = 64;
pub(in crate::ops) const PANEL_BYTES: usize = PANEL_ROWS * 128;
/// Barriers and notes at the head of shared memory.
pub(in crate::ops) const BARRIER_BYTES: usize = 1024;
/// Barriers, and two panels a group through which results leave.
const FIXED_SMEM_BYTES: usize = BARRIER_BYTES + 4 * PANEL_BYTES;
/// Parts of a sum at most.
const SPLITS: usize = 16;
/// Threads of a CTA that adds parts.
const ADD_THREADS: usize = 256;
/// Shared memory of a CTA that has an SM to itself.
pub(in crate::ops) const MAX_SMEM_BYTES: usize = 232_448;
pub(in crate::ops) const MAX_STAGES: usize = 8;

/// The tile of D that one CTA computes at a time, rows by columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 128 rows, 256 columns.
    M128N256,
    /// 256 rows, 128 columns.
    M256N128,
    /// 128 rows, 192 columns.
    M128N192,
    /// 128 rows, 128 columns.
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

    fn smem_bytes(self, stages: usize) -> usize {
        FIXED_SMEM_BYTES + stages * self.slot_bytes()
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

    /// Clocks of one tile of f32 sums: what an H200 took for a block of k in weights' gradients while all of it was busy, at
    /// 1900 MHz that its power did not allow it (`benches/results/h200.md`; 256 x 128 was never chosen there), then an
    /// epilogue of four bytes an element.
    fn wide_clocks(self, blocks: usize) -> usize {
        let block = match self {
            Self::M128N256 | Self::M256N128 => 1400,
            Self::M128N192 => 1050,
            Self::M128N128 => 785,
        };
        let [rows, columns] = self.sides();
        blocks * block + 4000 * rows * columns / (128 * 256)
    }
}

/// How a product is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Of D.
    pub tile: Tile,
    /// Slots of the ring between the thread that fetches and the groups that multiply.
    pub stages: usize,
    /// Pairs of CTAs in the grid.
    pub clusters: usize,
    /// Pairs of tiles that one cluster sums alone; all of them if nothing is split.
    pub whole: usize,
    /// Parts along k of the sums of all other tiles.
    pub splits: usize,
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
        let pairs = pairs(gemm, tile);
        let clusters = (sm_count / CLUSTER_CTAS).clamp(1, pairs.max(1));
        Self { tile, stages: tile.max_stages(), clusters, whole: pairs, splits: 1 }
    }

    /// The plan with the fewest clocks for an f32 gradient of a weight, of whose sums some may be split along k if the parts
    /// fit `workspace` elements: the tiles that are left when whole waves are done, which would leave most of the GPU idle
    /// for as long as a tile takes.
    pub fn choose_split(gemm: &Gemm, sm_count: usize, workspace: usize) -> Self {
        let clusters = (sm_count / CLUSTER_CTAS).max(1);
        let split = |tile| {
            let plain = Self::with_tile(gemm, tile, sm_count);
            let whole = plain.whole / clusters * clusters;
            let two_waves = (2 * clusters).checked_div(plain.whole - whole).unwrap_or(1);
            let most = gemm.k.div_ceil(BLOCK_K).min(SPLITS).min(two_waves);
            let splits = (2..=most).map(move |splits| Self { clusters, whole, splits, ..plain });
            std::iter::once(plain).chain(splits)
        };
        let plans = Tile::ALL.into_iter().flat_map(split).filter(|plan| plan.workspace(gemm) <= workspace);
        let best = plans.min_by_key(|plan| plan.wide_clocks(gemm, clusters));
        // The model is no better than this, and what is not split was measured.
        let plain = Self::choose(gemm, sm_count);
        let gains = |plan: &Self| 20 * plan.wide_clocks(gemm, clusters) < 19 * plain.wide_clocks(gemm, clusters);
        best.filter(gains).unwrap_or(plain)
    }

    /// Elements of the workspace in which parts of sums wait to be added.
    pub fn workspace(&self, gemm: &Gemm) -> usize {
        let [rows, columns] = self.tile.sides();
        if self.splits == 1 { 0 } else { self.slices(gemm) * CLUSTER_CTAS * rows * columns }
    }

    /// Pairs of tiles in the workspace.
    fn slices(&self, gemm: &Gemm) -> usize {
        (pairs(gemm, self.tile) - self.whole) * self.splits
    }

    /// Clocks of the whole product: whole waves of tiles, then the parts, then the kernel that adds these: 4000 clocks to start
    /// it, and every part read and D read and written at 2000 bytes a clock. A model, not a measurement.
    fn wide_clocks(&self, gemm: &Gemm, clusters: usize) -> usize {
        let blocks = gemm.k.div_ceil(BLOCK_K);
        let whole = self.whole.div_ceil(clusters) * self.tile.wide_clocks(blocks);
        if self.splits == 1 {
            return whole;
        }
        let [rows, columns] = self.tile.sides();
        let parts = self.slices(gemm).div_ceil(clusters) * self.tile.wide_clocks(blocks.div_ceil(self.splits));
        let sums = (self.slices(gemm) / self.splits) * CLUSTER_CTAS * rows * columns * size_of::<f32>();
        whole + parts + 4000 + (self.splits + 2) * sums / 2000
    }

    /// Dynamic shared memory of a CTA.
    pub fn smem_bytes(&self) -> usize {
        self.tile.smem_bytes(self.stages)
    }

    pub(in crate::ops) fn launch(&self) -> Launch {
        Launch::linear(self.clusters * CLUSTER_CTAS, THREADS).with_smem(self.smem_bytes())
    }

    /// Refuses splits that the kernels cannot make.
    fn check_split(&self, gemm: &Gemm, splits: bool, workspace: Option<&Buffer<f32>>) -> Result<()> {
        let pairs = pairs(gemm, self.tile);
        if self.splits == 1 {
            ensure!(self.whole == pairs, "{self:?}: {pairs} pairs of tiles and no split");
            return Ok(());
        }
        ensure!(gemm.order == Order::Tn && splits, "{gemm:?}: only gradients of weights are split");
        let blocks = gemm.k.div_ceil(BLOCK_K);
        let fits = self.whole < pairs && (2..=blocks).contains(&self.splits);
        ensure!(fits, "{self:?}: of {pairs} pairs of tiles and {blocks} blocks of k");
        let (needs, has) = (self.workspace(gemm), workspace.map_or(0, Buffer::len));
        ensure!(needs <= has, "{self:?}: a workspace of {needs} elements, found {has}");
        Ok(())
    }
}

/// The kernels whose main loop is `lib/product_pipeline.cuh`'s, each with its largest tile.
pub(super) fn shared_memory() -> Vec<SharedMemory> {
    let bytes = Tile::ALL.map(|tile| tile.smem_bytes(tile.max_stages())).into_iter().max().unwrap_or_default();
    let kernels = [
        ("gemm_sm90", "gemm_bf16"),
        ("head_sm90", "head_project_bf16"),
        ("rope_sm90", "rope_project_bf16"),
        ("swiglu_sm90", "swiglu_project_bf16"),
    ];
    kernels.map(|(module, kernel)| SharedMemory { module, kernel: kernel.into(), bytes }).into()
}

/// Pairs of tiles that D has.
fn pairs(gemm: &Gemm, tile: Tile) -> usize {
    let [rows, columns] = tile.sides();
    gemm.m.div_ceil(CLUSTER_CTAS * rows) * gemm.n.div_ceil(columns)
}

/// Whether these kernels can write such a D: it starts at a multiple of 16 bytes and so does every row, and it holds the whole
/// 16 bytes with which bulk stores end the last one; what is added to bf16 results comes in pairs.
pub fn takes<T: Float, O: Float>(gemm: &Gemm, d: &Buffer<O>, extras: &Epilogue<T>) -> bool {
    let row_bytes = gemm.ldd * size_of::<O>();
    let aligned = row_bytes.is_multiple_of(16) && d.address().is_multiple_of(16);
    let written = gemm.n.next_multiple_of(16 / size_of::<O>());
    let held = gemm.m.saturating_sub(1) * gemm.ldd + written <= d.len();
    let added = [extras.bias, extras.addend].into_iter().flatten();
    let paired = added.clone().all(|x| x.address().is_multiple_of(4)) && gemm.n.is_multiple_of(2);
    let adds = gemm.accumulate || added.count() > 0;
    T::DTYPE == DType::Bf16 && aligned && held && (O::DTYPE == DType::F32 || !adds || paired)
}

/// Runs a product whose lengths were checked, as planned; `workspace` is for plans that split sums.
///
/// # Errors
/// The plan does not fit shared memory or the workspace, D cannot be written in bulk, or the launch fails.
#[expect(clippy::too_many_arguments, reason = "a product and where its parts go")]
pub(super) fn run<O: Float>(
    device: &Device,
    plan: &Plan,
    gemm: &Gemm,
    d: &Buffer<O>,
    a: &Buffer<bf16>,
    b: &Buffer<bf16>,
    extras: &Epilogue<bf16>,
    workspace: Option<&Buffer<f32>>,
) -> Result<()> {
    let stages = plan.tile.max_stages();
    ensure!((1..=stages).contains(&plan.stages), "{plan:?}: 1 to {stages} slots fit shared memory");
    ensure!(takes(gemm, d, extras), "{gemm:?}: D cannot be written in bulk");
    plan.check_split(gemm, O::DTYPE == DType::F32, workspace)?;
    let [a_map, b_map] = operand_maps(device, plan.tile, gemm, a, b)?;
    let d_map = panel_map(device, d, [gemm.m, gemm.n], gemm.ldd)?;
    let at = plan.launch();
    let sizes = Sizes { m: gemm.m as i32, n: gemm.n as i32, k: gemm.k as i32, stages: plan.stages as i32 };
    match O::DTYPE {
        DType::F32 => {
            let maps = [&d_map, &a_map, &b_map];
            let d = d.cast::<f32>();
            // SAFETY: `gemm::run` checked the lengths; the maps carry them.
            match gemm.order {
                Order::Tn => unsafe { launch_split(device, plan, gemm, &d, maps, sizes, workspace.unwrap_or(&d)) },
                _ => unsafe { launch_wide(device, at, plan.tile, gemm, maps, sizes) },
            }
        }
        DType::Bf16 => {
            let d = d.cast::<bf16>();
            let extras = if gemm.accumulate { Epilogue { addend: Some(&d), ..*extras } } else { *extras };
            // SAFETY: as above; `gemm::run` checked the extras too.
            unsafe { launch_bf16(device, at, plan.tile, gemm, [&d_map, &a_map, &b_map], &d, &extras, sizes) }
        }
        other => bail!("{gemm:?}: no {other:?} results"),
    }
}

/// Runs the product of a gradient that is added up in bf16.
///
/// # Errors
/// As [`run`].
pub(super) fn run_narrow(
    device: &Device,
    plan: &Plan,
    gemm: &Gemm,
    narrow: &Narrow,
    a: &Buffer<bf16>,
    b: &Buffer<bf16>,
    workspace: Option<&Buffer<f32>>,
) -> Result<()> {
    let (stages, d) = (plan.tile.max_stages(), &narrow.buffer);
    ensure!((1..=stages).contains(&plan.stages), "{plan:?}: 1 to {stages} slots fit shared memory");
    ensure!(takes(gemm, d, &Epilogue::<bf16>::NONE), "{gemm:?}: D cannot be written in bulk");
    plan.check_split(gemm, true, workspace)?;
    let [a_map, b_map] = &operand_maps(device, plan.tile, gemm, a, b)?;
    let d_map = &panel_map(device, d, [gemm.m, gemm.n], gemm.ldd)?;
    let [rows, columns] = plan.tile.sides();
    let slices_map = &slices_map(device, plan, gemm, workspace, d_map)?;
    let launch = match plan.tile {
        Tile::M128N256 => kernel::gemm_tn_128x256_narrow_bf16,
        Tile::M256N128 => kernel::gemm_tn_256x128_narrow_bf16,
        Tile::M128N192 => kernel::gemm_tn_128x192_narrow_bf16,
        Tile::M128N128 => kernel::gemm_tn_128x128_narrow_bf16,
    };
    let [m, n, k, stages, whole, splits] =
        [gemm.m, gemm.n, gemm.k, plan.stages, plan.whole, plan.splits].map(|x| x as i32);
    let [ldd, tile_m, tile_n] = [gemm.ldd, rows, columns].map(|x| x as i32);
    let (accumulate, first) = (i32::from(gemm.accumulate), narrow.first as i64);
    let (seed, number, part) = (narrow.draw.seed, narrow.draw.number, narrow.part);
    let args = kernel::GemmTnNarrowBf16 {
        d_map,
        slices_map,
        a_map,
        b_map,
        d,
        accumulate,
        m,
        n,
        k,
        stages,
        whole,
        splits,
        ldd,
        seed,
        number,
        part,
        first,
    };
    // SAFETY: `gemm::run_narrow` checked the lengths; the maps carry them.
    unsafe { launch(device, plan.launch(), args)? };
    let (2.., Some(slices)) = (plan.splits, workspace) else { return Ok(()) };
    let at = Launch::linear(plan.workspace(gemm) / plan.splits / (ADD_THREADS * CHUNK), ADD_THREADS);
    // SAFETY: as above; one thread for every chunk of the tiles that are split.
    unsafe {
        kernel::GemmAddSlicesNarrow {
            d,
            slices,
            accumulate,
            m,
            n,
            ldd,
            tile_m,
            tile_n,
            whole,
            splits,
            seed,
            number,
            part,
            first,
        }
        .launch(device, at)
    }
}

/// Where the parts of split sums go; without any the map of D stands in, which nothing is then written by.
fn slices_map(
    device: &Device,
    plan: &Plan,
    gemm: &Gemm,
    workspace: Option<&Buffer<f32>>,
    d_map: &TensorMap,
) -> Result<TensorMap> {
    let [rows, columns] = plan.tile.sides();
    match (plan.splits, workspace) {
        (2.., Some(workspace)) => {
            panel_map(device, workspace, [plan.slices(gemm) * CLUSTER_CTAS * rows, columns], columns)
        }
        _ => Ok(*d_map),
    }
}

/// Boxes of one panel of a matrix (rows, columns): 64 rows of 128 bytes.
pub(in crate::ops) fn panel_map<O: Float>(
    device: &Device,
    d: &Buffer<O>,
    [rows, columns]: [usize; 2],
    pitch: usize,
) -> Result<TensorMap> {
    device.tensor_map(d, &TensorShape::matrix(rows, columns, pitch, [PANEL_ROWS, 128 / size_of::<O>()]))
}

/// Boxes of one slot: an operand along k comes in one (of B half), across k in panels of 64 columns.
pub(in crate::ops) fn operand_maps(
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
    [d_map, a_map, b_map]: [&TensorMap; 3],
    Sizes { m, n, k, stages }: Sizes,
) -> Result<()> {
    use Order::{Nn, Nt, Tn};
    use Tile::{M128N128, M128N192, M128N256, M256N128};
    let launch = match (gemm.order, tile) {
        (Tn, _) => bail!("{gemm:?}: has kernels of its own"),
        (Nt, M128N256) => kernel::gemm_nt_128x256_wide_bf16,
        (Nt, M256N128) => kernel::gemm_nt_256x128_wide_bf16,
        (Nt, M128N192) => kernel::gemm_nt_128x192_wide_bf16,
        (Nt, M128N128) => kernel::gemm_nt_128x128_wide_bf16,
        (Nn, M128N256) => kernel::gemm_nn_128x256_wide_bf16,
        (Nn, M256N128) => kernel::gemm_nn_256x128_wide_bf16,
        (Nn, M128N192) => kernel::gemm_nn_128x192_wide_bf16,
        (Nn, M128N128) => kernel::gemm_nn_128x128_wide_bf16,
    };
    let accumulate = i32::from(gemm.accumulate);
    // SAFETY: handed on; the caller keeps the contract.
    unsafe { launch(device, at, kernel::GemmWideBf16 { d_map, a_map, b_map, accumulate, m, n, k, stages }) }
}

/// The gradient of a weight, of whose sums some may be split.
///
/// # Safety
/// The maps describe D, A and B of this product; the workspace is as long as the plan says.
unsafe fn launch_split(
    device: &Device,
    plan: &Plan,
    gemm: &Gemm,
    d: &Buffer<f32>,
    [d_map, a_map, b_map]: [&TensorMap; 3],
    Sizes { m, n, k, stages }: Sizes,
    workspace: &Buffer<f32>,
) -> Result<()> {
    let launch = match plan.tile {
        Tile::M128N256 => kernel::gemm_tn_128x256_wide_bf16,
        Tile::M256N128 => kernel::gemm_tn_256x128_wide_bf16,
        Tile::M128N192 => kernel::gemm_tn_128x192_wide_bf16,
        Tile::M128N128 => kernel::gemm_tn_128x128_wide_bf16,
    };
    let ([rows, columns], accumulate) = (plan.tile.sides(), i32::from(gemm.accumulate));
    let [whole, splits] = [plan.whole, plan.splits].map(|x| x as i32);
    let slices_map = slices_map(device, plan, gemm, Some(workspace), d_map)?;
    let args = kernel::GemmTnWideBf16 {
        d_map,
        slices_map: &slices_map,
        a_map,
        b_map,
        accumulate,
        m,
        n,
        k,
        stages,
        whole,
        splits,
    };
    // SAFETY: handed on; the caller keeps the contract.
    unsafe { launch(device, plan.launch(), args)? };
    if plan.splits == 1 {
        return Ok(());
    }
    let floats = plan.workspace(gemm) / plan.splits;
    let at = Launch::linear(floats / (ADD_THREADS * CHUNK), ADD_THREADS);
    let [ldd, tile_m, tile_n] = [gemm.ldd, rows, columns].map(|x| x as i32);
    // SAFETY: as above; one thread for every chunk of the tiles that are split.
    unsafe {
        kernel::GemmAddSlices { d, slices: workspace, accumulate, m, n, ldd, tile_m, tile_n, whole, splits }
            .launch(device, at)
    }
}

/// # Safety
/// The maps describe D, A and B of this product; the extras are as long as D says.
#[expect(clippy::too_many_arguments, reason = "a kernel's own list")]
unsafe fn launch_bf16(
    device: &Device,
    at: Launch,
    tile: Tile,
    gemm: &Gemm,
    [d_map, a_map, b_map]: [&TensorMap; 3],
    unused: &Buffer<bf16>,
    extras: &Epilogue<bf16>,
    Sizes { m, n, k, stages }: Sizes,
) -> Result<()> {
    use Order::{Nn, Nt, Tn};
    use Tile::{M128N128, M128N192, M128N256, M256N128};
    let launch = match (gemm.order, tile) {
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
    let args = kernel::GemmBf16 {
        d_map,
        a_map,
        b_map,
        addend,
        bias,
        addend_pitch: gemm.ldd as i32,
        with_addend,
        with_bias,
        m,
        n,
        k,
        stages,
    };
    // SAFETY: handed on; the caller keeps the contract.
    unsafe { launch(device, at, args) }
}
