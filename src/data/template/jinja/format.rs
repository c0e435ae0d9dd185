//! Python's two ways to write values into text: `%` and `format`.

use super::{
    Fault, Result,
    calls::Args,
    eval::{attribute, item},
    machine::Machine,
    meter,
    text::{self, escape, exponent},
    value::{Key, Value},
};

/// What a place asks for.
#[derive(Clone, Debug, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

fn number<I: Iterator<Item = char> + Clone>(chars: &mut std::iter::Peekable<I>) -> Result<Option<usize>> {
    let mut digits = String::new();
    while let Some(c) = chars.next_if(char::is_ascii_digit) {
        digits.push(c);
    }
    if digits.is_empty() {
        return Ok(None);
    }
    let number = digits.parse().map_err(|_| Fault::new("a width is too large"))?;
    meter::room(number)?;
    Ok(Some(number))
}

/// `text % values`.
///
/// # Errors
/// The values do not fit the places.
pub fn percent(value: &Value, args: &Value) -> Result<Value> {
    let Some(text) = value.as_text() else { return Err(Fault::new("`%` needs text")) };
    meter::scan(text.len())?;
    let mut places = Places { args, at: 0, markup: matches!(value, Value::Markup(_)) };
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '%' {
            places.write(&mut out, &mut chars)?;
            meter::room(out.len())?;
        } else {
            out.push(c);
        }
    }
    places.finish()?;
    Ok(Value::text_like(value, out))
}

struct Places<'a> {
    args: &'a Value,
    at: usize,
    markup: bool,
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

impl Places<'_> {
    fn next(&mut self) -> Result<Value> {
        let value = match self.args {
            Value::Tuple(items) => items.get(self.at).cloned(),
            other => (self.at == 0).then(|| other.clone()),
        };
        self.at += 1;
        value.ok_or_else(|| Fault::new("not enough values for the places of the text"))
    }

    fn keyed(&self, key: &str) -> Result<Value> {
        match self.args.defined()? {
            Value::Dict(fields) => {
                let found = fields.get(&Key::new(Value::text(key))?).cloned();
                found.ok_or_else(|| Fault::new(format!("there is no value `{key}`")))
            }
            _ => Err(Fault::new("the places of the text need a mapping")),
        }
    }

    fn finish(&self) -> Result<()> {
        let (used, all) = match self.args {
            Value::Tuple(items) => (self.at, items.len()),
            // What Python takes for a mapping may be left over.
            Value::Dict(_) | Value::List(_) | Value::Undefined(_) | Value::Range(_) => return Ok(()),
            _ => (self.at, 1),
        };
        if used < all { Err(Fault::new("not all values have a place in the text")) } else { Ok(()) }
    }

    fn key(chars: &mut Chars) -> Result<Option<String>> {
        if chars.next_if_eq(&'(').is_none() {
            return Ok(None);
        }
        let (mut depth, mut key) = (0, String::new());
        loop {
            match chars.next() {
                Some(')') if depth == 0 => return Ok(Some(key)),
                Some(c) => {
                    depth += i32::from(c == '(') - i32::from(c == ')');
                    key.push(c);
                }
                None => return Err(Fault::new("a place of the text is not closed")),
            }
        }
    }

    /// A width or precision, which may be the next value.
    fn size(&mut self, chars: &mut Chars) -> Result<Option<i128>> {
        if chars.next_if_eq(&'*').is_some() {
            return super::calls::integer(&self.next()?).map(Some);
        }
        Ok(number(chars)?.map(|number| number as i128))
    }

    fn write(&mut self, out: &mut String, chars: &mut Chars) -> Result<()> {
        let key = Self::key(chars)?;
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| "-+ #0".contains(*c)) {
            match flag {
                '-' => spec.align = Some('<'),
                '+' => spec.sign = Some('+'),
                ' ' => spec.sign = spec.sign.or(Some(' ')),
                '#' => spec.alternate = true,
                _ => spec.zero = true,
            }
        }
        if let Some(width) = self.size(chars)? {
            spec.align = if width < 0 { Some('<') } else { spec.align };
            spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
            meter::room(spec.width)?;
        }
        if chars.next_if_eq(&'.').is_some() {
            let precision = self.size(chars)?.unwrap_or(0);
            spec.precision = Some(usize::try_from(precision.max(0)).unwrap_or(usize::MAX));
        }
        while chars.next_if(|c| "hlL".contains(*c)).is_some() {}
        let Some(kind) = chars.next() else { return Err(Fault::new("a place of the text has no end")) };
        if kind == '%' {
            out.push('%');
            return Ok(());
        }
        let value = match key {
            Some(key) => self.keyed(&key)?,
            None => self.next()?,
        };
        let align = spec.align;
        spec.align = align.or(Some('>'));
        spec.zero &= align.is_none();
        self.value(out, &value, kind, spec)
    }

    fn value(&self, out: &mut String, value: &Value, kind: char, mut spec: Spec) -> Result<()> {
        match kind {
            's' | 'r' | 'a' => {
                let mut text = String::new();
                match kind {
                    's' if self.markup => text = text::escaped(value)?,
                    's' => text::write_str(&mut text, value)?,
                    _ => text::write_repr(&mut text, value)?,
                }
                let text = if kind == 'a' { ascii(&text) } else { text };
                cut(out, &text, &spec)
            }
            'c' => {
                let c = match (value.as_text(), value.as_int()) {
                    (Some(text), _) if text.count() == 1 => text.at(0),
                    (_, Some(code)) => u32::try_from(code).ok().and_then(char::from_u32),
                    _ => None,
                };
                let c = c.ok_or_else(|| Fault::new("`%c` needs a character"))?;
                spec.precision = None;
                cut(out, &c.to_string(), &spec)
            }
            'd' | 'i' | 'u' => {
                let whole = value.defined()?.as_int().or_else(|| truncated(value));
                let whole = whole.ok_or_else(|| Fault::new("`%d` needs a number"))?;
                integer(out, whole, 'd', &spec)
            }
            'x' | 'X' | 'o' => {
                let whole = value.defined()?.as_int().ok_or_else(|| Fault::new("an integer is needed"))?;
                integer(out, whole, kind, &spec)
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                let x = value.defined()?.as_number().ok_or_else(|| Fault::new("a number is needed"))?;
                float(out, x, Some(kind), &spec)
            }
            _ => Err(Fault::new(format!("unknown place `%{kind}`"))),
        }
    }
}

fn truncated(value: &Value) -> Option<i128> {
    value.as_number().filter(|x| x.abs() < 1e38).map(|x| x as i128)
}

/// As `ascii`: what is not ASCII is escaped.
fn ascii(text: &str) -> String {
    let escaped = |c: char| match u32::from(c) {
        ..0x80 => c.to_string(),
        code @ ..0x100 => format!("\\x{code:02x}"),
        code @ ..0x1_0000 => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    };
    text.chars().map(escaped).collect()
}

/// Text, cut to the precision and filled to the width.
fn cut(out: &mut String, text: &str, spec: &Spec) -> Result<()> {
    let end = spec.precision.and_then(|precision| text.char_indices().nth(precision)).map_or(text.len(), |(at, _)| at);
    pad(out, "", &text[..end], &Spec { zero: false, align: spec.align.or(Some('<')), ..spec.clone() })
}

fn pad(out: &mut String, sign: &str, body: &str, spec: &Spec) -> Result<()> {
    let missing = spec.width.saturating_sub(sign.chars().count() + body.chars().count());
    let (fill, align) = match spec.zero {
        true if spec.align != Some('<') && spec.align != Some('^') => ('0', '='),
        _ => (spec.fill.unwrap_or(' '), spec.align.unwrap_or('>')),
    };
    meter::room(out.len() + body.len() + missing.saturating_mul(fill.len_utf8()))?;
    let left = match align {
        '<' => 0,
        '^' => missing / 2,
        _ => missing,
    };
    if align == '=' {
        out.push_str(sign);
    }
    out.extend(std::iter::repeat_n(fill, left));
    if align != '=' {
        out.push_str(sign);
    }
    out.push_str(body);
    out.extend(std::iter::repeat_n(fill, missing - left));
    Ok(())
}

fn sign(negative: bool, spec: &Spec) -> &'static str {
    match (negative, spec.sign) {
        (true, _) => "-",
        (_, Some('+')) => "+",
        (_, Some(' ')) => " ",
        _ => "",
    }
}

fn grouped(digits: &str, spec: &Spec, size: usize) -> String {
    let Some(separator) = spec.grouping else { return digits.into() };
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(c);
    }
    out
}

fn integer(out: &mut String, x: i128, kind: char, spec: &Spec) -> Result<()> {
    let size = x.unsigned_abs();
    let (prefix, digits) = match kind {
        'b' => ("0b", format!("{size:b}")),
        'o' => ("0o", format!("{size:o}")),
        'x' => ("0x", format!("{size:x}")),
        'X' => ("0X", format!("{size:X}")),
        _ => ("", size.to_string()),
    };
    let missing = spec.precision.unwrap_or(0).saturating_sub(digits.len());
    meter::room(missing)?;
    let digits = "0".repeat(missing) + &digits;
    let digits = grouped(&digits, spec, if prefix.is_empty() { 3 } else { 4 });
    let sign = sign(x < 0, spec).to_owned() + if spec.alternate { prefix } else { "" };
    pad(out, &sign, &digits, spec)
}

fn float(out: &mut String, x: f64, kind: Option<char>, spec: &Spec) -> Result<()> {
    let precision = spec.precision.unwrap_or(6);
    if precision > 1000 {
        return Err(Fault::new("a precision of more than 1000 digits is not supported"));
    }
    let size = x.abs();
    let body = match kind {
        _ if !x.is_finite() => text::float(size),
        Some('f' | 'F') => format!("{size:.precision$}"),
        Some('e' | 'E') => exponent(&format!("{size:.precision$e}")),
        Some('%') => format!("{:.precision$}%", size * 100.0),
        None if spec.precision.is_none() => text::float(size),
        None => {
            let body = general(size, precision, false);
            if body.contains(['.', 'e']) { body } else { body + ".0" }
        }
        _ => general(size, precision, spec.alternate),
    };
    let body = if kind.is_some_and(|kind| kind.is_ascii_uppercase()) { body.to_uppercase() } else { body };
    let whole = body.find(|c: char| !c.is_ascii_digit()).unwrap_or(body.len());
    let body = grouped(&body[..whole], spec, 3) + &body[whole..];
    pad(out, sign(x.is_sign_negative() && !x.is_nan(), spec), &body, spec)
}

/// `%g`.
fn general(x: f64, precision: usize, alternate: bool) -> String {
    let precision = precision.max(1);
    let scientific = format!("{x:.*e}", precision - 1);
    let power: i64 = scientific.split_once('e').and_then(|(_, power)| power.parse().ok()).unwrap_or(0);
    let places = precision as i64 - 1 - power;
    let fixed = power >= -4 && places >= 0;
    let text = if fixed { format!("{x:.*}", places.unsigned_abs() as usize) } else { exponent(&scientific) };
    let (digits, power) = text.split_at(text.find('e').unwrap_or(text.len()));
    let digits = match digits.contains('.') && !alternate {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => digits,
    };
    digits.to_owned() + power
}

/// `text.format(...)`.
///
/// # Errors
/// The values do not fit the places.
pub fn braces(machine: &mut Machine, value: &Value, text: &str, args: Args) -> Result<Value> {
    let mut places = Braces { args, at: 0, markup: matches!(value, Value::Markup(_)) };
    let out = places.text(machine, text, 0)?;
    Ok(Value::text_like(value, out))
}

struct Braces {
    args: Args,
    at: usize,
    markup: bool,
}

impl Braces {
    fn text(&mut self, machine: &mut Machine, text: &str, depth: usize) -> Result<String> {
        if depth > 1 {
            return Err(Fault::new("places of a text nest too deep"));
        }
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let (c, after) = rest[at..].split_at(1);
            if after.starts_with(c) {
                out.push_str(c);
                rest = &after[1..];
                continue;
            }
            if c == "}" {
                return Err(Fault::new("a single `}` in the text"));
            }
            let end = closing(after)?;
            self.place(machine, &mut out, &after[..end], depth)?;
            rest = &after[end + 1..];
        }
        out.push_str(rest);
        Ok(out)
    }

    fn place(&mut self, machine: &mut Machine, out: &mut String, place: &str, depth: usize) -> Result<()> {
        let mut inside = false;
        let end = place.find(|c: char| {
            inside = (inside || c == '[') && c != ']';
            !inside && matches!(c, '!' | ':')
        });
        let (field, rest) = place.split_at(end.unwrap_or(place.len()));
        let value = self.field(machine, field)?;
        let (conversion, spec) = match rest.strip_prefix('!') {
            Some(rest) => {
                let mut chars = rest.chars();
                (chars.next(), chars.as_str())
            }
            None => (None, rest),
        };
        let spec = match spec.strip_prefix(':') {
            Some(spec) => self.text(machine, spec, depth + 1)?,
            None if spec.is_empty() => String::new(),
            None => return Err(Fault::new("a place of the text needs `:` behind its conversion")),
        };
        let mut repr = String::new();
        let value = match conversion {
            None => value,
            Some('s') => Value::text(text::str(&value)?),
            Some(kind @ ('r' | 'a')) => {
                text::write_repr(&mut repr, &value)?;
                Value::text(if kind == 'a' { ascii(&repr) } else { repr })
            }
            Some(other) => return Err(Fault::new(format!("unknown conversion `!{other}`"))),
        };
        let mut written = String::new();
        write_value(&mut written, &value, &spec)?;
        let safe = !self.markup || matches!(value, Value::Markup(_));
        out.push_str(&if safe { written } else { escape(&written) });
        meter::room(out.len())
    }

    fn field(&mut self, machine: &mut Machine, field: &str) -> Result<Value> {
        let end = field.find(['.', '[']).unwrap_or(field.len());
        let (first, mut rest) = field.split_at(end);
        let index = if first.is_empty() {
            self.at += 1;
            Some(self.at - 1)
        } else {
            first.parse().ok()
        };
        let found = match index {
            Some(index) => self.args.positional.get(index).cloned(),
            None => self.args.named.iter().find(|(name, _)| **name == *first).map(|(_, value)| value.clone()),
        };
        let mut value = found.ok_or_else(|| Fault::new(format!("there is no value for the place `{{{field}}}`")))?;
        while !rest.is_empty() {
            if let Some(inside) = rest.strip_prefix('[') {
                let Some((index, after)) = inside.split_once(']') else { return Err(Fault::new("`]` is missing")) };
                let index = index.parse().map_or_else(|_| Value::text(index), Value::Int);
                value = item(machine, &value, &index)?;
                rest = after;
            } else {
                let inside = &rest[1..];
                let end = inside.find(['.', '[']).unwrap_or(inside.len());
                value = attribute(machine, &value, &inside[..end])?;
                rest = &inside[end..];
            }
        }
        Ok(value)
    }
}

/// Where the place that begins `text` ends.
fn closing(text: &str) -> Result<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Ok(at),
            '}' => depth -= 1,
            _ => {}
        }
    }
    Err(Fault::new("a place of the text is not closed"))
}

/// Python's `format(value, spec)`.
fn write_value(out: &mut String, value: &Value, text: &str) -> Result<()> {
    if text.is_empty() {
        return text::write_str(out, value);
    }
    let spec = parse(text)?;
    let wrong = |what: &str| Err(Fault::new(format!("a place `{{:{text}}}` cannot write {what}")));
    match (value, spec.kind) {
        (Value::Str(text) | Value::Markup(text), None | Some('s')) => {
            if spec.sign.is_some() || spec.alternate || spec.grouping.is_some() || spec.align == Some('=') {
                return wrong("text");
            }
            // A zero before the width fills text, too.
            let fill = spec.fill.or(spec.zero.then_some('0'));
            cut(out, text, &Spec { fill, ..spec })
        }
        (Value::Int(_) | Value::Bool(_), None | Some('b' | 'd' | 'o' | 'x' | 'X' | 'n')) => {
            if spec.precision.is_some() {
                return wrong("an integer");
            }
            integer(out, value.as_int().unwrap_or(0), spec.kind.unwrap_or('d'), &spec)
        }
        (Value::Int(_) | Value::Bool(_), Some('c')) => {
            let c = value.as_int().and_then(|code| u32::try_from(code).ok()).and_then(char::from_u32);
            cut(out, &c.map(String::from).unwrap_or_default(), &spec)
        }
        (Value::Float(_), None) | (_, Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%' | 'n')) => match value.as_number() {
            Some(x) => float(out, x, spec.kind, &spec),
            None => wrong(value.type_name()),
        },
        _ => wrong(value.type_name()),
    }
}

fn parse(text: &str) -> Result<Spec> {
    let mut spec = Spec::default();
    let mut chars = text.chars().peekable();
    let is_align = |c: &char| "<>=^".contains(*c);
    let mut ahead = text.chars();
    let (first, second) = (ahead.next(), ahead.next());
    if second.as_ref().is_some_and(is_align) {
        spec.fill = first;
        chars.next();
    }
    spec.align = chars.next_if(is_align);
    spec.sign = chars.next_if(|c| "+- ".contains(*c));
    spec.alternate = chars.next_if_eq(&'#').is_some();
    spec.zero = spec.fill.is_none() && chars.next_if_eq(&'0').is_some();
    spec.width = number(&mut chars)?.unwrap_or(0);
    spec.grouping = chars.next_if(|c| matches!(c, ',' | '_'));
    if chars.next_if_eq(&'.').is_some() {
        spec.precision = Some(number(&mut chars)?.ok_or_else(|| Fault::new("a precision is missing"))?);
    }
    spec.kind = chars.next();
    if chars.next().is_some() {
        return Err(Fault::new(format!("`{text}` is no format")));
    }
    Ok(spec)
}
