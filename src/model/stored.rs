//! Buffers of any element type, to safetensors files and back, piece by piece.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use half::bf16;

use crate::{
    device::{Buffer, DType, Device, Element, Float, Pinned},
    files::safetensors::{Dtype, PIECE_BYTES, Reader, Writer},
};

/// A buffer of whatever elements, to be saved and restored byte for byte.
#[derive(Clone)]
pub struct AnyBuffer(Parts);

#[derive(Clone)]
enum Parts {
    Whole {
        dtype: DType,
        bytes: Buffer<u8>,
    },
    /// In the host's memory, the bytes of this range.
    OnHost {
        dtype: DType,
        memory: Pinned<u8>,
        range: Range<usize>,
    },
    /// f32 masters.
    Split {
        weights: Buffer<bf16>,
        low: Buffer<u16>,
    },
}

impl<E: Element> From<&Buffer<E>> for AnyBuffer {
    fn from(buffer: &Buffer<E>) -> Self {
        Self(Parts::Whole { dtype: E::DTYPE, bytes: buffer.cast() })
    }
}

impl AnyBuffer {
    /// The f32 masters of bf16 weights: in a file they are one tensor.
    pub fn masters(weights: &Buffer<bf16>, low: &Buffer<u16>) -> Self {
        Self(Parts::Split { weights: weights.clone(), low: low.clone() })
    }

    /// What a device keeps in the host's memory, as elements of this type.
    pub fn on_host(dtype: DType, memory: &Pinned<u8>) -> Self {
        Self(Parts::OnHost { dtype, memory: memory.clone(), range: 0..memory.len() })
    }

    /// The element type: of masters that of their file.
    pub fn element(&self) -> DType {
        match self.0 {
            Parts::Split { .. } => DType::F32,
            Parts::Whole { dtype, .. } | Parts::OnHost { dtype, .. } => dtype,
        }
    }

    /// The element type as a file names it.
    pub fn dtype(&self) -> Dtype {
        match self.0 {
            Parts::Split { .. } => Dtype::F32,
            Parts::Whole { dtype, .. } | Parts::OnHost { dtype, .. } => match dtype {
                DType::F32 => Dtype::F32,
                DType::Bf16 => Dtype::BF16,
                DType::F64 => Dtype::F64,
                DType::I32 => Dtype::I32,
                DType::U32 => Dtype::U32,
                DType::U16 => Dtype::U16,
                DType::U8 => Dtype::U8,
            },
        }
    }

    /// The buffer, if it is one and its elements are of this type.
    pub fn typed<E: Element>(&self) -> Option<Buffer<E>> {
        match &self.0 {
            Parts::Whole { dtype, bytes } if *dtype == E::DTYPE => Some(bytes.cast()),
            _ => None,
        }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        match &self.0 {
            Parts::Whole { bytes, .. } => bytes.len() / self.width(),
            Parts::OnHost { range, .. } => range.len() / self.width(),
            Parts::Split { low, .. } => low.len(),
        }
    }

    /// True for a buffer of no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A view of some of the elements.
    ///
    /// # Panics
    /// The range does not lie within the buffer.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let width = self.width();
        Self(match &self.0 {
            Parts::Whole { dtype, bytes } => {
                Parts::Whole { dtype: *dtype, bytes: bytes.slice(range.start * width..range.end * width) }
            }
            Parts::OnHost { dtype, memory, range: own } => {
                assert!(range.end * width <= own.len(), "slice {range:?} of {} elements", own.len() / width);
                let range = own.start + range.start * width..own.start + range.end * width;
                Parts::OnHost { dtype: *dtype, memory: memory.clone(), range }
            }
            Parts::Split { weights, low } => {
                Parts::Split { weights: weights.slice(range.clone()), low: low.slice(range) }
            }
        })
    }

    /// Writes it as tensor number `tensor` of a file.
    ///
    /// # Errors
    /// An earlier launch failed, or the file cannot be written to.
    pub fn save(&self, device: &Device, file: &mut Writer, tensor: usize) -> Result<()> {
        for piece in self.pieces() {
            file.write(tensor, piece.start * self.width(), &self.slice(piece.clone()).download(device)?)?;
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
        for piece in self.pieces() {
            let mut bytes = vec![0; piece.len() * self.width()];
            file.read(name, piece.start * self.width(), &mut bytes)?;
            self.slice(piece).upload(device, &bytes)?;
        }
        Ok(())
    }

    /// What is in host memory at a time.
    fn pieces(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        pieces(0..self.len(), PIECE_BYTES / self.width())
    }

    fn download(&self, device: &Device) -> Result<Vec<u8>> {
        match &self.0 {
            Parts::Whole { bytes, .. } => device.download(bytes),
            Parts::OnHost { memory, range, .. } => device.read_pinned(memory, range.clone()),
            Parts::Split { weights, low } => {
                let (weights, low) = (device.download(weights)?, device.download(low)?);
                let masters = weights.into_iter().zip(low).map(|(weight, low)| weight.join(low).to_le_bytes());
                Ok(masters.collect::<Vec<_>>().into_flattened())
            }
        }
    }

    fn upload(&self, device: &Device, from: &[u8]) -> Result<()> {
        match &self.0 {
            Parts::Whole { bytes, .. } => device.copy_in(bytes, from),
            Parts::OnHost { memory, range, .. } => device.write_pinned(memory, range.start, from),
            Parts::Split { weights, low } => {
                let masters = from.as_chunks().0.iter().map(|&bytes| bf16::split(f32::from_le_bytes(bytes)));
                let (high, rest): (Vec<bf16>, Vec<u16>) = masters.unzip();
                device.copy_in(weights, &high)?;
                device.copy_in(low, &rest)
            }
        }
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
