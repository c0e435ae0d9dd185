//! Shapes of released models by name, for whoever looks before a download; of their `config.json` what decides about memory and
//! work.

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use super::ModelConfig;

/// `benches/baselines` reads it too.
const SHAPES: &str = include_str!("../../benches/shapes.json");
/// Not released: for tests and the host device's bench.
const SMALL: &str = "small";

/// The shape of that name, if there is one.
///
/// # Errors
/// It is not one that warpo runs.
pub fn shape(name: &str) -> Result<Option<ModelConfig>> {
    let all = read()?;
    let Some(config) = all.get(name) else { return Ok(None) };
    ModelConfig::parse(&config.to_string()).with_context(|| format!("benches/shapes.json: {name}")).map(Some)
}

/// The names of all released ones.
///
/// # Errors
/// The file is damaged.
pub fn names() -> Result<Vec<String>> {
    Ok(read()?.into_iter().map(|(name, _)| name).filter(|name| name != SMALL).collect())
}

fn read() -> Result<Map<String, Value>> {
    serde_json::from_str(SHAPES).context("benches/shapes.json")
}
