//! Shared-memory races: vector clocks, and for every byte who touched it last.
//!
//! What orders events has a *column*: each thread of the CTAs that run together, and each agent that works beside them
//! (an mbarrier that copies complete on, a warp group's products, a thread's bulk stores). A column counts its releases:
//! arrivals, collectives, completed copies. An *interval* is what one column does between two releases; it is numbered
//! when it first touches shared memory. Whoever waits learns how many releases of every column lie before. When all
//! threads meet, everything before is ordered before everything after, so all older intervals are settled at once.

use std::ops::Range;

const LANES: usize = 32;

/// Who touched a byte, and where in the code.
#[derive(Clone, Copy, Default)]
struct Stamp {
    interval: u32,
    at: u32,
}

/// The last accesses to one byte. Of the reads since the last write three are kept: the latest, one by another lane
/// of that warp and one by another warp. A race with an earlier read can go unseen under one schedule.
#[derive(Clone, Copy, Default)]
struct Cell {
    write: Stamp,
    reads: [Stamp; 3],
}

#[derive(Clone, Copy)]
struct Interval {
    column: u32,
    /// Releases of the column before it.
    releases: u32,
}

/// A thread's fence between its own accesses and those of the asynchronous units.
#[derive(Clone, Copy)]
struct Fence {
    /// Intervals below this one lie before it, of whatever column.
    at: u32,
    /// Releases of the thread before it.
    releases: u32,
}

/// What a barrier hands from those who come to those who go: releases of every column.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Knowledge(Vec<u32>);

impl Knowledge {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn join(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        join(&mut self.0, &other.0);
    }
}

/// Two accesses, one of them a write, with nothing that orders them.
#[derive(Debug)]
pub(super) struct Conflict {
    pub byte: usize,
    /// A thread, or an agent from [`Clocks::threads`] on.
    pub other: usize,
    pub other_writes: bool,
    pub other_at: u32,
}

/// A byte that an asynchronous unit is about to touch and that a thread touched without a fence in between.
#[derive(Debug)]
pub(super) struct Unfenced {
    pub byte: usize,
    pub thread: usize,
    pub wrote: bool,
    pub at: u32,
}

#[derive(Default)]
pub(super) struct Clocks {
    cells: Vec<Cell>,
    /// Number of the first of `intervals`.
    first: u32,
    /// Intervals below this one are ordered before everything that comes.
    base: u32,
    intervals: Vec<Interval>,
    threads: usize,
    columns: usize,
    /// Current interval and releases of every column.
    current: Vec<u32>,
    releases: Vec<u32>,
    /// (threads, room): what each thread knows of every column.
    known: Vec<u32>,
    room: usize,
    /// By warp: a lane learned something that the others may not know.
    uneven: Vec<bool>,
    fences: Vec<Vec<Fence>>,
}

fn join(into: &mut [u32], other: &[u32]) {
    into.iter_mut().zip(other).for_each(|(a, &b)| *a = (*a).max(b));
}

impl Clocks {
    /// Starts anew for so many threads and at most `agents` more columns.
    pub fn start(&mut self, threads: usize, agents: usize, shared_bytes: usize) {
        self.settle();
        self.first = self.base;
        self.intervals.clear();
        if self.first == 0 || self.first > u32::MAX / 2 {
            self.cells.clear();
            (self.first, self.base) = (1, 1);
        }
        if self.cells.len() < shared_bytes {
            self.cells.resize(shared_bytes, Cell::default());
        }
        let room = threads + agents;
        // Releases count on from one CTA to the next of the same shape: what is known of them stays true.
        if (self.threads, self.room) != (threads, room) || self.releases.iter().any(|&n| n > u32::MAX / 2) {
            (self.threads, self.room) = (threads, room);
            self.releases.clear();
            self.releases.resize(room, 0);
            self.known.clear();
            self.known.resize(threads * room, 0);
            self.uneven.clear();
            self.uneven.resize(threads.div_ceil(LANES), false);
            self.fences.resize_with(threads, Vec::new);
        }
        self.columns = threads;
        self.current.clear();
        self.current.resize(room, 0);
        self.fences.iter_mut().for_each(Vec::clear);
    }

    /// Threads; the numbers from here on are agents.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// A column for an agent; `None` if there are too many.
    pub fn new_agent(&mut self) -> Option<usize> {
        let column = self.columns;
        (column < self.room).then(|| {
            self.columns += 1;
            column
        })
    }

    /// All threads met: nothing before can race with anything after.
    pub fn settle(&mut self) {
        self.base = self.first + self.intervals.len() as u32;
        // Nobody's, so that a fence from here on counts more intervals than one before.
        self.intervals.push(Interval { column: 0, releases: 0 });
    }

    fn known(&self, thread: usize) -> &[u32] {
        &self.known[thread * self.room..(thread + 1) * self.room]
    }

    fn known_mut(&mut self, thread: usize) -> &mut [u32] {
        &mut self.known[thread * self.room..(thread + 1) * self.room]
    }

    /// The lanes of a warp met.
    pub fn collective(&mut self, members: &[usize]) {
        for &thread in members {
            self.count_release(thread);
        }
        let Some(&leader) = members.first() else {
            return;
        };
        let warp = leader / LANES;
        if members.len() < LANES || self.uneven[warp] {
            self.share_all(members);
            self.uneven[warp] = members.len() < LANES;
            return;
        }
        // All lanes know the same of others; what each did is new to the rest.
        let own: [u32; LANES] = std::array::from_fn(|lane| self.releases[warp * LANES + lane]);
        for &thread in members {
            self.known_mut(thread)[warp * LANES..][..LANES].copy_from_slice(&own);
        }
    }

    fn share_all(&mut self, members: &[usize]) {
        let mut together = vec![0; self.columns];
        members.iter().for_each(|&thread| join(&mut together, self.known(thread)));
        for &thread in members {
            self.known_mut(thread)[..together.len()].copy_from_slice(&together);
        }
    }

    /// The column's earlier accesses are told from its later ones; it knows its own.
    fn count_release(&mut self, column: usize) {
        self.releases[column] += 1;
        self.current[column] = 0;
        if column < self.threads {
            let releases = self.releases[column];
            self.known_mut(column)[column] = releases;
        }
    }

    /// A thread came to a barrier: the barrier knows what the thread knows.
    pub fn release(&mut self, thread: usize, to: &mut Knowledge) {
        self.count_release(thread);
        to.0.resize(self.room, 0);
        join(&mut to.0, self.known(thread));
    }

    /// A thread goes on from a barrier: it knows what the barrier knows.
    pub fn acquire(&mut self, thread: usize, from: &Knowledge) {
        join(&mut self.known[thread * self.room..][..from.0.len()], &from.0);
        self.uneven[thread / LANES] = true;
    }

    /// An agent finished something; whoever learns of it from `to` knows all that the agent did.
    pub fn release_agent(&mut self, agent: usize, to: &mut Knowledge) {
        self.count_release(agent);
        to.0.resize(self.room, 0);
        to.0[agent] = to.0[agent].max(self.releases[agent]);
    }

    /// A thread's accesses so far come before those of asynchronous units, for those who learn of it later.
    pub fn fence(&mut self, thread: usize) {
        self.current[thread] = 0;
        let fence = Fence { at: self.first + self.intervals.len() as u32, releases: self.releases[thread] };
        self.fences[thread].push(fence);
    }

    fn interval(&mut self, column: usize) -> u32 {
        if self.current[column] < self.base {
            self.current[column] = self.first + self.intervals.len() as u32;
            self.intervals.push(Interval { column: column as u32, releases: self.releases[column] });
        }
        self.current[column]
    }

    fn who(&self, stamp: Stamp) -> usize {
        self.intervals[(stamp.interval - self.first) as usize].column as usize
    }

    /// True if what `stamp` names happened before what `thread` does now.
    fn is_before(&self, stamp: Stamp, thread: usize) -> bool {
        if stamp.interval < self.base {
            return true;
        }
        let then = self.intervals[(stamp.interval - self.first) as usize];
        let other = then.column as usize;
        other == thread || self.known(thread)[other] > then.releases
    }

    pub fn read(&mut self, thread: usize, bytes: Range<usize>, at: u32) -> Result<(), Conflict> {
        let interval = self.interval(thread);
        for byte in bytes {
            let Cell { write, .. } = self.cells[byte];
            if write.interval != interval && !self.is_before(write, thread) {
                return Err(self.conflict(byte, write, true));
            }
            self.note_read(byte, thread, Stamp { interval, at });
        }
        Ok(())
    }

    fn note_read(&mut self, byte: usize, column: usize, stamp: Stamp) {
        let reads = self.cells[byte].reads;
        if reads[0].interval == stamp.interval {
            return;
        }
        let mut kept = reads;
        if reads[0].interval >= self.base {
            match self.who(reads[0]) {
                other if other == column => {}
                other if other / LANES == column / LANES => kept[1] = reads[0],
                _ => kept[2] = reads[0],
            }
        }
        kept[0] = stamp;
        self.cells[byte].reads = kept;
    }

    pub fn write(&mut self, thread: usize, bytes: Range<usize>, at: u32) -> Result<(), Conflict> {
        self.may_write(thread, bytes.clone())?;
        self.has_written(thread, bytes, at);
        Ok(())
    }

    /// Whether a read now would race.
    pub fn may_read(&self, thread: usize, bytes: Range<usize>) -> Result<(), Conflict> {
        let unordered = |&byte: &usize| !self.is_before(self.cells[byte].write, thread);
        bytes.into_iter().find(unordered).map_or(Ok(()), |byte| Err(self.conflict(byte, self.cells[byte].write, true)))
    }

    /// Whether a write now would race.
    pub fn may_write(&self, thread: usize, bytes: Range<usize>) -> Result<(), Conflict> {
        for byte in bytes {
            let Cell { write, reads } = self.cells[byte];
            if !self.is_before(write, thread) {
                return Err(self.conflict(byte, write, true));
            }
            if let Some(&read) = reads.iter().find(|&&read| !self.is_before(read, thread)) {
                return Err(self.conflict(byte, read, false));
            }
        }
        Ok(())
    }

    /// Whether an asynchronous unit may read what `thread` knows of: what a thread wrote last was fenced by its writer,
    /// and the fence lies before.
    pub fn fenced_for_read(&self, thread: usize, bytes: Range<usize>) -> Result<(), Unfenced> {
        self.fenced(thread, bytes, |cell| [cell.write])
    }

    /// Whether an asynchronous unit may write there: what threads wrote last and read since was fenced by each of them, and
    /// the fences lie before. A barrier orders the accesses of threads with each other, not with those of units.
    pub fn fenced_for_write(&self, thread: usize, bytes: Range<usize>) -> Result<(), Unfenced> {
        self.fenced(thread, bytes, |Cell { write, reads: [a, b, c] }| [write, a, b, c])
    }

    /// `stamps` picks the accesses of a byte that count, the write first.
    fn fenced<const N: usize>(
        &self,
        thread: usize,
        bytes: Range<usize>,
        stamps: impl Fn(Cell) -> [Stamp; N],
    ) -> Result<(), Unfenced> {
        let mut last = [0; N];
        for byte in bytes {
            for (i, stamp) in stamps(self.cells[byte]).into_iter().enumerate() {
                if stamp.interval != last[i] && !self.is_fenced(stamp, thread) {
                    return Err(Unfenced { byte, thread: self.who(stamp), wrote: i == 0, at: stamp.at });
                }
                last[i] = stamp.interval;
            }
        }
        Ok(())
    }

    /// True if a unit did what `stamp` names, or a thread that fenced it before what `thread` does now.
    fn is_fenced(&self, stamp: Stamp, thread: usize) -> bool {
        if stamp.interval < self.first {
            return true;
        }
        let other = self.who(stamp);
        if other >= self.threads {
            return true;
        }
        let fences = &self.fences[other];
        let next = fences.get(fences.partition_point(|fence| fence.at <= stamp.interval));
        next.is_some_and(|fence| other == thread || fence.at <= self.base || self.known(thread)[other] > fence.releases)
    }

    /// Enters a write that was checked before.
    pub fn has_written(&mut self, column: usize, bytes: Range<usize>, at: u32) {
        let write = Stamp { interval: self.interval(column), at };
        self.cells[bytes].fill(Cell { write, reads: [Stamp::default(); 3] });
    }

    /// Enters a read by an agent that was checked before.
    pub fn has_read(&mut self, agent: usize, bytes: Range<usize>, at: u32) {
        let stamp = Stamp { interval: self.interval(agent), at };
        bytes.for_each(|byte| self.note_read(byte, agent, stamp));
    }

    fn conflict(&self, byte: usize, stamp: Stamp, other_writes: bool) -> Conflict {
        Conflict { byte, other: self.who(stamp), other_writes, other_at: stamp.at }
    }
}
