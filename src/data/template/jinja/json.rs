//! Python's `json.dumps`, as `transformers` gives it to templates.

use super::{
    Fault, Result,
    calls::{Args, given},
    iter,
    machine::Machine,
    meter, ops,
    text::float,
    value::{Key, Value},
};

struct Dump {
    ascii: bool,
    sort: bool,
    indent: Option<String>,
    comma: String,
    colon: String,
}

/// The filter `tojson`.
///
/// # Errors
/// A value has no JSON, or an argument is none that `json.dumps` takes.
pub fn to_json(machine: &mut Machine, value: &Value, args: Args) -> Result<Value> {
    let [ascii, indent, separators, sort] = args.bind(["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let is = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text) | Value::Markup(text)) => Some(text.to_string()),
        Some(value) => {
            let width = super::calls::length(&value)?;
            meter::room(width)?;
            Some(" ".repeat(width))
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    let [comma, colon] = match separators {
        None | Some(Value::None) => [comma.to_owned(), ": ".to_owned()],
        Some(pair) => {
            let pair: Vec<_> = iter::items(machine, &pair)?;
            let text = |value: Option<&Value>| {
                given(value.cloned(), "separators")?
                    .as_text()
                    .map(|text| text.to_string())
                    .ok_or_else(|| Fault::new("a separator is no text"))
            };
            if pair.len() != 2 {
                return Err(Fault::new("separators are two texts"));
            }
            [text(pair.first())?, text(pair.get(1))?]
        }
    };
    let dump = Dump { ascii: is(ascii), sort: is(sort), indent, comma, colon };
    let mut out = String::new();
    dump.value(&mut out, value, 0)?;
    Ok(Value::text(out))
}

impl Dump {
    fn value(&self, out: &mut String, value: &Value, depth: usize) -> Result<()> {
        meter::spend(1)?;
        meter::room(out.len())?;
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(x) => out.push_str(if *x { "true" } else { "false" }),
            Value::Int(x) => out.push_str(&x.to_string()),
            Value::Float(x) => out.push_str(&number(*x)),
            Value::Str(text) | Value::Markup(text) => self.text(out, text)?,
            Value::List(items) | Value::Tuple(items) => {
                self.block(out, ['[', ']'], items.len(), depth, |out, i| self.value(out, &items[i], depth + 1))?;
            }
            Value::Dict(dict) => {
                let mut fields: Vec<(&Key, &Value)> = dict.iter().collect();
                if self.sort {
                    sort(&mut fields)?;
                }
                self.block(out, ['{', '}'], fields.len(), depth, |out, i| {
                    self.text(out, &key(fields[i].0.value())?)?;
                    out.push_str(&self.colon);
                    self.value(out, fields[i].1, depth + 1)
                })?;
            }
            Value::Undefined(what) => return Err(Fault::new(what.to_string())),
            _ => return Err(Fault::new(format!("'{}' object has no JSON", value.type_name()))),
        }
        Ok(())
    }

    fn block(
        &self,
        out: &mut String,
        [open, close]: [char; 2],
        len: usize,
        depth: usize,
        item: impl Fn(&mut String, usize) -> Result<()>,
    ) -> Result<()> {
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = &self.indent {
                meter::room(out.len() + indent.len() * depth)?;
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
            Ok(())
        };
        out.push(open);
        for i in 0..len {
            if i > 0 {
                out.push_str(&self.comma);
            }
            line(out, depth + 1)?;
            item(out, i)?;
        }
        if len > 0 {
            line(out, depth)?;
        }
        out.push(close);
        Ok(())
    }

    fn text(&self, out: &mut String, text: &str) -> Result<()> {
        meter::scan(text.len())?;
        meter::room(out.len() + text.len())?;
        let quoted = serde_json::Value::from(text).to_string();
        // serde_json leaves DEL as it is, as Python does unless all is to be ASCII.
        if !self.ascii {
            out.push_str(&quoted);
            return Ok(());
        }
        for unit in quoted.encode_utf16() {
            match u8::try_from(unit) {
                Ok(byte @ ..=b'~') => out.push(byte.into()),
                _ => out.push_str(&format!("\\u{unit:04x}")),
            }
        }
        Ok(())
    }
}

fn number(x: f64) -> String {
    match float(x).as_str() {
        "nan" => "NaN".into(),
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        text => text.into(),
    }
}

fn key(key: &Value) -> Result<String> {
    Ok(match key {
        Value::Str(text) | Value::Markup(text) => text.to_string(),
        Value::None => "null".into(),
        Value::Bool(x) => x.to_string(),
        Value::Int(x) => x.to_string(),
        Value::Float(x) => number(*x),
        _ => return Err(Fault::new(format!("a key of type '{}' has no JSON", key.type_name()))),
    })
}

/// By the keys as they are, which all must have an order.
fn sort(fields: &mut Vec<(&Key, &Value)>) -> Result<()> {
    let keys = fields.iter().map(|(key, _)| key.value().clone()).collect();
    let order = super::sequences::sorted(keys, |a, b| Ok(ops::order(a, b, "<")? == Some(std::cmp::Ordering::Less)))?;
    *fields = order.into_iter().map(|at| fields[at]).collect();
    Ok(())
}
