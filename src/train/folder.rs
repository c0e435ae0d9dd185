//! A run's folder: its configuration, and its lock, one run at a time, from before anything in the folder is read until the run has ended.
//!
//! The kernel gives a lock up with the process that holds it, however that ends. `run.lock` says who holds it; alone, as a
//! killed run leaves it, it locks nothing.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process, thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use chrono::Utc;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    system::uname,
};

pub use crate::report::{CONFIG, METRICS};
use crate::{config::Config, files};

/// The file that is locked.
pub const LOCK: &str = "run.lock";
/// The folder of the running mean of the weights.
pub const MEAN: &str = "ema";
/// How often a folder may vanish under this process, because a refused run takes its own away again.
const ATTEMPTS: usize = 100;

/// A run folder that is this process's until it is dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// Where the file system has locks.
    lock: Option<File>,
    /// Folders made for this run, innermost first: they go again if nothing was written into them.
    made: Vec<PathBuf>,
}

impl RunFolder {
    /// Makes the folder if it is not there, and locks it. Nothing else in it is read or changed.
    ///
    /// # Errors
    /// Another process has the folder, or it cannot be made or written.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let missing = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let made: Vec<PathBuf> = missing.map(Path::to_path_buf).collect();
        for _ in 0..ATTEMPTS {
            fs::create_dir_all(path).with_context(|| {
                format!("run folder {shown}: cannot be created: name a folder that can be written by --out")
            })?;
            match lock(path) {
                Ok(Attempt::Locked(lock)) => return Ok(Self { path: path.to_path_buf(), lock: Some(lock), made }),
                Ok(Attempt::NoLocks) => return Ok(Self { path: path.to_path_buf(), lock: None, made }),
                Ok(Attempt::Again) => {}
                Err(why) if why.downcast_ref().is_some_and(|why: &Busy| why.0.is_empty()) => {
                    // Its holder has not said yet who it is.
                    thread::sleep(Duration::from_millis(20));
                }
                Err(why) => return Err(why.context(format!("run folder {shown}"))),
            }
        }
        bail!("run folder {shown}: in use by another process: wait for its end or name another folder by --out")
    }

    /// Whether the file system has locks; where it has none, nothing keeps a second run out.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        // Best effort, and while the lock is held: whoever opened this file before locks a file without a name, and looks again.
        let _ = fs::remove_file(self.path.join(LOCK));
        // Stops at the first folder that holds something.
        let _ = self.made.iter().try_for_each(fs::remove_dir);
    }
}

/// Another process has the lock: who it is.
#[derive(Debug)]
struct Busy(String);

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(holder) = self;
        write!(f, "in use by {holder}: wait for its end or stop it, or name another folder by --out")?;
        match holder.contains(&on_host()) {
            true => Ok(()),
            false => {
                write!(f, "; that host's lock ends with its process, on a file server at the latest with its lease")
            }
        }
    }
}

impl std::error::Error for Busy {}

/// What came of trying to lock.
enum Attempt {
    Locked(File),
    /// The file system has none.
    NoLocks,
    /// The file was removed meanwhile.
    Again,
}

fn lock(folder: &Path) -> Result<Attempt> {
    let path = folder.join(LOCK);
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = match open {
        Ok(file) => file,
        Err(why) if why.kind() == ErrorKind::NotFound => return Ok(Attempt::Again),
        Err(why) => return Err(why).context(format!("{LOCK} cannot be written: name a folder that can be by --out")),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::INTR) => return Ok(Attempt::Again),
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).context(LOCK)?;
            return Err(Busy(holder.trim().to_owned()).into());
        }
        Err(Errno::NOTSUP | Errno::NOLCK | Errno::NOSYS | Errno::INVAL) => return Ok(Attempt::NoLocks),
        Err(why) => return Err(why).context(format!("{LOCK} cannot be locked")),
    }
    if !is_at(&file, &path) {
        return Ok(Attempt::Again);
    }
    // Best effort: on a full disk the lock holds without a word in it.
    let said = file.set_len(0).and_then(|()| writeln!(file, "process {} {} since {}", process::id(), on_host(), now()));
    drop(said);
    Ok(Attempt::Locked(file))
}

/// Whether `path` is still this file.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(own), Ok(there)) = (file.metadata(), fs::metadata(path)) else { return false };
    own.dev() == there.dev() && own.ino() == there.ino()
}

fn on_host() -> String {
    format!("on {}", uname().nodename().to_string_lossy())
}

fn now() -> String {
    Utc::now().format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Removes what a killed run left half written in the run folder and writes the resolved configuration.
///
/// # Errors
/// The folder cannot be written.
pub fn write_config(out: &Path, config: &Config) -> Result<()> {
    let shown = out.display();
    let text = config.to_toml()?;
    files::remove_parts(out)
        .and_then(|()| files::write_whole(&out.join(CONFIG), |file| Ok(file.write_all(text.as_bytes())?)))
        .with_context(|| format!("run folder {shown}: make room there or name another by --out"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_until_the_first_ends() {
        let place = tempfile::tempdir().unwrap();
        let out = place.path().join("a/b");
        let first = RunFolder::open(&out).unwrap();
        let why = format!("{:#}", RunFolder::open(&out).unwrap_err());
        assert!(
            why.contains(&format!("in use by process {} on ", process::id())) && why.contains(" UTC: wait"),
            "{why}"
        );
        assert!(!why.contains("that host's"), "{why}");
        assert!(out.join(LOCK).is_file());
        drop(first);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0, "folders made for a run that wrote nothing stay");
        drop(RunFolder::open(&out).unwrap());
    }

    #[test]
    fn what_was_written_or_was_there_before_stays() {
        let place = tempfile::tempdir().unwrap();
        drop(RunFolder::open(place.path()).unwrap());
        assert!(place.path().is_dir());
        let out = place.path().join("run");
        let folder = RunFolder::open(&out).unwrap();
        fs::write(out.join("config.toml"), "").unwrap();
        drop(folder);
        assert!(out.join("config.toml").is_file() && !out.join(LOCK).exists());
    }

    /// What a killed run leaves: the file, and nobody who holds it.
    #[test]
    fn a_file_alone_locks_nothing() {
        let place = tempfile::tempdir().unwrap();
        fs::write(
            place.path().join(LOCK),
            "process 1 on elsewhere since 2020-01-01 00:00:00 UTC\nlonger than the next\n",
        )
        .unwrap();
        let _folder = RunFolder::open(place.path()).unwrap();
        let text = fs::read_to_string(place.path().join(LOCK)).unwrap();
        assert!(text.starts_with(&format!("process {} on ", process::id())) && text.lines().count() == 1, "{text}");
    }

    #[test]
    fn another_host_is_told_apart() {
        let busy = Busy("process 7 on elsewhere.example since 2020-01-01 00:00:00 UTC".into());
        assert!(busy.to_string().ends_with("on a file server at the latest with its lease"), "{busy}");
    }
}
