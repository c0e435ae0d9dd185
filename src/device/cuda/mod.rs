//! GPUs through the CUDA driver, loaded at run time.
//!
//! Owns one stream, its memory and its launches; every copy, launch and release is ordered on that stream, but for copies from
//! and to page-locked memory of a caller, which have streams of their own. Contexts and loaded kernels are shared by all devices of a process that name the same GPU.

pub mod driver;
mod graph;
pub mod images;
mod modules;
mod peak;
mod pinned;
mod staging;

use std::{
    ffi::c_void,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, anyhow, bail};
use cudarc::driver::{
    self as cu, CudaStream,
    result::{self, DriverError},
    sys::{self, CUevent_flags},
};

use super::{Arch, Arg, DType, Kernel, Launch, MemoryUse, Swizzle, TensorMap, TensorShape};
use driver::explain;
pub use driver::{GpuInfo, NoGpu};
use graph::{Capture, Graphs, Node};
pub use images::{Cubin, CubinTable, EMBEDDED};
use modules::Gpu;
use pinned::Copies;
pub use pinned::CudaPinned;
use staging::{Slot, Staging};

/// How a GPU is driven.
#[derive(Clone, Copy, Debug, Default)]
pub struct CudaOptions {
    /// Waits for every launch and checks it, so that the kernel that failed is named. Slow.
    pub check_launches: bool,
    /// Takes the kernels that every GPU runs, on Hopper too: to compare the two.
    pub portable: bool,
}

/// A point in a device's stream.
pub type CudaEvent = cu::CudaEvent;

/// An open GPU.
pub struct CudaDevice {
    inner: Arc<Inner>,
}

/// What allocations share with the device they came from.
struct Inner {
    gpu: Arc<Gpu>,
    stream: Arc<CudaStream>,
    /// `None` if the driver refused them.
    copies: OnceLock<Option<Copies>>,
    staging: Mutex<Staging>,
    graphs: Mutex<Graphs>,
    /// While a graph is captured.
    capture: Mutex<Option<Capture>>,
    options: CudaOptions,
    arch: Arch,
    allocated: AtomicUsize,
    peak: AtomicUsize,
    unchecked: Mutex<Unchecked>,
}

/// Launches that nobody has waited for: a failure shows at the next wait and is one of these.
#[derive(Default)]
struct Unchecked {
    /// Since the device was opened, and how many of them are known to have ended well.
    launches: usize,
    checked: usize,
    last: Option<&'static Kernel>,
}

impl Unchecked {
    fn checked_until(&mut self, launches: usize) {
        self.checked = self.checked.max(launches);
    }
}

/// One allocation; freed, in the order of the stream, when dropped.
pub struct CudaMemory {
    inner: Arc<Inner>,
    address: u64,
    bytes: usize,
}

/// Bytes on their way from the GPU, as they were at one point of the stream.
pub struct CudaReadback {
    inner: Arc<Inner>,
    slot: Option<Slot>,
    /// Launches before it.
    launches: usize,
}

impl CudaReadback {
    /// Waits for the copy, not for what was queued after it.
    pub fn wait(self, target: &mut [u8]) -> Result<()> {
        let Some(slot) = &self.slot else { return Ok(()) };
        let waited = self.inner.bind().and_then(|()| slot.wait(target.len()).map_err(explain));
        target.copy_from_slice(waited.with_context(|| self.inner.suspects())?);
        self.inner.unchecked().checked_until(self.launches);
        Ok(())
    }
}

impl Drop for CudaReadback {
    fn drop(&mut self) {
        let slot = self.slot.take();
        slot.into_iter().for_each(|slot| self.inner.staging().give_back(slot));
    }
}

impl CudaMemory {
    /// Device address of the first byte.
    pub fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        self.inner.allocated.fetch_sub(self.bytes, Ordering::Relaxed);
        if let Some(capture) = &mut *self.inner.capture() {
            capture.released.push(self.address);
            return;
        }
        self.inner.free(self.address);
    }
}

/// True if there is no driver, or one that shows no GPU. A driver that is too old or does not start is not absent.
pub fn is_absent() -> bool {
    driver::count().map_or_else(|why| why.is::<NoGpu>(), |count| count == 0)
}

/// Milliseconds between two events; waits for both.
pub fn elapsed_ms(start: &CudaEvent, end: &CudaEvent) -> Result<f64> {
    let ms = start.elapsed_ms(end).map_err(|e| explain(e).context("time between two events"))?;
    Ok(f64::from(ms))
}

impl CudaDevice {
    /// Opens GPU number `ordinal`.
    ///
    /// # Errors
    /// As [`Device::cuda`](super::Device::cuda).
    pub fn new(ordinal: usize, options: CudaOptions) -> Result<Self> {
        let gpu = Gpu::open(ordinal)?;
        let stream = gpu.context.new_stream().map_err(|e| explain(e).context("stream"))?;
        let capability = gpu.info.capability;
        let mut for_sm90 = super::kernels::ALL.iter().filter(|kernel| kernel.arch() == Arch::Sm90);
        let embedded = for_sm90.all(|kernel| EMBEDDED.pick(kernel.module, capability).is_some());
        let inner = Inner {
            gpu,
            stream,
            copies: OnceLock::new(),
            staging: Mutex::new(Staging::new()),
            graphs: Mutex::default(),
            capture: Mutex::default(),
            options,
            arch: if embedded && !options.portable { Arch::Sm90 } else { Arch::Portable },
            allocated: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            unchecked: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Loads every kernel this GPU has an image of and counts them.
    ///
    /// # Errors
    /// The driver does not take an image.
    pub fn load_all(&self) -> Result<usize> {
        let capability = self.info().capability;
        let runs = |kernel: &&&Kernel| EMBEDDED.pick(kernel.module, capability).is_some();
        let mut count = 0;
        for kernel in super::kernels::ALL.iter().filter(runs) {
            self.inner.gpu.function(kernel, 0)?;
            count += 1;
        }
        Ok(count)
    }

    /// What the driver tells about it.
    pub fn info(&self) -> &GpuInfo {
        &self.inner.gpu.info
    }

    /// Makes this GPU the calling thread's.
    ///
    /// # Errors
    /// The driver refuses.
    #[cfg(feature = "bench")]
    pub(crate) fn bind_to_thread(&self) -> Result<()> {
        self.inner.gpu.context.bind_to_thread().map_err(explain)
    }

    /// The stream on which everything is ordered.
    #[cfg(feature = "bench")]
    pub(crate) fn stream(&self) -> sys::CUstream {
        self.inner.stream.cu_stream()
    }

    /// [`Arch::Sm90`] if the build has images of all its kernels that this GPU takes.
    pub fn arch(&self) -> Arch {
        self.inner.arch
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        self.info().to_string()
    }

    /// See [`Device::arithmetic`](super::Device::arithmetic).
    pub fn arithmetic(&self) -> String {
        let kernels = match self.arch() {
            Arch::Sm90 => "sm_90a",
            Arch::Portable => "portable",
        };
        format!("{}, {kernels} kernels of {}", self.info().name, EMBEDDED.toolchain)
    }

    /// Streaming multiprocessors.
    pub fn sm_count(&self) -> usize {
        self.info().sm_count
    }

    /// Dense peak in FLOP/s for products of operands of `dtype`, by the data sheet or the clock.
    pub fn peak_flops(&self, dtype: DType) -> f64 {
        peak::flops(self.info(), dtype)
    }

    /// Bytes a second of device memory, where the data sheet is known.
    pub fn peak_bandwidth(&self) -> Option<f64> {
        peak::bandwidth(self.info())
    }

    pub(super) fn alloc(&self, bytes: usize) -> Result<CudaMemory> {
        self.refuse_in_graph("an allocation")?;
        let inner = &self.inner;
        // The driver refuses allocations of nothing.
        let size = bytes.max(1);
        // SAFETY: the memory is uninitialised, and nothing but kernels and copies ever reads it.
        let allocate = |()| unsafe {
            if inner.gpu.context.has_async_alloc() {
                result::malloc_async(inner.stream.cu_stream(), size)
            } else {
                result::malloc_sync(size)
            }
        };
        let wait_and_retry = |_| {
            // SAFETY: the stream is this device's own. What was released on it comes back with the wait.
            unsafe { result::stream::synchronize(inner.stream.cu_stream()) }.and_then(allocate)
        };
        let failed = |error: DriverError| {
            let out_of_memory = error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
            let what = if out_of_memory { "out of memory" } else { "an allocation failed" };
            let MemoryUse { allocated, free, total, .. } = self.memory();
            let held = format!("{bytes} bytes on top of {allocated} held; {free} free of {total}");
            explain(error).context(format!("cuda: {what}: {held}"))
        };
        inner.bind().context("cuda: an allocation")?;
        let address = allocate(()).or_else(wait_and_retry).map_err(failed)?;
        let held = inner.allocated.fetch_add(bytes, Ordering::Relaxed) + bytes;
        inner.peak.fetch_max(held, Ordering::Relaxed);
        Ok(CudaMemory { inner: inner.clone(), address, bytes })
    }

    /// Bytes held now and at most.
    pub fn memory(&self) -> MemoryUse {
        let (free, total) = self.inner.gpu.free_and_total();
        MemoryUse {
            allocated: self.inner.allocated.load(Ordering::Relaxed),
            peak: self.inner.peak.load(Ordering::Relaxed),
            free,
            total,
        }
    }

    /// Takes the bytes and queues the copy; does not wait for what is queued before it.
    pub(super) fn copy_in(&self, target: u64, source: &[u8]) -> Result<()> {
        self.refuse_in_graph("a copy to the device")?;
        let mut staging = self.inner.staging();
        // SAFETY: `Device` checked the length against the buffer, whose release is ordered behind the copy.
        let queued = self.inner.bind().and_then(|()| unsafe { staging.copy(&self.inner.stream, target, source) });
        queued.context("cuda")
    }

    /// Queues a copy of `bytes` at `source`.
    pub(super) fn read(&self, source: u64, bytes: usize) -> Result<CudaReadback> {
        self.refuse_in_graph("a copy from the device")?;
        let inner = &self.inner;
        // SAFETY: `Device` took address and length from a buffer, whose release is ordered behind the copy.
        let queued = |()| unsafe { inner.staging().read(&inner.stream, source, bytes) };
        let slot = if bytes == 0 { None } else { Some(inner.bind().and_then(queued).context("cuda")?) };
        Ok(CudaReadback { inner: inner.clone(), slot, launches: inner.unchecked().launches })
    }

    pub(super) fn copy_out(&self, target: &mut [u8], source: u64) -> Result<()> {
        self.refuse_in_graph("a copy from the device")?;
        if target.is_empty() {
            return self.synchronize();
        }
        // SAFETY: `Device` checked the length against the buffer; `target` outlives the wait.
        self.ordered("copy from the device", |stream| unsafe { result::memcpy_dtoh_async(target, source, stream) })?;
        self.synchronize()
    }

    pub(super) fn copy(&self, target: u64, source: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: `Device` checked the lengths; both buffers are alive until the stream has passed their release.
        self.ordered("copy on the device", |stream| unsafe {
            result::memcpy_dtod_async(target, source, bytes, stream)
        })?;
        self.inner.note(Node::Copy);
        Ok(())
    }

    pub(super) fn fill_zero(&self, target: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: as in `copy`.
        self.ordered("fill", |stream| unsafe { result::memset_d8_async(target, 0, bytes, stream) })?;
        self.inner.note(Node::Fill);
        Ok(())
    }

    /// The driver's tensor map.
    pub(super) fn tensor_map(&self, dtype: DType, address: u64, shape: &TensorShape) -> Result<TensorMap> {
        let rank = shape.dims.len();
        let element = match dtype {
            DType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            DType::I32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_INT32,
            other => bail!("tensor maps of {other:?} are not used here"),
        };
        let bytes = if dtype == DType::Bf16 { 2 } else { 4 };
        let dims: Vec<u64> = shape.dims.iter().map(|&dim| dim as u64).collect();
        let pitches: Vec<u64> = shape.pitches.iter().map(|&pitch| (pitch * bytes) as u64).collect();
        let tile: Vec<u32> = shape.tile.iter().map(|&side| side as u32).collect();
        let steps = vec![1u32; rank];
        let swizzle = match shape.swizzle {
            Swizzle::None => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::Bytes128 => sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        self.inner.bind()?;
        // SAFETY: every array has as many entries as the rank asks for and outlives the call, which keeps none of them.
        let encoded = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                element,
                rank as u32,
                address as *mut c_void,
                dims.as_ptr(),
                pitches.as_ptr(),
                tile.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        encoded.result().map_err(|e| explain(e).context(format!("tensor map of {shape:?}")))?;
        Ok(TensorMap(map.opaque))
    }

    /// Waits until everything launched and every copy has ended.
    ///
    /// # Errors
    /// Something launched failed.
    pub fn synchronize(&self) -> Result<()> {
        let done = self.inner.bind().and_then(|()| self.inner.wait_for_all().map_err(explain));
        let why = self.inner.suspects();
        let mut unchecked = self.inner.unchecked();
        let launches = unchecked.launches;
        unchecked.checked_until(launches);
        done.context(why)
    }

    /// Marks the current point of the stream.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn record(&self) -> Result<CudaEvent> {
        let event = self.inner.gpu.context.new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        let event = event.map_err(|e| explain(e).context("event"))?;
        event.record(&self.inner.stream).map_err(|e| explain(e).context("event"))?;
        Ok(event)
    }

    /// # Safety
    /// As [`super::Device::launch`].
    pub unsafe fn launch(&self, kernel: &'static Kernel, launch: Launch, args: &mut [Arg]) -> Result<()> {
        let failed = |why: anyhow::Error| {
            why.context(format!("{} ({}): {}{launch}", kernel.name, kernel.place, shape(kernel, args)))
        };
        if args.len() != kernel.params.len() {
            return Err(failed(anyhow!("{} arguments for {} parameters", args.len(), kernel.params.len())));
        }
        let function = self.inner.gpu.function(kernel, launch.smem_bytes).map_err(failed)?;
        let mut pointers: Vec<*mut c_void> = args.iter().map(Arg::pointer).collect();
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.block[0],
            blockDimY: launch.block[1],
            blockDimZ: launch.block[2],
            sharedMemBytes: launch.smem_bytes,
            hStream: self.inner.stream.cu_stream(),
            attrs: std::ptr::null_mut(),
            numAttrs: 0,
        };
        // SAFETY: there is one pointer for each parameter, to eight bytes or a tensor map, of which the driver copies as many
        // bytes as the parameter has (little-endian, so the low ones) before the call returns; the caller vouches for the rest.
        let launched = unsafe { sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), std::ptr::null_mut()) };
        launched.result().map_err(|e| failed(explain(e)))?;
        self.inner.note(Node::launch(kernel, &launch));
        {
            let mut unchecked = self.inner.unchecked();
            unchecked.launches += 1;
            unchecked.last = Some(kernel);
        }
        if self.inner.options.check_launches {
            self.synchronize().map_err(failed)?;
        }
        Ok(())
    }

    fn ordered(&self, what: &str, work: impl FnOnce(sys::CUstream) -> Result<(), DriverError>) -> Result<()> {
        let done = self.inner.bind().and_then(|()| work(self.inner.stream.cu_stream()).map_err(explain));
        done.with_context(|| format!("cuda: {what}"))
    }
}

impl Inner {
    fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn graphs(&self) -> MutexGuard<'_, Graphs> {
        self.graphs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn capture(&self) -> MutexGuard<'_, Option<Capture>> {
        self.capture.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what enters the stream, if it is captured.
    fn note(&self, node: Node) {
        if let Some(capture) = &mut *self.capture() {
            capture.nodes.push(node);
        }
    }

    /// Frees, in the order of the stream, what `alloc` gave and nobody holds any more.
    fn free(&self, address: u64) {
        let context = &self.gpu.context;
        let stream = self.stream.cu_stream();
        // SAFETY: the address came from `alloc` of this device and is freed once; the stream is alive.
        let free = |()| unsafe {
            if context.has_async_alloc() {
                result::free_async(address, stream)
            } else {
                // `cuMemFree` itself waits for work that uses the memory.
                result::free_sync(address)
            }
        };
        // A failure here is an earlier kernel's; it shows at the next call that can return it.
        context.record_err(context.bind_to_thread().and_then(free));
    }

    fn unchecked(&self) -> MutexGuard<'_, Unchecked> {
        self.unchecked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may have failed when a wait does.
    fn suspects(&self) -> String {
        let Unchecked { launches, checked, last } = &*self.unchecked();
        match (launches - checked, last) {
            (count @ 1.., Some(Kernel { name, place, .. })) => {
                format!("cuda: one of the last {count} launches failed; the latest was {name} ({place})")
            }
            _ => "cuda: waiting for the device".into(),
        }
    }

    /// Makes the GPU's context current on this thread.
    fn bind(&self) -> Result<()> {
        self.gpu.context.bind_to_thread().map_err(explain)
    }
}

/// The scalar arguments by name: dimensions and the like.
fn shape(kernel: &Kernel, args: &[Arg]) -> String {
    let named = kernel.params.iter().zip(kernel.types).zip(args);
    let scalars = named.filter_map(|((name, ty), arg)| {
        let word = arg.word();
        let value = match *ty {
            "int" => (word as i32).to_string(),
            "unsigned" | "unsigned char" | "unsigned long long" => word.to_string(),
            "long long" => (word as i64).to_string(),
            "float" => f32::from_bits(word as u32).to_string(),
            "double" => f64::from_bits(word).to_string(),
            _ => return None,
        };
        Some(format!("{name} {value}, "))
    });
    scalars.collect()
}
