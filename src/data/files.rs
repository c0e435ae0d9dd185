//! The data files of a set: one, or several with weights.

use std::{fmt, path::PathBuf};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, SeqAccess, Visitor, value::MapAccessDeserializer},
};

/// A file or a pattern, and how often an epoch takes each of its rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightedFile {
    /// A file, or a pattern such as `part-*.jsonl` that stands for every file that fits, by name.
    pub path: PathBuf,
    /// 1 takes every row once, 2.5 twice and half of them once more, drawn anew each epoch; above 0, at most 1000.
    #[serde(default = "once")]
    pub weight: f32,
}

/// In TOML a path, or a list of paths and of tables `{ path = "more.jsonl", weight = 2.0 }`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Files(pub Vec<WeightedFile>);

fn once() -> f32 {
    1.0
}

impl From<PathBuf> for WeightedFile {
    fn from(path: PathBuf) -> Self {
        Self { path, weight: once() }
    }
}

impl From<PathBuf> for Files {
    fn from(path: PathBuf) -> Self {
        Self(vec![path.into()])
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
            [WeightedFile { path, weight }] if *weight == once() => path.serialize(serializer),
            sources if !self.weighted() => serializer.collect_seq(sources.iter().map(|source| &source.path)),
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
                f.write_str("a path or a table with `path` and `weight`")
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
                f.write_str("a path or a list of paths and tables with `path` and `weight`")
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
