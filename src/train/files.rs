//! Files and folders that appear whole or not at all: written beside their place, synced, renamed.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Marks what a killed run left half written.
const PARTIAL: &str = ".partial-";

/// Replaces `path` by `bytes` in one move.
///
/// # Errors
/// The file cannot be written; what stood at `path` is then untouched.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let beside = partial_name(path);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    if let Err(why) = write() {
        let _ = fs::remove_file(&beside);
        return Err(why).with_context(|| format!("{}: cannot be written: make room or give --out", path.display()));
    }
    sync_parent(path)
}

/// Fills a folder under a temporary name and moves it to `target`, which must not exist.
///
/// # Errors
/// `fill` fails, or the folder cannot be written; nothing is then left at `target`.
pub fn folder_whole(target: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let beside = partial_name(target);
    let done = remove_if_there(&beside)
        .and_then(|()| fs::create_dir(&beside).with_context(|| format!("{}: cannot be created", beside.display())))
        .and_then(|()| fill(&beside))
        .and_then(|()| sync_folder(&beside))
        .and_then(|()| fs::rename(&beside, target).with_context(|| format!("{}: cannot be created", target.display())))
        .and_then(|()| sync_parent(target));
    if done.is_err() {
        let _ = fs::remove_dir_all(&beside);
    }
    done
}

/// Removes what a killed run left half written in `folder`.
///
/// # Errors
/// The folder cannot be read or a leftover cannot be removed.
pub fn remove_partial(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{}: cannot be read", folder.display()))? {
        let entry = entry.with_context(|| format!("{}: cannot be read", folder.display()))?;
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// Moves a folder out of its name before deleting it, so that a kill in between leaves no half of it behind that name.
///
/// # Errors
/// The folder cannot be moved or removed.
pub fn remove_folder(path: &Path) -> Result<()> {
    let beside = partial_name(path);
    fs::rename(path, &beside)
        .and_then(|()| fs::remove_dir_all(&beside))
        .with_context(|| format!("{}: cannot be removed", path.display()))
}

fn remove_if_there(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
            Err(why).with_context(|| format!("{}: cannot be removed", path.display()))
        }
        _ => Ok(()),
    }
}

fn partial_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{PARTIAL}{name}"))
}

fn sync_folder(folder: &Path) -> Result<()> {
    let sync = || -> std::io::Result<()> {
        for entry in fs::read_dir(folder)? {
            File::open(entry?.path())?.sync_all()?;
        }
        File::open(folder)?.sync_all()
    };
    sync().with_context(|| format!("{}: cannot be written to the disk", folder.display()))
}

fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|f| f.sync_all()).with_context(|| format!("{}: cannot be synced", parent.display()))
}
