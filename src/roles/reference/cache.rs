//! Reference log-probabilities on the disk: computed once for a row and a set of weights, found again by every later run.
//!
//! Owns what a value depends on and where it lies. A row is found by its tokens, its tree and its mask; a folder belongs
//! to one set of weights under one arithmetic. A folder holds pieces, each written whole under a name made of its content
//! and never changed: a killed writer loses the piece it had not written, and two writers at once leave two pieces. A row
//! that stands in several is read from the first by name, so that every run reads the same bits.

use std::{
    fs::{self, File},
    io::{BufReader, ErrorKind, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::{
    cache::{Found, Key, KeyBuilder, find_checked, write_checked},
    device::Float,
    forest::Tree,
    model::Model,
    versions,
};

const KIND: &str = "reference";
/// Changes with the format of a piece and with whatever changes the bits of a value.
const FORMAT: &str = "reference 1";
/// Parameters hashed at a time.
const HASHED: usize = 16 << 20;

/// Bytes of a piece that are read at a time.
const BLOCK: usize = 1 << 18;

/// What a tree's log-probabilities depend on besides the model: its tokens, which segment continues which, and which
/// tokens are predicted.
pub fn row_key(tree: &Tree) -> Key {
    let mut key = KeyBuilder::new(FORMAT);
    for segment in &tree.segments {
        let parent = segment.parent.map_or(u64::MAX, |parent| parent as u64);
        let ranges = segment.unscored.iter().flat_map(|range| [range.start as u64, range.end as u64]);
        let shape: Vec<u64> = [parent, u64::from(segment.scored)].into_iter().chain(ranges).collect();
        key.part("shape", bytemuck::cast_slice(&shape)).part("tokens", bytemuck::cast_slice(&segment.tokens));
    }
    key.finish()
}

/// The values of one set of weights.
#[derive(Clone, Debug)]
pub struct ReferenceCache {
    folder: PathBuf,
}

impl ReferenceCache {
    /// The folder for the weights `model` holds now, in the cache folder `cache`: found by the weights themselves, by
    /// what the configuration makes of them, and by device and kernels.
    ///
    /// # Errors
    /// The weights cannot be downloaded.
    pub fn new<T: Float>(cache: &Path, model: &Model<T>) -> Result<Self> {
        let mut key = KeyBuilder::new(FORMAT);
        let (device, params) = (model.device(), model.params().values());
        key.part("device", device.arithmetic().as_bytes()).part("kernels", versions::KERNELS.as_bytes());
        key.part("precision", format!("{:?}", T::DTYPE).as_bytes());
        key.part("config", format!("{:?}", model.config()).as_bytes());
        for start in (0..params.len()).step_by(HASHED) {
            let piece = device.download(&params.slice(start..params.len().min(start + HASHED)))?;
            let bytes: &[u8] = bytemuck::cast_slice(&piece);
            key.part("weights", blake3::Hasher::new().update_rayon(bytes).finalize().as_bytes());
        }
        Ok(Self { folder: cache.join(KIND).join(key.finish().hex()) })
    }

    /// Where the pieces lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Hands all rows that are here to `take`, piece by piece in the order of their names, and gives a line for each piece
    /// that was damaged and removed. `take` says no to a row that there cannot be.
    ///
    /// # Errors
    /// The folder or a piece is there and cannot be read, or the first of `take`.
    pub fn read(&self, mut take: impl FnMut(Key, &[f32]) -> Result<bool>) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for path in self.pieces()? {
            let whole = match find_checked(&path)? {
                Found::Whole(file, len) => read_piece(file, len, &mut take)?,
                Found::Absent => true,
                Found::Damaged(_) => false,
            };
            if !whole {
                warnings.push(format!("{} was damaged: its rows are computed again", path.display()));
            }
        }
        Ok(warnings)
    }

    /// Keeps these rows.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn write(&self, rows: &[(Key, &[f32])]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let bytes = piece(rows);
        write_checked(&self.folder.join(blake3::hash(&bytes).to_hex().as_str()), |out| Ok(out.write_all(&bytes)?))
    }

    /// Whole pieces in the order of their names.
    fn pieces(&self) -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(why) if why.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(why) => return Err(why).with_context(|| format!("{}: cannot be read", self.folder.display())),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let path = entry.with_context(|| format!("{}: cannot be read", self.folder.display()))?.path();
            // Without an extension: others are still being written, or their writer was killed.
            if path.extension().is_none() {
                paths.push(path);
            }
        }
        paths.sort_unstable();
        Ok(paths)
    }
}

/// Rows back to back: key, number of values, values; numbers little-endian.
fn piece(rows: &[(Key, &[f32])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, values) in rows {
        bytes.extend_from_slice(&key.0);
        bytes.extend_from_slice(&(values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    }
    bytes
}

/// Hands over the rows of a piece of `len` bytes; false if it is not what [`piece`] makes.
fn read_piece(file: File, len: u64, take: &mut impl FnMut(Key, &[f32]) -> Result<bool>) -> Result<bool> {
    let (mut piece, mut left) = (BufReader::with_capacity(BLOCK, file), len);
    let (mut key, mut count, mut values) = ([0; 32], [0; 8], Vec::<f32>::new());
    while left > 0 {
        let Some(rest) = left.checked_sub(40) else { return Ok(false) };
        piece.read_exact(&mut key)?;
        piece.read_exact(&mut count)?;
        let size = u64::from_le_bytes(count).checked_mul(4).filter(|&size| size <= rest);
        let Some(size) = size else { return Ok(false) };
        values.resize(size as usize / 4, 0.0);
        piece.read_exact(bytemuck::cast_slice_mut(&mut values))?;
        if !take(Key(key), &values)? {
            return Ok(false);
        }
        left = rest - size;
    }
    Ok(true)
}
