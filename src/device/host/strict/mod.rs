//! Strict mode: what the instrumented build of the kernels is checked for.
//!
//! The C++ compiler's thread-sanitizer pass calls back before every load and store; each call is checked here before
//! the access happens, and a thread that breaks a rule stops there. [`memory`] knows global memory, [`races`] who
//! touched shared memory, [`copies`] what is in flight, [`units`] what the asynchronous units of Hopper do.

mod banks;
mod copies;
mod memory;
mod places;
mod races;
mod units;

use std::sync::Arc;

pub(super) use banks::Book as BankBook;
pub(super) use memory::{GUARD_BYTES, Memory, POISON, Registry};

use super::{Completion, HostOptions, NAMED_BARRIERS, ThreadOrder, place::Place, random::Random};
use crate::device::{Arch, Arg, Kernel};
use banks::Banks;
use copies::Copies;
use memory::{Allocation, Bits};
use places::Places;
pub(super) use races::Knowledge;
use races::{Clocks, Conflict};
use units::Units;

/// The order in which a grid's CTAs run.
pub(super) fn cta_order(options: &HostOptions, ctas: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..ctas).collect();
    match options.schedule {
        ThreadOrder::InOrder | ThreadOrder::Eager => {}
        ThreadOrder::Reversed => order.reverse(),
        ThreadOrder::Random(seed) => {
            let mut random = Random(seed);
            (1..ctas).rev().for_each(|i| order.swap(i, random.below(i + 1)));
        }
    }
    order
}

/// The book of a device's buffers, if it is strict.
pub(super) fn registry(options: &HostOptions) -> Option<Arc<Registry>> {
    let banks = options.banks.then(Arc::default);
    options.strict.then(|| Arc::new(Registry::counting(banks)))
}

/// The CTAs of a cluster that are about to run.
pub(super) struct Watched<'a> {
    pub kernel: &'static Kernel,
    pub args: &'a [Arg],
    /// Of one CTA.
    pub threads: usize,
    pub ctas: usize,
    pub shared_bytes: usize,
    pub options: &'a HostOptions,
    pub memory: &'a Arc<Memory>,
    /// Where the first CTA's shared memory begins, and how far the others' are from each other.
    pub shared: *mut u8,
    pub stride: usize,
}

/// An address this close to shared memory is taken for a wrong index into it.
const NEAR: u64 = 1 << 20;

/// One load or store.
#[derive(Clone, Copy)]
struct Access {
    address: u64,
    bytes: usize,
    /// What the address must be a multiple of.
    alignment: usize,
    write: bool,
    /// Where, as [`Places`] numbers it.
    at: u32,
}

/// Checks of the CTA that is running on a worker.
#[derive(Default)]
pub(super) struct CtaChecks {
    active: bool,
    late: bool,
    /// The thread that the two ranges below belong to.
    thread: usize,
    stack: (u64, u64),
    own_state: (u64, u64),
    kernel: Option<&'static Kernel>,
    args: Vec<u64>,
    memory: Arc<Memory>,
    recent: Option<Arc<Allocation>>,
    /// Shared memory of all CTAs that run together, and how far their beginnings are apart.
    region: u64,
    stride: usize,
    /// The running thread's part of it.
    shared: u64,
    shared_bytes: usize,
    /// Bytes of shared memory that were written, and that a copy in flight will write.
    written: Bits,
    pending: Bits,
    clocks: Clocks,
    /// What threads know who came to the barriers of the CTAs.
    barriers: Vec<Knowledge>,
    copies: Copies,
    units: Units,
    places: Places,
    banks: Banks,
}

impl CtaChecks {
    /// Starts the CTAs of a cluster.
    pub fn start(&mut self, watched: Watched) {
        let Watched { kernel, args, options, memory, shared, stride, ctas, shared_bytes, .. } = watched;
        self.active = options.strict;
        if !self.active {
            return;
        }
        let threads = watched.threads * ctas;
        self.late = options.completion == Completion::Late;
        self.thread = usize::MAX;
        self.kernel = Some(kernel);
        self.args = args.iter().map(Arg::word).collect();
        self.memory = memory.clone();
        self.recent = None;
        (self.region, self.stride) = (shared as u64, stride);
        self.shared = self.region;
        self.shared_bytes = shared_bytes;
        let bytes = stride * ctas;
        // SAFETY: the worker made room for the launch's shared memory, and nothing else uses it now.
        unsafe { shared.write_bytes(POISON, bytes) };
        self.written.reset(bytes);
        self.pending.reset(bytes);
        let agents = if kernel.arch() == Arch::Sm90 { units::AGENTS } else { 0 };
        self.clocks.start(threads, agents, bytes);
        self.barriers.resize_with(NAMED_BARRIERS * ctas, Knowledge::default);
        self.barriers.iter_mut().for_each(Knowledge::clear);
        self.copies.start(threads);
        self.banks.start(self.memory.banks.clone());
        self.units.start(threads, bytes);
    }

    /// Whether the ranges of this thread are known.
    pub fn watches(&self, thread: usize) -> bool {
        self.thread == thread
    }

    /// Another thread runs, of the CTA of this rank: its stack, and its own indices.
    pub fn turn_to(&mut self, thread: usize, own: [(u64, u64); 2], rank: usize) {
        [self.stack, self.own_state] = own;
        self.thread = thread;
        self.shared = self.region + (rank * self.stride) as u64;
    }

    /// An access that the instrumentation saw, before it happens at a code address.
    ///
    /// # Errors
    /// It breaks a rule.
    pub fn instrumented(
        &mut self,
        address: u64,
        bytes: usize,
        alignment: usize,
        write: bool,
        code: u64,
    ) -> Result<(), String> {
        self.check(Access { address, bytes, alignment, write, at: places::code(code) })
    }

    /// An access that a kernel's instruction tells of.
    ///
    /// # Errors
    /// It breaks a rule.
    pub fn told(
        &mut self,
        address: u64,
        bytes: usize,
        alignment: usize,
        write: bool,
        place: Place,
    ) -> Result<(), String> {
        let at = self.places.number(place);
        self.check(Access { address, bytes, alignment, write, at })
    }

    pub fn end(&mut self) {
        if self.active {
            if let Some(kernel) = self.kernel {
                self.banks.end(kernel.name, &self.places);
            }
            self.active = false;
            self.memory = Arc::default();
            self.recent = None;
        }
    }

    /// A thread came to a barrier, at which `everyone` will wait or not.
    pub fn barrier_arrival(&mut self, slot: usize, thread: usize, everyone: bool) {
        // Where all threads wait, all that was before is settled.
        if self.active && !everyone {
            self.clocks.release(thread, &mut self.barriers[slot]);
        }
    }

    /// `waiters` go on from a barrier.
    pub fn barrier_complete(&mut self, slot: usize, waiters: &[usize]) {
        if !self.active {
            return;
        }
        if waiters.len() == self.clocks.threads() {
            self.clocks.settle();
        } else {
            waiters.iter().for_each(|&thread| self.clocks.acquire(thread, &self.barriers[slot]));
        }
        self.barriers[slot].clear();
    }

    pub fn collective(&mut self, members: &[usize]) {
        if self.active {
            self.clocks.collective(members);
        }
    }

    fn check(&mut self, access: Access) -> Result<(), String> {
        let Access { address, bytes, alignment, .. } = access;
        if address % alignment as u64 != 0 {
            return Err(format!("misaligned {}: not a multiple of {alignment}", self.describe(access)));
        }
        let within = |(low, high): (u64, u64)| low <= address && address < high && bytes as u64 <= high - address;
        if within((self.shared, self.shared + self.shared_bytes as u64)) {
            return self.check_shared(access);
        }
        if within(self.stack) {
            return self.check_registers(access);
        }
        if within(self.own_state) && !access.write {
            return Ok(());
        }
        if let Some(at) = self.find(address, bytes) {
            return self.check_global(access, at);
        }
        if within(places::program()) && !access.write {
            return Ok(());
        }
        Err(self.out_of_bounds(access))
    }

    /// Sets `recent` to the buffer that holds the whole range, and tells its place there.
    fn find(&mut self, address: u64, bytes: usize) -> Option<usize> {
        let inside = |b: &Allocation| b.address <= address && address < b.end() && bytes as u64 <= b.end() - address;
        if !self.recent.as_deref().is_some_and(inside) {
            let found = self.memory.find(address).filter(|b| inside(b))?;
            self.recent = Some(found.clone());
        }
        self.recent.as_deref().map(|b| (address - b.address) as usize)
    }

    fn check_global(&self, access: Access, at: usize) -> Result<(), String> {
        let Some(buffer) = self.recent.as_deref() else {
            return Ok(());
        };
        if access.write {
            buffer.written.set(at, access.bytes);
        } else if !buffer.written.all(at, access.bytes) {
            let first = (at..at + access.bytes).find(|&i| !buffer.written.get(i)).unwrap_or(at);
            let name = self.name(buffer);
            return Err(format!("uninitialised {}: byte {first} of {name} was never written", self.describe(access)));
        }
        Ok(())
    }

    fn check_shared(&mut self, access: Access) -> Result<(), String> {
        let at = (access.address - self.region) as usize;
        let bytes = at..at + access.bytes;
        self.banks.access(self.thread, access.at, access.write, access.address - self.shared, access.bytes);
        self.check_not_pending(access, at)?;
        if access.write {
            self.check_not_read(access, &bytes)?;
            self.clocks.write(self.thread, bytes, access.at).map_err(|c| self.race(access, &c))?;
            self.written.set(at, access.bytes);
            return Ok(());
        }
        self.check_written(access, at)?;
        self.clocks.read(self.thread, bytes, access.at).map_err(|c| self.race(access, &c))
    }

    fn check_written(&self, access: Access, at: usize) -> Result<(), String> {
        if self.written.all(at, access.bytes) {
            return Ok(());
        }
        let first = (at..at + access.bytes).find(|&i| !self.written.get(i)).unwrap_or(at) % self.stride.max(1);
        let what = self.describe(access);
        Err(format!("uninitialised {what}: byte {first} of shared memory was never written"))
    }

    fn check_not_pending(&self, access: Access, at: usize) -> Result<(), String> {
        if !self.pending.any(at, access.bytes) {
            return Ok(());
        }
        let byte = (at..at + access.bytes).find(|&i| self.pending.get(i)).unwrap_or(at);
        let owner = self.copies.owner(byte).or_else(|| self.units.writer(byte));
        let (owner, issued) = owner.unwrap_or((self.thread, access.at));
        Err(format!(
            "asynchronous copy still pending: {} meets the copy to shared byte {} that {} issued at {} \
             and has not waited for",
            self.describe(access),
            byte % self.stride,
            self.who(owner),
            self.places.describe(issued)
        ))
    }

    fn race(&self, access: Access, conflict: &Conflict) -> String {
        format!(
            "race: {} and the {} of byte {} by {} at {} are not ordered by a barrier",
            self.describe(access),
            if conflict.other_writes { "write" } else { "read" },
            conflict.byte % self.stride,
            self.who(conflict.other),
            self.places.describe(conflict.other_at),
        )
    }

    /// `thread 3`, or what stands for an asynchronous unit.
    fn who(&self, column: usize) -> String {
        if column < self.clocks.threads() {
            return format!("thread {column}");
        }
        self.units.name(column).to_string()
    }

    fn out_of_bounds(&self, access: Access) -> String {
        let address = access.address;
        let end = self.shared + self.shared_bytes as u64;
        let distance = if address < self.shared { self.shared - address } else { address.saturating_sub(end) };
        let place = if (self.own_state.0..self.own_state.1).contains(&address) {
            "the thread's own indices".into()
        } else if distance < NEAR && distance <= self.memory.distance(address) {
            let bytes = self.shared_bytes;
            if address < self.shared {
                format!("{distance} bytes before shared memory ({bytes} bytes)")
            } else {
                format!("byte {} of {bytes} bytes of shared memory", address - self.shared)
            }
        } else {
            self.kernel.map_or_else(String::new, |kernel| self.memory.describe(address, kernel, &self.args))
        };
        format!("out of bounds {}: {place}", self.describe(access))
    }

    fn name(&self, buffer: &Allocation) -> String {
        self.kernel.map_or_else(String::new, |kernel| Memory::name(buffer, kernel, &self.args))
    }

    /// `read of 4 bytes at 0x7f0000000000 (shared byte 12) at kernels/x.cu:12`
    fn describe(&self, access: Access) -> String {
        let Access { address, bytes, .. } = access;
        let what = if access.write { "write" } else { "read" };
        let in_shared = (self.shared..self.shared + self.shared_bytes as u64).contains(&address);
        let byte = if in_shared { format!(" (shared byte {})", address - self.shared) } else { String::new() };
        format!("{what} of {bytes} bytes at {address:#x}{byte} at {}", self.places.describe(access.at))
    }

    /// `cp.async`.
    ///
    /// # Errors
    /// It breaks a rule.
    pub fn copy_async(
        &mut self,
        shared: u64,
        global: u64,
        copied: usize,
        bytes: usize,
        place: Place,
    ) -> Result<(), String> {
        let at = self.places.number(place);
        let target = Access { address: shared, bytes, alignment: bytes, write: true, at };
        let source = Access { address: global, bytes: copied, alignment: bytes, write: false, at };
        for access in [target, source] {
            if access.address % bytes as u64 != 0 {
                return Err(format!(
                    "misaligned asynchronous copy: {} is not a multiple of {bytes}",
                    self.describe(access)
                ));
            }
        }
        if copied > bytes {
            return Err(format!("asynchronous copy of {copied} bytes into {bytes} at {}", self.places.describe(at)));
        }
        let inside = shared.wrapping_sub(self.shared) as usize;
        if shared < self.shared || inside + bytes > self.shared_bytes {
            return Err(self.out_of_bounds(target));
        }
        let to = (shared - self.region) as usize;
        self.check_not_pending(target, to)?;
        self.check_not_read(target, &(to..to + bytes))?;
        self.clocks.may_write(self.thread, to..to + bytes).map_err(|c| self.race(target, &c))?;
        if copied > 0 {
            let from = self.find(global, copied).ok_or_else(|| self.out_of_bounds(source))?;
            self.check_global(source, from)?;
        }
        self.pending.set(to, bytes);
        self.copies.issue(self.thread, to, global, copied, bytes, at);
        if !self.late {
            // SAFETY: both ranges were checked just now.
            unsafe { land(self.region, to, global, copied, bytes) };
        }
        Ok(())
    }

    /// `cp.async.commit_group`.
    pub fn commit_copies(&mut self) {
        self.copies.commit(self.thread);
    }

    /// `cp.async.wait_group`.
    ///
    /// # Errors
    /// Copies belong to no group.
    pub fn wait_copies(&mut self, pending: u32, place: Place) -> Result<(), String> {
        let at = self.places.number(place);
        let left = self.copies.uncommitted(self.thread);
        if left > 0 {
            let place = self.places.describe(at);
            return Err(format!("wait without commit at {place}: {left} asynchronous copies belong to no group"));
        }
        while let Some(copy) = self.copies.landed(self.thread, pending) {
            if self.late {
                // SAFETY: both ranges were checked at the issue; buffers and shared memory outlive the launch.
                unsafe { land(self.region, copy.to, copy.from, copy.copied, copy.bytes) };
            }
            self.pending.clear(copy.to, copy.bytes);
            self.written.set(copy.to, copy.bytes);
            self.clocks.has_written(self.thread, copy.to..copy.to + copy.bytes, copy.at);
        }
        Ok(())
    }
}

/// # Safety
/// `to..to + bytes` lies in the shared memory at `shared`, `copied` bytes at `from` can be read.
unsafe fn land(shared: u64, to: usize, from: u64, copied: usize, bytes: usize) {
    // SAFETY: as the caller says.
    unsafe {
        let target = (shared as *mut u8).add(to);
        std::ptr::copy_nonoverlapping(from as *const u8, target, copied);
        target.add(copied).write_bytes(0, bytes - copied);
    }
}
