//! Number formats of what an optimizer keeps, bit for bit against vectors that `tests/parity/make_memory_vectors.py` made.
//! `MEMORY_VECTORS` names another file of the same kind.

mod gradients;
mod moments;
mod philox;
mod split_master;

use serde_json::Value;

/// An entry of the file.
pub fn vector(name: &str) -> Value {
    let text = match std::env::var_os("MEMORY_VECTORS") {
        Some(path) => std::fs::read_to_string(path).expect("MEMORY_VECTORS names a file"),
        None => include_str!("../fixtures/memory_vectors.json").to_owned(),
    };
    let mut all: Value = serde_json::from_str(&text).unwrap();
    let found = all[name].take();
    assert!(found.is_object(), "no entry `{name}`");
    found
}

/// Unsigned integers.
fn integers<U: TryFrom<u64>>(value: &Value) -> Vec<U> {
    let integer = |value: &Value| U::try_from(value.as_u64().unwrap()).ok().unwrap();
    value.as_array().unwrap().iter().map(integer).collect()
}

/// f32 by their bits.
fn floats(value: &Value) -> Vec<f32> {
    integers::<u32>(value).into_iter().map(f32::from_bits).collect()
}
