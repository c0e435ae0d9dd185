//! A tree as bytes: numbers are little-endian groups of seven bits, the last without the top bit; texts and lists have their
//! length first.
//!
//! A record is its length, three numbers that a plan needs, and the tree.

use anyhow::{Context, Result, bail, ensure};

use crate::forest::{Role, Segment, Tree, Value};

/// What is known of a tree without reading it: tokens, prediction rows, and tokens if every sequence were run alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Of all segments.
    pub tokens: usize,
    /// Predicted tokens.
    pub rows: usize,
    /// Tokens, if every sequence were run alone.
    pub unshared: usize,
}

impl Size {
    /// The size of a tree.
    pub fn of(tree: &Tree) -> Self {
        Self { tokens: tree.tokens(), rows: tree.rows(), unshared: tree.unshared_tokens() }
    }
}

/// Writes numbers, texts and trees.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn number(&mut self, number: usize) {
        let mut rest = number as u64;
        while rest >= 0x80 {
            self.0.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        self.0.push(rest as u8);
    }

    /// A text that may begin with the file's name: a mark, and what is behind the name.
    pub fn text(&mut self, text: &str, name: &str) {
        let behind = text.strip_prefix(name);
        let rest = behind.unwrap_or(text);
        self.number(usize::from(behind.is_some()));
        self.number(rest.len());
        self.0.extend_from_slice(rest.as_bytes());
    }

    /// A tree of the file `name`, and its size.
    pub fn record(&mut self, tree: &Tree, name: &str) -> Size {
        let size = Size::of(tree);
        let mut body = Self::default();
        [size.tokens, size.rows, size.unshared].into_iter().for_each(|number| body.number(number));
        body.tree(tree, name);
        self.number(body.0.len());
        self.0.append(&mut body.0);
        size
    }

    fn tree(&mut self, tree: &Tree, name: &str) {
        self.text(&tree.name, name);
        self.number(tree.segments.len());
        for segment in &tree.segments {
            self.number(segment.parent.map_or(0, |parent| parent + 1));
            self.number(usize::from(segment.scored));
            self.number(segment.role as usize);
            self.number(segment.unscored.len());
            segment.unscored.iter().flat_map(|range| [range.start, range.end]).for_each(|n| self.number(n));
            self.number(segment.tokens.len());
            segment.tokens.iter().for_each(|&token| self.number(token as usize));
        }
        self.number(tree.pairs.len());
        tree.pairs.iter().flatten().for_each(|&sequence| self.number(sequence));
        self.number(tree.scores.len());
        tree.scores.iter().for_each(|score| self.0.extend_from_slice(&score.to_le_bytes()));
        self.number(tree.labels.len());
        tree.labels.iter().for_each(|&label| self.number(usize::from(label)));
        self.number(tree.values.len());
        for (value, numbers) in &tree.values {
            self.number(*value as usize);
            self.number(numbers.len());
            numbers.iter().for_each(|number| self.0.extend_from_slice(&number.to_le_bytes()));
        }
    }
}

/// By their numbers.
const ROLES: [Role; 3] = [Role::Response, Role::Rationale, Role::Mismatched];

/// What [`Writer`] wrote. Checksums were checked before; what still does not fit is an error, not a panic.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len).context("tokens end early")?;
        self.0 = rest;
        Ok(bytes)
    }

    pub fn number(&mut self) -> Result<usize> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.bytes(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number as usize);
            }
        }
        bail!("a number among tokens does not end")
    }

    pub fn text(&mut self, name: &str) -> Result<String> {
        let named = self.number()? == 1;
        let len = self.number()?;
        let rest = std::str::from_utf8(self.bytes(len)?)?;
        Ok(if named { format!("{name}{rest}") } else { rest.to_owned() })
    }

    fn list<V>(&mut self, mut value: impl FnMut(&mut Self) -> Result<V>) -> Result<Vec<V>> {
        let len = self.number()?;
        // Each value has a byte at least: a length that is none allocates nothing.
        ensure!(len <= self.0.len(), "tokens end early");
        let mut values = Vec::with_capacity(len);
        for _ in 0..len {
            values.push(value(self)?);
        }
        Ok(values)
    }

    /// The bytes of the record here; the reader stands behind it then.
    pub fn record(&mut self) -> Result<Self> {
        let len = self.number()?;
        Ok(Self(self.bytes(len)?))
    }

    /// The size in a record.
    pub fn size(&mut self) -> Result<Size> {
        Ok(Size { tokens: self.number()?, rows: self.number()?, unshared: self.number()? })
    }

    /// The tree in the rest of a record, of the file `name`.
    pub fn tree(mut self, name: &str) -> Result<Tree> {
        let name = self.text(name)?;
        let segments = self.list(Self::segment)?;
        let ordered = segments.iter().enumerate().all(|(i, segment)| segment.parent.is_none_or(|parent| parent < i));
        ensure!(ordered, "{name}: a segment before its parent");
        let tree = Tree {
            name,
            segments,
            pairs: self.list(|reader| Ok([reader.number()?, reader.number()?]))?,
            scores: self.list(Self::float)?,
            labels: self.list(|reader| Ok(reader.number()? == 1))?,
            values: self.list(|reader| {
                let value = Value::numbered(reader.number()?).context("a value of no kind")?;
                Ok((value, reader.list(Self::float)?))
            })?,
        };
        ensure!(self.0.is_empty(), "{}: {} bytes too many", tree.name, self.0.len());
        Ok(tree)
    }

    fn float(&mut self) -> Result<f64> {
        Ok(f64::from_le_bytes(self.bytes(8)?.try_into()?))
    }

    fn segment(&mut self) -> Result<Segment> {
        Ok(Segment {
            parent: self.number()?.checked_sub(1),
            scored: self.number()? == 1,
            role: *ROLES.get(self.number()?).context("a segment of no kind")?,
            unscored: self.list(|reader| Ok(reader.number()?..reader.number()?))?,
            tokens: self.list(|reader| Ok(u32::try_from(reader.number()?)?))?,
        })
    }
}
