//! Which tool a YAML file is for, and what the tool does where the file is silent.

use anyhow::{Result, bail};
use serde_json::{Map, Value};

use crate::config::names::{self, NAMES};

/// A tool that trains from a YAML file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    Trl,
    Axolotl,
    LlamaFactory,
}

impl Tool {
    const ALL: [Self; 3] = [Self::Trl, Self::Axolotl, Self::LlamaFactory];

    /// The tool most of whose own settings the file has.
    ///
    /// # Errors
    /// None of the file's keys is one that only one of the tools has.
    pub(super) fn of(keys: &Map<String, Value>) -> Result<Self> {
        // What decides by itself: the model and the method have other names in each.
        for (key, tool) in
            [("base_model", Self::Axolotl), ("stage", Self::LlamaFactory), ("finetuning_type", Self::LlamaFactory)]
        {
            if keys.contains_key(key) {
                return Ok(tool);
            }
        }
        let own = |tool: Self| {
            keys.keys().filter(|key| owners(key).is_some_and(|tools| tools == tool.letter().to_string())).count()
        };
        match Self::ALL.into_iter().max_by_key(|tool| own(*tool)).filter(|tool| own(*tool) > 0) {
            Some(tool) => Ok(tool),
            None if keys.contains_key("model_name_or_path") => Ok(Self::Trl),
            None => bail!(
                "no setting of TRL, axolotl or LLaMA-Factory is in it: name the file that one of them trains from"
            ),
        }
    }

    pub(super) fn name(self) -> &'static str {
        names::TOOLS[self as usize].1
    }

    pub(super) fn letter(self) -> char {
        names::TOOLS[self as usize].0
    }

    /// Rows of a device and step.
    pub(super) fn batch(self) -> u64 {
        if self == Self::Axolotl { 1 } else { 8 }
    }

    /// By the loss: TRL's trainers have their own.
    pub(super) fn learning_rate(self, loss: &str) -> f64 {
        match (self, loss) {
            (Self::Trl, "sft" | "sft_mean") => 2e-5,
            (Self::Trl, _) => 1e-6,
            _ => 5e-5,
        }
    }

    /// What it calls the schedule.
    pub(super) fn schedule_key(self) -> &'static str {
        if self == Self::Axolotl { "lr_scheduler" } else { "lr_scheduler_type" }
    }

    pub(super) fn schedule(self) -> &'static str {
        if self == Self::Axolotl { "cosine" } else { "linear" }
    }

    /// Tokens of prompt and response together.
    pub(super) fn length(self) -> u64 {
        match self {
            Self::Trl => 1024,
            Self::Axolotl => 512,
            Self::LlamaFactory => 2048,
        }
    }

    pub(super) fn epochs(self) -> u64 {
        if self == Self::Axolotl { 1 } else { 3 }
    }
}

fn owners(key: &str) -> Option<&'static str> {
    NAMES.iter().find(|name| name.name == key).map(|name| name.tools)
}
