//! Attention on Hopper's own units: which tile, how many slots, which tensor maps. [`super`] decides when it is taken.

use anyhow::{Result, ensure};
use half::bf16;

use super::{Dims, Mask, Pass};
use crate::{
    device::{
        Buffer, DType, Device, Element, Float, Launch, Swizzle, Table, TensorMap, TensorShape,
        kernels::{attention_bwd_sm90 as bwd_kernel, attention_fwd_sm90 as fwd_kernel},
    },
    ops::{
        SharedMemory,
        gemm::sm90::{BARRIER_BYTES, MAX_SMEM_BYTES, MAX_STAGES, PANEL_BYTES, panel_map},
        rope::Rotary,
    },
};

const GROUP_THREADS: usize = 128;
/// Room in a slot for a few words a row.
const WORDS_BYTES: usize = 1024;
/// Words that come with a tile from before its first: `kBefore` in the kernel.
const WORDS_BEFORE: usize = 4;
/// Keys that a query sees on average, up to which small tiles are faster.
const FEW_KEYS: usize = 640;
/// What a resident CTA takes of an SM's shared memory beside its own.
const CTA_SMEM_BYTES: usize = 1024;

/// Rows that one CTA owns: queries, or keys in [`Pass::Dkdv`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// Two groups that compute, one CTA an SM.
    Rows128,
    /// One group, two CTAs an SM: fills short sequences better, and one CTA computes while the other begins or ends.
    Rows64,
}

impl Tile {
    /// Those of a pass, the best for long sequences first. In [`Pass::Dkdv`] two CTAs have no registers for the sums of heads
    /// of 128.
    pub fn all(pass: Pass, head_dim: usize) -> &'static [Self] {
        match (pass, head_dim) {
            (Pass::Dkdv, 128) => &[Self::Rows128],
            _ => &[Self::Rows128, Self::Rows64],
        }
    }

    fn rows(self) -> usize {
        match self {
            Self::Rows128 => 128,
            Self::Rows64 => 64,
        }
    }

    /// Groups that compute, 64 rows each.
    fn groups(self) -> usize {
        self.rows() / 64
    }

    /// CTAs that share an SM.
    pub fn ctas_per_sm(self) -> usize {
        2 / self.groups()
    }

    /// Threads of the groups that compute, and of the warp that fetches: of a whole group where registers change hands.
    fn threads(self) -> usize {
        match self {
            Self::Rows128 => 3 * GROUP_THREADS,
            Self::Rows64 => GROUP_THREADS + 32,
        }
    }
}

/// How one pass is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which kernel.
    pub pass: Pass,
    /// What a CTA owns.
    pub tile: Tile,
    /// Slots of the ring between the warp that fetches and the groups that compute.
    pub stages: usize,
}

impl Plan {
    /// Large tiles, unless queries see few keys (`mean_keys` on average) or large tiles would leave SMs without a CTA. Keys
    /// take small tiles wherever there is a choice.
    ///
    /// Measured on an H200 (benches/results/h200.md), heads of 64: large tiles for small ones make [`Pass::Dkdv`] 12 % slower
    /// on documents of 512 and change nothing on documents of 8192; [`Pass::Fwd`] is 3 to 5 % slower on pairs of 512 and twice
    /// 256 (448 keys) and documents of 512 (257), and 5 % faster on documents of 2048 (1025), [`Pass::Dq`] likewise by less.
    pub fn choose(pass: Pass, dims: &Dims, mean_keys: usize, sm_count: usize) -> Self {
        let large = Self::with_tile(pass, dims, Tile::Rows128);
        let [owners, tiles, _] = large.grid(dims);
        let fills = owners as usize * tiles as usize >= sm_count;
        let few_keys = pass == Pass::Dkdv || dims.window.map_or(mean_keys, |window| mean_keys.min(window)) <= FEW_KEYS;
        match Tile::all(pass, dims.head_dim) {
            [_, small] if few_keys || !fills => Self::with_tile(pass, dims, *small),
            _ => large,
        }
    }

    /// The plan for a given tile, with as many slots as fit.
    pub fn with_tile(pass: Pass, dims: &Dims, tile: Tile) -> Self {
        Self::for_heads(pass, dims.head_dim, tile)
    }

    fn for_heads(pass: Pass, head_dim: usize, tile: Tile) -> Self {
        let plan = Self { pass, tile, stages: 0 };
        Self { stages: plan.max_stages(head_dim), ..plan }
    }

    /// Rows that a CTA owns, and that it walks at a time. The two sums of [`Pass::Dkdv`] leave registers for 64.
    pub fn sides(&self) -> [usize; 2] {
        let rows = self.tile.rows();
        [rows, if self.pass == Pass::Dkdv { 64 } else { rows }]
    }

    fn walked_rows(&self) -> usize {
        self.sides()[1]
    }

    /// Barriers and the own rows, of one or two tensors, which the results replace.
    fn fixed_bytes(&self) -> usize {
        let tensors = if self.pass == Pass::Fwd { 1 } else { 2 };
        BARRIER_BYTES + tensors * self.tile.groups() * 2 * PANEL_BYTES
    }

    /// Two tiles of what is walked, and a few words a row.
    fn slot_bytes(&self, head_dim: usize) -> usize {
        2 * self.walked_rows() * head_dim * size_of::<bf16>() + WORDS_BYTES
    }

    /// Slots that fit beside the CTAs that share an SM.
    fn max_stages(&self, head_dim: usize) -> usize {
        let ctas = self.tile.ctas_per_sm();
        let share = (MAX_SMEM_BYTES + CTA_SMEM_BYTES) / ctas - CTA_SMEM_BYTES;
        ((share - self.fixed_bytes()) / self.slot_bytes(head_dim)).min(MAX_STAGES)
    }

    fn grid(&self, dims: &Dims) -> [u32; 3] {
        let owners = if self.pass == Pass::Dkdv { dims.kv_heads } else { dims.heads };
        [owners as u32, dims.tokens.div_ceil(self.tile.rows()) as u32, 1]
    }

    /// Dynamic shared memory of a CTA.
    pub fn smem_bytes(&self, head_dim: usize) -> usize {
        self.fixed_bytes() + self.stages * self.slot_bytes(head_dim)
    }

    fn launch(&self, dims: &Dims) -> Launch {
        let launch = Launch { grid: self.grid(dims), ..Launch::linear(1, self.tile.threads()) };
        launch.with_smem(self.smem_bytes(dims.head_dim))
    }

    fn check(&self, pass: Pass, dims: &Dims) -> Result<()> {
        ensure!(self.pass == pass, "{self:?}: expected a plan of {pass:?}");
        let tiles = Tile::all(pass, dims.head_dim);
        ensure!(tiles.contains(&self.tile), "{self:?}: heads of {} have {tiles:?}", dims.head_dim);
        let stages = self.max_stages(dims.head_dim);
        ensure!((1..=stages).contains(&self.stages), "{self:?}: 1 to {stages} slots fit shared memory");
        Ok(())
    }
}

/// Whether there are such kernels: bf16, heads of 64 or 128.
pub(super) fn takes_heads(dtype: DType, head_dim: usize) -> bool {
    dtype == DType::Bf16 && [64, 128].contains(&head_dim)
}

/// The kernels of a pass, one for each tile.
pub(super) fn shared_memory(pass: Pass, head_dim: usize) -> Vec<SharedMemory> {
    let (module, stem) = match pass.names() {
        ("attention_fwd", stem) => ("attention_fwd_sm90", stem),
        (_, stem) => ("attention_bwd_sm90", stem),
    };
    let needs = |&tile: &Tile| {
        let plan = Plan::for_heads(pass, head_dim, tile);
        let ([own, walked], bytes) = (plan.sides(), plan.smem_bytes(head_dim));
        SharedMemory { module, kernel: format!("attention_{stem}_hd{head_dim}_{own}x{walked}_bf16"), bytes }
    };
    Tile::all(pass, head_dim).iter().map(needs).collect()
}

/// Whether a call is one for them: also, buffers that start at multiples of 16 bytes.
pub fn takes<T: Float>(dims: &Dims, tensors: &[&Buffer<T>], statistics: &[&Buffer<f32>], mask: &Mask) -> bool {
    let addresses = tensors.iter().map(|x| x.address()).chain(statistics.iter().map(|x| x.address()));
    let aligned = addresses.chain([mask.subtree_end.address()]).all(|start| start.is_multiple_of(16));
    takes_heads(T::DTYPE, dims.head_dim) && aligned
}

fn check_takes(dims: &Dims, tensors: &[&Buffer<bf16>], statistics: &[&Buffer<f32>], mask: &Mask) -> Result<()> {
    let taken = takes(dims, tensors, statistics, mask);
    ensure!(taken, "{dims:?}: expected heads of 64 or 128 at multiples of 16 bytes");
    Ok(())
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
    mask: &Mask,
    scale: f32,
    dims: &Dims,
) -> Result<()> {
    check_takes(dims, &[out, qkv], &[lse], mask)?;
    plan.check(Pass::Fwd, dims)?;
    let (softcap, window) = dims.bounds()?;
    let (out_map, qkv_map) = (out_map(device, out, dims)?, qkv_map(device, qkv, dims)?);
    let ends = row_map(device, &mask.subtree_end, plan.walked_rows())?;
    let launch = match (dims.head_dim, plan.tile, softcap > 0.0 || window > 0) {
        (64, Tile::Rows64, false) => fwd_kernel::attention_fwd_hd64_64x64_bf16,
        (64, Tile::Rows64, true) => fwd_kernel::attention_fwd_hd64_64x64_bounded_bf16,
        (64, Tile::Rows128, false) => fwd_kernel::attention_fwd_hd64_128x128_bf16,
        (64, Tile::Rows128, true) => fwd_kernel::attention_fwd_hd64_128x128_bounded_bf16,
        (_, Tile::Rows64, false) => fwd_kernel::attention_fwd_hd128_64x64_bf16,
        (_, Tile::Rows64, true) => fwd_kernel::attention_fwd_hd128_64x64_bounded_bf16,
        (_, Tile::Rows128, false) => fwd_kernel::attention_fwd_hd128_128x128_bf16,
        (_, Tile::Rows128, true) => fwd_kernel::attention_fwd_hd128_128x128_bounded_bf16,
    };
    let [tokens, heads, kv_heads, stages] =
        [dims.tokens, dims.heads, dims.kv_heads, plan.stages].map(|count| count as i32);
    let args = fwd_kernel::AttentionFwdBf16 {
        out_map: &out_map,
        lse,
        qkv_map: &qkv_map,
        subtree_end_map: &ends,
        tile_bounds: &mask.tile_bounds,
        position: &mask.position,
        scale,
        softcap,
        window,
        tokens,
        heads,
        kv_heads,
        stages,
    };
    // SAFETY: `attention::fwd` checked the lengths; the maps carry them; a host device checks the tables.
    let work = || unsafe { launch(device, plan.launch(dims), args) };
    device.with_tables(&mask.tables(dims.tokens), work)
}

/// Runs a backward pass whose lengths were checked and whose `delta` is there, as planned: [`Pass::Dkdv`], then
/// [`Pass::Dq`].
///
/// # Errors
/// As [`fwd`].
#[expect(clippy::too_many_arguments, reason = "as attention::bwd")]
pub(super) fn bwd(
    device: &Device,
    [by_key, by_query]: &[Plan; 2],
    dqkv: &Buffer<bf16>,
    delta: &Buffer<f32>,
    dout: &Buffer<bf16>,
    lse: &Buffer<f32>,
    qkv: &Buffer<bf16>,
    mask: &Mask,
    rotary: Option<&Rotary>,
    scale: f32,
    dims: &Dims,
) -> Result<()> {
    check_takes(dims, &[dqkv, dout, qkv], &[lse, delta], mask)?;
    by_key.check(Pass::Dkdv, dims)?;
    by_query.check(Pass::Dq, dims)?;
    rotary.map_or(Ok(()), |rotary| rotary.check_pairs(dims.head_dim))?;
    let (softcap, window) = dims.bounds()?;
    let bounded = softcap > 0.0 || window > 0;
    let [dqkv_map, qkv_map] = [qkv_map(device, dqkv, dims)?, qkv_map(device, qkv, dims)?];
    let dout_map = out_map(device, dout, dims)?;
    let [lse_map, delta_map] = [lse, delta].map(|words| row_map(device, words, by_key.walked_rows() + WORDS_BEFORE));
    let (lse_map, delta_map) = (lse_map?, delta_map?);
    let ends_map = row_map(device, &mask.subtree_end, by_query.walked_rows())?;
    let [tokens, heads, kv_heads] = [dims.tokens, dims.heads, dims.kv_heads].map(|count| count as i32);
    // Without tables their places are not read.
    let (cos, sin) = rotary.map_or((lse, lse), |rotary| (&rotary.cos, &rotary.sin));
    let rotates = i32::from(rotary.is_some());
    let keys = bwd_kernel::AttentionBwdDkdvBf16 {
        dqkv_map: &dqkv_map,
        dout_map: &dout_map,
        lse_map: &lse_map,
        delta_map: &delta_map,
        qkv_map: &qkv_map,
        subtree_end: &mask.subtree_end,
        tile_bounds: &mask.tile_bounds,
        position: &mask.position,
        cos,
        sin,
        scale,
        softcap,
        window,
        rotates,
        tokens,
        heads,
        kv_heads,
        stages: by_key.stages as i32,
    };
    let queries = as_queries(&keys, [lse, delta], &ends_map, by_query.stages);
    let (dkdv, dq) = (dkdv_kernel(dims, by_key, bounded), dq_kernel(dims, by_query, bounded));
    let [ends, bounds] = mask.tables(dims.tokens);
    // Without tables of angles positions are only compared.
    let positions = rotary.map_or(usize::MAX, |rotary| rotary.cos.len() / (dims.head_dim / 2));
    let positions = Table::below("attention position", &mask.position, positions);
    // SAFETY: `attention::bwd` checked the lengths; the maps carry them; a host device checks the tables.
    let work = || unsafe {
        dkdv(device, by_key.launch(dims), keys)?;
        dq(device, by_query.launch(dims), queries)
    };
    device.with_tables(&[ends, bounds, positions], work)
}

/// What the gradients of queries take: statistics as they are, ends in boxes, and all else as the gradients of keys.
fn as_queries<'a>(
    keys: &bwd_kernel::AttentionBwdDkdvBf16<'a>,
    [lse, delta]: [&'a Buffer<f32>; 2],
    subtree_end_map: &'a TensorMap,
    stages: usize,
) -> bwd_kernel::AttentionBwdDqBf16<'a> {
    bwd_kernel::AttentionBwdDqBf16 {
        dqkv_map: keys.dqkv_map,
        dout_map: keys.dout_map,
        lse,
        delta,
        qkv_map: keys.qkv_map,
        subtree_end_map,
        tile_bounds: keys.tile_bounds,
        position: keys.position,
        cos: keys.cos,
        sin: keys.sin,
        scale: keys.scale,
        softcap: keys.softcap,
        window: keys.window,
        rotates: keys.rotates,
        tokens: keys.tokens,
        heads: keys.heads,
        kv_heads: keys.kv_heads,
        stages: stages as i32,
    }
}

type Dkdv = unsafe fn(&Device, Launch, bwd_kernel::AttentionBwdDkdvBf16) -> Result<()>;
type Dq = unsafe fn(&Device, Launch, bwd_kernel::AttentionBwdDqBf16) -> Result<()>;

fn dkdv_kernel(dims: &Dims, plan: &Plan, bounded: bool) -> Dkdv {
    match (dims.head_dim, plan.tile, bounded) {
        (64, Tile::Rows64, false) => bwd_kernel::attention_bwd_dkdv_hd64_64x64_bf16,
        (64, Tile::Rows64, true) => bwd_kernel::attention_bwd_dkdv_hd64_64x64_bounded_bf16,
        (64, Tile::Rows128, false) => bwd_kernel::attention_bwd_dkdv_hd64_128x64_bf16,
        (64, Tile::Rows128, true) => bwd_kernel::attention_bwd_dkdv_hd64_128x64_bounded_bf16,
        (_, _, false) => bwd_kernel::attention_bwd_dkdv_hd128_128x64_bf16,
        (_, _, true) => bwd_kernel::attention_bwd_dkdv_hd128_128x64_bounded_bf16,
    }
}

fn dq_kernel(dims: &Dims, plan: &Plan, bounded: bool) -> Dq {
    match (dims.head_dim, plan.tile, bounded) {
        (64, Tile::Rows64, false) => bwd_kernel::attention_bwd_dq_hd64_64x64_bf16,
        (64, Tile::Rows64, true) => bwd_kernel::attention_bwd_dq_hd64_64x64_bounded_bf16,
        (64, Tile::Rows128, false) => bwd_kernel::attention_bwd_dq_hd64_128x128_bf16,
        (64, Tile::Rows128, true) => bwd_kernel::attention_bwd_dq_hd64_128x128_bounded_bf16,
        (_, Tile::Rows64, false) => bwd_kernel::attention_bwd_dq_hd128_64x64_bf16,
        (_, Tile::Rows64, true) => bwd_kernel::attention_bwd_dq_hd128_64x64_bounded_bf16,
        (_, Tile::Rows128, false) => bwd_kernel::attention_bwd_dq_hd128_128x128_bf16,
        (_, Tile::Rows128, true) => bwd_kernel::attention_bwd_dq_hd128_128x128_bounded_bf16,
    }
}

fn out_map(device: &Device, out: &Buffer<bf16>, dims: &Dims) -> Result<TensorMap> {
    let columns = dims.heads * dims.head_dim;
    panel_map(device, out, [dims.tokens, columns], columns)
}

fn qkv_map(device: &Device, qkv: &Buffer<bf16>, dims: &Dims) -> Result<TensorMap> {
    let columns = (dims.heads + 2 * dims.kv_heads) * dims.head_dim;
    panel_map(device, qkv, [dims.tokens, columns], columns)
}

/// One row, `count` words at a time. What lies after the last one reads 0; a `subtree_end` of 0 hides the key.
fn row_map<T: Element>(device: &Device, words: &Buffer<T>, count: usize) -> Result<TensorMap> {
    // A pitch of whole 16 bytes, though there is one row.
    let (dims, pitches) = (vec![words.len(), 1], vec![words.len().next_multiple_of(4)]);
    device.tensor_map(words, &TensorShape { dims, pitches, tile: vec![count, 1], swizzle: Swizzle::None })
}
