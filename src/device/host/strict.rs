//! Strict mode: what the instrumented build of the kernels is checked for.

use super::{HostOptions, simt::Grid};

/// Bytes before and after every buffer that nobody may touch.
pub(super) const GUARD_BYTES: usize = 256;

pub(super) fn remember(_address: u64, _bytes: usize) {}
pub(super) fn forget(_address: u64) {}
pub(super) fn mark_written(_options: &HostOptions, _address: u64, _bytes: usize) {}

pub(super) fn cta_order(_options: &HostOptions, ctas: usize) -> Vec<usize> {
    (0..ctas).collect()
}

/// Checks of the CTA that is running on a worker.
#[derive(Default)]
pub(super) struct CtaChecks {}

impl CtaChecks {
    pub fn start(&mut self, _grid: &Grid, _block: [u32; 3], _shared: *mut u8) {}
    pub fn end(&mut self) -> Result<(), String> {
        Ok(())
    }
    pub fn barrier_edges(&mut self, _members: &[usize], _waiting: &[usize], _last: Option<usize>) {}
    pub fn collective_edges(&mut self, _members: &[usize]) {}
}

macro_rules! ignore {
    ($($name:ident),*) => { $(#[unsafe(no_mangle)] extern "C" fn $name(_: *const u8) {})* };
}
ignore!(
    __tsan_read1,
    __tsan_read2,
    __tsan_read4,
    __tsan_read8,
    __tsan_read16,
    __tsan_write1,
    __tsan_write2,
    __tsan_write4,
    __tsan_write8,
    __tsan_write16,
    __tsan_unaligned_read2,
    __tsan_unaligned_read4,
    __tsan_unaligned_read8,
    __tsan_unaligned_read16,
    __tsan_unaligned_write2,
    __tsan_unaligned_write4,
    __tsan_unaligned_write8,
    __tsan_unaligned_write16,
    __tsan_func_entry
);
#[unsafe(no_mangle)]
extern "C" fn __tsan_init() {}
#[unsafe(no_mangle)]
extern "C" fn __tsan_func_exit() {}
#[unsafe(no_mangle)]
extern "C" fn __tsan_read_range(_: *const u8, _: usize) {}
#[unsafe(no_mangle)]
extern "C" fn __tsan_write_range(_: *const u8, _: usize) {}
#[unsafe(no_mangle)]
extern "C" fn simt_cp_async(shared: *mut u8, global: *const u8, copied: u32, filled: u32, _: *const u8, _: u32) {
    // SAFETY: stub
    unsafe {
        std::ptr::copy_nonoverlapping(global, shared, copied as usize);
        std::ptr::write_bytes(shared.add(copied as usize), 0, (filled - copied) as usize);
    }
}
#[unsafe(no_mangle)]
extern "C" fn simt_cp_async_commit() {}
#[unsafe(no_mangle)]
extern "C" fn simt_cp_async_wait(_: u32, _: *const u8, _: u32) {}
#[unsafe(no_mangle)]
extern "C" fn simt_access(_: *const u8, _: u32, _: u32, _: u32) {}
