//! Reading the TOML file and the `--set` overrides, and remembering where each value came from.
//!
//! The TOML reader explains itself over several lines; here each of its errors becomes one line with file and line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use toml::de::{DeTable, DeValue};

use super::{Config, hub, suggest};
use crate::files::{LARGEST_TEXT, read_named};

/// Keys of `[model]` that name a model folder.
const MODELS: [&str; 2] = ["path", "older_reference"];

/// How serde begins to tell of a key that there is not.
const UNKNOWN: &str = "unknown field ";

/// Where each dotted key was set, for messages.
#[derive(Default)]
pub(super) struct Origins {
    file: String,
    keys: BTreeMap<String, String>,
}

impl Origins {
    /// `run.toml:12`, `--set optim.lr=-1`, or the file alone for a key that nobody set.
    pub(super) fn of(&self, key: &str) -> &str {
        match self.keys.get(key) {
            Some(origin) => origin,
            None if self.file.is_empty() => "configuration",
            None => &self.file,
        }
    }

    pub(super) fn number(&self, key: &str, value: f64, accept: impl Fn(f64) -> bool, wanted: &str) -> Result<()> {
        ensure!(value.is_finite() && accept(value), "{}: `{key}` = {value}: must be {wanted}", self.of(key));
        Ok(())
    }

    pub(super) fn least_1(&self, key: &str, value: u64) -> Result<()> {
        ensure!(value > 0, "{}: `{key}` = 0: must be at least 1", self.of(key));
        Ok(())
    }

    pub(super) fn path(&self, key: &str, value: &Path, remedy: &str) -> Result<()> {
        ensure!(!value.as_os_str().is_empty(), "{}: `{key}` is not set: {remedy}", self.of(key));
        Ok(())
    }
}

/// The configuration with absolute paths, not yet checked, and where its values came from.
pub(super) fn read(file: &Path, overrides: &[String]) -> Result<(Config, Origins)> {
    let bytes = read_named(file, LARGEST_TEXT)
        .with_context(|| format!("configuration `{}` cannot be read: name an existing TOML file", file.display()))?;
    let name = file.display().to_string();
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        anyhow!("{name}:{line}: the bytes are not UTF-8; save the file as UTF-8")
    })?;
    let document = Document::parse(&name, &text)?;
    let mut table = document.config()?;
    let folder = std::path::absolute(file)?.parent().map_or_else(PathBuf::new, Path::to_path_buf);
    forget_overridden_models(&mut table, overrides);
    make_absolute(&mut table, &folder).with_context(|| name.clone())?;
    override_all(table, overrides, Origins { file: name.clone(), keys: document.lines() })
}

/// The same for a configuration made in code.
pub(super) fn apply(config: &Config, overrides: &[String]) -> Result<(Config, Origins)> {
    let mut table = toml::Table::try_from(config).context("a name of a file or folder is not UTF-8: rename it")?;
    make_absolute(&mut table, &std::env::current_dir().context("the current folder cannot be read")?)?;
    override_all(table, overrides, Origins::default())
}

fn override_all(mut table: toml::Table, overrides: &[String], mut origins: Origins) -> Result<(Config, Origins)> {
    for text in overrides {
        let key = set(&mut table, text)?;
        origins.keys.insert(key, format!("--set {text}"));
    }
    let config = table.try_into().map_err(|e| anyhow!("{}: {}", origins.file, one_line(&e)))?;
    Ok((config, origins))
}

/// A parsed file whose keys and values know their place in the text.
struct Document<'a> {
    name: &'a str,
    text: &'a str,
    table: DeTable<'a>,
}

impl<'a> Document<'a> {
    fn parse(name: &'a str, text: &'a str) -> Result<Self> {
        let table = DeTable::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            let found = error.span().and_then(|span| text.get(span)).unwrap_or_default().lines().next();
            let found = found.map(|found| format!(" at `{found}`")).unwrap_or_default();
            anyhow!("{name}:{line}: {}{found}; correct the TOML", one_line(&error))
        })?;
        Ok(Self { name, text, table: table.into_inner() })
    }

    /// The file as a table, after its keys and types have been checked against `Config`.
    fn config(&self) -> Result<toml::Table> {
        toml::from_str::<Config>(self.text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            anyhow!("{}:{}: {}", self.name, line_of(self.text, offset), self.explain(&error, offset))
        })?;
        Ok(toml::from_str(self.text)?)
    }

    fn explain(&self, error: &toml::de::Error, offset: usize) -> String {
        let mut keys = Vec::new();
        walk(&self.table, "", &mut |key, start, end| keys.push((key.to_owned(), start, end)));
        // The innermost key or value around the error is the last one met on the way down.
        let key = keys.into_iter().rfind(|&(_, start, end)| (start..end).contains(&offset));
        describe(&key.map(|(key, ..)| key).unwrap_or_default(), None, error)
    }

    fn lines(&self) -> BTreeMap<String, String> {
        let mut lines = BTreeMap::new();
        walk(&self.table, "", &mut |key, start, _| {
            lines.entry(key.to_owned()).or_insert_with(|| format!("{}:{}", self.name, line_of(self.text, start)));
        });
        lines
    }
}

/// Calls `visit` with the dotted name and the extent in the text of every key and then of its value.
fn walk(table: &DeTable, prefix: &str, visit: &mut impl FnMut(&str, usize, usize)) {
    for (key, value) in table {
        let name = if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
        visit(&name, key.span().start, key.span().end);
        visit(&name, value.span().start, value.span().end);
        match value.get_ref() {
            DeValue::Table(inner) => walk(inner, &name, visit),
            DeValue::Array(list) => {
                let tables = list.iter().filter_map(|value| value.get_ref().as_table());
                tables.for_each(|inner| walk(inner, &name, visit));
            }
            _ => {}
        }
    }
}

/// Applies `key=value`; gives back the key. Without a value, a key that need not be set is unset.
fn set(table: &mut toml::Table, text: &str) -> Result<String> {
    let Some((key, value)) = text.split_once('=') else {
        bail!("--set {text}: no `=`; write --set section.key=value, such as --set optim.lr=1e-6");
    };
    let (key, raw) = (key.trim(), value.trim());
    // What is not a TOML value is a string without quotes.
    let value = raw.parse::<toml::Value>().unwrap_or_else(|_| toml::Value::String(raw.to_owned()));
    let (section, last) = place(table, key).with_context(|| format!("--set {text}"))?;
    let before = section.insert(last.to_owned(), value);
    if raw.is_empty() && optional(key)? {
        // An unknown key is refused below, with or without a value.
        let unknown = Config::deserialize_table(table.clone()).is_err_and(|why| why.message().starts_with(UNKNOWN));
        let checked_later = key.starts_with("loss.") && before.is_none();
        ensure!(!checked_later, "--set {text}: `{key}` is not set: there is nothing to unset");
        if !unknown {
            place(table, key)?.0.remove(last);
        }
    }
    if let Err(error) = Config::deserialize_table(table.clone()) {
        bail!("--set {text}: {}", describe(key, Some(raw), &error));
    }
    make_absolute(table, &std::env::current_dir().context("the current folder cannot be read")?)?;
    Ok(key.to_owned())
}

/// The table that holds a dotted key, and the key's last part. A number names a place in a list, as in `loss.0.beta`; a list
/// of one needs none.
fn place<'a, 'b>(table: &'a mut toml::Table, key: &'b str) -> Result<(&'a mut toml::Table, &'b str)> {
    let (path, last) = key.rsplit_once('.').unwrap_or(("", key));
    let mut parts = path.split('.').filter(|part| !part.is_empty()).peekable();
    let mut section = table;
    while let Some(part) = parts.next() {
        let entry = section.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        section = match entry {
            toml::Value::Table(inner) => inner,
            toml::Value::Array(list) => {
                let count = list.len();
                let named = parts.next_if(|part| part.parse::<usize>().is_ok()).and_then(|part| part.parse().ok());
                let at: usize = named.or((count == 1).then_some(0)).with_context(|| {
                    format!("`{part}` is a list of {count}: name the one that is meant, such as `{part}.0.{last}`")
                })?;
                let entry = list
                    .get_mut(at)
                    .with_context(|| format!("`{part}.{at}`: `{part}` is a list of {count}, counted from 0"))?;
                entry.as_table_mut().with_context(|| format!("`{part}.{at}` is a value, not a section"))?
            }
            _ => bail!("`{part}` is a value, not a section"),
        };
    }
    Ok((section, last))
}

/// Whether a key may be unset: what the defaults do not write out.
fn optional(key: &str) -> Result<bool> {
    let defaults = toml::Value::try_from(Config::default())?;
    let found = key.split('.').try_fold(&defaults, |section, part| section.get(part));
    Ok(found.is_none() && key.contains('.'))
}

impl Config {
    fn deserialize_table(table: toml::Table) -> Result<Self, toml::de::Error> {
        table.try_into()
    }
}

/// A model of the file that the command line replaces need not be on this machine.
fn forget_overridden_models(table: &mut toml::Table, overrides: &[String]) {
    let is_set = |key: &str| overrides.iter().any(|text| text.split('=').next().is_some_and(|name| name.trim() == key));
    if let Some(toml::Value::Table(model)) = table.get_mut("model") {
        model.retain(|key, _| !MODELS.contains(&key) || !is_set(&format!("model.{key}")));
    }
}

/// Joins relative paths to `folder`, and finds models by their other names. Paths made absolute earlier stay as they are.
fn make_absolute(table: &mut toml::Table, folder: &Path) -> Result<()> {
    for key in MODELS {
        let Some(toml::Value::String(path)) = table.get_mut("model").and_then(|s| s.get_mut(key)) else { continue };
        if !path.is_empty() {
            *path = utf8(&hub::model_folder(path, folder).with_context(|| format!("`model.{key}`"))?)?;
        }
    }
    for (section, key) in [("data", "train"), ("data", "eval"), ("data", "template"), ("cache", "dir")] {
        let Some(value) = table.get_mut(section).and_then(|s| s.get_mut(key)) else { continue };
        if !(section == "cache" && value.as_str() == Some("off")) {
            join(value, folder)?;
        }
    }
    Ok(())
}

/// A path as TOML can hold it.
fn utf8(path: &Path) -> Result<String> {
    let name = path.to_str().with_context(|| format!("{}: the name is not UTF-8: rename it", path.display()))?;
    Ok(name.to_owned())
}

/// A path, a table with one, or a list of both.
fn join(value: &mut toml::Value, folder: &Path) -> Result<()> {
    match value {
        toml::Value::String(path) if !path.is_empty() => *path = utf8(&folder.join(hub::home(path)))?,
        toml::Value::Array(list) => list.iter_mut().try_for_each(|value| join(value, folder))?,
        toml::Value::Table(table) => table.get_mut("path").into_iter().try_for_each(|path| join(path, folder))?,
        _ => {}
    }
    Ok(())
}

/// The serde message with the key in front and a remedy behind.
fn describe(key: &str, value: Option<&str>, error: &toml::de::Error) -> String {
    let message = one_line(error);
    if let Some(rest) = message.strip_prefix(UNKNOWN) {
        let known = rest.split_once(", expected ").map_or("none", |(_, known)| known);
        let hint = suggest::hint(key);
        return format!("unknown key `{key}`; {hint}correct the name or remove it, known here: {known}");
    }
    let value = value.map(|v| format!(" = {v}")).unwrap_or_default();
    format!("`{key}`{value}: {message}; correct the value")
}

fn one_line(error: &toml::de::Error) -> String {
    let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
    // serde names Rust's types.
    match message.rsplit_once(", expected ") {
        Some((found, "f64")) => format!("{found}, expected a number"),
        Some((found, "u64" | "usize")) => format!("{found}, expected a whole number of 0 or more"),
        _ => message,
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|&&b| b == b'\n').count()
}
