//! The vendor's product of bf16 matrices (cuBLASLt, loaded at run time), for benches to measure ours against. Nothing that
//! trains uses it.

use std::{ffi::c_void, mem::size_of_val, ptr::from_ref};

use anyhow::{Context, Result, bail, ensure};
use cudarc::cublaslt::{
    result as lt,
    sys::{
        self, cublasComputeType_t::CUBLAS_COMPUTE_32F, cublasLtMatmulDescAttributes_t as Attribute,
        cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, cudaDataType,
    },
};
use half::bf16;

use super::{Gemm, Order};
use crate::device::{Buffer, DType, Device, Float};

/// Scratch memory the library may use.
const WORKSPACE_BYTES: usize = 64 << 20;

/// An open library.
pub struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer<u8>,
}

/// One product, with the algorithm that the library's heuristic puts first.
pub struct Planned<'a, O> {
    opened: &'a Library,
    description: sys::cublasLtMatmulDesc_t,
    /// Of the library's A and B, which are our B and A, and of D.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    beta: f32,
    d: Buffer<O>,
    a: Buffer<bf16>,
    b: Buffer<bf16>,
}

impl Library {
    /// Loads the library.
    ///
    /// # Errors
    /// The device is no GPU, there is no library, or it does not start.
    pub fn open(device: &Device) -> Result<Self> {
        ensure!(device.as_cuda().is_some(), "cuBLASLt needs a GPU");
        // SAFETY: it only tries to open files of the library's name.
        ensure!(unsafe { sys::is_culib_present() }, "no libcublasLt on LD_LIBRARY_PATH");
        let workspace = device.alloc(WORKSPACE_BYTES)?;
        Ok(Self { handle: lt::create_handle().context("cublasLtCreate")?, workspace })
    }

    /// Plans a product of buffers whose lengths are those of `gemm`; D is bf16 or f32.
    ///
    /// The library counts columns first, so its product is ours transposed: Dᵀ = Bᵀ Aᵀ.
    ///
    /// # Errors
    /// A buffer is too short, or the library has no algorithm.
    pub fn plan<O: Float>(
        &self,
        gemm: &Gemm,
        d: &Buffer<O>,
        a: &Buffer<bf16>,
        b: &Buffer<bf16>,
    ) -> Result<Planned<'_, O>> {
        let Gemm { m, n, k, lda, ldb, ldd, .. } = *gemm;
        // Rows of ours, and the length of what is contiguous.
        let (of_a, of_b) = match gemm.order {
            Order::Nt => ((m, k), (n, k)),
            Order::Nn => ((m, k), (k, n)),
            Order::Tn => ((k, m), (k, n)),
        };
        for (what, len, (rows, width), pitch) in
            [("A", a.len(), of_a, lda), ("B", b.len(), of_b, ldb), ("D", d.len(), (m, n), ldd)]
        {
            let needed = rows.saturating_sub(1) * pitch + width;
            ensure!(len >= needed, "{gemm:?}: {what} has {len} elements, expected {needed}");
        }
        let description = lt::create_matmul_desc(CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F)?;
        let transpose = |of: bool| -> i32 { of.into() };
        set(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, transpose(gemm.order == Order::Nt))?;
        set(description, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, transpose(gemm.order == Order::Tn))?;
        let wide = O::DTYPE == DType::F32;
        let of_d = if wide { cudaDataType::CUDA_R_32F } else { cudaDataType::CUDA_R_16BF };
        let layout = |of, (rows, width): (usize, usize), pitch: usize| {
            lt::create_matrix_layout(of, width as u64, rows as u64, pitch as i64)
        };
        let bf16s = cudaDataType::CUDA_R_16BF;
        let layouts = [layout(bf16s, of_b, ldb)?, layout(bf16s, of_a, lda)?, layout(of_d, (m, n), ldd)?];
        let algorithm = self.algorithm(description, &layouts).with_context(|| format!("{gemm:?}"))?;
        let beta = if gemm.accumulate { 1.0 } else { 0.0 };
        let (d, a, b) = (d.clone(), a.clone(), b.clone());
        Ok(Planned { opened: self, description, layouts, algorithm, beta, d, a, b })
    }

    fn algorithm(
        &self,
        description: sys::cublasLtMatmulDesc_t,
        &[a, b, d]: &[sys::cublasLtMatrixLayout_t; 3],
    ) -> Result<sys::cublasLtMatmulAlgo_t> {
        let preference = lt::create_matmul_pref()?;
        let bytes = WORKSPACE_BYTES;
        // SAFETY: all descriptions are alive; the attribute is read from a number of its size.
        unsafe {
            let limit = CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            lt::set_matmul_pref_attribute(preference, limit, from_ref(&bytes).cast(), size_of_val(&bytes))?;
            let found = lt::get_matmul_algo_heuristic(self.handle, description, a, b, d, d, preference);
            lt::destroy_matmul_pref(preference)?;
            Ok(found?.algo)
        }
    }
}

fn set(description: sys::cublasLtMatmulDesc_t, attribute: Attribute, value: i32) -> Result<()> {
    // SAFETY: the description is alive; the attribute is read from a number of its size.
    let set =
        unsafe { lt::set_matmul_desc_attribute(description, attribute, from_ref(&value).cast(), size_of_val(&value)) };
    set.context("cublasLtMatmulDescSetAttribute")
}

impl<O: Float> Planned<'_, O> {
    /// Queues the product on the device's stream.
    ///
    /// # Errors
    /// The library refuses.
    pub fn run(&self, device: &Device) -> Result<()> {
        let Some(cuda) = device.as_cuda() else { bail!("cuBLASLt needs a GPU") };
        cuda.bind_to_thread()?;
        let ([a, b, d], alpha) = (self.layouts, 1.0f32);
        let at = |address: u64| address as *mut c_void;
        let (to, workspace) = (at(self.d.address()), &self.opened.workspace);
        // SAFETY: the buffers are as long as the layouts say (`plan`), and alive until the stream is done with them.
        unsafe {
            lt::matmul(
                self.opened.handle,
                self.description,
                from_ref(&alpha).cast(),
                from_ref(&self.beta).cast(),
                at(self.b.address()),
                a,
                at(self.a.address()),
                b,
                to,
                d,
                to,
                d,
                &self.algorithm,
                at(workspace.address()),
                workspace.len(),
                cuda.stream().cast(),
            )
        }
        .context("cublasLtMatmul")
    }
}

impl<O> Drop for Planned<'_, O> {
    fn drop(&mut self) {
        // SAFETY: made in `plan`, and destroyed once. A failure has nothing to tell.
        unsafe {
            for layout in self.layouts {
                let _ = lt::destroy_matrix_layout(layout);
            }
            let _ = lt::destroy_matmul_desc(self.description);
        }
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: made in `open`, and destroyed once; products borrow the library.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}
