//! Matrix products on the kernels that every GPU runs. [`super`] checks shapes and decides when they are taken.

use anyhow::{Result, bail};

use super::{Gemm, Narrow, Order};
use crate::{
    device::{Buffer, DType, Device, Float, Launch, kernels::gemm as kernel},
    ops::SharedMemory,
};

/// Edge of a tile of D.
const TILE_BF16: usize = 128;
const TILE_F32: usize = 64;
const THREADS: usize = 256;
const CTAS_PER_SM: usize = 2;
/// Four stages of two 128 x 32 blocks.
const SMEM_BYTES_BF16: usize = 4 * 2 * 128 * 32 * 2;
/// Two buffers of two 16 x (64 + 4) blocks.
const SMEM_BYTES_F32: usize = 2 * 2 * 16 * (64 + 4) * 4;

/// The kernels of products of operands of `dtype`.
pub(super) fn shared_memory(dtype: DType) -> SharedMemory {
    let (kernel, bytes) = match dtype {
        DType::Bf16 => ("gemm_bf16", SMEM_BYTES_BF16),
        _ => ("gemm_f32", SMEM_BYTES_F32),
    };
    SharedMemory { module: "gemm", kernel: kernel.into(), bytes }
}

/// Runs a product whose lengths were checked and that is not empty.
///
/// # Errors
/// The types do not go together, or the launch fails.
pub(super) fn run<T: Float, O: Float>(
    device: &Device,
    gemm: &Gemm,
    d: &Buffer<O>,
    a: &Buffer<T>,
    b: &Buffer<T>,
) -> Result<()> {
    let at = launch::<T>(device, gemm);
    let accumulate = i32::from(gemm.accumulate);
    let [m, n, k, lda, ldb, ldd] = [gemm.m, gemm.n, gemm.k, gemm.lda, gemm.ldb, gemm.ldd].map(|x| x as i32);
    match (T::DTYPE, O::DTYPE) {
        (x, y) if x == y => {
            let launch = match gemm.order {
                Order::Nt => kernel::gemm_nt::<T>,
                Order::Nn => kernel::gemm_nn::<T>,
                Order::Tn => kernel::gemm_tn::<T>,
            };
            let args = kernel::Gemm { d: &d.cast(), a, b, accumulate, m, n, k, lda, ldb, ldd };
            // SAFETY: `gemm::run` checked the lengths, and the cast goes to the type the buffer has.
            unsafe { launch(device, at, args) }
        }
        (DType::Bf16, DType::F32) => {
            let launch = match gemm.order {
                Order::Nt => kernel::gemm_nt_wide_bf16,
                Order::Nn => kernel::gemm_nn_wide_bf16,
                Order::Tn => kernel::gemm_tn_wide_bf16,
            };
            let (d, a, b) = (&d.cast(), &a.cast(), &b.cast());
            // SAFETY: as above.
            unsafe { launch(device, at, kernel::GemmWideBf16 { d, a, b, accumulate, m, n, k, lda, ldb, ldd }) }
        }
        (x, y) => bail!("{gemm:?}: {x:?} operands do not give {y:?}"),
    }
}

fn launch<T: Float>(device: &Device, gemm: &Gemm) -> Launch {
    let (tile, smem_bytes) = match T::DTYPE {
        DType::Bf16 => (TILE_BF16, SMEM_BYTES_BF16),
        _ => (TILE_F32, SMEM_BYTES_F32),
    };
    let tiles = gemm.m.div_ceil(tile) * gemm.n.div_ceil(tile);
    Launch::linear(tiles.min(CTAS_PER_SM * device.sm_count()), THREADS).with_smem(smem_bytes)
}

/// Runs the product of a gradient that is added up in bf16, whose lengths were checked and that is not empty.
///
/// # Errors
/// The launch fails.
pub(super) fn run_narrow<T: Float>(
    device: &Device,
    gemm: &Gemm,
    narrow: &Narrow,
    a: &Buffer<T>,
    b: &Buffer<T>,
) -> Result<()> {
    let [m, n, k, lda, ldb, ldd] = [gemm.m, gemm.n, gemm.k, gemm.lda, gemm.ldb, gemm.ldd].map(|x| x as i32);
    let (accumulate, first) = (i32::from(gemm.accumulate), narrow.first as i64);
    let (d, seed, number, part) = (&narrow.buffer, narrow.draw.seed, narrow.draw.number, narrow.part);
    // SAFETY: `gemm::run_narrow` checked the lengths.
    unsafe {
        kernel::GemmTnNarrow { d, a, b, accumulate, m, n, k, lda, ldb, ldd, seed, number, part, first }
            .launch(device, launch::<T>(device, gemm))
    }
}
