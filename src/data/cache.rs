//! Token trees of a data file on the disk: what was encoded once is read back in its place.
//!
//! A file is found by its bytes and by everything that makes its trees: the model's tokenizer files, the options and the
//! code itself. Its own name is no part of that, so a row's name is stored without it. All of it is one file: trees, what
//! else is known of the rows, where that begins, and a checksum; a run reads its trees from there.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Dataset, Report,
    notes::{Note, Notes, Seen},
    template,
    trees::{Reader, Trees, Writer},
};
use crate::{
    cache::{Cache, Found, Key, KeyBuilder, remove_damaged},
    files::blob::Blob,
};

const KIND: &str = "tokens";
/// Changes with the format below.
const FORMAT: &str = "tokens 5";
/// Bytes that are copied at a time.
const BLOCK: usize = 1 << 20;
/// Bytes of the number that says where the index begins.
const NUMBER: usize = size_of::<u64>();
/// The files of a model folder that say how text becomes tokens.
const MODEL_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
];
/// Another way to read a row is another key, without a number to remember.
const CODE: &[&str] = &[
    include_str!("mod.rs"),
    include_str!("records.rs"),
    include_str!("records/columns.rs"),
    include_str!("records/extras.rs"),
    include_str!("records/messages.rs"),
    include_str!("records/published.rs"),
    include_str!("long.rs"),
    include_str!("notes.rs"),
    include_str!("source.rs"),
    include_str!("source/json.rs"),
    include_str!("source/pages.rs"),
    include_str!("source/table.rs"),
    include_str!("source/table/columns.rs"),
    include_str!("source/text.rs"),
    include_str!("encode.rs"),
    include_str!("encode/chat.rs"),
    include_str!("encode/documents.rs"),
    include_str!("encode/early.rs"),
    include_str!("encode/fit.rs"),
    include_str!("encode/left_out.rs"),
    include_str!("encode/marks.rs"),
    include_str!("encode/fit.rs"),
    include_str!("encode/reading.rs"),
    include_str!("encode/renderer.rs"),
    include_str!("encode/turns.rs"),
    include_str!("tokenize.rs"),
    include_str!("tokenize/added.rs"),
    include_str!("tokenize/long.rs"),
    include_str!("../forest.rs"),
    include_str!("../forest/value.rs"),
];

/// Crates that make tokens of text; another version is another key.
const CRATES: [&str; 2] = ["fancy-regex", "tokenizers"];

/// Where trees are kept, and what every file's key begins with.
#[derive(Clone, Debug)]
pub struct TokenCache {
    cache: Cache,
    key: KeyBuilder,
}

/// How the trees of a file were come by.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// Read from the cache.
    Cache,
    /// Encoded, and how long that took; `warning` says what was wrong with the cache, if something was.
    Encoded {
        /// What encoding took.
        time: Duration,
        /// What was wrong with the cache.
        warning: Option<String>,
    },
}

impl TokenCache {
    /// The cache in `folder` for a model folder and `options`, which tell any two ways to encode a file apart.
    ///
    /// # Errors
    /// A file of the model folder is there and cannot be read.
    pub fn new(folder: &Path, model: &Path, options: &str) -> Result<Self> {
        let mut key = KeyBuilder::new(FORMAT);
        for name in MODEL_FILES {
            let path = model.join(name);
            match fs::read(&path) {
                Ok(bytes) => key.part(name, &bytes),
                Err(why) if why.kind() == ErrorKind::NotFound => key.part("absent", name.as_bytes()),
                Err(why) => return Err(why).with_context(|| format!("`{}` cannot be read", path.display())),
            };
        }
        for code in CODE.iter().chain(&template::CODE) {
            key.part("code", code.as_bytes());
        }
        key.part("crates", crates(include_str!("../../Cargo.lock")).as_bytes());
        key.part("options", options.as_bytes());
        Ok(Self { cache: Cache::new(folder), key })
    }

    /// The same cache for a file that is read in a way of its own, which `how` says.
    pub fn reading(&self, how: &str) -> Self {
        let mut own = self.clone();
        own.key.part("own", how.as_bytes());
        own
    }

    /// The trees of `file`, read as a file of `kind`, from the cache, or those of `encode`, kept from then on. A cache
    /// that is damaged or cannot be written costs a warning and never the run.
    ///
    /// # Errors
    /// `file` cannot be read, or `encode` fails.
    pub fn load(&self, file: &Path, kind: &str, encode: impl FnOnce() -> Result<Dataset>) -> Result<(Dataset, Origin)> {
        let name = file.display().to_string();
        // A file that is not there is `encode`'s to refuse.
        let mut key = self.key.clone();
        let Ok(key) = key.part("read as", kind.as_bytes()).file("file", file).map(|key| key.finish()) else {
            return encoded(encode, None);
        };
        let warning = match self.read(&key, &name) {
            Ok(Look::Hit(data)) => return Ok((data, Origin::Cache)),
            Ok(Look::Absent) => None,
            Ok(Look::Damaged(path)) => Some(format!("{} was damaged: {name} is tokenised again", path.display())),
            Err(why) => Some(format!("{why:#}: {name} is tokenised again")),
        };
        let (mut data, mut origin) = encoded(encode, warning)?;
        match self.write(&key, &name, &data).and_then(|()| self.reopen(&key, &data)) {
            Ok(blob) => data.trees = data.trees.moved_to(blob),
            Err(why) => {
                if let Origin::Encoded { warning, .. } = &mut origin {
                    *warning = Some(format!("{why:#}: the tokens of {name} are not kept"));
                }
            }
        }
        Ok((data, origin))
    }

    fn read(&self, key: &Key, name: &str) -> Result<Look> {
        match self.cache.find(KIND, key)? {
            Found::Absent => Ok(Look::Absent),
            Found::Damaged(path) => Ok(Look::Damaged(path)),
            Found::Whole(file, len) => {
                let path = self.cache.path(KIND, key);
                open(file, len, &path, name).map(Look::Hit).or_else(|_| {
                    remove_damaged(&path)?;
                    Ok(Look::Damaged(path))
                })
            }
        }
    }

    fn write(&self, key: &Key, name: &str, data: &Dataset) -> Result<()> {
        self.cache.write(KIND, key, |out| {
            let trees = copy(data.trees.blob(), out)?;
            out.write_all(&index(data, name).0)?;
            Ok(out.write_all(&trees.to_le_bytes())?)
        })
    }

    /// The trees of a file that was written just now.
    fn reopen(&self, key: &Key, data: &Dataset) -> Result<Blob> {
        let path = self.cache.path(KIND, key);
        let file = File::open(&path).with_context(|| format!("cache file {}: cannot be read", path.display()))?;
        Ok(Blob::File { file, len: data.trees.blob().map_or(0, Blob::len), name: path.display().to_string() })
    }
}

/// Copies all bytes; gives their number.
fn copy(blob: Option<&Blob>, out: &mut dyn Write) -> Result<u64> {
    let Some(blob) = blob else { return Ok(0) };
    let mut block = vec![0; BLOCK];
    for place in (0..blob.len()).step_by(BLOCK) {
        let piece = &mut block[..(blob.len() - place).min(BLOCK as u64) as usize];
        blob.read_at(piece, place)?;
        out.write_all(piece)?;
    }
    Ok(blob.len())
}

/// What a cache file says beside the trees.
fn index(data: &Dataset, name: &str) -> Writer {
    let mut index = Writer::default();
    let Report { prompts_cut, responses_cut, rows_dropped, documents_cut, blocks } = data.report;
    let counts = [data.trees.len(), prompts_cut, responses_cut, rows_dropped, documents_cut, blocks];
    counts.into_iter().for_each(|count| index.number(count));
    index.number(data.skipped.len());
    data.skipped.iter().for_each(|why| index.text(why, name));
    write_notes(&mut index, &data.notes);
    index
}

/// The rows of a whole cache file, whose trees stay in it.
fn open(file: File, len: u64, path: &Path, name: &str) -> Result<Dataset> {
    let mut blob = Blob::File { file, len, name: format!("cache file {}", path.display()) };
    let mut number = [0; NUMBER];
    let end = len.checked_sub(NUMBER as u64).context("too short")?;
    blob.read_at(&mut number, end)?;
    let trees = u64::from_le_bytes(number);
    let size = end.checked_sub(trees).context("an index behind the end")?;
    let mut bytes = vec![0; usize::try_from(size)?];
    blob.read_at(&mut bytes, trees)?;
    if let Blob::File { len, .. } = &mut blob {
        *len = trees;
    }
    let mut data = Dataset::default();
    let mut index = Reader(&bytes);
    let count = index.number()?;
    let Report { prompts_cut, responses_cut, rows_dropped, documents_cut, blocks } = &mut data.report;
    for count in [prompts_cut, responses_cut, rows_dropped, documents_cut, blocks] {
        *count = index.number()?;
    }
    for _ in 0..index.number()? {
        data.skipped.push(index.text(name)?);
    }
    data.notes = read_notes(&mut index)?;
    data.trees = Trees::open(name, blob, count.min(usize::try_from(trees)?))?;
    ensure!(data.trees.len() == count, "{count} trees expected, found {}", data.trees.len());
    Ok(data)
}

enum Look {
    Hit(Dataset),
    Absent,
    Damaged(PathBuf),
}

fn encoded(encode: impl FnOnce() -> Result<Dataset>, warning: Option<String>) -> Result<(Dataset, Origin)> {
    let started = Instant::now();
    let data = encode()?;
    Ok((data, Origin::Encoded { time: started.elapsed(), warning }))
}

/// The versions of [`CRATES`] that a lock file has.
fn crates(lock: &str) -> String {
    let mut found = String::new();
    let mut lines = lock.lines();
    while let Some(line) = lines.next() {
        let name = line.strip_prefix("name = \"").and_then(|line| line.strip_suffix('"'));
        if let Some(name) = name.filter(|name| CRATES.contains(name)) {
            found += &format!("{name} {}\n", lines.next().unwrap_or_default());
        }
    }
    found
}

fn write_notes(index: &mut Writer, Notes(notes): &Notes) {
    index.number(notes.len());
    for (note, Seen { rows, first }) in notes {
        let (kind, text) = match note {
            Note::Unread(text) => (0, text),
            Note::Template(text) => (1, text),
            Note::Reading(text) => (2, text),
        };
        index.number(kind);
        [text, first].into_iter().for_each(|text| index.text(text, ""));
        index.number(*rows);
    }
}

fn read_notes(index: &mut Reader) -> Result<Notes> {
    let mut notes = Notes::default();
    for _ in 0..index.number()? {
        let (kind, text, first) = (index.number()?, index.text("")?, index.text("")?);
        let note = match kind {
            0 => Note::Unread(text),
            1 => Note::Template(text),
            _ => Note::Reading(text),
        };
        notes.0.insert(note, Seen { rows: index.number()?, first });
    }
    Ok(notes)
}

#[cfg(test)]
mod tests;
