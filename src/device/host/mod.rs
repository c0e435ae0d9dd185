//! The host device: runs the same kernel sources as the GPU, on the CPU.
//!
//! Owns host memory, the worker threads that CTAs are spread over and the choice between the fast and the strict
//! build of the kernels. The SIMT machine itself is `simt`; what strict mode checks is in `strict`.

mod abi;
pub(crate) mod gemm;
mod place;
mod random;
mod simt;
#[cfg(feature = "strict")]
mod strict;
#[cfg(not(feature = "strict"))]
#[path = "lenient.rs"]
mod strict;
pub mod workers;

use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    cell::Cell,
    ffi::c_void,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use anyhow::{Context, Result, anyhow, ensure};
use rayon::prelude::*;

use super::{Arch, Arg, DType, Kernel, Launch, MemoryUse, Table};

/// A kernel's trampoline: takes pointers to the arguments, as `cuLaunchKernel` does.
pub type EntryPoint = unsafe extern "C" fn(*mut *mut c_void);

/// In which order the threads of a CTA, and in strict mode the CTAs of a grid, get to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThreadOrder {
    /// By number.
    #[default]
    InOrder,
    /// By number, the last first.
    Reversed,
    /// The thread that was released last runs first, so one warp gets as far as it can.
    Eager,
    /// By random numbers of this seed.
    Random(u64),
}

/// What multiplies matrices on the host device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GemmBackend {
    /// The `gemm` crate.
    #[default]
    Native,
    /// The CUDA kernels, emulated.
    Kernel,
}

/// When asynchronous copies land in strict mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Completion {
    /// At once.
    #[default]
    Early,
    /// When somebody waits for them.
    Late,
}

/// What a kernel leaves out or gets wrong at every place where it uses Hopper's units: the tests of a kernel show that
/// strict mode or the result would tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `fence.proxy.async` is missing.
    NoAsyncFence,
    /// `wgmma.fence` is missing.
    NoProductFence,
    /// Waits for the other parity of an mbarrier.
    WrongParity,
    /// Does not wait for its products: lets go of slots and reads accumulators while they are at work.
    NoProductWait,
    /// B's rows are taken to be twice as far apart.
    WrongStride,
    /// An mbarrier expects no bytes.
    NoExpectedBytes,
    /// Overwrites a panel that a bulk store may still read.
    NoStoreWait,
}

impl Fault {
    /// Each of them.
    pub const ALL: [Self; 7] = [
        Self::NoAsyncFence,
        Self::NoProductFence,
        Self::WrongParity,
        Self::NoProductWait,
        Self::WrongStride,
        Self::NoExpectedBytes,
        Self::NoStoreWait,
    ];
}

/// What one instruction that touches shared memory did over all launches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BankConflicts {
    /// Entry point.
    pub kernel: &'static str,
    /// `kernels/x.cu:12`
    pub place: String,
    /// A store; else a load.
    pub write: bool,
    /// Times a warp ran it.
    pub instructions: u64,
    /// Passes it took, and would have taken without conflicts.
    pub passes: u64,
    /// Passes without conflicts.
    pub least: u64,
    /// Largest number of different words that one bank was asked for at once.
    pub degree: usize,
}

/// How the host device runs.
#[derive(Clone, Copy, Debug)]
pub struct HostOptions {
    /// Worker threads; 0 takes one per core. Results do not depend on it.
    pub threads: usize,
    /// What multiplies matrices.
    pub gemm: GemmBackend,
    /// Plays a GPU of compute capability 9.0: ops take the kernels that need one.
    pub hopper: bool,
    /// Plays a device whose launches return before they are done: a run queues the next step before it reads one's metrics.
    pub ahead: bool,
    /// Runs the instrumented build and checks every access.
    pub strict: bool,
    /// Who runs first.
    pub schedule: ThreadOrder,
    /// When asynchronous copies land.
    pub completion: Completion,
    /// Strict mode counts how lanes meet in banks of shared memory: see [`HostDevice::bank_conflicts`].
    pub banks: bool,
    /// For tests of kernels.
    pub fault: Option<Fault>,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            threads: 0,
            gemm: GemmBackend::Native,
            hopper: false,
            ahead: false,
            strict: false,
            schedule: ThreadOrder::InOrder,
            completion: Completion::Early,
            banks: false,
            fault: None,
        }
    }
}

/// Whether native products take vectors of 512 bits.
fn wide_vectors() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx512f");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl HostOptions {
    /// Emulated kernels under every check: what the kernel tests run.
    pub fn strict(schedule: ThreadOrder, completion: Completion) -> Self {
        Self { gemm: GemmBackend::Kernel, threads: 1, strict: true, schedule, completion, ..Self::default() }
    }
}

/// Enough to make persistent kernels loop in tests, and the same on every machine.
const SM_COUNT: usize = 4;
const ALIGNMENT: usize = 256;
/// What one worker thread zeroes at a time.
const FILL_BYTES: usize = 4 << 20;
/// The limits of an H100.
const MAX_THREADS: usize = 1024;
const NAMED_BARRIERS: usize = 16;
/// Dynamic shared memory of a CTA at most.
pub const MAX_SHARED_BYTES: u32 = 232_448;

/// The CPU as a device: worker threads that run CTAs, and the memory they work on.
pub struct HostDevice {
    options: HostOptions,
    pool: rayon::ThreadPool,
    use_count: Arc<Usage>,
    peak_flops: OnceLock<f64>,
    /// Strict mode's book of buffers.
    registry: Option<Arc<strict::Registry>>,
}

/// What buffers share with the device they came from.
#[derive(Default)]
struct Usage {
    allocated: AtomicUsize,
    peak: AtomicUsize,
    /// While what is launched belongs to a graph, and whether a buffer was released since it began.
    graphed: AtomicBool,
    released: AtomicBool,
    /// Held by whoever launches, copies or fills: threads that share a device take turns.
    turn: Mutex<()>,
}

thread_local! {
    /// The device whose turn this thread holds, as its buffers name it.
    static TURN: Cell<u64> = const { Cell::new(0) };
}

impl Usage {
    /// What buffers name their device by: never 0, and nobody else's while one of them lives.
    fn name(self: &Arc<Self>) -> u64 {
        Arc::as_ptr(self) as u64
    }
}

/// Where a buffer begins, and the device it is of.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Of the first byte.
    pub address: u64,
    /// As [`Usage::name`] has it.
    pub owner: u64,
}

/// One allocation; freed when dropped.
pub struct HostMemory {
    base: *mut u8,
    layout: Layout,
    bytes: usize,
    registry: Option<Arc<strict::Registry>>,
    usage: Arc<Usage>,
}

// SAFETY: the memory is owned by this value, and every access goes through the device it is of, at its turn (`in_turn`,
// `check_owner`).
unsafe impl Send for HostMemory {}
// SAFETY: as above; no Rust reference to the bytes outlives a turn.
unsafe impl Sync for HostMemory {}

impl HostMemory {
    /// Of the first byte.
    pub fn address(&self) -> u64 {
        let guard = if self.registry.is_some() { strict::GUARD_BYTES } else { 0 };
        self.base as u64 + guard as u64
    }
}

impl HostMemory {
    pub(super) fn owner(&self) -> u64 {
        self.usage.name()
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        self.usage.allocated.fetch_sub(self.bytes, Ordering::Relaxed);
        self.usage.released.store(true, Ordering::Relaxed);
        // SAFETY: `base` came from `alloc_zeroed` with this layout and is freed once, here or by the registry.
        unsafe {
            match &self.registry {
                Some(registry) => registry.forget(self.address(), self.bytes, self.base, self.layout),
                None => dealloc(self.base, self.layout),
            }
        }
    }
}

impl HostDevice {
    /// Starts the worker threads.
    ///
    /// # Errors
    /// The processor is too old, more threads are asked for than work, or the program has no strict mode.
    pub fn new(options: HostOptions) -> Result<Self> {
        #[cfg(target_arch = "x86_64")]
        ensure!(
            std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma"),
            "host device: this processor has no AVX2 and FMA; the host kernels are built for x86-64-v3"
        );
        ensure!(
            cfg!(feature = "strict") || !options.strict,
            "host device: this program was built without the feature `strict`, which strict mode needs"
        );
        let threads = if options.strict { 1 } else { workers::resolve(options.threads)? };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("host-device-{i}"))
            .build()
            .context("host device: worker threads")?;
        let registry = strict::registry(&options);
        Ok(Self { options, pool, use_count: Arc::default(), peak_flops: OnceLock::new(), registry })
    }

    /// What every instruction that touched shared memory did so far, by kernel and place; nothing unless
    /// [`HostOptions::banks`] and strict mode are on.
    pub fn bank_conflicts(&self) -> Vec<BankConflicts> {
        let book = self.registry.as_ref().and_then(|registry| registry.banks.as_ref());
        book.map(|book: &Arc<strict::BankBook>| book.read()).unwrap_or_default()
    }

    /// How it runs.
    pub fn options(&self) -> &HostOptions {
        &self.options
    }

    /// Runs `work` on the device's own worker threads.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// See [`Device::arch`](super::Device::arch).
    pub fn arch(&self) -> Arch {
        if self.options.hopper { Arch::Sm90 } else { Arch::Portable }
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let strict = if self.options.strict { ", strict" } else { "" };
        let hopper = if self.options.hopper { ", as capability 9.0" } else { "" };
        format!("host ({} worker threads{strict}{hopper})", self.pool.current_num_threads())
    }

    /// See [`Device::arithmetic`](super::Device::arithmetic): native products are those of another crate.
    pub fn arithmetic(&self) -> String {
        let hopper = if self.options.hopper { ", as capability 9.0" } else { "" };
        match self.options.gemm {
            GemmBackend::Native => {
                format!(
                    "host{hopper} (gemm {}{})",
                    crate::versions::of_crate("gemm-f32"),
                    if wide_vectors() { ", avx512" } else { "" }
                )
            }
            GemmBackend::Kernel => format!("host{hopper} (kernels alone)"),
        }
    }

    /// Multiprocessors that it plays: the same on every machine.
    pub fn sm_count(&self) -> usize {
        SM_COUNT
    }

    /// Measured once: a square product with the native backend on all worker threads.
    pub fn peak_flops(&self, _dtype: DType) -> f64 {
        *self.peak_flops.get_or_init(|| gemm::measure_peak(self))
    }

    /// Runs `work` and refuses what a GPU's graph cannot hold.
    ///
    /// # Errors
    /// Those of `work`, or a buffer was released in it.
    pub fn graphed<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let Usage { graphed, released, .. } = &*self.use_count;
        graphed.store(true, Ordering::Relaxed);
        released.store(false, Ordering::Relaxed);
        let done = work();
        graphed.store(false, Ordering::Relaxed);
        let (done, released) = (done?, released.load(Ordering::Relaxed));
        ensure!(!released, "host device: a release of a buffer inside a graph: do it before or after");
        Ok(done)
    }

    /// Runs `work` while no other thread launches, copies or fills. Within a turn of the same thread it is part of that.
    fn in_turn<R>(&self, work: impl FnOnce() -> R) -> R {
        let name = self.use_count.name();
        if TURN.get() == name {
            return work();
        }
        // Work that panicked left bytes in device memory, as an error does.
        let _turn = self.use_count.turn.lock().unwrap_or_else(PoisonError::into_inner);
        /// Gives the name back, also when the work panics.
        struct Named(u64);
        impl Drop for Named {
            fn drop(&mut self) {
                TURN.set(self.0);
            }
        }
        let _named = Named(TURN.replace(name));
        work()
    }

    /// # Errors
    /// The buffer is of another device, whose turn is not this one's.
    pub(super) fn check_owner(&self, place: Place) -> Result<()> {
        ensure!(place.owner == self.use_count.name(), "host device: a buffer of another device");
        Ok(())
    }

    /// Checks the tables, then runs `launch` in the same turn.
    pub(super) fn with_tables<R>(&self, tables: &[Table], launch: impl FnOnce() -> Result<R>) -> Result<R> {
        self.in_turn(|| {
            for table in tables {
                let Place { address, .. } = table.entries.place();
                self.check_owner(table.entries.place())?;
                // SAFETY: the buffer is of this device and has so many entries; nobody writes them in this turn before the launch.
                let entries = unsafe { std::slice::from_raw_parts(address as *const i32, table.entries.len()) };
                table.check(entries)?;
            }
            launch()
        })
    }

    fn refuse_in_graph(&self, what: &str) -> Result<()> {
        let graphed = self.use_count.graphed.load(Ordering::Relaxed);
        ensure!(!graphed, "host device: {what} inside a graph: do it before or after");
        Ok(())
    }

    /// Memory of zeros, or in strict mode of bytes that count as never written.
    ///
    /// # Errors
    /// There is not so much, or a graph is made.
    pub fn alloc(&self, bytes: usize) -> Result<HostMemory> {
        self.refuse_in_graph("an allocation")?;
        let guard = if self.options.strict { strict::GUARD_BYTES } else { 0 };
        let layout = Layout::from_size_align(bytes.max(1) + 2 * guard, ALIGNMENT)?;
        // SAFETY: the size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        ensure!(!base.is_null(), "host device: out of memory: {bytes} bytes");
        let held = self.use_count.allocated.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.use_count.peak.fetch_max(held, Ordering::Relaxed);
        let memory = HostMemory { base, layout, bytes, registry: self.registry.clone(), usage: self.use_count.clone() };
        if let Some(registry) = &self.registry {
            // SAFETY: just allocated with this size.
            unsafe { base.write_bytes(strict::POISON, layout.size()) };
            registry.remember(memory.address(), bytes);
        }
        Ok(memory)
    }

    /// Bytes held now and at most.
    pub fn memory(&self) -> MemoryUse {
        let (free, total) = system_memory().unwrap_or((0, 0));
        MemoryUse {
            allocated: self.use_count.allocated.load(Ordering::Relaxed),
            peak: self.use_count.peak.load(Ordering::Relaxed),
            free,
            total,
        }
    }

    /// Tells strict mode that something other than a kernel wrote these bytes. Nothing without it.
    pub(super) fn mark_written(&self, address: u64, bytes: usize) {
        if let Some(registry) = &self.registry {
            registry.mark_written(address, bytes);
        }
    }

    pub(super) fn copy_in(&self, target: Place, source: &[u8]) -> Result<()> {
        self.refuse_in_graph("a copy to the device")?;
        self.check_owner(target)?;
        self.in_turn(|| {
            self.mark_written(target.address, source.len());
            // SAFETY: `Device` checked the length against the buffer, which is alive during the call, in this device's turn.
            unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), target.address as *mut u8, source.len()) };
        });
        Ok(())
    }

    pub(super) fn copy_out(&self, target: &mut [u8], source: Place) -> Result<()> {
        self.refuse_in_graph("a copy from the device")?;
        self.check_owner(source)?;
        // SAFETY: as in `copy_in`.
        let copy = || unsafe {
            std::ptr::copy_nonoverlapping(source.address as *const u8, target.as_mut_ptr(), target.len());
        };
        self.in_turn(copy);
        Ok(())
    }

    pub(super) fn copy(&self, target: Place, source: Place, bytes: usize) -> Result<()> {
        [target, source].into_iter().try_for_each(|place| self.check_owner(place))?;
        self.in_turn(|| {
            if let Some(registry) = &self.registry {
                registry.mark_copied(target.address, source.address, bytes);
            }
            // SAFETY: as in `copy_in`; `copy` allows overlap.
            unsafe { std::ptr::copy(source.address as *const u8, target.address as *mut u8, bytes) };
        });
        Ok(())
    }

    pub(super) fn fill_zero(&self, target: Place, bytes: usize) -> Result<()> {
        self.check_owner(target)?;
        self.in_turn(|| self.zero(target.address, bytes));
        Ok(())
    }

    fn zero(&self, target: u64, bytes: usize) {
        self.mark_written(target, bytes);
        let fill = |i: usize| {
            let start = i * FILL_BYTES;
            // SAFETY: as in `copy_in`; the pieces are disjoint.
            unsafe { std::ptr::write_bytes((target as *mut u8).add(start), 0, FILL_BYTES.min(bytes - start)) };
        };
        let pieces = bytes.div_ceil(FILL_BYTES);
        if pieces <= 1 || self.pool.current_num_threads() == 1 {
            (0..pieces).for_each(fill);
        } else {
            self.install(|| (0..pieces).into_par_iter().for_each(fill));
        }
    }

    /// # Safety
    /// As [`super::Device::launch`].
    pub unsafe fn launch(&self, kernel: &'static Kernel, launch: Launch, args: &mut [Arg]) -> Result<()> {
        let own = self.use_count.name();
        let foreign = args.iter().any(|arg| matches!(arg, Arg::Pointer(_, owner) if *owner != own));
        ensure!(!foreign, "{} ({}): a buffer of another device", kernel.name, kernel.place);
        self.in_turn(|| self.run(kernel, launch, args))
    }

    fn run(&self, kernel: &'static Kernel, launch: Launch, args: &[Arg]) -> Result<()> {
        let entry = if self.options.strict { kernel.strict.unwrap_or(kernel.host) } else { kernel.host };
        let memory = self.registry.as_ref().map(|registry| Arc::new(registry.snapshot())).unwrap_or_default();
        let grid = simt::Grid::new(kernel, entry, launch, args, self.options, memory);
        let (ctas, threads) = (grid.ctas(), grid.threads());
        let cluster = grid.cluster();
        ensure!(
            launch.grid[0].is_multiple_of(kernel.cluster) && (cluster == 1 || threads.is_multiple_of(32)),
            "{} ({}): {launch} is not made of clusters of {cluster} CTAs of whole warps",
            kernel.name,
            kernel.place
        );
        ensure!(
            threads <= MAX_THREADS,
            "{} ({}): {threads} threads in a block; at most {MAX_THREADS}",
            kernel.name,
            kernel.place
        );
        ensure!(
            launch.smem_bytes <= MAX_SHARED_BYTES,
            "{} ({}): {} bytes of shared memory; at most {MAX_SHARED_BYTES}",
            kernel.name,
            kernel.place,
            launch.smem_bytes
        );
        let clusters = ctas / cluster;
        let done = if self.options.strict {
            let order = strict::cta_order(&self.options, clusters);
            order.into_iter().try_for_each(|index| simt::run_cluster(&grid, index))
        } else if clusters == 1 || self.pool.current_num_threads() == 1 {
            (0..clusters).try_for_each(|index| simt::run_cluster(&grid, index))
        } else {
            self.pool.install(|| (0..clusters).into_par_iter().try_for_each(|index| simt::run_cluster(&grid, index)))
        };
        done.map_err(|why| anyhow!("{} ({}): {why}", kernel.name, kernel.place))
    }
}

/// Free and total bytes, as Linux tells them.
fn system_memory() -> Option<(usize, usize)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib * 1024)
    };
    Some((field("MemAvailable:")?, field("MemTotal:")?))
}
