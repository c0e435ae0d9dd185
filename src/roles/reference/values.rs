//! A number for every row of every example: the log-probabilities under the starting weights, as a run keeps them in its
//! folder.
//!
//! A resumed run reads them back, so that it continues with the same bits and never needs the starting weights again. The
//! file says what it was made from.

use std::{collections::HashMap, fs, io::Write, path::Path};

use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{
    cache::{Values, row_key},
    hash::Hasher,
};
use crate::{
    cache::{Hashes, Key, KeyBuilder},
    files,
    forest::Tree,
};

/// Rows of every example of one data file, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowValues {
    logps: Vec<f32>,
    /// (examples + 1)
    offsets: Vec<usize>,
}

impl RowValues {
    /// No values: what a loss without a reference has.
    pub fn none() -> Self {
        Self::default()
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.logps.is_empty()
    }

    /// Carries the change from `older` to this reference on by `alpha`: accelerated preference optimisation, by
    /// log-probabilities.
    pub fn accelerate(&mut self, older: &Self, alpha: f64) {
        for (value, older) in self.logps.iter_mut().zip(&older.logps) {
            *value = ((1.0 + alpha) * f64::from(*value) - alpha * f64::from(*older)) as f32;
        }
    }

    /// The rows of one example.
    pub fn row(&self, example: usize) -> &[f32] {
        &self.logps[self.offsets[example]..self.offsets[example + 1]]
    }

    /// The rows of these examples, back to back, as a forest of them has its rows.
    pub fn of(&self, examples: &[usize]) -> Vec<f32> {
        examples.iter().flat_map(|&e| &self.logps[self.offsets[e]..self.offsets[e + 1]]).copied().collect()
    }

    pub(super) fn empty(trees: &[Tree]) -> Self {
        let mut offsets = vec![0];
        for tree in trees {
            offsets.push(offsets[offsets.len() - 1] + tree.rows());
        }
        Self { logps: vec![0.0; offsets[trees.len()]], offsets }
    }

    pub(super) fn assemble(trees: &[Tree], keys: &[Key], values: &Values) -> Self {
        let mut reference = Self::empty(trees);
        for (example, key) in keys.iter().enumerate() {
            let place = reference.offsets[example]..reference.offsets[example + 1];
            reference.logps[place].copy_from_slice(&values[key]);
        }
        reference
    }
}

/// What the reference log-probabilities of a run belong to: tokens, trees and masks of both files.
pub fn data_key(train: &[Tree], eval: &[Tree]) -> u64 {
    let mut key = KeyBuilder::new("reference data 2");
    for trees in [train, eval] {
        let rows: Vec<u8> = trees.iter().flat_map(|tree| row_key(tree).0).collect();
        key.part("rows", &rows);
    }
    let Key(bytes) = key.finish();
    bytes.iter().take(8).fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Where a reference file keeps what it was made from.
const BOUND: &str = "bound";

/// Writes both sets, with the key of their data, what they were made from and a checksum, in one piece.
///
/// # Errors
/// The file cannot be written.
pub fn save(path: &Path, key: u64, bound: &Hashes, train: &RowValues, eval: &RowValues) -> Result<()> {
    let check = [key, checksum(train, eval)].map(u64::to_le_bytes).concat();
    let rows = |set: &'_ RowValues| (set.logps.len(), bytemuck::allocation::pod_collect_to_vec::<f32, u8>(&set.logps));
    let sets = [("train", rows(train)), ("eval", rows(eval))];
    let mut views = vec![("check", TensorView::new(Dtype::U64, vec![2], &check)?)];
    for (name, (rows, bytes)) in &sets {
        views.push((*name, TensorView::new(Dtype::F32, vec![*rows], bytes)?));
    }
    let about = HashMap::from([(BOUND.to_owned(), serde_json::to_string(bound)?)]);
    let bytes = safetensors::serialize(views, Some(about))?;
    files::write_whole(path, |file| Ok(file.write_all(&bytes)?))
}

/// What a file holds: the values of both sets, and what they were made from as far as the file says.
pub type Loaded = (RowValues, RowValues, Hashes);

/// Reads what [`save`] wrote; `None` if there is no file.
///
/// # Errors
/// The file is damaged or belongs to other data.
pub fn load(path: &Path, train: &[Tree], eval: &[Tree]) -> Result<Option<Loaded>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(why).with_context(|| format!("{}: cannot be read", path.display())),
    };
    let read = || -> Result<(Vec<u64>, Vec<f32>, Vec<f32>)> {
        let tensors = SafeTensors::deserialize(&bytes)?;
        let data = |name: &str| -> Result<&[u8]> { Ok(tensors.tensor(name)?.data()) };
        Ok((
            bytemuck::allocation::pod_collect_to_vec(data("check")?),
            bytemuck::allocation::pod_collect_to_vec(data("train")?),
            bytemuck::allocation::pod_collect_to_vec(data("eval")?),
        ))
    };
    let damaged = || format!("{}: damaged: restore it, or start another run with --out", path.display());
    let (check, train_logps, eval_logps) = read().with_context(damaged)?;
    let [key, sum] = check[..] else { bail!(damaged()) };
    ensure!(
        key == data_key(train, eval),
        "{}: made for other data: `data.train`, `data.eval` or the tokenizer changed since the run began: restore them, or \
         start another run with --out",
        path.display()
    );
    let (mut train, mut eval) = (RowValues::empty(train), RowValues::empty(eval));
    ensure!(train.logps.len() == train_logps.len() && eval.logps.len() == eval_logps.len(), damaged());
    (train.logps, eval.logps) = (train_logps, eval_logps);
    ensure!(sum == checksum(&train, &eval), damaged());
    Ok(Some((train, eval, read_bound(&bytes).with_context(damaged)?)))
}

/// What the values were made from; files that an older program wrote do not say it.
fn read_bound(bytes: &[u8]) -> Result<Hashes> {
    let (_, metadata) = SafeTensors::read_metadata(bytes)?;
    let text = metadata.metadata().as_ref().and_then(|about| about.get(BOUND));
    Ok(text.map(|text| serde_json::from_str(text)).transpose()?.unwrap_or_default())
}

fn checksum(train: &RowValues, eval: &RowValues) -> u64 {
    let mut hasher = Hasher::default();
    for value in train.logps.iter().chain(&eval.logps) {
        hasher.word(u64::from(value.to_bits()));
    }
    hasher.finish()
}
