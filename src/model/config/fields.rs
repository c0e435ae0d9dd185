//! Typed look-ups in a `config.json`; every message names key and value.
//!
//! Absent and null are two things, as in transformers: an absent key has the class's default, and null is a value of its
//! own, which most keys do not take.

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use super::{LARGEST_DEPTH, LARGEST_DIM};

/// The JSON object, or one inside it.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    /// What stands in front of a key in messages: nothing, or `rope_scaling.` and the like.
    place: String,
}

impl<'a> Fields<'a> {
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Self::inside(map, "")
    }

    /// An object that stands under `place`.
    pub fn inside(map: &'a Map<String, Value>, place: &str) -> Self {
        let place = if place.is_empty() { String::new() } else { format!("{place}.") };
        Self { map, place }
    }

    pub fn raw(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// The key as messages name it.
    pub fn name(&self, key: &str) -> String {
        format!("{}{key}", self.place)
    }

    /// What stands under the key, null too.
    pub fn given(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key)
    }

    /// What stands under the key, unless it is null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.given(key).filter(|value| !value.is_null())
    }

    pub fn dim(&self, key: &str, default: usize) -> Result<usize> {
        self.given(key).map_or(Ok(default), |value| self.whole(key, value, 1))
    }

    /// A dimension that may be null.
    pub fn nullable_dim(&self, key: &str, default: Option<usize>) -> Result<Option<usize>> {
        match self.given(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => self.whole(key, value, 1).map(Some),
        }
    }

    /// A number that may be 0.
    pub fn count(&self, key: &str, default: usize) -> Result<usize> {
        self.given(key).map_or(Ok(default), |value| self.whole(key, value, 0))
    }

    fn whole(&self, key: &str, value: &Value, least: u64) -> Result<usize> {
        let dim = value.as_u64().filter(|dim| (least..=LARGEST_DIM).contains(dim));
        let wanted = || anyhow!("{} {value}: expected a whole number from {least} to {LARGEST_DIM}", self.name(key));
        Ok(dim.ok_or_else(wanted)? as usize)
    }

    /// A number of layers: each has entries in tables made before the size of the whole is checked.
    pub fn layers(&self, key: &str, default: usize) -> Result<usize> {
        let layers = self.dim(key, default)?;
        ensure!(layers <= LARGEST_DEPTH, "{} {layers}: expected at most {LARGEST_DEPTH}", self.name(key));
        Ok(layers)
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.given(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| anyhow!("{} {value}: expected true or false", self.name(key)))
    }

    /// Refuses every value but one.
    pub fn only(&self, key: &str, only: &Value) -> Result<()> {
        match self.given(key) {
            Some(value) if value != only => bail!("{} {value} does not run: only {only} does", self.name(key)),
            _ => Ok(()),
        }
    }

    /// Refuses every number but one; null is one more where `nullable`.
    pub fn only_number(&self, key: &str, only: f64, nullable: bool) -> Result<()> {
        match self.given(key) {
            None => Ok(()),
            Some(Value::Null) if nullable => Ok(()),
            Some(value) if value.as_f64() == Some(only) => Ok(()),
            Some(value) => bail!("{} {value} does not run: only {only} does", self.name(key)),
        }
    }

    /// Refuses every value but null.
    pub fn nothing(&self, key: &str, remedy: &str) -> Result<()> {
        self.get(key).map_or(Ok(()), |value| bail!("{} {value} does not run: {remedy}", self.name(key)))
    }

    /// A number that has to be above 0.
    pub fn positive(&self, key: &str, default: f64) -> Result<f64> {
        self.given(key).map_or(Ok(default), |value| self.above_zero(key, value))
    }

    /// A number above 0, or null.
    pub fn nullable_positive(&self, key: &str, default: Option<f64>) -> Result<Option<f64>> {
        match self.given(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(value) => self.above_zero(key, value).map(Some),
        }
    }

    /// A number above 0 that has to be there.
    pub fn needed(&self, key: &str) -> Result<f64> {
        let value = self.given(key).ok_or_else(|| anyhow!("{} is missing", self.name(key)))?;
        self.above_zero(key, value)
    }

    fn above_zero(&self, key: &str, value: &Value) -> Result<f64> {
        let number = value.as_f64().ok_or_else(|| anyhow!("{} {value}: expected a number", self.name(key)))?;
        ensure!(number.is_finite() && number > 0.0, "{} {value}: expected a positive number", self.name(key));
        Ok(number)
    }

    /// A list of `len` entries.
    pub fn list(&self, key: &str, len: usize) -> Result<Option<&'a Vec<Value>>> {
        let list = self.list_of_at_least(key, len)?;
        ensure!(
            list.is_none_or(|list| list.len() == len),
            "{}: expected a list with one entry for each of {len} layers",
            self.name(key)
        );
        Ok(list)
    }

    /// A list of `len` entries or more.
    pub fn list_of_at_least(&self, key: &str, len: usize) -> Result<Option<&'a Vec<Value>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value.as_array().filter(|list| list.len() >= len);
        let wanted = || anyhow!("{} {value}: expected a list with one entry for each of {len} layers", self.name(key));
        list.map(Some).ok_or_else(wanted)
    }

    /// An object inside this one.
    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let name = self.name(key);
        let map = value.as_object().ok_or_else(|| anyhow!("{name} {value}: expected an object"))?;
        Ok(Some(Self::inside(map, &name)))
    }
}
