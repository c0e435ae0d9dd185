//! Matrix products in the three operand orders of a linear layer.
//!
//! Here is what a product is and what computes it: the kernels that every GPU runs, those of Hopper's own units, or on the
//! host device a library.

#[cfg(feature = "bench")]
pub mod library;
mod portable;
pub mod sm90;

use anyhow::{Result, ensure};
use half::bf16;

use super::{
    SharedMemory, bias, expect_chunk,
    gradient::{Gradient, Narrow},
    residual,
};
use crate::device::{
    Arch, Buffer, DType, Device, Element, Float, GemmBackend,
    host::gemm::{Chance, Matrix, Product},
};
use sm90::Plan;

/// What a 16-byte copy needs of bf16 rows.
const ROW_BYTES: usize = 16;

/// The kernels of products, and on Hopper those that work up a product in its kernel.
pub fn shared_memory(device: &Device, dtype: DType) -> Vec<SharedMemory> {
    match (device.arch(), dtype) {
        (Arch::Sm90, DType::Bf16) => sm90::shared_memory(),
        _ => vec![portable::shared_memory(dtype)],
    }
}

/// How the operands of `D (m, n) = A B` lie; all row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A (m, k), B (n, k): forward, `Y = X Wᵀ`.
    Nt,
    /// A (m, k), B (k, n): `dX = dY W`.
    Nn,
    /// A (k, m), B (k, n): `dW = dYᵀ X`.
    Tn,
}

/// One product `D (+)= A B`. `lda`, `ldb`, `ldd` are the elements from one row to the next. Where `ldd` is more than `n`,
/// columns up to the next multiple of 16 bytes may be overwritten, others are left as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// How A and B lie.
    pub order: Order,
    /// Rows of D.
    pub m: usize,
    /// Columns of D.
    pub n: usize,
    /// Terms of a sum.
    pub k: usize,
    /// Elements from one row of A to the next.
    pub lda: usize,
    /// The same for B.
    pub ldb: usize,
    /// The same for D.
    pub ldd: usize,
    /// Whether D is added to.
    pub accumulate: bool,
}

impl Gemm {
    /// `D (m, n) = A (m, k) B (n, k)ᵀ`, packed.
    pub fn nt(m: usize, n: usize, k: usize) -> Self {
        Self { order: Order::Nt, m, n, k, lda: k, ldb: k, ldd: n, accumulate: false }
    }

    /// `D (m, n) = A (m, k) B (k, n)`, packed.
    pub fn nn(m: usize, n: usize, k: usize) -> Self {
        Self { order: Order::Nn, m, n, k, lda: k, ldb: n, ldd: n, accumulate: false }
    }

    /// `D (m, n) = A (k, m)ᵀ B (k, n)`, packed.
    pub fn tn(m: usize, n: usize, k: usize) -> Self {
        Self { order: Order::Tn, m, n, k, lda: m, ldb: n, ldd: n, accumulate: false }
    }

    /// The same product added to `D`.
    pub fn accumulating(self) -> Self {
        Self { accumulate: true, ..self }
    }

    /// Multiplications and additions.
    pub fn flops(&self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }

    /// Rows and columns of A and of B as they are stored.
    fn stored(&self) -> [(usize, usize); 2] {
        let Self { m, n, k, .. } = *self;
        match self.order {
            Order::Nt => [(m, k), (n, k)],
            Order::Nn => [(m, k), (k, n)],
            Order::Tn => [(k, m), (k, n)],
        }
    }
}

/// What is added to a result before it is rounded; of its type, not together with `accumulate`.
#[derive(Clone, Copy)]
pub struct Epilogue<'a, T> {
    /// (n), the same for every row.
    pub bias: Option<&'a Buffer<T>>,
    /// (m, n) in rows as far apart as D's; for D itself there is `accumulate`.
    pub addend: Option<&'a Buffer<T>>,
}

impl<T> Epilogue<'_, T> {
    /// Nothing is added.
    pub const NONE: Self = Self { bias: None, addend: None };

    fn is_none(&self) -> bool {
        self.bias.is_none() && self.addend.is_none()
    }
}

/// Runs one product: `O` is `T`, or f32 for bf16 operands.
///
/// A buffer may be longer than its matrix. bf16 operands start at a multiple of 16 bytes, and so does every row of
/// theirs. No rows or columns is no work; `k = 0` is only allowed when accumulating.
///
/// # Errors
/// A buffer is too short or not aligned, the types do not go together, or the launch fails.
pub fn run<T: Float, O: Float>(
    device: &Device,
    gemm: &Gemm,
    d: &Buffer<O>,
    a: &Buffer<T>,
    b: &Buffer<T>,
) -> Result<()> {
    if is_empty(gemm, d, a, b, &Epilogue::NONE)? {
        return Ok(());
    }
    if let Some(host) = device.as_host()
        && host.options().gemm == GemmBackend::Native
    {
        device.owns(d).and(device.owns(a)).and(device.owns(b))?;
        // SAFETY: all lengths were checked above, and whose the buffers are.
        return unsafe { host.multiply(&product(gemm, d, a, b)) };
    }
    match device.arch() {
        Arch::Sm90 if sm90::takes(gemm, d, &Epilogue::<T>::NONE) => {
            let plan = Plan::choose(gemm, device.sm_count());
            sm90::run(device, &plan, gemm, d, &a.cast(), &b.cast(), &Epilogue::NONE, None)
        }
        _ => portable::run(device, gemm, d, a, b),
    }
}

/// Runs the product of a weight's gradient. On Hopper, sums of tiles that would leave most of the GPU idle are split along k
/// as far as `workspace` (any length) holds the parts, which are added in order: the same bits for the same workspace.
///
/// # Errors
/// As [`run`].
pub fn run_split<T: Float>(
    device: &Device,
    gemm: &Gemm,
    d: &Buffer<f32>,
    a: &Buffer<T>,
    b: &Buffer<T>,
    workspace: &Buffer<f32>,
) -> Result<()> {
    match arch(device) {
        Arch::Sm90 if gemm.order == Order::Tn && sm90::takes(gemm, d, &Epilogue::<T>::NONE) => {
            let plan = Plan::choose_split(gemm, device.sm_count(), workspace.len());
            run_split_planned(device, &plan, gemm, d, a, b, workspace)
        }
        _ => run(device, gemm, d, a, b),
    }
}

/// Adds the product of a weight's gradient to it; one in bf16 that is fresh is overwritten. `workspace` as for [`run_split`], of
/// which none splits nothing.
///
/// # Errors
/// As [`run`].
pub fn run_gradient<T: Float>(
    device: &Device,
    gemm: &Gemm,
    gradient: &Gradient,
    a: &Buffer<T>,
    b: &Buffer<T>,
    workspace: Option<&Buffer<f32>>,
) -> Result<()> {
    match (gradient, workspace) {
        (Gradient::F32(d), Some(workspace)) => run_split(device, gemm, d, a, b, workspace),
        (Gradient::F32(d), None) => run(device, gemm, d, a, b),
        (Gradient::Bf16(narrow), _) => run_narrow(device, gemm, narrow, a, b, workspace),
    }
}

fn run_narrow<T: Float>(
    device: &Device,
    gemm: &Gemm,
    narrow: &Narrow,
    a: &Buffer<T>,
    b: &Buffer<T>,
    workspace: Option<&Buffer<f32>>,
) -> Result<()> {
    ensure!(gemm.order == Order::Tn, "{gemm:?}: only gradients of weights are added up in bf16");
    expect_chunk("a gradient in bf16", narrow.first, 8)?;
    let (gemm, d) = (&Gemm { accumulate: !narrow.fresh, ..*gemm }, &narrow.buffer);
    if is_empty(gemm, d, a, b, &Epilogue::NONE)? {
        return Ok(());
    }
    if let Some(host) = device.as_host()
        && host.options().gemm == GemmBackend::Native
    {
        device.owns(d).and(device.owns(a)).and(device.owns(b))?;
        let chance = Chance { draw: narrow.draw, part: narrow.part, first: narrow.first };
        let product = Product { chance: Some(chance), ..product(gemm, d, a, b) };
        // SAFETY: all lengths were checked above, and whose the buffers are.
        return unsafe { host.multiply(&product) };
    }
    match device.arch() {
        Arch::Sm90 if sm90::takes(gemm, d, &Epilogue::<T>::NONE) => {
            let plan = Plan::choose_split(gemm, device.sm_count(), workspace.map_or(0, Buffer::len));
            sm90::run_narrow(device, &plan, gemm, narrow, &a.cast(), &b.cast(), workspace)
        }
        _ => portable::run_narrow(device, gemm, narrow, a, b),
    }
}

/// Runs the product of a gradient in bf16 on Hopper's own units by a given plan.
///
/// # Errors
/// As [`run_planned`].
pub fn run_narrow_planned(
    device: &Device,
    plan: &Plan,
    gemm: &Gemm,
    narrow: &Narrow,
    [a, b]: [&Buffer<bf16>; 2],
    workspace: &Buffer<f32>,
) -> Result<()> {
    let gemm = &Gemm { accumulate: !narrow.fresh, ..*gemm };
    is_empty(gemm, &narrow.buffer, a, b, &Epilogue::NONE)?;
    sm90::run_narrow(device, plan, gemm, narrow, a, b, Some(workspace))
}

/// Elements of the workspace with which [`run_split`] is fastest.
pub fn split_workspace<T: Float>(device: &Device, gemm: &Gemm) -> usize {
    match (arch(device), T::DTYPE) {
        (Arch::Sm90, DType::Bf16) => Plan::choose_split(gemm, device.sm_count(), usize::MAX).workspace(gemm),
        _ => 0,
    }
}

/// Runs the product of a weight's gradient of bf16 on Hopper's own units by a given plan.
///
/// # Errors
/// As [`run_planned`].
pub fn run_split_planned<T: Float>(
    device: &Device,
    plan: &Plan,
    gemm: &Gemm,
    d: &Buffer<f32>,
    a: &Buffer<T>,
    b: &Buffer<T>,
    workspace: &Buffer<f32>,
) -> Result<()> {
    planned(device, plan, gemm, d, a, b, &Epilogue::NONE, Some(workspace))
}

/// The kernels that products of bf16 take, and what is worked up in one kernel with a product: the device's, but the portable
/// ones where the host device leaves products to a library.
pub(super) fn arch(device: &Device) -> Arch {
    let native = device.as_host().is_some_and(|host| host.options().gemm == GemmBackend::Native);
    if native { Arch::Portable } else { device.arch() }
}

/// Runs one product and adds to it: in the same kernel on Hopper, in passes of their own elsewhere, each of which rounds.
/// D is packed.
///
/// # Errors
/// As [`run`]; also if rows of D are further apart than n.
pub fn run_adding<T: Float>(
    device: &Device,
    gemm: &Gemm,
    d: &Buffer<T>,
    a: &Buffer<T>,
    b: &Buffer<T>,
    extras: &Epilogue<T>,
) -> Result<()> {
    match arch(device) {
        Arch::Sm90 if sm90::takes(gemm, d, extras) => {
            run_planned(device, &Plan::choose(gemm, device.sm_count()), gemm, d, a, b, extras)
        }
        _ => run_then_add(device, gemm, d, a, b, extras),
    }
}

/// The product, then each addition in a pass of its own.
fn run_then_add<T: Float>(
    device: &Device,
    gemm: &Gemm,
    d: &Buffer<T>,
    a: &Buffer<T>,
    b: &Buffer<T>,
    extras: &Epilogue<T>,
) -> Result<()> {
    is_empty(gemm, d, a, b, extras)?;
    ensure!(gemm.ldd == gemm.n || extras.is_none(), "{gemm:?}: what is added needs a packed D");
    run(device, gemm, d, a, b)?;
    if let Some(bias) = extras.bias {
        bias::add(device, d, bias, gemm.m, gemm.n)?;
    }
    extras.addend.map_or(Ok(()), |addend| residual::add(device, d, d, addend, gemm.m * gemm.n))
}

/// Runs one product of bf16 on Hopper's own units by a given plan.
///
/// # Errors
/// As [`run`]; also if the kernels cannot write such a D or the plan does not fit.
pub fn run_planned<T: Float, O: Float>(
    device: &Device,
    plan: &Plan,
    gemm: &Gemm,
    d: &Buffer<O>,
    a: &Buffer<T>,
    b: &Buffer<T>,
    extras: &Epilogue<O>,
) -> Result<()> {
    planned(device, plan, gemm, d, a, b, extras, None)
}

#[expect(clippy::too_many_arguments, reason = "both kinds of plans")]
fn planned<T: Float, O: Float>(
    device: &Device,
    plan: &Plan,
    gemm: &Gemm,
    d: &Buffer<O>,
    a: &Buffer<T>,
    b: &Buffer<T>,
    extras: &Epilogue<O>,
    workspace: Option<&Buffer<f32>>,
) -> Result<()> {
    ensure!(T::DTYPE == DType::Bf16, "{gemm:?}: {:?} operands on tensor cores", T::DTYPE);
    if is_empty(gemm, d, a, b, extras)? {
        return Ok(());
    }
    ensure!(O::DTYPE == DType::Bf16 || extras.is_none(), "{gemm:?}: f32 results take no bias or addend");
    let [bias, addend] = [extras.bias, extras.addend].map(|x| x.map(Buffer::cast::<bf16>));
    let extras = Epilogue { bias: bias.as_ref(), addend: addend.as_ref() };
    sm90::run(device, plan, gemm, d, &a.cast(), &b.cast(), &extras, workspace)
}

/// Checks all lengths; true if there is nothing to compute.
fn is_empty<T: Float, O: Float>(
    gemm: &Gemm,
    d: &Buffer<O>,
    a: &Buffer<T>,
    b: &Buffer<T>,
    extras: &Epilogue<O>,
) -> Result<bool> {
    let [a_shape, b_shape] = gemm.stored();
    check_operand("A", gemm, a, a_shape, gemm.lda)?;
    check_operand("B", gemm, b, b_shape, gemm.ldb)?;
    check_span("D", gemm, d, (gemm.m, gemm.n), gemm.ldd)?;
    if let Some(addend) = extras.addend {
        check_span("the addend", gemm, addend, (gemm.m, gemm.n), gemm.ldd)?;
    }
    if let Some(bias) = extras.bias {
        check_span("the bias", gemm, bias, (1, gemm.n), gemm.n)?;
    }
    ensure!(!gemm.accumulate || extras.is_none(), "{gemm:?}: adds to D or something else, not both");
    if gemm.m == 0 || gemm.n == 0 || gemm.k == 0 && gemm.accumulate {
        return Ok(true);
    }
    ensure!(gemm.k > 0, "{gemm:?}: no terms to sum");
    Ok(false)
}

fn check_span<T: Element>(
    what: &str,
    gemm: &Gemm,
    buffer: &Buffer<T>,
    (rows, columns): (usize, usize),
    pitch: usize,
) -> Result<()> {
    ensure!(pitch >= columns, "{gemm:?}: rows of {what} have {columns} elements and are {pitch} apart");
    ensure!(rows.max(pitch) <= i32::MAX as usize, "{gemm:?}: {what} does not fit 32-bit sizes");
    let span = if rows == 0 { 0 } else { (rows - 1) * pitch + columns };
    ensure!(buffer.len() >= span, "{gemm:?}: {what} needs {span} elements, found {}", buffer.len());
    Ok(())
}

fn check_operand<T: Element>(
    what: &str,
    gemm: &Gemm,
    buffer: &Buffer<T>,
    shape: (usize, usize),
    pitch: usize,
) -> Result<()> {
    check_span(what, gemm, buffer, shape, pitch)?;
    if T::DTYPE == DType::Bf16 {
        let row_bytes = pitch * size_of::<T>();
        ensure!(
            row_bytes.is_multiple_of(ROW_BYTES),
            "{gemm:?}: rows of {what} are {pitch} bf16 apart, no multiple of 8"
        );
        let start = buffer.address() as usize % ROW_BYTES;
        ensure!(start == 0, "{gemm:?}: {what} starts {start} bytes after a multiple of {ROW_BYTES}");
    }
    Ok(())
}

/// The product as the native backend takes it: matrices of any strides.
fn product<T: Float, O: Float>(gemm: &Gemm, d: &Buffer<O>, a: &Buffer<T>, b: &Buffer<T>) -> Product {
    let Gemm { m, n, k, lda, ldb, ldd, .. } = *gemm;
    let matrix = |address, dtype, strides: (usize, usize)| Matrix { address, dtype, strides: [strides.0, strides.1] };
    let (a_strides, b_strides) = match gemm.order {
        Order::Nt => ((lda, 1), (1, ldb)),
        Order::Nn => ((lda, 1), (ldb, 1)),
        Order::Tn => ((1, lda), (ldb, 1)),
    };
    Product {
        m,
        n,
        k,
        d: matrix(d.address(), O::DTYPE, (ldd, 1)),
        a: matrix(a.address(), T::DTYPE, a_strides),
        b: matrix(b.address(), T::DTYPE, b_strides),
        accumulate: gemm.accumulate,
        chance: None,
    }
}
