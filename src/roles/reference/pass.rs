//! The reference pass: log-probabilities of every response token under the weights a model has now, read from the cache or
//! computed.

use std::{
    collections::HashSet,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    cache::{ReferenceCache, Values, row_key},
    values::RowValues,
};
use crate::{
    cache::Key,
    data::batches::{self, MicroBatch},
    device::{Float, Readback},
    forest::Tree,
    model::{self, Model},
    units::{duration, human},
};

/// Computed values are kept at least this often: what a killed run loses.
const KEEP_EVERY: Duration = Duration::from_secs(30);

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

/// Runs the model over every example, without a cache.
///
/// # Errors
/// A launch fails, or a log-probability is not finite.
pub fn compute<T: Float>(model: &Model<T>, trees: &[Tree], budget: usize) -> Result<RowValues> {
    let sets = Pass::new(model, budget, None, [trees, &[]])?.run(|_| true)?;
    let [reference, _] = sets.context("nothing interrupts the pass")?;
    Ok(reference)
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
            flops += model::flops(self.model.config(), &batch.forest);
        }
        let known = if self.cache.is_some() {
            format!("{} of {rows} rows are in the cache; ", rows - missing)
        } else {
            String::new()
        };
        let peak = self.model.device().peak_flops(T::DTYPE);
        let time = Duration::try_from_secs_f64(flops / peak)
            .map_or(String::new(), |time| format!(", at least {}", duration(time)));
        Ok(format!("{known}{missing} rows to compute, {tokens} tokens, {}{time}", human(4 * values)))
    }

    /// Computes what is missing and keeps it. `go_on` hears how many examples are done; `None` if it says no.
    ///
    /// # Errors
    /// A launch fails, or a log-probability is not finite.
    pub fn run(&mut self, mut go_on: impl FnMut(usize) -> bool) -> Result<Option<[RowValues; 2]>> {
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
        Ok(Some([0, 1].map(|set| RowValues::assemble(self.sets[set], &self.keys[set], &self.values))))
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
