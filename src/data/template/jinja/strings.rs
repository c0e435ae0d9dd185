//! Methods of text.

use super::{
    Fault, Result,
    calls::{Args, given, integer, length},
    format, iter,
    machine::Machine,
    meter, ops,
    text::{self, escaped, is_alpha, is_decimal, is_digit, is_line_end, is_numeric, is_printable, is_space},
    value::{Text, Value},
};

/// Names of all methods.
pub const NAMES: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

/// Calls a method of `text`, which is `value`.
///
/// # Errors
/// The arguments do not fit, or it raises.
pub fn call(machine: &mut Machine, value: &Value, text: &Text, name: &str, args: Args) -> Result<Value> {
    meter::scan(text.len())?;
    let like = |text: String| Ok(Value::text_like(value, text));
    match name {
        "capitalize" | "casefold" | "lower" | "swapcase" | "title" | "upper" => {
            args.plain::<0>(0)?;
            like(cased(text, name))
        }
        "center" | "ljust" | "rjust" => like(padded(value, text, name, args)?),
        "zfill" => {
            let [width] = args.plain(1)?;
            like(zfill(text, length(&given(width, "width")?)?)?)
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.plain(0)?;
            like(strip(text, name, chars.as_ref())?.into())
        }
        "removeprefix" | "removesuffix" => {
            let [part] = args.plain(1)?;
            let part = text_of(part.as_ref())?;
            let part = &**part;
            let cut = if name == "removeprefix" { text.strip_prefix(part) } else { text.strip_suffix(part) };
            like(cut.unwrap_or(text).into())
        }
        "replace" => replace(value, text, args),
        "expandtabs" => {
            let [size] = args.bind(["tabsize"])?;
            like(expand_tabs(text, size.as_ref().map_or(Ok(8), length)?)?)
        }
        "split" | "rsplit" => split(value, text, name == "rsplit", args),
        "splitlines" => {
            let [keep] = args.bind(["keepends"])?;
            let lines = lines(text, keep.is_some_and(|keep| keep.is_true()));
            Value::list(lines.into_iter().map(|line| Value::text_like(value, line)).collect())
        }
        "partition" | "rpartition" => partition(value, text, name == "rpartition", args),
        "join" => join(machine, value, args),
        "count" | "find" | "rfind" | "index" | "rindex" | "startswith" | "endswith" => search(text, name, args),
        "format" => format::braces(machine, value, text, args),
        "format_map" => {
            let [map] = args.plain(1)?;
            let Value::Dict(fields) = given(map, "mapping")? else { return Err(Fault::new("needs a mapping")) };
            let named =
                fields.iter().filter_map(|(key, value)| Some(((&***key.value().as_text()?).into(), value.clone())));
            let named = named.collect();
            format::braces(machine, value, text, Args { positional: Vec::new(), named })
        }
        "encode" | "maketrans" | "translate" => Err(Fault::new("is not supported: templates render text")),
        _ => {
            args.plain::<0>(0)?;
            Ok(Value::Bool(is(text, name)))
        }
    }
}

fn text_of(value: Option<&Value>) -> Result<std::sync::Arc<Text>> {
    match value.map(|value| (value.as_text(), value)) {
        Some((Some(text), _)) => Ok(text.clone()),
        Some((None, value)) => Err(Fault::new(format!("needs text, found '{}'", value.type_name()))),
        None => Err(Fault::new("needs text")),
    }
}

fn capitalized(word: &str) -> String {
    let mut chars = word.chars();
    let Some(first) = chars.next() else { return String::new() };
    title_case(first) + &chars.as_str().to_lowercase()
}

/// A character as the first of a word.
fn title_case(c: char) -> String {
    match c {
        'ǆ' | 'Ǆ' | 'ǅ' => "ǅ".into(),
        'ǉ' | 'Ǉ' | 'ǈ' => "ǈ".into(),
        'ǌ' | 'Ǌ' | 'ǋ' => "ǋ".into(),
        'ǳ' | 'Ǳ' | 'ǲ' => "ǲ".into(),
        // Georgian has capitals that do not begin words.
        '\u{10d0}'..='\u{10ff}' => c.into(),
        _ => {
            let mut upper = c.to_uppercase();
            let first: String = upper.next().into_iter().collect();
            first + &upper.collect::<String>().to_lowercase()
        }
    }
}

fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title(c)
}

fn is_title(c: char) -> bool {
    matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ' | '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}' | '\u{1fa8}'..='\u{1faf}'
        | '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

fn cased(text: &str, name: &str) -> String {
    match name {
        "lower" => text.to_lowercase(),
        "upper" => text.to_uppercase(),
        "capitalize" => capitalized(text),
        "casefold" => {
            let fold = |c: char| match c {
                'ı' => c.to_string(),
                _ => c.to_uppercase().collect::<String>().chars().flat_map(char::to_lowercase).collect(),
            };
            text.chars().map(fold).collect()
        }
        "swapcase" => text
            .chars()
            .flat_map(|c| {
                if c.is_uppercase() { c.to_lowercase().collect::<String>() } else { c.to_uppercase().collect() }
                    .chars()
                    .collect::<Vec<_>>()
            })
            .collect(),
        _ => {
            let mut inside = false;
            let mut out = String::with_capacity(text.len());
            for c in text.chars() {
                if inside {
                    out.extend(c.to_lowercase())
                } else {
                    out.push_str(&title_case(c))
                }
                inside = is_cased(c);
            }
            out
        }
    }
}

fn padded(value: &Value, text: &Text, name: &str, args: Args) -> Result<String> {
    let [width, fill] = args.plain(1)?;
    let width = length(&given(width, "width")?)?;
    let fill = match fill {
        None => " ".into(),
        Some(fill) if text_of(Some(&fill))?.count() != 1 => return Err(Fault::new("needs one character to fill with")),
        Some(fill) if matches!(value, Value::Markup(_)) => escaped(&fill)?,
        Some(fill) => text::str(&fill)?,
    };
    let missing = width.saturating_sub(text.count());
    meter::room(text.len().saturating_add(missing.saturating_mul(fill.len())))?;
    let left = match name {
        "ljust" => 0,
        "rjust" => missing,
        _ => missing / 2 + (missing & width & 1),
    };
    Ok([&*fill.repeat(left), text, &*fill.repeat(missing - left)].concat())
}

fn zfill(text: &Text, width: usize) -> Result<String> {
    let missing = width.saturating_sub(text.count());
    meter::room(text.len().saturating_add(missing))?;
    let sign = usize::from(text.starts_with(['+', '-']));
    Ok([&text[..sign], &"0".repeat(missing), &text[sign..]].concat())
}

/// `strip`, `lstrip` or `rstrip`.
///
/// # Errors
/// The characters are no text.
pub fn strip<'a>(text: &'a str, name: &str, chars: Option<&Value>) -> Result<&'a str> {
    let chars = match chars {
        None | Some(Value::None) => None,
        given => Some(text_of(given)?),
    };
    let hit = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if name == "rstrip" { text } else { text.trim_start_matches(hit) };
    Ok(if name == "lstrip" { text } else { text.trim_end_matches(hit) })
}

fn replace(value: &Value, text: &str, args: Args) -> Result<Value> {
    let [old, new, count] = args.plain(2)?;
    let old = text_of(old.as_ref())?;
    let new = match (value, new) {
        (Value::Markup(_), Some(new)) => Value::text(escaped(&new)?),
        (_, new) => given(new, "new")?,
    };
    let count = count.as_ref().map_or(Ok(-1), integer)?;
    Ok(Value::text_like(value, replaced(text, &old, &text_of(Some(&new))?, count)?))
}

/// `replace`: all of them where `count` is negative.
///
/// # Errors
/// The result does not fit the budget.
pub fn replaced(text: &str, old: &str, new: &str, count: i128) -> Result<String> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let found = if old.is_empty() { text.len() + 1 } else { text.matches(old).count() }.min(count);
    meter::scan(text.len())?;
    meter::room(text.len().saturating_add(found.saturating_mul(new.len())))?;
    Ok(text.replacen(old, new, count))
}

fn expand_tabs(text: &str, size: usize) -> Result<String> {
    let mut out = String::new();
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let width = size - column % size;
                meter::room(out.len().saturating_add(width))?;
                out.push_str(&" ".repeat(width));
                column += width;
            }
            '\t' => {}
            _ => {
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                out.push(c);
            }
        }
    }
    Ok(out)
}

fn split(value: &Value, text: &str, from_right: bool, args: Args) -> Result<Value> {
    let [separator, most] = args.bind(["sep", "maxsplit"])?;
    let most = usize::try_from(most.as_ref().map_or(Ok(-1), integer)?).unwrap_or(usize::MAX);
    let parts: Vec<&str> = match separator {
        None | Some(Value::None) if from_right => words_from_right(text, most),
        None | Some(Value::None) => words(text, most),
        separator => {
            let separator = text_of(separator.as_ref())?;
            let most = most.saturating_add(1);
            match (separator.is_empty(), from_right) {
                (true, _) => return Err(Fault::new("empty separator")),
                (_, false) => text.splitn(most, &**separator).collect(),
                (_, true) => {
                    let mut parts: Vec<_> = text.rsplitn(most, &**separator).collect();
                    parts.reverse();
                    parts
                }
            }
        }
    };
    meter::spend(parts.len())?;
    Value::list(parts.into_iter().map(|part| Value::text_like(value, part)).collect())
}

fn words(text: &str, most: usize) -> Vec<&str> {
    let mut rest = text.trim_start_matches(is_space);
    let mut parts = Vec::new();
    while !rest.is_empty() {
        if parts.len() == most {
            parts.push(rest);
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        parts.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    parts
}

fn words_from_right(text: &str, most: usize) -> Vec<&str> {
    let mut rest = text.trim_end_matches(is_space);
    let mut parts = Vec::new();
    while !rest.is_empty() {
        if parts.len() == most {
            parts.push(rest);
            break;
        }
        let start = rest.char_indices().rev().find(|(_, c)| is_space(*c)).map_or(0, |(at, c)| at + c.len_utf8());
        parts.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_space);
    }
    parts.reverse();
    parts
}

/// `splitlines`.
pub fn lines(text: &str, keep: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_line_end) {
        let c = rest[at..].chars().next().map_or(1, char::len_utf8);
        let end = if rest[at..].starts_with("\r\n") { 2 } else { c };
        lines.push(&rest[..if keep { at + end } else { at }]);
        rest = &rest[at + end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn partition(value: &Value, text: &str, from_right: bool, args: Args) -> Result<Value> {
    let [separator] = args.plain(1)?;
    let separator = text_of(separator.as_ref())?;
    if separator.is_empty() {
        return Err(Fault::new("empty separator"));
    }
    let split = if from_right { text.rsplit_once(&**separator) } else { text.split_once(&**separator) };
    let parts = match (split, from_right) {
        (Some((before, after)), _) => [before, &separator, after],
        (None, false) => [text, "", ""],
        (None, true) => ["", "", text],
    };
    Value::tuple(parts.into_iter().map(|part| Value::text_like(value, part)).collect())
}

fn join(machine: &mut Machine, separator: &Value, args: Args) -> Result<Value> {
    let [items] = args.plain(1)?;
    let items = iter::items(machine, &given(items, "iterable")?)?;
    if matches!(separator, Value::Str(_))
        && let Some(other) = items.iter().find(|item| item.as_text().is_none())
    {
        return Err(Fault::new(format!("needs texts, found '{}'", other.type_name())));
    }
    ops::join(separator, &items)
}

/// The part of `text` that two optional bounds leave, and the index it begins at; `None` if it begins behind the end.
fn window<'a>(text: &'a Text, start: Option<&Value>, stop: Option<&Value>) -> Result<Option<(&'a str, usize)>> {
    let len = text.count() as i128;
    let bound = |value: Option<&Value>, otherwise: i128| match value {
        None | Some(Value::None) => Ok(otherwise),
        Some(value) => integer(value).map(|x| if x < 0 { (x + len).max(0) } else { x }),
    };
    let (start, stop) = (bound(start, 0)?, bound(stop, len)?.min(len));
    if start > len || start > stop {
        return Ok(None);
    }
    let index = |x: i128| usize::try_from(x).unwrap_or(0);
    Ok(Some((&text[text.byte(index(start))..text.byte(index(stop))], index(start))))
}

fn search(text: &Text, name: &str, args: Args) -> Result<Value> {
    let [part, start, stop] = args.plain(1)?;
    let window = window(text, start.as_ref(), stop.as_ref())?;
    if matches!(name, "startswith" | "endswith") {
        let part = given(part, "prefix")?;
        let parts = match &part {
            Value::Tuple(items) => items.iter().map(|item| text_of(Some(item))).collect::<Result<Vec<_>>>()?,
            _ => vec![text_of(Some(&part))?],
        };
        let hit = |within: &str, part: &str| {
            if name == "startswith" { within.starts_with(part) } else { within.ends_with(part) }
        };
        return Ok(Value::Bool(window.is_some_and(|(within, _)| parts.iter().any(|part| hit(within, part)))));
    }
    let part = text_of(part.as_ref())?;
    let Some((within, from)) = window else {
        return match name {
            "count" => Ok(Value::Int(0)),
            "find" | "rfind" => Ok(Value::Int(-1)),
            _ => Err(Fault::new("the text is not there")),
        };
    };
    if name == "count" {
        return Ok(Value::Int(within.matches(&**part).count() as i128));
    }
    let found = if name.starts_with('r') { within.rfind(&**part) } else { within.find(&**part) };
    match found {
        Some(at) => Ok(Value::Int((from + within[..at].chars().count()) as i128)),
        None if name.ends_with("find") => Ok(Value::Int(-1)),
        None => Err(Fault::new("the text is not there")),
    }
}

/// `islower`.
pub fn is_lower(text: &str) -> bool {
    !text.chars().any(|c| c.is_uppercase() || is_title(c)) && text.chars().any(char::is_lowercase)
}

/// `isupper`.
pub fn is_upper(text: &str) -> bool {
    !text.chars().any(|c| c.is_lowercase() || is_title(c)) && text.chars().any(char::is_uppercase)
}

fn is(text: &str, name: &str) -> bool {
    let all = |class: fn(char) -> bool| !text.is_empty() && text.chars().all(class);
    match name {
        "isalpha" => all(is_alpha),
        "isalnum" => all(|c| is_alpha(c) || is_decimal(c) || is_digit(c) || is_numeric(c)),
        "isascii" => text.is_ascii(),
        "isdecimal" => all(is_decimal),
        "isdigit" => all(is_digit),
        "isnumeric" => all(is_numeric),
        "isspace" => all(is_space),
        "isprintable" => text.chars().all(is_printable),
        "islower" => is_lower(text),
        "isupper" => is_upper(text),
        "istitle" => is_title_text(text),
        _ => {
            let first = text.chars().next().is_some_and(|c| is_alpha(c) || c == '_');
            first && text.chars().all(|c| c.is_alphanumeric() || c == '_')
        }
    }
}

fn is_title_text(text: &str) -> bool {
    let (mut inside, mut any) = (false, false);
    for c in text.chars() {
        let begins = c.is_uppercase() || is_title(c);
        if begins && inside || c.is_lowercase() && !inside {
            return false;
        }
        inside = begins || c.is_lowercase();
        any |= inside;
    }
    any
}
