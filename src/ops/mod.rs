//! One file per kernel stem: checks shapes, chooses the launch, calls the launcher. The only callers of the launchers.
//!
//! Attention, products and the head are folders: `mod.rs` says what a call is and which back end takes it, by the device's
//! [`Arch`](crate::device::Arch); the files beside it, one for each kernel stem, know their kernels alone.

pub mod adamw;
pub mod adamw_8bit;
pub mod adamw_bf16;
pub mod attention;
pub mod bias;
pub mod embedding;
pub mod geglu;
pub mod gelu;
pub mod gemm;
pub mod grad_norm;
pub mod gradient;
pub mod head;
pub mod layernorm;
pub mod lerp;
pub mod loss_batch;
pub mod loss_difference;
pub mod loss_likelihood;
pub mod loss_list;
pub mod loss_rows;
pub mod loss_separate;
pub mod residual;
pub mod rmsnorm;
pub mod rmsprop;
pub mod rope;
pub mod swiglu;
pub mod token_mask;

use anyhow::{Result, ensure};

use crate::device::{Buffer, DType, Element, Float, Launch};

/// Elements one thread of an elementwise kernel handles: `kChunk` in `kernels/lib/chunk.cuh`.
pub(crate) const CHUNK: usize = 8;
const ELEMENTWISE_THREADS: usize = 128;

/// Columns and threads of a CTA that adds up slices: `kFinishColumns` and `kFinishThreads` in `kernels/lib/slice_sum.cuh`.
const FINISH_COLUMNS: usize = 64;
const FINISH_THREADS: usize = 256;
/// Floats from one group's sums to the next: `kFinishPitch`.
const FINISH_PITCH: usize = 80;

/// Dynamic shared memory of a CTA that every GPU has. What may ask for more is in the lists of [`attention::shared_memory`] and
/// [`gemm::shared_memory`].
pub const PLAIN_SMEM_BYTES: usize = 48 * 1024;

/// The dynamic shared memory that a kernel asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedMemory {
    /// Stem of its file.
    pub module: &'static str,
    /// Its name, or what the names of several have in common.
    pub kernel: String,
    /// Of one CTA.
    pub bytes: usize,
}

/// Checks that a buffer holds what its shape says.
pub(crate) fn expect_len<T: Element>(what: &str, buffer: &Buffer<T>, shape: &[usize]) -> Result<()> {
    let len: usize = shape.iter().product();
    ensure!(buffer.len() == len, "{what}: expected {shape:?} = {len} elements, found {}", buffer.len());
    Ok(())
}

/// Checks that there are low bits for the masters of bf16 weights, and none of f32 weights.
pub(crate) fn expect_low<T: Float>(what: &str, params: &Buffer<T>, low: &Buffer<u16>) -> Result<()> {
    expect_len(what, low, &[if T::DTYPE == DType::F32 { 0 } else { params.len() }])
}

/// Checks that elements begin at a multiple of what a thread or a warp takes at once.
pub(crate) fn expect_chunk(what: &str, first: usize, chunk: usize) -> Result<()> {
    ensure!(first.is_multiple_of(chunk), "{what}: elements from {first} on: expected a multiple of {chunk}");
    Ok(())
}

/// A soft cap as the kernels take it: 0 is none.
pub(crate) fn softcap(what: &str, cap: Option<f32>) -> Result<f32> {
    let Some(cap) = cap else { return Ok(0.0) };
    ensure!(cap > 0.0 && cap.is_finite(), "{what}: soft cap {cap}: expected a positive number");
    Ok(cap)
}

/// One thread per chunk of a flat run of elements.
pub(crate) fn element_launch(elements: usize) -> Launch {
    Launch::linear(elements.div_ceil(ELEMENTWISE_THREADS * CHUNK), ELEMENTWISE_THREADS)
}

/// One thread per chunk of each row; the kernels count these threads in 32 bits.
pub(crate) fn chunk_launch(what: &str, rows: usize, width: usize) -> Result<Launch> {
    let threads = (rows * width.div_ceil(CHUNK)).next_multiple_of(ELEMENTWISE_THREADS);
    ensure!(i32::try_from(threads).is_ok(), "{what}: {rows} rows of {width} are more than one launch can count");
    Ok(Launch::linear(threads / ELEMENTWISE_THREADS, ELEMENTWISE_THREADS))
}

/// Threads at most of a CTA that takes a slice of normalised rows: `kSliceThreads` in the kernels.
const SLICE_THREADS: usize = 256;

/// Rows that one CTA of a norm's backward pass takes: some 64 KB of bf16, that the second look at them comes from cache. By the
/// width alone, so that the order of additions never depends on the device.
pub(crate) fn slice_rows(width: usize) -> usize {
    (32_768 / width.max(1)).clamp(16, 64)
}

/// One CTA a slice of rows, with a thread per chunk of a row where that is enough for a warp, and `row_floats` of shared
/// memory a row.
pub(crate) fn slice_launch(rows: usize, width: usize, row_floats: usize) -> Launch {
    let threads = width.div_ceil(CHUNK).next_multiple_of(32).clamp(32, SLICE_THREADS);
    let slice = slice_rows(width);
    Launch::linear(rows.div_ceil(slice), threads).with_smem(slice * row_floats * size_of::<f32>())
}

/// One CTA per 64 columns, for the sums that slices of rows left behind; every group of eight threads keeps a row of sums.
pub(crate) fn finish_launch(columns: usize) -> Launch {
    let sums = FINISH_THREADS / (FINISH_COLUMNS / CHUNK) * FINISH_PITCH;
    Launch::linear(columns.div_ceil(FINISH_COLUMNS), FINISH_THREADS).with_smem(sums * size_of::<f32>())
}
