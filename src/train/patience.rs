//! A full disk is waited for: others may free it, and what is in memory is worth more than the minutes.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::{files::disk::is_full, stop::Stop};

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

#[cfg(test)]
mod tests {
    use std::{
        cell::{Cell, RefCell},
        io::{self, ErrorKind},
    };

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
}
