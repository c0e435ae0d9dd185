//! Rows of text files, plain or unpacked: lines and the elements of an array, none of them kept beyond a number of bytes.
//!
//! What is too long is read past without being stored, and that has an end too: a small file can unpack to terabytes.

use std::io::{self, BufRead, Read};

use anyhow::{Context, Result, anyhow, ensure};

use super::{Raw, Row};

/// Bytes of a file that are read and thrown away at most: what rows have beyond their limit, and blanks in one piece.
const THROWN_AWAY: u64 = 1 << 30;
const BLANK: u64 = 64 << 20;

/// A text, how long a row may be, and how much was thrown away.
pub(super) struct Text {
    inner: Box<dyn BufRead>,
    max: usize,
    thrown_away: u64,
    blank: u64,
}

impl Text {
    pub(super) fn new(inner: Box<dyn BufRead>, max: usize) -> Self {
        Self { inner, max, thrown_away: 0, blank: 0 }
    }

    /// The next byte, left where it is.
    pub(super) fn peek(&mut self) -> Result<Option<u8>> {
        Ok(self.piece()?.first().copied())
    }

    /// What there is to read, empty at the end.
    fn piece(&mut self) -> io::Result<&[u8]> {
        loop {
            match self.inner.fill_buf() {
                Ok(_) => break,
                Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
                Err(why) => return Err(why),
            }
        }
        self.inner.fill_buf()
    }

    /// The first bytes, left where they are.
    pub(super) fn first(&mut self) -> Result<Vec<u8>> {
        Ok(self.piece()?.iter().copied().take(8).collect())
    }

    /// Goes past bytes that were looked at.
    pub(super) fn pass(&mut self, bytes: usize) {
        self.inner.consume(bytes);
    }

    /// Skips a byte order mark.
    pub(super) fn skip_mark(&mut self) -> Result<()> {
        if self.piece()?.starts_with(b"\xef\xbb\xbf") {
            self.inner.consume(3);
        }
        Ok(())
    }

    /// Skips blank bytes; gives back the lines passed.
    pub(super) fn skip_blank(&mut self) -> Result<usize> {
        let mut lines = 0;
        loop {
            let piece = self.piece()?;
            let blank = piece.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            lines += piece[..blank].iter().filter(|&&byte| byte == b'\n').count();
            let more = blank > 0 && blank == piece.len();
            self.inner.consume(blank);
            self.pass_blank(blank)?;
            if !more {
                return Ok(lines);
            }
        }
    }

    fn pass_blank(&mut self, bytes: usize) -> Result<()> {
        self.blank += bytes as u64;
        ensure!(self.blank <= BLANK, "holds more than {BLANK} blank bytes in one piece: remove them");
        Ok(())
    }

    fn throw_away(&mut self, bytes: u64) -> Result<()> {
        self.thrown_away += bytes;
        let most = THROWN_AWAY.max(self.max as u64);
        ensure!(
            self.thrown_away <= most,
            "holds more than {most} bytes beyond `data.max_row_bytes` = {} of its rows and is read no further: it is no \
             file of rows, or the key must be raised",
            self.max
        );
        Ok(())
    }

    /// The next line without its end; `None` if it is too long, then it is behind. How many bytes it has in the file, 0 at
    /// the end.
    fn line(&mut self, bytes: &mut Vec<u8>) -> Result<Option<usize>> {
        bytes.clear();
        // Two bytes more are an end of line, or too much.
        let limit = self.max as u64 + 2;
        let read = Read::take(&mut self.inner, limit).read_until(b'\n', bytes)?;
        let whole = (read as u64) < limit || bytes.ends_with(b"\n");
        bytes.truncate(bytes.trim_ascii_end().len());
        if whole {
            return Ok((bytes.len() <= self.max).then_some(read));
        }
        *bytes = Vec::new();
        loop {
            let piece = self.piece()?;
            let end = piece.iter().position(|&byte| byte == b'\n');
            let passed = end.map_or(piece.len(), |end| end + 1);
            self.inner.consume(passed);
            self.throw_away(passed as u64)?;
            if end.is_some() || passed == 0 {
                return Ok(None);
            }
        }
    }
}

/// Whether an element is more than blanks beyond its limit, or blanks without measure.
fn too_much(element: &[u8], max: usize) -> bool {
    element.trim_ascii_end().len() > max || element.len() > max + (1 << 16)
}

fn too_long(max: usize) -> Raw {
    Raw::Bad(format!(
        "the row is longer than `data.max_row_bytes` = {max} bytes: shorten it or raise data.max_row_bytes"
    ))
}

pub(super) struct Lines {
    pub(super) text: Text,
    /// Lines behind it.
    pub(super) line: usize,
}

impl Iterator for Lines {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = Vec::new();
        loop {
            self.line += 1;
            let line = self.line;
            let row = |raw| Some(Ok(Row { place: format!(":{line}"), raw }));
            match self.text.line(&mut bytes) {
                Ok(None) => return row(too_long(self.text.max)),
                Ok(Some(0)) => return None,
                Ok(Some(blank)) if bytes.is_empty() => {
                    if let Err(why) = self.text.pass_blank(blank) {
                        return Some(Err(why));
                    }
                }
                Ok(Some(_)) => {
                    self.text.blank = 0;
                    return row(Raw::Json(bytes));
                }
                Err(why) => return Some(Err(named(why, || format!("cannot be read beyond line {line}")))),
            }
        }
    }
}

/// Elements of an array whose `[` is behind.
pub(super) struct Elements {
    text: Text,
    row: usize,
    done: bool,
}

/// What stands between two commas.
struct Element {
    /// `None` where it is too long.
    bytes: Option<Vec<u8>>,
    /// Whether a comma ended it.
    more: bool,
}

/// Where in an element reading is.
#[derive(Default)]
struct State {
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl State {
    /// Goes over a byte; true if it ends the element.
    fn pass(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.quoted => self.escaped = true,
            b'"' => self.quoted = !self.quoted,
            _ if self.quoted => {}
            b'{' | b'[' => self.depth += 1,
            b',' | b']' if self.depth == 0 => return true,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        false
    }
}

impl Elements {
    pub(super) fn new(text: Text) -> Self {
        Self { text, row: 0, done: false }
    }

    fn element(&mut self) -> Result<Element> {
        self.text.blank = 0;
        self.text.skip_blank()?;
        let (mut bytes, mut state) = (Some(Vec::new()), State::default());
        loop {
            let piece = self.text.piece()?;
            ensure!(!piece.is_empty(), "the JSON array does not end: it is cut off, make it again");
            let end = piece.iter().position(|&byte| state.pass(byte));
            let taken = end.unwrap_or(piece.len());
            let more = end.is_some_and(|end| piece[end] == b',');
            if let Some(bytes) = &mut bytes {
                bytes.extend_from_slice(&piece[..taken]);
            }
            self.text.inner.consume(taken + usize::from(end.is_some()));
            match &bytes {
                None => self.text.throw_away(taken as u64)?,
                Some(kept) if kept.len() > self.text.max && too_much(kept, self.text.max) => bytes = None,
                Some(_) => {}
            }
            if end.is_some() {
                return Ok(Element { bytes, more });
            }
        }
    }

    /// Refuses what stands behind the array.
    fn end(&mut self) -> Result<()> {
        self.text.blank = 0;
        self.text.skip_blank()?;
        ensure!(self.text.peek()?.is_none(), "goes on behind the end of its JSON array: remove what follows");
        Ok(())
    }

    fn read(&mut self) -> Result<Option<Raw>> {
        self.row += 1;
        let row = self.row;
        let element = self.element();
        let element = element.map_err(|why| named(why, || "cannot be read further".into()));
        let Element { bytes, more } = element.with_context(|| format!("row {row}"))?;
        self.done = !more;
        let empty = bytes.as_ref().is_some_and(|bytes| bytes.trim_ascii().is_empty());
        if !more {
            self.end().map_err(|why| named(why, || "cannot be read to its end".into()))?;
            if row == 1 && empty {
                return Ok(None);
            }
        }
        if empty {
            return Err(anyhow!("row {row} of the JSON array is empty: remove the comma before or after it"));
        }
        Ok(Some(bytes.map_or_else(|| too_long(self.text.max), |bytes| Raw::Json(bytes.trim_ascii_end().to_vec()))))
    }
}

impl Iterator for Elements {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let row = self.read();
        self.done |= row.is_err();
        let place = format!(": row {}", self.row);
        row.transpose().map(|row| row.map(|raw| Row { place, raw }))
    }
}

/// An error of reading with what it means; others are said as they are.
pub(super) fn named(why: anyhow::Error, what: impl FnOnce() -> String) -> anyhow::Error {
    let Some(error) = why.downcast_ref::<io::Error>() else { return why };
    let text = error.to_string();
    let what = what();
    if text.contains("too much memory") {
        return anyhow!("{what}: its zstd window is above 128 MiB: compress it again without --long or --ultra");
    }
    let remedy = match error.raw_os_error() {
        Some(_) => "",
        None => "it is cut off, damaged or followed by other bytes, make it again: ",
    };
    anyhow!("{what}: {remedy}{}", text.replace('\n', " "))
}

/// The file's first bytes as the file it is in.
pub(super) fn head(file: &mut impl Read) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    Read::take(file, 8).read_to_end(&mut head).context("cannot be read")?;
    Ok(head)
}
