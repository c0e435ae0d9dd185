//! Room on the disk: how much there is, and what happens when there is none.
//!
//! A full disk is waited for: others may free it, and what is in memory is worth more than the minutes.

use std::{
    io::{self, ErrorKind},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use rustix::fs::statvfs;

use super::Stop;

/// How often a stop is looked for while waiting.
const GLANCE: Duration = Duration::from_millis(100);

/// How long to wait after each failure, before the last one is final.
#[derive(Clone, Debug)]
pub struct Patience(pub Vec<Duration>);

impl Default for Patience {
    fn default() -> Self {
        Self([5, 10, 20, 40, 60, 60].map(Duration::from_secs).to_vec())
    }
}

impl Patience {
    /// Tries `attempt` until it does not fail for lack of room, waiting in between; `say` hears of each wait. A stop ends the
    /// waiting.
    ///
    /// # Errors
    /// That of the last attempt.
    pub fn run<R>(&self, stop: &Stop, say: impl Fn(&str), mut attempt: impl FnMut() -> Result<R>) -> Result<R> {
        for wait in &self.0 {
            match attempt() {
                Err(why) if is_full(&why) && !stop.requested() => {
                    say(&format!("disk full: waiting, trying again in {} s: {why:#}", wait.as_secs()));
                    sleep(*wait, stop);
                }
                done => return done,
            }
        }
        attempt()
    }
}

fn sleep(time: Duration, stop: &Stop) {
    let started = Instant::now();
    while started.elapsed() < time && !stop.requested() {
        thread::sleep(GLANCE.min(time));
    }
}

/// Whether this failed because a disk is full or a quota used up.
pub fn is_full(why: &anyhow::Error) -> bool {
    why.chain().any(|cause| cause.downcast_ref().is_some_and(is_full_error))
}

/// The same of one error of the system.
pub fn is_full_error(why: &io::Error) -> bool {
    matches!(why.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Bytes that this user may still write where `path` is or will be; `None` where the file system does not say.
pub fn free(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let sizes = statvfs(if there.as_os_str().is_empty() { Path::new(".") } else { there }).ok()?;
    (sizes.f_blocks > 0).then(|| sizes.f_bavail.saturating_mul(sizes.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    fn full() -> anyhow::Error {
        anyhow::Error::from(io::Error::from(ErrorKind::StorageFull)).context("out/checkpoint-3: cannot be written")
    }

    /// Fails so often, then succeeds: what came of it, how often it was tried and what was said.
    fn tried(failures: usize, waits: usize, stop: bool) -> (Result<()>, usize, Vec<String>) {
        let (count, said) = (Cell::new(0), RefCell::new(Vec::new()));
        let patience = Patience(vec![Duration::from_millis(1); waits]);
        let done = patience.run(
            &stop.into(),
            |line| said.borrow_mut().push(line.to_owned()),
            || {
                count.set(count.get() + 1);
                if count.get() <= failures { Err(full()) } else { Ok(()) }
            },
        );
        (done, count.get(), said.into_inner())
    }

    #[test]
    fn a_full_disk_is_tried_again_and_not_for_ever() {
        let (done, count, said) = tried(2, 3, false);
        assert!(done.is_ok() && count == 3 && said.len() == 2, "{done:?} {count} {said:?}");
        assert!(said[0].starts_with("disk full: waiting, trying again in 0 s: out/checkpoint-3"), "{said:?}");
        let (done, count, _) = tried(9, 3, false);
        assert!(is_full(&done.unwrap_err()) && count == 4);
        // Whoever asked the run to stop does not wait.
        let (done, count, said) = tried(9, 3, true);
        assert!(done.is_err() && count == 1 && said.is_empty());
    }

    #[test]
    fn other_errors_are_not_waited_for() {
        let mut count = 0;
        let done: Result<()> = Patience::default().run(
            &false.into(),
            |_| {},
            || {
                count += 1;
                Err(io::Error::from(ErrorKind::PermissionDenied).into())
            },
        );
        assert!(done.is_err() && count == 1);
    }

    #[test]
    fn a_folder_that_is_not_there_yet_has_its_parents_room() {
        let place = tempfile::tempdir().unwrap();
        assert!(free(&place.path().join("a/b/c")).is_some_and(|bytes| bytes > 0));
        assert_eq!(free(Path::new("/proc")), None);
    }
}
