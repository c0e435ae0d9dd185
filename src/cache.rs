//! Files found by the content they were made from: a key is the hash of everything that determines the file.
//!
//! Owns names, checksums and what happens with several writers: a file appears whole under its final name, two
//! processes that make the same file write the same bytes, and a damaged file counts as absent and is made again.
//! Knows nothing about what is in a file.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result};

/// Bytes of the checksum at the end of every file.
const CHECK: usize = 32;
/// Bytes that are hashed at a time: enough for all cores.
const BLOCK: usize = 1 << 20;

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
        let hash = file_hash(path)?;
        Ok(self.part(name, &hash.0))
    }

    /// Takes in a part of `len` bytes that come piece by piece; `fill` hands them over.
    ///
    /// # Errors
    /// `fill` fails.
    pub fn long_part(
        &mut self,
        name: &str,
        len: u64,
        fill: impl FnOnce(&mut dyn FnMut(&[u8])) -> Result<()>,
    ) -> Result<&mut Self> {
        self.0.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes()).update(&len.to_le_bytes());
        fill(&mut |bytes| {
            self.0.update(bytes);
        })?;
        Ok(self)
    }

    /// Takes in many parts at once.
    pub fn parts(&mut self, Parts(bytes): &Parts) -> &mut Self {
        self.0.update_rayon(bytes);
        self
    }

    /// The key of everything taken in.
    pub fn finish(&self) -> Key {
        Key(*self.0.finalize().as_bytes())
    }
}

/// Parts for a [`KeyBuilder`], put together before it takes them: many small ones are hashed faster so.
#[derive(Clone, Debug, Default)]
pub struct Parts(Vec<u8>);

impl Parts {
    /// Adds a part, as [`KeyBuilder::part`] takes one in.
    pub fn part(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        for piece in [name.as_bytes(), bytes] {
            self.0.extend_from_slice(&(piece.len() as u64).to_le_bytes());
            self.0.extend_from_slice(piece);
        }
        self
    }

    /// Adds the parts of another after these.
    pub fn append(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// Bytes of all parts.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes all parts.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// The hash of a file's bytes, which are read a block at a time.
///
/// # Errors
/// The file cannot be read.
pub fn file_hash(path: &Path) -> Result<Key> {
    let hash = || -> io::Result<Key> {
        let mut file = File::open(path)?;
        let (mut hasher, mut block) = (blake3::Hasher::new(), vec![0; BLOCK]);
        loop {
            match file.read(&mut block)? {
                0 => return Ok(Key(*hasher.finalize().as_bytes())),
                read => hasher.update_rayon(&block[..read]),
            };
        }
    };
    hash().with_context(|| format!("{}: cannot be read", path.display()))
}

/// What a look-up found.
#[derive(Debug)]
pub enum Found {
    /// A whole file, and how many bytes it has before its checksum.
    Whole(File, u64),
    /// There is no such file.
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

    /// Where the files lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the file of that kind and key lies: `KIND/KEY`.
    pub fn path(&self, kind: &str, key: &Key) -> PathBuf {
        self.folder.join(kind).join(key.hex())
    }

    /// Finds a file and checks it.
    ///
    /// # Errors
    /// The file is there and cannot be read, or is damaged and cannot be removed.
    pub fn find(&self, kind: &str, key: &Key) -> Result<Found> {
        find_checked(&self.path(kind, key))
    }

    /// Writes a file whole, with its checksum. Where another process was faster, its equal file is replaced.
    ///
    /// # Errors
    /// The folder cannot be written to, or `fill` fails.
    pub fn write(&self, kind: &str, key: &Key, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        write_checked(&self.path(kind, key), fill)
    }
}

/// Opens what [`write_checked`] wrote; a damaged file is removed.
///
/// # Errors
/// The file is there and cannot be read, or is damaged and cannot be removed.
pub fn find_checked(path: &Path) -> Result<Found> {
    let unreadable = || format!("cache file {}: cannot be read", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(why) if why.kind() == ErrorKind::NotFound => return Ok(Found::Absent),
        Err(why) => return Err(why).with_context(unreadable),
    };
    let len = file.metadata().with_context(unreadable)?.len();
    match len.checked_sub(CHECK as u64) {
        Some(len) if is_whole(&file, len).with_context(unreadable)? => Ok(Found::Whole(file, len)),
        _ => remove_damaged(path),
    }
}

/// Removes a file that is not what it should be.
///
/// # Errors
/// It cannot be removed.
pub fn remove_damaged(path: &Path) -> Result<Found> {
    match fs::remove_file(path) {
        Err(why) if why.kind() != ErrorKind::NotFound => {
            Err(why).with_context(|| format!("cache file {}: damaged and cannot be removed", path.display()))
        }
        _ => Ok(Found::Damaged(path.to_path_buf())),
    }
}

/// Whether the checksum behind the first `len` bytes is theirs.
fn is_whole(file: &File, len: u64) -> io::Result<bool> {
    let (mut hasher, mut block) = (blake3::Hasher::new(), vec![0; BLOCK]);
    let mut place = 0;
    while place < len {
        let piece = &mut block[..(len - place).min(BLOCK as u64) as usize];
        file.read_exact_at(piece, place)?;
        hasher.update_rayon(piece);
        place += piece.len() as u64;
    }
    let mut check = [0; CHECK];
    file.read_exact_at(&mut check, len)?;
    Ok(*hasher.finalize().as_bytes() == check)
}

/// Writes what `fill` writes, and its checksum, under a name of its own, flushes it and renames the file to `path`.
///
/// # Errors
/// The folder cannot be made or written to, or `fill` fails.
pub fn write_checked(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let folder = path.parent().expect("a cache file lies in a folder");
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let part = folder.join(format!("{}-{number}.part", process::id()));
    let write = || -> Result<()> {
        fs::create_dir_all(folder)?;
        let mut out = Hashed { file: fs::File::create(&part)?, hasher: blake3::Hasher::new() };
        fill(&mut out)?;
        let Hashed { mut file, hasher } = out;
        file.write_all(hasher.finalize().as_bytes())?;
        file.sync_all()?;
        Ok(fs::rename(&part, path)?)
    };
    write().with_context(|| format!("cache file {}: cannot be written", path.display())).inspect_err(|_| {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&part);
    })
}

/// A file whose bytes are hashed as they are written.
struct Hashed {
    file: File,
    hasher: blake3::Hasher,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update_rayon(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_found_and_damage_is_noticed_once() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path().join("new"));
        let key = KeyBuilder::new("test 1").part("a", b"1").finish();
        assert!(matches!(cache.find("kind", &key).unwrap(), Found::Absent));
        cache.write("kind", &key, |out| Ok(out.write_all(b"content")?)).unwrap();
        let Found::Whole(file, len) = cache.find("kind", &key).unwrap() else { panic!("written") };
        let mut content = vec![0; len as usize];
        file.read_exact_at(&mut content, 0).unwrap();
        assert_eq!(content, b"content");
        let path = cache.path("kind", &key);
        for damage in [vec![], b"short".to_vec(), [&b"Content"[..], blake3::hash(b"content").as_bytes()].concat()] {
            fs::write(&path, damage).unwrap();
            let found = cache.find("kind", &key).unwrap();
            assert!(matches!(&found, Found::Damaged(damaged) if *damaged == path), "{found:?}");
            assert!(matches!(cache.find("kind", &key).unwrap(), Found::Absent));
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

    #[test]
    fn parts_are_the_same_one_by_one_piece_by_piece_and_together() {
        let one_by_one = KeyBuilder::new("test 1").part("a", b"bc").part("d", b"efg").finish();
        let mut parts = Parts::default();
        parts.part("a", b"bc").part("d", b"efg");
        assert_eq!(KeyBuilder::new("test 1").parts(&parts).finish(), one_by_one);
        let mut pieces = KeyBuilder::new("test 1");
        let fill = |take: &mut dyn FnMut(&[u8])| {
            [&b"e"[..], b"fg"].into_iter().for_each(take);
            Ok(())
        };
        assert_eq!(pieces.part("a", b"bc").long_part("d", 3, fill).unwrap().finish(), one_by_one);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        let bytes = vec![7; 3 * BLOCK + 5];
        fs::write(&path, &bytes).unwrap();
        assert_eq!(file_hash(&path).unwrap().hex(), blake3::hash(&bytes).to_hex().to_string());
    }
}
