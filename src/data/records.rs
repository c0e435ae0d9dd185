//! What a row of a data file says: one [`Record`], whatever form the row has. Fields that nothing reads are noted.
//!
//! Owns names and shapes of fields and the refusal of a row that makes no sense. Knows nothing about tokens.

mod columns;
mod completion;
mod extras;
mod fields;
mod list;
mod messages;
mod pair;
mod published;
mod tree;
mod values;

use anyhow::{Result, anyhow, bail, ensure};
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::{
    notes::Note,
    source::json::{self, Fault},
};
pub use columns::{Column, Columns};
pub use extras::Extras;
use fields::Fields;
pub(super) use messages::role;
pub(super) use values::{excerpt, kind};

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
        let mut row = Fields::new(fields, columns);
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

impl Fields<'_> {
    /// The form that the fields say; where none or two do, that is refused.
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
}
