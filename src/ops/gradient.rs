//! Where the gradient of a weight is added up: in f32, or in bf16 with additions that are rounded by chance.

use std::ops::Range;

use half::bf16;

use crate::{
    device::{Buffer, DType},
    rng::Draw,
};

/// Parts of a micro-batch that round the same element apart.
const PARTS: u32 = 256;

/// The gradient of some weights.
#[derive(Clone)]
pub enum Gradient {
    /// Added to.
    F32(Buffer<f32>),
    /// Overwritten by the first of a step, and added to by the others.
    Bf16(Narrow),
}

/// A gradient in bf16. A product that overwrites it rounds to nearest; one that adds to it rounds by chance, so that nothing is
/// lost on average. Which random bits it takes depends on an element's place in the arena alone.
#[derive(Clone)]
pub struct Narrow {
    /// The gradient.
    pub buffer: Buffer<bf16>,
    /// Its first element's place in the arena, a multiple of 8.
    pub first: usize,
    /// Whose random bits.
    pub draw: Draw,
    /// 2 times the micro-batch, counted through the step; 1 more for the embedding's addition. Eight bits above 16 count the
    /// products of one micro-batch.
    pub part: u32,
    /// Whether nothing is there yet.
    pub fresh: bool,
}

impl Gradient {
    /// Elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(buffer) => buffer.len(),
            Self::Bf16(narrow) => narrow.buffer.len(),
        }
    }

    /// True for no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Of its elements.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::Bf16(_) => DType::Bf16,
        }
    }

    /// Some of it.
    ///
    /// # Panics
    /// The range does not lie within.
    pub fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(buffer) => Self::F32(buffer.slice(range)),
            Self::Bf16(narrow) => Self::Bf16(Narrow {
                first: narrow.first + range.start,
                buffer: narrow.buffer.slice(range),
                ..narrow.clone()
            }),
        }
    }

    /// What the product number `count` of one micro-batch adds to: the first, 0, may overwrite.
    pub(super) fn after(&self, count: usize) -> Self {
        match self {
            Self::Bf16(narrow) if count > 0 => {
                let part = narrow.part | (count as u32 % PARTS) << 16;
                Self::Bf16(Narrow { fresh: false, part, ..narrow.clone() })
            }
            _ => self.clone(),
        }
    }
}

impl From<&Buffer<f32>> for Gradient {
    fn from(buffer: &Buffer<f32>) -> Self {
        Self::F32(buffer.clone())
    }
}
