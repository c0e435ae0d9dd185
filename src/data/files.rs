//! The data files of a set: one, or several, each with its weight, share and names of columns.

use std::{fmt, path::PathBuf};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, SeqAccess, Visitor, value::MapAccessDeserializer},
};

use super::records::Columns;

/// A file or a pattern, and how often an epoch takes each of its rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedFile {
    /// A file, or a pattern such as `part-*.jsonl` that stands for every file that fits, by name.
    pub path: PathBuf,
    /// 1 takes every row once, 2.5 twice and half of them once more, drawn anew each epoch; above 0, at most 1000.
    #[serde(default = "once")]
    pub weight: f32,
    /// Share of its rows that are taken, drawn once by `train.seed`; above 0, at most 1.
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub fraction: f64,
    /// Its names of fields, where they are others than `data.columns` says.
    #[serde(default, skip_serializing_if = "Columns::is_empty")]
    pub columns: Columns,
}

/// In TOML a path, or a list of paths and of tables `{ path = "more.jsonl", weight = 2.0 }`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Files(pub Vec<WeightedFile>);

fn once() -> f32 {
    1.0
}

fn whole() -> f64 {
    1.0
}

fn is_whole(fraction: &f64) -> bool {
    *fraction == whole()
}

impl From<PathBuf> for WeightedFile {
    fn from(path: PathBuf) -> Self {
        Self { path, weight: once(), fraction: whole(), columns: Columns::new() }
    }
}

impl From<PathBuf> for Files {
    fn from(path: PathBuf) -> Self {
        Self(vec![path.into()])
    }
}

impl WeightedFile {
    /// The names of its fields, where its own come before those of all files.
    pub fn columns_over(&self, all: &Columns) -> Columns {
        let mut columns = all.clone();
        columns.extend(self.columns.clone());
        columns
    }

    /// Whether there is nothing to say of it but its path.
    fn is_plain(&self) -> bool {
        self.weight == once() && is_whole(&self.fraction) && self.columns.is_empty()
    }
}

impl Files {
    /// True if a file is taken otherwise than once.
    pub fn weighted(&self) -> bool {
        self.0.iter().any(|source| source.weight != once())
    }
}

impl Serialize for Files {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [file] if file.is_plain() => file.path.serialize(serializer),
            sources if sources.iter().all(WeightedFile::is_plain) => {
                serializer.collect_seq(sources.iter().map(|source| &source.path))
            }
            sources => serializer.collect_seq(sources),
        }
    }
}

/// A path, or a table in a list.
struct Entry(WeightedFile);

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntryVisitor;
        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or a table with `path`, `weight`, `fraction` and `columns`")
            }

            fn visit_str<E: Error>(self, path: &str) -> Result<Entry, E> {
                Ok(Entry(PathBuf::from(path).into()))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Entry, A::Error> {
                WeightedFile::deserialize(MapAccessDeserializer::new(map)).map(Entry)
            }
        }
        deserializer.deserialize_any(EntryVisitor)
    }
}

impl<'de> Deserialize<'de> for Files {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FilesVisitor;
        impl<'de> Visitor<'de> for FilesVisitor {
            type Value = Files;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or a list of paths and tables with `path`, `weight`, `fraction` and `columns`")
            }

            fn visit_str<E: Error>(self, path: &str) -> Result<Files, E> {
                Ok(PathBuf::from(path).into())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Files, A::Error> {
                let mut sources = Vec::new();
                while let Some(Entry(source)) = list.next_element()? {
                    sources.push(source);
                }
                Ok(Files(sources))
            }
        }
        deserializer.deserialize_any(FilesVisitor)
    }
}
