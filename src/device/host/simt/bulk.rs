//! Bulk copies between global and shared memory: loads that complete on mbarriers, stores in groups of their thread.

use half::bf16;

use super::{Completion, Place, ThreadOrder, Worker, cluster::split, strict::Knowledge};
use crate::device::tensor_map::HostMap;

/// What a copy moves.
#[derive(Clone, Copy)]
pub(in crate::device::host) enum Shape {
    Box { map: HostMap, at: [i32; 4], written: bool },
    Bytes { address: u64, bytes: usize },
}

impl Shape {
    fn bytes(&self) -> usize {
        match self {
            Self::Box { map, .. } => map.bytes(),
            Self::Bytes { bytes, .. } => *bytes,
        }
    }

    /// Pieces of at most 16 bytes that lie together in global and in shared memory, by address and region byte.
    fn pieces(&self, start: usize, mut visit: impl FnMut(u64, usize, usize)) {
        match self {
            Self::Bytes { address, bytes } => visit(*address, start, *bytes),
            Self::Box { map, at, written } => map.rows(at, *written, |row, skipped, bytes, address| {
                let mut done = 0;
                while done < bytes {
                    let byte = row + skipped + done;
                    let piece = (16 - (start + byte) % 16).min(bytes - done);
                    visit(address + done as u64, map.place(start, byte), piece);
                    done += piece;
                }
            }),
        }
    }

    /// Whole rows in global memory.
    fn global_runs(&self, mut visit: impl FnMut(u64, usize)) {
        match self {
            Self::Bytes { address, bytes } => visit(*address, *bytes),
            Self::Box { map, at, written } => map.rows(at, *written, |_, _, bytes, address| {
                if bytes > 0 {
                    visit(address, bytes);
                }
            }),
        }
    }
}

/// A load on its way to one CTA.
pub(super) struct Load {
    shape: Shape,
    /// First byte in the cluster's shared memory.
    to: usize,
    mbarrier: usize,
    phase: i64,
    pub place: Place,
}

impl Load {
    pub fn bytes(&self) -> usize {
        self.shape.bytes()
    }

    /// Whether it was issued for this phase of this mbarrier.
    pub fn completes(&self, mbarrier: usize, phase: i64) -> bool {
        self.mbarrier == mbarrier && self.phase == phase
    }
}

struct Store {
    shape: Shape,
    add: bool,
    from: usize,
    thread: usize,
    group: u64,
    landed: bool,
    at: u32,
    place: Place,
}

#[derive(Default)]
pub(super) struct Bulk {
    pub loads: Vec<Load>,
    stores: Vec<Store>,
    /// By thread: groups closed, and the agent of its stores.
    groups: Vec<(u64, Option<usize>)>,
}

impl Bulk {
    pub fn reset(&mut self, threads: usize) {
        self.loads.clear();
        self.stores.clear();
        self.groups.clear();
        self.groups.resize(threads, (0, None));
    }
}

/// Load, store or add, as in `kernels/host/simt_system.h`.
const LOAD: u32 = 0;
const ADD: u32 = 2;

impl Worker {
    /// Starts a copy of `kind`.
    pub(in crate::device::host) fn start_bulk(
        &mut self,
        kind: u32,
        shape: Shape,
        shared: u32,
        mbarrier: u32,
        ctas: u32,
        place: Place,
    ) -> Result<(), String> {
        let bytes = shape.bytes();
        let swizzled = matches!(shape, Shape::Box { map, .. } if map.swizzled);
        let alignment = if swizzled {
            1024
        } else if matches!(shape, Shape::Box { .. }) {
            128
        } else {
            16
        };
        let (_, offset) = split(shared);
        if !offset.is_multiple_of(alignment) {
            return Err(format!("bulk copy at {place}: shared byte {offset} is no multiple of {alignment}"));
        }
        // An H200 stops with an illegal instruction at both; loads may begin before the tensor.
        if let Shape::Box { map, at, written } = shape {
            let start = &at[..map.rank];
            if i64::from(start[0]) * map.element as i64 % 16 != 0 {
                return Err(format!("bulk copy at {place}: column {} is no multiple of 16 bytes", start[0]));
            }
            if written && start.iter().any(|&first| first < 0) {
                return Err(format!("bulk copy at {place}: a store to {start:?} begins before the tensor"));
            }
        }
        if let Shape::Bytes { address, bytes } = shape
            && (address % 16 != 0 || bytes % 16 != 0)
        {
            return Err(format!("bulk copy at {place}: {bytes} bytes at {address:#x}: not multiples of 16"));
        }
        let at = self.strict.place(place);
        let mut checked = Ok(());
        shape.global_runs(|address, bytes| {
            if checked.is_ok() {
                checked = self.strict.global(address, bytes, kind != LOAD, at);
            }
        });
        checked?;
        if kind != LOAD {
            return self.start_store(shape, kind == ADD, shared, at, place);
        }
        let own = self.rank_of(self.running);
        let mask = if ctas == 0 { 1 << own } else { ctas };
        for rank in (0..32).filter(|rank| mask >> rank & 1 == 1) {
            if rank != own {
                self.check_peer(rank, place)?;
            }
            let rank_bits = (rank as u32) << 24;
            let to = self.shared_byte(rank_bits | offset as u32, bytes, place)?;
            let mbarrier = self.find_mbarrier(rank_bits | split(mbarrier).1 as u32, place)?;
            if !self.mbarriers[mbarrier].fenced {
                return Err(format!(
                    "missing fence.mbarrier_init: a copy at {place} completes on an mbarrier without it"
                ));
            }
            self.strict.start_write(self.running, to..to + bytes, at)?;
            let phase = self.mbarriers[mbarrier].current_phase();
            self.bulk.loads.push(Load { shape, to, mbarrier, phase, place });
            if self.grid().options.completion == Completion::Early {
                self.land(self.bulk.loads.len() - 1)?;
            }
        }
        Ok(())
    }

    /// A load arrives.
    fn land(&mut self, index: usize) -> Result<(), String> {
        let load = self.bulk.loads.swap_remove(index);
        let bytes = load.bytes();
        let shared: *mut u8 = self.shared.as_mut_ptr().cast();
        // SAFETY: the range lies in shared memory, as `shared_byte` checked, and the source in buffers (checked in strict
        // mode; elsewhere the kernel is trusted, as with its plain loads).
        unsafe {
            shared.add(load.to).write_bytes(0, bytes);
            load.shape.pieces(load.to, |address, to, bytes| {
                std::ptr::copy_nonoverlapping(address as *const u8, shared.add(to), bytes);
            });
        }
        self.strict.end_write(self.mbarriers[load.mbarrier].agent, load.to..load.to + bytes);
        self.complete_bytes(load.mbarrier, bytes, load.place)
    }

    /// Lets loads arrive that were held back: one of them at random with a random schedule, else in order or in reverse.
    /// Returns whether there was one.
    pub(super) fn land_one(&mut self) -> Result<bool, String> {
        let loads = self.bulk.loads.len();
        if loads == 0 {
            return Ok(false);
        }
        let index = match self.grid().options.schedule {
            ThreadOrder::Random(_) => self.random.below(loads),
            ThreadOrder::Reversed => loads - 1,
            _ => 0,
        };
        self.land(index)?;
        Ok(true)
    }

    fn start_store(&mut self, shape: Shape, add: bool, shared: u32, at: u32, place: Place) -> Result<(), String> {
        let thread = self.running;
        let from = self.shared_byte(shared, shape.bytes(), place)?;
        self.strict.start_read(thread, std::slice::from_ref(&(from..from + shape.bytes())), at)?;
        if self.bulk.groups[thread].1.is_none() {
            let agent = self.strict.new_agent(|| format!("a bulk store of thread {thread}"))?;
            self.bulk.groups[thread].1 = Some(agent);
        }
        let group = self.bulk.groups[thread].0;
        self.bulk.stores.push(Store { shape, add, from, thread, group, landed: false, at, place });
        if self.grid().options.completion == Completion::Early {
            self.land_store(self.bulk.stores.len() - 1);
        }
        Ok(())
    }

    fn land_store(&mut self, index: usize) {
        let shared: *mut u8 = self.shared.as_mut_ptr().cast();
        let store = &mut self.bulk.stores[index];
        if store.landed {
            return;
        }
        store.landed = true;
        let element = if let Shape::Box { map, .. } = &store.shape { map.element } else { 4 };
        // SAFETY: as in `land`, the other way.
        store.shape.pieces(store.from, |address, from, bytes| unsafe {
            let (target, source) = (address as *mut u8, shared.add(from));
            if store.add {
                add_elements(target, source, bytes, element);
            } else {
                std::ptr::copy_nonoverlapping(source, target, bytes);
            }
        });
    }

    pub(in crate::device::host) fn commit_bulk(&mut self) {
        self.bulk.groups[self.running].0 += 1;
    }

    /// Waits until at most `pending` groups of the running thread are unfinished, or have unread sources.
    pub(in crate::device::host) fn wait_bulk(&mut self, pending: u32, place: Place) -> Result<(), String> {
        let thread = self.running;
        let (committed, agent) = self.bulk.groups[thread];
        let own = |store: &Store| store.thread == thread;
        if self.bulk.stores.iter().any(|store| own(store) && store.group == committed) {
            return Err(format!("wait without commit at {place}: bulk stores of this thread belong to no group"));
        }
        let Some(agent) = agent else {
            return Ok(());
        };
        let mut known = Knowledge::default();
        let mut index = 0;
        while index < self.bulk.stores.len() {
            let store = &self.bulk.stores[index];
            if !own(store) || store.group + u64::from(pending) >= committed {
                index += 1;
                continue;
            }
            self.land_store(index);
            // In order: later ones of the thread stay behind earlier ones.
            let store = self.bulk.stores.remove(index);
            let bytes = store.from..store.from + store.shape.bytes();
            self.strict.end_read(agent, std::slice::from_ref(&bytes), store.at);
        }
        self.strict.release_agent(agent, &mut known);
        self.strict.acquire(thread, &known);
        Ok(())
    }

    /// Refuses to let a thread go whose stores may still read shared memory.
    pub(super) fn check_stores(&self, thread: usize) -> Result<(), String> {
        match self.bulk.stores.iter().find(|store| store.thread == thread) {
            None => Ok(()),
            Some(store) => Err(format!("exits without waiting for the bulk store issued at {}", store.place)),
        }
    }

    /// Loads that never arrived: nobody waited for them.
    pub(super) fn check_loads(&self) -> Result<(), String> {
        match self.bulk.loads.first() {
            None => Ok(()),
            Some(load) => Err(format!("the kernel ends while the copy issued at {} is on its way", load.place)),
        }
    }
}

/// # Safety
/// Both ranges can be accessed; `bytes` is a whole number of elements.
unsafe fn add_elements(target: *mut u8, source: *const u8, bytes: usize, element: usize) {
    // SAFETY: as the caller says.
    unsafe {
        for i in (0..bytes).step_by(element) {
            if element == 4 {
                let (to, from) = (target.add(i).cast::<f32>(), source.add(i).cast::<f32>());
                to.write_unaligned(to.read_unaligned() + from.read_unaligned());
            } else {
                let (to, from) = (target.add(i).cast::<bf16>(), source.add(i).cast::<bf16>());
                let sum = to.read_unaligned().to_f32() + from.read_unaligned().to_f32();
                to.write_unaligned(bf16::from_f32(sum));
            }
        }
    }
}
