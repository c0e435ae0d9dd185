//! What a report has figures of: which metrics share one, and in which unit.

use indexmap::IndexSet;

use super::{
    history::{Curve, HELD_OUT, History},
    summary::ABOUT_STEPS,
};

/// A figure: one metric, or a chosen and a rejected one.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What stands above it.
    pub title: String,
    /// Its file's name, without an end.
    pub file: String,
    /// Names in `metrics.jsonl`: the second one's curve is dashed.
    pub metrics: Vec<String>,
    /// What values are multiplied by.
    pub scale: f64,
}

/// Metrics that every report has a figure of, if they were recorded: title, metrics, scale.
const PANELS: [(&str, &[&str], f64); 12] = [
    ("loss", &["loss"], 1.0),
    ("rewards/accuracies", &["rewards/accuracies"], 1.0),
    ("rewards/margins", &["rewards/margins"], 1.0),
    ("rewards: chosen, rejected", &["rewards/chosen", "rewards/rejected"], 1.0),
    ("log-probabilities: chosen, rejected", &["logps/chosen", "logps/rejected"], 1.0),
    ("entropy", &["entropy"], 1.0),
    ("mean_token_accuracy", &["mean_token_accuracy"], 1.0),
    ("grad_norm", &["grad_norm"], 1.0),
    ("learning_rate", &["learning_rate"], 1.0),
    ("tokens_per_second", &["tokens_per_second"], 1.0),
    ("speed_of_light, % of the device's peak", &["speed_of_light"], 100.0),
    ("memory, GiB", &["memory_bytes"], 1.0 / (1 << 30) as f64),
];

/// The figures of these runs, in order, and the metrics of the usual ones that no run has.
pub fn panels(runs: &[History]) -> (Vec<Panel>, Vec<&'static str>) {
    let recorded =
        |name: &str| runs.iter().any(|run| [run.training(name), run.held_out(name)].into_iter().any(is_drawn));
    let usual = PANELS.into_iter().filter(|(_, metrics, _)| metrics.iter().any(|name| recorded(name)));
    let mut panels: Vec<Panel> = usual.map(|(title, metrics, scale)| Panel::new(title, metrics, scale)).collect();
    let missing = PANELS.into_iter().flat_map(|(_, metrics, _)| metrics.iter().copied()).filter(|name| !recorded(name));
    let of_all = runs.iter().flat_map(|run| run.curves.keys());
    let names: IndexSet<&str> = of_all.map(|name| name.strip_prefix(HELD_OUT).unwrap_or(name)).collect();
    let usual: Vec<&str> =
        PANELS.iter().flat_map(|(_, metrics, _)| metrics.iter().copied()).chain(ABOUT_STEPS).collect();
    let others = names.into_iter().filter(|name| !usual.contains(name) && recorded(name));
    panels.extend(others.map(|name| Panel::new(name, &[name], 1.0)));
    (panels, missing.collect())
}

impl Panel {
    fn new(title: &str, metrics: &[&str], scale: f64) -> Self {
        let name = metrics.first().map_or("", |name| name.split('/').next().unwrap_or(name));
        let file = if metrics.len() > 1 { name } else { metrics[0] };
        let file = file.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' }).collect();
        Self { title: title.to_owned(), file, metrics: metrics.iter().map(|&name| name.to_owned()).collect(), scale }
    }
}

fn is_drawn(curve: Option<&Curve>) -> bool {
    curve.is_some_and(|curve| curve.values.iter().any(|value| value.is_finite()))
}
