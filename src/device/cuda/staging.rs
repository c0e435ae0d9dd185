//! Page-locked memory through which copies to and from a GPU pass. Of a copy to the GPU the caller's bytes are taken at once
//! and the copy is queued, so that an index table of the next micro-batch does not wait for the kernels of the one before. A
//! copy from the GPU is queued too, and waited for when its bytes are wanted, while what was launched after it runs on.
//!
//! These copies stay on the work's stream. A second stream for them was not worth its events: a micro-batch's tables are less
//! than a megabyte, some 40 microseconds of a link, beside tens of milliseconds of kernels.

use std::{ffi::c_void, sync::Arc};

use anyhow::{Context, Result};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaStream,
    result::{self, DriverError},
    sys::CUevent_flags,
};

use super::driver::explain;

/// Slots of the two rings, and bytes of each: a step has many small tables, a micro-batch one large one.
const SMALL: (usize, usize) = (128, 64 << 10);
const LARGE: (usize, usize) = (16, 1 << 20);

/// All of a device's page-locked memory.
pub struct Staging {
    small: Ring,
    large: Ring,
    /// Slots that nobody reads any more.
    free: Vec<Slot>,
}

/// Slots in turn, each free again when the copy from it is done.
struct Ring {
    count: usize,
    slot_bytes: usize,
    slots: Vec<Slot>,
    next: usize,
}

/// Page-locked memory, and the end of the last copy from or to it.
pub struct Slot {
    memory: *mut c_void,
    bytes: usize,
    copied: CudaEvent,
    context: Arc<CudaContext>,
}

// SAFETY: page-locked memory may be used from any thread, and a slot has one owner.
unsafe impl Send for Slot {}

impl Slot {
    fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, DriverError> {
        let copied = context.new_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING))?;
        // SAFETY: the context is current, as `Staging` asks.
        let memory = unsafe { result::malloc_host(bytes, 0) }?;
        Ok(Self { memory, bytes, copied, context: context.clone() })
    }

    /// The first bytes that a copy left here, once it has.
    pub fn wait(&self, bytes: usize) -> Result<&[u8], DriverError> {
        self.copied.synchronize()?;
        // SAFETY: the copy that wrote so many bytes is done, and the slot is not copied to while it is borrowed.
        Ok(unsafe { std::slice::from_raw_parts(self.memory.cast::<u8>(), bytes.min(self.bytes)) })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let done = self.context.bind_to_thread().and_then(|()| self.copied.synchronize());
        // SAFETY: the memory came from `malloc_host`, and no copy uses it any more.
        let freed = done.and_then(|()| unsafe { result::free_host(self.memory) });
        self.context.record_err(freed);
    }
}

impl Ring {
    const fn new((count, slot_bytes): (usize, usize)) -> Self {
        Self { count, slot_bytes, slots: Vec::new(), next: 0 }
    }

    /// # Safety
    /// As [`Staging::copy`]; the piece fits a slot.
    unsafe fn copy(&mut self, stream: &CudaStream, target: u64, piece: &[u8]) -> Result<(), DriverError> {
        if self.next == self.slots.len() {
            self.slots.push(Slot::new(stream.context(), self.slot_bytes)?);
        } else {
            self.slots[self.next].copied.synchronize()?;
        }
        let slot = &self.slots[self.next];
        self.next = (self.next + 1) % self.count;
        // SAFETY: a slot holds at least a piece, and nothing reads it any more.
        let staged = unsafe {
            std::ptr::copy_nonoverlapping(piece.as_ptr(), slot.memory.cast::<u8>(), piece.len());
            std::slice::from_raw_parts(slot.memory.cast::<u8>(), piece.len())
        };
        // SAFETY: `staged` is not written before the event that follows the copy.
        unsafe { result::memcpy_htod_async(target, staged, stream.cu_stream()) }?;
        slot.copied.record(stream)
    }
}

impl Staging {
    pub const fn new() -> Self {
        Self { small: Ring::new(SMALL), large: Ring::new(LARGE), free: Vec::new() }
    }

    /// Queues a copy of `source` to `target` and returns when the bytes have been taken; waits only for slots that are still
    /// being copied from.
    ///
    /// # Safety
    /// `target` has room for `source` until the stream has passed the copy. The context is current.
    pub unsafe fn copy(&mut self, stream: &CudaStream, target: u64, source: &[u8]) -> Result<()> {
        let ring = if source.len() <= self.small.slot_bytes { &mut self.small } else { &mut self.large };
        for (i, piece) in source.chunks(ring.slot_bytes).enumerate() {
            // SAFETY: the piece's place lies in the target.
            unsafe { ring.copy(stream, target + (i * ring.slot_bytes) as u64, piece) }
                .map_err(explain)
                .context("copy to the device")?;
        }
        Ok(())
    }

    /// Queues a copy of `bytes` at `source` and returns the slot where they will be.
    ///
    /// # Safety
    /// There are so many bytes at `source` until the stream has passed the copy. The context is current.
    pub unsafe fn read(&mut self, stream: &CudaStream, source: u64, bytes: usize) -> Result<Slot> {
        let queued = self.take(stream, bytes).and_then(|slot| {
            // SAFETY: the slot is as long, and nobody reads it before the event that follows the copy.
            unsafe {
                let target = std::slice::from_raw_parts_mut(slot.memory.cast::<u8>(), bytes);
                result::memcpy_dtoh_async(target, source, stream.cu_stream())?;
            }
            slot.copied.record(stream)?;
            Ok(slot)
        });
        queued.map_err(explain).context("copy from the device")
    }

    fn take(&mut self, stream: &CudaStream, bytes: usize) -> Result<Slot, DriverError> {
        match self.free.iter().position(|slot| slot.bytes >= bytes && slot.copied.is_complete()) {
            Some(found) => Ok(self.free.swap_remove(found)),
            None => Slot::new(stream.context(), bytes.next_power_of_two().max(SMALL.1)),
        }
    }

    /// Takes back a slot that nobody reads any more, whether or not the copy to it is done.
    pub fn give_back(&mut self, slot: Slot) {
        self.free.push(slot);
    }
}
