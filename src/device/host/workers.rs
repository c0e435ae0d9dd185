//! How many worker threads the operating system lets the host device have.

use std::{fs, thread};

use anyhow::{Result, ensure};

use super::simt::stacks;

/// Of a worker beside its coroutines: its own stack with a guard, and its part of the allocator.
const MAPPINGS_A_WORKER: usize = 8;
/// For the program, its libraries, files and buffers.
const MAPPINGS_FOR_OTHERS: usize = 4096;
/// `vm.max_map_count` of Linux where nobody changed it.
const USUAL_MAPPINGS: usize = 65_530;

/// The largest number of workers.
pub fn most() -> usize {
    most_of(mappings())
}

/// The number of workers for a request; 0 takes one per core, as far as they go.
///
/// # Errors
/// More are asked for than work.
pub(super) fn resolve(threads: usize) -> Result<usize> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    resolve_of(threads, cores, mappings())
}

fn resolve_of(threads: usize, cores: usize, mappings: usize) -> Result<usize> {
    let most = most_of(mappings);
    ensure!(
        threads <= most,
        "host device: {threads} worker threads: at most {most} fit into the {mappings} mappings that a process may have \
         (vm.max_map_count): lower it, or give 0 for one a core"
    );
    Ok(match threads {
        0 if cores > most => most,
        threads => threads,
    })
}

fn most_of(mappings: usize) -> usize {
    // A worker keeps a stack for every thread of the widest block that waited at a barrier.
    let stacks = stacks::mappings(super::MAX_THREADS);
    (mappings.saturating_sub(MAPPINGS_FOR_OTHERS) / (stacks + MAPPINGS_A_WORKER)).max(1)
}

fn mappings() -> usize {
    let text = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    text.trim().parse().unwrap_or(USUAL_MAPPINGS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_fit_into_the_mappings() {
        let most = most_of(65_530);
        assert_eq!(most, 853);
        assert!(most * (2 * 1024 / 32 + 8) + 4096 <= 65_530 && (most + 1) * (2 * 1024 / 32 + 8) + 4096 > 65_530);
        assert_eq!(resolve_of(most, 2, 65_530).unwrap(), most);
        let why = resolve_of(most + 1, 2, 65_530).unwrap_err().to_string();
        assert!(why.contains("854 worker threads") && why.contains("at most 853"), "{why}");
        // The default goes down where there are more cores, and is left to the pool elsewhere.
        assert_eq!([1, 256, 853, 854, 1024].map(|cores| resolve_of(0, cores, 65_530).unwrap()), [0, 0, 0, 853, 853]);
        assert_eq!(resolve_of(0, 256, 1_048_576).unwrap(), 0);
        assert_eq!([0, 4096, 4200, 5000].map(most_of), [1, 1, 1, 12]);
    }
}
