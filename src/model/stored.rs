//! Buffers of any element type, to safetensors files and back, piece by piece.

use std::ops::Range;

use anyhow::{Context, Result, ensure};

use crate::{
    device::{Buffer, DType, Device, Element},
    files::safetensors::{Dtype, PIECE_BYTES, Reader, Writer},
};

/// A buffer of whatever elements, to be saved and restored byte for byte.
#[derive(Clone)]
pub struct AnyBuffer {
    dtype: DType,
    bytes: Buffer<u8>,
}

impl<E: Element> From<&Buffer<E>> for AnyBuffer {
    fn from(buffer: &Buffer<E>) -> Self {
        Self { dtype: E::DTYPE, bytes: buffer.cast() }
    }
}

impl AnyBuffer {
    /// The element type as a file names it.
    pub fn dtype(&self) -> Dtype {
        match self.dtype {
            DType::F32 => Dtype::F32,
            DType::Bf16 => Dtype::BF16,
            DType::F64 => Dtype::F64,
            DType::I32 => Dtype::I32,
            DType::U32 => Dtype::U32,
            DType::U8 => Dtype::U8,
        }
    }

    /// The buffer, if its elements are of this type.
    pub fn typed<E: Element>(&self) -> Option<Buffer<E>> {
        (E::DTYPE == self.dtype).then(|| self.bytes.cast())
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.width()
    }

    /// True for a buffer of no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// A view of some of the elements.
    ///
    /// # Panics
    /// The range does not lie within the buffer.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let width = self.width();
        Self { dtype: self.dtype, bytes: self.bytes.slice(range.start * width..range.end * width) }
    }

    /// Writes it as tensor number `tensor` of a file.
    ///
    /// # Errors
    /// An earlier launch failed, or the file cannot be written to.
    pub fn save(&self, device: &Device, file: &mut Writer, tensor: usize) -> Result<()> {
        for piece in pieces(0..self.bytes.len(), PIECE_BYTES) {
            file.write(tensor, piece.start, &device.download(&self.bytes.slice(piece.clone()))?)?;
        }
        Ok(())
    }

    /// Fills it from a tensor of a file, which has `shape` there.
    ///
    /// # Errors
    /// The file has no such tensor, or another under its name, or cannot be read.
    pub fn load(&self, device: &Device, file: &Reader, name: &str, shape: &[usize]) -> Result<()> {
        let shown = file.path().display();
        let info = file.info(name).with_context(|| format!("{shown}: tensor `{name}` is missing"))?;
        ensure!(
            info.dtype == self.dtype() && info.shape == shape,
            "{shown}: tensor `{name}`: expected {} {shape:?}, found {:?} {:?}",
            format!("{:?}", self.dtype()).to_lowercase(),
            info.dtype,
            info.shape
        );
        for piece in pieces(0..self.bytes.len(), PIECE_BYTES) {
            let mut bytes = vec![0; piece.len()];
            file.read(name, piece.start, &mut bytes)?;
            device.copy_in(&self.bytes.slice(piece), &bytes)?;
        }
        Ok(())
    }

    fn width(&self) -> usize {
        self.dtype().bitsize() / 8
    }
}

/// A range cut into what is in host memory at a time.
pub(crate) fn pieces(range: Range<usize>, piece: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range.step_by(piece).map(move |start| start..end.min(start + piece))
}
