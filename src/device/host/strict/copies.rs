//! `cp.async`: copies in flight, by thread and group.

use std::collections::VecDeque;

/// A copy into shared memory that its thread has not waited for.
#[derive(Clone, Copy)]
pub(super) struct Copy {
    /// Byte of shared memory.
    pub to: usize,
    pub from: u64,
    /// Bytes copied; the rest of `bytes` becomes zero.
    pub copied: usize,
    pub bytes: usize,
    /// Where it was issued.
    pub at: u32,
    group: u64,
}

#[derive(Default)]
struct Queue {
    copies: VecDeque<Copy>,
    committed: u64,
}

/// The copies of every thread of a CTA.
#[derive(Default)]
pub(super) struct Copies(Vec<Queue>);

impl Copies {
    pub fn start(&mut self, threads: usize) {
        self.0.resize_with(threads, Queue::default);
        for queue in &mut self.0 {
            queue.copies.clear();
            queue.committed = 0;
        }
    }

    pub fn issue(&mut self, thread: usize, to: usize, from: u64, copied: usize, bytes: usize, at: u32) {
        let queue = &mut self.0[thread];
        queue.copies.push_back(Copy { to, from, copied, bytes, at, group: queue.committed });
    }

    pub fn commit(&mut self, thread: usize) {
        self.0[thread].committed += 1;
    }

    /// Copies of the thread that belong to no group.
    pub fn uncommitted(&self, thread: usize) -> usize {
        let queue = &self.0[thread];
        queue.copies.iter().rev().take_while(|copy| copy.group == queue.committed).count()
    }

    /// The next copy that has landed when at most `pending` groups are unfinished.
    pub fn landed(&mut self, thread: usize, pending: u32) -> Option<Copy> {
        let queue = &mut self.0[thread];
        let first = queue.copies.front()?;
        (first.group + u64::from(pending) < queue.committed).then(|| queue.copies.pop_front()).flatten()
    }

    /// The thread and place of the copy in flight over a byte of shared memory.
    pub fn owner(&self, byte: usize) -> Option<(usize, u32)> {
        self.0.iter().enumerate().find_map(|(thread, queue)| {
            let copy = queue.copies.iter().find(|copy| (copy.to..copy.to + copy.bytes).contains(&byte))?;
            Some((thread, copy.at))
        })
    }
}
