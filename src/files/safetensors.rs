//! The one reader and the one writer of safetensors files: tensors in and out in pieces of the caller's choice.
//!
//! Owns the checks of a file's head and of its length. Knows neither what the tensors mean nor devices.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{Read, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, ensure};
use safetensors::tensor::Metadata;

pub use safetensors::{Dtype, tensor::TensorInfo};

use super::{is_lfs_pointer, lfs_pointer, write_whole};

/// Bytes of a tensor in host memory at a time: what readers and writers of large tensors ask for at most.
pub const PIECE_BYTES: usize = 16 << 20;

/// The format's own limit, in bytes.
const LARGEST_HEADER: u64 = 100_000_000;
const COPY_AGAIN: &str = "copy the file again";

/// A file with its head read.
pub struct Reader {
    path: PathBuf,
    file: File,
    data_start: u64,
    metadata: Metadata,
}

impl Reader {
    /// Opens a file and reads its head.
    ///
    /// # Errors
    /// The file is missing, no file, a Git LFS pointer, cut short, longer than its head says, or not safetensors.
    pub fn open(path: PathBuf) -> Result<Self> {
        let name = path.display().to_string();
        let metadata = fs::metadata(&path).with_context(|| name.clone())?;
        // Opening a pipe would wait for its other end.
        ensure!(metadata.is_file(), "{name}: a folder, pipe or device: a file is needed in its place");
        let bytes = metadata.len();
        let file = File::open(&path).with_context(|| name.clone())?;
        let mut start = Vec::new();
        (&file).take(64).read_to_end(&mut start).with_context(|| name.clone())?;
        ensure!(!is_lfs_pointer(&start), lfs_pointer(&path));
        let length = start
            .first_chunk()
            .ok_or_else(|| anyhow!("{name}: truncated: {bytes} bytes hold no header: {COPY_AGAIN}"))?;
        let length = u64::from_le_bytes(*length);
        ensure!(
            length <= LARGEST_HEADER,
            "{name}: not safetensors: the header takes {length} bytes, more than {LARGEST_HEADER}: {COPY_AGAIN}"
        );
        ensure!(
            length <= bytes - 8,
            "{name}: truncated or not safetensors: the header takes {length} bytes, the file has {bytes}: {COPY_AGAIN}"
        );
        let mut json = vec![0; length as usize];
        file.read_exact_at(&mut json, 8).with_context(|| name.clone())?;
        let metadata: Metadata =
            serde_json::from_slice(&json).with_context(|| format!("{name}: broken header: {COPY_AGAIN}"))?;
        let data_start = 8 + length;
        let expected = data_start + metadata.data_len() as u64;
        ensure!(bytes >= expected, "{name}: truncated: expected {expected} bytes, found {bytes}: {COPY_AGAIN}");
        ensure!(bytes == expected, "{name}: expected {expected} bytes, found {bytes}: {COPY_AGAIN}");
        Ok(Self { path, file, data_start, metadata })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of all tensors, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// What the file says of itself under `key`.
    pub fn about(&self, key: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// Element type and shape of a tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// A tensor's bytes in the file, for those who map it.
    pub fn place(&self, name: &str) -> Option<Range<u64>> {
        let (start, end) = self.info(name)?.data_offsets;
        Some(self.data_start + start as u64..self.data_start + end as u64)
    }

    /// Fills `bytes` from a tensor, from its byte `start` on.
    ///
    /// # Errors
    /// The file has no such tensor, the tensor ends before, or the file cannot be read.
    pub fn read(&self, name: &str, start: usize, bytes: &mut [u8]) -> Result<()> {
        let shown = || format!("{}: tensor `{name}`", self.path.display());
        let place = self.place(name).with_context(|| format!("{} is missing", shown()))?;
        let at = place.start + start as u64;
        ensure!(at + bytes.len() as u64 <= place.end, "{}: ends before byte {}", shown(), start + bytes.len());
        self.file.read_exact_at(bytes, at).with_context(shown)
    }
}

/// What a file is about to hold: name, element type and shape of a tensor.
pub struct Spec {
    /// In the file.
    pub name: String,
    /// Of its elements.
    pub dtype: Dtype,
    /// Elements by dimension, the outermost first.
    pub shape: Vec<usize>,
}

/// A file that is being written.
pub struct Writer<'a> {
    file: &'a File,
    /// Where each tensor's bytes are to stand in the file.
    places: Vec<Range<u64>>,
    written: u64,
}

impl Writer<'_> {
    /// Writes `bytes` into tensor number `tensor`, from its byte `start` on. Every byte is to be written once, in any order.
    ///
    /// # Errors
    /// The tensor ends before, or the file cannot be written to.
    pub fn write(&mut self, tensor: usize, start: usize, bytes: &[u8]) -> Result<()> {
        let place = &self.places[tensor];
        let at = place.start + start as u64;
        ensure!(at + bytes.len() as u64 <= place.end, "tensor {tensor} ends before byte {}", start + bytes.len());
        self.written += bytes.len() as u64;
        Ok(self.file.write_all_at(bytes, at)?)
    }
}

/// Writes a file that appears whole: its head, and what `fill` writes. Tensors stand in the order they are given in.
///
/// # Errors
/// The file cannot be written, or `fill` fails or leaves bytes out.
pub fn write(
    path: &Path,
    about: Option<HashMap<String, String>>,
    specs: &[Spec],
    fill: impl FnOnce(&mut Writer) -> Result<()>,
) -> Result<()> {
    write_whole(path, |out| {
        let (head, places) = head(about, specs)?;
        out.write_all(&head)?;
        out.flush()?;
        let mut writer = Writer { file: out.get_ref(), written: head.len() as u64, places };
        fill(&mut writer)?;
        let end = writer.places.last().map_or(head.len() as u64, |place| place.end);
        ensure!(writer.written == end, "{} bytes were written of {end}", writer.written);
        Ok(())
    })
}

/// Length and JSON of a file's head, padded so that the data is aligned, and the tensors' places in the file: for those who
/// write the data themselves.
///
/// # Errors
/// A tensor has no whole number of bytes.
pub fn head(about: Option<HashMap<String, String>>, specs: &[Spec]) -> Result<(Vec<u8>, Vec<Range<u64>>)> {
    let mut end = 0;
    let info = |Spec { name, dtype, shape }: &Spec| {
        let start = end;
        end += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name.clone(), TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (start, end) })
    };
    let tensors: Vec<_> = specs.iter().map(info).collect();
    let offsets: Vec<_> = tensors.iter().map(|(_, info)| info.data_offsets).collect();
    let mut json = serde_json::to_vec(&Metadata::new(about, tensors)?)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json);
    let data = bytes.len() as u64;
    let places = offsets.into_iter().map(|(start, end)| data + start as u64..data + end as u64).collect();
    Ok((bytes, places))
}
