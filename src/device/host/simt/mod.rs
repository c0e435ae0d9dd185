//! The SIMT machine: runs a CTA's threads as coroutines that switch at barriers and warp collectives.
//!
//! A fiber runs one CUDA thread after another until one has to wait; only then is another fiber needed. So a kernel
//! that never synchronises runs as a plain loop, without a single switch.

pub(super) mod bulk;
mod cluster;
mod mbarrier;
mod meetings;
pub(super) mod stacks;
pub(super) mod wgmma;

use std::{
    cell::{Cell, UnsafeCell},
    ffi::c_void,
    ptr,
    sync::Arc,
};

use corosensei::{Coroutine, CoroutineResult, Yielder, stack::Stack};

use bulk::Bulk;
use cluster::{ClusterBarrier, GROUP, RegisterPool};
use mbarrier::Mbarrier;
use meetings::{Barrier, WarpState};
use stacks::Stacks;
use wgmma::WarpGroup;

use super::{Completion, EntryPoint, HostOptions, NAMED_BARRIERS, ThreadOrder, place::Place, random::Random, strict};
use crate::device::{Arch, Arg, Kernel, Launch};

const WARP: usize = 32;

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct SimtIndex {
    x: u32,
    y: u32,
    z: u32,
}

/// Mirrors `SimtThread` in `kernels/host/simt_system.h`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct SimtThread {
    thread: SimtIndex,
    block: SimtIndex,
    block_dim: SimtIndex,
    grid_dim: SimtIndex,
    linear: u32,
    cluster_rank: u32,
    cluster_size: u32,
    shared: *mut c_void,
}

impl SimtThread {
    const NONE: Self = {
        let zero = SimtIndex { x: 0, y: 0, z: 0 };
        Self {
            thread: zero,
            block: zero,
            block_dim: zero,
            grid_dim: zero,
            linear: 0,
            cluster_rank: 0,
            cluster_size: 1,
            shared: ptr::null_mut(),
        }
    };
}

/// One launch, shared by all workers.
pub(super) struct Grid {
    pub kernel: &'static Kernel,
    entry: EntryPoint,
    pub launch: Launch,
    pub args: Vec<Arg>,
    pub options: HostOptions,
    /// The buffers there are; strict mode only.
    pub memory: Arc<strict::Memory>,
}

impl Grid {
    pub fn new(
        kernel: &'static Kernel,
        entry: EntryPoint,
        launch: Launch,
        args: &[Arg],
        options: HostOptions,
        memory: Arc<strict::Memory>,
    ) -> Self {
        Self { kernel, entry, launch, args: args.to_vec(), options, memory }
    }

    pub fn ctas(&self) -> usize {
        self.launch.grid.iter().map(|&n| n as usize).product()
    }

    /// Threads of a CTA.
    pub fn threads(&self) -> usize {
        self.launch.block.iter().map(|&n| n as usize).product()
    }

    /// CTAs that run together.
    pub fn cluster(&self) -> usize {
        self.kernel.cluster as usize
    }
}

type Fibre = Coroutine<(), (), (), stacks::Slice>;

/// A coroutine with the CUDA thread it is running. Reached by raw pointers only, because the scheduler, the coroutine
/// and the kernel all hold one.
#[repr(C)]
struct Fiber {
    /// First, so that a pointer to it is a pointer to its fiber.
    simt: SimtThread,
    index: usize,
    coroutine: Fibre,
    yielder: *const Yielder<(), ()>,
    /// Lowest and highest address of the stack.
    stack: (u64, u64),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Unstarted,
    Running,
    AtBarrier(u32),
    AtCollective(u32),
    AtMbarrier(u32),
    AtClusterBarrier,
    AtGroup,
    AtRegisters(u32),
    Done,
}

#[derive(Clone)]
struct ThreadState {
    status: Status,
    fiber: usize,
    place: Place,
    payload: *mut c_void,
}

pub(super) type Operation = Option<unsafe extern "C" fn(*mut *mut c_void, u32)>;

/// What one OS thread needs to run CTAs; kept from launch to launch.
pub(super) struct Worker {
    /// Owned; from `Box::into_raw`.
    fibers: Vec<*mut Fiber>,
    stacks: Stacks,
    idle: Vec<usize>,
    threads: Vec<ThreadState>,
    warps: Vec<WarpState>,
    unstarted: Vec<usize>,
    runnable: Vec<usize>,
    /// Scratch of `part`.
    members: Vec<usize>,
    /// (CTA, barrier)
    barriers: Vec<Barrier>,
    cluster_barrier: ClusterBarrier,
    mbarriers: Vec<Mbarrier>,
    bulk: Bulk,
    groups: Vec<WarpGroup>,
    pools: Vec<RegisterPool>,
    /// The kernel may use Hopper's units: asked once a cluster, not once a thread.
    hopper: bool,
    /// CTAs that run together, threads of one, and threads of each that have exited.
    ctas: usize,
    cta_threads: usize,
    gone: Vec<usize>,
    /// Shared memory of the CTAs, `stride` bytes apart.
    shared: Vec<Align1024>,
    stride: usize,
    grid: *const Grid,
    arg_pointers: Vec<*mut c_void>,
    /// What every thread is told; each has an index of its own.
    simt: SimtThread,
    /// Index of each CTA.
    blocks: Vec<SimtIndex>,
    running: usize,
    error: Option<String>,
    random: Random,
    done: usize,
    pub(super) strict: strict::CtaChecks,
}

#[repr(C, align(1024))]
#[derive(Clone, Copy)]
struct Align1024([u8; 1024]);

thread_local! {
    pub(super) static CURRENT: Cell<*mut SimtThread> = const { Cell::new(ptr::null_mut()) };
    static WORKER: UnsafeCell<Worker> = UnsafeCell::new(Worker::new());
}

/// The worker of this OS thread.
///
/// The machine is single-threaded per worker and hands control back and forth by coroutine switches, so several
/// frames hold this pointer at once; each uses it only while it has control.
pub(super) fn worker() -> *mut Worker {
    WORKER.with(|w| w.get())
}

/// The worker if it is running a CUDA thread now.
#[cfg(feature = "strict")]
pub(super) fn running_worker() -> Option<*mut Worker> {
    (!CURRENT.get().is_null()).then(worker)
}

/// Runs the CTAs of one cluster to their end; most kernels have one CTA in it.
///
/// # Errors
/// The kernel broke a rule or deadlocked; the message names block, thread and place.
pub(super) fn run_cluster(grid: &Grid, cluster: usize) -> Result<(), String> {
    let worker = worker();
    // SAFETY: this OS thread's own worker; no CUDA thread runs now, so nobody else uses it.
    unsafe {
        (*worker).start_cluster(grid, cluster * grid.cluster());
        Worker::run(worker);
        (*worker).end_cluster()
    }
}

impl Worker {
    fn new() -> Self {
        Self {
            fibers: Vec::new(),
            stacks: Stacks::default(),
            idle: Vec::new(),
            threads: Vec::new(),
            warps: Vec::new(),
            unstarted: Vec::new(),
            runnable: Vec::new(),
            members: Vec::new(),
            barriers: Vec::new(),
            cluster_barrier: ClusterBarrier::default(),
            mbarriers: Vec::new(),
            bulk: Bulk::default(),
            groups: Vec::new(),
            pools: Vec::new(),
            hopper: false,
            ctas: 1,
            cta_threads: 1,
            gone: Vec::new(),
            shared: Vec::new(),
            stride: 1024,
            grid: ptr::null(),
            arg_pointers: Vec::new(),
            simt: SimtThread::NONE,
            blocks: Vec::new(),
            running: 0,
            error: None,
            random: Random(0),
            done: 0,
            strict: strict::CtaChecks::default(),
        }
    }

    fn grid(&self) -> &Grid {
        // SAFETY: set by `start_cta` and alive until `end_cta`.
        unsafe { &*self.grid }
    }

    fn start_cluster(&mut self, grid: &Grid, first: usize) {
        self.grid = grid;
        (self.ctas, self.cta_threads) = (grid.cluster(), grid.threads());
        self.hopper = grid.kernel.arch() == Arch::Sm90;
        let count = self.ctas * self.cta_threads;
        let fresh = ThreadState { status: Status::Unstarted, fiber: 0, place: Place::NONE, payload: ptr::null_mut() };
        self.threads.clear();
        self.threads.resize(count, fresh);
        self.warps.clear();
        self.warps.resize(count.div_ceil(WARP), WarpState::default());
        self.runnable.clear();
        self.gone.clear();
        self.gone.resize(self.ctas, 0);
        self.done = 0;
        self.error = None;
        if let ThreadOrder::Random(seed) = grid.options.schedule {
            self.random = Random(seed ^ (first as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        self.unstarted.clear();
        // Taken from the end.
        match grid.options.schedule {
            ThreadOrder::Reversed => self.unstarted.extend(0..count),
            _ => self.unstarted.extend((0..count).rev()),
        }
        self.barriers.resize_with(self.ctas * NAMED_BARRIERS, Barrier::default);
        self.barriers.iter_mut().for_each(Barrier::reset);
        self.arg_pointers.clear();
        self.arg_pointers.extend(grid.args.iter().map(|arg| arg.pointer()));
        let blocks = (grid.launch.smem_bytes as usize).div_ceil(1024).max(1);
        self.stride = blocks * 1024;
        if self.shared.len() < blocks * self.ctas {
            self.shared.resize(blocks * self.ctas, Align1024([0; 1024]));
        }
        let shared: *mut u8 = self.shared.as_mut_ptr().cast();
        self.strict.start(strict::Watched {
            kernel: grid.kernel,
            args: &grid.args,
            threads: grid.threads(),
            ctas: self.ctas,
            shared_bytes: grid.launch.smem_bytes as usize,
            options: &grid.options,
            memory: &grid.memory,
            shared,
            stride: self.stride,
        });
        let [gx, gy, _] = grid.launch.grid.map(|n| n as usize);
        let index =
            |cta: usize| SimtIndex { x: (cta % gx) as u32, y: (cta / gx % gy) as u32, z: (cta / gx / gy) as u32 };
        self.blocks.clear();
        self.blocks.extend((first..first + self.ctas).map(index));
        let [bx, by, bz] = grid.launch.block;
        let [gx, gy, gz] = grid.launch.grid;
        self.simt = SimtThread {
            thread: SimtIndex::default(),
            block: self.blocks[0],
            block_dim: SimtIndex { x: bx, y: by, z: bz },
            grid_dim: SimtIndex { x: gx, y: gy, z: gz },
            linear: 0,
            cluster_rank: 0,
            cluster_size: self.ctas as u32,
            shared: shared.cast(),
        };
        if self.hopper {
            self.start_units(count);
        }
    }

    /// What only Hopper has.
    fn start_units(&mut self, threads: usize) {
        self.cluster_barrier.reset(threads);
        self.mbarriers.clear();
        self.bulk.reset(threads);
        self.groups.clear();
        self.groups.resize_with(threads.div_ceil(GROUP), WarpGroup::default);
        let fresh = || RegisterPool::new(self.cta_threads);
        self.pools = (0..self.ctas).map(|_| fresh()).collect();
    }

    fn add_fiber(&mut self) -> Result<usize, String> {
        let index = self.fibers.len();
        let stack = self.stacks.take().map_err(|why| {
            let bytes = stacks::STACK_BYTES;
            format!("no memory for the stack of thread {index} ({bytes} bytes): {why}; fewer worker threads need less")
        })?;
        self.fibers.push(Fiber::new(index, stack));
        Ok(index)
    }

    /// Resumes fibers until every thread is done, one reports an error, or none can go on.
    ///
    /// # Safety
    /// `this` is this OS thread's worker and no CUDA thread is running.
    unsafe fn run(this: *mut Self) {
        loop {
            // SAFETY: no coroutine runs between two resumes, so this frame is the worker's only user.
            let fiber = unsafe {
                let me = &mut *this;
                if me.error.is_some() || me.done == me.threads.len() {
                    break;
                }
                match me.pick_or_land() {
                    Ok(Some(fiber)) => fiber,
                    Ok(None) => {
                        me.error = Some(me.describe_deadlock());
                        break;
                    }
                    Err(why) => {
                        me.error = Some(format!("{}: {why}", me.block_name(0)));
                        break;
                    }
                }
            };
            // SAFETY: the fiber stays where it is while its coroutine runs; the coroutine reaches the worker and the
            // other fields of the fiber through pointers of its own, and this frame holds no reference to them.
            unsafe {
                let fiber = (&(*this).fibers)[fiber];
                CURRENT.set(&raw mut (*fiber).simt);
                let resumed = (*fiber).coroutine.resume(());
                CURRENT.set(ptr::null_mut());
                debug_assert!(matches!(resumed, CoroutineResult::Yield(())));
            }
        }
    }

    /// As [`pick`](Self::pick); copies that are held back arrive when nobody can run without them, and at random times
    /// under a random schedule.
    fn pick_or_land(&mut self) -> Result<Option<usize>, String> {
        if !self.hopper {
            return self.pick();
        }
        let random = matches!(self.grid().options.schedule, ThreadOrder::Random(_));
        if random && !self.bulk.loads.is_empty() && self.random.below(8) == 0 {
            self.land_one()?;
        }
        loop {
            if let Some(fiber) = self.pick()? {
                return Ok(Some(fiber));
            }
            if !self.land_one()? {
                return Ok(None);
            }
        }
    }

    /// The fiber to go on with. Unstarted threads come first, so that all reach the first barrier; `Eager` leaves them
    /// for when nobody else can run.
    fn pick(&mut self) -> Result<Option<usize>, String> {
        let schedule = self.grid().options.schedule;
        let start_new = !self.unstarted.is_empty()
            && match schedule {
                _ if self.runnable.is_empty() => true,
                ThreadOrder::Random(_) => self.random.below(2) == 0,
                ThreadOrder::Eager => false,
                ThreadOrder::InOrder | ThreadOrder::Reversed => true,
            };
        if start_new {
            return self.idle.pop().map_or_else(|| self.add_fiber(), Ok).map(Some);
        }
        let at = match schedule {
            _ if self.runnable.is_empty() => return Ok(None),
            ThreadOrder::Random(_) => self.random.below(self.runnable.len()),
            _ => self.runnable.len() - 1,
        };
        let thread = self.runnable.swap_remove(at);
        self.running = thread;
        self.threads[thread].status = Status::Running;
        Ok(Some(self.threads[thread].fiber))
    }

    /// Makes waiting threads runnable; the end of `runnable` is taken first. Returns whether the running thread, which
    /// completed what they waited for, goes on at once.
    fn release(&mut self, threads: &mut Vec<usize>) -> bool {
        let schedule = self.grid().options.schedule;
        let goes_on = !matches!(schedule, ThreadOrder::Random(_)) || self.random.below(2) == 0;
        if !goes_on {
            threads.push(self.running);
        }
        threads.sort_unstable();
        if schedule != ThreadOrder::Reversed {
            threads.reverse();
        }
        for &thread in &*threads {
            self.threads[thread].status = Status::Running;
        }
        self.enqueue(threads);
        goes_on
    }

    /// Makes threads runnable that something other than a thread released.
    fn wake(&mut self, mut threads: Vec<usize>) {
        for &thread in &threads {
            self.threads[thread].status = Status::Running;
        }
        self.enqueue(&mut threads);
    }

    fn enqueue(&mut self, threads: &mut Vec<usize>) {
        if self.grid().options.schedule == ThreadOrder::Eager {
            self.runnable.append(threads);
        } else {
            // Behind everyone who is runnable already.
            self.runnable.splice(0..0, threads.drain(..));
        }
    }

    /// Takes the next unstarted thread onto a fiber; called on the fiber.
    fn next_thread(&mut self, fiber: usize) -> bool {
        if self.error.is_some() {
            return false;
        }
        let random = matches!(self.grid().options.schedule, ThreadOrder::Random(_));
        let thread = match (self.unstarted.len(), random) {
            (0, _) => return false,
            (n, true) => {
                let at = self.random.below(n);
                self.unstarted.swap_remove(at)
            }
            (n, false) => self.unstarted.swap_remove(n - 1),
        };
        let rank = self.rank_of(thread);
        let linear = (thread - rank * self.cta_threads) as u32;
        // SAFETY: fibers live as long as the worker, and the kernel that reads this has not started. Field by field: a
        // copy of the whole would wait for the writes of its parts.
        unsafe {
            let simt = &raw mut (*self.fibers[fiber]).simt;
            (*simt).linear = linear;
            (*simt).thread = self.thread_index(linear);
            if self.ctas > 1 {
                (*simt).block = self.blocks[rank];
                (*simt).cluster_rank = rank as u32;
                (*simt).shared = self.simt.shared.byte_add(rank * self.stride);
            }
        }
        self.running = thread;
        self.threads[thread].status = Status::Running;
        self.threads[thread].fiber = fiber;
        true
    }

    fn thread_index(&self, linear: u32) -> SimtIndex {
        let [bx, by, bz] = self.grid().launch.block;
        // Most blocks have one dimension, and divisions cost as much as a small kernel's thread.
        if by == 1 && bz == 1 {
            return SimtIndex { x: linear, y: 0, z: 0 };
        }
        SimtIndex { x: linear % bx, y: linear / bx % by, z: linear / bx / by }
    }

    fn block_name(&self, rank: usize) -> String {
        let block = self.blocks[rank];
        format!("block ({}, {}, {})", block.x, block.y, block.z)
    }

    fn end_cluster(&mut self) -> Result<(), String> {
        self.strict.end();
        if let Some(error) = self.error.take() {
            // Fibers stopped in the middle of a kernel are thrown away with whatever is on their stacks.
            self.drop_fibers();
            return Err(error);
        }
        self.check_barriers()?;
        if self.hopper {
            self.check_loads().map_err(|why| format!("{}: {why}", self.block_name(0)))?;
            self.check_mbarriers()?;
        }
        Ok(())
    }

    fn drop_fibers(&mut self) {
        self.idle.clear();
        for fiber in self.fibers.drain(..) {
            // SAFETY: from `Box::into_raw`, and nothing runs on it.
            drop(unsafe { Box::from_raw(fiber) });
        }
        self.stacks.forget();
    }

    /// Ends the launch: the running thread reports an error and never runs again.
    pub(super) fn fail(&mut self, message: &str) {
        if self.error.is_none() {
            let rank = self.rank_of(self.running);
            let thread = self.running - rank * self.cta_threads;
            self.error = Some(format!("{}, thread {thread}: {message}", self.block_name(rank)));
        }
    }

    pub(super) fn running_thread(&self) -> usize {
        self.running
    }

    /// Where the running thread waits or waited last.
    pub(super) fn place(&self) -> Place {
        self.threads[self.running].place
    }

    pub(super) fn options(&self) -> &HostOptions {
        &self.grid().options
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.drop_fibers();
    }
}

impl Fiber {
    fn new(index: usize, stack: stacks::Slice) -> *mut Self {
        let range = (stack.limit().get() as u64, stack.base().get() as u64);
        let coroutine = Coroutine::with_stack(stack, |yielder: &Yielder<(), ()>, ()| {
            loop {
                run_threads(yielder);
                yielder.suspend(());
            }
        });
        let fiber = Self { simt: SimtThread::NONE, index, coroutine, yielder: ptr::null(), stack: range };
        Box::into_raw(Box::new(fiber))
    }
}

impl Drop for Fiber {
    fn drop(&mut self) {
        // SAFETY: kernels are compiled without exceptions and own nothing; neither `run_threads` nor what kernels call
        // holds a value with a destructor while it is suspended for good, so nothing is lost by not unwinding.
        unsafe { self.coroutine.force_reset() };
    }
}

/// The body of a fiber: runs unstarted threads until none is left.
fn run_threads(yielder: &Yielder<(), ()>) {
    let worker = worker();
    let fiber: *mut Fiber = CURRENT.get().cast();
    // SAFETY: this fiber has control; the scheduler's frame waits for it. `CURRENT` is the fiber's first field.
    unsafe {
        (*fiber).yielder = yielder;
        (*fiber).simt = (*worker).simt;
        let index = (*fiber).index;
        while (*worker).next_thread(index) {
            let me = &mut *worker;
            let (entry, args) = (me.grid().entry, me.arg_pointers.as_mut_ptr());
            entry(args);
            (*worker).exit();
        }
        let me = &mut *worker;
        me.idle.push(index);
    }
}

#[cfg(feature = "strict")]
impl Worker {
    /// Address range of the running thread's stack and of its `SimtThread`.
    pub(super) fn own_ranges(&self) -> [(u64, u64); 2] {
        let fiber = self.fibers[self.threads[self.running].fiber];
        let simt = fiber as u64;
        // SAFETY: fibers live as long as the worker; `stack` never changes.
        let stack = unsafe { (*fiber).stack };
        [stack, (simt, simt + size_of::<SimtThread>() as u64)]
    }
}

/// Gives control back to the scheduler; returns when the thread may go on.
///
/// # Safety
/// Called on a fiber, by the thread that is running on it.
unsafe fn suspend() {
    // SAFETY: the yielder lives as long as the coroutine that runs this very call.
    unsafe {
        let fiber: *mut Fiber = CURRENT.get().cast();
        (*(*fiber).yielder).suspend(());
    }
}

/// Suspends for good if the thread has failed, else until it is released.
///
/// # Safety
/// As [`suspend`].
pub(super) unsafe fn wait_or_stop(worker: *mut Worker, outcome: Result<bool, String>) {
    // SAFETY: this thread has control of the worker until it suspends.
    unsafe {
        match outcome {
            Ok(true) => {}
            Ok(false) => suspend(),
            Err(message) => {
                (*worker).fail(&message);
                drop(message);
                suspend();
            }
        }
    }
}
