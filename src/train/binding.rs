//! What a run learns from, as named hashes: a resumed run must find all of it as it was. And what it is computed on, which
//! may change, but not without a word.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    cache::{Hashes, KeyBuilder, file_hash},
    config::{Config, Init},
    data::encode::Encoder,
    device::Device,
    model::CONFIG_FILE,
    versions,
};

/// The run's own values under its starting weights: in the run folder, and the name of their hash.
pub const REFERENCE: &str = "reference.safetensors";
const WEIGHTS: &str = "weights";
const OLDER: &str = "older_reference";
/// What stands where there is nothing to hash.
const NONE: &str = "none";
/// Keys of a `config.json` that say nothing about what the model computes.
const COSMETIC: [&str; 5] = ["_name_or_path", "torch_dtype", "dtype", "transformers_version", "use_cache"];

/// The hashes of a run, in the order in which a change is looked for: what explains a change comes before what it changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bound(Vec<(&'static str, String)>);

impl Bound {
    /// Everything but the reference values, which a run may have to compute first; the rows by the hashes of both sets.
    ///
    /// # Errors
    /// A file of a model folder cannot be read.
    pub fn new(config: &Config, encoder: &Encoder, [train, eval]: [Option<String>; 2]) -> Result<Self> {
        let weights = match config.model.init {
            Init::Pretrained => weights_hash(&config.model.path)?,
            // The seed is a setting.
            Init::Random => NONE.to_owned(),
        };
        let older = config.model.older_reference.as_deref().map(weights_hash).transpose()?;
        let (tokenizer, template) = encoder.hashes();
        Ok(Self(vec![
            ("tokenizer", tokenizer),
            ("template", or_none(template)),
            ("config.json", shape_hash(&config.model.path)?),
            (WEIGHTS, weights),
            (OLDER, or_none(older)),
            ("data.train", or_none(train)),
            ("data.eval", or_none(eval)),
        ]))
    }

    /// With the run's own reference values: the hash of their file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn with_reference(mut self, file: &Path) -> Result<Self> {
        if file.is_file() {
            self.0.push((REFERENCE, file_hash(file)?.hex()));
        }
        Ok(self)
    }

    /// By name, as a checkpoint keeps them.
    pub fn hashes(&self) -> Hashes {
        self.0.iter().map(|(name, hash)| ((*name).to_owned(), hash.clone())).collect()
    }

    /// The names whose hash was another one. What `before` does not know is not compared.
    pub fn changed(&self, before: &Hashes) -> Vec<&'static str> {
        let differs = |(name, hash): &&(&str, String)| before.get(*name).is_some_and(|old| old != hash);
        self.0.iter().filter(differs).map(|(name, _)| *name).collect()
    }

    /// Refuses to go on if anything changed since the run in `out` began, and says what. Only the starting weights may, where
    /// the run holds all it takes from them: its checkpoint, and its reference values, which then are `kept`. That gives a
    /// line to say.
    ///
    /// # Errors
    /// Names what changed and what to do.
    pub fn check(&self, before: &Hashes, kept: bool, out: &Path) -> Result<Option<String>> {
        let mut changed = self.changed(before);
        let spared = kept && changed.contains(&WEIGHTS);
        changed.retain(|&name| !(kept && name == WEIGHTS));
        if let Some(name) = changed.first() {
            bail!(
                "{}: changed since the run in {} began: restore what was there, or start another run with --out",
                describe(name),
                out.display()
            );
        }
        Ok(spared.then(|| {
            format!("{}: changed since the run began; its checkpoint and {REFERENCE} stand for them", describe(WEIGHTS))
        }))
    }
}

fn or_none(hash: Option<String>) -> String {
    hash.unwrap_or_else(|| NONE.to_owned())
}

/// What people call it.
pub fn describe(name: &str) -> &str {
    match name {
        "tokenizer" => "the tokenizer of `model.path`",
        "template" => "the chat template (`data.template` or that of `model.path`)",
        "config.json" => "config.json of `model.path`",
        WEIGHTS => "the starting weights of `model.path`",
        OLDER => "the weights of `model.older_reference`",
        "data.train" => "the rows of `data.train`",
        "data.eval" => "the rows of `data.eval`",
        other => other,
    }
}

/// Of a model folder's weight files; of none where there are none, which loading them says better.
fn weights_hash(folder: &Path) -> Result<String> {
    let single = "model.safetensors".to_owned();
    let files: BTreeSet<String> = match folder.join(&single).is_file() {
        true => [single].into(),
        false => shards(&folder.join("model.safetensors.index.json")),
    };
    let mut key = KeyBuilder::new("weights 1");
    for file in files.iter().filter(|file| folder.join(file).is_file()) {
        key.file(file, &folder.join(file))?;
    }
    Ok(key.finish().hex())
}

/// The files that an index names, as far as it can be read.
fn shards(index: &Path) -> BTreeSet<String> {
    let index: Value = fs::read(index).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
    let files = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    files.filter_map(|file| file.as_str().map(str::to_owned)).collect()
}

/// Of the keys that make a model what it is, whatever their order.
fn shape_hash(folder: &Path) -> Result<String> {
    let path = folder.join(CONFIG_FILE);
    let text = fs::read(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let keys: BTreeMap<String, Value> =
        serde_json::from_slice(&text).with_context(|| format!("{}: broken", path.display()))?;
    let mut key = KeyBuilder::new("shape 1");
    for (name, value) in keys.iter().filter(|(name, _)| !COSMETIC.contains(&name.as_str())) {
        key.part(name, value.to_string().as_bytes());
    }
    Ok(key.finish().hex())
}

/// What computed a checkpoint: the same settings give the same bits on the same of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Version of the program.
    pub warpo: String,
    /// Hash of the kernels and their compilers.
    pub kernels: String,
    /// The device's arithmetic.
    pub device: String,
}

impl Machine {
    /// This program on this device.
    pub fn here(device: &Device) -> Self {
        Self {
            warpo: env!("CARGO_PKG_VERSION").to_owned(),
            kernels: versions::KERNELS.to_owned(),
            device: device.arithmetic(),
        }
    }

    /// A line for a run that goes on elsewhere than it was.
    pub fn differs(&self, before: &Self) -> Option<String> {
        (self != before).then(|| {
            format!("resumed on {self}, saved on {before}: from here on the bits are not those of an uninterrupted run")
        })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} with warpo {} (kernels {})", self.device, self.warpo, self.kernels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_compute_nothing_are_free_and_order_is() {
        let folder = tempfile::tempdir().unwrap();
        let hash = |text: &str| {
            fs::write(folder.path().join(CONFIG_FILE), text).unwrap();
            shape_hash(folder.path()).unwrap()
        };
        let plain = hash(r#"{"hidden_size": 8, "rope_theta": 1e4, "torch_dtype": "float32"}"#);
        assert_eq!(hash(r#"{"rope_theta": 1e4, "hidden_size": 8, "dtype": "bfloat16"}"#), plain);
        assert_ne!(hash(r#"{"rope_theta": 1e5, "hidden_size": 8}"#), plain);
    }

    #[test]
    fn a_change_is_named_by_its_cause() {
        let bound = |tokenizer: &str, weights: &str, rows: &str| {
            Bound(vec![("tokenizer", tokenizer.into()), (WEIGHTS, weights.into()), ("data.train", rows.into())])
        };
        let before = bound("a", "b", "c").hashes();
        let check = |bound: Bound, kept| bound.check(&before, kept, Path::new("out"));
        assert_eq!(check(bound("a", "b", "c"), false).unwrap(), None);
        let why = check(bound("x", "b", "x"), true).unwrap_err().to_string();
        assert!(why.starts_with("the tokenizer of `model.path`: changed since the run in out began: restore"), "{why}");
        let why = check(bound("a", "x", "c"), false).unwrap_err().to_string();
        assert!(why.starts_with("the starting weights"), "{why}");
        let line = check(bound("a", "x", "c"), true).unwrap().unwrap();
        assert!(line.ends_with("its checkpoint and reference.safetensors stand for them"), "{line}");
        assert!(check(bound("a", "x", "x"), true).unwrap_err().to_string().starts_with("the rows of `data.train`"));
        // What an older checkpoint does not know is not compared.
        assert_eq!(bound("x", "x", "x").check(&Hashes::new(), false, Path::new("out")).unwrap(), None);
    }
}
