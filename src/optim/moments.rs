//! What AdamW remembers of a run of weights, in as many bits as the run gives it.

use std::ops::Range;

use anyhow::{Result, ensure};
use half::bf16;
use serde::{Deserialize, Serialize};

use crate::{
    device::{Buffer, Device, Float},
    model::AnyBuffer,
    ops::{
        adamw::{self, Hyper, Tensors},
        adamw_8bit::{self, BLOCK},
        adamw_bf16,
    },
    rng::Draw,
};

/// How many bits AdamW's two moments take of matrices and tables; those of vectors are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Moments {
    /// 8 bytes a parameter, exact.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// 4 bytes a parameter; an update is off by 1 to 2 %, at random.
    #[serde(rename = "bf16")]
    Bf16,
    /// 2 bytes a parameter and 2 for every 256; an update is off by about 10 %, at random.
    #[serde(rename = "8bit")]
    Eight,
}

impl Moments {
    /// Bytes of both moments of so many elements of matrices and tables.
    pub(super) fn bytes(self, elements: usize) -> usize {
        match self {
            Self::F32 => 8 * elements,
            Self::Bf16 => 4 * elements,
            Self::Eight => 2 * (elements + elements.div_ceil(BLOCK)),
        }
    }

    /// Refuses elements that do not begin where a block does.
    ///
    /// # Errors
    /// As it says.
    pub(super) fn check(self, first: usize) -> Result<()> {
        ensure!(
            self != Self::Eight || first.is_multiple_of(BLOCK),
            "moments in 8 bits: a group begins at element {first}, not at a multiple of {BLOCK}"
        );
        Ok(())
    }

    /// Bytes of each part of so many elements' moments, in the order of [`State::parts`].
    pub(super) fn part_bytes(self, elements: usize) -> Vec<usize> {
        match self {
            Self::F32 => vec![4 * elements; 2],
            Self::Bf16 => vec![2 * elements; 2],
            Self::Eight => {
                let blocks = elements.div_ceil(BLOCK);
                vec![elements, elements, blocks, blocks]
            }
        }
    }
}

/// Both moments of some elements of the arena.
#[derive(Clone)]
pub(super) enum State {
    F32([Buffer<f32>; 2]),
    Bf16([Buffer<bf16>; 2]),
    Eight(adamw_8bit::Moments),
}

impl State {
    /// Zeros.
    ///
    /// # Errors
    /// The device is out of memory.
    pub(super) fn new(device: &Device, moments: Moments, elements: usize) -> Result<Self> {
        Ok(match moments {
            Moments::F32 => Self::F32([device.zeros(elements)?, device.zeros(elements)?]),
            Moments::Bf16 => Self::Bf16([device.zeros(elements)?, device.zeros(elements)?]),
            Moments::Eight => {
                let blocks = elements.div_ceil(BLOCK);
                let (m, v) = (device.zeros(elements)?, device.zeros(elements)?);
                let (m_exponents, v_exponents) = (device.zeros(blocks)?, device.zeros(blocks)?);
                Self::Eight(adamw_8bit::Moments { m, v, m_exponents, v_exponents })
            }
        })
    }

    /// The moments of some of the elements.
    pub(super) fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::F32(both) => Self::F32(both.each_ref().map(|moment| moment.slice(range.clone()))),
            Self::Bf16(both) => Self::Bf16(both.each_ref().map(|moment| moment.slice(range.clone()))),
            Self::Eight(adamw_8bit::Moments { m, v, m_exponents, v_exponents }) => {
                let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
                let [m, v] = [m, v].map(|codes| codes.slice(range.clone()));
                let [m_exponents, v_exponents] = [m_exponents, v_exponents].map(|all| all.slice(blocks.clone()));
                Self::Eight(adamw_8bit::Moments { m, v, m_exponents, v_exponents })
            }
        }
    }

    /// A step of the elements `range` of the arena, of which this has those from `start` on.
    ///
    /// # Errors
    /// A launch fails.
    pub(super) fn step<T: Float, G: Float>(
        &self,
        device: &Device,
        tensors: &Tensors<T, G>,
        hyper: Hyper,
        draw: Draw,
        (range, start): (&Range<usize>, usize),
    ) -> Result<()> {
        match self.slice(range.start - start..range.end - start) {
            Self::F32([m, v]) => adamw::step(device, tensors, [&m, &v], hyper),
            Self::Bf16([m, v]) => adamw_bf16::step(device, tensors, [&m, &v], hyper, draw, range.start),
            Self::Eight(moments) => adamw_8bit::step(device, tensors, &moments, hyper, draw, range.start),
        }
    }

    /// The bytes of each buffer, in the order of [`tensors`](Self::tensors).
    pub(super) fn parts(&self) -> Vec<Buffer<u8>> {
        match self {
            Self::F32(both) => both.iter().map(Buffer::cast).collect(),
            Self::Bf16(both) => both.iter().map(Buffer::cast).collect(),
            Self::Eight(adamw_8bit::Moments { m, v, m_exponents, v_exponents }) => {
                [m, v, m_exponents, v_exponents].map(Buffer::cast).into()
            }
        }
    }

    /// By the names of a checkpoint; `vectors` if they are beside others.
    pub(super) fn tensors(&self, vectors: bool) -> Vec<(&'static str, AnyBuffer)> {
        let [m_name, v_name] = if vectors { ["m_vectors", "v_vectors"] } else { ["m", "v"] };
        match self {
            Self::F32([m, v]) => vec![(m_name, m.into()), (v_name, v.into())],
            Self::Bf16([m, v]) => vec![(m_name, m.into()), (v_name, v.into())],
            Self::Eight(adamw_8bit::Moments { m, v, m_exponents, v_exponents }) => vec![
                (m_name, m.into()),
                (v_name, v.into()),
                ("m_exponents", m_exponents.into()),
                ("v_exponents", v_exponents.into()),
            ],
        }
    }
}
