//! mbarriers: arrivals and transferred bytes counted by phases, on which threads wait without meeting.

use super::{Place, Status, Worker, cluster::split, strict::Knowledge};

/// Bytes that a phase may be short of or ahead.
const MOST_BYTES: i64 = (1 << 20) - 1;

/// One mbarrier object.
pub(super) struct Mbarrier {
    pub address: u32,
    count: u32,
    /// Arrivals the current phase still waits for.
    pending: u32,
    /// Bytes the current phase still waits for; negative while copies are ahead of the arrivals that expect them.
    bytes: i64,
    /// Phases completed; the current one has this number.
    phase: i64,
    /// Threads and the phases they wait for.
    waiting: Vec<(usize, i64)>,
    /// The last phase each thread saw complete; none yet is -1, the phase before the first.
    seen: Vec<i64>,
    /// What those know who arrived in the current phase, and in those before.
    gathered: Knowledge,
    published: Knowledge,
    /// The copies that complete here, as strict mode sees them.
    pub agent: usize,
    creator: usize,
    /// Its creation was made known to the cluster and to asynchronous copies.
    pub fenced: bool,
}

impl Mbarrier {
    pub fn current_phase(&self) -> i64 {
        self.phase
    }
}

fn parity(phase: i64) -> u32 {
    phase.rem_euclid(2) as u32
}

impl Worker {
    /// Its place in the list of mbarriers.
    pub(super) fn find_mbarrier(&self, address: u32, place: Place) -> Result<usize, String> {
        let found = self.mbarriers.iter().position(|barrier| barrier.address == address);
        found.ok_or_else(|| {
            format!("mbarrier at shared byte {} was never initialised: used at {place}", split(address).1)
        })
    }

    pub(in crate::device::host) fn mbarrier_init(
        &mut self,
        address: u32,
        count: u32,
        place: Place,
    ) -> Result<(), String> {
        let byte = split(address).1;
        let object = self.shared_byte(address, 8, place)?;
        if !address.is_multiple_of(8) {
            return Err(format!("mbarrier at shared byte {byte} at {place}: not a multiple of 8"));
        }
        if count == 0 || count > MOST_BYTES as u32 {
            return Err(format!("mbarrier at shared byte {byte} at {place}: a count of {count}"));
        }
        if self.mbarriers.iter().any(|barrier| barrier.address == address) {
            return Err(format!("mbarrier at shared byte {byte} is initialised a second time at {place}"));
        }
        let running = self.running;
        let at = self.strict.place(place);
        self.strict.mbarrier_access(running, object, true, at)?;
        let agent = self.strict.new_agent(|| format!("a copy that completes on the mbarrier at shared byte {byte}"))?;
        self.mbarriers.push(Mbarrier {
            address,
            count,
            pending: count,
            bytes: 0,
            phase: 0,
            waiting: Vec::new(),
            seen: vec![-1; self.threads.len()],
            gathered: Knowledge::default(),
            published: Knowledge::default(),
            agent,
            creator: running,
            fenced: false,
        });
        Ok(())
    }

    /// `fence.mbarrier_init`.
    pub(in crate::device::host) fn fence_mbarriers(&mut self) {
        let running = self.running;
        self.mbarriers
            .iter_mut()
            .filter(|barrier| barrier.creator == running)
            .for_each(|barrier| barrier.fenced = true);
    }

    /// Returns whether the running thread goes on at once.
    pub(in crate::device::host) fn mbarrier_arrive(
        &mut self,
        address: u32,
        bytes: u32,
        arrivals: u32,
        place: Place,
    ) -> Result<bool, String> {
        let running = self.running;
        let index = self.find_mbarrier(address, place)?;
        let object = self.shared_byte(address, 8, place)?;
        let at = self.strict.place(place);
        self.strict.mbarrier_access(running, object, false, at)?;
        let (rank, _) = split(address);
        if rank != self.rank_of(running) {
            self.check_peer(rank, place)?;
            let fenced = self.mbarriers[index].fenced;
            if !fenced {
                return Err(format!("missing fence.mbarrier_init: arrival from another CTA at {place}"));
            }
        }
        let barrier = &mut self.mbarriers[index];
        barrier.bytes += i64::from(bytes);
        if arrivals > barrier.pending {
            let count = barrier.count;
            return Err(format!(
                "mbarrier at shared byte {}: one arrival more than the {count} of a phase at {place}",
                split(address).1
            ));
        }
        barrier.pending -= arrivals;
        if arrivals > 0 {
            self.strict.release(running, &mut barrier.gathered);
        }
        let mut woken = self.complete_phase(index, place)?;
        if woken.is_empty() {
            return Ok(true);
        }
        Ok(self.release(&mut woken))
    }

    /// Copied bytes have arrived. The threads that waited for them are runnable.
    pub(super) fn complete_bytes(&mut self, index: usize, bytes: usize, place: Place) -> Result<(), String> {
        let barrier = &mut self.mbarriers[index];
        barrier.bytes -= bytes as i64;
        let agent = barrier.agent;
        self.strict.release_agent(agent, &mut barrier.gathered);
        let woken = self.complete_phase(index, place)?;
        self.wake(woken);
        Ok(())
    }

    /// Ends the current phase if nothing is missing; returns who waited for it.
    fn complete_phase(&mut self, index: usize, place: Place) -> Result<Vec<usize>, String> {
        let barrier = &mut self.mbarriers[index];
        let byte = split(barrier.address).1;
        if barrier.bytes.abs() > MOST_BYTES {
            return Err(format!("mbarrier at shared byte {byte}: {} bytes expected at {place}", barrier.bytes));
        }
        if barrier.pending > 0 || barrier.bytes != 0 {
            if barrier.pending == 0 && barrier.bytes < 0 {
                return Err(format!(
                    "mbarrier at shared byte {byte}: {} bytes more arrived than expect_tx said at {place}",
                    -barrier.bytes
                ));
            }
            return Ok(Vec::new());
        }
        if let Some(copy) = self.bulk.loads.iter().find(|copy| copy.completes(index, barrier.phase)) {
            return Err(format!(
                "mbarrier at shared byte {byte}: the phase is complete at {place} while the copy of {} bytes issued at {} \
                 is on its way: expect_tx said too little",
                copy.bytes(),
                copy.place
            ));
        }
        barrier.phase += 1;
        barrier.pending = barrier.count;
        barrier.published.join(&barrier.gathered);
        barrier.gathered.clear();
        let done = barrier.phase;
        let (woken, waiting) = std::mem::take(&mut barrier.waiting).into_iter().partition(|&(_, phase)| phase < done);
        let woken: Vec<(usize, i64)> = woken;
        barrier.waiting = waiting;
        for &(thread, phase) in &woken {
            barrier.seen[thread] = phase;
            self.strict.acquire(thread, &barrier.published);
        }
        Ok(woken.into_iter().map(|(thread, _)| thread).collect())
    }

    /// Waits for the phase of this parity that comes next for the running thread. Returns whether it is complete.
    pub(in crate::device::host) fn mbarrier_wait(
        &mut self,
        address: u32,
        wanted: u32,
        place: Place,
    ) -> Result<bool, String> {
        let running = self.running;
        let index = self.find_mbarrier(address, place)?;
        let object = self.shared_byte(address, 8, place)?;
        let at = self.strict.place(place);
        self.strict.mbarrier_access(running, object, false, at)?;
        let barrier = &mut self.mbarriers[index];
        let seen = barrier.seen[running];
        // The one it saw last may be asked for again.
        let phase = if parity(seen + 1) == wanted & 1 { seen + 1 } else { seen };
        if phase + 1 < barrier.phase {
            return Err(format!(
                "parity alias: waits at {place} for phase {phase} of the mbarrier at shared byte {}, which is in phase {}: \
                 the parity stands for another one",
                split(address).1,
                barrier.phase
            ));
        }
        if phase < barrier.phase {
            barrier.seen[running] = phase;
            self.strict.acquire(running, &barrier.published);
            return Ok(true);
        }
        barrier.waiting.push((running, phase));
        self.threads[running].status = Status::AtMbarrier(address);
        self.threads[running].place = place;
        Ok(false)
    }

    /// What is wrong with the mbarriers of CTAs that have ended.
    pub(super) fn check_mbarriers(&self) -> Result<(), String> {
        for barrier in &self.mbarriers {
            let byte = split(barrier.address).1;
            let came = barrier.count - barrier.pending;
            if came > 0 || barrier.bytes != 0 {
                return Err(format!(
                    "{}: the kernel ends in the middle of phase {} of the mbarrier at shared byte {byte}: {came} of {} \
                     arrived, {} bytes missing",
                    self.block_name(split(barrier.address).0),
                    barrier.phase,
                    barrier.count,
                    barrier.bytes
                ));
            }
        }
        Ok(())
    }

    /// For the report of a deadlock.
    pub(super) fn describe_mbarrier(&self, address: u32) -> String {
        let Some(barrier) = self.mbarriers.iter().find(|barrier| barrier.address == address) else {
            return String::new();
        };
        format!(
            "phase {} of the mbarrier at shared byte {} ({} of {} arrived, {} bytes missing)",
            barrier.phase,
            split(address).1,
            barrier.count - barrier.pending,
            barrier.count,
            barrier.bytes
        )
    }
}
