//! Which settings make a run the run it is: the others may change when it is resumed.
//!
//! What a run began with is read through the present defaults: a key that is younger than the run has its default there.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, anyhow, ensure};

use crate::config::Config;

/// Pace of output and of the machine; the length of the run, which may grow; and paths, whose content is bound instead: see
/// [`binding`](super::binding).
const FREE: [&str; 21] = [
    "cache.dir",
    "data.eval",
    "data.on_error",
    "data.template",
    "data.train",
    "model.older_reference",
    "model.path",
    "train.cuda_graph",
    "train.early_stop",
    "train.epochs",
    "train.eval_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.recompute",
    "optim.moments_on",
    "train.save_best",
    "train.save_every",
    "train.save_minutes",
    "train.steps",
    "train.tensorboard",
    "train.threads",
];

/// Stands for a path, where a setting without one would be refused.
const PLACE: &str = "-";

/// Dotted keys and values as TOML.
pub type BoundSettings = BTreeMap<String, String>;

/// Every setting that alters the run.
///
/// # Errors
/// The configuration cannot be written as TOML.
pub fn binding(config: &Config) -> Result<BoundSettings> {
    let mut found = BoundSettings::new();
    let table = config.to_toml()?.parse::<toml::Table>()?;
    flatten("", &table, &mut found);
    found.retain(|key, _| !FREE.contains(&key.as_str()));
    if let Some(weights) = weights(&table) {
        found.insert("data.train weights".into(), weights);
    }
    Ok(found)
}

/// Refuses to resume a run under settings that would make it another one. `path` is the resolved configuration the run
/// began with.
///
/// # Errors
/// The file cannot be read, or a setting differs: names the key and both values.
pub fn check_unchanged(path: &Path, config: &Config) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let before = read(&text).with_context(|| path.display().to_string())?;
    compare(&binding(&before)?, config, path.parent().unwrap_or(path))
}

/// What a checkpoint keeps of a configuration: TOML without the settings that are free, a weight in the place of a path.
///
/// # Errors
/// As [`binding`].
pub fn text(config: &Config) -> Result<String> {
    let mut table = toml::Table::try_from(config)?;
    let weights = weights(&table).is_some().then(|| table["data"]["train"].clone());
    for key in FREE {
        let (section, key) = key.split_once('.').expect("a key stands in a section");
        table.get_mut(section).and_then(|section| section.as_table_mut()?.remove(key));
    }
    if let Some(toml::Value::Array(mut files)) = weights {
        files.iter_mut().for_each(|file| file["path"] = PLACE.into());
        table.get_mut("data").and_then(|data| data.as_table_mut()?.insert("train".into(), files.into()));
    }
    Ok(table.to_string())
}

/// As [`check_unchanged`], by what a checkpoint in `folder` keeps: see [`text`].
///
/// # Errors
/// As [`check_unchanged`].
pub fn check_saved(before: &str, config: &Config, folder: &Path) -> Result<()> {
    let mut table = before.parse::<toml::Table>().context("the settings it keeps are damaged")?;
    let mut place = |section: &str, key: &str| {
        let entry = table.entry(section).or_insert_with(|| toml::Table::new().into());
        entry.as_table_mut().map(|section| section.entry(key).or_insert_with(|| PLACE.into()));
    };
    place("model", "path");
    place("data", "train");
    if config.model.older_reference.is_some() {
        place("model", "older_reference");
    }
    compare(&binding(&read(&table.to_string())?)?, config, folder)
}

fn compare(before: &BoundSettings, config: &Config, folder: &Path) -> Result<()> {
    let now = binding(config)?;
    let shown = |value: Option<&String>| value.cloned().unwrap_or_else(|| "unset".into());
    for key in before.keys().chain(now.keys()) {
        let (old, new) = (before.get(key), now.get(key));
        ensure!(
            old == new,
            "`{key}` = {}: the run in {} began with {}; restore it, or start another run with --out",
            shown(new),
            folder.display(),
            shown(old)
        );
    }
    Ok(())
}

/// A configuration that an earlier run resolved, as this program would resolve it.
fn read(text: &str) -> Result<Config> {
    let config: Config = toml::from_str(text).map_err(|why| {
        let why: &str = why.message();
        match why.strip_prefix("unknown field ").and_then(|rest| rest.split_once(", expected")) {
            Some((key, _)) => anyhow!(
                "{key}: the run began with a warpo that had this key: go on with that one, or start another run with --out"
            ),
            None => anyhow!("damaged: {}", why.split_whitespace().collect::<Vec<_>>().join(" ")),
        }
    })?;
    config.with_overrides(&[]).context("damaged")
}

/// How often the training files are taken, if not all of them once: the paths of the same list are free.
fn weights(table: &toml::Table) -> Option<String> {
    let list = table.get("data")?.get("train")?.as_array()?;
    let weights: Option<Vec<String>> = list.iter().map(|source| Some(source.get("weight")?.to_string())).collect();
    Some(weights?.join(", ")).filter(|weights| weights.split(", ").any(|weight| weight != "1.0"))
}

fn flatten(prefix: &str, table: &toml::Table, found: &mut BoundSettings) {
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => flatten(&format!("{prefix}{key}."), inner, found),
            _ => drop(found.insert(format!("{prefix}{key}"), value.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "model.path = \"/m\"\ndata.train = \"/d\"\n";

    fn config(text: &str) -> Config {
        read(&format!("{RUN}{text}")).unwrap()
    }

    fn check(began: &str, now: &str) -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, format!("{RUN}{began}")).unwrap();
        check_unchanged(&path, &config(now))
    }

    /// A key that a run knew nothing of has its default.
    #[test]
    fn keys_younger_than_a_run_do_not_end_it() {
        check("", "train.seed = 42\nloss.beta = 0.1\nloss.name = \"dpo\"").unwrap();
        let why = check("", "train.seed = 41").unwrap_err().to_string();
        assert!(why.starts_with("`train.seed` = 41: the run in ") && why.contains(" began with 42"), "{why}");
        let saved = text(&config("")).unwrap();
        let saved = saved.lines().filter(|line| !line.starts_with("eps") && !line.starts_with("beta ="));
        let saved = saved.collect::<Vec<_>>().join("\n");
        let check = |now: &str| check_saved(&saved, &config(now), Path::new("out"));
        check("train.threads = 3").unwrap();
        assert!(
            check("optim.eps = 0.5").unwrap_err().to_string().starts_with("`optim.eps` = 0.5: the run in out began")
        );
        assert!(check("loss.beta = 0.2").is_err());
    }

    #[test]
    fn a_checkpoint_keeps_what_binds() {
        let runs = [
            "",
            "batch.packs = 2",
            "data.template_kwargs = { \"a.b\" = 1, c = { d = [2] } }",
            "data.template = \"/t\"\ntrain.seed = 3",
            "loss = [{ name = \"simpo\" }, { name = \"sft\", weight = 0.5 }]",
            "loss.name = \"apo_accelerated\"\nmodel.older_reference = \"/o\"",
        ];
        for (i, began) in runs.iter().enumerate() {
            let saved = text(&config(began)).unwrap();
            for (j, now) in runs.iter().enumerate() {
                assert_eq!(check_saved(&saved, &config(now), Path::new("out")).is_ok(), i == j, "{began} / {now}");
            }
        }
        let weighted = |weight: &str| {
            read(&format!("model.path = \"/m\"\ndata.train = [\"/d\", {{ path = \"/e\", weight = {weight} }}]"))
                .unwrap()
        };
        let saved = text(&weighted("2.0")).unwrap();
        check_saved(&saved, &weighted("2.0"), Path::new("out")).unwrap();
        let why = check_saved(&saved, &weighted("3.0"), Path::new("out")).unwrap_err().to_string();
        assert!(why.starts_with("`data.train weights` = 1.0, 3.0: the run in out began with 1.0, 2.0"), "{why}");
    }

    #[test]
    fn keys_that_are_gone_are_named() {
        let why = format!("{:#}", check("train.warp_speed = 9", "").unwrap_err());
        assert!(why.contains("config.toml: `warp_speed`: the run began with a warpo that had this key"), "{why}");
        assert!(!why.contains('\n'), "{why}");
    }

    #[test]
    fn what_reports_saves_or_names_a_place_is_free() {
        check(
            "train.save_minutes = 1\ncache.dir = \"/c\"\ndata.template = \"/a.jinja\"",
            "train.save_minutes = 0\ntrain.log_every = 3\ncache.dir = \"off\"\ndata.template = \"/b.jinja\"",
        )
        .unwrap();
    }
}
