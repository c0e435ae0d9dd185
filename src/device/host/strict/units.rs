//! What the asynchronous units of Hopper do beside the threads: bulk copies, products of warp groups, and the mbarriers
//! and waits by which threads learn of them.
//!
//! Each unit is an agent of the clocks. A copy belongs to the mbarrier it completes on, a product to its warp group, a
//! bulk store to the thread that issued it; so a thread knows of a copy only if it waited on that very mbarrier.

use std::ops::Range;

use super::{Access, CtaChecks, Knowledge, Place, races::Unfenced};

/// Agents of the CTAs that run together.
pub(super) const AGENTS: usize = 128;
/// Bytes that are counted together while units read them; every operand is a whole number of these.
const CHUNK: usize = 16;

/// A copy into shared memory that has not landed.
struct Writing {
    bytes: Range<usize>,
    thread: usize,
    at: u32,
}

/// A run of a thread's registers that a product works on.
struct Registers {
    bytes: Range<u64>,
    /// Products in flight, and where the last was issued.
    in_flight: usize,
    at: u32,
    /// Only read by the product: its thread may read them too.
    source: bool,
    /// The thread used them since its last fence.
    touched: bool,
}

#[derive(Default)]
struct ThreadUnits {
    registers: Vec<Registers>,
    /// `wgmma.fence` since the last wait.
    fenced: bool,
}

#[derive(Default)]
pub(super) struct Units {
    writing: Vec<Writing>,
    /// Products and stores that read each 16 bytes now, and where the last was issued.
    reading: Vec<(u16, u32)>,
    threads: Vec<ThreadUnits>,
    names: Vec<(usize, String)>,
}

impl Units {
    pub fn start(&mut self, threads: usize, bytes: usize) {
        self.writing.clear();
        self.reading.clear();
        self.reading.resize(bytes / CHUNK, (0, 0));
        self.threads.clear();
        self.threads.resize_with(threads, ThreadUnits::default);
        self.names.clear();
    }

    /// The thread and place of the copy that is about to write a byte.
    pub fn writer(&self, byte: usize) -> Option<(usize, u32)> {
        let copy = self.writing.iter().find(|copy| copy.bytes.contains(&byte))?;
        Some((copy.thread, copy.at))
    }

    pub fn name(&self, agent: usize) -> &str {
        self.names.iter().find(|(column, _)| *column == agent).map_or("an asynchronous unit", |(_, name)| name)
    }
}

impl CtaChecks {
    /// An agent with a name for reports. 0, which is nobody, outside strict mode.
    ///
    /// # Errors
    /// There are too many.
    pub fn new_agent(&mut self, name: impl FnOnce() -> String) -> Result<usize, String> {
        if !self.active {
            return Ok(0);
        }
        let Some(agent) = self.clocks.new_agent() else {
            return Err(
                "asynchronous units in a kernel of a file that does not end in _sm90, or too many of them".into()
            );
        };
        self.units.names.push((agent, name()));
        Ok(agent)
    }

    /// The number of a place, for the calls below.
    pub fn place(&mut self, place: Place) -> u32 {
        if self.active { self.places.number(place) } else { 0 }
    }

    /// The thread makes what it did known to those who acquire `to`.
    pub fn release(&mut self, thread: usize, to: &mut Knowledge) {
        if self.active {
            self.clocks.release(thread, to);
        }
    }

    pub fn acquire(&mut self, thread: usize, from: &Knowledge) {
        if self.active {
            self.clocks.acquire(thread, from);
        }
    }

    /// `fence.proxy.async`.
    pub fn fence(&mut self, thread: usize) {
        if self.active {
            self.clocks.fence(thread);
        }
    }

    fn access(&self, bytes: &Range<usize>, write: bool, at: u32) -> Access {
        Access { address: self.region + bytes.start as u64, bytes: bytes.len(), alignment: 1, write, at }
    }

    /// An access of an mbarrier object by the running thread. It is atomic, so only creating one can race.
    pub fn mbarrier_access(&mut self, thread: usize, object: usize, creates: bool, at: u32) -> Result<(), String> {
        if !self.active {
            return Ok(());
        }
        let bytes = object..object + 8;
        let access = self.access(&bytes, creates, at);
        if creates {
            self.check_not_pending(access, object)?;
            self.clocks.write(thread, bytes, at).map_err(|c| self.race(access, &c))?;
            self.written.set(object, 8);
            return Ok(());
        }
        self.clocks.may_read(thread, bytes).map_err(|c| self.race(access, &c))
    }

    /// A thread's access to shared memory of any CTA of its cluster.
    pub fn cluster_access(&mut self, thread: usize, bytes: Range<usize>, write: bool, at: u32) -> Result<(), String> {
        if !self.active {
            return Ok(());
        }
        let access = Access { alignment: 4, ..self.access(&bytes, write, at) };
        if !access.address.is_multiple_of(4) {
            return Err(format!("misaligned {}: not a multiple of 4", self.describe(access)));
        }
        self.check_not_pending(access, bytes.start)?;
        if write {
            self.check_not_read(access, &bytes)?;
            self.clocks.write(thread, bytes.clone(), at).map_err(|c| self.race(access, &c))?;
            self.written.set(bytes.start, bytes.len());
            return Ok(());
        }
        self.check_written(access, bytes.start)?;
        self.clocks.read(thread, bytes, at).map_err(|c| self.race(access, &c))
    }

    /// Refuses to let `thread` start a copy into bytes of shared memory that are in use, or that threads used without
    /// fencing it from the copy.
    pub fn start_write(&mut self, thread: usize, bytes: Range<usize>, at: u32) -> Result<(), String> {
        if !self.active {
            return Ok(());
        }
        let access = self.access(&bytes, true, at);
        self.check_not_pending(access, bytes.start)?;
        self.check_not_read(access, &bytes)?;
        self.clocks.may_write(thread, bytes.clone()).map_err(|c| self.race(access, &c))?;
        self.clocks.fenced_for_write(thread, bytes.clone()).map_err(|unfenced| self.unfenced(access, &unfenced))?;
        self.pending.set(bytes.start, bytes.len());
        self.units.writing.push(Writing { bytes, thread, at });
        Ok(())
    }

    /// The copy into these bytes has landed: `agent` wrote them.
    pub fn end_write(&mut self, agent: usize, bytes: Range<usize>) {
        if !self.active {
            return;
        }
        let landed = self.units.writing.iter().position(|copy| copy.bytes == bytes);
        let at = landed.map_or(0, |i| self.units.writing.swap_remove(i).at);
        self.pending.clear(bytes.start, bytes.len());
        self.written.set(bytes.start, bytes.len());
        self.clocks.has_written(agent, bytes, at);
    }

    /// The agent's work so far is known to those who acquire `to`.
    pub fn release_agent(&mut self, agent: usize, to: &mut Knowledge) {
        if self.active {
            self.clocks.release_agent(agent, to);
        }
    }

    /// Refuses to let a unit read bytes of shared memory that `thread` does not know to be there for units.
    pub fn start_read(&mut self, thread: usize, ranges: &[Range<usize>], at: u32) -> Result<(), String> {
        if !self.active {
            return Ok(());
        }
        for bytes in ranges {
            let access = self.access(bytes, false, at);
            self.check_not_pending(access, bytes.start)?;
            self.check_written(access, bytes.start)?;
            self.clocks.may_read(thread, bytes.clone()).map_err(|c| self.race(access, &c))?;
            self.clocks.fenced_for_read(thread, bytes.clone()).map_err(|unfenced| self.unfenced(access, &unfenced))?;
        }
        for chunk in ranges.iter().flat_map(|bytes| bytes.start / CHUNK..bytes.end.div_ceil(CHUNK)) {
            self.units.reading[chunk].0 += 1;
            self.units.reading[chunk].1 = at;
        }
        Ok(())
    }

    fn unfenced(&self, access: Access, unfenced: &Unfenced) -> String {
        format!(
            "missing fence.proxy.async: {} by an asynchronous unit, but {} {} byte {} at {} and no fence of its own lies \
             before",
            self.describe(access),
            self.who(unfenced.thread),
            if unfenced.wrote { "wrote" } else { "read" },
            unfenced.byte % self.stride,
            self.places.describe(unfenced.at)
        )
    }

    /// The unit has read them.
    pub fn end_read(&mut self, agent: usize, ranges: &[Range<usize>], at: u32) {
        if !self.active {
            return;
        }
        for bytes in ranges {
            (bytes.start / CHUNK..bytes.end.div_ceil(CHUNK)).for_each(|chunk| self.units.reading[chunk].0 -= 1);
            self.clocks.has_read(agent, bytes.clone(), at);
        }
    }

    pub(super) fn check_not_read(&self, access: Access, bytes: &Range<usize>) -> Result<(), String> {
        let chunks = &self.units.reading[bytes.start / CHUNK..bytes.end.div_ceil(CHUNK)];
        match chunks.iter().find(|chunk| chunk.0 > 0) {
            None => Ok(()),
            Some((_, at)) => Err(format!(
                "still being read: {} meets the read by an asynchronous unit that was issued at {}",
                self.describe(access),
                self.places.describe(*at)
            )),
        }
    }

    /// Bytes of global memory that a bulk copy reads or writes.
    pub fn global(&mut self, address: u64, bytes: usize, write: bool, at: u32) -> Result<(), String> {
        if !self.active {
            return Ok(());
        }
        let access = Access { address, bytes, alignment: 1, write, at };
        let from = self.find(address, bytes).ok_or_else(|| self.out_of_bounds(access))?;
        self.check_global(access, from)
    }

    /// `wgmma.fence`: the registers used so far may go to products.
    pub fn product_fence(&mut self, thread: usize) {
        if self.active {
            let units = &mut self.units.threads[thread];
            units.fenced = true;
            units.registers.iter_mut().for_each(|registers| registers.touched = false);
        }
    }

    /// A product takes registers of a thread: its accumulators, or (`source`) fragments of A.
    pub fn product_takes(&mut self, thread: usize, bytes: Range<u64>, source: bool, at: u32) -> Result<(), String> {
        if !self.active {
            return Ok(());
        }
        let what = if source { "fragments of A" } else { "accumulators" };
        let units = &mut self.units.threads[thread];
        let known = units.registers.iter_mut().find(|registers| registers.bytes == bytes);
        let fresh = known.as_ref().is_none_or(|registers| registers.in_flight == 0);
        if known.as_ref().is_some_and(|registers| registers.touched) || fresh && !units.fenced {
            let place = self.places.describe(at);
            return Err(format!(
                "missing wgmma.fence: the {what} of the product at {place} were used since the last one"
            ));
        }
        match known {
            Some(registers) => {
                registers.in_flight += 1;
                registers.at = at;
            }
            None => units.registers.push(Registers { bytes, in_flight: 1, at, source, touched: false }),
        }
        Ok(())
    }

    /// A product has given them back.
    pub fn product_returns(&mut self, thread: usize, bytes: &Range<u64>) {
        if !self.active {
            return;
        }
        let units = &mut self.units.threads[thread];
        if let Some(registers) = units.registers.iter_mut().find(|registers| registers.bytes == *bytes) {
            registers.in_flight -= 1;
        }
    }

    /// The thread waited for products: the next ones need a fence again.
    pub fn product_wait(&mut self, thread: usize) {
        if self.active {
            self.units.threads[thread].fenced = false;
        }
    }

    /// An access to the thread's own variables, some of which may be registers of a product.
    pub(super) fn check_registers(&mut self, access: Access) -> Result<(), String> {
        let Access { address, bytes, write, .. } = access;
        let units = &mut self.units.threads[self.thread];
        if units.registers.is_empty() {
            return Ok(());
        }
        let end = address + bytes as u64;
        for registers in units.registers.iter_mut().filter(|r| address < r.bytes.end && r.bytes.start < end) {
            if registers.in_flight > 0 && (write || !registers.source) {
                let (what, issued) =
                    if registers.source { ("fragment of A", registers.at) } else { ("accumulator", registers.at) };
                return Err(format!(
                    "{what} in flight: {} before the wait for the product at {}",
                    self.describe(access),
                    self.places.describe(issued)
                ));
            }
            registers.touched = true;
        }
        Ok(())
    }
}
