//! Which loss another tool's file trains with, and its parameters.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{foreign::Foreign, tool::Tool, values};
use crate::{
    config::names::{self, Name},
    loss::{Definition, find},
};

/// Words in the names of a file, its output folder and its model by which people say which trainer it is for.
const TRAINERS: [&str; 6] = ["orpo", "simpo", "kto", "cpo", "dpo", "sft"];
/// What trains on samples of the policy itself, or another kind of model.
const ELSEWHERE: [&str; 10] = ["grpo", "gdpo", "ppo", "rloo", "online_dpo", "ebft", "rm", "prm", "reward", "bnpo"];

/// A loss and why it is this one.
struct Found {
    loss: &'static Definition,
    why: String,
}

fn found(name: &str, why: impl Into<String>) -> Result<Found> {
    Ok(Found { loss: find(name)?, why: why.into() })
}

impl Foreign<'_> {
    /// Finds the loss and its parameters; `usual` is what the rows are for, if rows are known.
    pub(super) fn losses(&mut self, file: &Path, usual: Option<&'static str>) -> Result<()> {
        let found = match self.tool {
            Tool::Trl => self.of_trl(file, usual)?,
            Tool::Axolotl => vec![self.of_axolotl()?],
            Tool::LlamaFactory => vec![self.of_llama_factory()?],
        };
        let weights = self.weights(found.len())?;
        for (at, Found { loss, why }) in found.into_iter().enumerate() {
            self.draft.add_loss(loss, why);
            if let Some(weight) = weights.get(at) {
                self.draft.set_parameter(at, "weight", (*weight).into(), "`loss_weights` there".into());
            }
        }
        self.parameters();
        Ok(())
    }

    /// The name under one key, as a loss.
    fn named(&mut self, key: &str) -> Result<Option<Found>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let name = value.as_str().with_context(|| format!("`{key}` = {value}: is no name"))?;
        self.of_name(key, name).map(Some)
    }

    fn of_name(&self, key: &str, name: &str) -> Result<Found> {
        ensure!(
            !ELSEWHERE.contains(&name),
            "`{key}` = \"{name}\": it trains on samples of the policy, or another kind of model, which is not done here"
        );
        // TRL's `kto_pair` and LLaMA-Factory's `pt` are `kto` and `sft` under other names.
        let here = match name {
            "pt" => "sft",
            "kto_pair" => "kto",
            name => name,
        };
        found(here, format!("`{key}` \"{name}\" there")).with_context(|| format!("`{key}` = \"{name}\""))
    }

    /// TRL's files do not name their trainer.
    fn of_trl(&mut self, file: &Path, usual: Option<&'static str>) -> Result<Vec<Found>> {
        for key in ["num_generations", "reward_funcs", "reward_model_path"] {
            ensure!(self.look(key).is_none(), "`{key}`: it trains on samples of the policy, which is not done here");
        }
        if let Some(Value::Array(names)) = self.look("loss_type") {
            self.take("loss_type");
            let names = names.iter().map(|name| self.of_name("loss_type", name.as_str().unwrap_or_default()));
            return names.collect();
        }
        if let Some(one) = self.named("loss_type")? {
            return Ok(vec![one]);
        }
        const GUESSED: &str = "TRL's files do not name the trainer; taken to be this one by";
        if self.look("desirable_weight").is_some() || self.look("undesirable_weight").is_some() {
            return Ok(vec![found("kto", format!("{GUESSED} `desirable_weight`"))?]);
        }
        let texts = ["output_dir", "hub_model_id", "run_name"]
            .map(|key| (key, self.look(key).and_then(Value::as_str).unwrap_or_default().to_lowercase()));
        let path = file.to_string_lossy().to_lowercase();
        for trainer in TRAINERS {
            // A model that is called after its supervised training says nothing about this one.
            let said = texts.iter().find(|(_, text)| text.contains(trainer)).map(|(key, _)| format!("`{key}`"));
            let said = said.or_else(|| path.contains(trainer).then(|| "the name of the file".to_owned()));
            if let Some(said) = said.filter(|_| trainer != "sft" || self.look("beta").is_none()) {
                return Ok(vec![found(trainer, format!("{GUESSED} {said}"))?]);
            }
        }
        if let Some(key) =
            ["beta", "max_prompt_length", "precompute_ref_log_probs"].into_iter().find(|key| self.look(key).is_some())
        {
            return Ok(vec![found("dpo", format!("{GUESSED} `{key}`"))?]);
        }
        Ok(vec![match usual {
            Some(usual) => found(usual, "TRL's files do not name the trainer; this one is for the rows")?,
            None => found("sft", format!("{GUESSED} its having no `beta`"))?,
        }])
    }

    fn of_axolotl(&mut self) -> Result<Found> {
        if let Some(reward) =
            ["reward_model", "process_reward_model"].into_iter().find(|key| self.look(key).is_some_and(|on| on == true))
        {
            bail!("`{reward}`: it trains a model of rewards, which is not done here");
        }
        let method = self.look("rl").and_then(Value::as_str);
        if method == Some("dpo")
            && let Some(loss) = self.named("dpo_loss_type")?
        {
            self.take("rl");
            return Ok(Found { why: format!("{}, `rl` \"dpo\"", loss.why), ..loss });
        }
        Ok(self.named("rl")?.unwrap_or(found("sft", "there is no `rl` there")?))
    }

    fn of_llama_factory(&mut self) -> Result<Found> {
        let stage = self.look("stage").and_then(Value::as_str).unwrap_or("sft").to_owned();
        if stage == "dpo"
            && let Some(loss) = self.named("pref_loss")?
        {
            self.take("stage");
            return Ok(Found { why: format!("{}, `stage` \"dpo\"", loss.why), ..loss });
        }
        Ok(self.named("stage")?.unwrap_or(found("sft", "LLaMA-Factory's default")?))
    }

    /// TRL's `loss_weights`, one a loss.
    fn weights(&mut self, losses: usize) -> Result<Vec<f64>> {
        let Some(Value::Array(weights)) = self.look("loss_weights") else { return Ok(Vec::new()) };
        ensure!(weights.len() == losses, "`loss_weights` has {} numbers and `loss_type` {losses} names", weights.len());
        let read =
            |weight: &Value| values::number(weight).with_context(|| format!("`loss_weights`: {weight} is no number"));
        let found = weights.iter().map(read).collect::<Result<Vec<_>>>()?;
        self.take("loss_weights");
        Ok(found)
    }

    /// Parameters by the table of names, as far as the loss has them.
    fn parameters(&mut self) {
        let losses: Vec<_> = self.draft.losses().collect();
        for known in names::NAMES {
            let Name { name, tools, key: Some(key), .. } = known else { continue };
            let Some(parameter) = key.strip_prefix("loss.").filter(|key| !matches!(*key, "name" | "weight")) else {
                continue;
            };
            let Some(value) = self.look(name).filter(|_| tools.contains(self.tool.letter())) else { continue };
            let Some(written) = values::number(value).map(toml::Value::Float).or_else(|| values::to_toml(value)) else {
                continue;
            };
            let mut taken = 0;
            for (at, loss) in losses.iter().enumerate() {
                let here = parameter_of(loss, parameter);
                taken += usize::from(self.draft.set_parameter(at, here, written.clone(), format!("`{name}` there")));
            }
            match taken {
                0 => {
                    let names: Vec<_> = losses.iter().map(|loss| format!("`{}`", loss.name)).collect();
                    let why =
                        format!("the loss {} has no `{parameter}`: `warpo losses` tells what it has", names.join(", "));
                    self.leave(name, why);
                }
                _ => drop(self.take(name)),
            }
        }
        self.silent(&losses);
    }

    /// What the tools take where their file is silent: 0.1 for every loss, and half as margin of SimPO.
    fn silent(&mut self, losses: &[&'static Definition]) {
        for (at, loss) in losses.iter().enumerate() {
            for (parameter, value) in [("beta", 0.1), ("simpo_gamma", 0.5)] {
                let here = parameter_of(loss, parameter);
                if !self.draft.has_parameter(at, here) {
                    let words = format!("not in the file: {}'s default", self.tool.name());
                    self.draft.set_parameter(at, here, value.into(), words);
                }
            }
        }
    }
}

/// What a loss calls the parameter that another tool calls `beta`.
fn parameter_of(loss: &Definition, parameter: &'static str) -> &'static str {
    let has = |name: &str| loss.all_parameters().any(|known| known.name == name);
    match parameter {
        "beta" if loss.name.ends_with("orpo") => "lambda",
        "beta" if !has("beta") && has("tau") => "tau",
        _ => parameter,
    }
}
