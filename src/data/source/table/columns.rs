//! One column of a row group: its values as JSON, one after another, with their levels.

use std::{fs::File, sync::Arc};

use anyhow::{Context, Result};
use half::f16;
use parquet::{
    basic::{ConvertedType, LogicalType, Type as Physical},
    column::reader::{ColumnReaderImpl, get_column_reader, get_typed_column_reader},
    data_type::{
        BoolType, ByteArray, ByteArrayType, DataType, DoubleType, FixedLenByteArray, FixedLenByteArrayType, FloatType,
        Int32Type, Int64Type, Int96, Int96Type,
    },
    file::reader::RowGroupReader,
    schema::types::ColumnDescriptor,
};
use serde_json::Value;

use crate::data::source::{json, pages::Checked};

/// Rows that are read at a time.
const ROWS: usize = 64;

/// A column of any type.
pub(super) struct Column(Box<dyn Places>);

impl Column {
    pub(super) fn open(group: &dyn RowGroupReader, column: usize, file: &Arc<File>) -> Result<Self> {
        let meta = group.metadata().column(column);
        let description = meta.column_descr_ptr();
        let physical = description.physical_type();
        let (at, len) = meta.byte_range();
        let pages = Checked {
            inner: group.get_column_page_reader(column)?,
            file: Arc::clone(file),
            at,
            end: at.saturating_add(len),
            value_bytes: 4 + value_bytes(physical),
            column: meta.column_path().string(),
        };
        let reader = get_column_reader(Arc::clone(&description), Box::new(pages));
        let meaning = Meaning::of(&description);
        let levels = [description.max_def_level(), description.max_rep_level()];
        macro_rules! typed {
            ($kind:ty) => {
                Box::new(Typed::<$kind>::new(get_typed_column_reader(reader), levels, meaning))
            };
        }
        Ok(Self(match physical {
            Physical::BOOLEAN => typed!(BoolType),
            Physical::INT32 => typed!(Int32Type),
            Physical::INT64 => typed!(Int64Type),
            Physical::INT96 => typed!(Int96Type),
            Physical::FLOAT => typed!(FloatType),
            Physical::DOUBLE => typed!(DoubleType),
            Physical::BYTE_ARRAY => typed!(ByteArrayType),
            Physical::FIXED_LEN_BYTE_ARRAY => typed!(FixedLenByteArrayType),
        }))
    }

    /// Levels of definition and repetition of the next place; `None` at the end.
    pub(super) fn levels(&mut self) -> Result<Option<(i16, i16)>> {
        self.0.levels()
    }

    /// The next place's value, null if nothing is there or it is not to be kept; and how many bytes it has.
    pub(super) fn take(&mut self, keep: bool) -> Result<(Value, usize)> {
        self.0.take(keep)
    }
}

fn value_bytes(physical: Physical) -> u64 {
    match physical {
        Physical::BOOLEAN => 1,
        Physical::INT32 | Physical::FLOAT => 4,
        Physical::INT64 | Physical::DOUBLE => 8,
        Physical::INT96 => 12,
        Physical::BYTE_ARRAY | Physical::FIXED_LEN_BYTE_ARRAY => size_of::<ByteArray>() as u64,
    }
}

/// What a column's values stand for.
#[derive(Clone, Copy)]
enum Meaning {
    /// Numbers and truth values as they are, bytes as text where they are text.
    Plain,
    Unsigned,
    Half,
    /// A whole number with so many digits behind the point.
    Decimal(i32),
    /// What no row is made of: dates, times and the like.
    Other(&'static str),
}

impl Meaning {
    fn of(column: &ColumnDescriptor) -> Self {
        use ConvertedType as Converted;
        match column.logical_type_ref() {
            Some(LogicalType::Date | LogicalType::Time(_) | LogicalType::Timestamp(_)) => Self::Other("a date or time"),
            Some(LogicalType::Float16) => Self::Half,
            Some(LogicalType::Decimal(kind)) => Self::Decimal(kind.scale),
            Some(LogicalType::Integer(kind)) if !kind.is_signed => Self::Unsigned,
            _ => match column.converted_type() {
                Converted::UINT_8 | Converted::UINT_16 | Converted::UINT_32 | Converted::UINT_64 => Self::Unsigned,
                Converted::DECIMAL => Self::Decimal(column.type_scale()),
                Converted::DATE | Converted::TIME_MILLIS | Converted::TIME_MICROS => Self::Other("a date or time"),
                Converted::TIMESTAMP_MILLIS | Converted::TIMESTAMP_MICROS => Self::Other("a date or time"),
                Converted::INTERVAL => Self::Other("a span of time"),
                _ => Self::Plain,
            },
        }
    }
}

trait Places {
    fn levels(&mut self) -> Result<Option<(i16, i16)>>;
    fn take(&mut self, keep: bool) -> Result<(Value, usize)>;
}

/// A column reader with the places that it has read ahead.
struct Typed<T: DataType> {
    reader: ColumnReaderImpl<T>,
    meaning: Meaning,
    /// The deepest levels of definition and repetition.
    deepest: [i16; 2],
    definitions: Vec<i16>,
    repetitions: Vec<i16>,
    values: Vec<T::T>,
    /// Places read ahead, and those of them that are behind; values that are behind.
    places: usize,
    place: usize,
    value: usize,
}

impl<T: DataType> Typed<T> {
    fn new(reader: ColumnReaderImpl<T>, deepest: [i16; 2], meaning: Meaning) -> Self {
        let (definitions, repetitions, values) = (Vec::new(), Vec::new(), Vec::new());
        Self { reader, meaning, deepest, definitions, repetitions, values, places: 0, place: 0, value: 0 }
    }

    fn fill(&mut self) -> Result<()> {
        self.definitions.clear();
        self.repetitions.clear();
        self.values.clear();
        (self.place, self.value) = (0, 0);
        let (definitions, repetitions) = (&mut self.definitions, &mut self.repetitions);
        let (_, values, levels) =
            self.reader.read_records(ROWS, Some(definitions), Some(repetitions), &mut self.values)?;
        self.places = if self.deepest[0] == 0 { values } else { levels };
        Ok(())
    }
}

impl<T: DataType> Places for Typed<T>
where
    T::T: Shown,
{
    fn levels(&mut self) -> Result<Option<(i16, i16)>> {
        if self.place == self.places {
            self.fill()?;
        }
        if self.place == self.places {
            return Ok(None);
        }
        let level = |levels: &[i16]| levels.get(self.place).copied();
        let definition = level(&self.definitions).unwrap_or(self.deepest[0]);
        Ok(Some((definition, level(&self.repetitions).unwrap_or(0))))
    }

    fn take(&mut self, keep: bool) -> Result<(Value, usize)> {
        let (definition, _) = self.levels()?.context("a column ends before its rows do")?;
        self.place += 1;
        if definition < self.deepest[0] {
            return Ok((Value::Null, 0));
        }
        let value = self.values.get(self.value).context("a column has fewer values than places")?;
        self.value += 1;
        let shown = if keep { value.shown(self.meaning) } else { Value::Null };
        Ok((shown, value.bytes()))
    }
}

/// A value as JSON.
trait Shown {
    fn shown(&self, meaning: Meaning) -> Value;

    fn bytes(&self) -> usize {
        0
    }
}

impl Shown for bool {
    fn shown(&self, _: Meaning) -> Value {
        (*self).into()
    }
}

impl Shown for i32 {
    fn shown(&self, meaning: Meaning) -> Value {
        match meaning {
            Meaning::Unsigned => (*self as u32).into(),
            meaning => i64::from(*self).shown(meaning),
        }
    }
}

impl Shown for i64 {
    fn shown(&self, meaning: Meaning) -> Value {
        match meaning {
            Meaning::Unsigned => (*self as u64).into(),
            Meaning::Decimal(scale) => decimal(i128::from(*self), scale),
            Meaning::Other(what) => json::mark(what),
            _ => (*self).into(),
        }
    }
}

impl Shown for Int96 {
    fn shown(&self, _: Meaning) -> Value {
        json::mark("a date or time")
    }
}

impl Shown for f32 {
    fn shown(&self, _: Meaning) -> Value {
        json::float(f64::from(*self))
    }
}

impl Shown for f64 {
    fn shown(&self, _: Meaning) -> Value {
        json::float(*self)
    }
}

impl Shown for ByteArray {
    fn shown(&self, meaning: Meaning) -> Value {
        bytes(self.data(), meaning)
    }

    fn bytes(&self) -> usize {
        self.len()
    }
}

impl Shown for FixedLenByteArray {
    fn shown(&self, meaning: Meaning) -> Value {
        bytes(self.data(), meaning)
    }

    fn bytes(&self) -> usize {
        self.len()
    }
}

fn bytes(bytes: &[u8], meaning: Meaning) -> Value {
    match (meaning, bytes) {
        (Meaning::Half, &[low, high]) => json::float(f16::from_le_bytes([low, high]).to_f64()),
        (Meaning::Decimal(scale), [first, ..]) if bytes.len() <= 16 => {
            let mut wide = [if first & 0x80 == 0 { 0 } else { 0xff }; 16];
            wide[16 - bytes.len()..].copy_from_slice(bytes);
            decimal(i128::from_be_bytes(wide), scale)
        }
        (Meaning::Decimal(_), _) => json::mark("a decimal of more than 128 bits"),
        (Meaning::Other(what), _) => json::mark(what),
        // Older writers do not mark text as text.
        _ => match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(_) => json::mark("bytes that are not UTF-8"),
        },
    }
}

/// The nearest number to `digits` with the point `scale` places from the end.
fn decimal(digits: i128, scale: i32) -> Value {
    format!("{digits}e{}", -i64::from(scale)).parse().map_or(Value::Null, json::float)
}
