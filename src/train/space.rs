//! Whether the disk has room for what a run will write.

use std::{fs, path::Path};

use anyhow::{Result, ensure};

use super::checkpoint;
use crate::{config::Config, device::DType, files::disk, model::MemoryPlan, units::human};

/// Bytes of a record of `metrics.jsonl`, about.
const RECORD: u64 = 1 << 10;
/// Records that are reckoned with at most: a run without an end in sight is not refused for them.
const RECORDS: u64 = 1 << 20;
/// Files of a model folder that a checkpoint has a copy of, by their ends.
const COPIED: [&str; 5] = ["json", "jinja", "model", "txt", "py"];

/// What a run still writes.
pub struct Writes<'a> {
    pub plan: &'a MemoryPlan,
    /// Rows with a reference value.
    pub reference_rows: usize,
    /// Whether a checkpoint has the weights of the reference too.
    pub follows: bool,
    /// Steps done, and all of them.
    pub steps: [u64; 2],
}

impl Writes<'_> {
    /// Refuses a run that the disk has no room for: checkpoints as many as are kept and the one in the making, the model at
    /// the end, reference values, metrics. Gives a line where there is room for the run only if fewer checkpoints are kept, or
    /// saved, than may be.
    ///
    /// # Errors
    /// Names need, room and remedy.
    pub fn check(&self, out: &Path, config: &Config) -> Result<Option<String>> {
        let Some(free) = disk::free(out) else { return Ok(None) };
        let there = checkpoint::list(out).map_or(0, |found| found.len() as u64);
        let [certain, possible] = self.checkpoints(there, config);
        let size = self.checkpoint_bytes(config);
        let [need, most] =
            [certain, possible].map(|count| count.saturating_mul(size).saturating_add(self.rest(config)));
        let shown = |bytes: u64| human(usize::try_from(bytes).unwrap_or(usize::MAX));
        let fewer = format!("lower `train.keep_checkpoints` = {} ", config.train.keep_checkpoints);
        ensure!(
            need <= free,
            "run folder {}: the run writes {} ({certain} times {} for a checkpoint, and final/), free are {}: make room \
             there, {}or name a folder elsewhere by --out",
            out.display(),
            shown(need),
            shown(size),
            shown(free),
            if certain > 1 { &fewer } else { "" }
        );
        Ok((most > free).then(|| {
            format!(
                "disk: {} free, with every checkpoint that may come and stay the run writes {}: make room, or lower \
                 train.keep_checkpoints = {}",
                shown(free),
                shown(most),
                config.train.keep_checkpoints
            )
        }))
    }

    /// New checkpoints on the disk at a time: those that are certain to come, and with those that the clock may add and that
    /// `keep_checkpoints` = 0 lets stay.
    fn checkpoints(&self, there: u64, config: &Config) -> [u64; 2] {
        let [done, all] = self.steps;
        let train = &config.train;
        let last = u64::from(done < all);
        let saved_by = |step: u64| step.checked_div(train.save_every).unwrap_or(0);
        let before_last = all.saturating_sub(1);
        let planned = if all == 0 { 0 } else { saved_by(before_last) - saved_by(done.min(before_last)) + last };
        let keep = train.keep_checkpoints as u64;
        // The oldest goes when a new one is whole.
        let at_once = (keep + 1).saturating_sub(there).max(1);
        if keep == 0 {
            return [planned.min(1), planned];
        }
        let clock = if train.save_minutes > 0.0 { all - done.min(all) } else { 0 };
        [planned.min(at_once), planned.max(clock).min(at_once)]
    }

    fn elements(&self) -> u64 {
        (self.plan.parameters / bytes(self.plan.precision)) as u64
    }

    /// Weights, what the optimizer remembers, the masters where weights are not f32, and the files that come along.
    fn checkpoint_bytes(&self, config: &Config) -> u64 {
        let masters = if self.plan.precision == DType::F32 { 0 } else { 4 * self.elements() };
        let models = 1 + u64::from(self.follows);
        models * (self.plan.parameters as u64 + companions(&config.model.path)) + self.plan.optimizer as u64 + masters
    }

    /// `final/`, `ema/`, `best/` and the one that takes its place, reference values, metrics.
    fn rest(&self, config: &Config) -> u64 {
        let [done, all] = self.steps;
        let last = self.plan.parameters as u64 + companions(&config.model.path);
        let best = if config.train.save_best.is_some() { 2 * last } else { 0 };
        let mean = if config.train.ema > 0.0 { last } else { 0 };
        last + best + mean + 4 * self.reference_rows as u64 + RECORD * (all - done.min(all)).min(RECORDS)
    }
}

fn bytes(dtype: DType) -> usize {
    if dtype == DType::Bf16 { 2 } else { 4 }
}

/// Bytes of the files that a saved folder has from its source.
fn companions(source: &Path) -> u64 {
    let entries = fs::read_dir(source).into_iter().flatten().flatten().map(|entry| entry.path());
    let copied = entries.filter(|path| path.extension().is_some_and(|end| COPIED.iter().any(|copied| end == *copied)));
    copied.filter_map(|path| Some(fs::metadata(path).ok()?.len())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps, `save_every`, `save_minutes` and `keep_checkpoints` of a run, checkpoints there are, and how many come at a time.
    type Case = ([u64; 2], u64, f64, usize, u64, [u64; 2]);

    #[test]
    fn checkpoints_at_a_time_are_those_kept_and_one_in_the_making() {
        let cases: [Case; 10] = [
            ([0, 40], 0, 0.0, 2, 0, [1, 1]),
            ([0, 40], 0, 30.0, 2, 0, [1, 3]),
            ([0, 40], 10, 0.0, 2, 0, [3, 3]),
            ([0, 40], 20, 0.0, 2, 0, [2, 2]),
            ([0, 40], 30, 0.0, 2, 0, [2, 2]),
            ([0, 12], 1, 0.0, 0, 0, [1, 12]),
            ([20, 40], 10, 0.0, 2, 2, [1, 1]),
            ([20, 40], 10, 0.0, 1, 5, [1, 1]),
            ([40, 40], 10, 30.0, 2, 2, [0, 0]),
            ([0, 1], 1, 30.0, 2, 0, [1, 1]),
        ];
        let shape =
            crate::model::ModelConfig::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart-model"));
        let capacity = crate::model::Capacity { tokens: 64, rows: 64, head_chunk_rows: 16 };
        let plan = MemoryPlan::new(&shape.unwrap(), DType::F32, capacity).unwrap();
        for (steps, save_every, save_minutes, keep_checkpoints, there, want) in cases {
            let writes = Writes { plan: &plan, reference_rows: 0, follows: false, steps };
            let mut config = Config::default();
            config.train = crate::config::TrainSection { save_every, save_minutes, keep_checkpoints, ..config.train };
            assert_eq!(
                writes.checkpoints(there, &config),
                want,
                "{steps:?} {save_every} {save_minutes} {keep_checkpoints}"
            );
        }
    }
}
