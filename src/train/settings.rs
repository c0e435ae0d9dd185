//! Which settings make a run the run it is: the others may change when it is resumed.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::hash::Hasher;
use crate::config::Config;

/// Pace of output and of the machine; and paths, whose content is checked instead (`reference.safetensors` knows the
/// tokens of both files, a checkpoint its model's shape).
const FREE: [&str; 11] = [
    "cache.dir",
    "data.eval",
    "data.train",
    "model.path",
    "train.cuda_graph",
    "train.eval_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.save_every",
    "train.threads",
    "data.on_error",
];

/// A hash of every setting that alters the run.
///
/// # Errors
/// The configuration cannot be written as TOML.
pub fn hash(config: &Config) -> Result<String> {
    let mut hasher = Hasher::default();
    for (key, value) in binding(&config.to_toml()?)? {
        hasher.text(&key);
        hasher.text(&value);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Refuses to resume a run under settings that would make it another one. `path` is the resolved configuration the run
/// began with.
///
/// # Errors
/// The file cannot be read, or a setting differs: names the key and both values.
pub fn check_unchanged(path: &Path, config: &Config) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let before = binding(&text).with_context(|| format!("{}: damaged", path.display()))?;
    let now = binding(&config.to_toml()?)?;
    let shown = |value: Option<&String>| value.cloned().unwrap_or_else(|| "unset".into());
    for key in before.keys().chain(now.keys()) {
        let (old, new) = (before.get(key), now.get(key));
        ensure!(
            old == new,
            "`{key}` = {}: the run in {} began with {}; restore it, or start another run with --out",
            shown(new),
            path.parent().unwrap_or(path).display(),
            shown(old)
        );
    }
    Ok(())
}

/// Dotted keys and values of the settings that alter a run.
fn binding(text: &str) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let table = text.parse::<toml::Table>()?;
    flatten("", &table, &mut found);
    found.retain(|key, _| !FREE.contains(&key.as_str()));
    if let Some(weights) = weights(&table) {
        found.insert("data.train weights".into(), weights);
    }
    Ok(found)
}

/// How often the training files are taken, if not all of them once: the paths of the same list are free.
fn weights(table: &toml::Table) -> Option<String> {
    let list = table.get("data")?.get("train")?.as_array()?;
    let weights: Option<Vec<String>> = list.iter().map(|source| Some(source.get("weight")?.to_string())).collect();
    Some(weights?.join(", "))
}

fn flatten(prefix: &str, table: &toml::Table, found: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => flatten(&format!("{prefix}{key}."), inner, found),
            _ => drop(found.insert(format!("{prefix}{key}"), value.to_string())),
        }
    }
}
