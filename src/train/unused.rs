//! Settings that a run does not use as they are meant: each is said in a line before it starts. One table, a row a setting.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use anyhow::Result;
use toml::Value;

use crate::{
    config::{Config, Files},
    data::{
        records::{Body, Record, Text},
        source,
    },
    device::Device,
    loss::Loss,
};

/// What is known of a run before its first step.
pub struct Facts<'a> {
    /// Every setting.
    pub config: &'a Config,
    /// What is minimised.
    pub loss: &'a Loss,
    /// Of the whole run.
    pub total_steps: u64,
    /// Where the run is about to start.
    pub device: Option<&'a Device>,
}

/// A setting, and why it has no effect or not the one it is for, if that is so.
struct Rule {
    key: &'static str,
    says: &'static str,
    why: fn(&Facts) -> Option<String>,
}

const UNUSED: &str = "has no effect";

const RULES: &[Rule] = &[
    Rule {
        key: "train.epochs",
        says: UNUSED,
        why: |facts| facts.config.train.steps.map(|steps| format!("`train.steps` = {steps} counts")),
    },
    Rule { key: "train.eval_every", says: UNUSED, why: evaluations },
    Rule {
        key: "train.save_every",
        says: UNUSED,
        why: |facts| never_due(facts, facts.config.train.save_every, "saves"),
    },
    Rule {
        key: "train.keep_checkpoints",
        says: UNUSED,
        why: |facts| (saves_once(facts)).then(|| "the run saves after its last step only".into()),
    },
    Rule {
        key: "train.threads",
        says: UNUSED,
        why: |facts| facts.device?.is_cuda().then(|| "the run is on a GPU, and it is for the host device".into()),
    },
    Rule { key: "train.cuda_graph", says: UNUSED, why: graphs },
    Rule {
        key: "train.track_reference",
        says: UNUSED,
        why: |facts| {
            facts.loss.needs_reference().then(|| format!("the loss {} needs the reference", facts.loss.names()))
        },
    },
    Rule {
        key: "train.ref_model_sync_steps",
        says: UNUSED,
        why: |facts| {
            (!facts.loss.needs_reference()).then(|| format!("the loss {} has no reference", facts.loss.names()))
        },
    },
    Rule {
        key: "train.ref_model_mixup_alpha",
        says: UNUSED,
        why: |facts| {
            (facts.config.train.ref_model_sync_steps == 0)
                .then(|| "the reference stays as it is without train.ref_model_sync_steps".into())
        },
    },
    Rule {
        key: "optim.warmup_steps",
        says: "does not end",
        why: |facts| endless_warmup(facts, facts.config.optim.warmup_steps),
    },
    Rule { key: "data.long_text", says: UNUSED, why: no_documents },
    Rule { key: "data.template", says: UNUSED, why: plain_rows },
    Rule { key: "data.template_kwargs", says: UNUSED, why: plain_rows },
];

/// A line for every setting that is not as it is by default and has no effect, and for files on both sides.
///
/// # Errors
/// The configuration cannot be written as TOML.
pub fn notes(facts: &Facts) -> Result<Vec<String>> {
    let (set, defaults) = (Value::try_from(facts.config)?, Value::try_from(Config::default())?);
    let of = |table: &Value, key: &str| key.split('.').try_fold(table, |section, part| section.get(part)).cloned();
    let note = |rule: &Rule| {
        let value = of(&set, rule.key)?;
        let why = (of(&defaults, rule.key).as_ref() != Some(&value)).then(|| (rule.why)(facts))??;
        Some(format!("note: `{}` = {value} {}: {why}", rule.key, rule.says))
    };
    Ok(RULES.iter().filter_map(note).chain(both_sides(facts.config)).collect())
}

fn evaluations(facts: &Facts) -> Option<String> {
    match facts.config.data.holds_out() {
        false => Some("there are no held-out rows: name them by data.eval".into()),
        true => never_due(facts, facts.config.train.eval_every, "evaluates"),
    }
}

/// The last step counts by itself.
fn never_due(facts: &Facts, every: u64, does: &str) -> Option<String> {
    let steps = facts.total_steps;
    (every >= steps).then(|| format!("the run has {steps} steps and {does} after the last in any case"))
}

fn saves_once(facts: &Facts) -> bool {
    let train = &facts.config.train;
    train.save_minutes == 0.0 && (train.save_every == 0 || train.save_every >= facts.total_steps)
}

fn graphs(facts: &Facts) -> Option<String> {
    let loss = facts.loss;
    if loss.couples_the_step() || loss.needs_distributions() {
        return Some(format!("the loss {} is launched step by step", loss.names()));
    }
    (!facts.device?.is_cuda()).then(|| "the run is on the host device, and it is for GPUs".into())
}

fn endless_warmup(facts: &Facts, warmup: u64) -> Option<String> {
    let steps = facts.total_steps;
    (warmup >= steps).then(|| format!("the run ends after {steps} steps, before `optim.lr` is reached"))
}

fn plain_rows(facts: &Facts) -> Option<String> {
    every_first_row(facts.config, is_plain).then(|| "the rows are plain text, and it is for conversations".into())
}

fn no_documents(facts: &Facts) -> Option<String> {
    let other = |record: &Record| !record.is_document();
    every_first_row(facts.config, other).then(|| "the rows are no plain documents, and it is for those".into())
}

/// Whether the first row of every file is so, as far as rows can be looked at: a pipe is not.
fn every_first_row(config: &Config, so: impl Fn(&Record) -> bool) -> bool {
    let mut files =
        [Some(&config.data.train), config.data.eval.as_ref()].into_iter().flatten().flat_map(paths).peekable();
    files.peek().is_some() && files.all(|file| file.is_file() && first_row(&file, config).is_some_and(|row| so(&row)))
}

fn first_row(file: &Path, config: &Config) -> Option<Record> {
    let row = source::open(file, config.data.max_row_bytes).ok()?.rows.next()?.ok()?;
    Record::from_row(row.fields().ok()?, &config.data.columns).ok()
}

fn is_plain(record: &Record) -> bool {
    let response = match &record.body {
        Body::Pair { chosen: text, .. }
        | Body::Unpaired { completion: text, .. }
        | Body::Completion { completion: text } => Some(text),
        Body::List { responses, .. } => responses.first(),
        Body::Tree { nodes } => nodes.first().map(|node| &node.text),
    };
    matches!(response, Some(Text::Plain(_)))
}

/// The files of a set, patterns written out; a pattern that cannot be read is the reader's to refuse.
fn paths(files: &Files) -> Vec<PathBuf> {
    files.0.iter().flat_map(|source| source::expand(&source.path).unwrap_or_default()).collect()
}

/// Files that are trained on and held out.
fn both_sides(config: &Config) -> Vec<String> {
    let Some(eval) = &config.data.eval else { return Vec::new() };
    let same = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
    let train: HashSet<PathBuf> = paths(&config.data.train).iter().map(same).collect();
    let shared = paths(eval).into_iter().filter(|path| train.contains(&same(path)));
    shared
        .map(|path| {
            format!(
                "warning: {} stands in `data.train` and in `data.eval`: what is measured on it says nothing about new rows",
                path.display()
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::device::HostOptions;

    const PLAIN: &str = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#;
    const CHAT: &str = concat!(
        r#"{"prompt": [{"role": "user", "content": "a"}], "chosen": [{"role": "assistant", "content": "b"}], "#,
        r#""rejected": [{"role": "assistant", "content": "c"}]}"#
    );

    /// The notes of a run of ten steps on the host device, under these overrides.
    fn notes_of(row: &str, set: &[&str]) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        for name in ["train", "eval"] {
            fs::write(folder.path().join(format!("{name}.jsonl")), row).unwrap();
        }
        let file = folder.path().join("run.toml");
        fs::write(&file, "[model]\npath = \"model\"\n[data]\ntrain = \"train.jsonl\"\n").unwrap();
        let inside = |text: &&str| text.replace("DIR", &folder.path().display().to_string());
        let config = Config::load(&file, &set.iter().map(inside).collect::<Vec<_>>()).unwrap();
        let device = Device::host(HostOptions { threads: 1, ..HostOptions::default() }).unwrap();
        let loss = config.loss.read().unwrap();
        notes(&Facts { config: &config, loss: &loss, total_steps: 10, device: Some(&device) }).unwrap()
    }

    #[test]
    fn every_rule_speaks_and_names_its_key() {
        let cases: &[(&str, &[&str], &str)] = &[
            (
                "train.epochs",
                &["train.epochs=3", "train.steps=10"],
                "`train.epochs` = 3 has no effect: `train.steps` = 10",
            ),
            ("train.eval_every", &["train.eval_every=5"], "no held-out rows"),
            ("train.eval_every", &["train.eval_every=10", "data.eval=DIR/eval.jsonl"], "10 steps and evaluates"),
            ("train.save_every", &["train.save_every=11"], "10 steps and saves"),
            (
                "train.keep_checkpoints",
                &["train.keep_checkpoints=3", "train.save_minutes=0"],
                "after its last step only",
            ),
            ("train.cuda_graph", &["train.cuda_graph=true"], "on the host device"),
            ("train.cuda_graph", &["train.cuda_graph=true", "loss.name=kto"], "the loss kto is launched"),
            ("train.track_reference", &["train.track_reference=false"], "the loss dpo needs the reference"),
            (
                "train.ref_model_sync_steps",
                &["train.ref_model_sync_steps=4", "loss.name=simpo"],
                "the loss simpo has no reference",
            ),
            ("train.ref_model_mixup_alpha", &["train.ref_model_mixup_alpha=0.5"], "without train.ref_model_sync_steps"),
            ("optim.warmup_steps", &["optim.warmup_steps=10"], "ends after 10 steps"),
            ("data.long_text", &["data.long_text=split"], "no plain documents"),
            ("data.template", &["data.template=DIR/t.jinja"], "plain text"),
            ("data.template_kwargs", &["data.template_kwargs.thinking=true"], "plain text"),
        ];
        for (key, set, part) in cases {
            let found = notes_of(PLAIN, set);
            let [one] = &found[..] else { panic!("{set:?}: {found:?}") };
            assert!(one.starts_with(&format!("note: `{key}` = ")) && one.contains(part), "{set:?}: {one}");
        }
        let untested = RULES.iter().filter(|rule| !cases.iter().any(|(key, ..)| *key == rule.key));
        // A GPU is what that one needs.
        assert_eq!(untested.map(|rule| rule.key).collect::<Vec<_>>(), ["train.threads"]);
    }

    #[test]
    fn what_has_an_effect_is_not_spoken_of() {
        for set in [
            &[][..],
            &["train.epochs=3", "train.eval_every=0", "train.keep_checkpoints=2"],
            &["train.eval_every=5", "data.eval=DIR/eval.jsonl"],
            &["train.save_every=9", "train.keep_checkpoints=3"],
            &["train.track_reference=false", "loss.name=simpo"],
            &["optim.warmup_steps=9", "train.threads=2"],
        ] {
            assert_eq!(notes_of(PLAIN, set), [""; 0], "{set:?}");
        }
        for set in [["data.template=DIR/t.jinja"], ["data.template_kwargs.thinking=true"]] {
            assert_eq!(notes_of(CHAT, &set), [""; 0], "{set:?}");
        }
    }

    #[test]
    fn a_file_on_both_sides_is_named() {
        let found = notes_of(PLAIN, &["data.eval=DIR/train.jsonl"]);
        assert!(
            matches!(&found[..], [one] if one.contains("train.jsonl stands in `data.train` and in `data.eval`")),
            "{found:?}"
        );
        let found = notes_of(PLAIN, &["data.eval=DIR/*.jsonl"]);
        assert_eq!(found.len(), 1, "{found:?}");
    }
}
