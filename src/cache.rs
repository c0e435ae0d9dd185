//! Files found by the content they were made from: a key is the hash of everything that determines the file.
//!
//! Owns names, checksums and what happens with several writers: a file appears whole under its final name, two
//! processes that make the same file write the same bytes, and a damaged file counts as absent and is made again.
//! Knows nothing about what is in a file.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result};

/// Bytes of the checksum at the end of every file.
const CHECK: usize = 32;

/// Hashes by name.
pub type Hashes = BTreeMap<String, String>;

/// The hash of everything that determines a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 32]);

impl Key {
    /// 64 hexadecimal digits.
    pub fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
}

/// Takes in named parts one after another; every part is hashed with its length, so that parts cannot run together.
#[derive(Clone, Debug)]
pub struct KeyBuilder(blake3::Hasher);

impl KeyBuilder {
    /// A key for files of one kind and format, such as `"tokens 1"`.
    pub fn new(kind: &str) -> Self {
        let mut builder = Self(blake3::Hasher::new());
        builder.part("kind", kind.as_bytes());
        builder
    }

    /// Takes in a part.
    pub fn part(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        for piece in [name.as_bytes(), bytes] {
            self.0.update(&(piece.len() as u64).to_le_bytes());
            self.0.update(piece);
        }
        self
    }

    /// Takes in a file's bytes, not its name.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn file(&mut self, name: &str, path: &Path) -> Result<&mut Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_mmap_rayon(path).with_context(|| format!("{}: cannot be read", path.display()))?;
        Ok(self.part(name, hasher.finalize().as_bytes()))
    }

    /// The key of everything taken in.
    pub fn finish(&self) -> Key {
        Key(*self.0.finalize().as_bytes())
    }
}

/// What a look-up found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Bytes(Vec<u8>),
    Absent,
    /// The file was there and its checksum did not hold; it was removed.
    Damaged(PathBuf),
}

/// A folder of cached files, made when the first one is written.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The cache in `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the file of that kind and key lies: `KIND/KEY`.
    pub fn path(&self, kind: &str, key: &Key) -> PathBuf {
        self.folder.join(kind).join(key.hex())
    }

    /// Reads a file and checks it.
    ///
    /// # Errors
    /// The file is there and cannot be read, or is damaged and cannot be removed.
    pub fn read(&self, kind: &str, key: &Key) -> Result<Found> {
        read_checked(&self.path(kind, key))
    }

    /// Writes a file whole, with its checksum. Where another process was faster, its equal file is replaced.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn write(&self, kind: &str, key: &Key, bytes: &[u8]) -> Result<()> {
        write_checked(&self.path(kind, key), bytes)
    }
}

/// Reads what [`write_checked`] wrote; a damaged file is removed.
///
/// # Errors
/// The file is there and cannot be read, or is damaged and cannot be removed.
pub fn read_checked(path: &Path) -> Result<Found> {
    let mut bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(why) if why.kind() == ErrorKind::NotFound => return Ok(Found::Absent),
        Err(why) => return Err(why).with_context(|| format!("cache file {}: cannot be read", path.display())),
    };
    if let Some(end) = bytes.len().checked_sub(CHECK)
        && blake3::hash(&bytes[..end]).as_bytes()[..] == bytes[end..]
    {
        bytes.truncate(end);
        return Ok(Found::Bytes(bytes));
    }
    match fs::remove_file(path) {
        Err(why) if why.kind() != ErrorKind::NotFound => {
            Err(why).with_context(|| format!("cache file {}: damaged and cannot be removed", path.display()))
        }
        _ => Ok(Found::Damaged(path.to_path_buf())),
    }
}

/// Writes `bytes` and their checksum under a name of its own, flushes them and renames the file to `path`.
///
/// # Errors
/// The folder cannot be made or written to.
pub fn write_checked(path: &Path, bytes: &[u8]) -> Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let folder = path.parent().expect("a cache file lies in a folder");
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let part = folder.join(format!("{}-{number}.part", process::id()));
    let write = || -> Result<()> {
        fs::create_dir_all(folder)?;
        let mut file = fs::File::create(&part)?;
        file.write_all(bytes)?;
        file.write_all(blake3::hash(bytes).as_bytes())?;
        file.sync_all()?;
        Ok(fs::rename(&part, path)?)
    };
    write().with_context(|| format!("cache file {}: cannot be written", path.display())).inspect_err(|_| {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&part);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_found_and_damage_is_noticed_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().join("new"));
        let key = KeyBuilder::new("test 1").part("a", b"1").finish();
        assert_eq!(cache.read("kind", &key).unwrap(), Found::Absent);
        cache.write("kind", &key, b"content").unwrap();
        assert_eq!(cache.read("kind", &key).unwrap(), Found::Bytes(b"content".to_vec()));
        let path = cache.path("kind", &key);
        for damage in [vec![], b"short".to_vec(), [&b"Content"[..], blake3::hash(b"content").as_bytes()].concat()] {
            fs::write(&path, damage).unwrap();
            assert_eq!(cache.read("kind", &key).unwrap(), Found::Damaged(path.clone()));
            assert_eq!(cache.read("kind", &key).unwrap(), Found::Absent);
        }
    }

    #[test]
    fn parts_do_not_run_together() {
        let key = |parts: &[(&str, &[u8])]| {
            let mut builder = KeyBuilder::new("test 1");
            for (name, bytes) in parts {
                builder.part(name, bytes);
            }
            builder.finish()
        };
        assert_ne!(key(&[("a", b"bc")]), key(&[("ab", b"c")]));
        assert_ne!(key(&[("a", b"b"), ("c", b"d")]), key(&[("a", b"bc"), ("", b"d")]));
    }
}
