//! CTAs that run together: their shared memory, the barrier of the cluster, and the register pool of each CTA.

use super::{Place, Status, Worker, strict::Knowledge};

/// Rank of the CTA and byte of its shared memory in a 32-bit address.
pub(super) fn split(address: u32) -> (usize, usize) {
    ((address >> 24) as usize, (address & 0xff_ffff) as usize)
}

/// Threads of a warp group, which shares out registers and multiplies together.
pub(super) const GROUP: usize = 128;
/// 32-bit registers of a multiprocessor.
const REGISTERS: usize = 65_536;
/// Most registers of a thread; they are counted in eights.
const MOST: usize = 255;

#[derive(Default)]
pub(super) struct ClusterBarrier {
    arrived: usize,
    generation: u64,
    /// Generation each thread last arrived in, plus one.
    arrivals: Vec<u64>,
    waiting: Vec<usize>,
    gathered: Knowledge,
    published: Knowledge,
}

impl ClusterBarrier {
    pub fn reset(&mut self, threads: usize) {
        *self = Self { arrivals: vec![0; threads], ..Self::default() };
    }
}

/// Registers of the threads of each warp group of a CTA.
pub(super) struct RegisterPool {
    groups: Vec<usize>,
    free: usize,
    /// Groups that wait for registers, by the threads in them.
    waiting: Vec<(usize, usize)>,
    /// Threads of each group that came to the instruction.
    came: Vec<usize>,
}

impl RegisterPool {
    /// What a kernel of so many threads starts with when it asks for a CTA a multiprocessor.
    pub fn new(threads: usize) -> Self {
        let groups = threads.div_ceil(GROUP);
        let entry = (REGISTERS / threads.max(1)).min(MOST) & !7;
        Self { groups: vec![entry; groups], free: 0, waiting: Vec::new(), came: vec![0; groups] }
    }
}

impl Worker {
    /// Rank of a thread's CTA in its cluster.
    pub(in crate::device::host) fn rank_of(&self, thread: usize) -> usize {
        // Almost always one: a division for every thread costs as much as a small kernel's thread.
        if self.ctas == 1 { 0 } else { thread / self.cta_threads }
    }

    /// Byte of the cluster's shared memory that a 32-bit address names.
    pub(super) fn shared_byte(&self, address: u32, bytes: usize, place: Place) -> Result<usize, String> {
        let (rank, offset) = split(address);
        let room = self.grid().launch.smem_bytes as usize;
        if rank >= self.ctas {
            return Err(format!("address in CTA {rank} of a cluster of {} at {place}", self.ctas));
        }
        if offset + bytes > room {
            return Err(format!("out of bounds: byte {offset} of {room} bytes of shared memory at {place}"));
        }
        Ok(rank * self.stride + offset)
    }

    /// Refuses what reaches into a CTA that is gone.
    pub(super) fn check_peer(&self, rank: usize, place: Place) -> Result<(), String> {
        if self.gone.get(rank).is_some_and(|&gone| gone == self.cta_threads) {
            return Err(format!("CTA {rank} of the cluster has exited: reached at {place}"));
        }
        Ok(())
    }

    /// A load or store of four bytes in any CTA of the cluster.
    pub(in crate::device::host) fn cluster_access(
        &mut self,
        shared: u32,
        value: &mut f32,
        write: bool,
        place: Place,
    ) -> Result<(), String> {
        let byte = self.shared_byte(shared, 4, place)?;
        let (rank, _) = split(shared);
        if rank != self.rank_of(self.running) {
            self.check_peer(rank, place)?;
        }
        let at = self.strict.place(place);
        self.strict.cluster_access(self.running, byte..byte + 4, write, at)?;
        let memory: *mut u8 = self.shared.as_mut_ptr().cast();
        // SAFETY: `shared_byte` checked the range.
        unsafe {
            let word = memory.add(byte).cast::<f32>();
            if write { word.write_unaligned(*value) } else { *value = word.read_unaligned() }
        }
        Ok(())
    }

    pub(in crate::device::host) fn cluster_barrier(&mut self, wait: bool, place: Place) -> Result<bool, String> {
        let running = self.running;
        let barrier = &mut self.cluster_barrier;
        if wait {
            let Some(generation) = barrier.arrivals[running].checked_sub(1) else {
                return Err(format!("barrier.cluster.wait without arrive at {place}"));
            };
            if generation < barrier.generation {
                self.strict.acquire(running, &barrier.published);
                return Ok(true);
            }
            barrier.waiting.push(running);
            self.threads[running].status = Status::AtClusterBarrier;
            self.threads[running].place = place;
            return Ok(false);
        }
        if barrier.arrivals[running] == barrier.generation + 1 {
            return Err(format!("barrier.cluster.arrive twice without wait at {place}"));
        }
        barrier.arrivals[running] = barrier.generation + 1;
        barrier.arrived += 1;
        self.strict.release(running, &mut barrier.gathered);
        if barrier.arrived < self.threads.len() {
            return Ok(true);
        }
        barrier.arrived = 0;
        barrier.generation += 1;
        barrier.published = std::mem::take(&mut barrier.gathered);
        let mut woken = std::mem::take(&mut barrier.waiting);
        for &thread in &woken {
            self.strict.acquire(thread, &barrier.published);
        }
        if woken.is_empty() {
            return Ok(true);
        }
        Ok(self.release(&mut woken))
    }

    /// `setmaxnreg`: a warp group gives registers to its CTA's pool, or waits for as many as it takes.
    pub(in crate::device::host) fn registers(
        &mut self,
        count: usize,
        grow: bool,
        place: Place,
    ) -> Result<bool, String> {
        let running = self.running;
        let rank = self.rank_of(running);
        let group = running % self.cta_threads / GROUP;
        if !count.is_multiple_of(8) || !(24..=256).contains(&count) {
            return Err(format!("setmaxnreg {count} at {place}: not a multiple of 8 from 24 to 256"));
        }
        let pool = &mut self.pools[rank];
        let now = pool.groups[group];
        if grow && count < now || !grow && count > now {
            let what = if grow { "inc" } else { "dec" };
            return Err(format!(
                "setmaxnreg.{what} to {count} at {place}: the warp group has {now} registers a thread"
            ));
        }
        pool.came[group] += 1;
        let whole = pool.came[group].is_multiple_of(GROUP);
        if !grow {
            if whole {
                pool.free += now - count;
                pool.groups[group] = count;
                return Ok(self.hand_out(rank));
            }
            return Ok(true);
        }
        pool.waiting.push((running, count));
        self.threads[running].status = Status::AtRegisters(count as u32);
        self.threads[running].place = place;
        if whole { Ok(self.hand_out(rank)) } else { Ok(false) }
    }

    /// Serves the warp groups that wait, if the pool has enough. Returns whether the running thread goes on at once.
    fn hand_out(&mut self, rank: usize) -> bool {
        let first = rank * self.cta_threads;
        let mut woken = Vec::new();
        loop {
            let pool = &mut self.pools[rank];
            let served = pool.waiting.iter().copied().find(|&(thread, count)| {
                let group = (thread - first) / GROUP;
                pool.came[group].is_multiple_of(GROUP) && count - pool.groups[group] <= pool.free
            });
            let Some((thread, count)) = served else {
                break;
            };
            let group = (thread - first) / GROUP;
            pool.free -= count - pool.groups[group];
            pool.groups[group] = count;
            let in_group = |&(thread, _): &(usize, usize)| (thread - first) / GROUP == group;
            woken.extend(pool.waiting.iter().filter(|&w| in_group(w)).map(|&(thread, _)| thread));
            pool.waiting.retain(|w| !in_group(w));
        }
        let runs = self.threads[self.running].status == Status::Running || woken.contains(&self.running);
        woken.retain(|&thread| thread != self.running);
        if runs {
            self.threads[self.running].status = Status::Running;
        }
        if woken.is_empty() {
            return runs;
        }
        if runs {
            return self.release(&mut woken);
        }
        self.wake(woken);
        false
    }
}
