//! Configurations side by side.

use anyhow::Result;
use indexmap::{IndexMap, IndexSet};
use toml::{Table, Value};

/// Keys with the names of their sections, and values as TOML writes them.
pub type Settings = IndexMap<String, String>;

/// A key that is not the same in all configurations, with the value of each; `None` where it is not set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Such as `loss.beta`.
    pub key: String,
    /// As TOML writes them.
    pub values: Vec<Option<String>>,
}

/// The settings of a configuration.
///
/// # Errors
/// The text is no TOML.
pub fn by_key(text: &str) -> Result<Settings> {
    let table: Table = text.parse()?;
    let mut found = Settings::new();
    flatten("", &Value::Table(table), &mut found);
    Ok(found)
}

/// Where these differ.
pub fn differences(all: &[&Settings]) -> Vec<Difference> {
    let keys: IndexSet<&String> = all.iter().flat_map(|settings| settings.keys()).collect();
    let row = |key: &String| Difference {
        key: key.clone(),
        values: all.iter().map(|settings| settings.get(key).cloned()).collect(),
    };
    keys.into_iter().map(row).filter(|row| row.values.iter().any(|value| *value != row.values[0])).collect()
}

fn flatten(prefix: &str, value: &Value, found: &mut Settings) {
    let name = |key: &str| if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
    match value {
        Value::Table(table) => table.iter().for_each(|(key, value)| flatten(&name(key), value, found)),
        // A list of tables, such as several losses.
        Value::Array(list) if list.iter().any(Value::is_table) => {
            list.iter().enumerate().for_each(|(place, value)| flatten(&name(&place.to_string()), value, found));
        }
        value => drop(found.insert(prefix.to_owned(), value.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_names_of_set() {
        let found = by_key("seed = 1\n[optim]\nlr = 1e-5\nbetas = [0.9, 0.95]\n[[loss]]\nname = \"dpo\"\n").unwrap();
        let pairs: Vec<_> = found.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        assert_eq!(pairs, ["loss.0.name = \"dpo\"", "optim.betas = [0.9, 0.95]", "optim.lr = 0.00001", "seed = 1"]);
    }
}
