//! `train.recompute`: what the backward pass computes again, alike in all layers or layer by layer.

use std::{fmt, str::FromStr};

use anyhow::{Context, Error, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::model::Rung;

/// A rung for all layers, or rungs with so many layers each, from the first that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Recompute {
    /// One rung for every layer.
    All(Rung),
    /// `gate_up:15,attention:17`.
    Layers(Vec<(Rung, usize)>),
}

impl Default for Recompute {
    fn default() -> Self {
        Self::All(Rung::None)
    }
}

impl Recompute {
    /// The rung of each of so many layers.
    ///
    /// # Errors
    /// The rungs are for another number of layers.
    pub fn levels(&self, layers: usize) -> Result<Vec<Rung>> {
        let parts = match self {
            Self::All(rung) => return Ok(vec![*rung; layers]),
            Self::Layers(parts) => parts,
        };
        let levels: Vec<Rung> = parts.iter().flat_map(|&(rung, count)| vec![rung; count]).collect();
        ensure!(
            levels.len() == layers,
            "`train.recompute` = \"{self}\" names {} layers, the model has {layers}: name each, as in \"gate_up:1,none:{}\"",
            levels.len(),
            layers - 1
        );
        Ok(levels)
    }

    /// What gives these rungs again.
    pub fn of(levels: &[Rung]) -> Self {
        let mut parts: Vec<(Rung, usize)> = Vec::new();
        for &rung in levels {
            match parts.last_mut() {
                Some((last, count)) if *last == rung => *count += 1,
                _ => parts.push((rung, 1)),
            }
        }
        match parts[..] {
            [] => Self::default(),
            [(rung, _)] => Self::All(rung),
            _ => Self::Layers(parts),
        }
    }
}

impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(rung) => rung.fmt(f),
            Self::Layers(parts) => {
                let parts: Vec<String> = parts.iter().map(|(rung, count)| format!("{rung}:{count}")).collect();
                f.write_str(&parts.join(","))
            }
        }
    }
}

impl FromStr for Recompute {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if !text.contains(':') {
            return Ok(Self::All(text.parse()?));
        }
        let part = |part: &str| -> Result<(Rung, usize)> {
            let (rung, count) = part.split_once(':').with_context(|| format!("`{part}`: write RUNG:LAYERS"))?;
            let count = count.trim().parse().ok().filter(|count| (1..1 << 20).contains(count));
            Ok((rung.trim().parse()?, count.with_context(|| format!("`{part}`: a number of layers of 1 or more"))?))
        };
        Ok(Self::Layers(text.split(',').map(part).collect::<Result<_>>()?))
    }
}

impl TryFrom<String> for Recompute {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Recompute> for String {
    fn from(recompute: Recompute) -> Self {
        recompute.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written() {
        for text in ["none", "attention", "block", "gate_up:15,attention:17", "qkv:1,none:2,block:1"] {
            let read: Recompute = text.parse().unwrap();
            assert_eq!(read.to_string(), text);
            let layers = match &read {
                Recompute::Layers(parts) => parts.iter().map(|(_, count)| count).sum(),
                _ => 3,
            };
            assert_eq!(Recompute::of(&read.levels(layers).unwrap()), read);
        }
        let refused = |text: &str| format!("{:#}", text.parse::<Recompute>().unwrap_err());
        assert!(refused("gate").contains("there are none, attention"), "{}", refused("gate"));
        assert_eq!(refused("qkv:2,block"), "`block`: write RUNG:LAYERS");
        assert_eq!(refused("qkv:0"), "`qkv:0`: a number of layers of 1 or more");
        let why = "qkv:2,none:1".parse::<Recompute>().unwrap().levels(4).unwrap_err().to_string();
        assert!(why.contains("names 3 layers, the model has 4"), "{why}");
    }
}
