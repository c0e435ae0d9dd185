//! What strict mode knows of global memory: where the buffers are and which of their bytes have been written.

use std::{
    alloc::{Layout, dealloc},
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::banks;
use crate::device::Kernel;

/// Bytes before and after every buffer that nobody may touch.
pub(in super::super) const GUARD_BYTES: usize = 256;
/// What fresh memory is filled with: NaN in every float type.
pub(in super::super) const POISON: u8 = 0xff;
/// Freed buffers that are kept from being used again, so that errors can name them.
const QUARANTINE: usize = 64;
const QUARANTINE_BYTES: usize = 16 << 20;

/// One bit per byte. Atomic only so that it can be shared: nobody relies on an order.
#[derive(Default)]
pub(super) struct Bits(Vec<AtomicU64>);

impl Bits {
    pub fn new(bytes: usize) -> Self {
        Self((0..bytes.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Clears all bits and makes room for `bytes` of them.
    pub fn reset(&mut self, bytes: usize) {
        self.0.iter_mut().for_each(|word| *word.get_mut() = 0);
        if self.0.len() < bytes.div_ceil(64) {
            self.0.resize_with(bytes.div_ceil(64), AtomicU64::default);
        }
    }

    /// Words that the range touches, each with the mask of its bits.
    fn words(&self, from: usize, len: usize) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let end = from + len;
        (from / 64..end.div_ceil(64)).map(move |word| {
            let first = from.max(word * 64) - word * 64;
            let last = end.min(word * 64 + 64) - word * 64;
            (&self.0[word], (u64::MAX >> (64 - (last - first))) << first)
        })
    }

    pub fn all(&self, from: usize, len: usize) -> bool {
        if from % 64 + len <= 64 && len > 0 {
            return self.0[from / 64].load(Relaxed) >> (from % 64) | !(u64::MAX >> (64 - len)) == u64::MAX;
        }
        self.words(from, len).all(|(word, mask)| word.load(Relaxed) & mask == mask)
    }

    pub fn any(&self, from: usize, len: usize) -> bool {
        self.words(from, len).any(|(word, mask)| word.load(Relaxed) & mask != 0)
    }

    pub fn get(&self, at: usize) -> bool {
        self.0[at / 64].load(Relaxed) >> (at % 64) & 1 == 1
    }

    pub fn set(&self, from: usize, len: usize) {
        self.words(from, len).for_each(|(word, mask)| word.store(word.load(Relaxed) | mask, Relaxed));
    }

    pub fn clear(&self, from: usize, len: usize) {
        self.words(from, len).for_each(|(word, mask)| word.store(word.load(Relaxed) & !mask, Relaxed));
    }
}

/// A live buffer.
pub(super) struct Allocation {
    pub address: u64,
    pub bytes: usize,
    pub written: Bits,
}

impl Allocation {
    pub fn end(&self) -> u64 {
        self.address + self.bytes as u64
    }

    fn distance(&self, address: u64) -> u64 {
        if address < self.address { self.address - address } else { address.saturating_sub(self.end()) }
    }
}

/// A freed buffer whose memory is not given back yet.
struct Freed {
    address: u64,
    bytes: usize,
    base: u64,
    layout: Layout,
}

impl Drop for Freed {
    fn drop(&mut self) {
        // SAFETY: handed over by the buffer, which was allocated with this layout and does not free it itself.
        unsafe { dealloc(self.base as *mut u8, self.layout) };
    }
}

#[derive(Default)]
struct Book {
    live: BTreeMap<u64, Arc<Allocation>>,
    freed: VecDeque<Freed>,
    freed_bytes: usize,
}

/// The buffers of one strict device.
#[derive(Default)]
pub(in super::super) struct Registry {
    book: Mutex<Book>,
    /// Where accesses to shared memory are counted by bank, if they are.
    pub banks: Option<Arc<banks::Book>>,
}

impl Registry {
    /// An empty book; `banks` is where accesses to shared memory are counted, if they are.
    pub fn counting(banks: Option<Arc<banks::Book>>) -> Self {
        Self { banks, ..Self::default() }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes up a buffer of which no byte is written yet.
    pub fn remember(&self, address: u64, bytes: usize) {
        let buffer = Allocation { address, bytes, written: Bits::new(bytes) };
        self.book().live.insert(address, Arc::new(buffer));
    }

    /// Takes over the memory of a buffer that nobody holds any more.
    ///
    /// # Safety
    /// `base` was allocated with `layout`, and the caller does not free it.
    pub unsafe fn forget(&self, address: u64, bytes: usize, base: *mut u8, layout: Layout) {
        let mut book = self.book();
        book.live.remove(&address);
        book.freed.push_back(Freed { address, bytes, base: base as u64, layout });
        book.freed_bytes += layout.size();
        while book.freed.len() > QUARANTINE || book.freed_bytes > QUARANTINE_BYTES {
            let oldest = book.freed.pop_front();
            book.freed_bytes -= oldest.map_or(0, |freed| freed.layout.size());
        }
    }

    /// Notes that something other than a kernel filled these bytes.
    pub fn mark_written(&self, address: u64, bytes: usize) {
        if let Some((buffer, at)) = self.find(address) {
            buffer.written.set(at, bytes.min(buffer.bytes - at));
        }
    }

    /// Notes a copy between buffers: what was not written before is not written after.
    pub fn mark_copied(&self, target: u64, source: u64, bytes: usize) {
        let (Some((to, to_at)), Some((from, from_at))) = (self.find(target), self.find(source)) else {
            return;
        };
        let known: Vec<bool> = (0..bytes).map(|i| from.written.get(from_at + i)).collect();
        for (i, known) in known.into_iter().enumerate() {
            if known { to.written.set(to_at + i, 1) } else { to.written.clear(to_at + i, 1) }
        }
    }

    fn find(&self, address: u64) -> Option<(Arc<Allocation>, usize)> {
        let book = self.book();
        let (_, buffer) = book.live.range(..=address).next_back()?;
        (address < buffer.end()).then(|| (buffer.clone(), (address - buffer.address) as usize))
    }

    /// The buffers as they are now: what one launch works on.
    pub fn snapshot(&self) -> Memory {
        let book = self.book();
        Memory {
            live: book.live.values().cloned().collect(),
            freed: book.freed.iter().map(|f| (f.address, f.bytes)).collect(),
            banks: self.banks.clone(),
        }
    }
}

/// The buffers that one launch may touch, by address.
#[derive(Default)]
pub(in super::super) struct Memory {
    live: Vec<Arc<Allocation>>,
    freed: Vec<(u64, usize)>,
    pub(super) banks: Option<Arc<banks::Book>>,
}

impl Memory {
    pub(super) fn find(&self, address: u64) -> Option<&Arc<Allocation>> {
        let after = self.live.partition_point(|buffer| buffer.address <= address);
        self.live[..after].last().filter(|buffer| address < buffer.end())
    }

    /// `x` (1024 bytes) for a buffer that is an argument, else its size alone.
    pub(super) fn name(buffer: &Allocation, kernel: &Kernel, args: &[u64]) -> String {
        let inside = |&arg: &u64| (buffer.address..buffer.end().max(buffer.address + 1)).contains(&arg);
        match args.iter().position(inside).and_then(|i| kernel.params.get(i)) {
            Some(param) => format!("`{param}` ({} bytes)", buffer.bytes),
            None => format!("a buffer of {} bytes", buffer.bytes),
        }
    }

    /// Bytes from an address to the nearest buffer, live or freed.
    pub(super) fn distance(&self, address: u64) -> u64 {
        let freed = |&(start, bytes): &(u64, usize)| (start..start + bytes as u64).contains(&address);
        let live = self.live.iter().map(|buffer| buffer.distance(address)).min();
        if self.freed.iter().any(freed) { 0 } else { live.unwrap_or(u64::MAX) }
    }

    /// Where an address outside every buffer lies.
    pub(super) fn describe(&self, address: u64, kernel: &Kernel, args: &[u64]) -> String {
        if let Some((start, bytes)) = self.freed.iter().find(|f| (f.0..f.0 + f.1 as u64).contains(&address)) {
            return format!("byte {} of a buffer of {bytes} bytes that was freed", address - start);
        }
        let Some(nearest) = self.live.iter().min_by_key(|buffer| buffer.distance(address)) else {
            return "there is no buffer at all".into();
        };
        let name = Self::name(nearest, kernel, args);
        if address < nearest.address {
            format!("{} bytes before {name}", nearest.address - address)
        } else if address < nearest.end() {
            format!("across the end of {name}")
        } else {
            format!("{} bytes past the end of {name}", address - nearest.end())
        }
    }
}
