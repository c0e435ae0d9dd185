//! Model, rows and lengths of a first configuration.

use anyhow::{Result, bail};
use serde_json::Value;

use super::{Given, draft::Draft, foreign::Foreign, rows::Rows, tool::Tool, values};
use crate::{data::template::RESERVED, loss::Shape};

/// Tokens of a micro-batch at least.
const TOKENS: usize = 4096;
/// Tokens of a document's block at most, where nothing else is said.
const BLOCK: usize = 2048;
/// Above this a length is no limit.
const LONGEST: u64 = 1 << 32;

/// Names of a limit of prompt and response together, of the prompt, of the response.
const TOTALS: [&str; 4] = ["max_length", "max_seq_length", "sequence_len", "cutoff_len"];
const PROMPTS: [&str; 2] = ["max_prompt_length", "max_prompt_len"];
const RESPONSES: [&str; 2] = ["max_completion_length", "max_target_length"];

/// Limits that the first rows keep, with room for those behind them.
pub(super) fn by_rows(draft: &mut Draft, rows: &Rows, positions: usize) {
    let room = |length: usize| {
        let wanted = if rows.more { length + length / 2 } else { length };
        wanted.next_multiple_of(64).max(64).min(positions)
    };
    let (prompt, mut response) = (room(rows.prompt), room(rows.response));
    let of = if rows.more { format!("the first {} rows", rows.seen) } else { format!("the {} rows", rows.seen) };
    let words = |length: usize| {
        format!("The longest of {of} has {length}; both together may have the model's {positions} positions.")
    };
    if rows.documents {
        response = BLOCK.min(positions);
        draft.set(
            "data.long_text",
            "split",
            "Some rows are documents: a longer one is cut into blocks, none of its tokens is lost.",
        );
    }
    draft.set("data.max_prompt_tokens", prompt as i64, words(rows.prompt));
    draft.set("data.max_response_tokens", response as i64, words(rows.response));
    draft.set("data.long_prompt", "keep_end", "");
    draft.set("data.long_response", "keep_start", "");
    let longest = (prompt + rows.responses * response).next_multiple_of(64).max(TOKENS);
    draft.set("batch.tokens", longest as i64, "");
    columns(draft, rows);
}

fn columns(draft: &mut Draft, rows: &Rows) {
    if !rows.columns.is_empty() {
        let names = rows.columns.iter().map(|(column, name)| (column.name().to_owned(), name.clone().into()));
        draft.set("data.columns", names.collect::<toml::Table>(), "");
    }
}

impl Rows {
    /// What was seen of them, in a sentence.
    pub(super) fn describe(&self) -> String {
        let of = if self.more { "The first rows" } else { "The rows" };
        format!("{of} are {}; the longest has {} tokens.", self.form.describe(), self.both)
    }
}

impl Foreign<'_> {
    pub(super) fn model(&mut self, given: &Given) -> Result<()> {
        let name = if self.tool == Tool::Axolotl { "base_model" } else { "model_name_or_path" };
        let there = self.take(name).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        let words = there.as_ref().map(|there| format!("`{name}` there is {there}"));
        match (given.model, there) {
            (Some(path), _) => self.draft.set("model.path", given.written_model(path)?, words.unwrap_or_default()),
            (None, Some(there)) => self.draft.set("model.path", there, format!("`{name}` there")),
            (None, None) => self.draft.set("model.path", "MODEL", "none is named there: put its folder here"),
        }
        Ok(())
    }

    pub(super) fn data(&mut self, given: &Given, rows: Option<&Rows>) -> Result<()> {
        let ids = self.named_rows();
        let ids = if ids.is_empty() { "rows that it does not name".to_owned() } else { ids.join(", ") };
        match given.data {
            Some(data) => {
                self.draft.set("data.train", given.written(data)?, format!("There it is {ids}"));
                rows.into_iter().for_each(|rows| self.draft.remark("data.train", rows.describe()));
            }
            None => {
                let words = format!("Put the file here that has the rows: there it is {ids}");
                self.draft.set("data.train", "ROWS.jsonl", words);
            }
        }
        rows.into_iter().for_each(|rows| columns(&mut self.draft, rows));
        self.draft.suggest("data.eval", "held-out.jsonl", "");
        self.held_out();
        self.order();
        self.template_variables();
        Ok(())
    }

    /// A share of the rows; a number of them is listed.
    fn held_out(&mut self) {
        for name in ["val_set_size", "val_size"] {
            match self.look(name).and_then(values::number) {
                Some(0.0) => self.leave(name, "0 holds no rows out, as here"),
                Some(share) if share > 0.0 && share < 1.0 => {
                    self.take(name);
                    self.draft.set("data.eval_fraction", share, format!("`{name}` there"));
                }
                _ => {}
            }
        }
    }

    fn order(&mut self) {
        for (name, order) in [("group_by_length", "length"), ("disable_shuffling", "file")] {
            match self.look(name) {
                Some(Value::Bool(true)) => {
                    self.take(name);
                    self.draft.set("data.order", order, format!("`{name}` there"));
                }
                Some(Value::Bool(false)) => self.leave(name, "it is off, as here"),
                _ => {}
            }
        }
    }

    /// Ids and paths of data, as far as they are names.
    fn named_rows(&self) -> Vec<String> {
        let mut found = Vec::new();
        for key in ["dataset_name", "dataset", "dataset_mixer", "dataset_mixture", "datasets", "pretraining_dataset"] {
            self.look(key).into_iter().for_each(|value| names_in(value, key == "dataset_mixer", &mut found));
        }
        found.dedup();
        found
    }

    fn template_variables(&mut self) {
        if let Some(Value::Object(given)) = self.look("chat_template_kwargs")
            && !RESERVED.iter().any(|name| given.contains_key(*name))
            && let Some(table) = values::to_toml(&Value::Object(given.clone()))
        {
            self.take("chat_template_kwargs");
            self.draft.set("data.template_kwargs", table, "`chat_template_kwargs` there");
        } else if let Some(Value::Bool(thinks)) = self.look("enable_thinking") {
            self.take("enable_thinking");
            let table = toml::Table::from_iter([("enable_thinking".to_owned(), (*thinks).into())]);
            self.draft.set("data.template_kwargs", table, "`enable_thinking` there");
        }
    }

    /// Limits of prompt and response are apart here, and together there in most files.
    pub(super) fn lengths(&mut self, rows: Option<&Rows>, positions: Option<usize>) -> Result<()> {
        let (total, prompt, response) = (self.length(&TOTALS)?, self.length(&PROMPTS)?, self.length(&RESPONSES)?);
        if let (None, None, None, Some(rows), Some(positions)) = (&total, &prompt, &response, rows, positions) {
            by_rows(&mut self.draft, rows, positions);
            return Ok(());
        }
        let (whole, whole_words) = match &total {
            Some((name, tokens)) => (*tokens, format!("`{name}` {tokens} there, of prompt and response together")),
            None => (
                self.tool.length(),
                format!("not in the file: {} is {}'s default for both together", self.tool.length(), self.tool.name()),
            ),
        };
        let (prompt, words) = match &prompt {
            Some((name, tokens)) => (*tokens, format!("`{name}` there")),
            None => (whole, whole_words.clone()),
        };
        self.draft.set("data.max_prompt_tokens", prompt as i64, words);
        let (response, words) = match &response {
            Some((name, tokens)) => (*tokens, format!("`{name}` there")),
            None if prompt < whole => (whole - prompt, format!("{whole_words}, less the prompt's")),
            None => (whole, whole_words),
        };
        self.draft.set("data.max_response_tokens", response as i64, words);
        let responses =
            if self.draft.losses().any(|loss| matches!(loss.shape, Shape::Pair | Shape::List | Shape::Labelled)) {
                2
            } else {
                1
            };
        let both = if prompt < whole { prompt + responses * response } else { responses * whole };
        let tokens = rows.map_or(0, |rows| rows.prompt + rows.responses * rows.response);
        let words = "a pair that is within the limits there is within this";
        self.draft.set("batch.tokens", (both as usize).max(tokens).max(TOKENS) as i64, words);
        self.policies();
        Ok(())
    }

    /// The first limit of these names.
    fn length(&mut self, names: &[&'static str]) -> Result<Option<(&'static str, u64)>> {
        let mut found = None;
        for &name in names {
            let Some(tokens) = self.look(name) else { continue };
            match (values::whole(tokens).filter(|tokens| (1..LONGEST).contains(tokens)), found) {
                (Some(tokens), None) => {
                    self.take(name);
                    found = Some((name, tokens));
                }
                (Some(_), Some((other, _))) => self.leave(name, format!("`{other}` comes first")),
                (None, _) => bail!("`{name}` = {tokens}: a length is a whole number of 1 or more"),
            }
        }
        Ok(found)
    }

    /// What is done with what is longer.
    fn policies(&mut self) {
        let words = format!("as {} does", self.tool.name());
        let (mut prompt, mut response) = match self.tool {
            Tool::Trl => ("keep_end", "keep_start"),
            Tool::Axolotl => ("drop", "drop"),
            Tool::LlamaFactory => ("keep_start", "keep_start"),
        };
        let (mut prompt_words, mut response_words) = (words.clone(), words);
        if let Some(mode @ ("keep_end" | "keep_start")) = self.look("truncation_mode").and_then(Value::as_str) {
            self.take("truncation_mode");
            (prompt, prompt_words) = (mode, "`truncation_mode` there".to_owned());
        }
        if let Some(strategy) = self.look("excess_length_strategy").and_then(Value::as_str)
            && let Some(here) = [("drop", "drop"), ("truncate", "keep_start"), ("raise", "error")]
                .into_iter()
                .find(|(name, _)| *name == strategy)
        {
            self.take("excess_length_strategy");
            (prompt, response) = (here.1, here.1);
            (prompt_words, response_words) =
                ("`excess_length_strategy` there".into(), "`excess_length_strategy` there".into());
        }
        self.draft.set("data.long_prompt", prompt, prompt_words);
        self.draft.set("data.long_response", response, response_words);
        let pretrains =
            self.look("stage").is_some_and(|stage| stage == "pt") || self.look("pretraining_dataset").is_some();
        if pretrains {
            self.draft.set("data.long_text", "split", "documents are cut into blocks there");
        }
    }
}

/// The names of data sets in a value: texts, `id` and `path` of tables, and the keys of a mixer.
fn names_in(value: &Value, keys: bool, found: &mut Vec<String>) {
    match value {
        Value::String(name) => found.push(name.clone()),
        Value::Array(items) => items.iter().for_each(|item| names_in(item, false, found)),
        Value::Object(fields) if keys => found.extend(fields.keys().cloned()),
        Value::Object(fields) => {
            let name = ["id", "path", "datasets"].into_iter().find_map(|key| fields.get(key));
            name.into_iter().for_each(|name| names_in(name, false, found));
        }
        _ => {}
    }
}
