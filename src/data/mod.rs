//! From files of preference rows to token trees: reading, checking, tokenizing, packing and the order of the steps.
//!
//! Knows nothing about models beyond their tokenizer. A bad row is named by file, line and reason.

pub mod batches;
mod budget;
pub mod cache;
pub mod encode;
pub mod files;
pub mod loader;
pub mod long;
pub mod notes;
pub mod pack;
pub mod records;
pub mod reshape;
pub mod sets;
pub mod source;
pub mod split;
mod survey;
pub mod template;
pub mod tokenize;
pub mod trees;

use std::path::Path;

use anyhow::{Result, bail, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use encode::{Encoded, Encoder};
use notes::Notes;
use records::{Columns, Form, Record};
use trees::{Growing, Trees};

/// Rows whose text is in memory at the same time, and the bytes of it, one row more.
const BLOCK_ROWS: usize = 4096;
const BLOCK_BYTES: usize = 64 << 20;
/// Bytes of rows behind the first bad one that are read to count how many are, or to find the first good one.
const COUNTED_BYTES: usize = 1 << 30;
/// What a row counts for beside its own bytes: a bad one's error takes as long as reading so many.
const BAD_BYTES: usize = 8 << 10;

/// What a bad row does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The run stops before training and names the row.
    #[default]
    Stop,
    /// The row is left out, counted and listed.
    Skip,
}

/// Longest parts of a row, in tokens; what exceeds them is a bad row.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Prompt, a BOS counted in.
    pub prompt: usize,
    /// Each response, the EOS counted in.
    pub response: usize,
    /// Prompt and both responses: the budget of a micro-batch. Encoding leaves longer trees to [`Dataset::fit`].
    pub tree: usize,
}

/// The rows of one file or of several as trees, in the order of the files.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// One a row, or one a block of a document.
    pub trees: Trees,
    /// How often an epoch takes each tree; empty for once each.
    pub weights: Vec<f32>,
    /// The error of every row left out.
    pub skipped: Vec<String>,
    /// What was cut and left out.
    pub report: Report,
    /// What of the rows has no effect, or another than it says.
    pub notes: Notes,
}

/// What the policies for long prompts and responses did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Rows whose prompt was cut.
    pub prompts_cut: usize,
    /// Responses that were cut.
    pub responses_cut: usize,
    /// Rows left out as too long.
    pub rows_dropped: usize,
    /// Documents that were cut, and the blocks they gave.
    pub documents_cut: usize,
    /// Blocks that documents were cut into.
    pub blocks: usize,
}

impl Report {
    /// The documents that were cut, in words, if some were.
    pub fn documents(&self) -> Option<String> {
        let Self { documents_cut, blocks, .. } = self;
        (*documents_cut > 0).then(|| format!("long documents: {documents_cut} cut into {blocks} blocks"))
    }
}

impl Dataset {
    /// Reads and encodes a whole file, blocks of rows in parallel, and refuses trees beyond the encoder's budget.
    ///
    /// # Errors
    /// An unreadable file, a file without a good row and, with `OnError::Stop`, the first bad row.
    pub fn load(file: &Path, columns: &Columns, encoder: &Encoder, on_error: OnError) -> Result<Self> {
        let opened = source::open(file, source::MAX_ROW_BYTES)?;
        let name = opened.name.clone();
        let mut data = Self::load_counting(opened, columns, encoder, on_error, |_| {})?;
        data.fit(&name, encoder.limits().tree, on_error)?;
        ensure!(!data.is_empty(), "{}", no_row(&name, 0, None));
        Ok(data)
    }

    /// The rows of a file whose trees may have any size; `progress` hears how many rows are done. A file without any row
    /// gives none.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_counting(
        opened: source::Opened,
        columns: &Columns,
        encoder: &Encoder,
        on_error: OnError,
        mut progress: impl FnMut(usize),
    ) -> Result<Self> {
        let source::Opened { name, mut rows, .. } = opened;
        let (mut data, mut trees) = (Self::default(), Growing::new(&name));
        let mut form: Option<(Form, String)> = None;
        let (mut count, mut bad, mut first, mut behind_bad) = (0, 0, None, 0usize);
        let mut dropped = None;
        loop {
            // The text of one block is in memory at a time.
            let block = next_block(&mut rows)?;
            if block.is_empty() {
                break;
            }
            count += block.len();
            let hopeless = first.is_some() || trees.is_empty() && !data.skipped.is_empty();
            behind_bad += if hopeless { block.iter().map(|row| row.bytes() + BAD_BYTES).sum() } else { 0 };
            let encode = |row: source::Row| {
                let at = format!("{name}{}", row.place);
                let record = row.fields().and_then(|fields| Record::from_row(fields, columns));
                let encoded = record.and_then(|record| Ok((record.form(), encoder.encode(&at, &record)?)));
                let bad = |error| Error::Row {
                    line: format!("{at}: {error:#}"),
                    file: name.clone(),
                    place: at[name.len()..].to_owned(),
                };
                encoded.map(|(form, tree)| (form, at.clone(), tree)).map_err(bad)
            };
            for row in block.into_par_iter().map(encode).collect::<Vec<_>>() {
                match row {
                    Ok((found, at, encoded)) => {
                        let (form, first) = form.get_or_insert_with(|| (found, at.clone()));
                        same_form((*form, first), (found, &at))?;
                        if let Encoded::Dropped(why) = &encoded {
                            dropped.get_or_insert_with(|| format!("{at}: {why}"));
                        }
                        data.push(&at[name.len()..], encoded, &mut trees)?;
                    }
                    Err(error) if on_error == OnError::Skip => data.skipped.push(error.to_string()),
                    Err(error) => {
                        bad += 1;
                        first.get_or_insert(error);
                    }
                }
            }
            progress(count);
            if behind_bad > COUNTED_BYTES {
                break;
            }
        }
        if let Some(error) = first {
            let remedy = format!("{error} {}", how_to_skip(bad, count));
            return Err(error.saying(remedy).into());
        }
        data.trees = trees.finish()?;
        if let (true, Some(dropped)) = (data.trees.is_empty(), dropped) {
            let (all, others) = (data.report.rows_dropped, data.skipped.len());
            bail!(
                "{name}: no row is left: {all} of {count} were dropped as too long (data.long_prompt, data.long_response) and \
                 {others} left out; the first: {dropped}"
            );
        }
        ensure!(count == 0 || !data.trees.is_empty(), "{}", no_row(&name, count, data.skipped.first()));
        Ok(data)
    }

    /// Whether there was no row at all, good or bad.
    pub fn is_empty(&self) -> bool {
        self.trees.is_empty() && self.skipped.is_empty() && self.report.rows_dropped == 0
    }

    /// Rows that the trees came from: several blocks may be one document.
    pub fn rows(&self) -> usize {
        (self.trees.len() + self.report.documents_cut).saturating_sub(self.report.blocks)
    }

    /// Adds the rows of another file, which an epoch takes `weight` times.
    ///
    /// # Errors
    /// There are too many.
    pub fn append(&mut self, mut other: Self, weight: f32) -> Result<()> {
        if weight != 1.0 || !self.weights.is_empty() {
            self.weights.resize(self.trees.len(), 1.0);
            self.weights.resize(self.trees.len() + other.trees.len(), weight);
        }
        self.trees.append(other.trees)?;
        self.skipped.append(&mut other.skipped);
        // Notes are a file's: whoever loads one says them.
        self.report.prompts_cut += other.report.prompts_cut;
        self.report.responses_cut += other.report.responses_cut;
        self.report.rows_dropped += other.report.rows_dropped;
        self.report.documents_cut += other.report.documents_cut;
        self.report.blocks += other.report.blocks;
        Ok(())
    }

    /// Tokens that an epoch takes at most.
    pub fn epoch_tokens(&self) -> usize {
        let times = |row: usize| self.weights.get(row).map_or(1, |weight| weight.ceil() as usize);
        self.trees.tokens().iter().enumerate().map(|(row, &tokens)| times(row) * tokens as usize).sum()
    }

    fn push(&mut self, place: &str, encoded: Encoded, trees: &mut Growing) -> Result<()> {
        match encoded {
            Encoded::Tree { tree, prompt_cut, responses_cut, notes } => {
                self.notes.add(place, notes);
                trees.push(&tree)?;
                self.report.prompts_cut += usize::from(prompt_cut);
                self.report.responses_cut += responses_cut;
            }
            Encoded::Blocks { trees: blocks, notes } => {
                self.notes.add(place, notes);
                self.report.documents_cut += 1;
                self.report.blocks += blocks.len();
                blocks.iter().try_for_each(|tree| trees.push(tree))?;
            }
            Encoded::Dropped(_) => self.report.rows_dropped += 1,
        }
        Ok(())
    }
}

/// The rows that are encoded together.
fn next_block(rows: &mut source::RowReader) -> Result<Vec<source::Row>> {
    let (mut block, mut bytes) = (Vec::new(), 0);
    while block.len() < BLOCK_ROWS && bytes < BLOCK_BYTES {
        let Some(row) = rows.next().transpose()? else { break };
        bytes += row.bytes();
        block.push(row);
    }
    Ok(block)
}

/// What stands behind the first bad row.
fn how_to_skip(bad: usize, count: usize) -> String {
    match bad {
        1 => "(data.on_error = \"skip\" leaves the row out)".into(),
        _ => format!("({bad} of {count} rows are bad; data.on_error = \"skip\" leaves them out)"),
    }
}

/// What is said of a set none of whose `count` rows is left.
pub fn no_row(name: &str, count: usize, left_out: Option<&String>) -> String {
    let why = left_out.map(|first| format!("; the first was left out: {first}")).unwrap_or_default();
    format!("{name}: no usable row among {count}; give at least one {{\"prompt\", \"chosen\", \"rejected\"}}{why}")
}

/// A data set is of one form, or a loss would learn from some of it only.
fn same_form((form, at): (Form, &str), (other, other_at): (Form, &str)) -> Result<()> {
    ensure!(
        form == other,
        "{at} is one of {}, {other_at} one of {}: give rows of one form",
        form.describe(),
        other.describe()
    );
    Ok(())
}
