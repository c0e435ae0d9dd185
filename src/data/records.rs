//! What a row of a data file says: one [`Record`], whatever form the row has. Fields that nothing reads are noted.
//!
//! Owns names and shapes of fields and the refusal of a row that makes no sense. Knows nothing about tokens.

mod columns;
mod extras;
mod messages;
mod published;

use std::{cell::RefCell, collections::BTreeSet};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::{
    notes::Note,
    source::json::{self, Fault},
};
pub use columns::{Column, Columns};
pub use extras::Extras;
pub(super) use messages::role;
use messages::{not_empty, response, split, text};

/// One example.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What all responses continue; `None` where the row has no prompt of its own (implicit prompt, plain document):
    /// then what the responses have in common at their start is the prompt.
    pub prompt: Option<Text>,
    /// What is learnt from.
    pub body: Body,
    /// Tool definitions for the chat template (JSON schemas or what the template takes); empty if the row has none.
    pub tools: Vec<Value>,
    /// Further variables for the chat template, such as `enable_thinking`; they win over the configuration's.
    pub template_kwargs: Map<String, Value>,
    /// Numbers that come with the responses.
    pub extras: Extras,
    /// What of the row has no effect, or is read otherwise than it stands there.
    pub notes: Vec<Note>,
}

/// Plain text, or messages for the model's chat template.
#[derive(Clone, Debug, PartialEq)]
pub enum Text {
    /// As it stands.
    Plain(String),
    /// Objects with `role` and `content` at least, handed to the template as they are (`tool_calls`, ...).
    Chat(Vec<Value>),
}

/// What the row asks for. All texts of a row are plain or all are messages.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// A better and a worse response.
    Pair {
        /// The better one.
        chosen: Text,
        /// The worse one.
        rejected: Text,
    },
    /// K responses to one prompt with one score (higher is better; ranks come as minus the rank) or one label each.
    List {
        /// In the order of the row.
        responses: Vec<Text>,
        /// A score each, or none.
        scores: Vec<f64>,
        /// A label each, or none.
        labels: Vec<bool>,
    },
    /// One response that is desirable or not.
    Unpaired {
        /// The response.
        completion: Text,
        /// Whether it is desirable.
        label: bool,
    },
    /// Supervised training: the completion is learnt, the prompt is not. A plain document is a completion without prompt.
    Completion {
        /// The response, or the whole document.
        completion: Text,
    },
    /// Steps that continue the prompt (`parent` `None`) or an earlier step. Parents come before their children.
    Tree {
        /// Parents before children.
        nodes: Vec<Node>,
    },
}

/// A step of a [`Body::Tree`].
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The step it continues.
    pub parent: Option<usize>,
    /// What was said.
    pub text: Text,
    /// How good it is, where the row says.
    pub score: Option<f64>,
    /// How often a search came by.
    pub visits: Option<f64>,
}

/// The lines of a file that are not blank, numbered from 1. A byte order mark at the start is dropped.
pub fn lines(bytes: &[u8]) -> Vec<(usize, &[u8])> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let numbered = bytes.split(|&b| b == b'\n').enumerate().map(|(i, line)| (i + 1, line));
    numbered.filter(|(_, line)| !line.trim_ascii().is_empty()).collect()
}

/// The forms a row can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A chosen and a rejected response.
    Pair,
    /// Several responses.
    List,
    /// A response with a label.
    Unpaired,
    /// A response alone.
    Completion,
    /// Steps that branch.
    Tree,
}

impl Form {
    /// What rows of this form are, in words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Pair => "preference pairs",
            Self::List => "lists of responses",
            Self::Unpaired => "completions with a label",
            Self::Completion => "texts for supervised training",
            Self::Tree => "trees of steps",
        }
    }
}

/// The forms as the user writes them.
const FORMS: &str = "`chosen` and `rejected`; `prompt`, `responses` and `scores`, `ranks` or `labels`; `prompt`, \
                     `completion` and `label`; `prompt` and `completion`; `text`; `messages`; `prompt` and `nodes`";

/// Reads one line under our own names.
///
/// # Errors
/// What is wrong with the row and what to do, without its place.
pub fn parse(line: &[u8]) -> Result<Record> {
    Record::from_row(row(line)?, &Columns::new())
}

/// The fields of one line.
///
/// # Errors
/// The line is not a JSON object.
pub fn row(line: &[u8]) -> Result<Map<String, Value>> {
    let text = std::str::from_utf8(line).map_err(|error| {
        let at = error.valid_up_to();
        anyhow!("byte {} of the line (0x{:02x}) is not UTF-8: save the file as UTF-8", at + 1, line[at])
    })?;
    let value = json::parse(text).map_err(|fault| broken(text, &fault))?;
    match value {
        Value::Object(fields) => Ok(fields),
        value => {
            bail!("the row is {}, not an object: write {{\"prompt\": …, \"chosen\": …, \"rejected\": …}}", kind(&value))
        }
    }
}

fn broken(text: &str, fault: &Fault) -> anyhow::Error {
    let column = |at: usize| text.get(..at).map_or(at, |before| before.chars().count()) + 1;
    match fault {
        Fault::Deep(at) => anyhow!("the row is nested more than 128 deep at column {}: write it flatter", column(*at)),
        Fault::Surrogate(at) => anyhow!(
            "column {} holds `{}`, half of a surrogate pair and no character: write both halves or remove it",
            column(*at),
            text.get(*at..*at + 6).unwrap_or_default()
        ),
        Fault::Syntax(at) => {
            // The line number within the row is always 1.
            let said = serde_json::from_str::<IgnoredAny>(text).err().map(|error| error.to_string());
            let said = said.unwrap_or_else(|| format!("expected another character at column {}", column(*at)));
            anyhow!("broken JSON: {}: write one JSON object a line", said.replace(" at line 1 column ", " at column "))
        }
    }
}

impl Record {
    /// Reads a row of any form: the fields that are there say which. A field that is null is as good as absent.
    ///
    /// # Errors
    /// What is wrong with the row and what to do, without its place.
    pub fn from_row(fields: Map<String, Value>, columns: &Columns) -> Result<Self> {
        let mut row = Fields { fields, columns, used: RefCell::default(), notes: Vec::new() };
        row.check_columns()?;
        let given = row.given();
        row.read_published()?;
        let tools = row.tools()?;
        let template_kwargs = row.template_kwargs()?;
        let (prompt, body) = match row.form()? {
            Form::Pair => row.pair()?,
            Form::List => row.list()?,
            Form::Tree => row.tree()?,
            Form::Unpaired | Form::Completion => row.completion()?,
        };
        let (values, rationale) = (row.values(&body)?, row.rationale()?);
        let rejected_prompt = row.rejected_prompt(&prompt, &body)?;
        let extras = Extras { values, rationale, rejected_prompt };
        let (prompt, body) = row.with_system(prompt, body)?;
        row.notes_on_unread(given);
        let record = Self { prompt, body, tools, template_kwargs, extras, notes: row.notes };
        record.check_odd()?;
        let chat = record.texts().any(|text| matches!(text, Text::Chat(_)));
        ensure!(
            chat || record.tools.is_empty() && record.template_kwargs.is_empty(),
            "`tools` or `chat_template_kwargs` beside plain text: only conversations go through a chat template; give \
             messages or remove the field"
        );
        Ok(record)
    }

    /// The form of the row it was read from.
    pub fn form(&self) -> Form {
        match self.body {
            Body::Pair { .. } => Form::Pair,
            Body::List { .. } => Form::List,
            Body::Unpaired { .. } => Form::Unpaired,
            Body::Completion { .. } => Form::Completion,
            Body::Tree { .. } => Form::Tree,
        }
    }

    /// Refuses what JSON has no form for within messages, tools and variables of the template.
    fn check_odd(&self) -> Result<()> {
        let messages = self.texts().flat_map(|text| if let Text::Chat(messages) = text { &messages[..] } else { &[] });
        let named = messages.map(|value| ("a message", value)).chain(self.tools.iter().map(|tool| ("`tools`", tool)));
        let kwargs = self.template_kwargs.values().map(|value| ("`chat_template_kwargs`", value));
        for (name, value) in named.chain(kwargs) {
            if let Some((path, odd)) = json::find_odd(value) {
                bail!("{name} holds {odd} (at `{}`): give a value that JSON has", path.trim_start_matches('.'));
            }
        }
        Ok(())
    }

    /// Whether it is a plain text of which every token is learnt.
    pub fn is_document(&self) -> bool {
        self.prompt.is_none() && matches!(self.body, Body::Completion { completion: Text::Plain(_) })
    }

    fn texts(&self) -> impl Iterator<Item = &Text> {
        let body: Vec<&Text> = match &self.body {
            Body::Pair { chosen, rejected } => vec![chosen, rejected],
            Body::List { responses, .. } => responses.iter().collect(),
            Body::Unpaired { completion, .. } | Body::Completion { completion } => vec![completion],
            Body::Tree { nodes } => nodes.iter().map(|node| &node.text).collect(),
        };
        self.prompt.iter().chain(body)
    }
}

struct Fields<'a> {
    fields: Map<String, Value>,
    columns: &'a Columns,
    /// The file's names of what was read.
    used: RefCell<BTreeSet<String>>,
    notes: Vec<Note>,
}

impl Fields<'_> {
    /// The file's name of a field.
    fn name(&self, column: Column) -> &str {
        let own = column.name();
        let alias = match column {
            Column::Responses => "completions",
            Column::Messages => "conversations",
            _ => own,
        };
        match self.columns.get(&column) {
            Some(name) => name,
            None if !self.fields.contains_key(own) && self.fields.contains_key(alias) => alias,
            None => own,
        }
    }

    /// Names of the fields that are not null.
    fn given(&self) -> Vec<String> {
        self.fields.iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name.clone()).collect()
    }

    fn notes_on_unread(&mut self, given: Vec<String>) {
        let used = self.used.borrow();
        let unread = given.into_iter().filter(|name| !used.contains(name));
        self.notes.extend(unread.map(|name| Note::Unread(format!("`{}`", name.escape_debug()))));
    }

    fn mark_used(&self, name: &str) {
        self.used.borrow_mut().insert(name.to_owned());
    }

    /// A mapped name that is nowhere in the row is a slip; what the map takes a name from is not read under it.
    fn check_columns(&self) -> Result<()> {
        for (column, name) in self.columns {
            ensure!(
                self.fields.contains_key(name),
                "column `{name}` is missing, `data.columns.{}` names it; the row has {}",
                column.name(),
                self.found()
            );
        }
        Ok(())
    }

    fn has(&self, column: Column) -> bool {
        self.fields.get(self.name(column)).is_some_and(|value| !value.is_null())
    }

    fn take(&mut self, column: Column) -> Option<Value> {
        let name = self.name(column).to_owned();
        self.mark_used(&name);
        self.fields.get_mut(&name).map(Value::take).filter(|value| !value.is_null())
    }

    fn need(&mut self, column: Column, form: &str) -> Result<Value> {
        let name = self.name(column).to_owned();
        let state = if self.fields.contains_key(&name) { "null" } else { "missing" };
        let found = self.found();
        self.take(column).with_context(|| format!("field `{name}` is {state}: {form}; the row has {found}"))
    }

    fn found(&self) -> String {
        match self.fields.len() {
            0 => "no fields".into(),
            _ => self.fields.keys().map(|name| format!("`{}`", name.escape_debug())).collect::<Vec<_>>().join(", "),
        }
    }

    fn form(&self) -> Result<Form> {
        use Column::{Chosen, Completion, Label, Messages, Nodes, Rejected, Responses, Text};
        let pair = if self.has(Chosen) { Chosen } else { Rejected };
        let mut forms: Vec<(Column, Form)> = [
            (pair, Form::Pair),
            (Responses, Form::List),
            (Nodes, Form::Tree),
            (Completion, if self.has(Label) { Form::Unpaired } else { Form::Completion }),
            (Text, Form::Completion),
            (Messages, Form::Completion),
        ]
        .into_iter()
        .filter(|&(column, _)| self.has(column))
        .collect();
        // Published pairs often carry the chosen conversation once more, or the whole text.
        if self.has(Chosen) && self.has(Rejected) {
            forms.retain(|&(column, _)| !matches!(column, Text | Messages));
        }
        match forms[..] {
            [(_, form)] => Ok(form),
            [] => bail!(
                "no known form: the row has {}; known forms are {FORMS}; data.columns names the fields of a file, as in \
                 `columns = {{ prompt = \"question\" }}`",
                self.found()
            ),
            [(first, _), (second, _), ..] => bail!(
                "`{}` and `{}` are different forms of a row: remove one, or rename it; known forms are {FORMS}",
                self.name(first),
                self.name(second)
            ),
        }
    }

    fn tools(&mut self) -> Result<Vec<Value>> {
        let name = self.name(Column::Tools).to_owned();
        match self.take(Column::Tools).map(from_json_text) {
            None => Ok(Vec::new()),
            // Tables often hold each tool as its JSON text.
            Some(Value::Array(tools)) => Ok(tools.into_iter().map(from_json_text).collect()),
            Some(value) => bail!("field `{name}` is {}: give a list of tools, or its JSON text", kind(&value)),
        }
    }

    fn template_kwargs(&mut self) -> Result<Map<String, Value>> {
        let name = self.name(Column::ChatTemplateKwargs).to_owned();
        match self.take(Column::ChatTemplateKwargs).map(from_json_text) {
            None => Ok(Map::new()),
            Some(Value::Object(kwargs)) => Ok(kwargs),
            Some(value) => bail!("field `{name}` is {}: give an object of template variables", kind(&value)),
        }
    }

    fn prompt(&mut self) -> Result<Option<Text>> {
        let name = self.name(Column::Prompt).to_owned();
        let prompt = self.take(Column::Prompt).map(|value| text(&name, value)).transpose()?;
        if let Some(Text::Chat(messages)) = &prompt {
            ensure!(
                messages.last().is_none_or(|last| role(last) != "assistant"),
                "the last message of `{name}` is from `assistant`, and a response would follow it: end it with the \
                 message that is answered"
            );
        }
        Ok(prompt)
    }

    fn needed_prompt(&mut self, form: &str) -> Result<Text> {
        match self.prompt()? {
            Some(prompt) => Ok(prompt),
            None => Err(self.need(Column::Prompt, form).err().unwrap_or_else(|| anyhow!("no prompt"))),
        }
    }

    fn pair(&mut self) -> Result<(Option<Text>, Body)> {
        const NEEDS: &str = "a preference pair needs `chosen` and `rejected`";
        let names = [self.name(Column::Chosen).to_owned(), self.name(Column::Rejected).to_owned()];
        let chosen = text(&names[0], single(self.need(Column::Chosen, NEEDS)?))?;
        let rejected = text(&names[1], single(self.need(Column::Rejected, NEEDS)?))?;
        self.check_order(&names)?;
        ensure!(
            chosen != rejected,
            "fields `{}` and `{}` are equal ({}): there is nothing to prefer, remove the row",
            names[0],
            names[1],
            start(&chosen)
        );
        let prompt_name = self.name(Column::Prompt).to_owned();
        let (prompt, chosen, rejected) = match (self.prompt()?, chosen, rejected) {
            (None, Text::Plain(chosen), Text::Plain(rejected)) => (None, Text::Plain(chosen), Text::Plain(rejected)),
            (None, Text::Chat(chosen), Text::Chat(rejected)) => {
                ensure!(
                    !self.fields.contains_key("conversations") || chosen.first() == rejected.first(),
                    "`conversations` beside `{}` and `{}`, which do not begin alike: name it the prompt, as in \
                     data.columns = {{ prompt = \"conversations\" }}",
                    names[0],
                    names[1]
                );
                split(&names, chosen, rejected)?
            }
            // A plain question, and answers that are messages.
            (Some(Text::Plain(question)), Text::Chat(chosen), Text::Chat(rejected))
                if [&chosen, &rejected].iter().all(|messages| messages.first().is_some_and(is_assistant)) =>
            {
                let prompt = Text::Chat(vec![serde_json::json!({"role": "user", "content": question})]);
                let chosen = response(&names[0], &prompt_name, &prompt, Text::Chat(chosen))?;
                let rejected = response(&names[1], &prompt_name, &prompt, Text::Chat(rejected))?;
                (Some(prompt), chosen, rejected)
            }
            // A plain copy of the question beside two whole conversations, as in published sets.
            (Some(Text::Plain(question)), Text::Chat(chosen), Text::Chat(rejected)) => {
                let (prompt, chosen, rejected) = split(&names, chosen, rejected)?;
                let asked = matches!(&prompt, Some(Text::Chat(messages)) if messages.iter().any(
                    |message| message["content"].as_str().is_some_and(|content| content.trim() == question.trim())));
                ensure!(
                    asked,
                    "`{prompt_name}` is text ({}) that is no message which `{}` and `{}` begin with: give messages",
                    excerpt(&question),
                    names[0],
                    names[1]
                );
                (prompt, chosen, rejected)
            }
            (Some(prompt), chosen, rejected) => {
                let chosen = response(&names[0], &prompt_name, &prompt, chosen)?;
                let rejected = response(&names[1], &prompt_name, &prompt, rejected)?;
                (Some(prompt), chosen, rejected)
            }
            (None, ..) => bail!("`{}` and `{}`: one is text, the other messages: give both alike", names[0], names[1]),
        };
        for (name, response) in names.iter().zip([&chosen, &rejected]) {
            not_empty(name, response)?;
        }
        Ok((prompt, Body::Pair { chosen, rejected }))
    }

    fn list(&mut self) -> Result<(Option<Text>, Body)> {
        let name = self.name(Column::Responses).to_owned();
        let given: Vec<Column> =
            [Column::Scores, Column::Ranks, Column::Labels].into_iter().filter(|&column| self.has(column)).collect();
        let &[by] = &given[..] else {
            bail!(
                "`{name}` comes with {} of `scores`, `ranks` and `labels`: give exactly one; the row has {}",
                given.len(),
                self.found()
            );
        };
        let prompt_name = self.name(Column::Prompt).to_owned();
        let prompt = self.needed_prompt("a list of responses needs the prompt they answer")?;
        let mut responses = Vec::new();
        for (i, value) in items(&name, self.take(Column::Responses).unwrap_or_default())?.into_iter().enumerate() {
            let part = format!("{name}[{i}]");
            let text = response(&part, &prompt_name, &prompt, text(&part, value)?)?;
            not_empty(&part, &text)?;
            responses.push(text);
        }
        ensure!(!responses.is_empty(), "field `{name}` is an empty list: give responses or remove the row");
        let by_name = self.name(by).to_owned();
        let values = items(&by_name, self.take(by).unwrap_or_default())?;
        ensure!(
            values.len() == responses.len(),
            "`{name}` has {} entries and `{by_name}` {}: give one for each response",
            responses.len(),
            values.len()
        );
        let (mut scores, mut labels) = (Vec::new(), Vec::new());
        for (i, value) in values.iter().enumerate() {
            let part = format!("{by_name}[{i}]");
            match by {
                Column::Labels => labels.push(label(&part, value)?),
                Column::Ranks => {
                    let rank = number(&part, value)?;
                    ensure!(rank >= 1.0, "`{part}` is {rank}: ranks begin with 1, the best");
                    scores.push(-rank);
                }
                _ => scores.push(number(&part, value)?),
            }
        }
        Ok((Some(prompt), Body::List { responses, scores, labels }))
    }

    fn completion(&mut self) -> Result<(Option<Text>, Body)> {
        for column in [Column::Text, Column::Messages] {
            let name = self.name(column).to_owned();
            if let Some(value) = self.take(column) {
                let completion = text(&name, value)?;
                match (&completion, column) {
                    (Text::Chat(messages), Column::Messages) => ensure!(
                        messages.iter().any(is_assistant),
                        "`{name}` has no message from `assistant`: there is nothing to learn, remove the row"
                    ),
                    (Text::Plain(_), Column::Text) => not_empty(&name, &completion)?,
                    (Text::Chat(messages), Column::Text) if messages.iter().any(is_assistant) => {}
                    _ => bail!("field `{name}`: `text` is plain text, `messages` a list of messages: rename the field"),
                }
                ensure!(
                    !self.has(Column::Prompt),
                    "`{name}` beside `{}`: a whole document has no prompt; remove it, or name the field `completion`",
                    self.name(Column::Prompt)
                );
                return Ok((None, Body::Completion { completion }));
            }
        }
        let name = self.name(Column::Completion).to_owned();
        let prompt_name = self.name(Column::Prompt).to_owned();
        let prompt = self.needed_prompt("a completion needs the prompt it continues")?;
        let value = self.need(Column::Completion, "a completion is needed")?;
        let completion = response(&name, &prompt_name, &prompt, text(&name, value)?)?;
        not_empty(&name, &completion)?;
        let label_name = self.name(Column::Label).to_owned();
        let body = match self.take(Column::Label) {
            Some(value) => Body::Unpaired { completion, label: label(&label_name, &value)? },
            None => Body::Completion { completion },
        };
        Ok((Some(prompt), body))
    }

    fn tree(&mut self) -> Result<(Option<Text>, Body)> {
        let name = self.name(Column::Nodes).to_owned();
        let prompt_name = self.name(Column::Prompt).to_owned();
        let prompt = self.needed_prompt("a tree of steps needs the prompt it grows from")?;
        let values = items(&name, self.take(Column::Nodes).unwrap_or_default())?;
        ensure!(!values.is_empty(), "field `{name}` is an empty list: give steps or remove the row");
        let mut nodes = Vec::new();
        for (i, value) in values.into_iter().enumerate() {
            let part = format!("{name}[{i}]");
            let Value::Object(mut fields) = value else {
                bail!("`{part}` is {}: give {{\"parent\": …, \"text\": …}}", kind(&value));
            };
            let parent = match fields.get("parent") {
                None | Some(Value::Null) => None,
                Some(value) => Some(value.as_u64().filter(|&parent| parent < i as u64).with_context(|| {
                    format!("`{part}.parent` is {}: give null or the index of an earlier node", kind(value))
                })? as usize),
            };
            let score = fields.get("score").filter(|score| !score.is_null());
            let score = score.map(|score| number(&format!("{part}.score"), score)).transpose()?;
            let visits = fields.get("visits").filter(|visits| !visits.is_null());
            let visits = visits.map(|visits| number(&format!("{part}.visits"), visits)).transpose()?;
            let others = fields.keys().filter(|key| !["parent", "score", "visits", "text"].contains(&key.as_str()));
            self.notes.extend(others.map(|key| Note::Unread(format!("`{}` of nodes", key.escape_debug()))));
            let part = format!("{part}.text");
            let text = text(&part, fields.get_mut("text").map(Value::take).unwrap_or_default())?;
            ensure!(
                matches!(text, Text::Chat(_)) == matches!(prompt, Text::Chat(_)),
                "`{part}` and `{prompt_name}`: one is text, the other messages: give all texts of a row alike"
            );
            not_empty(&part, &text)?;
            nodes.push(Node { parent, text, score, visits });
        }
        Ok((Some(prompt), Body::Tree { nodes }))
    }
}

/// One message in place of a list of one.
fn single(value: Value) -> Value {
    let is_message = value.get("role").is_some() || value.get("from").is_some();
    if is_message { Value::Array(vec![value]) } else { value }
}

fn is_assistant(message: &Value) -> bool {
    role(message) == "assistant"
}

/// A list, or its JSON text, as tables often hold one.
fn items(name: &str, value: Value) -> Result<Vec<Value>> {
    match from_json_text(value) {
        Value::Array(items) => Ok(items),
        value => bail!("field `{name}` is {}: give a list", kind(&value)),
    }
}

fn number(name: &str, value: &Value) -> Result<f64> {
    // An integer beyond 64 bits is a number all the same.
    let number = value.as_f64().or_else(|| json::odd(value)?.parse().ok()).filter(|number| number.is_finite());
    number.with_context(|| format!("`{name}` is {}: give a finite number", kind(value)))
}

/// True or false; 1 and 0 as well, as tables often have them.
fn label(name: &str, value: &Value) -> Result<bool> {
    match (value, value.as_f64()) {
        (Value::Bool(label), _) => Ok(*label),
        (_, Some(1.0)) => Ok(true),
        (_, Some(0.0)) => Ok(false),
        _ => bail!("`{name}` is {}: give true for desirable, false for undesirable", kind(value)),
    }
}

/// A nested value that a table holds as JSON text.
fn from_json_text(value: Value) -> Value {
    match &value {
        Value::String(text) => serde_json::from_str(text).unwrap_or(value),
        _ => value,
    }
}

fn start(text: &Text) -> String {
    match text {
        Text::Plain(text) => excerpt(text),
        Text::Chat(messages) => {
            let last = messages.last().and_then(|message| message["content"].as_str());
            excerpt(last.unwrap_or_default())
        }
    }
}

pub(super) fn kind(value: &Value) -> String {
    if let Some(odd) = json::odd(value) {
        return odd.to_owned();
    }
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(value) => format!("the number {value}"),
        Value::String(text) => format!("the text {}", excerpt(text)),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(fields) => format!("an object of {} fields", fields.len()),
    }
}

/// The start of a text in quotes, on one line.
pub(super) fn excerpt(text: &str) -> String {
    const CHARS: usize = 40;
    let start: String = text.chars().take(CHARS).collect();
    let rest = if text.chars().nth(CHARS).is_some() { "…" } else { "" };
    format!("{:?}{rest}", start)
}
