//! A quick look at the first rows of a data file: their form, what their fields are called, how long they are.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value};

use crate::{
    config::Config,
    data::{
        encode::{Encoded, Encoder},
        records::{Body, Column, Columns, Form, Record},
        source::{self, MAX_ROW_BYTES},
    },
    model::ModelConfig,
};

/// Rows that are looked at, and the bytes of them, one row more.
const ROWS: usize = 256;
const BYTES: usize = 16 << 20;
/// Tokens that no row has.
const NO_LIMIT: usize = 1 << 40;

/// What files call a prompt and what answers it, the likeliest first; names that are read as they are need not stand here.
const PROMPTS: &[&str] = &["prompt", "question", "query", "input", "instruction", "post", "context", "problem", "user"];
const PAIRS: &[(&str, &str)] = &[
    ("chosen", "rejected"),
    ("response_j", "response_k"),
    ("better", "worse"),
    ("better_response", "worse_response"),
    ("chosen_response", "rejected_response"),
    ("preferred", "dispreferred"),
    ("preferred_output", "non_preferred_output"),
    ("accepted", "rejected"),
    ("positive", "negative"),
    ("winner", "loser"),
    ("win", "lose"),
    ("good", "bad"),
    ("answer_chosen", "answer_rejected"),
];
const COMPLETIONS: &[&str] = &["completion", "response", "output", "answer", "target", "generation", "solution"];
const LABELS: &[&str] = &["label", "is_good", "is_desirable", "desirable", "kto_tag", "thumbs_up"];
const MESSAGES: &[&str] = &["messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns"];
const LISTS: &[&str] = &["responses", "completions", "answers", "candidates", "outputs"];
const SCORES: &[&str] = &["scores", "rewards", "ratings", "ranks", "labels"];
const TEXTS: &[&str] = &["text", "content", "document", "body"];

/// What the first rows are.
pub(super) struct Rows {
    pub form: Form,
    pub columns: Columns,
    /// Rows that were looked at, and whether the file has more.
    pub seen: usize,
    pub more: bool,
    /// Most responses of a row.
    pub responses: usize,
    /// Longest prompt and response, in tokens, and the longest of both together.
    pub prompt: usize,
    pub response: usize,
    pub both: usize,
    /// Lists have labels and no scores.
    pub labels: bool,
    /// A prompt or a response is plain text without a prompt: a document.
    pub documents: bool,
}

impl Rows {
    /// Looks at a file with the tokenizer and the template of a model.
    ///
    /// # Errors
    /// One cannot be read, or no row has a form that is known.
    pub(super) fn look(file: &Path, folder: &Path, model: &ModelConfig) -> Result<Self> {
        let file = &source::expand(file)?[0];
        let (rows, more) = first_rows(file)?;
        let Some(first) = rows.first() else { bail!("data file `{}` has no row", file.display()) };
        let columns = columns_of(first).with_context(|| format!("data file `{}`", file.display()))?;
        let mut config = Config::default();
        config.model.path = folder.to_owned();
        (config.data.max_prompt_tokens, config.data.max_response_tokens, config.batch.tokens) =
            (NO_LIMIT, NO_LIMIT, NO_LIMIT);
        let encoder = config.encoder(model.vocab, NO_LIMIT)?;
        Self::measure(rows, columns, more, &encoder).with_context(|| format!("data file `{}`", file.display()))
    }

    fn measure(rows: Vec<Map<String, Value>>, columns: Columns, more: bool, encoder: &Encoder) -> Result<Self> {
        let mut found = Self {
            form: Form::Pair,
            columns,
            seen: rows.len(),
            more,
            responses: 1,
            prompt: 0,
            response: 0,
            both: 0,
            labels: false,
            documents: false,
        };
        for (at, fields) in rows.into_iter().enumerate() {
            let row = || format!("row {}", at + 1);
            let record = Record::from_row(fields, &found.columns).with_context(row)?;
            found.add(at, &record, encoder.encode(&row(), &record).with_context(row)?);
        }
        Ok(found)
    }

    fn add(&mut self, at: usize, record: &Record, encoded: Encoded) {
        if at == 0 {
            self.form = record.form();
        }
        self.labels |= matches!(&record.body, Body::List { scores, .. } if scores.is_empty());
        self.documents |= record.prompt.is_none() && record.form() == Form::Completion;
        let trees = match encoded {
            Encoded::Tree { tree, .. } => vec![tree],
            Encoded::Blocks { trees, .. } => trees,
            Encoded::Dropped(_) => Vec::new(),
        };
        for tree in trees {
            let lengths = |scored: bool| {
                tree.segments.iter().filter(move |part| part.scored == scored).map(|part| part.tokens.len())
            };
            self.responses = self.responses.max(lengths(true).count());
            self.prompt = self.prompt.max(lengths(false).max().unwrap_or(0));
            self.response = self.response.max(lengths(true).max().unwrap_or(0));
            self.both = self.both.max(tree.longest_path());
        }
    }

    /// The loss that is for such rows.
    pub(super) fn loss(&self) -> &'static str {
        match self.form {
            Form::Pair | Form::Tree => "dpo",
            Form::List if self.labels => "infonca",
            Form::List => "tpo",
            Form::Unpaired => "kto",
            Form::Completion => "sft",
        }
    }
}

fn first_rows(file: &Path) -> Result<(Vec<Map<String, Value>>, bool)> {
    let mut opened = source::open(file, MAX_ROW_BYTES)?;
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while rows.len() < ROWS && bytes < BYTES {
        let Some(row) = opened.rows.next() else { return Ok((rows, false)) };
        let row = row?;
        bytes += row.bytes();
        let place = row.place.clone();
        rows.push(row.fields().map_err(|why| anyhow!("data file `{}{place}`: {why:#}", opened.name))?);
    }
    let more = opened.rows.next().is_some();
    Ok((rows, more))
}

/// What a row calls its fields: nothing where it can be read as it is, else the first names that can.
fn columns_of(row: &Map<String, Value>) -> Result<Columns> {
    let as_it_is = match Record::from_row(row.clone(), &Columns::new()) {
        Ok(_) => return Ok(Columns::new()),
        Err(why) => why,
    };
    let has = |name: &&str| row.get(*name).is_some_and(|value| !value.is_null());
    let first = |names: &'static [&'static str]| names.iter().copied().find(has);
    let mut tried: Vec<Vec<(Column, &str)>> = Vec::new();
    if let Some((chosen, rejected)) = PAIRS.iter().find(|(chosen, rejected)| has(chosen) && has(rejected)) {
        tried.push(vec![(Column::Chosen, chosen), (Column::Rejected, rejected)]);
    }
    if let (Some(responses), Some(scores)) = (first(LISTS), first(SCORES)) {
        let column = match scores {
            "ranks" => Column::Ranks,
            "labels" => Column::Labels,
            _ => Column::Scores,
        };
        tried.push(vec![(Column::Responses, responses), (column, scores)]);
    }
    if let Some(completion) = first(COMPLETIONS) {
        let label = first(LABELS).map(|label| (Column::Label, label));
        tried.push([(Column::Completion, completion)].into_iter().chain(label).collect());
    }
    tried.extend(first(MESSAGES).map(|name| vec![(Column::Messages, name)]));
    tried.extend(first(TEXTS).map(|name| vec![(Column::Text, name)]));
    for columns in tried {
        let named = |columns: &[(Column, &str)]| -> Columns {
            let other = columns.iter().filter(|(column, name)| column.name() != *name);
            other.map(|(column, name)| (*column, (*name).to_owned())).collect()
        };
        let prompts = PROMPTS.iter().copied().filter(has).filter(|name| columns.iter().all(|(_, taken)| taken != name));
        let with = prompts.map(|prompt| named(&[&columns[..], &[(Column::Prompt, prompt)]].concat()));
        let all = with.chain([named(&columns)]);
        if let Some(columns) = all.into_iter().find(|columns| Record::from_row(row.clone(), columns).is_ok()) {
            return Ok(columns);
        }
    }
    Err(as_it_is)
}
