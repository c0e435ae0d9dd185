//! A file that grows by whole records. A full disk does not end a run here: records that find no room wait in memory, and no
//! part of one is left in the file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::files::disk;

/// Bytes of records that may wait for room: those of some 100,000 steps.
const WAITING: usize = 64 << 20;
const REMEDY: &str = "cannot be written: make room, then go on with --resume";

/// The file, open for appending.
pub(super) struct Records {
    path: PathBuf,
    file: File,
    /// Bytes of whole records in the file.
    written: u64,
    /// Whole records that found no room yet.
    waiting: Vec<u8>,
}

impl Records {
    /// Opens a file of `written` bytes, or makes one without any.
    pub fn open(path: &Path, written: u64) -> Result<Self> {
        let open = OpenOptions::new().append(true).create(true).open(path);
        let file = open.with_context(|| format!("{}: cannot be opened", path.display()))?;
        Ok(Self { path: path.to_path_buf(), file, written, waiting: Vec::new() })
    }

    /// Appends one record, or keeps it in memory while the disk is full: true if it is the first that has to wait.
    ///
    /// # Errors
    /// The file cannot be written for another reason, or too much is waiting.
    pub fn write(&mut self, record: &[u8]) -> Result<bool> {
        let is_first = self.waiting.is_empty();
        self.waiting.extend_from_slice(record);
        match self.drain() {
            Ok(()) => Ok(false),
            Err(why) if disk::is_full_error(&why) => {
                ensure!(self.waiting.len() < WAITING, "{}: {REMEDY}: {why}", self.path.display());
                Ok(is_first)
            }
            Err(why) => Err(why).with_context(|| format!("{}: {REMEDY}", self.path.display())),
        }
    }

    /// Waits until everything written is on the disk.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn sync(&mut self) -> Result<()> {
        let synced = self.drain().and_then(|()| self.file.sync_data());
        synced.with_context(|| format!("{}: {REMEDY}", self.path.display()))
    }

    /// Writes what waits. What was written of it only in part is taken back.
    fn drain(&mut self) -> io::Result<()> {
        if let Err(why) = self.file.write_all(&self.waiting) {
            self.file.set_len(self.written)?;
            return Err(why);
        }
        self.written += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }
}
