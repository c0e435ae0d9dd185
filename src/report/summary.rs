//! A run's figures in words: how far it is, how fast it was, and its metrics, training beside held out.

use std::time::Duration;

use super::{
    history::{Curve, HELD_OUT, History},
    numbers::{label, short},
    settings::Difference,
};
use crate::{
    loss::higher_is_better,
    units::{duration, human},
};

/// What says how a step went, and not what was learnt.
pub const ABOUT_STEPS: [&str; 9] = [
    "epoch",
    "learning_rate",
    "num_tokens",
    "skipped_steps",
    "tokens_per_second",
    "speed_of_light",
    "step_ms",
    "memory_bytes",
    "recompute_flops_share",
];

/// What a run cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Of its steps alone.
    pub time: Duration,
    /// Trained on.
    pub tokens: f64,
    /// Over all steps.
    pub tokens_per_second: f64,
    /// The mean share of the device's peak, where that is known.
    pub speed_of_light: Option<f64>,
    /// On the device, at most.
    pub memory_bytes: f64,
    /// Steps whose update was not applied.
    pub skipped_steps: f64,
}

impl Cost {
    /// The cost of a run so far.
    pub fn of(run: &History) -> Self {
        let last = |name| run.training(name).and_then(|curve| curve.last()).unwrap_or_default();
        let milliseconds =
            run.training("step_ms").map_or(0.0, |curve| curve.values.iter().filter(|v| v.is_finite()).sum());
        let tokens: f64 = last("num_tokens");
        Self {
            time: Duration::try_from_secs_f64(milliseconds / 1e3).unwrap_or_default(),
            tokens,
            tokens_per_second: if milliseconds > 0.0 { tokens / milliseconds * 1e3 } else { 0.0 },
            speed_of_light: run.training("speed_of_light").and_then(Curve::mean),
            memory_bytes: last("memory_bytes"),
            skipped_steps: last("skipped_steps"),
        }
    }

    /// In a line.
    pub fn line(&self) -> String {
        let mut parts = vec![
            format!("{} of steps", duration(self.time)),
            format!("{:.0} tokens/s", self.tokens_per_second),
            format!("{} tokens", label(self.tokens)),
            format!("memory {}", human(self.memory_bytes as usize)),
        ];
        parts.extend(self.speed_of_light.map(|share| format!("speed of light {:.1} %", 100.0 * share)));
        parts.extend((self.skipped_steps > 0.0).then(|| format!("{} steps skipped", self.skipped_steps)));
        parts.join(", ")
    }
}

/// Last and best values of a metric on one side: in training or on held-out rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Side {
    /// The last value.
    pub last: Option<f64>,
    /// The best one's step and value, where it is known which way is better.
    pub best: Option<(u64, f64)>,
}

/// A metric of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Without `eval_`.
    pub name: String,
    /// Training, and held-out rows.
    pub sides: [Side; 2],
}

/// The metrics of what was learnt, in the order of the records.
pub fn rows(run: &History) -> Vec<Row> {
    let mut names: Vec<&str> = Vec::new();
    for name in run.curves.keys().map(|name| name.strip_prefix(HELD_OUT).unwrap_or(name)) {
        if !names.contains(&name) && !ABOUT_STEPS.contains(&name) {
            names.push(name);
        }
    }
    names.into_iter().map(|name| row(run, name)).collect()
}

/// One metric.
pub fn row(run: &History, name: &str) -> Row {
    let sides = [run.training(name), run.held_out(name)].map(|curve| Side {
        last: curve.and_then(|curve| curve.last()),
        best: curve.and_then(|curve| curve.best(higher_is_better(name)?)),
    });
    Row { name: name.to_owned(), sides }
}

/// Where a run stands, in a line.
pub fn state(run: &History) -> String {
    let epoch = run.training("epoch").and_then(Curve::last).unwrap_or_default();
    let steps = run.last_step();
    match run.finished {
        true => format!("finished after {steps} steps, {} epochs", label(epoch)),
        false => format!("at step {steps}, {} epochs; no final model yet", label(epoch)),
    }
}

/// Everything about the runs.
pub fn text(runs: &[History]) -> String {
    let mut text: Vec<String> = runs.iter().map(one).collect();
    if runs.len() > 1 {
        text.push(differing(runs, &History::differences(runs)));
    }
    text.join("\n")
}

fn one(run: &History) -> String {
    let mut text = format!("{}: {}\n  {}\n", run.folder.display(), state(run), Cost::of(run).line());
    if run.broken > 0 {
        text += &format!("  left out, for they are no records: {} of the lines of {}\n", run.broken, super::METRICS);
    }
    let rows = rows(run);
    let has_held_out = rows.iter().any(|row| row.sides[1].last.is_some());
    let sides = if has_held_out { &["training", "held out"][..] } else { &["training"] };
    let mut table = vec![vec![String::new()]];
    for side in sides {
        table[0].extend([*side, "best", "step"].map(str::to_owned));
    }
    for Row { name, sides: values } in &rows {
        let mut line = vec![name.clone()];
        values[..sides.len()].iter().for_each(|side| line.extend(cells(side)));
        table.push(line);
    }
    text + &columns(&table)
}

fn cells(side: &Side) -> [String; 3] {
    let best = side.best.map(|(step, value)| (short(value), step.to_string())).unwrap_or_default();
    [side.last.map_or(String::new(), short), best.0, best.1]
}

fn differing(runs: &[History], differences: &[Difference]) -> String {
    if differences.is_empty() {
        return "the configurations are the same\n".into();
    }
    let mut table =
        vec![std::iter::once("differs".to_owned()).chain(runs.iter().map(|run| run.name.clone())).collect()];
    for Difference { key, values } in differences {
        let values = values.iter().map(|value| value.clone().unwrap_or_else(|| "not set".into()));
        table.push(std::iter::once(key.clone()).chain(values).collect::<Vec<_>>());
    }
    columns(&table)
}

/// The first column to the left, the others to the right.
fn columns(table: &[Vec<String>]) -> String {
    let count = table.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| table.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or_default()).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate();
        let cells = cells.map(|(place, (cell, &width))| match place {
            0 => format!("  {cell:<width$}"),
            _ => format!("  {cell:>width$}"),
        });
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    table.iter().map(line).collect()
}
