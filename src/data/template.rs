//! Hugging Face chat templates: where a model folder keeps its template, and rendering as `transformers` does it.
//!
//! Owns the Jinja dialect (trimmed blocks, Python's methods and JSON, the helper functions). Knows nothing about tokens.

use std::{
    fmt::Write,
    fs,
    io::ErrorKind as Io,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use minijinja::{
    Environment, Error, ErrorKind,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde, Value as Jinja},
};
use serde_json::{Map, Value};

/// Variables that the data sets, never `template_kwargs`.
pub const RESERVED: [&str; 3] = ["messages", "tools", "add_generation_prompt"];
const NAME: &str = "chat template";

/// The chat templates of a model folder, compiled, with the special tokens they write.
#[derive(Debug)]
pub struct Templates {
    default: Environment<'static>,
    /// The one for rows with tools, where the folder has one of its own.
    tool_use: Option<Environment<'static>>,
    special: Map<String, Value>,
    text: String,
}

/// What a row gives its template beyond the messages.
#[derive(Clone, Copy, Debug)]
pub struct Variables<'a> {
    pub tools: &'a [Value],
    /// Later maps win.
    pub kwargs: [&'a Map<String, Value>; 2],
}

impl Templates {
    /// The template of `file`, else of the model folder: `chat_template.jinja`, then `chat_template` of
    /// `tokenizer_config.json`, then `chat_template.json`. `None` if there is none.
    ///
    /// # Errors
    /// A file cannot be read, or a template is not Jinja.
    pub fn load(folder: &Path, file: Option<&Path>) -> Result<Option<Self>> {
        let config = read_json(&folder.join("tokenizer_config.json"))?;
        let jinja = folder.join("chat_template.jinja");
        let (source, place) = if let Some(file) = file {
            let text = read(file)?.with_context(|| {
                format!("`data.template` = {}: there is no such file: name a Jinja chat template", file.display())
            })?;
            (Value::String(text), file.to_path_buf())
        } else if let Some(text) = read(&jinja)? {
            (Value::String(text), jinja)
        } else if !config["chat_template"].is_null() {
            (config["chat_template"].clone(), folder.join("tokenizer_config.json"))
        } else {
            let place = folder.join("chat_template.json");
            (read_json(&place)?["chat_template"].clone(), place)
        };
        let place = place.display();
        let named = |name: &str| {
            let entry = source.as_array()?.iter().find(|entry| entry["name"] == name)?;
            entry["template"].as_str()
        };
        let default = match &source {
            Value::Null => return Ok(None),
            Value::String(text) => text,
            _ => named("default").with_context(|| {
                format!(
                    "`{place}`: `chat_template` is neither text nor a list with a `default`: name one by data.template"
                )
            })?,
        };
        let compile = |text: &str| environment(text).with_context(|| format!("chat template of `{place}`"));
        Ok(Some(Self {
            default: compile(default)?,
            tool_use: named("tool_use").map(compile).transpose()?,
            special: special_tokens(folder, &config)?,
            text: source.to_string(),
        }))
    }

    /// Everything that determines what is rendered but a row, for the key of a cache.
    pub fn fingerprint(&self) -> String {
        let today =
            if self.text.contains("strftime_now") { strftime("%Y-%m-%d").unwrap_or_default() } else { String::new() };
        format!("{}\n{}\n{today}", self.text, Value::Object(self.special.clone()))
    }

    /// Whether the templates' text holds a word at all: what they read, they name.
    pub fn mentions(&self, word: &str) -> bool {
        self.text.contains(word)
    }

    /// The conversation as text.
    ///
    /// # Errors
    /// The template refuses the messages or fails on them.
    pub fn render(&self, messages: &[Value], variables: &Variables, add_generation_prompt: bool) -> Result<String> {
        let mut context = self.special.clone();
        for kwargs in variables.kwargs {
            if let Some(name) = RESERVED.iter().find(|&&name| kwargs.contains_key(name)) {
                bail!("`template_kwargs` sets `{name}`, which the row's own fields set: remove it");
            }
            context.extend(kwargs.clone());
        }
        let tools = if variables.tools.is_empty() { Value::Null } else { variables.tools.into() };
        context.insert("messages".into(), messages.iter().map(normal).collect());
        context.insert("tools".into(), tools);
        context.insert("add_generation_prompt".into(), add_generation_prompt.into());
        let tool_use = self.tool_use.as_ref().filter(|_| !variables.tools.is_empty());
        let template = tool_use.unwrap_or(&self.default).get_template(NAME);
        template.and_then(|template| template.render(Jinja::from(Serde(context)))).map_err(refusal)
    }
}

/// A message as `transformers` hands it on: without fields that are null, the reasoning under each of its names.
fn normal(message: &Value) -> Value {
    let Value::Object(fields) = message else { return message.clone() };
    let mut fields = fields.clone();
    fields.retain(|_, value| !value.is_null());
    let names = ["reasoning_content", "thinking", "reasoning"];
    if let Some(reasoning) = names.iter().find_map(|&name| fields.get(name)).cloned() {
        fields.entry("thinking").or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".into(), reasoning);
    }
    Value::Object(fields)
}

fn environment(text: &str) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    environment.set_syntax(syntax);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(|out, state, value| {
        // Python's words.
        match value {
            value if value.is_none() => out.write_str("None").map_err(Error::from),
            value if value.kind() == minijinja::value::ValueKind::Bool => {
                out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from)
            }
            value => minijinja::escape_formatter(out, state, value),
        }
    });
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<Jinja, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: &str| strftime(format));
    environment
        .add_template_owned(NAME, without_generation_tags(text))
        .map_err(|error| anyhow!("{}", refusal(error)))?;
    Ok(environment)
}

fn refusal(error: Error) -> anyhow::Error {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let what = what.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    anyhow!("the chat template{line}: {what}")
}

/// `{% generation %}` marks the assistant's tokens in training templates and prints nothing: a block that is always
/// taken does the same.
fn without_generation_tags(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{%") {
        // The end is looked for behind the whole beginning: `{%}` is no tag.
        let Some(len) = rest[start + 2..].find("%}") else { break };
        let tag = &rest[start + 2..][..len];
        let word = tag.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        out.push_str(&rest[..start + 2]);
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endif", 1)),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = &rest[start + len + 4..];
    }
    out + rest
}

/// Python's `json.dumps` with `ensure_ascii=False`, as `transformers` defines the filter.
fn to_json(value: Jinja, kwargs: Kwargs) -> Result<Jinja, Error> {
    let json = serde_json::to_value(&value)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("tojson: {error}")))?;
    let ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let sort: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let comma = if indent.is_some() { "," } else { ", " };
    let [comma, colon] = match separators.as_deref() {
        None => [comma, ": "],
        Some([comma, colon]) => [comma.as_str(), colon.as_str()],
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are two texts")),
    };
    let mut out = String::new();
    let dump = Dump { ascii: ascii == Some(true), sort: sort == Some(true), indent, comma, colon };
    dump.value(&mut out, &json, 0);
    Ok(Jinja::from_safe_string(out))
}

struct Dump<'a> {
    ascii: bool,
    sort: bool,
    indent: Option<usize>,
    comma: &'a str,
    colon: &'a str,
}

impl Dump<'_> {
    fn value(&self, out: &mut String, value: &Value, depth: usize) {
        match value {
            Value::String(text) => self.text(out, text),
            Value::Number(number) if number.is_f64() => out.push_str(&python_float(number.as_f64().unwrap_or(0.0))),
            Value::Array(items) => {
                self.list(out, ['[', ']'], items.len(), depth, |out, i| self.value(out, &items[i], depth + 1));
            }
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                if self.sort {
                    fields.sort_by_key(|&(key, _)| key);
                }
                self.list(out, ['{', '}'], fields.len(), depth, |out, i| {
                    self.text(out, fields[i].0);
                    out.push_str(self.colon);
                    self.value(out, fields[i].1, depth + 1);
                });
            }
            other => out.push_str(&other.to_string()),
        }
    }

    fn list(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        len: usize,
        depth: usize,
        item: impl Fn(&mut String, usize),
    ) {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * depth));
            }
        };
        out.push(open);
        for i in 0..len {
            if i > 0 {
                out.push_str(self.comma);
            }
            line(out, depth + 1);
            item(out, i);
        }
        if len > 0 {
            line(out, depth);
        }
        out.push(close);
    }

    fn text(&self, out: &mut String, text: &str) {
        let quoted = Value::from(text).to_string();
        // serde_json leaves DEL as it is, as Python does without ensure_ascii.
        if !self.ascii {
            return out.push_str(&quoted);
        }
        for unit in quoted.encode_utf16() {
            match u8::try_from(unit) {
                Ok(byte) if byte.is_ascii() => out.push(byte.into()),
                _ => out.push_str(&format!("\\u{unit:04x}")),
            }
        }
    }
}

/// `repr` of a Python float: the shortest digits, an exponent below 1e-4 and from 1e16 on.
fn python_float(x: f64) -> String {
    if x != 0.0 && !(1e-4..1e16).contains(&x.abs()) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{x:?}")
}

/// The current date and time in UTC.
fn strftime(format: &str) -> Result<String, Error> {
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let (weekday, name) = (DAYS[(days % 7) as usize], MONTHS[month as usize - 1]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        let written = match (c, if c == '%' { chars.next() } else { None }) {
            (_, Some('Y')) => write!(out, "{year}"),
            (_, Some('y')) => write!(out, "{:02}", year % 100),
            (_, Some('m')) => write!(out, "{month:02}"),
            (_, Some('d')) => write!(out, "{day:02}"),
            (_, Some('B')) => write!(out, "{name}"),
            (_, Some('b')) => write!(out, "{}", &name[..3]),
            (_, Some('A')) => write!(out, "{weekday}"),
            (_, Some('a')) => write!(out, "{}", &weekday[..3]),
            (_, Some('H')) => write!(out, "{:02}", seconds / 3600 % 24),
            (_, Some('M')) => write!(out, "{:02}", seconds / 60 % 60),
            (_, Some('S')) => write!(out, "{:02}", seconds % 60),
            (_, Some('%')) => write!(out, "%"),
            ('%', other) => {
                let what = format!("strftime_now: %{} is not known", other.map(String::from).unwrap_or_default());
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            }
            (c, _) => write!(out, "{c}"),
        };
        let _ = written;
    }
    Ok(out)
}

/// Year, month and day of a day since 1970, after Howard Hinnant's `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    (era * 400 + year + u64::from(month <= 2), month, day)
}

/// `bos_token`, `eos_token` and every other special token that the folder names.
fn special_tokens(folder: &Path, config: &Value) -> Result<Map<String, Value>> {
    let map = read_json(&folder.join("special_tokens_map.json"))?;
    let mut tokens = Map::new();
    for (name, token) in [&map, config].into_iter().filter_map(Value::as_object).flatten() {
        let text = token.as_str().or_else(|| token["content"].as_str());
        if let Some(text) = text.filter(|_| name.ends_with("_token")) {
            tokens.insert(name.clone(), text.into());
        }
    }
    Ok(tokens)
}

/// `None` if the file is not there.
fn read(file: &Path) -> Result<Option<String>> {
    match fs::read(file) {
        Err(error) if error.kind() == Io::NotFound => Ok(None),
        bytes => {
            let bytes = bytes.with_context(|| format!("`{}` cannot be read", file.display()))?;
            let text = String::from_utf8(bytes);
            ensure!(text.is_ok(), "`{}` is not UTF-8: save the template as UTF-8", file.display());
            Ok(text.ok())
        }
    }
}

fn read_json(file: &Path) -> Result<Value> {
    let text = read(file)?.unwrap_or_else(|| "null".into());
    serde_json::from_str(&text).with_context(|| format!("`{}` is broken JSON: restore the file", file.display()))
}
