//! What lies in a model folder beside the weights: what a saved folder takes over from the one a run began with, and
//! folders that are something else.

use std::{fs, io::Write, path::Path};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

use super::{CONFIG_FILE, ModelConfig, weights};
use crate::{
    device::DType,
    files::{LARGEST_TEXT, LARGEST_TOKENIZER, read_regular, write_whole},
};

const ADAPTER: &str = "adapter_config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
/// Read by processors and by warpo, not by tokenizers of transformers.
const TEMPLATE_JSON: &str = "chat_template.json";
/// Named templates, a file each.
const TEMPLATES: &str = "additional_chat_templates";
/// Python classes that a folder brings along.
const AUTO_MAP: &str = "auto_map";

/// What is taken over byte for byte.
const COPIED: [&str; 7] = [
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
];

/// Refuses a folder that holds an adapter, alone or beside a model: transformers would put it on top of the model.
///
/// # Errors
/// It does.
pub fn check(folder: &Path) -> Result<()> {
    let path = folder.join(ADAPTER);
    let Some(bytes) = read_regular(&path, LARGEST_TEXT)? else { return Ok(()) };
    let adapter: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let base = adapter["base_model_name_or_path"].as_str().unwrap_or("a base model it does not name");
    let beside = match folder.join(CONFIG_FILE).exists() {
        true => format!("; or remove {ADAPTER} to take the model beside it without the adapter"),
        false => String::new(),
    };
    bail!(
        "{}: a PEFT adapter for {base}, and adapters are not read: merge it into its base (merge_and_unload, then \
         save_pretrained) and name the merged folder{beside}",
        path.display()
    )
}

/// What a folder without `config.json` is, as far as its files say.
pub(super) fn without_config(folder: &Path) -> String {
    let path = folder.join(CONFIG_FILE);
    let others = weights::other_formats(folder);
    if !folder.exists() {
        return format!(
            "{}: there is no such folder: a model folder needs a {CONFIG_FILE} in the Hugging Face form",
            path.display()
        );
    }
    let found = match others.is_empty() {
        true => String::new(),
        false => format!(" (the folder holds {}: {})", others.join(", "), weights::CONVERT),
    };
    format!("{}: a model folder needs a {CONFIG_FILE} in the Hugging Face form{found}", path.display())
}

/// What saved folders get beside the weights and the config: the tokenizer's and generation's files of the folder a run
/// began with, the chat template it trained with, and Python files that these name. In memory, so that a run can save
/// whatever becomes of that folder.
#[derive(Clone, Debug, Default)]
pub struct Companions {
    /// Path inside the folder, and bytes.
    files: Vec<(String, Vec<u8>)>,
    /// The Python files that the config's `auto_map` names are among them.
    has_code: bool,
}

impl Companions {
    /// Those of a folder; `template` is a file whose template was trained with instead of the folder's.
    ///
    /// # Errors
    /// A file cannot be read, or is a Git LFS pointer.
    pub fn new(source: &Path, template: Option<&Path>) -> Result<Self> {
        let mut companions = Self::default();
        let python = python_files(source)?;
        // Half of the code is as bad as none: without the key the class of transformers itself is taken.
        let has_code = |map: &Map<String, Value>| {
            map.get(AUTO_MAP).is_some_and(|named| modules(named).iter().all(|module| python.contains(module)))
        };
        companions.has_code = read_object(&source.join(CONFIG_FILE))?.as_ref().is_some_and(has_code);
        let mut tokenizer = read_object(&source.join(TOKENIZER_CONFIG))?;
        let tokenizer_code = tokenizer.as_ref().is_some_and(has_code);
        if let Some(config) = tokenizer.as_mut().filter(|_| !tokenizer_code) {
            config.shift_remove(AUTO_MAP);
        }
        if companions.has_code || tokenizer_code {
            python.iter().try_for_each(|name| companions.take(source, name))?;
        }
        COPIED.iter().try_for_each(|name| companions.take(source, name))?;
        companions.take_templates(source, template, tokenizer)?;
        Ok(companions)
    }

    /// No files but the model's own.
    pub fn none() -> Self {
        Self::default()
    }

    /// Writes `config.json` and all companions into a folder; every file appears whole.
    ///
    /// # Errors
    /// A file cannot be written.
    pub(super) fn save(&self, config: &ModelConfig, dtype: DType, folder: &Path) -> Result<()> {
        let mut json = config.to_map(dtype);
        if !self.has_code {
            json.shift_remove(AUTO_MAP);
        }
        let config = (CONFIG_FILE.to_owned(), text_of(&json)?);
        for (name, bytes) in [&config].into_iter().chain(&self.files) {
            let path = folder.join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).with_context(|| format!("{}: cannot be made", parent.display()))?;
            }
            write_whole(&path, |out| Ok(out.write_all(bytes)?))?;
        }
        Ok(())
    }

    /// The template, and the tokenizer's config without one that it replaces.
    fn take_templates(
        &mut self,
        source: &Path,
        file: Option<&Path>,
        mut tokenizer: Option<Map<String, Value>>,
    ) -> Result<()> {
        // A pipe gave its text when the rows were encoded and has none left.
        let read = |path: &Path| {
            let there = || format!("`data.template` = {}: there is no such file", path.display());
            read_regular(path, LARGEST_TEXT)?.with_context(there)
        };
        let named = file.map(read).transpose()?;
        let template = named.clone().or(template_of_processor(source, tokenizer.as_ref())?);
        if let Some(template) = template {
            self.files.push((TEMPLATE.to_owned(), template));
            tokenizer.iter_mut().for_each(|config| drop(config.shift_remove("chat_template")));
        } else {
            self.take(source, TEMPLATE)?;
        }
        // Named templates, and the one of a processor, belong to the template that stands beside them.
        if named.is_none() {
            self.take(source, TEMPLATE_JSON)?;
            for name in names(&source.join(TEMPLATES))?.into_iter().filter(|name| name.ends_with(".jinja")) {
                self.take(source, &format!("{TEMPLATES}/{name}"))?;
            }
        }
        let Some(config) = tokenizer else { return Ok(()) };
        // Byte for byte, if nothing in it changed.
        if read_object(&source.join(TOKENIZER_CONFIG))?.as_ref() == Some(&config) {
            return self.take(source, TOKENIZER_CONFIG);
        }
        self.files.push((TOKENIZER_CONFIG.to_owned(), text_of(&config)?));
        Ok(())
    }

    /// Reads a file if it is there.
    fn take(&mut self, source: &Path, name: &str) -> Result<()> {
        let bytes = read_regular(&source.join(name), LARGEST_TOKENIZER)?;
        self.files.extend(bytes.map(|bytes| (name.to_owned(), bytes)));
        Ok(())
    }
}

/// Where only `chat_template.json` has a template, tokenizers of transformers do not find it: it becomes a file that they
/// do.
fn template_of_processor(source: &Path, tokenizer: Option<&Map<String, Value>>) -> Result<Option<Vec<u8>>> {
    let in_config = tokenizer.is_some_and(|config| config.get("chat_template").is_some_and(|value| !value.is_null()));
    if in_config || source.join(TEMPLATE).exists() {
        return Ok(None);
    }
    let found = read_object(&source.join(TEMPLATE_JSON))?;
    Ok(found.and_then(|found| Some(found.get("chat_template")?.as_str()?.as_bytes().to_vec())))
}

/// Python files named by an `auto_map`. A class of another repository, `owner/name--module.Class`, has none here.
fn modules(auto_map: &Value) -> Vec<String> {
    let classes = auto_map.as_object().into_iter().flat_map(Map::values);
    let names = classes.flat_map(|class| class.as_array().map_or(std::slice::from_ref(class), Vec::as_slice));
    let local = names.filter_map(Value::as_str).filter(|name| !name.contains("--"));
    local.filter_map(|name| Some(format!("{}.py", name.rsplit_once('.')?.0))).collect()
}

/// Python files of a folder: those that `auto_map` names may import the others.
fn python_files(folder: &Path) -> Result<Vec<String>> {
    let mut found = names(folder)?;
    found.retain(|name| name.ends_with(".py"));
    Ok(found)
}

/// Names of the files of a folder, in order; none if there is no folder.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    if !folder.is_dir() {
        return Ok(found);
    }
    for entry in fs::read_dir(folder).with_context(|| format!("{}: cannot be read", folder.display()))? {
        let entry = entry.with_context(|| format!("{}: cannot be read", folder.display()))?;
        if let Ok(name) = entry.file_name().into_string()
            && entry.path().is_file()
        {
            found.push(name);
        }
    }
    found.sort();
    Ok(found)
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(bytes) = read_regular(path, LARGEST_TEXT)? else { return Ok(None) };
    let broken = || format!("{}: broken JSON: restore the file", path.display());
    serde_json::from_slice(&bytes).map(Some).with_context(broken)
}

fn text_of(map: &Map<String, Value>) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(map)?;
    text.push(b'\n');
    Ok(text)
}
