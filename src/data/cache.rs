//! Token trees of a data file on the disk: what was encoded once is read back in its place.
//!
//! A file is found by its bytes and by everything that makes its trees: the model's tokenizer files, the options and the
//! code itself. Its own name is no part of that, so a row's name is stored without it. Trees lie in blocks, so that one
//! block's bytes are in memory at a time; the index is written last, so that a killed writer leaves nothing to be found.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{
    Dataset, Report,
    notes::{Note, Notes, Seen},
    template,
};
use crate::{
    cache::{Cache, Found, Key, KeyBuilder},
    forest::{Role, Segment, Tree, Value},
};

const KIND: &str = "tokens";
/// Changes with the format below.
const FORMAT: &str = "tokens 4";
const BLOCK_TREES: usize = 8192;
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
    Cache,
    /// Encoded, and how long that took; `warning` says what was wrong with the cache, if something was.
    Encoded {
        time: Duration,
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
        let (data, mut origin) = encoded(encode, warning)?;
        if let Err(why) = self.write(&key, &name, &data)
            && let Origin::Encoded { warning, .. } = &mut origin
        {
            *warning = Some(format!("{why:#}: the tokens of {name} are not kept"));
        }
        Ok((data, origin))
    }

    fn read(&self, key: &Key, name: &str) -> Result<Look> {
        let mut data = Dataset::default();
        let bytes = match self.cache.read(KIND, key)? {
            Found::Bytes(bytes) => bytes,
            Found::Absent => return Ok(Look::Absent),
            Found::Damaged(path) => return Ok(Look::Damaged(path)),
        };
        let mut index = Reader(&bytes);
        let (trees, blocks) = (index.number()?, index.number()?);
        let Report { prompts_cut, responses_cut, rows_dropped, documents_cut, blocks: cut } = &mut data.report;
        for count in [prompts_cut, responses_cut, rows_dropped, documents_cut, cut] {
            *count = index.number()?;
        }
        for _ in 0..index.number()? {
            data.skipped.push(index.text(name)?);
        }
        data.notes = index.notes()?;
        for block in 0..blocks {
            let key = block_key(key, block);
            match self.cache.read(KIND, &key)? {
                Found::Bytes(bytes) => read_block(&bytes, name, &mut data.trees)?,
                Found::Absent => return Ok(Look::Damaged(self.cache.path(KIND, &key))),
                Found::Damaged(path) => return Ok(Look::Damaged(path)),
            }
        }
        ensure!(data.trees.len() == trees, "{trees} trees expected, found {}", data.trees.len());
        Ok(Look::Hit(data))
    }

    fn write(&self, key: &Key, name: &str, data: &Dataset) -> Result<()> {
        let blocks = data.trees.chunks(BLOCK_TREES);
        let mut index = Writer::default();
        index.number(data.trees.len());
        index.number(blocks.len());
        let Report { prompts_cut, responses_cut, rows_dropped, documents_cut, blocks: cut } = data.report;
        [prompts_cut, responses_cut, rows_dropped, documents_cut, cut]
            .into_iter()
            .for_each(|count| index.number(count));
        index.number(data.skipped.len());
        data.skipped.iter().for_each(|why| index.text(why, name));
        index.notes(&data.notes);
        for (block, trees) in blocks.enumerate() {
            let mut bytes = Writer::default();
            bytes.number(trees.len());
            trees.iter().for_each(|tree| bytes.tree(tree, name));
            self.cache.write(KIND, &block_key(key, block), &bytes.0)?;
        }
        self.cache.write(KIND, key, &index.0)
    }
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

fn block_key(file: &Key, block: usize) -> Key {
    KeyBuilder::new(FORMAT).part("file", &file.0).part("block", &(block as u64).to_le_bytes()).finish()
}

fn read_block(bytes: &[u8], name: &str, trees: &mut Vec<Tree>) -> Result<()> {
    let mut reader = Reader(bytes);
    for _ in 0..reader.number()? {
        trees.push(reader.tree(name)?);
    }
    ensure!(reader.0.is_empty(), "{} bytes too many in a block of tokens", reader.0.len());
    Ok(())
}

/// Numbers are little-endian groups of seven bits, the last without the top bit; texts and lists have their length first.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, number: usize) {
        let mut rest = number as u64;
        while rest >= 0x80 {
            self.0.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.0.push(rest as u8);
    }

    /// A text that may begin with the file's name: a mark, and what is behind the name.
    fn text(&mut self, text: &str, name: &str) {
        let behind = text.strip_prefix(name);
        let rest = behind.unwrap_or(text);
        self.number(usize::from(behind.is_some()));
        self.number(rest.len());
        self.0.extend_from_slice(rest.as_bytes());
    }

    fn notes(&mut self, Notes(notes): &Notes) {
        self.number(notes.len());
        for (note, Seen { rows, first }) in notes {
            let (kind, text) = match note {
                Note::Unread(text) => (0, text),
                Note::Template(text) => (1, text),
                Note::Reading(text) => (2, text),
            };
            self.number(kind);
            [text, first].into_iter().for_each(|text| self.text(text, ""));
            self.number(*rows);
        }
    }

    fn tree(&mut self, tree: &Tree, name: &str) {
        self.text(&tree.name, name);
        self.number(tree.segments.len());
        for segment in &tree.segments {
            self.number(segment.parent.map_or(0, |parent| parent + 1));
            self.number(usize::from(segment.scored));
            self.number(segment.role as usize);
            self.number(segment.unscored.len());
            segment.unscored.iter().flat_map(|range| [range.start, range.end]).for_each(|n| self.number(n));
            self.number(segment.tokens.len());
            segment.tokens.iter().for_each(|&token| self.number(token as usize));
        }
        self.number(tree.pairs.len());
        tree.pairs.iter().flatten().for_each(|&sequence| self.number(sequence));
        self.number(tree.scores.len());
        tree.scores.iter().for_each(|score| self.0.extend_from_slice(&score.to_le_bytes()));
        self.number(tree.labels.len());
        tree.labels.iter().for_each(|&label| self.number(usize::from(label)));
        self.number(tree.values.len());
        for (value, numbers) in &tree.values {
            self.number(*value as usize);
            self.number(numbers.len());
            numbers.iter().for_each(|number| self.0.extend_from_slice(&number.to_le_bytes()));
        }
    }
}

/// By their numbers.
const ROLES: [Role; 3] = [Role::Response, Role::Rationale, Role::Mismatched];
const VALUES: [Value; 8] = [
    Value::Score,
    Value::Preference,
    Value::WinRate,
    Value::Visits,
    Value::Margin,
    Value::Uncertainty,
    Value::JudgeLogit,
    Value::Group,
];

/// What [`Writer`] wrote. Checksums were checked before; what still does not fit is an error, not a panic.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes(&mut self, len: usize) -> Result<&[u8]> {
        let (bytes, rest) = self.0.split_at_checked(len).context("a block of tokens ends early")?;
        self.0 = rest;
        Ok(bytes)
    }

    fn number(&mut self) -> Result<usize> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.bytes(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number as usize);
            }
        }
        anyhow::bail!("a number of a block of tokens does not end")
    }

    fn text(&mut self, name: &str) -> Result<String> {
        let named = self.number()? == 1;
        let len = self.number()?;
        let rest = std::str::from_utf8(self.bytes(len)?)?;
        Ok(if named { format!("{name}{rest}") } else { rest.to_owned() })
    }

    fn list<V>(&mut self, mut value: impl FnMut(&mut Self) -> Result<V>) -> Result<Vec<V>> {
        let len = self.number()?;
        // Each value has a byte at least: a length that is none allocates nothing.
        ensure!(len <= self.0.len(), "a block of tokens ends early");
        let mut values = Vec::with_capacity(len);
        for _ in 0..len {
            values.push(value(self)?);
        }
        Ok(values)
    }

    fn notes(&mut self) -> Result<Notes> {
        let mut notes = Notes::default();
        for _ in 0..self.number()? {
            let (kind, text, first) = (self.number()?, self.text("")?, self.text("")?);
            let note = match kind {
                0 => Note::Unread(text),
                1 => Note::Template(text),
                _ => Note::Reading(text),
            };
            notes.0.insert(note, Seen { rows: self.number()?, first });
        }
        Ok(notes)
    }

    fn tree(&mut self, name: &str) -> Result<Tree> {
        let name = self.text(name)?;
        let segments = self.list(Self::segment)?;
        let ordered = segments.iter().enumerate().all(|(i, segment)| segment.parent.is_none_or(|parent| parent < i));
        ensure!(ordered, "{name}: a segment before its parent");
        Ok(Tree {
            name,
            segments,
            pairs: self.list(|reader| Ok([reader.number()?, reader.number()?]))?,
            scores: self.list(|reader| Ok(f64::from_le_bytes(reader.bytes(8)?.try_into()?)))?,
            labels: self.list(|reader| Ok(reader.number()? == 1))?,
            values: self.list(|reader| {
                let value = *VALUES.get(reader.number()?).context("a value of no kind")?;
                let numbers = reader.list(|reader| Ok(f64::from_le_bytes(reader.bytes(8)?.try_into()?)))?;
                Ok((value, numbers))
            })?,
        })
    }

    fn segment(&mut self) -> Result<Segment> {
        Ok(Segment {
            parent: self.number()?.checked_sub(1),
            scored: self.number()? == 1,
            role: *ROLES.get(self.number()?).context("a segment of no kind")?,
            unscored: self.list(|reader| Ok(reader.number()?..reader.number()?))?,
            tokens: self.list(|reader| Ok(u32::try_from(reader.number()?)?))?,
        })
    }
}

#[cfg(test)]
mod tests;
