//! A thread that speaks up while a piece of work is longer than people wait in silence.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::units::duration;

/// What is known of the work.
struct Progress {
    /// How far it is, once that was said.
    done: Option<String>,
    /// When the piece began that is at work.
    since: Instant,
    over: bool,
}

type Shared = Arc<(Mutex<Progress>, Condvar)>;

/// Says that work goes on whenever nothing was said for a time; ends when dropped.
pub struct Watch {
    shared: Shared,
    thread: Option<JoinHandle<()>>,
}

fn locked(shared: &Shared) -> MutexGuard<'_, Progress> {
    shared.0.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    /// Every `every`, if `silence` is as long, `say` gets a line. Without a thread, which a machine may refuse, nothing is said.
    pub fn new(
        every: Duration,
        silence: impl Fn() -> Duration + Send + 'static,
        say: impl Fn(String) + Send + 'static,
    ) -> Self {
        let shared: Shared =
            Arc::new((Mutex::new(Progress { done: None, since: Instant::now(), over: false }), Condvar::new()));
        let own = shared.clone();
        let thread = thread::Builder::new().name("watch".into()).spawn(move || watch(&own, every, silence, say));
        Self { shared, thread: thread.ok() }
    }

    /// A piece is done, and the next one begins.
    pub fn note(&self, done: &str) {
        let mut progress = locked(&self.shared);
        (progress.done, progress.since) = (Some(done.to_owned()), Instant::now());
    }
}

fn watch(shared: &Shared, every: Duration, silence: impl Fn() -> Duration, say: impl Fn(String)) {
    let mut progress = locked(shared);
    while !progress.over {
        // Looked at more often than spoken, because others speak as well.
        let waited = shared.1.wait_timeout(progress, every / 10);
        progress = waited.unwrap_or_else(PoisonError::into_inner).0;
        if progress.over || silence() < every {
            continue;
        }
        let at_work = format!("at work for {}", duration(progress.since.elapsed()));
        let line = progress.done.as_ref().map_or(at_work.clone(), |done| format!("{done}, {at_work} on what follows"));
        say(line);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        locked(&self.shared).over = true;
        self.shared.1.notify_all();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_piece_is_spoken_of_until_it_ends() {
        let (heard, spoken) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Instant::now())));
        let (lines, last, first) = (heard.clone(), spoken.clone(), spoken.clone());
        let every = Duration::from_millis(40);
        let watch = Watch::new(
            every,
            move || first.lock().unwrap().elapsed(),
            move |line| {
                lines.lock().unwrap().push(line);
                *last.lock().unwrap() = Instant::now();
            },
        );
        thread::sleep(3 * every);
        watch.note("scoring: 10 % done");
        thread::sleep(3 * every);
        drop(watch);
        let heard = std::mem::take(&mut *heard.lock().unwrap());
        assert!(heard[0].starts_with("at work for "), "{heard:?}");
        assert!(heard.last().unwrap().starts_with("scoring: 10 % done, at work for 0s on what follows"), "{heard:?}");
        // Never more often than asked for.
        assert!(heard.len() <= 6, "{heard:?}");
    }
}
