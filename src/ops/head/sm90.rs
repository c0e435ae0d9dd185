//! The head's product on Hopper's own units, which leaves exponentials and statistics in place of logits. [`super`] decides
//! when it is taken.

use anyhow::{Result, ensure};
use half::bf16;

use super::{HeadShape, HeadValues};
use crate::{
    device::{Buffer, Device, Launch, kernels::head as kernel, kernels::head_sm90 as fused},
    ops::{
        self, chunk_launch, expect_len,
        gemm::{
            Gemm,
            sm90::{Plan, Tile, operand_maps, panel_map},
        },
    },
};

/// Columns of the vocabulary that one set of statistics stands for: those of the product's tile.
const STATISTICS_COLUMNS: usize = 256;
/// Numbers of a set: largest logit, sum of exponentials, and that of exponentials weighted by their exponents.
const STATISTICS: usize = 3;
/// `head_finish`: rows of a CTA, and slices of the vocabulary that its warps take.
const FINISH_ROWS: usize = 32;
const FINISH_SLICES: usize = 8;

/// What a chunk of rows leaves between the passes.
pub struct Logits {
    /// (rows, ld): exponentials relative to the largest logit of their row and tile, later gradients of logits. Empty if
    /// no gradients are wanted.
    pub exponentials: Buffer<bf16>,
    /// (tiles, rows, 3): largest logit, sum of exponentials, and that of exponentials weighted by their exponents
    pub statistics: Buffer<f32>,
    /// (rows)
    pub target_logits: Buffer<f32>,
}

/// Elements of `statistics` and `target_logits` together.
pub fn statistics_elements(rows: usize, vocab: usize) -> usize {
    rows * (STATISTICS * vocab.div_ceil(STATISTICS_COLUMNS) + 1)
}

impl Logits {
    /// Views of scratch memory: `statistics` of at least [`statistics_elements`].
    pub(super) fn new(exponentials: Buffer<bf16>, statistics: &Buffer<f32>, rows: usize, vocab: usize) -> Self {
        let end = STATISTICS * rows * vocab.div_ceil(STATISTICS_COLUMNS);
        let target_logits = statistics.slice(end..end + rows);
        Self { exponentials, statistics: statistics.slice(0..end), target_logits }
    }
}

impl Logits {
    fn check(&self, rows: usize, head: &HeadShape) -> Result<usize> {
        let tiles = head.vocab.div_ceil(STATISTICS_COLUMNS);
        expect_len("head statistics", &self.statistics, &[tiles, rows, STATISTICS])?;
        expect_len("head target logits", &self.target_logits, &[rows])?;
        if !self.exponentials.is_empty() {
            expect_len("head exponentials", &self.exponentials, &[rows, head.ld()])?;
        }
        Ok(rows)
    }
}

/// The plan of the product: its tile is given.
pub fn plan(rows: usize, head: &HeadShape, sm_count: usize) -> Plan {
    Plan::with_tile(&Gemm::nt(rows, head.vocab, head.hidden), Tile::M128N256, sm_count)
}

/// `x_rows weightᵀ`, as [`Logits`]; their exponentials only if there is a buffer for them.
///
/// Shapes: `x_rows` (rows, hidden); `weight` (vocab, hidden); `targets` (rows).
///
/// # Errors
/// A buffer does not have its shape, the plan has another tile, hidden is no multiple of 8, or the launch fails.
pub fn project(
    device: &Device,
    plan: &Plan,
    logits: &Logits,
    x_rows: &Buffer<bf16>,
    weight: &Buffer<bf16>,
    targets: &Buffer<i32>,
    head: &HeadShape,
) -> Result<()> {
    let rows = logits.check(targets.len(), head)?;
    expect_len("head x_rows", x_rows, &[rows, head.hidden])?;
    expect_len("head weight", weight, &[head.vocab, head.hidden])?;
    ensure!(plan.tile == Tile::M128N256, "head: {plan:?}: the kernel has tiles of 128 x 256");
    let softcap = ops::softcap("head", head.softcap)?;
    let gemm = Gemm::nt(rows, head.vocab, head.hidden);
    let [x_map, w_map] = operand_maps(device, plan.tile, &gemm, x_rows, weight)?;
    let [rows, vocab, hidden, stages] = [rows, head.vocab, head.hidden, plan.stages].map(|x| x as i32);
    let (at, Logits { exponentials, statistics, target_logits }) = (plan.launch(), logits);
    if exponentials.is_empty() {
        // SAFETY: all lengths were checked above; the maps carry theirs.
        return unsafe {
            fused::HeadStatisticsBf16 {
                statistics,
                target_logits,
                x_map: &x_map,
                w_map: &w_map,
                targets,
                softcap,
                rows,
                vocab,
                hidden,
                stages,
            }
            .launch(device, at)
        };
    }
    let map = panel_map(device, exponentials, [targets.len(), head.vocab], head.ld())?;
    // SAFETY: as above.
    unsafe {
        fused::HeadProjectBf16 {
            exponentials_map: &map,
            statistics,
            target_logits,
            x_map: &x_map,
            w_map: &w_map,
            targets,
            softcap,
            rows,
            vocab,
            hidden,
            stages,
        }
        .launch(device, at)
    }
}

/// What the statistics say about each row.
///
/// Shapes: `out` (rows) each.
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn finish(device: &Device, out: &HeadValues, logits: &Logits, head: &HeadShape) -> Result<()> {
    let rows = logits.check(logits.target_logits.len(), head)?;
    out.check(rows)?;
    let tiles = head.vocab.div_ceil(STATISTICS_COLUMNS) as i32;
    let launch = Launch::linear(rows.div_ceil(FINISH_ROWS), FINISH_ROWS * FINISH_SLICES);
    let launch = launch.with_smem(FINISH_ROWS * FINISH_SLICES * STATISTICS * size_of::<f32>());
    let Logits { statistics, target_logits, .. } = logits;
    let (rows, HeadValues { logps, lse, entropies, top1 }) = (rows as i32, out);
    // SAFETY: all lengths were checked above.
    unsafe {
        kernel::HeadFinish { logps, lse, entropies, top1, statistics, target_logits, rows, tiles }
            .launch(device, launch)
    }
}

/// Exponentials become gradients of the logits, in place, and 0 in the columns from vocab on.
///
/// Shapes: `lse`, `coefficients`, `targets` (rows).
///
/// # Errors
/// A buffer does not have its shape, or the launch fails.
pub fn dlogits(
    device: &Device,
    logits: &Logits,
    lse: &Buffer<f32>,
    coefficients: &Buffer<f32>,
    targets: &Buffer<i32>,
    head: &HeadShape,
) -> Result<()> {
    let (rows, softcap) = (logits.check(targets.len(), head)?, ops::softcap("head", head.softcap)?);
    expect_len("head exponentials", &logits.exponentials, &[rows, head.ld()])?;
    expect_len("head lse", lse, &[rows])?;
    expect_len("head coefficients", coefficients, &[rows])?;
    let launch = chunk_launch("head dlogits", rows, head.ld())?;
    let Logits { exponentials: dz, statistics, target_logits } = logits;
    let [rows, vocab, ld] = [rows, head.vocab, head.ld()].map(|x| x as i32);
    // SAFETY: all lengths were checked above.
    unsafe {
        kernel::HeadDlogitsExponentialsBf16 {
            dlogits: dz,
            statistics,
            target_logits,
            lse,
            coefficients,
            targets,
            softcap,
            rows,
            vocab,
            ld,
        }
        .launch(device, launch)
    }
}
