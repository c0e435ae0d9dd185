//! Typed look-ups in a `config.json`; every message names key and value.

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use super::{LARGEST_DEPTH, LARGEST_DIM};

/// The JSON object.
pub(super) struct Fields<'a>(pub &'a Map<String, Value>);

impl Fields<'_> {
    /// A key that is absent or null counts as not given, as in transformers.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    pub fn optional_dim(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let dim = value.as_u64().filter(|dim| (1..=LARGEST_DIM).contains(dim));
        let dim = dim.ok_or_else(|| anyhow!("{key} {value}: expected a whole number from 1 to {LARGEST_DIM}"))?;
        Ok(Some(dim as usize))
    }

    pub fn dim(&self, key: &str) -> Result<usize> {
        self.optional_dim(key)?.ok_or_else(|| anyhow!("{key} is missing"))
    }

    /// A number of layers: each has entries in tables made before the size of the whole is checked.
    pub fn layers(&self, key: &str) -> Result<usize> {
        let layers = self.dim(key)?;
        ensure!(layers <= LARGEST_DEPTH, "{key} {layers}: expected at most {LARGEST_DEPTH}");
        Ok(layers)
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| anyhow!("{key} {value}: expected a number"))
    }

    pub fn flag(&self, key: &str) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(false) };
        value.as_bool().ok_or_else(|| anyhow!("{key} {value}: expected true or false"))
    }

    /// Refuses every value but one.
    pub fn only(&self, key: &str, only: &Value) -> Result<()> {
        match self.get(key) {
            Some(value) if value != only => bail!("{key} {value} does not run: only {only} does"),
            _ => Ok(()),
        }
    }

    /// A number that has to be above 0.
    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.number(key)? else { return Ok(None) };
        ensure!(value.is_finite() && value > 0.0, "{key} {value}: expected a positive number");
        Ok(Some(value))
    }

    /// A list of `len` entries.
    pub fn list(&self, key: &str, len: usize) -> Result<Option<&Vec<Value>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value.as_array().filter(|list| list.len() == len);
        list.map(Some).ok_or_else(|| anyhow!("{key} {value}: expected a list with one entry for each of {len} layers"))
    }

    /// An object inside this one.
    pub fn object(&self, key: &str) -> Result<Option<Fields<'_>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_object().map(|map| Some(Fields(map))).ok_or_else(|| anyhow!("{key} {value}: expected an object"))
    }
}
