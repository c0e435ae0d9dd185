//! The terminal: the only part of the library that prints.
//!
//! Lines go to standard output, a progress bar to standard error where that is a terminal. There is one screen, so whoever
//! prints a line moves the bar out of its way.

use std::{
    cell::Cell,
    env,
    io::{IsTerminal, Write, stderr, stdout},
    path::Path,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    fs::{FileType, fstat},
    termios::tcgetwinsize,
};

use super::{bar, watch::Watch};
use crate::{escape::visible, units::duration};

/// Where there is no bar, a long phase says a line at least this often.
const PLAIN_EVERY: Duration = Duration::from_secs(30);
/// A bar is drawn at most this often.
const DRAW_EVERY: Duration = Duration::from_millis(50);
/// What takes no longer needs no estimate of its own.
const LONG: Duration = Duration::from_secs(10);

/// What stands on the terminal.
struct Screen {
    /// The bar that is to be seen.
    bar: Option<String>,
    drawn: Option<Instant>,
    /// When the last line was printed.
    spoken: Option<Instant>,
}

static SCREEN: Mutex<Screen> = Mutex::new(Screen { bar: None, drawn: None, spoken: None });

fn screen() -> MutexGuard<'static, Screen> {
    SCREEN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Screen {
    fn draw(&mut self, text: String) {
        let due = self.drawn.is_none_or(|drawn| drawn.elapsed() >= DRAW_EVERY);
        self.bar = Some(text);
        if due {
            self.show();
        }
    }

    fn show(&mut self) {
        let Some(bar) = &self.bar else { return };
        self.drawn = Some(Instant::now());
        // In one piece, so that another process's line cannot stand in the middle.
        let _ = stderr().write_all(format!("\r{bar}\x1b[K").as_bytes());
    }

    /// Takes the bar off the terminal, to be shown again by the next [`show`](Self::show).
    fn hide(&self) {
        if self.bar.is_some() {
            let _ = stderr().write_all(b"\r\x1b[K");
        }
    }

    fn remove(&mut self) {
        self.hide();
        (self.bar, self.drawn) = (None, None);
    }

    fn print(&mut self, line: &str) {
        self.hide();
        let line = format!("{}\n", visible(line));
        let _ = match OUTPUT_TAKEN.load(Ordering::SeqCst) {
            false => stdout().write_all(line.as_bytes()),
            true => stderr().write_all(line.as_bytes()),
        };
        self.spoken = Some(Instant::now());
        self.show();
    }

    /// How long nothing was said.
    fn silence(&mut self) -> Duration {
        self.spoken.get_or_insert_with(Instant::now).elapsed()
    }
}

/// How much is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Talk {
    /// Errors and the last line.
    Quiet = 1,
    /// What people read.
    #[default]
    Usual = 0,
    /// Every step with every metric, and the resolved configuration.
    Verbose = 2,
}

static TALK: AtomicU8 = AtomicU8::new(Talk::Usual as u8);

/// From now on so much is said.
pub fn talk(talk: Talk) {
    TALK.store(talk as u8, Ordering::SeqCst);
}

/// Whether so much is said.
pub fn talks(talk: Talk) -> bool {
    TALK.load(Ordering::SeqCst) == talk as u8
}

/// Steps on their way: a bar, or a line now and then.
pub struct Terminal {
    first: u64,
    total: u64,
    log_every: u64,
    /// Where the pace is measured from: a step, and when it was done.
    started: Cell<(u64, Instant)>,
    /// Whether an estimate was given.
    estimated: Cell<bool>,
    /// Where there is no bar, what says that a long piece goes on.
    watch: Option<Watch>,
}

impl Terminal {
    /// Steps `first..total` are to be run; every `log_every` steps a line is due.
    pub fn new(first: u64, total: u64, log_every: u64) -> Self {
        let (started, estimated) = (Cell::new((first, Instant::now())), Cell::new(false));
        let watch = (!has_bar()).then(|| Watch::new(PLAIN_EVERY, || screen().silence(), |line| say(&line)));
        Self { first, total, log_every, started, estimated, watch }
    }

    /// The first step begins: what came before says nothing about the pace.
    pub fn begin(&self) {
        self.started.set((self.first, Instant::now()));
    }

    /// One line, above the progress bar if there is one.
    pub fn say(&self, line: &str) {
        say(line);
    }

    /// Shows that step `step` (counted from 1) ended.
    pub fn step(&self, step: u64, summary: &str) {
        self.watch(&format!("step {step}/{} is done", self.total));
        let opening = step == self.first + 1;
        // The first step is looked at closely, and slower than those that follow: its pace counts where no better one comes soon.
        let known = !opening || step == self.total || self.started.get().1.elapsed() > LONG;
        let left = self.left(step).filter(|_| known);
        let due = opening || step.is_multiple_of(self.log_every) || step == self.total;
        if due || talks(Talk::Verbose) || !has_bar() && screen().silence() > PLAIN_EVERY {
            let left = left.map_or(String::new(), |left| format!("  {} left", duration(left)));
            say(&format!("step {step}/{}  {summary}{left}", self.total));
        }
        if has_bar() {
            screen().draw(bar::line(width(), [step, self.total], left, summary));
        }
        if opening {
            self.started.set((step, Instant::now()));
        }
    }

    /// Moves the progress bar; where there is none, says a line now and then, and an early one of what takes long.
    pub fn show(&self, position: u64, message: &str) {
        let left = self.left(position);
        if has_bar() {
            return screen().draw(bar::line(width(), [position, self.total], left, message));
        }
        let early = !self.estimated.get() && left.is_some_and(|left| left > LONG);
        let share = 100.0 * position as f64 / self.total.max(1) as f64;
        self.watch(&format!("{message}: {share:.0} % done"));
        if position < self.total && (early || screen().silence() > PLAIN_EVERY) {
            self.estimated.set(true);
            let left = left.map_or(String::new(), |left| format!(", about {} left", duration(left)));
            say(&format!("{message}: {share:.0} % done{left}"));
        }
    }

    /// Notes how far the work is, for a line while the next piece takes long.
    fn watch(&self, done: &str) {
        self.watch.iter().for_each(|watch| watch.note(done));
    }

    /// By the pace so far.
    fn left(&self, position: u64) -> Option<Duration> {
        let (first, started) = self.started.get();
        let done = position.checked_sub(first).filter(|&done| done > 0)?;
        let seconds = started.elapsed().as_secs_f64() / done as f64;
        Duration::try_from_secs_f64(seconds * self.total.saturating_sub(position) as f64).ok()
    }

    /// Takes the progress bar away.
    pub fn finish(&self) {
        screen().remove();
    }
}

impl Drop for Terminal {
    /// An error's line must not stand behind a progress bar.
    fn drop(&mut self) {
        self.finish();
    }
}

/// A count without a known end; its bar is gone when dropped.
struct Counter {
    what: String,
    started: Instant,
}

impl Counter {
    /// So many are done.
    fn show(&self, count: usize) {
        let pace = count as f64 / self.started.elapsed().as_secs_f64().max(1e-3);
        let fields = [self.what.clone(), format!("{count} rows"), format!("{pace:.0} rows/s")];
        if has_bar() {
            screen().draw(bar::fit(width(), fields));
        } else if screen().silence() > PLAIN_EVERY {
            say(&fields.join("  "));
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        screen().remove();
    }
}

/// Whether standard output holds what a command makes, so that lines for people go to standard error.
static OUTPUT_TAKEN: AtomicBool = AtomicBool::new(false);

/// From now on lines for people go to standard error: standard output holds what the command makes.
pub fn leave_output_alone() {
    OUTPUT_TAKEN.store(true, Ordering::SeqCst);
}

/// Whether a bar is drawn: on a terminal, but not where lines go into a pipe, whose reader (`| tee log`) may write to the
/// same terminal.
fn has_bar() -> bool {
    let piped = || {
        fstat(stdout())
            .is_ok_and(|stat| matches!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo | FileType::Socket))
    };
    let able = stderr().is_terminal() && env::var_os("TERM").is_none_or(|term| term != "dumb");
    able && !talks(Talk::Quiet) && (OUTPUT_TAKEN.load(Ordering::SeqCst) || !piped())
}

/// Columns of the terminal; 0 if it does not say.
fn width() -> usize {
    tcgetwinsize(stderr()).map_or(0, |size| size.ws_col.into())
}

/// One line on standard output, shown as a terminal may see it. A reader that went away (`| head`) does not stop a run.
pub fn say(line: &str) {
    if !talks(Talk::Quiet) {
        screen().print(line);
    }
}

/// The last line of a command, which is said in any case.
pub fn conclude(line: &str) {
    screen().print(line);
}

/// Counts the rows of a file: what hears how many are done.
pub fn counting_rows(file: &Path) -> Box<dyn FnMut(usize)> {
    let name = file.file_name().unwrap_or_default().display().to_string();
    let counter = Counter { what: format!("tokenising {}", visible(&name)), started: Instant::now() };
    Box::new(move |rows| counter.show(rows))
}
