//! Stacks for coroutines, many to a mapping: a process may have 65,530 mappings, and a server's 256 workers need 65,536 stacks.
//!
//! Below every stack lies a guard page. Linux 6.13 and newer keep guards without splitting the mapping; elsewhere only a
//! block's lowest stack has one, and strict mode, which knows each stack's ends, tells an overflow into a neighbour.

use std::{io, num::NonZeroUsize, sync::Arc};

use corosensei::stack::{Stack, StackPointer};
use rustix::{
    mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags},
    param::page_size,
};

/// Of one stack, without its guard.
pub const STACK_BYTES: usize = 128 * 1024;
/// Stacks of one mapping.
const BLOCK_STACKS: usize = 32;
/// Mappings of one block: its stacks, and the guard of the lowest.
const BLOCK_MAPPINGS: usize = 2;

/// Mappings that so many stacks take.
pub const fn mappings(stacks: usize) -> usize {
    stacks.div_ceil(BLOCK_STACKS) * BLOCK_MAPPINGS
}

/// Hands out stacks and maps a block of them when there is none left.
#[derive(Default)]
pub struct Stacks {
    block: Option<Arc<Block>>,
    taken: usize,
}

impl Stacks {
    /// A stack that nobody has.
    ///
    /// # Errors
    /// The operating system has no memory or no mapping left.
    pub fn take(&mut self) -> io::Result<Slice> {
        let block = match &self.block {
            Some(block) if self.taken < BLOCK_STACKS => block.clone(),
            _ => {
                self.taken = 0;
                self.block.insert(Arc::new(Block::map()?)).clone()
            }
        };
        let limit = block.address.saturating_add(self.taken * stride());
        self.taken += 1;
        Ok(Slice { base: limit.saturating_add(stride()), limit, block })
    }

    /// Lets go of the block: stacks that were dropped are not handed out again, and their mapping goes with the last.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

/// One mapping, unmapped with its last stack.
struct Block {
    address: NonZeroUsize,
}

/// From the beginning of one stack's guard to that of the next.
fn stride() -> usize {
    STACK_BYTES.next_multiple_of(page_size()) + page_size()
}

impl Block {
    fn map() -> io::Result<Self> {
        let bytes = BLOCK_STACKS * stride();
        // SAFETY: a new mapping anywhere; nothing else knows it.
        let start = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let address = NonZeroUsize::new(start as usize).ok_or(io::ErrorKind::OutOfMemory)?;
        let block = Self { address };
        // SAFETY: the mapping was made just now with this length, and nothing uses it yet.
        unsafe {
            // A touched stack would take 2 MiB where large pages are on. Of no consequence where it is refused.
            let _ = mm::madvise(start, bytes, Advice::LinuxNoHugepage);
            mm::mprotect(start, page_size(), MprotectFlags::empty())?;
        }
        (1..BLOCK_STACKS).for_each(|place| guard(address.get() + place * stride()));
        Ok(block)
    }
}

/// Asks for a guard page that does not split the mapping; older systems do without.
fn guard(address: usize) {
    #[cfg(target_os = "linux")]
    {
        // `MADV_GUARD_INSTALL`, which rustix does not name yet.
        const GUARD_INSTALL: libc::c_int = 102;
        // SAFETY: one page of a block that nothing uses yet; a number that the system does not know changes nothing.
        let _ = unsafe { libc::madvise(address as *mut libc::c_void, page_size(), GUARD_INSTALL) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = address;
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the mapping of `map`, whose last stack is gone.
        let unmapped = unsafe { mm::munmap(self.address.get() as *mut _, BLOCK_STACKS * stride()) };
        debug_assert!(unmapped.is_ok());
    }
}

/// One stack of a block. Its ends are kept: they are asked for at every switch.
pub struct Slice {
    base: NonZeroUsize,
    limit: NonZeroUsize,
    /// Keeps the mapping, and is read by tests alone.
    #[cfg_attr(not(test), expect(dead_code))]
    block: Arc<Block>,
}

// SAFETY: a stack of `STACK_BYTES` that only this value names, above a guard page where the system has such; elsewhere strict
// mode holds the kernels to it, whose frames are a few KiB.
unsafe impl Stack for Slice {
    #[inline]
    fn base(&self) -> StackPointer {
        self.base
    }

    #[inline]
    fn limit(&self) -> StackPointer {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The mappings of this process that touch any of these ranges.
    fn mapped(ranges: &[(usize, usize)]) -> usize {
        let text = fs::read_to_string("/proc/self/maps").unwrap();
        let ends = text.lines().filter_map(|line| line.split_whitespace().next()?.split_once('-'));
        let numbers = ends.map(|(from, to)| [from, to].map(|hex| usize::from_str_radix(hex, 16).unwrap()));
        numbers.filter(|&[from, to]| ranges.iter().any(|&(start, end)| start < to && from < end)).count()
    }

    /// 256 workers whose blocks of 256 threads wait at a barrier.
    #[test]
    fn a_large_server_stays_within_its_mappings() {
        if !cfg!(target_os = "linux") {
            return println!("skipped: no /proc");
        }
        let mut all = Vec::new();
        for _ in 0..256 {
            let mut stacks = Stacks::default();
            all.extend((0..256).map(|_| stacks.take().unwrap()));
        }
        let blocks: Vec<(usize, usize)> = all
            .iter()
            .filter(|stack| stack.limit == stack.block.address)
            .map(|stack| (stack.limit().get(), stack.limit().get() + BLOCK_STACKS * stride()))
            .collect();
        assert_eq!(blocks.len(), 256 * 256 / BLOCK_STACKS);
        let found = mapped(&blocks);
        assert!(found <= mappings(256 * 256), "{found} mappings for {} stacks", all.len());
        assert!(mappings(256 * 256) < 65_530 / 8);
        let mut starts: Vec<usize> = all.iter().map(|stack| stack.limit().get()).collect();
        starts.sort_unstable();
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= stride()), "two stacks overlap");
        drop(all);
        assert_eq!(mapped(&blocks[..1]), 0, "a block outlives its stacks");
    }
}
