//! Where threads meet: barriers of a CTA and collectives of a warp.

use std::{ffi::c_void, ptr};

use super::{NAMED_BARRIERS, Place, Status, WARP, Worker};

#[derive(Clone, Default)]
pub(super) struct Barrier {
    /// Threads the current generation waits for; 0 while nobody is there.
    expected: usize,
    arrived: usize,
    waiting: Vec<usize>,
    /// Those who came and went on.
    passing: Vec<usize>,
}

impl Barrier {
    pub fn reset(&mut self) {
        (self.expected, self.arrived) = (0, 0);
        self.waiting.clear();
        self.passing.clear();
    }
}

/// Lanes of a warp that wait in a collective, and that have exited.
#[derive(Clone, Copy, Default)]
pub(super) struct WarpState {
    waiting: u32,
    exited: u32,
}

impl Worker {
    pub(in crate::device::host) fn arrive(
        &mut self,
        id: u32,
        threads: u32,
        wait: bool,
        place: Place,
    ) -> Result<bool, String> {
        let all = self.cta_threads;
        let rank = self.rank_of(self.running);
        let expected = if threads == 0 { all } else { threads as usize };
        if id as usize >= NAMED_BARRIERS {
            return Err(format!("barrier {id} at {place}: there are {NAMED_BARRIERS}"));
        }
        if threads != 0 && (expected % WARP != 0 || expected > all) {
            return Err(format!("barrier {id} at {place}: {expected} threads is no multiple of 32 up to {all}"));
        }
        let running = self.running;
        let slot = rank * NAMED_BARRIERS + id as usize;
        let barrier = &mut self.barriers[slot];
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
        self.strict.barrier_arrival(slot, running, threads == 0 && self.ctas == 1);
        if !complete {
            return Ok(!wait);
        }
        self.complete_barrier(id, rank, wait, place)
    }

    fn complete_barrier(&mut self, id: u32, rank: usize, wait: bool, place: Place) -> Result<bool, String> {
        let (all, first) = (self.cta_threads, rank * self.cta_threads);
        let slot = rank * NAMED_BARRIERS + id as usize;
        let barrier = &mut self.barriers[slot];
        let mut waiting = std::mem::take(&mut barrier.waiting);
        if barrier.expected < all {
            let mut lanes = [0; WARP];
            waiting.iter().chain(&barrier.passing).for_each(|thread| lanes[(thread - first) / WARP] += 1);
            let whole = |warp: usize| WARP.min(all - warp * WARP);
            if let Some(warp) = (0..all.div_ceil(WARP)).find(|&w| lanes[w] != 0 && lanes[w] != whole(w)) {
                let (came, of) = (lanes[warp], whole(warp));
                return Err(format!(
                    "barrier divergence: {came} of the {of} lanes of warp {warp} came to barrier {id} at {place}"
                ));
            }
        }
        barrier.reset();
        self.strict.barrier_complete(slot, &waiting);
        if wait {
            waiting.pop();
            self.threads[self.running].status = Status::Running;
        }
        let goes_on = self.release(&mut waiting);
        self.barriers[slot].waiting = waiting;
        Ok(goes_on)
    }

    /// Returns true if the running thread is the last of its collective.
    pub(in crate::device::host) fn meet(
        &mut self,
        mask: u32,
        payload: *mut c_void,
        place: Place,
    ) -> Result<bool, String> {
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

    pub(in crate::device::host) fn payloads(&self, mask: u32) -> [*mut c_void; WARP] {
        let base = self.running / WARP * WARP;
        let mut lanes = [ptr::null_mut(); WARP];
        lanes_of(mask).for_each(|lane| lanes[lane] = self.threads[base + lane].payload);
        lanes
    }

    /// The operation of a complete collective is done. Returns whether the running thread goes on at once.
    pub(in crate::device::host) fn part(&mut self, mask: u32) -> bool {
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
    pub(super) fn exit(&mut self) {
        let running = self.running;
        let (base, lane) = (running / WARP * WARP, running % WARP);
        if self.hopper
            && let Err(why) = self.check_products(running).and_then(|()| self.check_stores(running))
        {
            self.fail(&why);
            return;
        }
        self.threads[running].status = Status::Done;
        self.done += 1;
        let rank = self.rank_of(running);
        self.gone[rank] += 1;
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

    /// A barrier that threads came to without waiting, and nobody else, was missed by those who should wait.
    pub(super) fn check_barriers(&self) -> Result<(), String> {
        let Some((slot, barrier)) = self.barriers.iter().enumerate().find(|(_, barrier)| barrier.arrived > 0) else {
            return Ok(());
        };
        let (rank, id) = (slot / NAMED_BARRIERS, slot % NAMED_BARRIERS);
        let (arrived, expected, first) = (barrier.arrived, barrier.expected, barrier.passing.first().copied());
        let block = self.block_name(rank);
        Err(format!(
            "{block}, thread {}: barrier mismatch: {arrived} of {expected} threads came to barrier {id}, and nobody waits there",
            first.unwrap_or_default() % self.cta_threads
        ))
    }

    pub(super) fn describe_deadlock(&self) -> String {
        let mut groups: Vec<(String, Vec<usize>)> = Vec::new();
        for (t, state) in self.threads.iter().enumerate() {
            let what = match state.status {
                Status::AtBarrier(id) => {
                    let barrier = &self.barriers[self.rank_of(t) * NAMED_BARRIERS + id as usize];
                    let Barrier { arrived, expected, .. } = barrier;
                    format!("wait at barrier {id} ({arrived} of {expected} arrived) at {}", state.place)
                }
                Status::AtMbarrier(address) => {
                    format!("wait for {} at {}", self.describe_mbarrier(address), state.place)
                }
                Status::AtClusterBarrier => format!("wait for the cluster at {}", state.place),
                Status::AtGroup => format!("wait for their warp group at {}", state.place),
                Status::AtRegisters(count) => format!("wait for {count} registers at {}", state.place),
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
        format!("{}: {name}: {}", self.block_name(0), parts.join("; "))
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
