//! Runs compilers side by side, as many as cargo has jobs for, and skips what is up to date.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, mpsc},
    thread,
};

use jobserver::{Client, HelperThread};

/// One compiler run that makes `output` and a make depfile beside it.
pub struct Job {
    pub what: String,
    pub command: Command,
    pub output: PathBuf,
    /// Says what in the compiler's messages fails the build even if it exits 0.
    pub judge: fn(&str) -> Vec<String>,
}

impl Job {
    pub fn depfile(output: &Path) -> PathBuf {
        output.with_extension("d")
    }
}

/// Runs every job that is not up to date; all failures are reported together. One runs on the script's own share of cargo's
/// jobs, up to `$NUM_JOBS` in all as cargo lends more.
pub fn run_all(jobs: Vec<Job>) -> Result<(), String> {
    let jobs: Vec<Job> = jobs.into_iter().filter(|job| !is_fresh(job)).collect();
    let most: usize = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let others = most.min(jobs.len()).saturating_sub(1);
    let queue = Mutex::new(jobs.into_iter());
    let failures = Mutex::new(Vec::new());
    let work = || {
        loop {
            let Some(job) = queue.lock().expect("no worker panics").next() else {
                return;
            };
            if let Err(why) = run(job) {
                failures.lock().expect("no worker panics").push(why);
            }
        }
    };
    let (lent, share) = mpsc::channel();
    let helper = ask(others, lent.clone())?;
    thread::scope(|scope| {
        let work = &work;
        scope.spawn(move || {
            work();
            // Nothing is left to begin.
            let _ = lent.send(None);
        });
        for token in share.iter().map_while(|token| token) {
            scope.spawn(move || {
                work();
                drop(token);
            });
        }
        drop(helper);
    });
    let failures = failures.into_inner().expect("no worker panics");
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

/// A share of cargo's jobs, given back when dropped; without a cargo that lends them it is free.
type Share = Option<jobserver::Acquired>;

/// Asks cargo for so many shares, which come through the channel one by one.
fn ask(shares: usize, lent: mpsc::Sender<Option<Share>>) -> Result<Option<HelperThread>, String> {
    // SAFETY: the descriptors in the environment are cargo's, and this script closes none.
    let Some(client) = (unsafe { Client::from_env() }) else {
        (0..shares).for_each(|_| drop(lent.send(Some(None))));
        return Ok(None);
    };
    let hand_on = move |token: std::io::Result<jobserver::Acquired>| {
        if let Ok(token) = token {
            let _ = lent.send(Some(Some(token)));
        }
    };
    let helper = client.into_helper_thread(hand_on).map_err(|e| format!("cargo's jobs: {e}"))?;
    (0..shares).for_each(|_| helper.request_token());
    Ok(Some(helper))
}

fn run(mut job: Job) -> Result<(), String> {
    let stamp = job.output.with_extension("cmd");
    let _ = fs::remove_file(&stamp);
    let done = job.command.output().map_err(|e| format!("{}: {:?}: {e}", job.what, job.command.get_program()))?;
    let log = String::from_utf8_lossy(&done.stderr);
    let bad = (job.judge)(&log);
    if !done.status.success() || !bad.is_empty() {
        let _ = fs::remove_file(&job.output);
        let why = if done.status.success() { bad.join("\n") } else { log.into_owned() };
        return Err(format!("{}:\n{why}", job.what));
    }
    // Judged messages are kept for the reports that quote registers and shared memory.
    fs::write(job.output.with_extension("log"), log.as_bytes()).map_err(|e| e.to_string())?;
    fs::write(&stamp, words(&job.command)).map_err(|e| e.to_string())
}

/// The program and its arguments. Not the environment: a shell variable such as `OLDPWD` must not compile everything anew.
fn words(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| format!("{word:?}")).collect::<Vec<_>>().join(" ")
}

/// True when the output was made by this very command and is newer than everything its depfile lists.
fn is_fresh(job: &Job) -> bool {
    let same_command = fs::read_to_string(job.output.with_extension("cmd")).is_ok_and(|old| old == words(&job.command));
    let modified = |p: &Path| fs::metadata(p).and_then(|m| m.modified());
    let (Ok(built), Ok(deps)) = (modified(&job.output), fs::read_to_string(Job::depfile(&job.output))) else {
        return false;
    };
    let Some((_, list)) = deps.split_once(':') else {
        return false;
    };
    let up_to_date = |dep: &str| modified(Path::new(dep)).is_ok_and(|t| t <= built);
    same_command && list.split_whitespace().filter(|w| *w != "\\").all(up_to_date)
}
