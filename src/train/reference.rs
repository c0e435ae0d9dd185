//! Log-probabilities of every response token under the starting weights: read from the cache or computed, and kept in the
//! run folder.
//!
//! A resumed run reads them back from its folder, so that it continues with the same bits and never needs the starting
//! weights again. The file says what it was made from.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{
    batches::{self, MicroBatch},
    binding::Hashes,
    hash::Hasher,
    log,
    reference_cache::{ReferenceCache, Values, row_key},
};
use crate::{
    cache::{Key, KeyBuilder},
    device::{Float, Readback},
    files,
    forest::Tree,
    model::{Model, human},
};

/// Computed values are kept at least this often: what a killed run loses.
const KEEP_EVERY: Duration = Duration::from_secs(30);

/// Rows of every example of one data file, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reference {
    logps: Vec<f32>,
    /// (examples + 1)
    offsets: Vec<usize>,
}

impl Reference {
    /// Runs the model over every example, without a cache.
    ///
    /// # Errors
    /// A launch fails, or a log-probability is not finite.
    pub fn compute<T: Float>(model: &Model<T>, trees: &[Tree], budget: usize) -> Result<Self> {
        let sets = Pass::new(model, budget, None, [trees, &[]])?.run(|_| true)?;
        let [reference, _] = sets.context("nothing interrupts the pass")?;
        Ok(reference)
    }

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

    /// The rows of these examples, back to back, as a forest of them has its rows.
    pub fn of(&self, examples: &[usize]) -> Vec<f32> {
        examples.iter().flat_map(|&e| &self.logps[self.offsets[e]..self.offsets[e + 1]]).copied().collect()
    }

    fn empty(trees: &[Tree]) -> Self {
        let mut offsets = vec![0];
        for tree in trees {
            offsets.push(offsets[offsets.len() - 1] + tree.rows());
        }
        Self { logps: vec![0.0; offsets[trees.len()]], offsets }
    }

    fn assemble(trees: &[Tree], keys: &[Key], values: &Values) -> Self {
        let mut reference = Self::empty(trees);
        for (example, key) in keys.iter().enumerate() {
            let place = reference.offsets[example]..reference.offsets[example + 1];
            reference.logps[place].copy_from_slice(&values[key]);
        }
        reference
    }
}

/// The reference pass over a run's two files: what it needs, what of that a cache holds, and the computing of the rest.
///
/// A row that stands in the files twice is computed once. The last bits of a row's values depend on its company in a
/// pack; kept ones are used as they are, so a run is repeated to the bit as long as the cache holds what it held.
pub struct Pass<'a, T> {
    model: &'a Model<T>,
    sets: [&'a [Tree]; 2],
    keys: [Vec<Key>; 2],
    /// Packs to compute: set and examples.
    packs: Vec<(usize, Vec<usize>)>,
    values: Values,
    cache: Option<ReferenceCache>,
    /// Computed and not kept yet.
    fresh: Vec<Key>,
    kept: Instant,
    /// What was wrong with the cache, a line each.
    pub warnings: Vec<String>,
}

/// A pack whose values are on their way.
struct Launched {
    set: usize,
    batch: MicroBatch,
    logps: Readback<f32>,
}

impl<'a, T: Float> Pass<'a, T> {
    /// Looks up the rows of both sets and plans packs of at most `budget` tokens for those that are missing. A cache that
    /// cannot be read costs a warning and never the run.
    ///
    /// # Errors
    /// An example is longer than the budget, or the weights cannot be read.
    pub fn new(model: &'a Model<T>, budget: usize, cache: Option<&Path>, sets: [&'a [Tree]; 2]) -> Result<Self> {
        let keys = sets.map(|trees| trees.iter().map(row_key).collect::<Vec<_>>());
        let cache = cache.map(|folder| ReferenceCache::new(folder, model)).transpose()?;
        let wanted: HashSet<Key> = keys.iter().flatten().copied().collect();
        let (values, warnings) = match cache.as_ref().map(|cache| cache.read(&wanted)) {
            None => Default::default(),
            Some(Ok(found)) => found,
            Some(Err(why)) => (Values::new(), vec![format!("{why:#}: all rows are computed")]),
        };
        let mut seen: HashSet<Key> = values.keys().copied().collect();
        let mut packs = Vec::new();
        for (set, trees) in sets.into_iter().enumerate() {
            let missing: Vec<usize> = (0..trees.len()).filter(|&example| seen.insert(keys[set][example])).collect();
            packs.extend(batches::plan(trees, &missing, budget)?.into_iter().map(|pack| (set, pack)));
        }
        Ok(Self { model, sets, keys, packs, values, cache, fresh: Vec::new(), kept: Instant::now(), warnings })
    }

    /// Examples to compute.
    pub fn missing(&self) -> usize {
        self.packs.iter().map(|(_, pack)| pack.len()).sum()
    }

    /// What will be computed, how many bytes that makes, and how long it takes at least.
    ///
    /// # Errors
    /// A tree makes no sense.
    pub fn describe(&self) -> Result<String> {
        let (rows, missing) = (self.keys.iter().map(Vec::len).sum::<usize>(), self.missing());
        if missing == 0 {
            return Ok(format!("all {rows} rows are in the cache"));
        }
        let (mut tokens, mut values, mut flops) = (0, 0, 0.0);
        for (set, pack) in &self.packs {
            let batch = batches::build(self.sets[*set], pack)?;
            tokens += batch.forest.len();
            values += batch.forest.rows();
            flops += batches::flops(self.model.config(), &batch.forest);
        }
        let known = if self.cache.is_some() {
            format!("{} of {rows} rows are in the cache; ", rows - missing)
        } else {
            String::new()
        };
        let peak = self.model.device().peak_flops(T::DTYPE);
        let time = Duration::try_from_secs_f64(flops / peak)
            .map_or(String::new(), |time| format!(", at least {}", log::duration(time)));
        Ok(format!("{known}{missing} rows to compute, {tokens} tokens, {}{time}", human(4 * values)))
    }

    /// Computes what is missing and keeps it. `go_on` hears how many examples are done; `None` if it says no.
    ///
    /// # Errors
    /// A launch fails, or a log-probability is not finite.
    pub fn run(&mut self, mut go_on: impl FnMut(usize) -> bool) -> Result<Option<[Reference; 2]>> {
        let ahead = self.model.device().runs_ahead();
        let (mut done, mut unread) = (0, None);
        // One turn more than packs, for the last to be read.
        for pack in std::mem::take(&mut self.packs).into_iter().map(Some).chain([None]) {
            let launched = pack.map(|(set, pack)| self.launch(set, &pack)).transpose()?;
            // Where launches return at once, this pack is computed while the one before is read.
            let ready = if ahead { std::mem::replace(&mut unread, launched) } else { launched };
            let Some(Launched { set, batch, logps }) = ready else { continue };
            self.take(set, &batch, &logps.wait()?)?;
            if self.kept.elapsed() > KEEP_EVERY {
                self.keep();
            }
            done += batch.examples.len();
            if !go_on(done) {
                self.keep();
                return Ok(None);
            }
        }
        self.keep();
        Ok(Some([0, 1].map(|set| Reference::assemble(self.sets[set], &self.keys[set], &self.values))))
    }

    fn launch(&self, set: usize, pack: &[usize]) -> Result<Launched> {
        let batch = batches::build(self.sets[set], pack)?;
        let on_device = self.model.upload(&batch.forest)?;
        self.model.forward(&on_device)?;
        let logps = self.model.device().read(&self.model.logps(&on_device)?)?;
        Ok(Launched { set, batch, logps })
    }

    fn take(&mut self, set: usize, batch: &MicroBatch, logps: &[f32]) -> Result<()> {
        for (place, &example) in batch.examples.iter().enumerate() {
            let values = &logps[batch.forest.tree_rows[place]..batch.forest.tree_rows[place + 1]];
            ensure!(
                values.iter().all(|v| v.is_finite()),
                "{}: the starting weights give a log-probability that is not finite",
                self.sets[set][example].name
            );
            let key = self.keys[set][example];
            self.values.insert(key, values.to_vec());
            self.fresh.push(key);
        }
        Ok(())
    }

    /// Hands what was computed to the cache; a cache that cannot be written costs a warning.
    fn keep(&mut self) {
        let fresh = std::mem::take(&mut self.fresh);
        self.kept = Instant::now();
        let Some(cache) = &self.cache else { return };
        let rows: Vec<(Key, &[f32])> = fresh.iter().map(|key| (*key, &self.values[key][..])).collect();
        if let Err(why) = cache.write(&rows) {
            self.warnings.push(format!("{why:#}: these log-probabilities are not kept"));
        }
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
pub fn save(path: &Path, key: u64, bound: &Hashes, train: &Reference, eval: &Reference) -> Result<()> {
    let check = [key, checksum(train, eval)].map(u64::to_le_bytes).concat();
    let rows = |set: &'_ Reference| (set.logps.len(), bytemuck::allocation::pod_collect_to_vec::<f32, u8>(&set.logps));
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
pub type Loaded = (Reference, Reference, Hashes);

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
    let (mut train, mut eval) = (Reference::empty(train), Reference::empty(eval));
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

fn checksum(train: &Reference, eval: &Reference) -> u64 {
    let mut hasher = Hasher::default();
    for value in train.logps.iter().chain(&eval.logps) {
        hasher.word(u64::from(value.to_bits()));
    }
    hasher.finish()
}
