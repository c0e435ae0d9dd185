//! How much of a layer the backward pass computes again: a ladder, and the climb.
//!
//! What is dropped lies in one slot for all layers, where the next layer's forward pass overwrites it. The same entry points
//! with the same shapes write it there again, so the bits are those of a plan that keeps everything.

use std::{fmt, str::FromStr};

use anyhow::{Result, bail};

use super::{Batch, Model};
use crate::device::Float;

/// What a layer drops. Each rung drops what those before it do, and something more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// Nothing.
    #[default]
    None,
    /// What attention gives, and its softmaxes' denominators.
    Attention,
    /// The gate and up of the MLP.
    GateUp,
    /// Queries, keys and values, and what their norms keep.
    Qkv,
    /// All but the stream that enters the layer.
    Block,
}

impl Rung {
    /// From the one that keeps everything down.
    pub const ALL: [Self; 5] = [Self::None, Self::Attention, Self::GateUp, Self::Qkv, Self::Block];

    /// As people write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Attention => "attention",
            Self::GateUp => "gate_up",
            Self::Qkv => "qkv",
            Self::Block => "block",
        }
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Rung {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|rung| rung.name() == text) {
            Some(rung) => Ok(rung),
            None => bail!("`{text}`: there are {}", Self::ALL.map(Self::name).join(", ")),
        }
    }
}

impl<T: Float> Model<T> {
    /// Writes into the slot again what a layer dropped, just before its backward pass: then only the stream's gradient lives
    /// in the scratch. The last layer's is still whole.
    pub(super) fn recompute(&self, batch: &Batch, index: usize) -> Result<()> {
        let (layout, layers) = (self.params.layout(), &self.plan.spans.layers);
        let (rung, ranges, layer) = (self.plan.levels[index], &layout.layers[index], &layers[index]);
        if index + 1 == layers.len() {
            return Ok(());
        }
        if rung >= Rung::Qkv {
            self.project_qkv(batch, index, ranges, layer)?;
        }
        if rung >= Rung::Attention {
            self.attend(batch, index, layer)?;
        }
        if rung >= Rung::Block {
            self.leave_attention(batch.tokens, ranges, layer)?;
        }
        if rung < Rung::GateUp {
            return Ok(());
        }
        let inner = self.enter_mlp(batch.tokens, ranges, layer)?;
        if rung < Rung::Block || ranges.after_mlp.is_none() {
            return Ok(());
        }
        // The next layer's stream gets the bits it has.
        self.leave_mlp(ranges, layer, &inner, &self.stream(batch.tokens, index + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rung_is_read_as_it_is_written() {
        for rung in Rung::ALL {
            assert_eq!(rung.to_string().parse::<Rung>().unwrap(), rung);
        }
        let why = "all".parse::<Rung>().unwrap_err().to_string();
        assert_eq!(why, "`all`: there are none, attention, gate_up, qkv, block");
    }
}
