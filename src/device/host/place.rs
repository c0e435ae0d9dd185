//! Places in kernel sources, for error messages.

use std::{
    ffi::{CStr, c_char},
    ptr,
};

/// Where a thread waits, for error messages.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub file: *const c_char,
    pub line: u32,
}

impl Place {
    pub const NONE: Self = Self { file: ptr::null(), line: 0 };

    pub fn same(self, other: Self) -> bool {
        // SAFETY: both are the compiler's file name literals; equal names may be several literals.
        let same_file = || unsafe { CStr::from_ptr(self.file) == CStr::from_ptr(other.file) };
        self.line == other.line && (self.file == other.file || same_file())
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.file.is_null() {
            return write!(f, "?");
        }
        // SAFETY: the compiler's file name literal: static and ended by a zero.
        let file = unsafe { CStr::from_ptr(self.file) }.to_string_lossy();
        write!(f, "{}:{}", short_path(&file), self.line)
    }
}

/// The path from the project's folder on.
pub(super) fn short_path(file: &str) -> &str {
    match file.rfind("kernels/") {
        Some(at) if file[..at].ends_with("tests/") => &file[at - "tests/".len()..],
        Some(at) => &file[at..],
        None => file,
    }
}
