//! Shared-memory races: vector clocks for the threads of a CTA and, for every byte, who touched it last.
//!
//! An *interval* is what one thread does between two synchronisations; it is numbered when it first touches shared
//! memory. When all threads meet, everything before is ordered before everything after, so all older intervals are
//! settled at once. Between such meetings a thread knows its warp's lanes by their collectives and other warps by the
//! named barriers they came to, to which warps come whole.

const LANES: usize = 32;
const BARRIERS: usize = 16;

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
    thread: u32,
    /// Barriers and collectives the thread had come to.
    barriers: u32,
    collectives: u32,
}

#[derive(Clone, Copy)]
struct ThreadClock {
    interval: u32,
    barriers: u32,
    collectives: u32,
    /// Of every lane of the own warp, and of every warp: how many of its collectives (barriers) lie before now.
    lanes: [u32; LANES],
    warps: [u32; LANES],
}

const START: ThreadClock =
    ThreadClock { interval: 0, barriers: 0, collectives: 0, lanes: [0; LANES], warps: [0; LANES] };

/// Two accesses, one of them a write, with nothing that orders them.
#[derive(Debug)]
pub(super) struct Conflict {
    pub byte: usize,
    pub other: usize,
    pub other_writes: bool,
    pub other_at: u32,
}

#[derive(Default)]
pub(super) struct Clocks {
    cells: Vec<Cell>,
    /// Intervals below this one are ordered before everything that comes.
    base: u32,
    intervals: Vec<Interval>,
    threads: Vec<ThreadClock>,
    barriers: [[u32; LANES]; BARRIERS],
}

fn join(into: &mut [u32; LANES], other: &[u32; LANES]) {
    into.iter_mut().zip(other).for_each(|(a, &b)| *a = (*a).max(b));
}

impl Clocks {
    pub fn start(&mut self, threads: usize, shared_bytes: usize) {
        self.settle();
        if self.base == 0 || self.base > u32::MAX / 2 {
            self.cells.clear();
            self.base = 1;
        }
        if self.cells.len() < shared_bytes {
            self.cells.resize(shared_bytes, Cell::default());
        }
        self.threads.clear();
        self.threads.resize(threads, START);
        self.barriers = [[0; LANES]; BARRIERS];
    }

    /// All threads met: nothing before can race with anything after.
    pub fn settle(&mut self) {
        self.base += self.intervals.len() as u32;
        self.intervals.clear();
    }

    /// The lanes of a warp met.
    pub fn collective(&mut self, members: &[usize]) {
        let mut together = START;
        for &thread in members {
            let own = &mut self.threads[thread];
            own.collectives += 1;
            own.lanes[thread % LANES] = own.collectives;
            own.interval = 0;
            join(&mut together.lanes, &own.lanes);
            join(&mut together.warps, &own.warps);
        }
        for &thread in members {
            self.threads[thread].lanes = together.lanes;
            self.threads[thread].warps = together.warps;
        }
    }

    /// A thread came to a barrier: the barrier knows what the thread knows.
    pub fn arrive(&mut self, id: usize, thread: usize) {
        let own = &mut self.threads[thread];
        own.barriers += 1;
        own.interval = 0;
        join(&mut self.barriers[id], &own.warps);
        let seen = &mut self.barriers[id][thread / LANES];
        *seen = (*seen).max(own.barriers);
    }

    /// A barrier is complete: those who waited know what it knows, and it starts anew.
    pub fn complete(&mut self, id: usize, waiters: impl Iterator<Item = usize>) {
        let known = std::mem::take(&mut self.barriers[id]);
        waiters.for_each(|thread| join(&mut self.threads[thread].warps, &known));
    }

    fn interval(&mut self, thread: usize) -> u32 {
        let own = &mut self.threads[thread];
        if own.interval < self.base {
            own.interval = self.base + self.intervals.len() as u32;
            let (barriers, collectives) = (own.barriers, own.collectives);
            self.intervals.push(Interval { thread: thread as u32, barriers, collectives });
        }
        own.interval
    }

    fn who(&self, stamp: Stamp) -> usize {
        self.intervals[(stamp.interval - self.base) as usize].thread as usize
    }

    /// True if what `stamp` names happened before what `thread` does now.
    fn is_before(&self, stamp: Stamp, thread: usize) -> bool {
        if stamp.interval < self.base {
            return true;
        }
        let then = self.intervals[(stamp.interval - self.base) as usize];
        let (other, own) = (then.thread as usize, &self.threads[thread]);
        other == thread
            || own.warps[other / LANES] > then.barriers
            || other / LANES == thread / LANES && own.lanes[other % LANES] > then.collectives
    }

    pub fn read(&mut self, thread: usize, from: usize, bytes: usize, at: u32) -> Result<(), Conflict> {
        let interval = self.interval(thread);
        for byte in from..from + bytes {
            let Cell { write, reads } = self.cells[byte];
            if write.interval != interval && !self.is_before(write, thread) {
                return Err(self.conflict(byte, write, true));
            }
            if reads[0].interval == interval {
                continue;
            }
            let mut kept = reads;
            if reads[0].interval >= self.base {
                match self.who(reads[0]) {
                    other if other == thread => {}
                    other if other / LANES == thread / LANES => kept[1] = reads[0],
                    _ => kept[2] = reads[0],
                }
            }
            kept[0] = Stamp { interval, at };
            self.cells[byte].reads = kept;
        }
        Ok(())
    }

    pub fn write(&mut self, thread: usize, from: usize, bytes: usize, at: u32) -> Result<(), Conflict> {
        self.may_write(thread, from, bytes)?;
        self.has_written(thread, from, bytes, at);
        Ok(())
    }

    /// Whether a write now would race.
    pub fn may_write(&self, thread: usize, from: usize, bytes: usize) -> Result<(), Conflict> {
        for byte in from..from + bytes {
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

    /// Enters a write that was checked before.
    pub fn has_written(&mut self, thread: usize, from: usize, bytes: usize, at: u32) {
        let write = Stamp { interval: self.interval(thread), at };
        self.cells[from..from + bytes].fill(Cell { write, reads: [Stamp::default(); 3] });
    }

    fn conflict(&self, byte: usize, stamp: Stamp, other_writes: bool) -> Conflict {
        Conflict { byte, other: self.who(stamp), other_writes, other_at: stamp.at }
    }
}
