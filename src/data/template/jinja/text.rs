//! Text as Python writes it: `str`, `repr`, floats, white space, classes of characters.

use std::{fmt::Write, sync::LazyLock};

use regex::Regex;

use super::{
    Fault, Result, meter,
    value::{Range, Value, View},
};

/// How deep printed values may nest, namespaces included.
const DEPTH: usize = 400;

/// Python's `str.isspace`: Unicode's white space and the separators U+001C to U+001F.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// One of the characters that `str.splitlines` splits at.
pub fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn class(pattern: &str) -> Regex {
    // The patterns are constants of this file.
    #[allow(clippy::unwrap_used)]
    Regex::new(pattern).unwrap()
}

fn is_in(c: char, regex: &Regex) -> bool {
    regex.is_match(c.encode_utf8(&mut [0; 4]))
}

/// A letter.
pub fn is_alpha(c: char) -> bool {
    static LETTER: LazyLock<Regex> = LazyLock::new(|| class(r"^\p{L}$"));
    if c.is_ascii() { c.is_ascii_alphabetic() } else { is_in(c, &LETTER) }
}

/// A decimal digit.
pub fn is_decimal(c: char) -> bool {
    static DECIMAL: LazyLock<Regex> = LazyLock::new(|| class(r"^\p{Nd}$"));
    if c.is_ascii() { c.is_ascii_digit() } else { is_in(c, &DECIMAL) }
}

/// A digit: a decimal one, or one in a circle, above or below the line.
pub fn is_digit(c: char) -> bool {
    is_decimal(c)
        || matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨' | '⑴'..='⑼' | '⒈'..='⒐' | '⓪'
            | '⓵'..='⓽' | '⓿' | '❶'..='❾' | '➀'..='➈' | '➊'..='➒' | '\u{1369}'..='\u{1371}' | '\u{19da}')
}

/// A character with a numeric value.
pub fn is_numeric(c: char) -> bool {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| class(r"^\p{N}$"));
    is_in(c, &NUMBER) || "〇一二三四五六七八九十百千万亿億兆零壹贰叁肆伍陆柒捌玖拾佰仟両两".contains(c)
}

/// A character that `repr` writes as it is.
pub fn is_printable(c: char) -> bool {
    static HIDDEN: LazyLock<Regex> = LazyLock::new(|| class(r"^[\p{C}\p{Z}]$"));
    if c.is_ascii() { (' '..='~').contains(&c) } else { !is_in(c, &HIDDEN) }
}

/// `repr` of a float: the shortest digits, an exponent below 1e-4 and from 1e16 on.
pub fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.into();
    }
    if x != 0.0 && !(1e-4..1e16).contains(&x.abs()) {
        return exponent(&format!("{x:e}"));
    }
    format!("{x:?}")
}

/// Rust's exponent as Python writes it: with a sign and two digits.
pub fn exponent(text: &str) -> String {
    let (digits, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

/// Python's `str`.
///
/// # Errors
/// The value has no text of its own, or the budget is used up.
pub fn str(value: &Value) -> Result<String> {
    let mut out = String::new();
    write_str(&mut out, value)?;
    Ok(out)
}

/// Writes Python's `str`.
///
/// # Errors
/// As [`str`].
pub fn write_str(out: &mut String, value: &Value) -> Result<()> {
    match value {
        Value::Undefined(_) => Ok(()),
        Value::Str(text) | Value::Markup(text) => {
            meter::scan(text.len())?;
            meter::room(text.len())?;
            out.push_str(text);
            Ok(())
        }
        _ => write_repr(out, value),
    }
}

/// Writes Python's `repr`.
///
/// # Errors
/// As [`str`].
pub fn write_repr(out: &mut String, value: &Value) -> Result<()> {
    repr_at(out, value, 0)
}

fn repr_at(out: &mut String, value: &Value, depth: usize) -> Result<()> {
    meter::spend(1)?;
    meter::room(out.len())?;
    if depth > DEPTH {
        return Err(Fault::budget(format!("prints values that nest more than {DEPTH} deep")));
    }
    let depth = depth + 1;
    match value {
        Value::Undefined(_) => out.push_str("Undefined"),
        Value::None => out.push_str("None"),
        Value::Bool(x) => out.push_str(if *x { "True" } else { "False" }),
        Value::Int(x) => drop(write!(out, "{x}")),
        Value::Float(x) => out.push_str(&float(*x)),
        Value::Str(text) => quote(out, text)?,
        Value::Markup(text) => {
            out.push_str("Markup(");
            quote(out, text)?;
            out.push(')');
        }
        Value::List(items) => sequence(out, "[", items.iter(), "]", depth)?,
        Value::Tuple(items) => sequence(out, "(", items.iter(), if items.len() == 1 { ",)" } else { ")" }, depth)?,
        Value::Dict(dict) => pairs(out, dict.iter().map(|(key, value)| (key.value(), value)), depth)?,
        Value::View(dict, View::Keys) => sequence(out, "dict_keys([", dict.keys().map(|key| key.value()), "])", depth)?,
        Value::View(dict, View::Values) => sequence(out, "dict_values([", dict.values(), "])", depth)?,
        Value::View(dict, View::Items) => {
            out.push_str("dict_items([");
            for (i, (key, value)) in dict.iter().enumerate() {
                out.push_str(if i > 0 { ", " } else { "" });
                sequence(out, "(", [key.value(), value].into_iter(), ")", depth)?;
            }
            out.push_str("])");
        }
        Value::Range(Range { start, stop, step: 1 }) => drop(write!(out, "range({start}, {stop})")),
        Value::Range(Range { start, stop, step }) => drop(write!(out, "range({start}, {stop}, {step})")),
        Value::Namespace(namespace) => {
            let fields = namespace.0.borrow().clone();
            let fields: Vec<_> = fields.into_iter().map(|(name, value)| (Value::text(&*name), value)).collect();
            out.push_str("<Namespace ");
            pairs(out, fields.iter().map(|(name, value)| (name, value)), depth)?;
            out.push('>');
        }
        Value::Macro(node) => match &node.def.name {
            Some(name) => drop(write!(out, "<Macro '{name}'>")),
            None => out.push_str("<Macro anonymous>"),
        },
        _ => {
            let what = value.type_name();
            return Err(Fault::new(format!(
                "a {what} is printed: its text is an address in memory, another each time"
            )));
        }
    }
    Ok(())
}

fn sequence<'a>(
    out: &mut String,
    open: &str,
    items: impl Iterator<Item = &'a Value>,
    close: &str,
    depth: usize,
) -> Result<()> {
    out.push_str(open);
    for (i, item) in items.enumerate() {
        out.push_str(if i > 0 { ", " } else { "" });
        repr_at(out, item, depth)?;
    }
    out.push_str(close);
    Ok(())
}

fn pairs<'a>(out: &mut String, pairs: impl Iterator<Item = (&'a Value, &'a Value)>, depth: usize) -> Result<()> {
    out.push('{');
    for (i, (key, value)) in pairs.enumerate() {
        out.push_str(if i > 0 { ", " } else { "" });
        repr_at(out, key, depth)?;
        out.push_str(": ");
        repr_at(out, value, depth)?;
    }
    out.push('}');
    Ok(())
}

fn quote(out: &mut String, text: &str) -> Result<()> {
    meter::scan(text.len())?;
    meter::room(out.len() + text.len())?;
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => match u32::from(c) {
                code @ ..0x100 => drop(write!(out, "\\x{code:02x}")),
                code @ ..0x1_0000 => drop(write!(out, "\\u{code:04x}")),
                code => drop(write!(out, "\\U{code:08x}")),
            },
        }
    }
    out.push(quote);
    Ok(())
}

/// Safe HTML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

/// The text of `value`, escaped unless it is safe HTML already.
///
/// # Errors
/// As [`str`].
pub fn escaped(value: &Value) -> Result<String> {
    match value {
        Value::Markup(text) => Ok(text.to_string()),
        _ => Ok(escape(&str(value)?)),
    }
}

/// Python's `int(text, base)`; `None` where that is a `ValueError`.
pub fn parse_int(text: &str, base: i128) -> Option<i128> {
    let text = text.trim_matches(is_space);
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let prefix =
        |c: char| digits.len() > 2 && digits.starts_with('0') && digits[1..].starts_with([c, c.to_ascii_uppercase()]);
    let (base, digits) = match base {
        0 | 16 if prefix('x') => (16, &digits[2..]),
        0 | 8 if prefix('o') => (8, &digits[2..]),
        0 | 2 if prefix('b') => (2, &digits[2..]),
        0 if digits.starts_with('0') && digits.chars().any(|c| !matches!(c, '0' | '_')) => return None,
        0 => (10, digits),
        2..=36 => (u32::try_from(base).ok()?, digits),
        _ => return None,
    };
    let digits = ascii_digits(digits);
    let grouped = digits.split('_').all(|part| !part.is_empty() && part.chars().all(|c| c.is_digit(base)));
    let number = i128::from_str_radix(&digits.replace('_', ""), base).ok().filter(|_| grouped)?;
    Some(if negative { -number } else { number })
}

/// Python's `float(text)`; `None` where that is a `ValueError`.
pub fn parse_float(text: &str) -> Option<f64> {
    let text = ascii_digits(text.trim_matches(is_space));
    let bytes = text.as_bytes();
    let grouped = bytes
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'_')
        .all(|(i, _)| i > 0 && bytes[i - 1].is_ascii_digit() && bytes.get(i + 1).is_some_and(u8::is_ascii_digit));
    text.replace('_', "").parse().ok().filter(|_| grouped)
}

/// Decimal digits of every script as ASCII.
fn ascii_digits(text: &str) -> String {
    if text.is_ascii() {
        return text.into();
    }
    // The ten digits of a script stand behind each other, and the first of them has a code that ends in 0 or 6.
    let digit = |c: char| {
        let zero = (0..10).map(|d| u32::from(c).wrapping_sub(d)).filter_map(char::from_u32);
        let first = zero.take_while(|&c| is_decimal(c)).count();
        char::from_digit(u32::try_from(first).unwrap_or(1).wrapping_sub(1), 10).unwrap_or(c)
    };
    text.chars().map(|c| if !c.is_ascii() && is_decimal(c) { digit(c) } else { c }).collect()
}
