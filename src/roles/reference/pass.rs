//! The reference pass: log-probabilities of every response token under the weights a model has now, read from the cache or
//! computed.

use std::{
    mem,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    cache::{ReferenceCache, row_key},
    keys::RowKeys,
    values::{RowValues, ValueFile},
};
use crate::{
    cache::Key,
    data::{
        batches::{self, MicroBatch},
        pack::Packs,
        trees::Trees,
    },
    device::{Float, Readback},
    model::Model,
    units::human,
};

/// Computed values are kept at least this often: what a killed run loses.
const KEEP_EVERY: Duration = Duration::from_secs(30);

/// Values that are kept at the latest when there are so many bytes of them.
const KEEP_BYTES: usize = 16 << 20;

/// The reference pass over a run's two files: what it needs, what of that a cache holds, and the computing of the rest. All
/// values go to a file.
///
/// A row that stands in the files twice is computed once. The last bits of a row's values depend on its company in a
/// pack; kept ones are used as they are, so a run is repeated to the bit as long as the cache holds what it held.
pub struct ReferencePass<'a, T> {
    model: &'a Model<T>,
    sets: [&'a Trees; 2],
    keys: RowKeys,
    /// Packs to compute, of each set.
    packs: [Packs; 2],
    file: &'a ValueFile,
    cache: Option<ReferenceCache>,
    /// Computed and not kept yet, and their bytes.
    fresh: Vec<(Key, Vec<f32>)>,
    fresh_bytes: usize,
    kept: Instant,
    /// What was wrong with the cache, a line each.
    pub warnings: Vec<String>,
}

/// Runs the model over every example, without a cache.
///
/// # Errors
/// A launch fails, or a log-probability is not finite.
pub fn compute<T: Float>(model: &Model<T>, trees: &Trees, budget: usize) -> Result<RowValues> {
    let sets = [trees, &Trees::default()];
    let file = ValueFile::nameless(sets)?;
    let done = ReferencePass::new(model, budget, None, sets, &file)?.run(|_| true)?;
    done.context("nothing interrupts the pass")?;
    let [values, _] = file.values()?;
    Ok(values)
}

/// How far a pass is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Computed {
    /// Of those that were missing.
    pub examples: usize,
    /// In them.
    pub tokens: u64,
}

/// A pack whose values are on their way.
struct UnreadPack {
    batch: MicroBatch,
    logps: Readback<f32>,
}

impl<'a, T: Float> ReferencePass<'a, T> {
    /// Looks up the rows of both sets and plans packs of at most `budget` tokens for those that are missing. A cache that
    /// cannot be read costs a warning and never the run.
    ///
    /// # Errors
    /// An example is longer than the budget, the weights or rows cannot be read, or `file` cannot be written.
    pub fn new(
        model: &'a Model<T>,
        budget: usize,
        cache: Option<&Path>,
        sets: [&'a Trees; 2],
        file: &'a ValueFile,
    ) -> Result<Self> {
        let mut keys = RowKeys::new(sets)?;
        let cache = cache.map(|folder| ReferenceCache::new(folder, model)).transpose()?;
        let warnings = match cache.as_ref().map(|cache| look_up(cache, &mut keys, file)) {
            None => Vec::new(),
            Some(Ok(warnings)) => warnings,
            Some(Err(why)) => {
                keys.forget_found();
                vec![format!("{why:#}: all rows are computed")]
            }
        };
        let (missing, first) = (keys.missing(), sets[0].len());
        let (train, eval) = missing.split_at(missing.partition_point(|&row| (row as usize) < first));
        let eval: Vec<u32> = eval.iter().map(|&row| row - first as u32).collect();
        let packs = [batches::plan(sets[0], train, budget)?, batches::plan(sets[1], &eval, budget)?];
        let (fresh, kept) = (Vec::new(), Instant::now());
        Ok(Self { model, sets, keys, packs, file, cache, fresh, fresh_bytes: 0, kept, warnings })
    }

    /// What the rows of both sets give together.
    pub fn data(&self) -> Key {
        self.keys.data
    }

    /// Examples to compute.
    pub fn missing(&self) -> usize {
        self.packs.iter().map(|packs| packs.members().len()).sum()
    }

    /// Tokens of them.
    pub fn missing_tokens(&self) -> u64 {
        let rows = self
            .sets
            .iter()
            .zip(&self.packs)
            .flat_map(|(trees, packs)| packs.members().iter().map(|&row| u64::from(trees.tokens()[row as usize])));
        rows.sum()
    }

    /// What will be computed, and how many bytes that makes. How long it takes is told by the pace: on no device does it follow
    /// from the peak.
    ///
    /// # Errors
    /// A tree makes no sense.
    pub fn describe(&self) -> Result<String> {
        let (rows, missing) = (self.keys.rows(), self.missing());
        if missing == 0 {
            return Ok(format!("all {rows} rows are in the cache"));
        }
        let (mut tokens, mut values) = (0, 0);
        let packs = self.sets.iter().zip(&self.packs);
        for (trees, pack) in packs.flat_map(|(trees, packs)| packs.iter().map(move |pack| (trees, pack))) {
            let batch = batches::build(trees, pack)?;
            tokens += batch.forest.len();
            values += batch.forest.rows();
        }
        let known = if self.cache.is_some() {
            format!("{} of {rows} rows are in the cache; ", rows - missing)
        } else {
            String::new()
        };
        Ok(format!("{known}{missing} rows to compute, {tokens} tokens, {}", human(4 * values)))
    }

    /// Computes what is missing, writes it to the file and keeps it. `go_on` hears how much is done; `None` if it
    /// says no.
    ///
    /// # Errors
    /// A launch fails, a log-probability is not finite, or the file cannot be written.
    pub fn run(&mut self, mut go_on: impl FnMut(Computed) -> bool) -> Result<Option<()>> {
        let ahead = self.model.device().runs_ahead();
        let (mut done, mut unread) = (Computed::default(), None);
        let packs = mem::take(&mut self.packs);
        let all = packs.iter().enumerate().flat_map(|(set, packs)| packs.iter().map(move |pack| (set, pack)));
        // One turn more than packs, for the last to be read.
        for pack in all.map(Some).chain([None]) {
            let launched = pack.map(|(set, pack)| self.launch(set, pack)).transpose()?;
            // Where launches return at once, this pack is computed while the one before is read.
            let ready = if ahead { mem::replace(&mut unread, launched) } else { launched };
            let Some(UnreadPack { batch, logps }) = ready else { continue };
            self.take(&batch, &logps.wait()?)?;
            if self.kept.elapsed() > KEEP_EVERY || self.fresh_bytes > KEEP_BYTES {
                self.keep();
            }
            done.examples += batch.trees.len();
            done.tokens += batch.forest.len() as u64;
            if !go_on(done) {
                self.keep();
                return Ok(None);
            }
        }
        self.keep();
        Ok(Some(()))
    }

    fn launch(&self, set: usize, pack: &[u32]) -> Result<UnreadPack> {
        let batch = batches::build(self.sets[set], pack)?;
        let on_device = self.model.upload(&batch.forest)?;
        self.model.forward(&on_device)?;
        let logps = self.model.device().read(&self.model.logps(&on_device)?)?;
        Ok(UnreadPack { batch, logps })
    }

    fn take(&mut self, batch: &MicroBatch, logps: &[f32]) -> Result<()> {
        for (tree, rows) in batch.trees.iter().zip(batch.forest.tree_rows.windows(2)) {
            let values = &logps[rows[0]..rows[1]];
            ensure!(
                values.iter().all(|v| v.is_finite()),
                "{}: the starting weights give a log-probability that is not finite",
                tree.name
            );
            let key = row_key(tree);
            put(&self.keys, &key, values, self.file)?;
            if self.cache.is_some() {
                self.fresh_bytes += size_of_val(values);
                self.fresh.push((key, values.to_vec()));
            }
        }
        Ok(())
    }

    /// Hands what was computed to the cache; a cache that cannot be written costs a warning.
    fn keep(&mut self) {
        let fresh = mem::take(&mut self.fresh);
        (self.kept, self.fresh_bytes) = (Instant::now(), 0);
        let Some(cache) = &self.cache else { return };
        let rows: Vec<(Key, &[f32])> = fresh.iter().map(|(key, values)| (*key, &values[..])).collect();
        if let Err(why) = cache.write(&rows) {
            self.warnings.push(format!("{why:#}: these log-probabilities are not kept"));
        }
    }
}

/// Writes what a cache has of these rows to the file; gives a line for each piece that was damaged.
fn look_up(cache: &ReferenceCache, keys: &mut RowKeys, file: &ValueFile) -> Result<Vec<String>> {
    cache.read(|key, values| {
        let Some(same) = keys.of(&key) else { return Ok(true) };
        let place = same.place();
        // Of several pieces the first counts.
        if keys.is_found(same) {
            return Ok(true);
        }
        let fits = put(keys, &key, values, file)?;
        if fits {
            keys.set_found(place);
        }
        Ok(fits)
    })
}

/// Writes the values of all rows with this key; false if they have another number of them.
fn put(keys: &RowKeys, key: &Key, values: &[f32], file: &ValueFile) -> Result<bool> {
    let Some(same) = keys.of(key) else { return Ok(true) };
    same.rows().try_fold(true, |fits, row| Ok(file.put(row, values)? && fits))
}
