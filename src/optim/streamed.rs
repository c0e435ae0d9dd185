//! Moments that stay in the host's memory: a step passes them through windows of the device, piece by piece, on streams of
//! their own beside the work. The next pieces are on their way in, and the last ones on their way out, while one is updated;
//! the first come in beside the backward pass.

use std::{cell::RefCell, ops::Range, sync::Arc};

use anyhow::Result;

use super::moments::{Moments, State};
use crate::{
    device::{Device, Event, Float, Pinned, Stream},
    model::AnyBuffer,
    ops::{
        adamw::{Hyper, Tensors},
        adamw_8bit::BLOCK,
    },
    rng::Draw,
};

/// Pieces on the device at a time: one comes in, one is updated, one goes out.
pub(super) const WINDOWS: usize = 3;

/// Both moments of some elements of the arena, in page-locked memory.
pub(super) struct Streamed {
    device: Device,
    /// What the moments consist of, in the order of [`State::parts`].
    host: Vec<Pinned<u8>>,
    windows: Vec<State>,
    moments: Moments,
    order: RefCell<Order>,
}

/// Where copies to the host have come to.
#[derive(Default)]
struct Order {
    /// Pieces so far.
    pieces: usize,
    /// Of each window.
    out: [Option<Arc<Event>>; WINDOWS],
    /// Of all.
    last: Option<Arc<Event>>,
}

/// Elements that a window of so many bytes holds: whole blocks.
pub(super) fn window_elements(moments: Moments, bytes: usize) -> usize {
    (bytes / moments.bytes(BLOCK)).max(1) * BLOCK
}

impl Streamed {
    /// Zeros. Windows hold `window` elements.
    ///
    /// # Errors
    /// The device or the host is out of memory.
    pub(super) fn new(device: &Device, moments: Moments, elements: usize, window: usize) -> Result<Self> {
        let windows = (0..WINDOWS).map(|_| State::new(device, moments, window.min(elements)));
        let host = moments.part_bytes(elements).into_iter().map(|bytes| device.pinned(bytes));
        Ok(Self {
            device: device.clone(),
            host: host.collect::<Result<_>>()?,
            windows: windows.collect::<Result<_>>()?,
            moments,
            order: RefCell::default(),
        })
    }

    /// Before the pieces of a step: those of the step before are back in the host's memory before one is copied in again.
    ///
    /// # Errors
    /// The driver refuses.
    pub(super) fn begin(&self) -> Result<()> {
        match &self.order.borrow().last {
            Some(last) => self.device.wait_on(Stream::CopyIn, last),
            // The windows were made on the stream of the work.
            None => self.device.wait_on(Stream::CopyIn, &self.device.mark(Stream::Work)?),
        }
    }

    /// A step of a piece: the elements `range` of the arena, of which this has those from `start` on.
    ///
    /// # Errors
    /// A copy or a launch fails.
    pub(super) fn step<T: Float, G: Float>(
        &self,
        tensors: &Tensors<T, G>,
        hyper: Hyper,
        draw: Draw,
        (range, start): (&Range<usize>, usize),
    ) -> Result<()> {
        let (device, mut order) = (&self.device, self.order.borrow_mut());
        let window = order.pieces % WINDOWS;
        order.pieces += 1;
        let own = range.start - start..range.end - start;
        let state = self.windows[window].slice(0..own.len());
        if let Some(out) = &order.out[window] {
            device.wait_on(Stream::CopyIn, out)?;
        }
        let parts = || state.parts().into_iter().zip(&self.host).zip(self.places(&own));
        for ((part, host), place) in parts() {
            device.copy_from_pinned(&part, host, place)?;
        }
        device.wait_on(Stream::Work, &device.mark(Stream::CopyIn)?)?;
        state.step(device, tensors, hyper, draw, (range, range.start))?;
        device.wait_on(Stream::CopyOut, &device.mark(Stream::Work)?)?;
        for ((part, host), place) in parts() {
            device.copy_to_pinned(host, place, &part)?;
        }
        let out = Arc::new(device.mark(Stream::CopyOut)?);
        (order.out[window], order.last) = (Some(out.clone()), Some(out));
        Ok(())
    }

    /// The bytes of some elements in each part.
    fn places(&self, elements: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let [starts, ends] = [elements.start, elements.end].map(|end| self.moments.part_bytes(end));
        starts.into_iter().zip(ends).map(|(start, end)| start..end)
    }

    /// By the names of a checkpoint, as the same moments on the device have them.
    pub(super) fn tensors(&self) -> Vec<(&'static str, AnyBuffer)> {
        let whole = self.windows[0].tensors(false);
        let at = |((name, window), host): ((&'static str, AnyBuffer), &Pinned<u8>)| {
            (name, AnyBuffer::on_host(window.element(), host))
        };
        whole.into_iter().zip(&self.host).map(at).collect()
    }
}

impl Drop for Streamed {
    /// The windows are released on the stream of the work, and copies to and from them run on others.
    fn drop(&mut self) {
        // A failure here is an earlier kernel's, which was shown.
        let _ = self.device.synchronize();
    }
}
