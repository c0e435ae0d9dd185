//! Stands in for strict mode in programs that are built without the feature `strict`: nothing is written down or checked.
//! `strict/mod.rs` says what each of these is.

use std::{alloc::Layout, ops::Range, sync::Arc};

use super::{BankConflicts, HostOptions, place::Place};
use crate::device::{Arg, Kernel};

pub(super) const GUARD_BYTES: usize = 0;
pub(super) const POISON: u8 = 0;

pub(super) fn cta_order(_: &HostOptions, ctas: usize) -> Vec<usize> {
    (0..ctas).collect()
}

pub(super) fn registry(_: &HostOptions) -> Option<Arc<Registry>> {
    None
}

#[derive(Default)]
pub(super) struct Memory;

pub(super) enum BankBook {}

impl BankBook {
    pub fn read(&self) -> Vec<BankConflicts> {
        match *self {}
    }
}

/// There is none.
pub(super) struct Registry {
    never: std::convert::Infallible,
    pub banks: Option<Arc<BankBook>>,
}

impl Registry {
    pub fn remember(&self, _: u64, _: usize) {
        match self.never {}
    }

    /// # Safety
    /// Cannot be called.
    pub unsafe fn forget(&self, _: u64, _: usize, _: *mut u8, _: Layout) {
        match self.never {}
    }

    pub fn mark_written(&self, _: u64, _: usize) {
        match self.never {}
    }

    pub fn mark_copied(&self, _: u64, _: u64, _: usize) {
        match self.never {}
    }

    pub fn snapshot(&self) -> Memory {
        match self.never {}
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Knowledge;

impl Knowledge {
    pub fn clear(&mut self) {}

    pub fn join(&mut self, _: &Self) {}
}

#[allow(dead_code, reason = "as strict mode has it")]
pub(super) struct Watched<'a> {
    pub kernel: &'static Kernel,
    pub args: &'a [Arg],
    pub threads: usize,
    pub ctas: usize,
    pub shared_bytes: usize,
    pub options: &'a HostOptions,
    pub memory: &'a Arc<Memory>,
    pub shared: *mut u8,
    pub stride: usize,
}

#[derive(Default)]
pub(super) struct CtaChecks;

impl CtaChecks {
    pub fn start(&mut self, _: Watched) {}

    pub fn end(&mut self) {}

    pub fn barrier_arrival(&mut self, _: usize, _: usize, _: bool) {}

    pub fn barrier_complete(&mut self, _: usize, _: &[usize]) {}

    pub fn collective(&mut self, _: &[usize]) {}

    pub fn new_agent(&mut self, _: impl FnOnce() -> String) -> Result<usize, String> {
        Ok(0)
    }

    pub fn place(&mut self, _: Place) -> u32 {
        0
    }

    pub fn release(&mut self, _: usize, _: &mut Knowledge) {}

    pub fn acquire(&mut self, _: usize, _: &Knowledge) {}

    pub fn fence(&mut self, _: usize) {}

    pub fn mbarrier_access(&mut self, _: usize, _: usize, _: bool, _: u32) -> Result<(), String> {
        Ok(())
    }

    pub fn cluster_access(&mut self, _: usize, _: Range<usize>, _: bool, _: u32) -> Result<(), String> {
        Ok(())
    }

    pub fn start_write(&mut self, _: usize, _: Range<usize>, _: u32) -> Result<(), String> {
        Ok(())
    }

    pub fn end_write(&mut self, _: usize, _: Range<usize>) {}

    pub fn release_agent(&mut self, _: usize, _: &mut Knowledge) {}

    pub fn start_read(&mut self, _: usize, _: &[Range<usize>], _: u32) -> Result<(), String> {
        Ok(())
    }

    pub fn end_read(&mut self, _: usize, _: &[Range<usize>], _: u32) {}

    pub fn global(&mut self, _: u64, _: usize, _: bool, _: u32) -> Result<(), String> {
        Ok(())
    }

    pub fn product_fence(&mut self, _: usize) {}

    pub fn product_takes(&mut self, _: usize, _: Range<u64>, _: bool, _: u32) -> Result<(), String> {
        Ok(())
    }

    pub fn product_returns(&mut self, _: usize, _: &Range<u64>) {}

    pub fn product_wait(&mut self, _: usize) {}
}
