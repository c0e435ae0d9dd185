//! The tokenized files of a run or a command: found by pattern, read from the cache or encoded, put one behind the other.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};

use super::{
    Dataset, OnError,
    cache::{Origin, TokenCache},
    encode::{Encoder, too_long_for_the_model},
    files::{Files, WeightedFile},
    records::Columns,
    reshape::{self, Reshape},
    source,
    split::{Draw, Together},
};
use crate::{files::blob, forest::Tree};

/// What is read, and how.
#[derive(Clone, Debug)]
pub struct SetOptions<'a> {
    /// Files to learn from.
    pub train: &'a Files,
    /// Files that are held out.
    pub eval: Option<&'a Files>,
    /// Names of fields in the files.
    pub columns: &'a Columns,
    /// What a bad row does.
    pub on_error: OnError,
    /// Longest row, in bytes.
    pub max_row_bytes: usize,
    /// Longest tree, in tokens.
    pub budget: usize,
    /// The model folder, whose tokenizer files are part of what the cache finds trees by.
    pub model: &'a Path,
    /// Folder of the cache; nothing is kept without one.
    pub cache: Option<&'a Path>,
    /// Share of the training rows that are held out, where there are no files of such; 0 for none.
    pub eval_fraction: f64,
    /// Of the run: which rows are drawn follows from it.
    pub seed: u64,
    /// All other settings under which rows become trees, as a text that tells any two of them apart.
    pub key: String,
}

/// Numbers of the streams by which rows of held-out files are drawn begin behind this.
const EVAL_STREAMS: u32 = 1 << 16;

/// Called with a file before it is encoded; what it gives hears how many rows are done.
pub type Progress = fn(&Path) -> Box<dyn FnMut(usize)>;

/// The tokenized data files of a run.
pub struct Sets {
    /// What made the trees.
    pub encoder: Encoder,
    /// Files to learn from.
    pub train: Dataset,
    /// Files that are held out.
    pub eval: Option<Dataset>,
    /// Where the tokens came from, a line a file; and what was wrong with the cache.
    pub origins: Vec<String>,
}

impl Sets {
    /// Reads the tokenizer and the data files of both sets, from the cache if their trees are there.
    ///
    /// # Errors
    /// A file is missing or malformed, or a row is bad.
    pub fn read(encoder: Encoder, options: &SetOptions, watch: Progress) -> Result<Self> {
        blob::allow_many();
        let key = format!("{}\n{}", encoder.key().hex(), options.key);
        let open = |folder| TokenCache::new(folder, options.model, &key);
        let cache = options.cache.map(open).transpose()?;
        let mut origins = Vec::new();
        let mut load = |key: &str, files: &Files| -> Result<Dataset> {
            let mut all = Dataset::default();
            let files = expand(key, files)?;
            let name = match &files[..] {
                [(file, _)] => file.display().to_string(),
                files => format!("`{key}`, {} files", files.len()),
            };
            for (number, (file, own)) in (1..).zip(&files) {
                let columns = own.columns_over(options.columns);
                let plain = own.columns.is_empty();
                let renamed =
                    cache.as_ref().filter(|_| !plain).map(|cache| cache.reading(&format!("{:?}", own.columns)));
                let cache = renamed.as_ref().or(cache.as_ref());
                let reading = Reading { options, columns: &columns, encoder: &encoder, cache, watch };
                let (mut data, origin) = reading.load(file)?;
                describe(file, &data, origin, &mut origins);
                data.fit(&file.display().to_string(), options.budget, options.on_error)?;
                if own.fraction < 1.0 && !data.trees.is_empty() {
                    let stream = if key == "data.train" { number } else { EVAL_STREAMS + number };
                    let (fraction, seed) = (own.fraction, options.seed);
                    data.keep(&Draw { fraction, seed, stream, together: Together::Documents })?;
                }
                all.append(data, own.weight)?;
            }
            ensure!(!all.trees.is_empty(), "{}", super::no_row(&name, 0, None));
            Ok(all)
        };
        let mut train = load("data.train", options.train)?;
        let mut eval = options.eval.map(|files| load("data.eval", files)).transpose()?;
        if options.eval_fraction > 0.0 {
            let draw =
                Draw { fraction: options.eval_fraction, seed: options.seed, stream: 0, together: Together::Prompts };
            eval = Some(train.take(&draw).context("`data.eval_fraction`: name held-out rows by data.eval instead")?);
        }
        Ok(Self { encoder, train, eval, origins })
    }

    /// Refuses rows that are longer than a model of so many positions can read.
    ///
    /// # Errors
    /// Names the first such row; or the rows cannot be read.
    pub fn check_lengths(&self, positions: usize) -> Result<()> {
        for data in [Some(&self.train), self.eval.as_ref()].into_iter().flatten() {
            data.trees.visit(Tree::longest_path, |tree, longest| {
                ensure!(longest <= positions, "{}: {}", tree.name, too_long_for_the_model(longest, positions));
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Changes all rows to what a loss learns from; `budget` is the longest tree allowed, in tokens.
    ///
    /// # Errors
    /// A row does not have what the change needs, or is too long after it.
    pub fn reshape(&mut self, reshape: Reshape, budget: usize) -> Result<()> {
        for data in [Some(&mut self.train), self.eval.as_mut()].into_iter().flatten() {
            reshape::apply(reshape, &mut data.trees, self.encoder.tokenizer(), budget)?;
        }
        Ok(())
    }
}

/// Every file of a set with its weight, patterns written out.
fn expand<'a>(key: &str, files: &'a Files) -> Result<Vec<(PathBuf, &'a WeightedFile)>> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    for named in &files.0 {
        for file in source::expand(&named.path).with_context(|| format!("`{key}`"))? {
            // A file that is not there is the reader's to refuse.
            let same = file.canonicalize().unwrap_or_else(|_| file.clone());
            ensure!(
                seen.insert(same),
                "`{key}`: {} is named twice: name it once, with a weight if its rows shall count more often",
                file.display()
            );
            found.push((file, named));
        }
    }
    Ok(found)
}

/// How a file is read.
struct Reading<'a> {
    options: &'a SetOptions<'a>,
    columns: &'a Columns,
    encoder: &'a Encoder,
    cache: Option<&'a TokenCache>,
    watch: Progress,
}

impl Reading<'_> {
    fn load(&self, file: &Path) -> Result<(Dataset, Origin)> {
        let started = Instant::now();
        let SetOptions { on_error, max_row_bytes, .. } = self.options;
        // A name that says something else than the bytes is refused whether or not the same bytes are in the cache.
        let opened = source::open(file, *max_row_bytes)?;
        let (kind, regular) = (opened.kind, opened.regular);
        let encode = || Dataset::load_counting(opened, self.columns, self.encoder, *on_error, (self.watch)(file));
        match self.cache {
            Some(cache) if regular => cache.load(file, kind, encode),
            Some(_) => {
                let data = encode()?;
                let warning = Some(format!("{} is a pipe: its tokens are not kept", file.display()));
                Ok((data, Origin::Encoded { time: started.elapsed(), warning }))
            }
            None => Ok((encode()?, Origin::Encoded { time: started.elapsed(), warning: None })),
        }
    }
}

/// A line on where the tokens came from, and one on what was wrong with the cache.
fn describe(file: &Path, data: &Dataset, origin: Origin, lines: &mut Vec<String>) {
    let name = file.file_name().unwrap_or_default().display().to_string();
    lines.extend(data.notes.lines(&name));
    if data.is_empty() {
        lines.push(format!("warning: {} has no row", file.display()));
        return;
    }
    match origin {
        Origin::Cache => lines.push(format!("tokens: {name} read from the cache")),
        Origin::Encoded { time, warning } => {
            lines.extend(warning.map(|warning| format!("cache: {warning}")));
            let rows = data.rows() + data.skipped.len();
            let pace = rows as f64 / time.as_secs_f64();
            lines.push(format!("tokens: {name} tokenised, {pace:.0} rows/s"));
        }
    }
}
