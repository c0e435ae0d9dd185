//! Hugging Face chat templates: where a model folder keeps its templates, and rendering as `transformers` does it.
//!
//! Owns which template a row takes, the variables it gets and what a rendering may cost. The language itself is in
//! `jinja/`. Knows nothing about tokens.

use std::{collections::BTreeMap, fs, io::ErrorKind as Io, path::Path, sync::Arc};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use crate::files::{LARGEST_TEXT, read_named, read_regular};

pub mod date;
mod jinja;

pub use date::Date;
use jinja::{Budget, Template};
pub use jinja::{CODE, Used};

/// Variables that the data sets, never `template_kwargs`.
pub const RESERVED: [&str; 3] = ["messages", "tools", "add_generation_prompt"];
/// The folder of further templates, a file a name.
pub const NAMED: &str = "additional_chat_templates";

/// Steps and bytes that every rendering may use, and those for each byte of its conversation. No released template that
/// was tried comes near (`docs/checks.md`).
const STEPS: usize = 5_000_000;
const STEPS_PER_BYTE: usize = 200;
const BYTES: usize = 16 << 20;
const BYTES_PER_BYTE: usize = 24;
/// What no rendering may use, however long its conversation is: seconds of work.
const MOST_STEPS: usize = 100_000_000;

/// The chat templates of a model folder, compiled, with the special tokens they write.
#[derive(Debug)]
pub struct Templates {
    /// `None` where the folder has named templates alone.
    default: Option<Template>,
    /// The one for rows with tools, where the folder has one of its own.
    tool_use: Option<Template>,
    special: Map<String, Value>,
    /// Sources by name.
    texts: BTreeMap<String, String>,
    date: Date,
}

/// What a row gives its template beyond the messages.
#[derive(Clone, Copy, Debug)]
pub struct Variables<'a> {
    /// Tools the row offers.
    pub tools: &'a [Value],
    /// Later maps win.
    pub kwargs: [&'a Map<String, Value>; 2],
}

impl Templates {
    /// The template of `file`, else those of the model folder: `chat_template.jinja` and the files of
    /// `additional_chat_templates/`, then `chat_template` of `tokenizer_config.json`, then `chat_template.json`. `None` if
    /// there is none. `strftime_now` writes today.
    ///
    /// # Errors
    /// A file cannot be read, or a template is not Jinja.
    pub fn load(folder: &Path, file: Option<&Path>) -> Result<Option<Self>> {
        let config = read_json(&folder.join("tokenizer_config.json"))?;
        let (texts, place) = match file {
            Some(file) => {
                let text = named_file(file)?.with_context(|| {
                    format!("`data.template` = {}: there is no such file: name a Jinja chat template", file.display())
                })?;
                ([("default".to_owned(), text)].into(), file.to_path_buf())
            }
            None => {
                let named = folder.join(NAMED);
                let place = if named.is_dir() { named } else { folder.join("chat_template.jinja") };
                (in_files(folder)?, place)
            }
        };
        let (texts, place) = if texts.is_empty() { in_json(folder, &config)? } else { (texts, place) };
        if texts.is_empty() {
            return Ok(None);
        }
        let compile = |name: &str| {
            let compiled = texts.get(name).map(|text| Template::new(text)).transpose();
            let compiled = compiled.map_err(|fault| anyhow!("the chat template{fault}"));
            compiled.with_context(|| format!("chat template `{name}` of `{}`", place.display()))
        };
        let (default, tool_use) = (compile("default")?, compile("tool_use")?);
        ensure!(
            default.is_some() || tool_use.is_some(),
            "`{}`: no template is named `default` or `tool_use`: name one by data.template",
            place.display()
        );
        let special = special_tokens(folder, &config)?;
        Ok(Some(Self { default, tool_use, special, texts, date: Date::today() }))
    }

    /// The templates on another day.
    #[must_use]
    pub fn on(self, date: Date) -> Self {
        Self { date, ..self }
    }

    /// Whether what is rendered depends on the date.
    pub fn uses_date(&self) -> bool {
        self.default.iter().chain(&self.tool_use).any(|template| template.reads("strftime_now"))
    }

    /// Everything that determines what is rendered but a row, for the key of a cache.
    pub fn fingerprint(&self) -> String {
        let date = if self.uses_date() { self.date.text() } else { String::new() };
        format!("{:?}\n{}\n{date}", self.texts, Value::Object(self.special.clone()))
    }

    /// Whether the templates' text holds a word at all: what they read, they name.
    pub fn mentions(&self, word: &str) -> bool {
        self.texts.values().any(|text| text.contains(word))
    }

    /// The conversation as text.
    ///
    /// # Errors
    /// The template refuses the messages, fails on them, or takes far more work or memory than any template needs.
    pub fn render(&self, messages: &[Value], variables: &Variables, add_generation_prompt: bool) -> Result<String> {
        self.render_counted(messages, variables, add_generation_prompt).map(|(text, _)| text)
    }

    /// As [`Self::render`], with what it took.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_counted(
        &self,
        messages: &[Value],
        variables: &Variables,
        add_generation_prompt: bool,
    ) -> Result<(String, Used)> {
        let mut context = self.special.clone();
        context.insert("documents".into(), Value::Null);
        for kwargs in variables.kwargs {
            if let Some(name) = RESERVED.iter().find(|&&name| kwargs.contains_key(name)) {
                bail!("`template_kwargs` sets `{name}`, which the row's own fields set: remove it");
            }
            context.extend(kwargs.clone());
        }
        let tools = if variables.tools.is_empty() { Value::Null } else { variables.tools.into() };
        context.insert("messages".into(), messages.iter().map(normal).collect());
        context.insert("tools".into(), tools);
        context.insert("add_generation_prompt".into(), add_generation_prompt.into());
        let tool_use = self.tool_use.as_ref().filter(|_| !variables.tools.is_empty());
        let template = tool_use.or(self.default.as_ref()).with_context(|| {
            format!("the model folder has a chat template for rows with tools alone, in `{NAMED}`: name one by data.template")
        })?;
        let date = self.date;
        let budget = budget(context.values().map(size).sum());
        let rendered = template.render(&context, Arc::new(move |format: &str| date.strftime(format)), budget);
        rendered.map_err(|fault| anyhow!("the chat template{fault}"))
    }
}

/// What a conversation of `bytes` bytes may cost.
fn budget(bytes: usize) -> Budget {
    Budget {
        steps: STEPS.saturating_add(bytes.saturating_mul(STEPS_PER_BYTE)).min(MOST_STEPS),
        bytes: BYTES.saturating_add(bytes.saturating_mul(BYTES_PER_BYTE)),
    }
}

/// About how many bytes a value has.
fn size(value: &Value) -> usize {
    16 + match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| 16 + name.len() + size(value)).sum(),
        _ => 0,
    }
}

/// A message as `transformers` hands it on: without fields that are null, the reasoning under each of its names.
fn normal(message: &Value) -> Value {
    let Value::Object(fields) = message else { return message.clone() };
    let mut fields = fields.clone();
    fields.retain(|_, value| !value.is_null());
    let names = ["reasoning_content", "thinking", "reasoning"];
    let Some(reasoning) = names.iter().find_map(|&name| fields.get(name)).cloned() else {
        return Value::Object(fields);
    };
    // `thinking` stands first, as templates that print whole messages show.
    let mut all = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
    all.extend(fields);
    all.insert("reasoning_content".into(), reasoning);
    Value::Object(all)
}

/// The templates that are files of a folder, by name.
fn in_files(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    if let Some(text) = read(&folder.join("chat_template.jinja"))? {
        texts.insert("default".to_owned(), text);
    }
    for path in named_files(folder)? {
        if let (Some(name), Some(text)) = (path.file_stem(), read(&path)?) {
            texts.insert(name.to_string_lossy().into_owned(), text);
        }
    }
    Ok(texts)
}

/// The files of a folder's further templates, sorted.
///
/// # Errors
/// The folder of templates cannot be read.
pub fn named_files(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let folder = folder.join(NAMED);
    let entries = match fs::read_dir(&folder) {
        Err(error) if matches!(error.kind(), Io::NotFound | Io::NotADirectory) => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("`{}` cannot be read", folder.display()))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("`{}` cannot be read", folder.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "jinja") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The templates of `chat_template` in the folder's JSON files, by name, and the file.
fn in_json(folder: &Path, config: &Value) -> Result<(BTreeMap<String, String>, std::path::PathBuf)> {
    let mut place = folder.join("tokenizer_config.json");
    let mut source = config["chat_template"].clone();
    if source.is_null() {
        place = folder.join("chat_template.json");
        source = read_json(&place)?["chat_template"].clone();
    }
    let texts = match &source {
        Value::Null => BTreeMap::new(),
        Value::String(text) => BTreeMap::from([("default".to_owned(), text.clone())]),
        _ => {
            let entry =
                |entry: &Value| Some((entry["name"].as_str()?.to_owned(), entry["template"].as_str()?.to_owned()));
            let texts: Option<BTreeMap<_, _>> = source.as_array().and_then(|list| list.iter().map(entry).collect());
            texts.filter(|texts| !texts.is_empty()).with_context(|| {
                format!(
                    "`{}`: `chat_template` is neither text nor a list of `name` and `template`: name one by data.template",
                    place.display()
                )
            })?
        }
    };
    Ok((texts, place))
}

/// `bos_token`, `eos_token` and every other special token that the folder names.
fn special_tokens(folder: &Path, config: &Value) -> Result<Map<String, Value>> {
    let map = read_json(&folder.join("special_tokens_map.json"))?;
    let mut tokens = Map::new();
    for (name, token) in
        [&map, config, &config["extra_special_tokens"]].into_iter().filter_map(Value::as_object).flatten()
    {
        let text = token.as_str().or_else(|| token["content"].as_str());
        if let Some(text) = text.filter(|_| name.ends_with("_token")) {
            tokens.insert(name.clone(), text.into());
        }
    }
    Ok(tokens)
}

/// A file that a run names, which may be a pipe; `None` if it is not there.
fn named_file(file: &Path) -> Result<Option<String>> {
    match read_named(file, LARGEST_TEXT) {
        Err(error) if error.kind() == Io::NotFound => Ok(None),
        bytes => text(file, Some(bytes.with_context(|| format!("`{}` cannot be read", file.display()))?)),
    }
}

/// A file of the model folder; `None` if it is not there.
fn read(file: &Path) -> Result<Option<String>> {
    text(file, read_regular(file, LARGEST_TEXT)?)
}

fn text(file: &Path, bytes: Option<Vec<u8>>) -> Result<Option<String>> {
    let text = bytes.map(String::from_utf8).transpose();
    text.ok().with_context(|| format!("`{}` is not UTF-8: save the template as UTF-8", file.display()))
}

fn read_json(file: &Path) -> Result<Value> {
    let text = read(file)?.unwrap_or_else(|| "null".into());
    serde_json::from_str(&text).with_context(|| format!("`{}` is broken JSON: restore the file", file.display()))
}
