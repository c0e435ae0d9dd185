//! RowReader of a data file with their places: JSONL, a JSON array or Parquet, the first two also as gzip or zstd.
//!
//! What a file is shows in its first bytes. RowReader come one at a time, so a file need not fit in memory, and none is kept
//! beyond `data.max_row_bytes`. Knows nothing about what a row says.

pub mod json;
#[cfg(feature = "parquet")]
mod pages;
#[cfg(feature = "parquet")]
mod table;
mod text;

use std::{
    fs::{self, File},
    io::{BufReader, Cursor, Read},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use flate2::bufread::MultiGzDecoder;
use serde_json::{Map, Value};

use super::records;
#[cfg(feature = "parquet")]
use table::open as open_table;
use text::{Elements, Lines, Text, named};

const KNOWN: &str = "JSONL (.jsonl), JSON arrays (.json), both also as .gz or .zst, and Parquet (.parquet)";
const BUFFER_BYTES: usize = 1 << 18;
/// Bytes of a row at most, where nothing else is said.
pub const MAX_ROW_BYTES: usize = 16 << 20;

/// A row that is not parsed, or has come as fields.
#[derive(Clone, Debug, PartialEq)]
pub enum Raw {
    /// The text of a JSON object.
    Json(Vec<u8>),
    /// Values by name.
    Fields(Map<String, Value>),
    /// It was not kept; the text says why.
    Bad(String),
}

/// A row and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What follows the file's name: `:3` for a line, `: row 3` for an element or a table's row.
    pub place: String,
    /// Its bytes or values.
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
            Raw::Bad(why) => Err(anyhow!(why)),
        }
    }

    /// About how much memory the row takes.
    pub fn bytes(&self) -> usize {
        match &self.raw {
            Raw::Json(bytes) => bytes.len(),
            Raw::Fields(fields) => fields.values().map(weight).sum(),
            Raw::Bad(why) => why.len(),
        }
    }
}

fn weight(value: &Value) -> usize {
    let own = size_of::<Value>();
    match value {
        Value::String(text) => own + text.len(),
        Value::Array(items) => own + items.iter().map(weight).sum::<usize>(),
        Value::Object(fields) => own + fields.iter().map(|(key, value)| own + key.len() + weight(value)).sum::<usize>(),
        _ => own,
    }
}

/// The rows of a file, in order.
pub type RowReader = Box<dyn Iterator<Item = Result<Row>>>;

/// A data file of a known kind, none of whose rows is read.
pub struct Opened {
    /// The file's path as errors show it.
    pub name: String,
    /// Whether its bytes can be read more than once: a pipe's cannot.
    pub regular: bool,
    /// What it is read as, whatever its bytes: `lines`, `array` or `table`.
    pub kind: &'static str,
    /// Reading goes on no further than an error.
    pub rows: RowReader,
}

/// Opens a data file of which no row may have more than `max_row_bytes`; one that does comes as [`Raw::Bad`].
///
/// # Errors
/// The file cannot be read or is of no known kind.
pub fn open(path: &Path, max_row_bytes: usize) -> Result<Opened> {
    let name = path.display().to_string();
    let of_file = format!("data file `{name}`");
    let (regular, kind, rows) = open_any(path, max_row_bytes).with_context(|| of_file.clone())?;
    let mut failed = false;
    let rows = rows.map_while(move |row| {
        if failed {
            return None;
        }
        failed = row.is_err();
        Some(row.with_context(|| of_file.clone()))
    });
    Ok(Opened { name, regular, kind, rows: Box::new(rows) })
}

fn open_any(path: &Path, max: usize) -> Result<(bool, &'static str, RowReader)> {
    let unreadable = || format!("cannot be read: name an existing file: {KNOWN}");
    let meta = fs::metadata(path).with_context(unreadable)?;
    let kind = meta.file_type();
    ensure!(
        !kind.is_dir(),
        "cannot be read: it is a folder: name the files in it, such as `{}/*.parquet`",
        path.display()
    );
    let special = [
        (kind.is_socket(), "a socket"),
        (kind.is_block_device(), "a device"),
        (kind.is_char_device(), "a device or a terminal"),
    ];
    if let Some((_, what)) = special.into_iter().find(|(is, _)| *is) {
        bail!("is {what} and no file: name a file or a pipe");
    }
    let mut file = File::open(path).with_context(unreadable)?;
    let head = text::head(&mut file).with_context(unreadable)?;
    check_name(path, &head)?;
    let regular = kind.is_file();
    if head.starts_with(b"PAR1") {
        ensure!(regular, "is Parquet in a pipe, and Parquet is read from its end: write it to a file first");
        return Ok((regular, "table", open_table(path, max)?));
    }
    ensure!(!head.starts_with(b"PARE"), "is encrypted Parquet: write it again without encryption");
    let file = BufReader::with_capacity(BUFFER_BYTES, Cursor::new(head.clone()).chain(file));
    let inner: Box<dyn std::io::BufRead> = if is_gzip(&head) {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(file)))
    } else if is_zstd(&head) {
        Box::new(BufReader::with_capacity(BUFFER_BYTES, zstd::stream::read::Decoder::with_buffer(file)?))
    } else {
        Box::new(file)
    };
    let lines = path.file_name().unwrap_or_default().to_string_lossy().contains(".jsonl");
    let rows = text_rows(Text::new(inner, max), lines).map_err(|why| named(why, || "cannot be read".into()));
    rows.map(|(kind, rows)| (regular, kind, rows))
}

fn text_rows(mut text: Text, lines: bool) -> Result<(&'static str, RowReader)> {
    if let Some(what) = no_text(&text.first()?) {
        bail!("{what}");
    }
    text.skip_mark()?;
    let line = text.skip_blank()?;
    if !lines && text.peek()? == Some(b'[') {
        text.pass(1);
        return Ok(("array", Box::new(Elements::new(text))));
    }
    Ok(("lines", Box::new(Lines { text, line })))
}

/// What a file is that begins with these bytes, if it is no UTF-8 text.
fn no_text(head: &[u8]) -> Option<String> {
    const OTHER: [(&[u8], &str); 6] = [
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ", "xz"),
        (b"PK\x03\x04", "a zip archive"),
        (b"ARROW1", "an Arrow file"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"version ", "a Git LFS pointer (`git lfs pull` gets the file)"),
    ];
    if let Some((_, what)) = OTHER.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Some(format!("is {what}, which is not read: give one of {KNOWN}"));
    }
    let utf16 = head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff");
    let what = match head {
        _ if utf16 => "is UTF-16 or UTF-32: save it as UTF-8, such as by `iconv -f UTF-16 -t UTF-8`",
        [0, b'{' | b'[', ..] => "is UTF-16: save it as UTF-8, such as by `iconv -f UTF-16BE -t UTF-8`",
        [b'{' | b'[', 0, ..] => "is UTF-16: save it as UTF-8, such as by `iconv -f UTF-16LE -t UTF-8`",
        [0, ..] => "begins with a zero byte: it is no text",
        _ => return None,
    };
    Some(what.to_owned())
}

fn is_gzip(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b])
}

/// A frame, or a skippable one, as parallel writers put in front.
fn is_zstd(head: &[u8]) -> bool {
    head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || matches!(head, [first, 0x2a, 0x4d, 0x18, ..] if (0x50..0x60).contains(first))
}

/// Refuses a name that says something else than the first bytes.
fn check_name(path: &Path, head: &[u8]) -> Result<()> {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let wrong = |kind: &str| anyhow!("is named .{extension} and holds no {kind}: rename it or make it again");
    match extension.as_str() {
        // An empty file is one without rows, whatever its name.
        _ if head.is_empty() => Ok(()),
        "gz" if !is_gzip(head) => Err(wrong("gzip")),
        "zst" if !is_zstd(head) => Err(wrong("zstd")),
        "parquet" if !head.starts_with(b"PAR") => Err(wrong("Parquet")),
        "csv" | "tsv" | "txt" | "arrow" | "feather" | "xlsx" | "zip" | "bz2" | "xz" => {
            bail!("is of a kind (.{extension}) that is not read: convert it to one of {KNOWN}")
        }
        _ => Ok(()),
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

/// # Errors
/// Always.
#[cfg(not(feature = "parquet"))]
fn open_table(_: &Path, _: usize) -> Result<RowReader> {
    bail!(
        "is Parquet, and this program was built without the feature `parquet`: give JSONL, or build it with the feature"
    )
}
