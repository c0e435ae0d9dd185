//! Rows of a data file with their places: JSONL, a JSON array or Parquet, the first two also as gzip or zstd.
//!
//! What a file is shows in its first bytes. Rows come one at a time, so a file need not fit in memory. Knows nothing
//! about what a row says.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::bufread::MultiGzDecoder;
use parquet::{
    file::reader::SerializedFileReader,
    record::{Field, Row as ParquetRow, reader::RowIter},
};
use serde_json::{Map, Value};

use super::records;

const KNOWN: &str = "JSONL (.jsonl), JSON arrays (.json), both also as .gz or .zst, and Parquet (.parquet)";
const BUFFER_BYTES: usize = 1 << 18;

/// A row that is not parsed, or has come as fields.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    Json(Vec<u8>),
    Fields(Map<String, Value>),
}

/// A row and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What follows the file's name: `:3` for a line, `: row 3` for an element or a table's row.
    pub place: String,
    pub raw: Raw,
}

impl Row {
    /// The row as an object.
    ///
    /// # Errors
    /// The row is none.
    pub fn fields(self) -> Result<Map<String, Value>> {
        match self.raw {
            Raw::Json(bytes) => records::row(&bytes),
            Raw::Fields(fields) => Ok(fields),
        }
    }
}

/// The rows of a file, in order.
pub type Rows = Box<dyn Iterator<Item = Result<Row>>>;

/// Opens a data file. Reading goes on no further than an error.
///
/// # Errors
/// The file cannot be read or is of no known kind.
pub fn open(path: &Path) -> Result<Rows> {
    let name = path.display().to_string();
    let rows = open_any(path).with_context(|| format!("data file `{name}`"))?;
    let mut failed = false;
    Ok(Box::new(rows.map_while(move |row| {
        if failed {
            return None;
        }
        failed = row.is_err();
        Some(row.with_context(|| format!("data file `{name}`")))
    })))
}

fn open_any(path: &Path) -> Result<Rows> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ensure!(
        !path.is_dir(),
        "cannot be read: it is a folder: name the files in it, such as `{}/*.parquet`",
        path.display()
    );
    let unreadable = || format!("cannot be read: name an existing file: {KNOWN}");
    let mut file = File::open(path).with_context(unreadable)?;
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(4).read_to_end(&mut magic).with_context(unreadable)?;
    file.rewind().with_context(unreadable)?;
    let wrong = |kind: &str| anyhow!("is named .{extension} and holds no {kind}: rename it or make it again");
    let zstd = magic == [0x28, 0xb5, 0x2f, 0xfd];
    match extension.as_str() {
        "gz" if !magic.starts_with(&[0x1f, 0x8b]) => return Err(wrong("gzip")),
        "zst" if !zstd => return Err(wrong("zstd")),
        "parquet" if magic != b"PAR1" => return Err(wrong("Parquet")),
        "csv" | "tsv" | "txt" | "arrow" | "feather" | "xlsx" | "zip" | "bz2" | "xz" => {
            bail!("is of a kind (.{extension}) that is not read: convert it to one of {KNOWN}")
        }
        _ => {}
    }
    if magic == b"PAR1" {
        return parquet(file);
    }
    let file = BufReader::with_capacity(BUFFER_BYTES, file);
    let mut text: Box<dyn BufRead> = if magic.starts_with(&[0x1f, 0x8b]) {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(file)))
    } else if zstd {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, zstd::stream::read::Decoder::with_buffer(file)?))
    } else {
        Box::new(file)
    };
    let broken = "cannot be read to its end: it is cut off or damaged, make it again";
    let line = skip_blank(&mut text).context(broken)?;
    let lines = path.file_name().unwrap_or_default().to_string_lossy().contains(".jsonl");
    if !lines && peek(&mut text).context(broken)? == Some(b'[') {
        text.consume(1);
        return Ok(Box::new(Elements { text, row: 0, done: false }));
    }
    Ok(Box::new(Lines { text, line }))
}

fn peek(text: &mut dyn BufRead) -> io::Result<Option<u8>> {
    loop {
        match text.fill_buf() {
            Ok(bytes) => return Ok(bytes.first().copied()),
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(why) => return Err(why),
        }
    }
}

/// Skips a byte order mark and blank bytes; gives back the lines passed.
fn skip_blank(text: &mut dyn BufRead) -> io::Result<usize> {
    if peek(text)? == Some(0xef) && text.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        text.consume(3);
    }
    let mut lines = 0;
    while let Some(byte) = peek(text)?.filter(u8::is_ascii_whitespace) {
        lines += usize::from(byte == b'\n');
        text.consume(1);
    }
    Ok(lines)
}

struct Lines {
    text: Box<dyn BufRead>,
    /// Lines behind it.
    line: usize,
}

impl Iterator for Lines {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let mut bytes = Vec::new();
            self.line += 1;
            let line = self.line;
            match self.text.read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(_) if bytes.trim_ascii().is_empty() => {}
                Ok(_) => {
                    let json = bytes.trim_ascii_end().to_vec();
                    return Some(Ok(Row { place: format!(":{line}"), raw: Raw::Json(json) }));
                }
                Err(why) => {
                    let what = format!("cannot be read beyond line {line}: it is cut off or damaged, make it again");
                    return Some(Err(why).context(what));
                }
            }
        }
    }
}

/// Elements of an array whose `[` is behind.
struct Elements {
    text: Box<dyn BufRead>,
    row: usize,
    done: bool,
}

impl Elements {
    /// The next element's bytes, and whether a comma ended it.
    fn element(&mut self) -> Result<(Vec<u8>, bool)> {
        let (mut bytes, mut depth, mut quoted, mut escaped) = (Vec::new(), 0usize, false, false);
        loop {
            let damaged = "is cut off or damaged, make it again";
            let byte = peek(&mut self.text).context(damaged)?;
            let byte = byte.context("the JSON array does not end: it is cut off, make it again")?;
            self.text.consume(1);
            match byte {
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ if quoted => {}
                b'{' | b'[' => depth += 1,
                b',' | b']' if depth == 0 => return Ok((bytes, byte == b',')),
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            bytes.push(byte);
        }
    }
}

impl Iterator for Elements {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        self.row += 1;
        let row = self.row;
        let (bytes, more) = match self.element() {
            Ok(element) => element,
            Err(why) => return Some(Err(why).with_context(|| format!("row {row}"))),
        };
        self.done = !more;
        if bytes.trim_ascii().is_empty() && (more || row > 1) {
            self.done = true;
            return Some(Err(anyhow!("row {row} of the JSON array is empty: remove the comma before or after it")));
        }
        if !more {
            match skip_blank(&mut self.text).and_then(|_| peek(&mut self.text)) {
                Ok(None) => {}
                Ok(Some(_)) => {
                    return Some(Err(anyhow!("goes on behind the end of its JSON array: remove what follows")));
                }
                Err(why) => return Some(Err(why).context("is cut off or damaged, make it again")),
            }
            if row == 1 && bytes.trim_ascii().is_empty() {
                return None;
            }
        }
        Some(Ok(Row { place: format!(": row {row}"), raw: Raw::Json(bytes.trim_ascii().to_vec()) }))
    }
}

const DAMAGED: &str =
    "is not readable as Parquet: it is cut off, damaged or compressed otherwise than by zstd or snappy; make it again";

struct Table {
    rows: RowIter<'static>,
    row: usize,
}

fn parquet(file: File) -> Result<Rows> {
    let rows = no_panic(|| Ok(SerializedFileReader::new(file)?.into_iter()))?;
    Ok(Box::new(Table { rows, row: 0 }))
}

/// The crate's reader panics on some damaged files.
fn no_panic<V>(read: impl FnOnce() -> Result<V>) -> Result<V> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(value) => value.context(DAMAGED),
        Err(_) => Err(anyhow!(DAMAGED)),
    }
}

impl Iterator for Table {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        self.row += 1;
        let place = format!(": row {}", self.row);
        let rows = &mut self.rows;
        let row = no_panic(|| rows.next().transpose().map_err(anyhow::Error::from)).transpose()?;
        Some(row.map(|row| Row { place, raw: Raw::Fields(fields(&row)) }))
    }
}

fn fields(row: &ParquetRow) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(v) => (*v).into(),
        Field::Byte(v) => (*v).into(),
        Field::Short(v) => (*v).into(),
        Field::Int(v) => (*v).into(),
        Field::Long(v) => (*v).into(),
        Field::UByte(v) => (*v).into(),
        Field::UShort(v) => (*v).into(),
        Field::UInt(v) => (*v).into(),
        Field::ULong(v) => (*v).into(),
        Field::Float16(v) => v.to_f64().into(),
        Field::Float(v) => f64::from(*v).into(),
        Field::Double(v) => (*v).into(),
        Field::Str(v) => v.as_str().into(),
        // Older writers do not mark text as text.
        Field::Bytes(v) => String::from_utf8_lossy(v.data()).into(),
        Field::Group(row) => Value::Object(fields(row)),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            let key = |key: &Field| if let Field::Str(key) = key { key.clone() } else { key.to_string() };
            Value::Object(map.entries().iter().map(|(k, v)| (key(k), value(v))).collect())
        }
        other => other.to_string().into(),
    }
}

/// The files that a path or pattern names, sorted.
///
/// # Errors
/// A pattern is broken or nothing fits it.
pub fn expand(pattern: &Path) -> Result<Vec<PathBuf>> {
    let text = pattern.to_string_lossy();
    if pattern.exists() || !text.contains(['*', '?', '[']) {
        return Ok(vec![pattern.to_owned()]);
    }
    let found = glob::glob(&text).with_context(|| format!("`{text}` is no pattern: correct it"))?;
    let mut files: Vec<PathBuf> = found.collect::<Result<_, _>>().with_context(|| format!("`{text}`"))?;
    files.retain(|file| file.is_file());
    files.sort();
    ensure!(!files.is_empty(), "no file fits `{text}`: correct the pattern or the folder");
    Ok(files)
}
