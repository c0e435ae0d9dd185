//! A run read back from its folder: a curve for every metric, and its configuration. The run may be going on meanwhile.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use indexmap::IndexMap;
use serde_json::Value;

use super::{
    CONFIG, METRICS,
    metrics::MetricsRecord,
    pairs::{self, Pair},
    settings::{self, Difference, Settings},
};

/// What stands before the names of held-out metrics.
pub const HELD_OUT: &str = "eval_";

/// A metric over a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    /// Steps, rising.
    pub steps: Vec<u64>,
    /// As many values; NaN where the record has none.
    pub values: Vec<f64>,
}

impl Curve {
    /// Appends a value. One of an earlier step than the last takes back what follows it: the run went on from there.
    fn push(&mut self, step: u64, value: f64) {
        while self.steps.last().is_some_and(|&last| last >= step) {
            self.steps.pop();
            self.values.pop();
        }
        self.steps.push(step);
        self.values.push(value);
    }

    /// The last value.
    pub fn last(&self) -> Option<f64> {
        self.values.last().copied()
    }

    /// The largest value, or the smallest, and its step.
    pub fn best(&self, largest: bool) -> Option<(u64, f64)> {
        let finite = self.points().filter(|(_, value)| value.is_finite());
        finite.reduce(|best, point| {
            let better = if largest { point.1 > best.1 } else { point.1 < best.1 };
            if better { point } else { best }
        })
    }

    /// The mean of the finite values.
    pub fn mean(&self) -> Option<f64> {
        let finite = self.values.iter().filter(|value| value.is_finite());
        let (count, sum) = finite.fold((0, 0.0), |(count, sum), value| (count + 1, sum + value));
        (count > 0).then(|| sum / f64::from(count))
    }

    /// Steps and values.
    pub fn points(&self) -> impl Iterator<Item = (u64, f64)> + '_ {
        self.steps.iter().copied().zip(self.values.iter().copied())
    }
}

/// A run as its folder has it.
#[derive(Clone, Debug)]
pub struct History {
    /// What it is called: the folder's last name, or its path where another run has the same.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// By the names of `metrics.jsonl`, in the order they first came.
    pub curves: IndexMap<String, Curve>,
    /// Lines of `metrics.jsonl` that are no records; a last one without its end is not counted, it is still being written.
    pub broken: usize,
    /// The text of `config.toml`.
    pub config: String,
    /// The same by key.
    pub settings: Settings,
    /// Held-out pairs of the widest and of the narrowest margins.
    pub pairs: [Vec<Pair>; 2],
    /// Whether its final model is there.
    pub finished: bool,
}

impl History {
    /// Reads a run.
    ///
    /// # Errors
    /// The folder holds no run, or no record of it yet.
    pub fn read(folder: &Path) -> Result<Self> {
        let shown = folder.display();
        ensure!(folder.is_dir(), "{shown}: no such folder: name the folder of a run, such as runs/quickstart");
        let [config, metrics] = [CONFIG, METRICS].map(|name| folder.join(name));
        ensure!(config.is_file(), "{shown}: holds no run: {CONFIG} is missing: name what `warpo train` wrote to");
        ensure!(metrics.is_file(), "{shown}: nothing to report yet: the run in it has not begun its first step");
        let text = fs::read_to_string(&config).with_context(|| config.display().to_string())?;
        let mut history = Self {
            name: name(folder),
            folder: folder.to_path_buf(),
            curves: IndexMap::new(),
            broken: 0,
            settings: settings::by_key(&text).with_context(|| config.display().to_string())?,
            config: text,
            pairs: pairs::read(folder),
            finished: folder.join("final").is_dir(),
        };
        history.take_in(&metrics).with_context(|| format!("{}: cannot be read", metrics.display()))?;
        ensure!(!history.curves.is_empty(), "{shown}: nothing to report yet: {METRICS} has no record");
        Ok(history)
    }

    /// Reads several runs, each under a name of its own.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_all(folders: &[PathBuf]) -> Result<Vec<Self>> {
        let mut runs = folders.iter().map(|folder| Self::read(folder)).collect::<Result<Vec<_>>>()?;
        let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
        for run in &mut runs {
            if names.iter().filter(|name| **name == run.name).count() > 1 {
                run.name = run.folder.display().to_string();
            }
        }
        Ok(runs)
    }

    /// Where the configurations of runs differ.
    pub fn differences(runs: &[Self]) -> Vec<Difference> {
        settings::differences(&runs.iter().map(|run| &run.settings).collect::<Vec<_>>())
    }

    /// A metric in training.
    pub fn training(&self, name: &str) -> Option<&Curve> {
        self.curves.get(name)
    }

    /// The same on held-out rows.
    pub fn held_out(&self, name: &str) -> Option<&Curve> {
        self.curves.get(&format!("{HELD_OUT}{name}"))
    }

    /// The last step that has a record.
    pub fn last_step(&self) -> u64 {
        self.curves.values().filter_map(|curve| curve.steps.last()).copied().max().unwrap_or_default()
    }

    fn take_in(&mut self, path: &Path) -> Result<()> {
        let (mut file, mut line) = (BufReader::with_capacity(1 << 20, File::open(path)?), Vec::new());
        while file.read_until(b'\n', &mut line)? > 0 {
            let ended = line.ends_with(b"\n");
            match serde_json::from_slice::<MetricsRecord>(&line).ok().filter(|_| ended) {
                Some(record) if record.get("step").is_some_and(Value::is_u64) => self.add(&record),
                _ => self.broken += usize::from(ended),
            }
            line.clear();
        }
        Ok(())
    }

    fn add(&mut self, record: &MetricsRecord) {
        let step = record.get("step").and_then(Value::as_u64).unwrap_or_default();
        for (name, value) in record.iter().filter(|(name, _)| *name != "step") {
            let value = if value.is_null() { Some(f64::NAN) } else { value.as_f64() };
            let Some(value) = value else { continue };
            match self.curves.get_mut(name) {
                Some(curve) => curve.push(step, value),
                None => self.curves.entry(name.clone()).or_default().push(step, value),
            }
        }
    }
}

/// The last name of a path, also of `.` and `runs/..`.
fn name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    whole.file_name().unwrap_or(whole.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(metrics: &str) -> (tempfile::TempDir, Result<History>) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CONFIG), "[loss]\nname = \"dpo\"\n").unwrap();
        fs::write(folder.path().join(METRICS), metrics).unwrap();
        let history = History::read(folder.path());
        (folder, history)
    }

    #[test]
    fn a_live_run_is_read_to_its_last_whole_line() {
        let text = "{\"step\":1,\"loss\":0.5,\"speed_of_light\":null}\n{\"step\":1,\"epoch\":1,\"eval_loss\":0.25}\nnonsense\n\
                    {\"step\":2,\"loss\":0.75,\"text\":\"x\"}\n{\"step\":3,\"lo";
        let history = run(text).1.unwrap();
        assert_eq!(history.curves.keys().collect::<Vec<_>>(), ["loss", "speed_of_light", "epoch", "eval_loss"]);
        assert_eq!(history.training("loss").unwrap(), &Curve { steps: vec![1, 2], values: vec![0.5, 0.75] });
        assert_eq!(history.held_out("loss").unwrap().last(), Some(0.25));
        assert!(history.training("speed_of_light").unwrap().mean().is_none());
        assert_eq!((history.broken, history.last_step(), history.finished), (1, 2, false));
    }

    #[test]
    fn records_of_steps_done_again_count_once() {
        let lines = [1, 2, 3, 2, 3].map(|step| format!("{{\"step\":{step},\"loss\":{step}.5}}\n")).concat();
        assert_eq!(run(&lines).1.unwrap().training("loss").unwrap().steps, [1, 2, 3]);
    }

    #[test]
    fn the_best_is_finite() {
        let curve = Curve { steps: vec![1, 2, 3, 4], values: vec![f64::NAN, 2.0, 1.0, 3.0] };
        assert_eq!([curve.best(true), curve.best(false)], [Some((4, 3.0)), Some((3, 1.0))]);
    }

    #[test]
    fn what_is_no_run_is_refused() {
        let why = |folder: &Path| format!("{:#}", History::read(folder).unwrap_err());
        let empty = tempfile::tempdir().unwrap();
        assert!(why(empty.path()).ends_with("holds no run: config.toml is missing: name what `warpo train` wrote to"));
        assert!(why("/nowhere".as_ref()).starts_with("/nowhere: no such folder"));
        let (folder, history) = run("{\"step\":1");
        assert!(history.is_err() && why(folder.path()).ends_with("metrics.jsonl has no record"));
    }
}
