//! JSON as Python's `json` reads it: `NaN` and the infinities, integers of any size, the last of equal keys.
//!
//! What [`Value`] has no number for becomes a mark that [`odd`] knows, so that a row is read where nobody looks at it and
//! refused by name where somebody does. Text that Python holds and no tokenizer takes, half a surrogate pair, is refused.

use serde_json::{Map, Number, Value};

/// Lists and objects within each other, at most.
const DEPTH: usize = 128;
/// The one key of an object that stands for a value JSON has no form for; no text of a file can hold it by chance.
const ODD: &str = "\0odd";

/// Why a text is no JSON.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Lists and objects nested too deeply, at this byte.
    Deep(usize),
    /// Half of a surrogate pair, at this byte.
    Surrogate(usize),
    /// Anything else, at this byte.
    Syntax(usize),
}

/// Reads one value and nothing behind it.
///
/// # Errors
/// The text is no JSON, or holds what cannot be kept.
pub fn parse(text: &str) -> Result<Value, Fault> {
    let mut parser = Parser { bytes: text.as_bytes(), text, at: 0 };
    let value = parser.value(0)?;
    parser.blank();
    if parser.at < text.len() { Err(Fault::Syntax(parser.at)) } else { Ok(value) }
}

/// A value that JSON has no form for, described by `what`.
pub fn mark(what: impl Into<String>) -> Value {
    Value::Object(Map::from_iter([(ODD.to_owned(), Value::String(what.into()))]))
}

/// A float, or the mark of one that is none.
pub fn float(value: f64) -> Value {
    let name = match value {
        f64::INFINITY => "Infinity",
        f64::NEG_INFINITY => "-Infinity",
        _ => "NaN",
    };
    Number::from_f64(value).map_or_else(|| mark(name), Value::Number)
}

/// What a value is if JSON has no form for it: `NaN`, an integer beyond 64 bits, bytes that are no text.
pub fn odd(value: &Value) -> Option<&str> {
    value.as_object()?.get(ODD)?.as_str()
}

/// The first such value within another, and the way to it.
pub fn find_odd(value: &Value) -> Option<(String, &str)> {
    if let Some(what) = odd(value) {
        return Some((String::new(), what));
    }
    let below = |key: String, value| find_odd(value).map(|(path, what)| (format!("{key}{path}"), what));
    match value {
        Value::Array(items) => items.iter().enumerate().find_map(|(i, item)| below(format!("[{i}]"), item)),
        Value::Object(fields) => fields.iter().find_map(|(key, field)| below(format!(".{key}"), field)),
        _ => None,
    }
}

struct Parser<'a> {
    bytes: &'a [u8],
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn fault<V>(&self) -> Result<V, Fault> {
        Err(Fault::Syntax(self.at))
    }

    fn blank(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.bytes[self.at..].starts_with(word.as_bytes());
        self.at += if found { word.len() } else { 0 };
        found
    }

    fn value(&mut self, depth: usize) -> Result<Value, Fault> {
        self.blank();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => self.string().map(Value::String),
            Some(b'-' | b'0'..=b'9') if !self.bytes[self.at..].starts_with(b"-I") => self.number(),
            _ => self.word(),
        }
    }

    fn word(&mut self) -> Result<Value, Fault> {
        let words = [("null", Value::Null), ("true", true.into()), ("false", false.into())];
        for (word, value) in words {
            if self.take(word) {
                return Ok(value);
            }
        }
        let found = ["NaN", "Infinity", "-Infinity"].into_iter().find(|word| self.take(word));
        found.map_or_else(|| self.fault(), |word| Ok(mark(word)))
    }

    /// Goes into a list or an object; true if it is empty.
    fn open(&mut self, depth: usize, close: u8) -> Result<bool, Fault> {
        if depth == DEPTH {
            return Err(Fault::Deep(self.at));
        }
        self.at += 1;
        self.blank();
        let empty = self.peek() == Some(close);
        self.at += usize::from(empty);
        Ok(empty)
    }

    /// Behind an element: true if another follows.
    fn more(&mut self, close: u8) -> Result<bool, Fault> {
        self.blank();
        let more = match self.peek() {
            Some(b',') => true,
            Some(byte) if byte == close => false,
            _ => return self.fault(),
        };
        self.at += 1;
        Ok(more)
    }

    fn list(&mut self, depth: usize) -> Result<Value, Fault> {
        let mut items = Vec::new();
        let mut more = !self.open(depth, b']')?;
        while more {
            items.push(self.value(depth + 1)?);
            more = self.more(b']')?;
        }
        Ok(Value::Array(items))
    }

    fn object(&mut self, depth: usize) -> Result<Value, Fault> {
        let mut fields = Map::new();
        let mut more = !self.open(depth, b'}')?;
        while more {
            self.blank();
            if self.peek() != Some(b'"') {
                return self.fault();
            }
            let key = self.string()?;
            self.blank();
            if !self.take(":") {
                return self.fault();
            }
            // As in Python: an equal key keeps its place and takes the later value.
            fields.insert(key, self.value(depth + 1)?);
            more = self.more(b'}')?;
        }
        Ok(Value::Object(fields))
    }

    fn string(&mut self) -> Result<String, Fault> {
        self.at += 1;
        let mut string = String::new();
        loop {
            let start = self.at;
            let plain = self.bytes[start..].iter().take_while(|&&byte| byte >= 0x20 && byte != b'"' && byte != b'\\');
            self.at += plain.count();
            // Both ends lie before an ASCII byte, so on the border of a character.
            string.push_str(&self.text[start..self.at]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(string);
                }
                Some(b'\\') => string.push(self.escape()?),
                _ => return self.fault(),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Fault> {
        let start = self.at;
        self.at += 1;
        let byte = self.peek();
        self.at += 1;
        Ok(match byte {
            Some(b'n') => '\n',
            Some(b't') => '\t',
            Some(b'r') => '\r',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(byte @ (b'"' | b'\\' | b'/')) => byte.into(),
            Some(b'u') => {
                let first = self.hex(start)?;
                let pair = match first {
                    0xd800..0xdc00 if self.take("\\u") => [first, self.hex(start)?],
                    _ => [first, 0],
                };
                let units = pair.iter().copied().take(1 + usize::from(pair[1] != 0));
                let mut chars = char::decode_utf16(units);
                chars.next().and_then(Result::ok).filter(|_| chars.next().is_none()).ok_or(Fault::Surrogate(start))?
            }
            _ => return Err(Fault::Syntax(start)),
        })
    }

    fn hex(&mut self, start: usize) -> Result<u16, Fault> {
        let digits = self.bytes.get(self.at..self.at + 4).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok()).ok_or(Fault::Syntax(start))?;
        self.at += 4;
        u16::from_str_radix(digits, 16).map_err(|_| Fault::Syntax(start))
    }

    fn digits(&mut self) -> Result<(), Fault> {
        let count = self.bytes[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        if count == 0 { self.fault() } else { Ok(()) }
    }

    fn number(&mut self) -> Result<Value, Fault> {
        let start = self.at;
        self.take("-");
        if !self.take("0") {
            self.digits()?;
        }
        let mut whole = true;
        if self.take(".") {
            whole = false;
            self.digits()?;
        }
        if self.take("e") || self.take("E") {
            whole = false;
            if !self.take("+") {
                self.take("-");
            }
            self.digits()?;
        }
        let text = &self.text[start..self.at];
        if !whole {
            return text.parse().map(float).map_err(|_| Fault::Syntax(start));
        }
        // Integers without a sign first: they reach further.
        let value = text.parse::<u64>().map(Value::from).or_else(|_| text.parse::<i64>().map(Value::from));
        Ok(value.unwrap_or_else(|_| mark(text)))
    }
}

#[cfg(test)]
mod tests;
