//! The model card of a run: `README.md` of its final model, as the Hugging Face hub reads it.
//!
//! It says what the weights are and nothing of the machine: runs of the same bits have the same card.

use std::path::{Component, Path};

use super::checkpoint::State;
use crate::{
    config::{Config, Files, Init},
    report::{
        history::History,
        numbers::{label, short},
        summary,
    },
};

/// How a folder of the hub's cache begins whose repository is a model's.
const REPOSITORY: &str = "models--";

/// The card of the model that the run in `out` ends with.
pub fn card(out: &Path, config: &Config, state: &State) -> String {
    let losses: Vec<&str> = config.loss.0.iter().filter_map(|loss| loss.get("name")?.as_str()).collect();
    let base = Base::of(config);
    format!(
        "{}\n# {}, trained with {}\n\n{}\n\n## Data\n\n{}\n\n## Results\n\n{}\n## Configuration\n\n\
         The settings that alter the run, as `warpo train` reads them:\n\n```toml\n{}\n```\n",
        head(&base, &losses),
        base.name,
        losses.join(" and "),
        base.told(),
        data(config, state),
        figures(out),
        state.settings.trim_end()
    )
}

/// What the hub reads: its page of model cards, section "Model card metadata".
fn head(base: &Base, losses: &[&str]) -> String {
    let id = base.id.as_ref().map_or(String::new(), |id| format!("base_model: {id}\n"));
    let tags: String = ["warpo"].iter().chain(losses).map(|tag| format!("- {}\n", tag.replace('_', "-"))).collect();
    format!("---\nlibrary_name: transformers\npipeline_tag: text-generation\n{id}tags:\n{tags}---\n")
}

/// The model a run began with.
struct Base {
    /// Its folder's last name, or its id's.
    name: String,
    /// On the hub, if it came from its cache.
    id: Option<String>,
    random: bool,
}

impl Base {
    fn of(config: &Config) -> Self {
        let path = &config.model.path;
        let mut parts =
            path.components().filter_map(|part| if let Component::Normal(part) = part { part.to_str() } else { None });
        let id = parts.clone().find_map(|part| part.strip_prefix(REPOSITORY)).map(|id| id.replace("--", "/"));
        let name = id.as_deref().and_then(|id| id.split('/').next_back()).or(parts.next_back()).unwrap_or("model");
        let random = config.model.init == Init::Random;
        Self { name: name.to_owned(), id: id.clone().filter(|_| !random), random }
    }

    fn told(&self) -> String {
        let from =
            self.id.as_ref().map_or(format!("`{}`", self.name), |id| format!("[{id}](https://huggingface.co/{id})"));
        match self.random {
            true => format!("Trained by warpo from a random start in the shape of {from}."),
            false => format!("Trained by warpo from {from}."),
        }
    }
}

/// Files and amounts.
fn data(config: &Config, state: &State) -> String {
    let names = |files: &Files| {
        let names = files.0.iter().map(|file| file.path.file_name().unwrap_or_default().to_string_lossy());
        names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    };
    let held_out = match (&config.data.eval, config.data.eval_fraction) {
        (Some(files), _) => format!(" Held out: {}.", names(files)),
        (None, share) if share > 0.0 => format!(" Held out: {share} of the rows."),
        _ => String::new(),
    };
    format!(
        "{} steps, {} epochs of {}: {} tokens, prompts that responses share counted once.{held_out}",
        state.step,
        label(state.epoch),
        names(&config.data.train),
        state.num_tokens
    )
}

/// The last figures of the run. Without its records there are none to give.
fn figures(out: &Path) -> String {
    let Ok(run) = History::read(out) else { return "The records of the run are gone.\n".into() };
    let number = |value: Option<f64>| value.map_or(String::new(), short);
    let mut text = "| after the last step | training | held out |\n| --- | ---: | ---: |\n".to_owned();
    for row in summary::rows(&run) {
        let [training, held_out] = row.sides.map(|side| number(side.last));
        text += &format!("| `{}` | {training} | {held_out} |\n", row.name);
    }
    text
}
