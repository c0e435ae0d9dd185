//! Page-locked memory through which copies to a GPU pass: the caller's bytes are taken at once and the copy is queued, so that
//! an index table of the next micro-batch does not wait for the kernels of the one before.
//!
//! Copies stay on the device's one stream. A second stream for them was not worth its events: a micro-batch's tables are less
//! than a megabyte, some 40 microseconds of a link, beside tens of milliseconds of kernels.

use std::{ffi::c_void, sync::Arc};

use anyhow::{Context, Result};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaStream,
    result::{self, DriverError},
    sys::CUevent_flags,
};

use super::driver::explain;

const SLOTS: usize = 4;
const SLOT_BYTES: usize = 4 << 20;

/// A ring of slots, each free again when the copy from it is done.
pub struct Staging {
    slots: Vec<Slot>,
    next: usize,
}

struct Slot {
    memory: *mut c_void,
    copied: CudaEvent,
    context: Arc<CudaContext>,
}

// SAFETY: page-locked memory may be used from any thread; `Staging` is behind a lock.
unsafe impl Send for Slot {}

impl Slot {
    fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let copied = context.new_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING))?;
        // SAFETY: the context is current, as `copy` sees to.
        let memory = unsafe { result::malloc_host(SLOT_BYTES, 0) }?;
        Ok(Self { memory, copied, context: context.clone() })
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

impl Staging {
    pub const fn new() -> Self {
        Self { slots: Vec::new(), next: 0 }
    }

    /// Queues a copy of `source` to `target` and returns when the bytes have been taken; waits only for slots that are still
    /// being copied from.
    ///
    /// # Safety
    /// `target` has room for `source` until the stream has passed the copy. The context is current.
    pub unsafe fn copy(&mut self, stream: &CudaStream, target: u64, source: &[u8]) -> Result<()> {
        for (i, piece) in source.chunks(SLOT_BYTES).enumerate() {
            // SAFETY: the piece's place lies in the target.
            unsafe { self.copy_piece(stream, target + (i * SLOT_BYTES) as u64, piece) }
                .map_err(explain)
                .context("copy to the device")?;
        }
        Ok(())
    }

    /// # Safety
    /// As [`Self::copy`].
    unsafe fn copy_piece(&mut self, stream: &CudaStream, target: u64, piece: &[u8]) -> Result<(), DriverError> {
        if self.next == self.slots.len() {
            self.slots.push(Slot::new(stream.context())?);
        } else {
            self.slots[self.next].copied.synchronize()?;
        }
        let slot = &self.slots[self.next];
        self.next = (self.next + 1) % SLOTS;
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
