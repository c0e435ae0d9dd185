//! The SIMT machine: runs a CTA's threads as coroutines that switch at barriers and warp collectives.
//!
//! A fiber runs one CUDA thread after another until one has to wait; only then is another fiber needed. So a kernel
//! that never synchronises runs as a plain loop, without a single switch.

use std::{
    cell::{Cell, UnsafeCell},
    ffi::{CStr, c_char, c_void},
    ptr,
    sync::Arc,
};

use corosensei::{
    Coroutine, CoroutineResult, Yielder,
    stack::{DefaultStack, Stack},
};

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
#[derive(Clone, Copy)]
pub(super) struct SimtThread {
    thread: SimtIndex,
    block: SimtIndex,
    block_dim: SimtIndex,
    grid_dim: SimtIndex,
    linear: u32,
    shared: *mut c_void,
}

impl SimtThread {
    const NONE: Self = {
        let zero = SimtIndex { x: 0, y: 0, z: 0 };
        Self { thread: zero, block: zero, block_dim: zero, grid_dim: zero, linear: 0, shared: ptr::null_mut() }
    };
}

/// One launch, shared by all workers.
pub(super) struct Grid {
    pub kernel: &'static Kernel,
    entry: EntryPoint,
    pub launch: Launch,
    pub args: Vec<u64>,
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
        Self { kernel, entry, launch, args: args.iter().map(|a| a.0).collect(), options, memory }
    }

    pub fn ctas(&self) -> usize {
        self.launch.grid.iter().map(|&n| n as usize).product()
    }

    pub fn threads(&self) -> usize {
        self.launch.block.iter().map(|&n| n as usize).product()
    }
}

type Fibre = Coroutine<(), (), (), DefaultStack>;

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

/// Where a thread waits, for error messages.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub file: *const c_char,
    pub line: u32,
}

impl Place {
    const NONE: Self = Self { file: ptr::null(), line: 0 };

    fn same(self, other: Self) -> bool {
        // SAFETY: both are the compiler's file name literals; equal names may be several literals.
        let same_file = || unsafe { CStr::from_ptr(self.file) == CStr::from_ptr(other.file) };
        self.line == other.line && (self.file == other.file || same_file())
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.file.is_null() {
            return write!(f, "?");
        }
        // SAFETY: the compiler's file name literal: static and ended by a zero.
        let file = unsafe { CStr::from_ptr(self.file) }.to_string_lossy();
        write!(f, "{}:{}", short_path(&file), self.line)
    }
}

/// The path from the project's folder on.
pub(super) fn short_path(file: &str) -> &str {
    match file.rfind("kernels/") {
        Some(at) if file[..at].ends_with("tests/") => &file[at - "tests/".len()..],
        Some(at) => &file[at..],
        None => file,
    }
}

/// splitmix64.
pub(super) struct Random(pub u64);

impl Random {
    pub fn below(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
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
}

type Operation = Option<unsafe extern "C" fn(*mut *mut c_void, u32)>;

#[derive(Clone, Default)]
struct Barrier {
    /// Threads the current generation waits for; 0 while nobody is there.
    expected: usize,
    arrived: usize,
    waiting: Vec<usize>,
    /// Those who came and went on.
    passing: Vec<usize>,
}

impl Barrier {
    fn reset(&mut self) {
        (self.expected, self.arrived) = (0, 0);
        self.waiting.clear();
        self.passing.clear();
    }
}

/// Lanes of a warp that wait in a collective, and that have exited.
#[derive(Clone, Copy, Default)]
struct WarpState {
    waiting: u32,
    exited: u32,
}

/// What one OS thread needs to run CTAs; kept from launch to launch.
pub(super) struct Worker {
    /// Owned; from `Box::into_raw`.
    fibers: Vec<*mut Fiber>,
    idle: Vec<usize>,
    threads: Vec<ThreadState>,
    warps: Vec<WarpState>,
    unstarted: Vec<usize>,
    runnable: Vec<usize>,
    /// Scratch of `part`.
    members: Vec<usize>,
    barriers: Vec<Barrier>,
    shared: Vec<Align1024>,
    grid: *const Grid,
    arg_pointers: Vec<*mut c_void>,
    /// What the thread that starts next is told.
    simt: SimtThread,
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
            warps: Vec::new(),
            unstarted: Vec::new(),
            runnable: Vec::new(),
            members: Vec::new(),
            barriers: vec![Barrier::default(); NAMED_BARRIERS],
            shared: Vec::new(),
            grid: ptr::null(),
            arg_pointers: Vec::new(),
            simt: SimtThread::NONE,
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

    fn start_cta(&mut self, grid: &Grid, cta: usize) {
        self.grid = grid;
        let count = grid.threads();
        let fresh = ThreadState { status: Status::Unstarted, fiber: 0, place: Place::NONE, payload: ptr::null_mut() };
        self.threads.clear();
        self.threads.resize(count, fresh);
        self.warps.clear();
        self.warps.resize(count.div_ceil(WARP), WarpState::default());
        self.runnable.clear();
        self.done = 0;
        self.error = None;
        if let Schedule::Random(seed) = grid.options.schedule {
            self.random = Random(seed ^ (cta as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        self.unstarted.clear();
        // Taken from the end.
        match grid.options.schedule {
            Schedule::Reversed => self.unstarted.extend(0..count),
            _ => self.unstarted.extend((0..count).rev()),
        }
        for barrier in &mut self.barriers {
            barrier.reset();
        }
        self.arg_pointers.clear();
        self.arg_pointers.extend(grid.args.iter().map(|arg| ptr::from_ref(arg).cast_mut().cast::<c_void>()));
        let blocks = (grid.launch.smem_bytes as usize).div_ceil(1024).max(1);
        if self.shared.len() < blocks {
            self.shared.resize(blocks, Align1024([0; 1024]));
        }
        let [gx, gy, _] = grid.launch.grid.map(|n| n as usize);
        let block = SimtIndex { x: (cta % gx) as u32, y: (cta / gx % gy) as u32, z: (cta / gx / gy) as u32 };
        let [bx, by, bz] = grid.launch.block;
        let [gx, gy, gz] = grid.launch.grid;
        let shared: *mut u8 = self.shared.as_mut_ptr().cast();
        self.strict.start(grid, shared);
        self.simt = SimtThread {
            thread: SimtIndex::default(),
            block,
            block_dim: SimtIndex { x: bx, y: by, z: bz },
            grid_dim: SimtIndex { x: gx, y: gy, z: gz },
            linear: 0,
            shared: shared.cast(),
        };
    }

    fn add_fiber(&mut self) {
        let index = self.fibers.len();
        self.fibers.push(Fiber::new(index));
        self.idle.push(index);
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

    /// The fiber to go on with. Unstarted threads come first, so that all reach the first barrier; `Eager` leaves them
    /// for when nobody else can run.
    fn pick(&mut self) -> Option<usize> {
        let schedule = self.grid().options.schedule;
        let start_new = !self.unstarted.is_empty()
            && match schedule {
                _ if self.runnable.is_empty() => true,
                Schedule::Random(_) => self.random.below(2) == 0,
                Schedule::Eager => false,
                Schedule::InOrder | Schedule::Reversed => true,
            };
        if start_new {
            if self.idle.is_empty() {
                self.add_fiber();
            }
            return self.idle.pop();
        }
        let at = match schedule {
            _ if self.runnable.is_empty() => return None,
            Schedule::Random(_) => self.random.below(self.runnable.len()),
            _ => self.runnable.len() - 1,
        };
        let thread = self.runnable.swap_remove(at);
        self.running = thread;
        self.threads[thread].status = Status::Running;
        Some(self.threads[thread].fiber)
    }

    /// Makes waiting threads runnable; the end of `runnable` is taken first. Returns whether the running thread, which
    /// completed what they waited for, goes on at once.
    fn release(&mut self, threads: &mut Vec<usize>) -> bool {
        let schedule = self.grid().options.schedule;
        let goes_on = !matches!(schedule, Schedule::Random(_)) || self.random.below(2) == 0;
        if !goes_on {
            threads.push(self.running);
        }
        threads.sort_unstable();
        if schedule != Schedule::Reversed {
            threads.reverse();
        }
        for &thread in &*threads {
            self.threads[thread].status = Status::Running;
        }
        if schedule == Schedule::Eager {
            self.runnable.append(threads);
        } else {
            // Behind everyone who is runnable already.
            self.runnable.splice(0..0, threads.drain(..));
        }
        goes_on
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
                let at = self.random.below(n);
                self.unstarted.swap_remove(at)
            }
            (n, false) => self.unstarted.swap_remove(n - 1),
        };
        let [bx, by, _] = self.grid().launch.block;
        let linear = thread as u32;
        self.simt.linear = linear;
        self.simt.thread = SimtIndex { x: linear % bx, y: linear / bx % by, z: linear / bx / by };
        // SAFETY: fibers live as long as the worker, and the kernel that reads this has not started.
        unsafe { (*self.fibers[fiber]).simt = self.simt };
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
                Status::Done => "gone".to_string(),
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
        let block = self.simt.block;
        format!("block ({}, {}, {})", block.x, block.y, block.z)
    }

    fn end_cta(&mut self) -> Result<(), String> {
        self.strict.end();
        let Some(error) = self.error.take() else {
            return self.check_barriers();
        };
        // Fibers stopped in the middle of a kernel are thrown away with whatever is on their stacks.
        self.drop_fibers();
        Err(error)
    }

    /// A barrier that threads came to without waiting, and nobody else, was missed by those who should wait.
    fn check_barriers(&self) -> Result<(), String> {
        let Some((id, barrier)) = self.barriers.iter().enumerate().find(|(_, barrier)| barrier.arrived > 0) else {
            return Ok(());
        };
        let (arrived, expected, first) = (barrier.arrived, barrier.expected, barrier.passing.first().copied());
        let block = self.block_name();
        Err(format!(
            "{block}, thread {}: barrier mismatch: {arrived} of {expected} threads came to barrier {id}, and nobody waits there",
            first.unwrap_or_default()
        ))
    }

    fn drop_fibers(&mut self) {
        self.idle.clear();
        for fiber in self.fibers.drain(..) {
            // SAFETY: from `Box::into_raw`, and nothing runs on it.
            drop(unsafe { Box::from_raw(fiber) });
        }
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
        if barrier.passing.contains(&running) {
            return Err(format!("barrier mismatch: this thread comes to barrier {id} at {place} for the second time"));
        }
        barrier.expected = expected;
        barrier.arrived += 1;
        let complete = barrier.arrived == expected;
        if wait {
            barrier.waiting.push(running);
            self.threads[running].status = Status::AtBarrier(id);
            self.threads[running].place = place;
        } else {
            barrier.passing.push(running);
        }
        self.strict.barrier_arrival(id as usize, running);
        if !complete {
            return Ok(!wait);
        }
        self.complete_barrier(id, wait, place)
    }

    fn complete_barrier(&mut self, id: u32, wait: bool, place: Place) -> Result<bool, String> {
        let all = self.threads.len();
        let barrier = &mut self.barriers[id as usize];
        let mut waiting = std::mem::take(&mut barrier.waiting);
        if barrier.expected < all {
            let mut lanes = [0; WARP];
            waiting.iter().chain(&barrier.passing).for_each(|thread| lanes[thread / WARP] += 1);
            let whole = |warp: usize| WARP.min(all - warp * WARP);
            if let Some(warp) = (0..all.div_ceil(WARP)).find(|&w| lanes[w] != 0 && lanes[w] != whole(w)) {
                let (came, of) = (lanes[warp], whole(warp));
                return Err(format!(
                    "barrier divergence: {came} of the {of} lanes of warp {warp} came to barrier {id} at {place}"
                ));
            }
        }
        barrier.reset();
        self.strict.barrier_complete(id as usize, &waiting, waiting.len() == all);
        if wait {
            waiting.pop();
            self.threads[self.running].status = Status::Running;
        }
        let goes_on = self.release(&mut waiting);
        self.barriers[id as usize].waiting = waiting;
        Ok(goes_on)
    }

    /// Returns true if the running thread is the last of its collective.
    fn meet(&mut self, mask: u32, payload: *mut c_void, place: Place) -> Result<bool, String> {
        let running = self.running;
        let (base, lane) = (running / WARP * WARP, running % WARP);
        let warp = self.warps[running / WARP];
        let missing = |what: &str, lanes: u32| {
            let lane = lanes.trailing_zeros();
            Err(format!("warp collective at {place}: lane {lane} of mask {mask:#010x} {what}"))
        };
        if mask >> lane & 1 == 0 {
            return Err(format!("warp collective at {place}: lane {lane} is not in its own mask {mask:#010x}"));
        }
        let absent = !lane_mask(self.threads.len() - base);
        if mask & absent != 0 {
            return missing("does not exist", mask & absent);
        }
        if mask & warp.exited != 0 {
            return missing("has exited", mask & warp.exited);
        }
        // All lanes are compared when the last one comes; one is enough to find most mistakes earlier.
        let complete = mask & !warp.waiting == 1 << lane;
        let waiting = mask & warp.waiting;
        let compared = if complete { waiting } else { waiting & waiting.wrapping_neg() };
        for other in lanes_of(compared) {
            let state = &self.threads[base + other];
            if let Status::AtCollective(theirs) = state.status
                && (theirs != mask || !state.place.same(place))
            {
                return Err(format!(
                    "warp divergence: this lane is at {place} with mask {mask:#010x}, lane {other} at {} with mask {theirs:#010x}",
                    state.place
                ));
            }
        }
        let state = &mut self.threads[running];
        (state.payload, state.place) = (payload, place);
        if !complete {
            state.status = Status::AtCollective(mask);
            self.warps[running / WARP].waiting |= 1 << lane;
        }
        Ok(complete)
    }

    fn payloads(&self, mask: u32) -> [*mut c_void; WARP] {
        let base = self.running / WARP * WARP;
        let mut lanes = [ptr::null_mut(); WARP];
        lanes_of(mask).for_each(|lane| lanes[lane] = self.threads[base + lane].payload);
        lanes
    }

    /// The operation of a complete collective is done. Returns whether the running thread goes on at once.
    fn part(&mut self, mask: u32) -> bool {
        if self.error.is_some() {
            return false;
        }
        let base = self.running / WARP * WARP;
        let mut members = std::mem::take(&mut self.members);
        members.clear();
        members.extend(lanes_of(mask).map(|lane| base + lane));
        self.strict.collective(&members);
        self.warps[base / WARP].waiting &= !mask;
        members.retain(|&thread| thread != self.running);
        let goes_on = self.release(&mut members);
        self.members = members;
        goes_on
    }

    /// The running thread left its kernel.
    fn exit(&mut self) {
        let running = self.running;
        let (base, lane) = (running / WARP * WARP, running % WARP);
        self.threads[running].status = Status::Done;
        self.done += 1;
        let warp = &mut self.warps[running / WARP];
        warp.exited |= 1 << lane;
        for other in lanes_of(warp.waiting) {
            let state = &self.threads[base + other];
            if let Status::AtCollective(mask) = state.status
                && mask >> lane & 1 == 1
            {
                let place = state.place;
                self.fail(&format!(
                    "warp divergence: exits while thread {} waits for it at {place}, mask {mask:#010x}",
                    base + other
                ));
                return;
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.drop_fibers();
    }
}

/// The lowest `count` lanes, at most all 32.
fn lane_mask(count: usize) -> u32 {
    if count >= WARP { u32::MAX } else { (1 << count) - 1 }
}

fn lanes_of(mut mask: u32) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = (mask != 0).then(|| mask.trailing_zeros() as usize)?;
        mask &= mask - 1;
        Some(lane)
    })
}

impl Fiber {
    fn new(index: usize) -> *mut Self {
        let stack = DefaultStack::new(STACK_BYTES).expect("memory for a coroutine stack");
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
        let index = (*fiber).index;
        while (*worker).next_thread(index) {
            let entry = (*worker).grid().entry;
            let args = (&mut (*worker).arg_pointers).as_mut_ptr();
            entry(args);
            (*worker).exit();
        }
        (&mut (*worker).idle).push(index);
    }
}

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
    // SAFETY: called by the running CUDA thread, which has control of the worker. Every payload lies on the stack of a
    // thread that waits here, and all lanes came to the same call; no reference to the worker is held during it.
    unsafe {
        let outcome = match (*worker).meet(mask, payload, Place { file, line }) {
            Ok(true) => {
                let mut lanes = (*worker).payloads(mask);
                if let Some(operation) = operation {
                    operation(lanes.as_mut_ptr(), mask);
                }
                Ok((*worker).part(mask))
            }
            waits_or_fails => waits_or_fails,
        };
        wait_or_stop(worker, outcome);
    }
}

#[unsafe(no_mangle)]
extern "C" fn simt_fail(message: *const c_char, file: *const c_char, line: u32) {
    let worker = worker();
    // SAFETY: called by the running CUDA thread with a static message.
    unsafe {
        let message = CStr::from_ptr(message).to_string_lossy();
        let me = &mut *worker;
        let place = if file.is_null() { me.threads[me.running].place } else { Place { file, line } };
        me.fail(&format!("{message} at {place}"));
    }
}
