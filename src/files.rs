//! Files and folders that appear whole or not at all: written beside their place, flushed to the disk, renamed. And small
//! files of folders that others made: read only if they are files, and no larger than such files are.

pub mod blob;
pub mod disk;
pub mod safetensors;

use std::{
    fs::{self, File},
    io::{self, BufWriter, ErrorKind, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, ensure};

/// Ends the name of what is being written, or of what a killed run left behind.
pub const PART: &str = ".part";

/// The largest `tokenizer.json` that is read, and the largest file of any other kind that a model folder describes itself
/// with. Released ones have at most 35 MB and 4 MB.
pub const LARGEST_TOKENIZER: u64 = 256 << 20;
/// See [`LARGEST_TOKENIZER`].
pub const LARGEST_TEXT: u64 = 16 << 20;

/// How every Git LFS pointer begins: what a clone without `git-lfs` has in place of a large file.
const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Whether these first bytes of a file are those of a Git LFS pointer.
pub fn is_lfs_pointer(start: &[u8]) -> bool {
    start.starts_with(LFS)
}

/// What to say of a file that is a Git LFS pointer.
pub fn lfs_pointer(path: &Path) -> anyhow::Error {
    anyhow!(
        "{}: a Git LFS pointer, not the file: run `git lfs pull` in its folder or copy the file itself",
        path.display()
    )
}

/// The bytes of a file of at most `limit` bytes; `None` if there is none. Links are followed.
///
/// # Errors
/// It is a folder, a pipe, a device or a Git LFS pointer, is larger, or cannot be read.
pub fn read_regular(path: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let shown = path.display();
    let metadata = match fs::metadata(path) {
        Err(why) if matches!(why.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        metadata => metadata.with_context(|| format!("{shown}: cannot be read"))?,
    };
    ensure!(!metadata.is_dir(), "{shown}: a folder, a file is needed in its place");
    // Opening a pipe waits for its other end, and a device may never end.
    ensure!(metadata.is_file(), "{shown}: a pipe or device, a file is needed in its place");
    let too_large =
        |bytes: u64| anyhow!("{shown}: takes {bytes} bytes, more than the {limit} that are read: replace it");
    ensure!(metadata.len() <= limit, too_large(metadata.len()));
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    let file = File::open(path).with_context(|| format!("{shown}: cannot be read"))?;
    file.take(limit + 1).read_to_end(&mut bytes).with_context(|| format!("{shown}: cannot be read"))?;
    ensure!(bytes.len() as u64 <= limit, too_large(bytes.len() as u64));
    ensure!(!is_lfs_pointer(&bytes), lfs_pointer(path));
    Ok(Some(bytes))
}

/// The bytes of a file that a run names, which may be a pipe; no more than `limit` are read.
///
/// # Errors
/// It cannot be read, or has more.
pub fn read_named(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    let fits = bytes.len() as u64 <= limit;
    if fits {
        Ok(bytes)
    } else {
        Err(io::Error::new(ErrorKind::FileTooLarge, format!("it has more than {limit} bytes")))
    }
}

/// Writes `path` through `fill`; until the last step nothing that was there changes.
///
/// # Errors
/// `fill` fails, or the folder cannot be written to; what was written so far is removed.
pub fn write_whole(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let part = part_name(path);
    let write = || -> Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&part)?);
        fill(&mut out)?;
        out.flush()?;
        out.get_ref().sync_all()?;
        fs::rename(&part, path)?;
        sync_parent(path)
    };
    write().with_context(|| format!("{}: cannot be written", path.display())).inspect_err(|_| {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&part);
    })
}

/// Finds out whether [`write_whole`] could write `path`, and leaves nothing behind.
///
/// # Errors
/// It could not.
pub fn try_whole(path: &Path) -> Result<()> {
    let part = part_name(path);
    match File::options().write(true).create_new(true).open(&part) {
        // Another process is at it, or was.
        Err(why) if why.kind() == ErrorKind::AlreadyExists => Ok(()),
        opened => opened
            .and_then(|_| fs::remove_file(&part))
            .with_context(|| format!("{}: cannot be written", path.display())),
    }
}

/// Fills a folder under a temporary name and moves it to `target`, which must not exist.
///
/// # Errors
/// `fill` fails, or the folder cannot be written; nothing is then left at `target`.
pub fn folder_whole(target: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let part = part_name(target);
    let write = || -> Result<()> {
        remove_if_there(&part)?;
        fs::create_dir(&part)?;
        fill(&part)?;
        for entry in fs::read_dir(&part)? {
            File::open(entry?.path())?.sync_all()?;
        }
        File::open(&part)?.sync_all()?;
        fs::rename(&part, target)?;
        sync_parent(target)
    };
    write().with_context(|| format!("{}: cannot be written", target.display())).inspect_err(|_| {
        let _ = fs::remove_dir_all(&part);
    })
}

/// As [`folder_whole`], in the place of the folder that is there. A kill leaves the one, the other, or for a moment none.
///
/// # Errors
/// As [`folder_whole`]; the folder that is there then stays.
pub fn folder_replaced(target: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let next = target.with_extension("next");
    remove_if_there(&next)?;
    folder_whole(&next, fill)?;
    if target.exists() {
        remove_folder(target)?;
    }
    fs::rename(&next, target).with_context(|| format!("{}: cannot be written", target.display()))?;
    sync_parent(target)
}

/// Removes a folder after moving it out of its name: a kill in between leaves no half of it behind that name.
///
/// # Errors
/// The folder cannot be moved or removed.
pub fn remove_folder(path: &Path) -> Result<()> {
    let part = part_name(path);
    let removed = fs::rename(path, &part).and_then(|()| fs::remove_dir_all(&part));
    removed.with_context(|| format!("{}: cannot be removed", path.display()))
}

/// Removes what a killed run left half written in `folder`.
///
/// # Errors
/// The folder cannot be read or a leftover cannot be removed.
pub fn remove_parts(folder: &Path) -> Result<()> {
    let remove = || -> Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.to_string_lossy().ends_with(PART) {
                remove_if_there(&path)?;
            }
        }
        Ok(())
    };
    remove().with_context(|| format!("{}: leftovers cannot be removed", folder.display()))
}

fn remove_if_there(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(why) if why.kind() != ErrorKind::NotFound => Err(why).with_context(|| path.display().to_string()),
        _ => Ok(()),
    }
}

/// The name under which a file is written, beside its own.
///
/// # Panics
/// If it has no name.
pub fn part_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().expect("a file has a name").to_owned();
    name.push(PART);
    path.with_file_name(name)
}

/// Flushes a file's folder: a rename survives a power cut only then.
///
/// # Errors
/// The folder cannot be read.
pub fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(File::open(parent)?.sync_all()?)
}
