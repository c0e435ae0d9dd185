//! Pages of a Parquet column, each looked at before it is unpacked: a header that lies must not cost memory.
//!
//! Owns the few numbers of a page header that say how large a page comes out. The crate's reader believes them.

use std::{fs::File, os::unix::fs::FileExt, sync::Arc};

use parquet::{
    column::page::{Page, PageMetadata, PageReader},
    errors::{ParquetError, Result},
};

/// Bytes of a page, unpacked, at most; and bytes of its values with their levels.
const PAGE_BYTES: u64 = 512 << 20;
/// Bytes of a header that are looked at first, and at most: statistics in it may be long.
const HEADER: [usize; 2] = [512, 1 << 24];
const INDEX_PAGE: i64 = 1;
/// Structures within each other in a header.
const DEPTH: usize = 16;

/// A reader of pages that knows where the next one begins.
pub(super) struct Checked {
    pub(super) inner: Box<dyn PageReader>,
    pub(super) file: Arc<File>,
    /// Where the next header begins, and where the column ends.
    pub(super) at: u64,
    pub(super) end: u64,
    /// Bytes of a value in memory, its levels counted in.
    pub(super) value_bytes: u64,
    /// What errors call the column.
    pub(super) column: String,
}

impl Checked {
    /// Looks at the headers up to the next page that the reader will take.
    fn check(&mut self) -> Result<()> {
        while self.at < self.end {
            let header = self.header()?;
            let Header { kind, unpacked, packed, values, len } = header;
            let column = &self.column;
            let fits = unpacked <= PAGE_BYTES && values.saturating_mul(self.value_bytes) <= PAGE_BYTES;
            if !fits {
                return Err(ParquetError::General(format!(
                    "column `{column}`: a page of {values} values takes {unpacked} bytes: write it with smaller pages"
                )));
            }
            self.at = self.at.saturating_add(len as u64).saturating_add(packed);
            if kind != INDEX_PAGE {
                break;
            }
        }
        Ok(())
    }

    fn header(&self) -> Result<Header> {
        for most in HEADER {
            let len = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(most);
            let mut bytes = vec![0; len];
            let mut filled = 0;
            while filled < len {
                match self.file.read_at(&mut bytes[filled..], self.at + filled as u64)? {
                    0 => break,
                    more => filled += more,
                }
            }
            if let Some(header) = Header::read(&bytes[..filled]) {
                return Ok(header);
            }
        }
        Err(ParquetError::General(format!("column `{}`: a page header is damaged", self.column)))
    }
}

impl Iterator for Checked {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Checked {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.check()?;
        self.inner.get_next_page()
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.inner.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.check()?;
        self.inner.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.inner.at_record_boundary()
    }
}

/// What a page header says of sizes.
#[derive(Debug, Default, PartialEq)]
struct Header {
    kind: i64,
    unpacked: u64,
    packed: u64,
    values: u64,
    /// Bytes of the header itself.
    len: usize,
}

impl Header {
    /// Reads a header in Thrift's compact protocol; `None` if the bytes end in it or are none.
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut reader = Thrift { bytes, at: 0 };
        let mut header = Self::default();
        let mut id = 0;
        while let Some(kind) = reader.field(&mut id)? {
            match (id, kind) {
                (1, I32) => header.kind = reader.integer()?,
                (2, I32) => header.unpacked = u64::try_from(reader.integer()?).ok()?,
                (3, I32) => header.packed = u64::try_from(reader.integer()?).ok()?,
                // The header of a data page, of a dictionary, of a data page of the second version.
                (5 | 7 | 8, STRUCT) => header.values = reader.first_integer()?,
                _ => reader.skip(kind, 0)?,
            }
        }
        Some(Self { len: reader.at, ..header })
    }
}

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const STRUCT: u8 = 12;

struct Thrift<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Thrift<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = self.bytes.get(self.at).copied();
        self.at += 1;
        byte
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    /// With the sign in the last bit.
    fn integer(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some((number >> 1) as i64 ^ -((number & 1) as i64))
    }

    /// The next field's type, and its number in `id`; `Some(None)` at the end of the structure.
    fn field(&mut self, id: &mut i64) -> Option<Option<u8>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Some(None);
        }
        *id = match byte >> 4 {
            0 => self.integer()?,
            step => *id + i64::from(step),
        };
        Some(Some(byte & 0xf))
    }

    /// Goes over a structure; gives back its field 1.
    fn first_integer(&mut self) -> Option<u64> {
        let (mut id, mut first) = (0, 0);
        while let Some(kind) = self.field(&mut id)? {
            match (id, kind) {
                (1, I32) => first = u64::try_from(self.integer()?).ok()?,
                _ => self.skip(kind, 1)?,
            }
        }
        Some(first)
    }

    fn pass(&mut self, bytes: u64) -> Option<()> {
        self.at = self.at.checked_add(usize::try_from(bytes).ok()?).filter(|&at| at <= self.bytes.len())?;
        Some(())
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            _ if depth > DEPTH => None,
            TRUE | FALSE => Some(()),
            BYTE => self.pass(1),
            4..=I64 => self.number().map(drop),
            DOUBLE => self.pass(8),
            BINARY => {
                let len = self.number()?;
                self.pass(len)
            }
            LIST | SET => {
                let byte = self.byte()?;
                let len = if byte >> 4 == 15 { self.number()? } else { u64::from(byte >> 4) };
                // A truth value of a list is a byte.
                let kind = if byte & 0xf <= FALSE { BYTE } else { byte & 0xf };
                (0..len).try_for_each(|_| self.skip(kind, depth + 1))
            }
            STRUCT => {
                let mut id = 0;
                while let Some(kind) = self.field(&mut id)? {
                    self.skip(kind, depth + 1)?;
                }
                Some(())
            }
            _ => None,
        }
    }
}
