//! Source places, as numbers that fit beside every byte of shared memory.

use std::path::Path;

use super::Place;

/// Set in the numbers of places that were told by file and line; the others are code addresses.
const TOLD: u32 = 1 << 31;
/// Code lies within a gigabyte on either side of the anchor.
const REACH: i64 = 1 << 30;

/// A static and not a function: a small function may have a copy, and so an address, in each unit of compilation.
static ANCHOR: u8 = 0;

fn anchor() -> i64 {
    &raw const ANCHOR as i64
}

/// The number of a code address: the one after a call.
pub(super) fn code(address: u64) -> u32 {
    (address as i64 - anchor() + REACH) as u32 & !TOLD
}

/// Places told by file and line.
#[derive(Default)]
pub(super) struct Places(Vec<Place>);

impl Places {
    pub fn number(&mut self, place: Place) -> u32 {
        let same = |known: &Place| known.line == place.line && known.file == place.file;
        let at = self.0.iter().rposition(same).unwrap_or_else(|| {
            self.0.push(place);
            self.0.len() - 1
        });
        TOLD | at as u32
    }

    /// `kernels/x.cu:12`, or `?` in a program without line tables.
    pub fn describe(&self, number: u32) -> String {
        if number & TOLD != 0 {
            return self.0[(number & !TOLD) as usize].to_string();
        }
        let address = i64::from(number) - REACH + anchor();
        // On a thread of its own: reading line tables takes more stack than a CUDA thread has.
        std::thread::spawn(move || resolve(address as usize - 1)).join().unwrap_or_else(|_| "?".into())
    }
}

/// The innermost line in a kernel; helpers of the host device only if there is nothing else.
fn resolve(address: usize) -> String {
    let mut lines = Vec::new();
    backtrace::resolve(address as *mut _, |symbol| {
        if let (Some(file), Some(line)) = (symbol.filename(), symbol.lineno()) {
            lines.push((short(file), line));
        }
    });
    let of_kernel = lines.iter().find(|(file, _)| file.contains("kernels/") && !file.contains("kernels/host/"));
    of_kernel.or(lines.first()).map_or_else(|| "?".into(), |(file, line)| format!("{file}:{line}"))
}

fn short(file: &Path) -> String {
    super::super::place::short_path(&file.to_string_lossy()).to_string()
}

/// Address range of the program itself, where its constants are.
#[cfg(target_os = "linux")]
pub(super) fn program() -> (u64, u64) {
    unsafe extern "C" {
        // Set by every linker of the platform.
        static __executable_start: u8;
        static _end: u8;
    }
    (&raw const __executable_start as u64, &raw const _end as u64)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn program() -> (u64, u64) {
    ((anchor() - REACH) as u64, (anchor() + REACH) as u64)
}
