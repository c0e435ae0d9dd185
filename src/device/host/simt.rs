//! The SIMT machine: runs a CTA's threads as coroutines that switch at barriers and warp collectives.
//!
//! A fiber runs one CUDA thread after another until one has to wait; only then is another fiber needed. So a kernel
//! that never synchronises runs as a plain loop, without a single switch.

use std::{
    cell::{Cell, UnsafeCell},
    ffi::{CStr, c_char, c_void},
    ptr,
};

use corosensei::{Coroutine, CoroutineResult, Yielder, stack::DefaultStack};

use super::{EntryPoint, HostOptions, Schedule, strict};
use crate::device::{Arg, Kernel, Launch};

const STACK_BYTES: usize = 128 * 1024;
const WARP: usize = 32;
const NAMED_BARRIERS: usize = 16;

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct SimtIndex {
    x: u32,
    y: u32,
    z: u32,
}

/// Mirrors `SimtThread` in `kernels/host/simt_system.h`.
#[repr(C)]
pub(super) struct SimtThread {
    thread: SimtIndex,
    block: SimtIndex,
    block_dim: SimtIndex,
    grid_dim: SimtIndex,
    linear: u32,
    shared: *mut c_void,
}

/// One launch, shared by all workers.
pub(super) struct Grid {
    pub kernel: &'static Kernel,
    entry: EntryPoint,
    pub launch: Launch,
    args: Vec<u64>,
    pub options: HostOptions,
}

impl Grid {
    pub fn new(kernel: &'static Kernel, entry: EntryPoint, launch: Launch, args: &[Arg], options: HostOptions) -> Self {
        Self { kernel, entry, launch, args: args.iter().map(|a| a.0).collect(), options }
    }

    pub fn ctas(&self) -> usize {
        self.launch.grid.iter().map(|&n| n as usize).product()
    }

    pub fn threads(&self) -> usize {
        self.launch.block.iter().map(|&n| n as usize).product()
    }
}

type Fibre = Coroutine<(), (), (), DefaultStack>;

/// A coroutine with the CUDA thread it is running.
struct Fiber {
    simt: SimtThread,
    coroutine: Option<Fibre>,
    yielder: *const Yielder<(), ()>,
}

/// Where a thread waits, for error messages.
#[derive(Clone, Copy)]
pub(super) struct Place {
    file: *const c_char,
    line: u32,
}

impl Place {
    const NONE: Self = Self { file: ptr::null(), line: 0 };

    fn same(self, other: Self) -> bool {
        self.line == other.line && self.to_string() == other.to_string()
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.file.is_null() {
            return write!(f, "?");
        }
        // SAFETY: the compiler's file name literal: static and ended by a zero.
        let file = unsafe { CStr::from_ptr(self.file) }.to_string_lossy();
        let short = file.find("kernels/").map_or(&*file, |at| &file[at..]);
        write!(f, "{short}:{}", self.line)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Unstarted,
    Running,
    AtBarrier(u32),
    AtCollective(u32),
    Done,
}

#[derive(Clone)]
struct ThreadState {
    status: Status,
    fiber: usize,
    place: Place,
    payload: *mut c_void,
    operation: Operation,
}

type Operation = Option<unsafe extern "C" fn(*mut *mut c_void, u32)>;

#[derive(Clone, Default)]
struct Barrier {
    /// Threads the current generation waits for; 0 while nobody is there.
    expected: usize,
    arrived: usize,
    waiting: Vec<usize>,
    /// Everyone who came, waiting or not: what the generation's happens-before edges start from.
    members: Vec<usize>,
}

/// What one OS thread needs to run CTAs; kept from launch to launch.
pub(super) struct Worker {
    // Boxed: running coroutines and `CURRENT` hold pointers to fibers.
    #[allow(clippy::vec_box)]
    fibers: Vec<Box<Fiber>>,
    idle: Vec<usize>,
    threads: Vec<ThreadState>,
    unstarted: Vec<usize>,
    runnable: Vec<usize>,
    barriers: Vec<Barrier>,
    shared: Vec<Align1024>,
    grid: *const Grid,
    arg_pointers: Vec<*mut c_void>,
    running: usize,
    error: Option<String>,
    random: u64,
    done: usize,
    pub(super) strict: strict::CtaChecks,
}

#[repr(C, align(1024))]
#[derive(Clone, Copy)]
struct Align1024([u8; 1024]);

thread_local! {
    static CURRENT: Cell<*mut SimtThread> = const { Cell::new(ptr::null_mut()) };
    static WORKER: UnsafeCell<Worker> = UnsafeCell::new(Worker::new());
}

/// The worker of this OS thread.
///
/// The machine is single-threaded per worker and hands control back and forth by coroutine switches, so several
/// frames hold this pointer at once; each uses it only while it has control.
fn worker() -> *mut Worker {
    WORKER.with(|w| w.get())
}

/// The worker if it is running a CUDA thread now.
pub(super) fn running_worker() -> Option<*mut Worker> {
    (!CURRENT.get().is_null()).then(worker)
}

/// Runs one CTA to its end.
///
/// # Errors
/// The kernel broke a rule or deadlocked; the message names block, thread and place.
pub(super) fn run_cta(grid: &Grid, cta: usize) -> Result<(), String> {
    let worker = worker();
    // SAFETY: this OS thread's own worker; no CUDA thread runs now, so nobody else uses it.
    unsafe {
        (*worker).start_cta(grid, cta);
        Worker::run(worker);
        (*worker).end_cta()
    }
}

impl Worker {
    fn new() -> Self {
        Self {
            fibers: Vec::new(),
            idle: Vec::new(),
            threads: Vec::new(),
            unstarted: Vec::new(),
            runnable: Vec::new(),
            barriers: vec![Barrier::default(); NAMED_BARRIERS],
            shared: Vec::new(),
            grid: ptr::null(),
            arg_pointers: Vec::new(),
            running: 0,
            error: None,
            random: 0,
            done: 0,
            strict: strict::CtaChecks::default(),
        }
    }

    fn grid(&self) -> &Grid {
        // SAFETY: set by `start_cta` and alive until `end_cta`.
        unsafe { &*self.grid }
    }

    fn start_cta(&mut self, grid: &Grid, cta: usize) {
        self.grid = grid;
        let count = grid.threads();
        let fresh = ThreadState {
            status: Status::Unstarted,
            fiber: 0,
            place: Place::NONE,
            payload: ptr::null_mut(),
            operation: None,
        };
        self.threads.clear();
        self.threads.resize(count, fresh);
        self.runnable.clear();
        self.done = 0;
        self.error = None;
        if let Schedule::Random(seed) = grid.options.schedule {
            self.random = seed ^ (cta as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
        self.unstarted.clear();
        // Taken from the end.
        match grid.options.schedule {
            Schedule::Reversed => self.unstarted.extend(0..count),
            _ => self.unstarted.extend((0..count).rev()),
        }
        for barrier in &mut self.barriers {
            *barrier = Barrier::default();
        }
        self.arg_pointers.clear();
        self.arg_pointers.extend(grid.args.iter().map(|arg| ptr::from_ref(arg).cast_mut().cast::<c_void>()));
        let blocks = (grid.launch.smem_bytes as usize).div_ceil(1024).max(1);
        if self.shared.len() < blocks {
            self.shared.resize(blocks, Align1024([0; 1024]));
        }
        let [gx, gy, _] = grid.launch.grid.map(|n| n as usize);
        let block = SimtIndex { x: (cta % gx) as u32, y: (cta / gx % gy) as u32, z: (cta / gx / gy) as u32 };
        self.ensure_fibers(1);
        self.strict.start(grid, [block.x, block.y, block.z], self.shared.as_mut_ptr().cast());
        let [bx, by, bz] = grid.launch.block;
        let [gx, gy, gz] = grid.launch.grid;
        let shared = self.shared.as_mut_ptr().cast();
        for fiber in &mut self.fibers {
            fiber.simt.block = block;
            fiber.simt.block_dim = SimtIndex { x: bx, y: by, z: bz };
            fiber.simt.grid_dim = SimtIndex { x: gx, y: gy, z: gz };
            fiber.simt.shared = shared;
        }
    }

    fn ensure_fibers(&mut self, count: usize) {
        while self.fibers.len() < count {
            let mut fiber = Box::new(Fiber::new());
            if let Some(first) = self.fibers.first() {
                let (block, block_dim, grid_dim) = (first.simt.block, first.simt.block_dim, first.simt.grid_dim);
                fiber.simt = SimtThread { block, block_dim, grid_dim, shared: first.simt.shared, ..fiber.simt };
            }
            self.idle.push(self.fibers.len());
            self.fibers.push(fiber);
        }
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
                match me.pick() {
                    Some(fiber) => fiber,
                    None => {
                        me.error = Some(me.describe_deadlock());
                        break;
                    }
                }
            };
            // SAFETY: the fiber is boxed and stays where it is while its coroutine runs; the coroutine uses the worker
            // through its own pointer, and this frame holds no reference to it meanwhile.
            unsafe {
                let fiber: *mut Fiber = &mut **(&mut (*this).fibers).get_unchecked_mut(fiber);
                CURRENT.set(&raw mut (*fiber).simt);
                let resumed = (*fiber).coroutine.as_mut().map(|c| c.resume(()));
                CURRENT.set(ptr::null_mut());
                debug_assert!(matches!(resumed, Some(CoroutineResult::Yield(()))));
            }
        }
    }

    /// The fiber to go on with: unstarted threads come first, so that all reach the first barrier.
    fn pick(&mut self) -> Option<usize> {
        let random = matches!(self.grid().options.schedule, Schedule::Random(_));
        let start_new = !self.unstarted.is_empty() && (!random || self.runnable.is_empty() || self.next_random(2) == 0);
        if start_new {
            if self.idle.is_empty() {
                self.ensure_fibers(self.fibers.len() + 1);
            }
            return self.idle.pop();
        }
        let at = match self.grid().options.schedule {
            _ if self.runnable.is_empty() => return None,
            Schedule::Random(_) => self.next_random(self.runnable.len()),
            _ => self.runnable.len() - 1,
        };
        let thread = self.runnable.swap_remove(at);
        self.running = thread;
        self.threads[thread].status = Status::Running;
        Some(self.threads[thread].fiber)
    }

    fn next_random(&mut self, below: usize) -> usize {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    }

    /// Makes waiting threads runnable; the end of `runnable` is taken first.
    fn release(&mut self, mut threads: Vec<usize>) {
        threads.sort_unstable();
        if self.grid().options.schedule != Schedule::Reversed {
            threads.reverse();
        }
        for &thread in &threads {
            self.threads[thread].status = Status::Running;
        }
        if self.grid().options.schedule == Schedule::Eager {
            self.runnable.extend(threads);
        } else {
            // Behind everyone who is runnable already.
            self.runnable.splice(0..0, threads);
        }
    }

    /// Takes the next unstarted thread onto a fiber; called on the fiber.
    fn next_thread(&mut self, fiber: usize) -> bool {
        if self.error.is_some() {
            return false;
        }
        let random = matches!(self.grid().options.schedule, Schedule::Random(_));
        let thread = match (self.unstarted.len(), random) {
            (0, _) => return false,
            (n, true) => {
                let at = self.next_random(n);
                self.unstarted.swap_remove(at)
            }
            (n, false) => self.unstarted.swap_remove(n - 1),
        };
        let [bx, by, _] = self.grid().launch.block;
        let linear = thread as u32;
        let simt = &mut self.fibers[fiber].simt;
        simt.linear = linear;
        simt.thread = SimtIndex { x: linear % bx, y: linear / bx % by, z: linear / bx / by };
        self.running = thread;
        self.threads[thread].status = Status::Running;
        self.threads[thread].fiber = fiber;
        true
    }

    fn describe_deadlock(&self) -> String {
        let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
        for (t, state) in self.threads.iter().enumerate() {
            let what = match state.status {
                Status::AtBarrier(id) => format!(
                    "wait at barrier {id} ({} of {} arrived) at {}",
                    self.barriers[id as usize].arrived, self.barriers[id as usize].expected, state.place
                ),
                Status::AtCollective(mask) => format!("wait for lanes {mask:#010x} at {}", state.place),
                Status::Done => "have exited".to_string(),
                Status::Unstarted | Status::Running => continue,
            };
            match groups.iter_mut().find(|(known, _)| *known == what) {
                Some((_, threads)) => threads.push(t),
                None => groups.push((what, vec![t])),
            }
        }
        let list = |threads: &[usize]| match threads {
            [one] => format!("thread {one}"),
            [first, .., last] => format!("{} threads ({first} to {last})", threads.len()),
            [] => String::new(),
        };
        let parts: Vec<String> = groups.iter().map(|(what, threads)| format!("{} {what}", list(threads))).collect();
        let exited = self.threads.iter().any(|t| t.status == Status::Done);
        let name = if exited { "deadlock: barrier mismatch" } else { "deadlock" };
        format!("{}: {name}: {}", self.block_name(), parts.join("; "))
    }

    fn block_name(&self) -> String {
        let block = self.fibers[0].simt.block;
        format!("block ({}, {}, {})", block.x, block.y, block.z)
    }

    fn end_cta(&mut self) -> Result<(), String> {
        let checked = self.strict.end();
        if self.error.is_none() {
            return checked.map_err(|why| format!("{}: {why}", self.block_name()));
        }
        let error = self.error.take().unwrap_or_default();
        // Fibers stopped in the middle of a kernel are thrown away with whatever is on their stacks.
        for fiber in &mut self.fibers {
            *fiber = Box::new(Fiber::new());
        }
        self.idle = (0..self.fibers.len()).collect();
        Err(error)
    }

    /// Ends the launch: the running thread reports an error and never runs again.
    pub(super) fn fail(&mut self, message: &str) {
        if self.error.is_none() {
            self.error = Some(format!("{}, thread {}: {message}", self.block_name(), self.running));
        }
    }

    pub(super) fn running_thread(&self) -> usize {
        self.running
    }

    fn arrive(&mut self, id: u32, threads: u32, wait: bool, place: Place) -> Result<bool, String> {
        let all = self.threads.len();
        let expected = if threads == 0 { all } else { threads as usize };
        if id as usize >= NAMED_BARRIERS {
            return Err(format!("barrier {id} at {place}: there are {NAMED_BARRIERS}"));
        }
        if threads != 0 && (expected % WARP != 0 || expected > all) {
            return Err(format!("barrier {id} at {place}: {expected} threads is no multiple of 32 up to {all}"));
        }
        let running = self.running;
        let barrier = &mut self.barriers[id as usize];
        if barrier.arrived > 0 && barrier.expected != expected {
            let others = barrier.expected;
            return Err(format!(
                "barrier mismatch: barrier {id} for {expected} threads at {place}, for {others} elsewhere"
            ));
        }
        if let Some(&other) = barrier.waiting.first()
            && threads == 0
            && !self.threads[other].place.same(place)
        {
            let elsewhere = self.threads[other].place;
            return Err(format!("barrier divergence: this thread is at {place}, thread {other} waits at {elsewhere}"));
        }
        barrier.expected = expected;
        barrier.arrived += 1;
        barrier.members.push(running);
        if barrier.arrived < expected {
            if wait {
                barrier.waiting.push(running);
                self.threads[running].status = Status::AtBarrier(id);
                self.threads[running].place = place;
            }
            return Ok(!wait);
        }
        let Barrier { waiting, members, .. } = std::mem::take(barrier);
        self.strict.barrier_edges(&members, &waiting, wait.then_some(running));
        self.release(waiting);
        Ok(true)
    }

    /// Returns true if the collective is complete and the caller goes on.
    fn meet(&mut self, mask: u32, payload: *mut c_void, operation: Operation, place: Place) -> Result<bool, String> {
        let running = self.running;
        let base = running / WARP * WARP;
        let lane = running - base;
        if mask >> lane & 1 == 0 {
            return Err(format!("warp collective at {place}: lane {lane} is not in its own mask {mask:#010x}"));
        }
        let mut missing = false;
        for other in (0..WARP).filter(|&l| l != lane && mask >> l & 1 == 1) {
            let Some(state) = self.threads.get(base + other) else {
                return Err(format!("warp collective at {place}: lane {other} of mask {mask:#010x} does not exist"));
            };
            match state.status {
                Status::Done => {
                    return Err(format!("warp collective at {place}: lane {other} of mask {mask:#010x} has exited"));
                }
                Status::AtCollective(theirs) if theirs != mask || !state.place.same(place) => {
                    return Err(format!(
                        "warp divergence: this lane is at {place} with mask {mask:#010x}, lane {other} at {} with mask {theirs:#010x}",
                        state.place
                    ));
                }
                Status::AtCollective(_) => {}
                _ => missing = true,
            }
        }
        let state = &mut self.threads[running];
        (state.payload, state.operation, state.place) = (payload, operation, place);
        if missing {
            state.status = Status::AtCollective(mask);
            return Ok(false);
        }
        let mut lanes = [ptr::null_mut(); WARP];
        let members: Vec<usize> = (0..WARP).filter(|l| mask >> l & 1 == 1).map(|l| base + l).collect();
        for &thread in &members {
            lanes[thread - base] = self.threads[thread].payload;
        }
        if let Some(operation) = operation {
            // SAFETY: every payload lies on the stack of a thread that waits here, and all lanes came to the same call.
            unsafe { operation(lanes.as_mut_ptr(), mask) };
        }
        self.strict.collective_edges(&members);
        self.release(members.into_iter().filter(|&t| t != running).collect());
        Ok(true)
    }
}

impl Fiber {
    fn new() -> Self {
        let simt = SimtThread {
            thread: SimtIndex::default(),
            block: SimtIndex::default(),
            block_dim: SimtIndex::default(),
            grid_dim: SimtIndex::default(),
            linear: 0,
            shared: ptr::null_mut(),
        };
        let stack = DefaultStack::new(STACK_BYTES).expect("memory for a coroutine stack");
        let coroutine = Coroutine::with_stack(stack, |yielder: &Yielder<(), ()>, ()| {
            loop {
                run_threads(yielder);
                yielder.suspend(());
            }
        });
        Self { simt, coroutine: Some(coroutine), yielder: ptr::null() }
    }

    /// Lowest and highest address of the stack.
    pub(super) fn stack_range(&self) -> (u64, u64) {
        let top = self.yielder as u64;
        (top.saturating_sub(STACK_BYTES as u64), top + 4096)
    }
}

impl Drop for Fiber {
    fn drop(&mut self) {
        if let Some(coroutine) = &mut self.coroutine {
            // SAFETY: kernels are compiled without exceptions and own nothing; `run_threads` holds no value with a
            // destructor across a kernel call, so nothing is lost by not unwinding.
            unsafe { coroutine.force_reset() };
        }
    }
}

/// The body of a fiber: runs unstarted threads until none is left.
fn run_threads(yielder: &Yielder<(), ()>) {
    let worker = worker();
    // SAFETY: this fiber has control; the scheduler's frame waits for it.
    unsafe {
        let fiber = (*worker).current_fiber();
        (&mut (*worker).fibers)[fiber].yielder = yielder;
        while (*worker).next_thread(fiber) {
            let entry = (*worker).grid().entry;
            let args = (&mut (*worker).arg_pointers).as_mut_ptr();
            entry(args);
            let me = &mut *worker;
            me.threads[me.running].status = Status::Done;
            me.done += 1;
        }
        (&mut (*worker).idle).push(fiber);
    }
}

impl Worker {
    fn current_fiber(&self) -> usize {
        let current = CURRENT.get().cast_const();
        self.fibers.iter().position(|f| ptr::eq(&f.simt, current)).expect("a fiber is running")
    }

    /// Address range of the running thread's stack and of its `SimtThread`.
    pub(super) fn own_ranges(&self) -> [(u64, u64); 2] {
        let fiber = &self.fibers[self.threads[self.running].fiber];
        let simt = ptr::from_ref(&fiber.simt) as u64;
        [fiber.stack_range(), (simt, simt + size_of::<SimtThread>() as u64)]
    }
}

/// Gives control back to the scheduler; returns when the thread may go on.
///
/// # Safety
/// Called on a fiber, by the thread that is running on it.
unsafe fn suspend(worker: *mut Worker) {
    // SAFETY: the yielder lives as long as the coroutine that runs this very call.
    unsafe {
        let me = &*worker;
        let yielder = me.fibers[me.threads[me.running].fiber].yielder;
        (*yielder).suspend(());
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
            Ok(false) => suspend(worker),
            Err(message) => {
                (*worker).fail(&message);
                suspend(worker);
            }
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn simt_thread() -> *mut SimtThread {
    CURRENT.get()
}

#[unsafe(no_mangle)]
extern "C" fn simt_barrier(id: u32, threads: u32, wait: u32, file: *const c_char, line: u32) {
    let worker = worker();
    // SAFETY: called by the running CUDA thread, which has control of the worker.
    unsafe {
        let outcome = (*worker).arrive(id, threads, wait != 0, Place { file, line });
        wait_or_stop(worker, outcome);
    }
}

#[unsafe(no_mangle)]
extern "C" fn simt_collective(mask: u32, payload: *mut c_void, operation: Operation, file: *const c_char, line: u32) {
    let worker = worker();
    // SAFETY: called by the running CUDA thread, which has control of the worker.
    unsafe {
        let outcome = (*worker).meet(mask, payload, operation, Place { file, line });
        wait_or_stop(worker, outcome);
    }
}

#[unsafe(no_mangle)]
extern "C" fn simt_fail(message: *const c_char, file: *const c_char, line: u32) {
    let worker = worker();
    // SAFETY: called by the running CUDA thread with a static message.
    unsafe {
        let message = CStr::from_ptr(message).to_string_lossy();
        (*worker).fail(&format!("{message} at {}", Place { file, line }));
    }
}
