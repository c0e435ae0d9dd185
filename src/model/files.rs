//! Files that appear whole: written beside their final name, flushed to the disk, then renamed over it.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result};

/// Writes `path` through `fill`; until the last step nothing that was there changes.
///
/// # Errors
/// `fill` fails, or the folder cannot be written to; what was written so far is removed.
pub fn write_whole(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let mut name = path.file_name().expect("a file has a name").to_owned();
    name.push(".part");
    let part = path.with_file_name(name);
    let write = || -> Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&part)?);
        fill(&mut out)?;
        out.flush()?;
        out.get_ref().sync_all()?;
        fs::rename(&part, path)?;
        // The rename itself survives a power cut only if the folder is flushed too.
        File::open(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(())
    };
    write().with_context(|| format!("{}: cannot be written", path.display())).inspect_err(|_| {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&part);
    })
}
