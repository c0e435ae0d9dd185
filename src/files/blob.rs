//! Bytes that are written once and read at any place: few in memory, many in a file.
//!
//! Files are read by position, not mapped: their pages are the operating system's and not the run's, and a file that somebody
//! cuts short while it is read is an error with its name, not a signal.

use std::{
    env,
    fs::{self, File},
    io::{self, ErrorKind},
    mem,
    os::unix::fs::FileExt,
    path::PathBuf,
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Result, anyhow};
use rustix::{
    fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// Bytes that a [`Spool`] has in memory before it goes on in a file.
const IN_MEMORY: usize = 256 << 10;

/// What a file without a name is called.
pub const NAMELESS: &str = "a file without a name";

/// Bytes that are read at any place.
#[derive(Debug)]
pub enum Blob {
    /// All of it.
    Memory(Vec<u8>),
    /// The first `len` bytes of a file.
    File {
        /// Open for reading.
        file: File,
        /// Bytes.
        len: u64,
        /// For messages.
        name: String,
    },
}

impl Default for Blob {
    fn default() -> Self {
        Self::Memory(Vec::new())
    }
}

impl Blob {
    /// How many bytes there are.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `into` with the bytes from `place` on.
    ///
    /// # Errors
    /// There are not so many, or the file cannot be read.
    pub fn read_at(&self, into: &mut [u8], place: u64) -> Result<()> {
        let read = match self {
            Self::Memory(bytes) => read_memory(bytes, into, place),
            Self::File { file, .. } => file.read_exact_at(into, place),
        };
        read.map_err(|why| match (self, why.kind()) {
            (Self::File { name, .. }, ErrorKind::UnexpectedEof) => {
                anyhow!(
                    "{name}: ends before byte {}: it was cut short while in use: start again",
                    place + into.len() as u64
                )
            }
            (Self::File { name, .. }, _) => anyhow!("{name}: cannot be read: {why}"),
            (Self::Memory(bytes), _) => anyhow!("{} bytes, none at {place}", bytes.len()),
        })
    }
}

fn read_memory(bytes: &[u8], into: &mut [u8], place: u64) -> io::Result<()> {
    let start = usize::try_from(place).unwrap_or(usize::MAX);
    let found = bytes.get(start..).and_then(|rest| rest.get(..into.len())).ok_or(ErrorKind::UnexpectedEof)?;
    into.copy_from_slice(found);
    Ok(())
}

/// Bytes written one behind the other: in memory while they are few, then in a file without a name. Where there can be no
/// such file, in memory whatever their number.
#[derive(Debug, Default)]
pub struct Spool {
    /// What is not in the file.
    memory: Vec<u8>,
    file: Option<File>,
    /// Bytes of the file.
    filed: u64,
    stays: bool,
}

impl Spool {
    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.filed + self.memory.len() as u64
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes bytes behind those that are there.
    pub fn push(&mut self, bytes: &[u8]) {
        self.memory.extend_from_slice(bytes);
        if self.memory.len() >= IN_MEMORY && !self.stays && self.flush().is_err() {
            // No room, or no folder: what is in the file comes back.
            self.stays = true;
            let mut all = vec![0; self.filed as usize];
            if let Some(file) = self.file.take().filter(|file| file.read_exact_at(&mut all, 0).is_ok()) {
                drop(file);
                all.append(&mut self.memory);
                (self.memory, self.filed) = (all, 0);
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(nameless(0)?),
        };
        file.write_all_at(&self.memory, self.filed)?;
        self.filed += self.memory.len() as u64;
        self.memory.clear();
        Ok(())
    }

    /// What was written, to be read.
    ///
    /// # Errors
    /// The last bytes cannot be written.
    pub fn finish(mut self) -> Result<Blob> {
        if self.file.is_none() {
            return Ok(Blob::Memory(mem::take(&mut self.memory)));
        }
        let name = NAMELESS.to_owned();
        self.flush().map_err(|why| anyhow!("{name}: cannot be written: {why}"))?;
        let file = self.file.take().ok_or_else(|| anyhow!("{name}: lost"))?;
        Ok(Blob::File { file, len: self.filed, name })
    }
}

/// A file with room for so many bytes that nobody else finds and that is gone with its handle: in the folder for such files,
/// or where that has no room or cannot be written to, in memory.
///
/// # Errors
/// There is no memory either.
pub fn nameless(bytes: u64) -> io::Result<File> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path: PathBuf = env::temp_dir().join(format!("warpo-{}-{number}.part", process::id()));
    let on_disk = || {
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        fs::remove_file(&path)?;
        take_room(&file, bytes)?;
        Ok(file)
    };
    on_disk().or_else(|_: io::Error| Ok(File::from(memfd_create("warpo", MemfdFlags::CLOEXEC)?)))
}

/// Takes room for so many bytes of a file now, so that a disk that is full later does not matter to it.
///
/// # Errors
/// There is no room.
pub fn take_room(file: &File, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes.max(1)).map_err(io::Error::from) {
        // Not every file system can.
        Err(why) if !is_full(&why) => file.set_len(bytes),
        Err(why) => Err(why),
        Ok(()) => file.set_len(bytes),
    }
}

fn is_full(why: &io::Error) -> bool {
    matches!(why.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

/// Lets the program have as many files open as the system allows it: a set of rows may be thousands of files.
pub fn allow_many() {
    let limit = getrlimit(Resource::Nofile);
    // Best effort: where it is not enough, opening a file says so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_at_any_place() {
        for count in [0, 3, 1000, 200_000] {
            let mut spool = Spool::default();
            (0..count).for_each(|i: u64| spool.push(&i.to_le_bytes()));
            assert_eq!(spool.len(), 8 * count);
            let blob = spool.finish().unwrap();
            assert_eq!((blob.len(), matches!(blob, Blob::File { .. })), (8 * count, count > 100_000));
            for i in [0, count / 2, count.saturating_sub(1)].into_iter().filter(|&i| i < count) {
                let mut word = [0; 8];
                blob.read_at(&mut word, 8 * i).unwrap();
                assert_eq!(u64::from_le_bytes(word), i);
            }
            assert!(blob.read_at(&mut [0; 8], 8 * count).is_err());
        }
    }

    #[test]
    fn a_file_that_is_cut_short_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens");
        fs::write(&path, [1; 100]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let blob = Blob::File { len: 100, name: path.display().to_string(), file };
        blob.read_at(&mut [0; 50], 50).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(60).unwrap();
        let why = blob.read_at(&mut [0; 50], 50).unwrap_err().to_string();
        assert!(why.contains("tokens: ends before byte 100: it was cut short"), "{why}");
    }
}
