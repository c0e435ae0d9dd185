//! The rows of a run as token trees: written once, read when they are needed, never all in memory.
//!
//! Owns where each tree lies and the few numbers that a plan needs of it, twelve bytes a row. Trees lie in a file of the
//! token cache or in one without a name, or in memory where they are few. A name is made when its tree is read.

mod format;
mod places;

use std::{fmt, ops::Range, sync::Arc};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use crate::{
    files::blob::{Blob, Spool},
    forest::Tree,
};
pub use format::Size;
pub(super) use format::{Reader, Writer};
use places::Places;

/// Bytes and rows that are read and decoded together.
const BLOCK_BYTES: u64 = 256 << 10;
const BLOCK_ROWS: usize = 4096;

/// What happens to a tree between its file and its reader.
pub(super) trait Change: Send + Sync {
    /// Whether a tree becomes what the one before it says.
    fn needs_row_before(&self) -> bool;

    /// The changed tree; `before` is the one before it as its file has it, for the first the last.
    ///
    /// # Errors
    /// The tree does not have what the change needs.
    fn apply(&self, tree: Tree, before: Option<&Tree>) -> Result<Tree>;
}

/// Token trees of several files, in order. A clone shares all of it.
#[derive(Clone, Default)]
pub struct Trees {
    parts: Vec<Part>,
    /// Of each tree.
    tokens: Arc<Vec<u32>>,
    rows: Arc<Vec<u32>>,
    /// Of all trees, if every sequence were run alone.
    unshared: u64,
    change: Option<Arc<dyn Change>>,
}

/// The trees of one file.
#[derive(Clone)]
struct Part {
    /// Of the data file: what its trees' names begin with.
    name: Arc<str>,
    blob: Arc<Blob>,
    places: Arc<Places>,
    /// Its first tree's number.
    first: usize,
}

impl Part {
    fn rows(&self) -> Range<usize> {
        self.first..self.first + self.places.len()
    }

    fn place(&self, row: usize) -> u64 {
        self.places.get(row - self.first)
    }

    /// Where a tree and all that lies between it and the next one end.
    fn end(&self, row: usize) -> u64 {
        if row + 1 < self.rows().end { self.place(row + 1) } else { self.blob.len() }
    }

    fn decode(&self, bytes: &[u8]) -> Result<Tree> {
        let mut record = Reader(bytes).record()?;
        record.size()?;
        record.tree(&self.name)
    }
}

impl Trees {
    /// How many trees there are.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens of each tree.
    pub fn tokens(&self) -> &Arc<Vec<u32>> {
        &self.tokens
    }

    /// Prediction rows of each tree.
    pub fn rows(&self) -> &Arc<Vec<u32>> {
        &self.rows
    }

    /// Prediction rows of all trees.
    pub fn all_rows(&self) -> usize {
        self.rows.iter().map(|&rows| rows as usize).sum()
    }

    /// Tokens of all trees, if every sequence were run alone.
    pub fn unshared_tokens(&self) -> usize {
        self.unshared as usize
    }

    /// A tree by its number.
    ///
    /// # Errors
    /// Its file cannot be read.
    pub fn tree(&self, row: usize) -> Result<Tree> {
        let Some(change) = &self.change else { return self.unchanged(row) };
        let before = if change.needs_row_before() { Some(self.row_before(row)?) } else { None };
        change.apply(self.unchanged(row)?, before.as_ref())
    }

    /// All trees one after another.
    pub fn iter(&self) -> impl Iterator<Item = Result<Tree>> {
        (0..self.len()).map(|row| self.tree(row))
    }

    /// All trees in order, a block of them at a time: `look` is called on all cores, `take` hears of one tree after another.
    ///
    /// # Errors
    /// A file cannot be read, or the first of `take`.
    pub fn visit<V: Send>(
        &self,
        look: impl Fn(&Tree) -> V + Sync,
        mut take: impl FnMut(&Tree, V) -> Result<()>,
    ) -> Result<()> {
        let mut before = None;
        for part in &self.parts {
            let mut start = part.first;
            while start < part.rows().end {
                let rows = block(part, start);
                start = rows.end;
                for (tree, found) in self.block(part, rows, &mut before, &look)? {
                    let tree = tree?;
                    take(&tree, found.context("a tree that was read was looked at")?)?;
                }
            }
        }
        Ok(())
    }

    /// The trees of a block, and what was found about those that could be read.
    fn block<V: Send>(
        &self,
        part: &Part,
        rows: Range<usize>,
        before: &mut Option<Tree>,
        look: &(impl Fn(&Tree) -> V + Sync),
    ) -> Result<Vec<(Result<Tree>, Option<V>)>> {
        let start = part.place(rows.start);
        let mut bytes = vec![0; (part.end(rows.end - 1) - start) as usize];
        part.blob.read_at(&mut bytes, start)?;
        let raw = |row: usize| part.decode(&bytes[(part.place(row) - start) as usize..]);
        let looked = |tree: Result<Tree>| {
            let found = tree.as_ref().ok().map(look);
            (tree, found)
        };
        let Some(change) = &self.change else {
            return Ok(rows.into_par_iter().map(|row| looked(raw(row))).collect());
        };
        if !change.needs_row_before() {
            return Ok(rows
                .into_par_iter()
                .map(|row| looked(raw(row).and_then(|tree| change.apply(tree, None))))
                .collect());
        }
        let trees = rows.clone().into_par_iter().map(raw).collect::<Result<Vec<_>>>()?;
        let last = before.take().map_or_else(|| self.row_before(rows.start), Ok)?;
        let apply = |i: usize| change.apply(trees[i].clone(), Some(if i == 0 { &last } else { &trees[i - 1] }));
        let changed = (0..trees.len()).into_par_iter().map(|i| looked(apply(i))).collect();
        *before = trees.into_iter().last();
        Ok(changed)
    }

    /// The row before, as its file has it; before the first comes the last.
    fn row_before(&self, row: usize) -> Result<Tree> {
        self.unchanged(row.checked_sub(1).unwrap_or(self.len() - 1))
    }

    /// A tree as its file has it.
    fn unchanged(&self, row: usize) -> Result<Tree> {
        let part = self.parts.iter().rfind(|part| part.first <= row).with_context(|| format!("no row {row}"))?;
        let (place, left) = (part.place(row), part.blob.len());
        // Enough for all but ids beyond two millions, masks and numbers.
        let likely = 3 * u64::from(self.tokens[row]) + 128;
        let mut bytes = vec![0; likely.min(left - place) as usize];
        part.blob.read_at(&mut bytes, place)?;
        let mut reader = Reader(&bytes);
        let body = reader.number()?;
        let whole = bytes.len() - reader.0.len() + body;
        if whole > bytes.len() {
            ensure!(whole as u64 <= left - place, "{}: the tokens of row {row} end early", part.name);
            bytes.resize(whole, 0);
            part.blob.read_at(&mut bytes, place)?;
        }
        part.decode(&bytes)
    }

    /// The trees of a file in a blob of records, one behind the other.
    ///
    /// # Errors
    /// The blob cannot be read or holds something else.
    pub(super) fn open(name: &str, blob: Blob, count: usize) -> Result<Self> {
        let mut growing = Columns::with_capacity(count);
        let mut place = 0;
        let mut bytes = Vec::new();
        while place < blob.len() {
            let wanted = BLOCK_BYTES.max(2 * bytes.len() as u64).min(blob.len() - place);
            bytes.resize(wanted as usize, 0);
            blob.read_at(&mut bytes, place)?;
            let mut reader = Reader(&bytes);
            let mut behind = place;
            // A record that does not end here is read with the next block.
            while let Ok(mut record) = reader.record() {
                growing.push(behind, record.size()?)?;
                behind = place + (bytes.len() - reader.0.len()) as u64;
                if reader.0.is_empty() {
                    break;
                }
            }
            ensure!(behind > place || wanted < blob.len() - place, "{name}: tokens end early");
            if behind > place {
                bytes.clear();
            }
            place = behind;
        }
        Ok(growing.over(name, blob))
    }

    /// The same trees in another place, byte for byte.
    pub(super) fn moved_to(mut self, blob: Blob) -> Self {
        if let [part] = &mut self.parts[..] {
            part.blob = Arc::new(blob);
        }
        self
    }

    /// The bytes of a file's trees.
    pub(super) fn blob(&self) -> Option<&Blob> {
        if let [part] = &self.parts[..] { Some(&part.blob) } else { None }
    }

    /// Puts the trees of another file behind these.
    ///
    /// # Errors
    /// There are too many.
    pub(super) fn append(&mut self, other: Self) -> Result<()> {
        if self.is_empty() {
            *self = other;
            return Ok(());
        }
        check_count(self.len() + other.len())?;
        let first = self.len();
        self.parts.extend(other.parts.into_iter().map(|part| Part { first: first + part.first, ..part }));
        Arc::make_mut(&mut self.tokens).extend_from_slice(&other.tokens);
        Arc::make_mut(&mut self.rows).extend_from_slice(&other.rows);
        self.unshared += other.unshared;
        Ok(())
    }

    /// Leaves out these trees, whose numbers ascend.
    ///
    /// # Errors
    /// Their file cannot be read.
    pub(super) fn leave_out(&mut self, rows: &[usize]) -> Result<()> {
        for &row in rows {
            self.unshared -= self.tree(row)?.unshared_tokens() as u64;
        }
        let kept = |row: &usize| rows.binary_search(row).is_err();
        let mut first = 0;
        for part in &mut self.parts {
            let mut places = Places::default();
            part.rows().filter(kept).for_each(|row| places.push(part.place(row)));
            (part.first, part.places) = (first, Arc::new(places));
            first = part.rows().end;
        }
        for column in [&mut self.tokens, &mut self.rows] {
            *column = Arc::new((0..column.len()).filter(kept).map(|row| column[row]).collect());
        }
        Ok(())
    }

    /// These trees with a change on the way.
    ///
    /// # Errors
    /// The change does not fit a tree.
    pub(super) fn changed(&self, change: Arc<dyn Change>) -> Result<Self> {
        let mut changed = Self { change: Some(change), ..self.clone() };
        let mut columns = Columns::with_capacity(self.len());
        changed.visit(Size::of, |_, size| columns.push(0, size))?;
        (changed.tokens, changed.rows) = (Arc::new(columns.tokens), Arc::new(columns.rows));
        changed.unshared = columns.unshared;
        Ok(changed)
    }
}

impl fmt::Debug for Trees {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} trees", self.len())
    }
}

/// Trees in memory.
impl FromIterator<Tree> for Trees {
    fn from_iter<I: IntoIterator<Item = Tree>>(trees: I) -> Self {
        let (mut columns, mut bytes) = (Columns::default(), Writer::default());
        for tree in trees {
            let place = bytes.0.len() as u64;
            let size = bytes.record(&tree, "");
            columns.add(place, size);
        }
        columns.over("", Blob::Memory(bytes.0))
    }
}

/// The rows that are read together, from `start` on.
fn block(part: &Part, start: usize) -> Range<usize> {
    let most = part.rows().end.min(start + BLOCK_ROWS);
    let limit = part.place(start) + BLOCK_BYTES;
    let mut end = start + 1;
    while end < most && part.end(end) <= limit {
        end += 1;
    }
    start..end
}

fn check_count(rows: usize) -> Result<()> {
    ensure!(u32::try_from(rows).is_ok(), "{rows} rows: a run takes {} at most: give fewer", u32::MAX);
    Ok(())
}

/// Places and sizes of trees.
#[derive(Default)]
struct Columns {
    places: Places,
    tokens: Vec<u32>,
    rows: Vec<u32>,
    unshared: u64,
}

impl Columns {
    fn with_capacity(rows: usize) -> Self {
        let column = || Vec::with_capacity(rows);
        Self { places: Places::with_capacity(rows), tokens: column(), rows: column(), unshared: 0 }
    }

    fn push(&mut self, place: u64, size: Size) -> Result<()> {
        check_count(self.tokens.len() + 1)?;
        let fits = u32::try_from(size.tokens.max(size.rows)).is_ok();
        ensure!(fits, "a row of {} tokens: a row has {} at most", size.tokens, u32::MAX);
        self.add(place, size);
        Ok(())
    }

    fn add(&mut self, place: u64, size: Size) {
        self.places.push(place);
        self.tokens.push(size.tokens as u32);
        self.rows.push(size.rows as u32);
        self.unshared += size.unshared as u64;
    }

    fn over(self, name: &str, blob: Blob) -> Trees {
        let Self { places, tokens, rows, unshared } = self;
        let part = Part { name: name.into(), blob: Arc::new(blob), places: Arc::new(places), first: 0 };
        Trees { parts: vec![part], tokens: Arc::new(tokens), rows: Arc::new(rows), unshared, change: None }
    }
}

/// Trees of a file while it is read.
pub struct Growing {
    name: String,
    spool: Spool,
    columns: Columns,
}

impl Growing {
    /// None yet of the file `name`.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), spool: Spool::default(), columns: Columns::default() }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.columns.tokens.is_empty()
    }

    /// Adds a tree.
    ///
    /// # Errors
    /// There are too many.
    pub fn push(&mut self, tree: &Tree) -> Result<()> {
        let mut bytes = Writer::default();
        let size = bytes.record(tree, &self.name);
        self.columns.push(self.spool.len(), size)?;
        self.spool.push(&bytes.0);
        Ok(())
    }

    /// All trees.
    ///
    /// # Errors
    /// The file they are in meanwhile cannot be written.
    pub fn finish(self) -> Result<Trees> {
        Ok(self.columns.over(&self.name, self.spool.finish()?))
    }
}

#[cfg(test)]
mod tests;
