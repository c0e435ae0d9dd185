//! The native matrix product of the host device: blocks of the result, each computed by the `gemm-f32` crate on one thread.
//!
//! The blocks depend on the shape alone, so the bits do not depend on the number of worker threads. bf16 operands are
//! widened a panel at a time; sums are f32. Knows addresses and strides; shapes were checked in `ops`.

use std::cell::RefCell;

use anyhow::{Result, bail};
use gemm_common::Parallelism;
use half::bf16;
use rayon::prelude::*;

use super::HostDevice;
use crate::{
    device::DType,
    rng::{Draw, Philox, Purpose, bf16_by_chance},
};

/// Rows and columns of a block at most: its packed operands stay in the second-level cache.
const BLOCK_M: usize = 288;
const BLOCK_N: usize = 288;
/// Blocks that keep the cores of a small machine busy.
const ENOUGH_BLOCKS: usize = 8;
/// Rows and columns of the `gemm-f32` crate's register tile.
const TILE_M: usize = 6;
const TILE_N: usize = 16;
/// Terms per widened panel: both panels of a block stay in the second-level cache.
const PANEL_K: usize = 512;

/// A matrix in host memory: element (i, j) stands `i * strides[0] + j * strides[1]` elements after the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    /// Of element (0, 0).
    pub address: u64,
    /// f32 or bf16.
    pub dtype: DType,
    /// Elements from one row to the next, and from one column to the next.
    pub strides: [usize; 2],
}

/// `d (m, n) = a (m, k) b (k, n)`, added to `d` if `accumulate`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    /// Rows of `d`.
    pub m: usize,
    /// Columns of `d`.
    pub n: usize,
    /// Terms of a sum.
    pub k: usize,
    /// (m, n), written.
    pub d: Matrix,
    /// (m, k)
    pub a: Matrix,
    /// (k, n)
    pub b: Matrix,
    /// Whether `d` is added to.
    pub accumulate: bool,
    /// How a bf16 `d` is rounded that is added to; without it to nearest.
    pub chance: Option<Chance>,
}

/// Rounding by chance of gradients: by an element's place in the arena, where `d` begins at `first`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chance {
    pub draw: Draw,
    pub part: u32,
    pub first: usize,
}

impl Chance {
    /// Of one element.
    fn round(&self, value: f32, stream: &Philox, element: usize, halves: &mut (usize, [u16; 8])) -> bf16 {
        let chunk = element / 8;
        if halves.0 != chunk {
            *halves = (chunk, stream.halves(chunk as u64));
        }
        bf16_by_chance(value, halves.1[element % 8])
    }
}

impl Matrix {
    /// The matrix that starts at element (i, j).
    fn at(self, i: usize, j: usize) -> Self {
        let width = if self.dtype == DType::Bf16 { 2 } else { 4 };
        let skipped = i * self.strides[0] + j * self.strides[1];
        Self { address: self.address + (skipped * width) as u64, ..self }
    }

    fn transposed(self) -> Self {
        Self { strides: [self.strides[1], self.strides[0]], ..self }
    }
}

impl HostDevice {
    /// Computes the product on the worker threads.
    ///
    /// # Safety
    /// The three matrices lie in live buffers of this device, and `d` overlaps neither operand.
    ///
    /// # Errors
    /// An element type that is neither f32 nor bf16, or bf16 sums of f32 operands.
    pub(crate) unsafe fn multiply(&self, product: &Product) -> Result<()> {
        let (operand, result) = (product.a.dtype, product.d.dtype);
        match (operand, product.b.dtype, result) {
            (DType::F32, DType::F32, DType::Bf16) if product.chance.is_some() => {}
            (DType::F32, DType::F32, DType::F32) | (DType::Bf16, DType::Bf16, DType::F32 | DType::Bf16) => {}
            (_, other, _) => bail!("native product of {operand:?} and {other:?} into {result:?}"),
        }
        // SAFETY: handed on.
        self.in_turn(|| unsafe { self.multiply_in_turn(product) });
        Ok(())
    }

    /// # Safety
    /// As [`multiply`](Self::multiply), of element types that go together, while nothing else runs on the device.
    unsafe fn multiply_in_turn(&self, product: &Product) {
        mark_written(self, product);
        let [height, width] = block_shape(product.m, product.n);
        let columns = product.n.div_ceil(width);
        let blocks = product.m.div_ceil(height) * columns;
        // SAFETY: blocks of `d` are disjoint; the rest is the caller's promise.
        let block = |at: usize| unsafe {
            multiply_block(&block_of(product, [at / columns * height, at % columns * width], [height, width]))
        };
        if blocks == 1 || self.pool.current_num_threads() == 1 {
            (0..blocks).for_each(block);
        } else {
            self.install(|| (0..blocks).into_par_iter().for_each(block));
        }
    }
}

fn mark_written(device: &HostDevice, product: &Product) {
    if device.options.strict {
        for i in 0..product.m {
            let bytes = product.n * if product.d.dtype == DType::Bf16 { 2 } else { 4 };
            device.mark_written(product.d.at(i, 0).address, bytes);
        }
    }
}

/// Equal blocks, a power of two of them in each direction: a small last block would leave a core waiting for the others.
fn block_shape(m: usize, n: usize) -> [usize; 2] {
    let [rows, mut columns] = [m.div_ceil(BLOCK_M), n.div_ceil(BLOCK_N)].map(usize::next_power_of_two);
    while rows * columns < ENOUGH_BLOCKS && n / columns >= BLOCK_N / 2 {
        columns *= 2;
    }
    [m.div_ceil(rows).next_multiple_of(TILE_M), n.div_ceil(columns).next_multiple_of(TILE_N)]
}

fn block_of(product: &Product, [i, j]: [usize; 2], [height, width]: [usize; 2]) -> Product {
    Product {
        m: height.min(product.m - i),
        n: width.min(product.n - j),
        d: product.d.at(i, j),
        a: product.a.at(i, 0),
        b: product.b.at(0, j),
        // Of this block's first element.
        chance: product.chance.map(|chance| Chance { first: chance.first + i * product.d.strides[0] + j, ..chance }),
        ..*product
    }
}

/// # Safety
/// As [`HostDevice::multiply`], for this block.
unsafe fn multiply_block(p: &Product) {
    // SAFETY: handed on.
    unsafe {
        let narrow = p.d.dtype == DType::Bf16;
        if p.a.dtype == DType::F32 && !narrow {
            return multiply_f32(p);
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let (a, rest) = scratch.split_at_mut(BLOCK_M * PANEL_K);
            let (b, sum) = rest.split_at_mut(PANEL_K * BLOCK_N);
            let d = if narrow { dense(sum, [BLOCK_N, 1]) } else { p.d };
            if narrow && p.accumulate {
                widen(sum, BLOCK_N, p.d, [p.m, p.n]);
            }
            if p.a.dtype == DType::F32 {
                multiply_f32(&Product { d, ..*p });
                return round(p, sum);
            }
            for k0 in (0..p.k).step_by(PANEL_K) {
                let k = PANEL_K.min(p.k - k0);
                let a = widen_panel(a, p.a.at(0, k0), [p.m, k]);
                let b = widen_panel(b, p.b.at(k0, 0), [k, p.n]);
                multiply_f32(&Product { k, d, a, b, accumulate: p.accumulate || k0 > 0, ..*p });
            }
            if narrow {
                round(p, sum);
            }
        });
    }
}

thread_local! {
    /// Widened panels of both operands and a block of sums. Kept, because fresh pages cost more than the product.
    static SCRATCH: RefCell<Vec<f32>> =
        RefCell::new(vec![0.0; BLOCK_M * PANEL_K + PANEL_K * BLOCK_N + BLOCK_M * BLOCK_N]);
}

/// # Safety
/// As [`HostDevice::multiply`]; all three matrices are f32.
unsafe fn multiply_f32(p: &Product) {
    // The library's kernels want a result whose columns are contiguous: of others the transpose is computed.
    let turns = p.d.strides[1] < p.d.strides[0];
    let (m, n) = if turns { (p.n, p.m) } else { (p.m, p.n) };
    let [d, a, b] = if turns { [p.d, p.b, p.a].map(Matrix::transposed) } else { [p.d, p.a, p.b] };
    let [[d_row, d_column], [a_row, a_column], [b_row, b_column]] = [d, a, b].map(|x| x.strides.map(|s| s as isize));
    let gemm = gemm_f32::gemm::f32::get_gemm_fn();
    // SAFETY: handed on.
    unsafe {
        gemm(
            m,
            n,
            p.k,
            d.address as *mut f32,
            d_column,
            d_row,
            p.accumulate,
            a.address as *const f32,
            a_column,
            a_row,
            b.address as *const f32,
            b_column,
            b_row,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

fn dense(data: &mut [f32], strides: [usize; 2]) -> Matrix {
    Matrix { address: data.as_mut_ptr() as u64, dtype: DType::F32, strides }
}

/// A dense f32 copy of a bf16 panel that keeps its contiguous index contiguous.
///
/// # Safety
/// `source` has `shape` readable elements.
unsafe fn widen_panel(panel: &mut [f32], source: Matrix, [rows, columns]: [usize; 2]) -> Matrix {
    // SAFETY: handed on; a transposed view reads the same elements.
    unsafe {
        if source.strides[1] == 1 {
            widen(panel, columns, source, [rows, columns]);
            dense(panel, [columns, 1])
        } else {
            widen(panel, rows, source.transposed(), [columns, rows]);
            dense(panel, [1, rows])
        }
    }
}

/// Widens rows of contiguous elements into rows `pitch` apart.
///
/// # Safety
/// `source` has `shape` readable elements, contiguous in the second index.
unsafe fn widen(target: &mut [f32], pitch: usize, source: Matrix, [rows, columns]: [usize; 2]) {
    for i in 0..rows {
        // SAFETY: the caller's promise.
        let from = unsafe { std::slice::from_raw_parts(source.at(i, 0).address as *const bf16, columns) };
        let to = &mut target[i * pitch..][..columns];
        to.iter_mut().zip(from).for_each(|(to, from)| *to = f32::from_bits(u32::from(from.to_bits()) << 16));
    }
}

/// Rounds a block of sums, rows `BLOCK_N` apart, into the block's `d`.
///
/// # Safety
/// `d` has writable elements, contiguous in the second index, that nobody else touches.
unsafe fn round(p: &Product, sum: &[f32]) {
    let chance = p.chance.filter(|_| p.accumulate);
    for i in 0..p.m {
        // SAFETY: the caller's promise.
        let to = unsafe { std::slice::from_raw_parts_mut(p.d.at(i, 0).address as *mut bf16, p.n) };
        let from = &sum[i * BLOCK_N..][..p.n];
        let Some(chance) = chance else {
            to.iter_mut().zip(from).for_each(|(to, &from)| *to = bf16::from_f32(from));
            continue;
        };
        let stream = Philox::part(chance.draw.seed, Purpose::Gradients, chance.draw.number, chance.part);
        let (first, mut halves) = (chance.first + i * p.d.strides[0], (usize::MAX, [0; 8]));
        for ((to, &from), element) in to.iter_mut().zip(from).zip(first..) {
            *to = chance.round(from, &stream, element, &mut halves);
        }
    }
}

/// Peak of the native backend in FLOP/s: the best of a few products that keep every worker thread busy.
pub(super) fn measure_peak(device: &HostDevice) -> f64 {
    const ROUNDS: usize = 16;
    let threads = device.pool.current_num_threads();
    let (m, n, k) = (2 * BLOCK_M * threads, 2 * BLOCK_N, PANEL_K);
    let (a, b, mut d) = (vec![0.5f32; m * k], vec![0.5f32; k * n], vec![0.0f32; m * n]);
    let matrix =
        |address: *const f32, pitch| Matrix { address: address as u64, dtype: DType::F32, strides: [pitch, 1] };
    let product = Product {
        m,
        n,
        k,
        d: matrix(d.as_mut_ptr(), n),
        a: matrix(a.as_ptr(), k),
        b: matrix(b.as_ptr(), n),
        accumulate: false,
        chance: None,
    };
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = std::time::Instant::now();
        // SAFETY: three vectors of the sizes that the product names.
        if unsafe { device.multiply(&product) }.is_ok() {
            best = best.min(start.elapsed().as_secs_f64());
        }
    }
    2.0 * (m * n * k) as f64 / best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_fit_their_scratch_and_are_enough_for_a_few_cores() {
        for m in [1, 6, 45, 288, 289, 561, 960, 4096] {
            for n in [1, 15, 144, 288, 576, 577, 3072, 49_152] {
                let [height, width] = block_shape(m, n);
                assert!(
                    (1..=BLOCK_M).contains(&height) && (1..=BLOCK_N).contains(&width),
                    "{m} x {n}: {height} x {width}"
                );
                let blocks = m.div_ceil(height) * n.div_ceil(width);
                assert!(blocks >= ENOUGH_BLOCKS || n < ENOUGH_BLOCKS * BLOCK_N / 2, "{m} x {n}: {blocks} blocks");
            }
        }
    }
}
