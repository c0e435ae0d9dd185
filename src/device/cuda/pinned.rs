//! Page-locked memory that belongs to a caller, and the streams of copies from and to it.

use std::{ffi::c_void, ops::Range, sync::Arc};

use anyhow::{Context, Result};
use cudarc::driver::{
    CudaStream,
    result::{self, DriverError},
    sys::CUevent_flags,
};

use super::{super::Stream, CudaDevice, CudaEvent, Inner, driver::explain};

/// Streams beside the device's own, made when they are first used.
pub struct Copies {
    copy_in: Arc<CudaStream>,
    copy_out: Arc<CudaStream>,
}

/// One allocation of page-locked memory; freed, after all copies, when dropped.
pub struct CudaPinned {
    inner: Arc<Inner>,
    memory: *mut c_void,
}

// SAFETY: page-locked memory may be used from any thread.
unsafe impl Send for CudaPinned {}
// SAFETY: whoever reads or writes the bytes waits for all copies first, and `Device` holds no reference to them.
unsafe impl Sync for CudaPinned {}

impl CudaPinned {
    fn at(&self, byte: usize) -> *mut u8 {
        // SAFETY: `Device` checks that the byte lies within the memory, or at its end.
        unsafe { self.memory.cast::<u8>().add(byte) }
    }

    /// Takes the bytes from `start` on; no copy is on its way.
    pub fn read(&self, target: &mut [u8], start: usize) {
        // SAFETY: `Device` checked that there are as many bytes, and waited for all copies.
        unsafe { std::ptr::copy_nonoverlapping(self.at(start), target.as_mut_ptr(), target.len()) }
    }

    /// Writes over the bytes from `start` on; no copy is on its way.
    pub fn write(&self, start: usize, source: &[u8]) {
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), self.at(start), source.len()) }
    }
}

impl Drop for CudaPinned {
    fn drop(&mut self) {
        let context = &self.inner.gpu.context;
        let done = context.bind_to_thread().and_then(|()| self.inner.wait_for_all());
        // SAFETY: the memory came from `malloc_host`, and no copy uses it any more.
        context.record_err(done.and_then(|()| unsafe { result::free_host(self.memory) }));
    }
}

impl Inner {
    fn copies(&self) -> Result<&Copies> {
        let mut made = Ok(());
        let copies = self.copies.get_or_init(|| {
            let stream = || self.gpu.context.new_stream();
            match (stream(), stream()) {
                (Ok(copy_in), Ok(copy_out)) => Some(Copies { copy_in, copy_out }),
                (Err(why), _) | (_, Err(why)) => {
                    made = Err(explain(why).context("a stream for copies"));
                    None
                }
            }
        });
        made?;
        copies.as_ref().context("cuda: a stream for copies could not be made")
    }

    pub(super) fn stream(&self, stream: Stream) -> Result<&Arc<CudaStream>> {
        Ok(match stream {
            Stream::Work => &self.stream,
            Stream::CopyIn => &self.copies()?.copy_in,
            Stream::CopyOut => &self.copies()?.copy_out,
        })
    }

    /// Waits for the work, then for the streams beside it.
    pub(super) fn wait_for_all(&self) -> Result<(), DriverError> {
        // SAFETY: the stream is this device's own.
        let wait = |stream: &CudaStream| unsafe { result::stream::synchronize(stream.cu_stream()) };
        wait(&self.stream)?;
        let Some(Some(Copies { copy_in, copy_out })) = self.copies.get() else { return Ok(()) };
        wait(copy_in)?;
        wait(copy_out)
    }
}

impl CudaDevice {
    pub(in crate::device) fn pinned(&self, bytes: usize) -> Result<CudaPinned> {
        self.refuse_in_graph("an allocation")?;
        self.inner.bind()?;
        let locked = || -> Result<*mut c_void, DriverError> {
            // SAFETY: the context is current; the driver refuses allocations of nothing.
            let memory = unsafe { result::malloc_host(bytes.max(1), 0) }?;
            // SAFETY: so many bytes are there, and nobody else has them.
            unsafe { memory.cast::<u8>().write_bytes(0, bytes) };
            Ok(memory)
        };
        let memory = locked().map_err(explain).with_context(|| format!("cuda: {bytes} bytes of page-locked memory"))?;
        Ok(CudaPinned { inner: self.inner.clone(), memory })
    }

    pub(in crate::device) fn copy_from_pinned(
        &self,
        target: u64,
        source: &CudaPinned,
        bytes: Range<usize>,
    ) -> Result<()> {
        self.refuse_in_graph("a copy to the device")?;
        let stream = self.inner.stream(Stream::CopyIn)?.cu_stream();
        self.inner.bind()?;
        // SAFETY: `Device` checked both lengths; whoever writes the bytes or frees them waits for the copy.
        let queued = unsafe {
            let source = std::slice::from_raw_parts(source.at(bytes.start), bytes.len());
            result::memcpy_htod_async(target, source, stream)
        };
        queued.map_err(explain).context("cuda: copy to the device")
    }

    pub(in crate::device) fn copy_to_pinned(
        &self,
        target: &CudaPinned,
        bytes: Range<usize>,
        source: u64,
    ) -> Result<()> {
        self.refuse_in_graph("a copy from the device")?;
        let stream = self.inner.stream(Stream::CopyOut)?.cu_stream();
        self.inner.bind()?;
        // SAFETY: as in `copy_from_pinned`.
        let queued = unsafe {
            let target = std::slice::from_raw_parts_mut(target.at(bytes.start), bytes.len());
            result::memcpy_dtoh_async(target, source, stream)
        };
        queued.map_err(explain).context("cuda: copy from the device")
    }

    /// Marks the current point of a stream, for others to wait for.
    pub(in crate::device) fn mark(&self, stream: Stream) -> Result<CudaEvent> {
        let stream = self.inner.stream(stream)?;
        stream.record_event(Some(CUevent_flags::CU_EVENT_DISABLE_TIMING)).map_err(|e| explain(e).context("event"))
    }

    /// What is queued on `stream` from now on begins after the event.
    pub(in crate::device) fn wait_on(&self, stream: Stream, event: &CudaEvent) -> Result<()> {
        self.inner.stream(stream)?.wait(event).map_err(|e| explain(e).context("wait for an event"))
    }
}
