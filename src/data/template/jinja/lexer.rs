//! Text of a template to tokens, by the rules of Jinja2's lexer with trimmed and stripped blocks.

use super::{Fault, Result, text::is_space};

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Data(String),
    BlockBegin,
    BlockEnd,
    VariableBegin,
    VariableEnd,
    Name(String),
    Text(String),
    Int(i128),
    Float(f64),
    Op(&'static str),
    End,
}

/// A token and its line.
pub type Lined = (Token, usize);

const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=", ".",
    ":", "|", ",", ";",
];

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    /// Whether what was read last ended a line.
    line_starts: bool,
    tokens: Vec<Lined>,
}

/// The tokens of `source`, ended by one `End`.
///
/// # Errors
/// A tag, text or comment does not end, or a character stands for nothing.
pub fn tokens(source: &str) -> Result<Vec<Lined>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, line_starts: true, tokens: Vec::new() };
    lexer.all().map_err(|fault| fault.at(lexer.line))?;
    let line = lexer.line;
    lexer.tokens.push((Token::End, line));
    Ok(lexer.tokens)
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    /// Goes over `len` bytes.
    fn skip(&mut self, len: usize) -> &'a str {
        let text = &self.source[self.at..self.at + len];
        self.line += text.matches('\n').count();
        self.line_starts = text.ends_with('\n');
        self.at += len;
        text
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        let len = rest.len() - rest.trim_start_matches(is_space).len();
        if len > 0 {
            self.skip(len);
        }
    }

    fn all(&mut self) -> Result<()> {
        loop {
            let rest = self.rest();
            let begins = |at: &usize| matches!(rest.as_bytes().get(at + 1), Some(b'%' | b'{' | b'#'));
            let Some(start) = rest.match_indices('{').map(|(at, _)| at).find(begins) else {
                if !rest.is_empty() {
                    self.push(Token::Data(rest.into()));
                    self.skip(rest.len());
                }
                return Ok(());
            };
            self.tag(start)?;
        }
    }

    /// The text before a tag, and the tag.
    fn tag(&mut self, start: usize) -> Result<()> {
        let kind = self.rest().as_bytes()[start + 1];
        let raw = (kind == b'%').then(|| raw_begin(&self.rest()[start..])).flatten();
        self.data(start, kind == b'{');
        match (kind, raw) {
            (_, Some(len)) => {
                self.skip(len);
                self.raw()
            }
            (b'#', _) => self.comment(),
            (b'%', _) => self.inside(Token::BlockBegin, "%}", Token::BlockEnd),
            _ => self.inside(Token::VariableBegin, "}}", Token::VariableEnd),
        }
    }

    /// Text of `len` bytes before a tag, without what the tag strips of it.
    fn data(&mut self, len: usize, variable: bool) {
        let text = &self.rest()[..len];
        let sign = self.rest().as_bytes().get(len + 2);
        let kept = match sign {
            Some(b'-') => text.trim_end_matches(is_space),
            Some(b'+') => text,
            _ if variable => text,
            _ => {
                let line = text.rfind('\n').map_or(0, |at| at + 1);
                let blank = text.len() > line && text[line..].chars().all(is_space);
                if blank && (line > 0 || self.line_starts) { &text[..line] } else { text }
            }
        };
        if !kept.is_empty() {
            self.push(Token::Data(kept.into()));
        }
        self.skip(len);
    }

    fn sign(&mut self) {
        if matches!(self.rest().as_bytes().first(), Some(b'-' | b'+')) {
            self.skip(1);
        }
    }

    /// What stands behind the end of a block: one newline is part of it.
    fn after_block(&mut self) {
        if self.rest().starts_with('\n') {
            self.skip(1);
        }
    }

    fn comment(&mut self) -> Result<()> {
        self.skip(2);
        self.sign();
        let Some(end) = self.rest().find("#}") else { return Err(Fault::new("a comment has no end")) };
        let sign = end.checked_sub(1).map(|at| self.rest().as_bytes()[at]);
        self.skip(end + 2);
        match sign {
            Some(b'-') => self.skip_space(),
            Some(b'+') => {}
            _ => self.after_block(),
        }
        Ok(())
    }

    fn raw(&mut self) -> Result<()> {
        let rest = self.rest();
        let mut from = 0;
        while let Some(found) = rest[from..].find("{%") {
            let start = from + found;
            if let Some((len, sign)) = raw_end(&rest[start..]) {
                self.data(start, false);
                self.skip(len);
                match sign {
                    Some(b'-') => self.skip_space(),
                    Some(b'+') => {}
                    _ => self.after_block(),
                }
                return Ok(());
            }
            from = start + 2;
        }
        Err(Fault::new("a raw block has no end"))
    }

    /// The tokens between the beginning and the end of a tag.
    fn inside(&mut self, begin: Token, end: &str, token: Token) -> Result<()> {
        self.push(begin);
        self.skip(2);
        self.sign();
        let mut open = Vec::new();
        loop {
            self.skip_space();
            if open.is_empty() && self.end(end) {
                // The line of the tag, not of what it strips.
                let at = self.tokens.last().map_or(self.line, |(_, line)| *line);
                self.tokens.push((token, at));
                return Ok(());
            }
            self.token(&mut open)?;
        }
    }

    fn end(&mut self, end: &str) -> bool {
        let rest = self.rest();
        if rest.strip_prefix('-').is_some_and(|rest| rest.starts_with(end)) {
            self.skip(3);
            self.skip_space();
        } else if end == "%}" && rest.strip_prefix('+').is_some_and(|rest| rest.starts_with(end)) {
            self.skip(3);
        } else if rest.starts_with(end) {
            self.skip(2);
            if end == "%}" {
                self.after_block();
            }
        } else {
            return false;
        }
        true
    }

    fn token(&mut self, open: &mut Vec<&'static str>) -> Result<()> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Err(Fault::new("a tag has no end")) };
        let behind_dot = self.tokens.last().is_some_and(|(last, _)| *last == Token::Op("."));
        if let Some(len) = float(rest).filter(|_| !behind_dot) {
            let text = self.skip(len).replace('_', "");
            self.push(Token::Float(text.parse().unwrap_or(f64::INFINITY)));
            return Ok(());
        }
        if first.is_ascii_digit() {
            return self.integer();
        }
        if first.is_alphanumeric() || first == '_' {
            let len = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
            let name = self.skip(len).to_owned();
            self.push(Token::Name(name));
            return Ok(());
        }
        if matches!(first, '\'' | '"') {
            return self.text(first);
        }
        self.operator(open)
    }

    fn operator(&mut self, open: &mut Vec<&'static str>) -> Result<()> {
        let rest = self.rest();
        let Some(&op) = OPERATORS.iter().find(|&&op| rest.starts_with(op)) else {
            return Err(Fault::new(format!("unexpected character {:?}", rest.chars().next().unwrap_or(' '))));
        };
        match op {
            "(" => open.push(")"),
            "[" => open.push("]"),
            "{" => open.push("}"),
            ")" | "]" | "}" => match open.pop() {
                Some(expected) if expected == op => {}
                Some(expected) => return Err(Fault::new(format!("unexpected `{op}`, `{expected}` is open"))),
                None => return Err(Fault::new(format!("unexpected `{op}`"))),
            },
            _ => {}
        }
        self.push(Token::Op(op));
        self.skip(op.len());
        Ok(())
    }

    fn integer(&mut self) -> Result<()> {
        let rest = self.rest();
        let bytes = rest.as_bytes();
        let base = match bytes.get(1).map(u8::to_ascii_lowercase).filter(|_| bytes[0] == b'0') {
            Some(b'b') => 2,
            Some(b'o') => 8,
            Some(b'x') => 16,
            _ => 10,
        };
        if base != 10 {
            let len = 2 + digits(&rest[2..], base, true);
            if len > 2 {
                let digits = self.skip(len)[2..].replace('_', "");
                return self.number(i128::from_str_radix(&digits, base));
            }
        }
        let len = if bytes[0] == b'0' { 1 + digits(&rest[1..], 1, true) } else { digits(rest, 10, false) };
        let text = self.skip(len).replace('_', "");
        self.number(text.parse())
    }

    fn number(&mut self, number: std::result::Result<i128, std::num::ParseIntError>) -> Result<()> {
        let number = number.map_err(|_| Fault::new("an integer has more than 127 bits"))?;
        self.push(Token::Int(number));
        Ok(())
    }

    fn text(&mut self, quote: char) -> Result<()> {
        let rest = self.rest();
        let mut escaped = false;
        let end = rest.char_indices().skip(1).find(|&(_, c)| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some((end, _)) = end else { return Err(Fault::new("a text has no end")) };
        let text = unescape(&rest[1..end])?;
        self.push(Token::Text(text));
        self.skip(end + 1);
        Ok(())
    }
}

/// The length of `{% raw %}` at the beginning of `text`, without the space that it strips.
fn raw_begin(text: &str) -> Option<usize> {
    let inside = text[2..].strip_prefix(['-', '+']).unwrap_or(&text[2..]).trim_start_matches(is_space);
    let rest = inside.strip_prefix("raw")?.trim_start_matches(is_space);
    let rest = match rest.strip_prefix("-%}") {
        Some(rest) => rest.trim_start_matches(is_space),
        None => rest.strip_prefix("%}")?,
    };
    Some(text.len() - rest.len())
}

/// The length of `{% endraw %}` and the sign at its end.
fn raw_end(text: &str) -> Option<(usize, Option<u8>)> {
    let inside = text[2..].strip_prefix(['-', '+']).unwrap_or(&text[2..]).trim_start_matches(is_space);
    let rest = inside.strip_prefix("endraw")?.trim_start_matches(is_space);
    let sign = rest.bytes().next().filter(|sign| matches!(sign, b'-' | b'+'));
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).strip_prefix("%}")?;
    Some((text.len() - rest.len(), sign))
}

/// How many bytes of `text` are digits of `base`, each with at most one `_` before it; the first too if `lead`. Base 1
/// has the digit 0.
fn digits(text: &str, base: u32, lead: bool) -> usize {
    let is_digit = |b: u8| char::from(b).is_digit(base.max(2)) && (base > 1 || b == b'0');
    let bytes = text.as_bytes();
    let mut len = 0;
    loop {
        let underscore = usize::from(bytes.get(len) == Some(&b'_') && (len > 0 || lead));
        match bytes.get(len + underscore) {
            Some(&b) if is_digit(b) => len += underscore + 1,
            _ => return len,
        }
    }
}

/// The length of a float at the beginning of `text`.
fn float(text: &str) -> Option<usize> {
    let whole = digits(text, 10, false);
    if whole == 0 {
        return None;
    }
    let mut len = whole;
    if let Some(rest) = text[len..].strip_prefix('.') {
        let fraction = digits(rest, 10, false);
        if fraction > 0 {
            len += 1 + fraction;
        }
    }
    if let Some(rest) = text[len..].strip_prefix(['e', 'E']) {
        let sign = usize::from(rest.starts_with(['+', '-']));
        let exponent = digits(&rest[sign..], 10, false);
        if exponent > 0 {
            return Some(len + 1 + sign + exponent);
        }
    }
    (len > whole).then_some(len)
}

/// What Python's `unicode-escape` makes of a text.
fn unescape(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some(c) = chars.next() else { return Err(Fault::new("a text ends with a backslash")) };
        match c {
            '\n' => {}
            '\\' | '\'' | '"' => out.push(c),
            'a' => out.push('\x07'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'n' => out.push('\n'),
            'r' => out.push('\r'),
            't' => out.push('\t'),
            'v' => out.push('\x0b'),
            'x' => out.push(escape(&mut chars, 2)?),
            'u' => out.push(escape(&mut chars, 4)?),
            'U' => out.push(escape(&mut chars, 8)?),
            'N' => return Err(Fault::new("a text has an escape `\\N{...}`: write the character itself")),
            '0'..='7' => out.push(octal(c, &mut chars)),
            _ if c.is_ascii() => out.extend(['\\', c]),
            // Jinja2 encodes what is not ASCII first, so that the backslash escapes a backslash.
            _ => out.push_str(&backslashed(c)),
        }
    }
    Ok(out)
}

fn escape(chars: &mut std::str::Chars, len: usize) -> Result<char> {
    let digits: String = chars.by_ref().take(len).collect();
    let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == len && !digits.starts_with('+'));
    code.and_then(char::from_u32)
        .ok_or_else(|| Fault::new(format!("a text has an escape `{digits}` that is no Unicode character")))
}

fn octal(first: char, chars: &mut std::str::Chars) -> char {
    let mut code = first.to_digit(8).unwrap_or(0);
    for _ in 0..2 {
        let Some(digit) = chars.clone().next().and_then(|c| c.to_digit(8)) else { break };
        code = code * 8 + digit;
        chars.next();
    }
    char::from_u32(code).unwrap_or('\0')
}

fn backslashed(c: char) -> String {
    match u32::from(c) {
        code @ ..0x100 => format!("\\x{code:02x}"),
        code @ ..0x1_0000 => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    }
}
