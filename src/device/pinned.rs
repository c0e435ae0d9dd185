//! Elements in page-locked memory of the host, which copies reach at a link's full speed beside the work.

use std::{
    marker::PhantomData,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Result, ensure};

use super::{Backend, Buffer, Device, Element, cuda};

/// Streams of a device: copies on theirs run beside the work, in an order that events keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Where everything is ordered that names no stream: launches, fills, copies, releases.
    Work,
    /// Copies from page-locked memory.
    CopyIn,
    /// Copies to page-locked memory.
    CopyOut,
}

/// A run of elements in memory of the host that a device copies from and to. Clones share the memory; it does not count as
/// the device's.
pub struct Pinned<T> {
    memory: Arc<PinnedMemory>,
    len: usize,
    element: PhantomData<T>,
}

enum PinnedMemory {
    Host(Mutex<Vec<u8>>),
    Cuda(cuda::CudaPinned),
}

impl<T> Clone for Pinned<T> {
    fn clone(&self) -> Self {
        Self { memory: self.memory.clone(), ..*self }
    }
}

impl<T: Element> Pinned<T> {
    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes of some elements.
    fn bytes(&self, elements: &Range<usize>) -> Result<Range<usize>> {
        let Range { start, end } = *elements;
        ensure!(start <= end && end <= self.len, "page-locked memory: {elements:?} of {} elements", self.len);
        Ok(start * size_of::<T>()..end * size_of::<T>())
    }
}

fn locked(bytes: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    bytes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// Page-locked memory for `len` elements, all bytes zero.
    ///
    /// # Errors
    /// The host is out of memory that can be locked.
    pub fn pinned<T: Element>(&self, len: usize) -> Result<Pinned<T>> {
        let bytes = len * size_of::<T>();
        let memory = match &*self.0 {
            Backend::Host(_) => PinnedMemory::Host(Mutex::new(vec![0; bytes])),
            Backend::Cuda(cuda) => PinnedMemory::Cuda(cuda.pinned(bytes)?),
        };
        Ok(Pinned { memory: Arc::new(memory), len, element: PhantomData })
    }

    /// Queues on [`Stream::CopyIn`] a copy of some elements to a buffer of as many.
    ///
    /// # Errors
    /// The lengths differ, the memory is another device's, or the driver refuses.
    pub fn copy_from_pinned<T: Element>(
        &self,
        target: &Buffer<T>,
        source: &Pinned<T>,
        elements: Range<usize>,
    ) -> Result<()> {
        ensure!(elements.len() == target.len(), "copy of {elements:?} into {} elements", target.len());
        let bytes = source.bytes(&elements)?;
        match (&*self.0, &*source.memory) {
            (Backend::Host(host), PinnedMemory::Host(memory)) => host.copy_in(target.place(), &locked(memory)[bytes]),
            (Backend::Cuda(cuda), PinnedMemory::Cuda(memory)) => cuda.copy_from_pinned(target.address(), memory, bytes),
            _ => anyhow::bail!("page-locked memory of another device"),
        }
    }

    /// Queues on [`Stream::CopyOut`] a copy of a buffer over as many elements.
    ///
    /// # Errors
    /// As [`copy_from_pinned`](Self::copy_from_pinned).
    pub fn copy_to_pinned<T: Element>(
        &self,
        target: &Pinned<T>,
        elements: Range<usize>,
        source: &Buffer<T>,
    ) -> Result<()> {
        ensure!(elements.len() == source.len(), "copy of {} elements over {elements:?}", source.len());
        let bytes = target.bytes(&elements)?;
        match (&*self.0, &*target.memory) {
            (Backend::Host(host), PinnedMemory::Host(memory)) => {
                host.copy_out(&mut locked(memory)[bytes], source.place())
            }
            (Backend::Cuda(cuda), PinnedMemory::Cuda(memory)) => cuda.copy_to_pinned(memory, bytes, source.address()),
            _ => anyhow::bail!("page-locked memory of another device"),
        }
    }

    /// Waits for all copies, then takes some elements.
    ///
    /// # Errors
    /// Something launched failed, or there are not so many elements.
    pub fn read_pinned<T: Element>(&self, source: &Pinned<T>, elements: Range<usize>) -> Result<Vec<T>> {
        let bytes = source.bytes(&elements)?;
        self.synchronize()?;
        let mut data = vec![T::zeroed(); elements.len()];
        let target: &mut [u8] = bytemuck::cast_slice_mut(&mut data);
        match &*source.memory {
            PinnedMemory::Host(memory) => target.copy_from_slice(&locked(memory)[bytes]),
            PinnedMemory::Cuda(memory) => memory.read(target, bytes.start),
        }
        Ok(data)
    }

    /// Waits for all copies, then writes over the elements from `start` on.
    ///
    /// # Errors
    /// As [`read_pinned`](Self::read_pinned).
    pub fn write_pinned<T: Element>(&self, target: &Pinned<T>, start: usize, data: &[T]) -> Result<()> {
        let bytes = target.bytes(&(start..start + data.len()))?;
        self.synchronize()?;
        let source: &[u8] = bytemuck::cast_slice(data);
        match &*target.memory {
            PinnedMemory::Host(memory) => locked(memory)[bytes].copy_from_slice(source),
            PinnedMemory::Cuda(memory) => memory.write(bytes.start, source),
        }
        Ok(())
    }
}
