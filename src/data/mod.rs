//! From files of preference rows to token trees: reading, checking, tokenizing, packing and the order of the steps.
//!
//! Knows nothing about models beyond their tokenizer. A bad row is named by file, line and reason.

pub mod cache;
pub mod encode;
pub mod loader;
pub mod pack;
pub mod records;
pub mod template;
pub mod tokenize;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::forest::Tree;
use encode::{Encoded, Encoder};

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
    /// Prompt and both responses: the budget of a micro-batch.
    pub tree: usize,
}

/// The rows of one file as trees, in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    pub trees: Vec<Tree>,
    /// The error of every row left out.
    pub skipped: Vec<String>,
    pub report: Report,
}

/// What the policies for long prompts and responses did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub prompts_cut: usize,
    pub responses_cut: usize,
    pub rows_dropped: usize,
}

impl Dataset {
    /// Reads and encodes a whole JSONL file, all rows in parallel.
    ///
    /// # Errors
    /// An unreadable file, a file without a good row and, with `OnError::Stop`, the first bad row.
    pub fn load(file: &Path, encoder: &Encoder, on_error: OnError) -> Result<Self> {
        let name = file.display().to_string();
        let bytes = fs::read(file)
            .with_context(|| format!("data file `{name}` cannot be read: name an existing JSONL file"))?;
        let lines = records::lines(&bytes);
        let row = |&(line, bytes): &(usize, &[u8])| {
            let at = format!("{name}:{line}");
            let encoded = records::parse(bytes).and_then(|record| encoder.encode(&at, &record));
            encoded.map_err(|error| anyhow!("{at}: {error:#}"))
        };
        let rows: Vec<Result<Encoded>> = lines.par_iter().map(row).collect();

        let bad = rows.iter().filter(|row| row.is_err()).count();
        let mut data = Self::default();
        for row in rows {
            match row {
                Ok(Encoded::Tree { tree, prompt_cut, responses_cut }) => {
                    data.trees.push(tree);
                    data.report.prompts_cut += usize::from(prompt_cut);
                    data.report.responses_cut += responses_cut;
                }
                Ok(Encoded::Dropped(_)) => data.report.rows_dropped += 1,
                Err(error) if on_error == OnError::Skip => data.skipped.push(error.to_string()),
                Err(error) if bad > 1 => {
                    bail!("{error} ({bad} of {} rows are bad; data.on_error = \"skip\" leaves them out)", lines.len())
                }
                Err(error) => return Err(error),
            }
        }
        ensure!(
            !data.trees.is_empty(),
            "{name}: no usable row among {}; give at least one {{\"prompt\", \"chosen\", \"rejected\"}}{}",
            lines.len(),
            data.skipped.first().map(|first| format!("; the first was left out: {first}")).unwrap_or_default()
        );
        Ok(data)
    }
}
