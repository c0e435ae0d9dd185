//! Files and folders that appear whole or not at all: written beside their place, flushed to the disk, renamed.

use std::{
    fs::{self, File},
    io::{BufWriter, ErrorKind, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Ends the name of what is being written, or of what a killed run left behind.
pub const PART: &str = ".part";

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

fn part_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().expect("a file has a name").to_owned();
    name.push(PART);
    path.with_file_name(name)
}

/// A rename survives a power cut only if the folder is flushed too.
fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok(File::open(parent)?.sync_all()?)
}
