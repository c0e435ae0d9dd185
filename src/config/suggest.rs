//! What is said to an unknown key: the name it was meant to be, here or as another tool has it.

use super::{
    Config,
    names::{self, Name},
};
use crate::spelling::{distance, reach};

/// What comes between "unknown key" and the names that are known: empty if nothing is near.
pub(super) fn hint(key: &str) -> String {
    let last = last_part(key);
    let nearest = near(key);
    match names::known(last) {
        // The right name in the wrong section.
        _ if nearest.as_deref().is_some_and(|near| last_part(near) == last) => {}
        Some(Ok(name)) => return foreign(name),
        Some(Err(words)) => return format!("another tool's `{last}` has no counterpart: {words}; "),
        None => {}
    }
    nearest.map(|near| meant(&near)).unwrap_or_default()
}

fn foreign(name: &Name) -> String {
    let (owners, words, last) = (name.owners(), name.words, name.name);
    match (name.key, words.is_empty()) {
        (Some(key), true) => format!("{owners} `{last}` is `{key}` here; "),
        (Some(key), false) => format!("{owners} `{last}` is near to `{key}` here ({words}); "),
        (None, _) => format!("{owners} `{last}` has no counterpart: {words}; "),
    }
}

fn meant(key: &str) -> String {
    format!("did you mean `{key}`? ")
}

fn last_part(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// The key whose last part differs least, a third of its letters at most; of several the one in the same section.
fn near(key: &str) -> Option<String> {
    let (last, section) = (last_part(key), key.split('.').next());
    let distances = keys().into_iter().map(|known| (distance(last, last_part(&known)), known));
    let close = distances.filter(|(distance, _)| *distance <= reach(last));
    close.min_by_key(|(distance, known)| (*distance, known.split('.').next() != section)).map(|(_, known)| known)
}

/// Every key there is. Serde tells of them when it refuses one.
fn keys() -> Vec<String> {
    let unknown = || toml::Table::from_iter([("?".to_owned(), toml::Value::Integer(0))]);
    let sections = refused(unknown());
    let inside = |section: &String| {
        let names = refused(toml::Table::from_iter([(section.clone(), toml::Value::Table(unknown()))]));
        names.into_iter().map(|name| format!("{section}.{name}")).collect::<Vec<_>>()
    };
    sections.iter().flat_map(inside).chain(sections.clone()).collect()
}

/// The names that would have been right.
fn refused(table: toml::Table) -> Vec<String> {
    let Err(why) = table.try_into::<Config>() else { return Vec::new() };
    let known = why.message().split_once(", expected ").map_or("", |(_, known)| known);
    known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}
