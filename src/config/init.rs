//! A first configuration: for a model folder and a data file, or from the YAML that TRL, axolotl or LLaMA-Factory trains from.

mod draft;
mod foreign;
mod limits;
mod losses;
mod rows;
mod tool;
mod values;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::{Config, hub, source::Origins};
use crate::{loss::find, model::ModelConfig};
pub use draft::{Draft, LeftOut};
use foreign::Foreign;
use rows::Rows;
use tool::Tool;

/// What the command line names.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given<'a> {
    /// A model folder, or an id of the hub.
    pub model: Option<&'a Path>,
    /// A data file.
    pub data: Option<&'a Path>,
    /// Where the configuration is written; its paths are relative to that folder.
    pub out: Option<&'a Path>,
}

impl Given<'_> {
    /// A path of the command line as the file has it.
    fn written(&self, path: &Path) -> Result<String> {
        let here = std::env::current_dir().context("the current folder cannot be read")?;
        let folder = self.out.and_then(Path::parent).map_or_else(|| here.clone(), |folder| here.join(folder));
        let stays = folder == here || path.is_absolute() || path.starts_with("~");
        let path = if stays { path.to_owned() } else { here.join(path) };
        let text = path.to_str().with_context(|| format!("{}: the name is not UTF-8: rename it", path.display()))?;
        Ok(text.to_owned())
    }

    /// The folder of the model, and what its `config.json` says.
    fn model(&self) -> Result<Option<(PathBuf, ModelConfig)>> {
        let Some(path) = self.model else { return Ok(None) };
        let here = std::env::current_dir().context("the current folder cannot be read")?;
        let name = path.to_str().with_context(|| format!("{}: the name is not UTF-8: rename it", path.display()))?;
        let folder = hub::model_folder(name, &here)?;
        let model = ModelConfig::load(&folder)?;
        Ok(Some((folder, model)))
    }

    /// The model as the file has it: an id stays one.
    fn written_model(&self, path: &Path) -> Result<String> {
        if path.exists() { self.written(path) } else { Ok(path.display().to_string()) }
    }
}

/// A configuration for a model and a file of rows: the loss by the form of the rows, the limits by their lengths.
///
/// # Errors
/// One of them is not named or cannot be read.
pub fn fresh(given: &Given) -> Result<Draft> {
    let (Some(path), Some(data)) = (given.model, given.data) else { bail!("name a model and a data file") };
    let (folder, model) = given.model()?.context("name a model")?;
    let rows = Rows::look(data, &folder, &model)?;
    let mut draft = Draft::default();
    head(&mut draft);
    draft.set("model.path", given.written_model(path)?, "");
    draft.set("data.train", given.written(data)?, rows.describe());
    draft.suggest("data.eval", "held-out.jsonl", "");
    draft.suggest("data.eval_fraction", 0.05, "");
    limits::by_rows(&mut draft, &rows, model.positions);
    let loss = find(rows.loss())?;
    draft.add_loss(loss, format!("This one learns from {}.", rows.form.describe()));
    draft.set("batch.pairs", 16, "");
    let rate = if loss.reference { 1e-6 } else { 1e-5 };
    let words = "Suits models of a billion parameters and more, all of whose weights are trained; small ones take ten times as much.";
    draft.set("optim.lr", rate, words);
    draft.set("optim.schedule", "cosine", "");
    draft.set("optim.warmup_ratio", 0.1, "");
    draft.set("train.epochs", 1, "");
    draft.suggest("train.steps", 100, "");
    draft.suggest("train.eval_every", 50, "Counts once there are held-out rows.");
    draft.set("train.save_every", 0, "One comes after 30 minutes without a checkpoint as well.");
    draft.set("train.log_every", 10, "");
    draft.set("train.precision", "auto", "");
    checked(draft)
}

/// A configuration that does what a YAML file of another tool says, as far as it can be done; the rest is listed.
///
/// # Errors
/// The file is of no tool that is known, trains in a way that there is not, or has a value that makes no sense; or what the
/// command line names cannot be read.
pub fn carried_over(keys: &Map<String, Value>, file: &Path, given: &Given) -> Result<Draft> {
    let shown = || format!("{}", file.display());
    let tool = Tool::of(keys).with_context(shown)?;
    let model = given.model()?;
    let rows = match (&model, given.data) {
        (Some((folder, model)), Some(data)) => Some(Rows::look(data, folder, model)?),
        _ => None,
    };
    let mut foreign = Foreign::new(keys, tool);
    head(&mut foreign.draft);
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    foreign.draft.say(format!("From {name}, which is a file of {}: a line says what it was there.", tool.name()));
    let convert = |foreign: &mut Foreign| {
        foreign.losses(file, rows.as_ref().map(Rows::loss))?;
        foreign.model(given)?;
        foreign.data(given, rows.as_ref())?;
        foreign.lengths(rows.as_ref(), model.as_ref().map(|(_, model)| model.positions))?;
        foreign.convert()
    };
    convert(&mut foreign).with_context(shown)?;
    checked(foreign.draft)
}

fn head(draft: &mut Draft) {
    draft.say("`warpo data RUN.toml --show 3` shows what the rows become, `warpo train RUN.toml` trains.");
    draft.say("docs/configuration.md has every key; what is not here has its default.");
}

/// Nothing is given away that would be refused.
fn checked(draft: Draft) -> Result<Draft> {
    let text = draft.to_toml();
    let config: Config = toml::from_str(&text).context("what came of it is no configuration")?;
    config.check(&Origins::default()).context("what came of it would be refused")?;
    Ok(draft)
}
