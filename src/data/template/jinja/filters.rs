//! Filters of one value: what stands behind `|`. Those of sequences are in `sequences.rs`.

use super::{
    Fault, Result,
    calls::{Args, given, integer, length},
    eval::attribute,
    format, json,
    machine::Machine,
    meter, methods, ops, sequences, strings,
    text::{self, escape, escaped, is_numeric, is_space, str},
    value::Value,
};

/// Names of all filters.
pub const NAMES: [&str; 54] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "pprint",
    "random",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap",
    "xmlattr",
];

/// `value` through the filter of that name.
///
/// # Errors
/// There is no such filter, or it raises for these values.
pub fn apply(machine: &mut Machine, name: &str, value: Value, args: Args) -> Result<Value> {
    meter::scan(value.as_text().map_or(0, |text| text.len()))?;
    let result = match name {
        "default" | "d" => default(value, args),
        "tojson" => json::to_json(machine, &value, args),
        "capitalize" | "lower" | "upper" | "title" | "trim" | "center" | "replace" | "indent" | "truncate"
        | "wordcount" | "urlencode" | "xmlattr" | "format" => texts(machine, name, &value, args),
        "string" | "safe" | "e" | "escape" | "forceescape" => marked(name, value, args),
        "abs" | "int" | "float" | "round" | "filesizeformat" => numbers(name, &value, args),
        "attr" => {
            let [name] = args.bind(["name"])?;
            let name = given(name, "name")?;
            let Some(name) = name.as_text() else { return Err(Fault::new("attr: the name is no text")) };
            attr(machine, &value, name)
        }
        "pprint" | "random" | "striptags" | "urlize" | "wordwrap" => {
            Err(Fault::new("is not supported in chat templates"))
        }
        _ if NAMES.contains(&name) => sequences::apply(machine, name, value, args),
        _ => Err(Fault::new("is not known")),
    };
    result.map_err(|fault| fault.within(&format!("filter `{name}`")))
}

fn default(value: Value, args: Args) -> Result<Value> {
    let [default, boolean] = args.bind(["default_value", "boolean"])?;
    let falsy = boolean.is_some_and(|boolean| boolean.is_true()) && !value.is_true();
    Ok(if matches!(value, Value::Undefined(_)) || falsy { default.unwrap_or_else(|| Value::text("")) } else { value })
}

fn attr(machine: &mut Machine, value: &Value, name: &str) -> Result<Value> {
    let there = methods::own(value, name).is_some() || matches!(value, Value::Loop(_) | Value::Namespace(_));
    if there || methods::is_internal(name) {
        return attribute(machine, value, name);
    }
    let value = value.defined()?;
    Ok(Value::undefined(format!("'{} object' has no attribute '{name}'", value.type_name())))
}

/// Text stays what it is, all else becomes text.
fn soft(value: &Value) -> Result<Value> {
    if value.as_text().is_some() { Ok(value.clone()) } else { str(value).map(Value::text) }
}

fn marked(name: &str, value: Value, args: Args) -> Result<Value> {
    args.plain::<0>(0)?;
    match (name, &value) {
        ("string", _) => soft(&value),
        ("forceescape", _) => Ok(Value::markup(escape(&str(&value)?))),
        (_, Value::Markup(_)) => Ok(value),
        ("safe", _) => Ok(Value::markup(str(&value)?)),
        _ => Ok(Value::markup(escaped(&value)?)),
    }
}

fn texts(machine: &mut Machine, name: &str, value: &Value, args: Args) -> Result<Value> {
    match name {
        "indent" => return indent(value, args),
        "truncate" => return truncate(value, args),
        "urlencode" => return url_encode(machine, value, args),
        "xmlattr" => return xml_attributes(value, args),
        "format" => return format_filter(&soft(value)?, args),
        _ => {}
    }
    let soft = soft(value)?;
    let Some(text) = soft.as_text() else { return Ok(soft) };
    let like = |text: String| Ok(Value::text_like(&soft, text));
    match name {
        "trim" => {
            let [chars] = args.bind(["chars"])?;
            like(strings::strip(text, "strip", chars.as_ref())?.into())
        }
        "center" => {
            let [width] = args.bind(["width"])?;
            let args = Args::of(vec![width.unwrap_or(Value::Int(80))]);
            strings::call(machine, &soft, text, "center", args)
        }
        "replace" => {
            let [old, new, count] = args.bind(["old", "new", "count"])?;
            let (old, new) = (str(&given(old, "old")?)?, str(&given(new, "new")?)?);
            let count = match count {
                None | Some(Value::None) => -1,
                Some(count) => integer(&count)?,
            };
            Ok(Value::text(strings::replaced(text, &old, &new, count)?))
        }
        "wordcount" => {
            args.plain::<0>(0)?;
            let is_word = |c: char| c == '_' || text::is_alpha(c) || is_numeric(c);
            Ok(Value::Int(text.split(|c| !is_word(c)).filter(|word| !word.is_empty()).count() as i128))
        }
        "title" => {
            args.plain::<0>(0)?;
            like(title(text))
        }
        _ => strings::call(machine, &soft, text, name, args),
    }
}

fn title(text: &str) -> String {
    let begins = |c: char| is_space(c) || "-({[<".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let word = rest.find(begins).unwrap_or(rest.len());
        let mut chars = rest[..word].chars();
        out.extend(chars.next().into_iter().flat_map(char::to_uppercase));
        out.push_str(&chars.as_str().to_lowercase());
        rest = &rest[word..];
        let space = rest.find(|c| !begins(c)).unwrap_or(rest.len());
        out.push_str(&rest[..space]);
        rest = &rest[space..];
    }
    out
}

fn format_filter(value: &Value, args: Args) -> Result<Value> {
    let Args { positional, named } = args;
    if !positional.is_empty() && !named.is_empty() {
        return Err(Fault::new("takes arguments with or without names, not both"));
    }
    if named.is_empty() {
        return format::percent(value, &Value::tuple(positional)?);
    }
    let pairs = named.into_iter().map(|(name, value)| Ok((super::value::Key::new(Value::text(&*name))?, value)));
    format::percent(value, &Value::dict(pairs.collect::<Result<_>>()?)?)
}

fn indent(value: &Value, args: Args) -> Result<Value> {
    let [width, first, blank] = args.bind(["width", "first", "blank"])?;
    let is = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (first, blank) = (is(first), is(blank));
    let space = match width.as_ref().map(|width| (width.as_text(), width)) {
        None => " ".repeat(4),
        Some((Some(text), _)) => text.to_string(),
        Some((None, width)) => {
            let width = length(width)?;
            meter::room(width)?;
            " ".repeat(width)
        }
    };
    let value = value.defined()?;
    let Some(text) = value.as_text() else {
        return Err(Fault::new(format!("needs text, found '{}'", value.type_name())));
    };
    let with_end = format!("{}\n", &***text);
    let lines = strings::lines(&with_end, false);
    meter::room(text.len().saturating_add(lines.len().saturating_mul(space.len())))?;
    let mut out = if first { space.clone() } else { String::new() };
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
            if blank || !line.is_empty() {
                out.push_str(&space);
            }
        }
        out.push_str(line);
    }
    Ok(Value::text_like(value, out))
}

fn truncate(value: &Value, args: Args) -> Result<Value> {
    let [size, kill, end, leeway] = args.bind(["length", "killwords", "end", "leeway"])?;
    let size = size.as_ref().map_or(Ok(255), integer)?;
    let end = match &end {
        None => "...".into(),
        Some(end) => str(end)?,
    };
    let leeway = match leeway {
        None | Some(Value::None) => 5,
        Some(leeway) => integer(&leeway)?,
    };
    let keep = usize::try_from(size - end.chars().count() as i128);
    let (Ok(keep), 0..) = (keep, leeway) else { return Err(Fault::new("the length is below that of the end")) };
    if value.len().is_some_and(|len| len as i128 <= size + leeway) {
        return Ok(value.clone());
    }
    let Some(text) = value.as_text() else { return Err(Fault::new("needs text")) };
    let mut cut = &text[..text.byte(keep)];
    if !kill.is_some_and(|kill| kill.is_true()) {
        cut = cut.rsplit_once(' ').map_or(cut, |(before, _)| before);
    }
    Ok(Value::text_like(value, format!("{cut}{end}")))
}

fn quoted(text: &str, query: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(byte.into()),
            b'/' if !query => out.push('/'),
            b' ' if query => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn url_encode(machine: &mut Machine, value: &Value, args: Args) -> Result<Value> {
    args.plain::<0>(0)?;
    let iterable = value.len().is_some() || matches!(value, Value::Iter(_));
    if value.as_text().is_some() || !iterable {
        return Ok(Value::text(quoted(&str(value)?, false)));
    }
    let pairs = match value {
        Value::Dict(fields) => Value::View(fields.clone(), super::value::View::Items),
        other => other.clone(),
    };
    let mut parts = Vec::new();
    for pair in super::iter::items(machine, &pairs)? {
        let pair = super::iter::items(machine, &pair)?;
        let [key, value] = &pair[..] else { return Err(Fault::new("needs pairs")) };
        parts.push(format!("{}={}", quoted(&str(key)?, true), quoted(&str(value)?, true)));
    }
    Ok(Value::text(parts.join("&")))
}

fn xml_attributes(value: &Value, args: Args) -> Result<Value> {
    let [space] = args.bind(["autospace"])?;
    let Value::Dict(fields) = value.defined()? else { return Err(Fault::new("needs a mapping")) };
    let mut parts = Vec::new();
    for (key, value) in fields.iter() {
        if matches!(value, Value::None | Value::Undefined(_)) {
            continue;
        }
        let Some(name) = key.value().as_text() else { return Err(Fault::new("a name is no text")) };
        if name.contains(|c: char| " \t\n\r\x0b\x0c/>=".contains(c)) {
            return Err(Fault::new(format!("`{}` is no name of an attribute", &***name)));
        }
        parts.push(format!("{}=\"{}\"", escaped(key.value())?, escaped(value)?));
    }
    let text = parts.join(" ");
    let space = space.is_none_or(|space| space.is_true()) && !text.is_empty();
    Ok(Value::text(if space { format!(" {text}") } else { text }))
}

fn numbers(name: &str, value: &Value, args: Args) -> Result<Value> {
    match name {
        "abs" => {
            args.plain::<0>(0)?;
            match (value.as_int(), value) {
                (Some(x), _) => Ok(Value::Int(x.checked_abs().ok_or_else(|| Fault::new("too large"))?)),
                (_, Value::Float(x)) => Ok(Value::Float(x.abs())),
                _ => Err(Fault::new(format!("needs a number, found '{}'", value.type_name()))),
            }
        }
        "int" => {
            let [default, base] = args.bind(["default", "base"])?;
            let base = base.as_ref().map_or(Ok(10), integer)?;
            Ok(to_int(value.defined()?, base)?.map_or_else(|| default.unwrap_or(Value::Int(0)), Value::Int))
        }
        "float" => {
            let [default] = args.bind(["default"])?;
            let value = value.defined()?;
            let found = match value.as_text() {
                Some(text) => text::parse_float(text),
                None => value.as_number(),
            };
            Ok(found.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
        }
        "round" => round(value, args),
        _ => file_size(value, args),
    }
}

fn to_int(value: &Value, base: i128) -> Result<Option<i128>> {
    let whole = |x: f64| (x.abs() < 1e38).then_some(x as i128);
    match value {
        Value::Str(text) | Value::Markup(text) => {
            let direct = text::parse_int(text, base);
            Ok(direct.or_else(|| text::parse_float(text).and_then(whole)))
        }
        Value::Float(x) if x.is_infinite() => Err(Fault::new("infinity is no integer")),
        _ => Ok(value.as_int().or_else(|| value.as_number().and_then(whole))),
    }
}

fn round(value: &Value, args: Args) -> Result<Value> {
    let [precision, method] = args.bind(["precision", "method"])?;
    let precision = precision.as_ref().map_or(Ok(0), integer)?;
    let method = method.as_ref().map_or(Ok("common".into()), str)?;
    let power = 10f64.powi(i32::try_from(precision).unwrap_or(i32::MAX));
    let (Some(x), value) = (value.as_number(), value) else {
        return Err(Fault::new(format!("needs a number, found '{}'", value.type_name())));
    };
    match method.as_str() {
        "common" => Ok(match value.as_int() {
            Some(whole) if precision >= 0 => Value::Int(whole),
            Some(whole) => Value::Int(round_tens(whole, precision)),
            None if precision >= 0 => {
                let places = usize::try_from(precision).unwrap_or(400).min(400);
                Value::Float(format!("{x:.places$}").parse().unwrap_or(x))
            }
            None => Value::Float((x * power).round_ties_even() / power),
        }),
        "ceil" => Ok(Value::Float((x * power).ceil() / power)),
        "floor" => Ok(Value::Float((x * power).floor() / power)),
        _ => Err(Fault::new("the method is `common`, `ceil` or `floor`")),
    }
}

/// To a multiple of a power of ten, ties to even ones.
fn round_tens(x: i128, precision: i128) -> i128 {
    let Some(unit) = u32::try_from(-precision).ok().and_then(|power| 10i128.checked_pow(power)) else { return 0 };
    let (whole, rest) = (x.div_euclid(unit), x.rem_euclid(unit));
    let up = rest * 2 > unit || (rest * 2 == unit && whole % 2 != 0);
    (whole + i128::from(up)) * unit
}

fn file_size(value: &Value, args: Args) -> Result<Value> {
    let [binary] = args.bind(["binary"])?;
    let binary = binary.is_some_and(|binary| binary.is_true());
    let number = match value.as_text() {
        Some(text) => text::parse_float(text),
        None => value.defined()?.as_number(),
    };
    let Some(bytes) = number else { return Err(Fault::new("needs a number")) };
    let base = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok(Value::text("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::text(format!("{} Bytes", bytes as i128)));
    }
    let names = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    let mut size = bytes / base;
    let mut at = 0;
    while size >= base && at + 1 < names.len() {
        size /= base;
        at += 1;
    }
    let name = if binary { names[at].to_uppercase() + "iB" } else { names[at].to_owned() + "B" };
    Ok(Value::text(format!("{size:.1} {name}")))
}

/// The lower-case form that sorting compares where case does not matter.
pub fn folded(value: Value) -> Value {
    match value.as_text() {
        Some(text) => Value::text_like(&value, text.to_lowercase()),
        None => value,
    }
}

/// The length of a value, as `length` finds it.
///
/// # Errors
/// It has none.
pub fn count(machine: &mut Machine, value: &Value) -> Result<Value> {
    if let Value::Loop(state) = value {
        return state.length(machine).map(Value::Int);
    }
    let len = value.len().ok_or_else(|| Fault::new(format!("'{}' object has no length", value.type_name())))?;
    Ok(Value::Int(len as i128))
}

/// Texts of `values`, joined.
///
/// # Errors
/// The result does not fit the budget.
pub fn join(separator: &Value, values: &[Value]) -> Result<Value> {
    ops::join(&Value::text(str(separator)?), values)
}
