//! `train.recompute`: what the backward pass computes again: as much as it takes, alike in all layers, or layer by layer.

use std::{fmt, str::FromStr};

use anyhow::{Context, Error, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::model::Rung;

const AUTO: &str = "auto";

/// What the plan finds, a rung for all layers, or rungs with so many layers each, from the first that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Recompute {
    /// As much as it takes to fit.
    #[default]
    Auto,
    /// One rung for every layer.
    All(Rung),
    /// `gate_up:15,attention:17`.
    Layers(Vec<(Rung, usize)>),
}

impl Recompute {
    /// The rung of each of so many layers; `None` if the plan is to find them.
    ///
    /// # Errors
    /// The rungs are for another number of layers.
    pub fn levels(&self, layers: usize) -> Result<Option<Vec<Rung>>> {
        let parts = match self {
            Self::Auto => return Ok(None),
            Self::All(rung) => return Ok(Some(vec![*rung; layers])),
            Self::Layers(parts) => parts,
        };
        let levels: Vec<Rung> = parts.iter().flat_map(|&(rung, count)| vec![rung; count]).collect();
        ensure!(
            levels.len() == layers,
            "`train.recompute` = \"{self}\" names {} layers, the model has {layers}: name each, as in \"gate_up:1,none:{}\"",
            levels.len(),
            layers - 1
        );
        Ok(Some(levels))
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
            [] => Self::All(Rung::None),
            [(rung, _)] => Self::All(rung),
            _ => Self::Layers(parts),
        }
    }
}

impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str(AUTO),
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
        if text == AUTO {
            return Ok(Self::Auto);
        }
        if !text.contains(':') {
            let rungs = Rung::ALL.map(Rung::name).join(", ");
            let Ok(rung) = text.parse() else {
                bail!("`{text}`: expected {AUTO}, {rungs}, or rungs with layers as in \"gate_up:15,attention:17\"")
            };
            return Ok(Self::All(rung));
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
            assert_eq!(Recompute::of(&read.levels(layers).unwrap().unwrap()), read);
        }
        assert_eq!("auto".parse::<Recompute>().unwrap().levels(3).unwrap(), None);
        let refused = |text: &str| format!("{:#}", text.parse::<Recompute>().unwrap_err());
        assert!(refused("gate").contains("`gate`: expected auto, none, attention"), "{}", refused("gate"));
        assert_eq!(refused("qkv:2,block"), "`block`: write RUNG:LAYERS");
        assert_eq!(refused("qkv:0"), "`qkv:0`: a number of layers of 1 or more");
        let why = "qkv:2,none:1".parse::<Recompute>().unwrap().levels(4).unwrap_err().to_string();
        assert!(why.contains("names 3 layers, the model has 4"), "{why}");
    }
}
