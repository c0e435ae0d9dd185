//! RowReader of a Parquet file: values of its columns put together as the row that was taken apart (Dremel's levels).
//!
//! A null structure is null and no object of nulls. A field of a nested structure that is null is left out, as a JSON
//! line leaves it out: a table gives every structure the fields of all. `content` stays, which a message may have as null.

mod columns;

use std::{
    cell::Cell,
    fs::File,
    panic::{self, AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Once},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use parquet::{
    basic::{ConvertedType, LogicalType, Repetition},
    file::reader::{FileReader, SerializedFileReader},
    schema::types::{SchemaDescriptor, Type},
};
use serde_json::{Map, Value};

use super::{Raw, Row, RowReader};
use columns::Column;

const DAMAGED: &str =
    "is not readable as Parquet: it is cut off, damaged or compressed in a way that is not read; make it again";
/// Bytes that every value counts for, so that nothing is free.
const VALUE_BYTES: usize = 8;
/// Structures within each other.
const DEPTH: usize = 64;

/// What a part of the schema is and where its values lie; levels as in the file.
enum Node {
    Leaf {
        column: usize,
    },
    Group {
        /// The definition level of a group that is there.
        there: i16,
        fields: Vec<(String, Node)>,
    },
    /// A list, or a map as a list of entries.
    List {
        there: i16,
        /// The definition level of a list that has an element, and the repetition level of its elements.
        filled: i16,
        level: i16,
        element: Box<Node>,
        map: bool,
    },
}

/// A file's rows.
struct Table {
    file: Arc<File>,
    reader: SerializedFileReader<File>,
    /// The fields of a row.
    fields: Vec<(String, Node)>,
    columns: Vec<Column>,
    /// The next row group, and rows left in the one before.
    group: usize,
    left: i64,
    row: usize,
    max: usize,
}

pub(super) fn open(path: &Path, max: usize) -> Result<RowReader> {
    let table = quietly(|| {
        let file = File::open(path)?;
        let reader = SerializedFileReader::new(file.try_clone()?)?;
        let schema = reader.metadata().file_metadata().schema_descr_ptr();
        let fields = Schema { next: 0, columns: &schema }.fields(schema.root_schema(), [0, 0], 0)?;
        let (columns, file) = (Vec::new(), Arc::new(file));
        Ok(Table { file, reader, fields, columns, group: 0, left: 0, row: 0, max })
    })?;
    Ok(Box::new(table))
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// The crate's reader panics on some damaged files; nothing of that is for the terminal.
fn quietly<V>(read: impl FnOnce() -> Result<V>) -> Result<V> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    QUIET.set(true);
    let value = catch_unwind(AssertUnwindSafe(read));
    QUIET.set(false);
    match value {
        Ok(value) => value.context(DAMAGED),
        Err(_) => Err(anyhow!(DAMAGED)),
    }
}

impl Iterator for Table {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        let raw = quietly(|| self.read()).transpose()?;
        Some(raw.map(|raw| Row { place: format!(": row {}", self.row), raw }))
    }
}

impl Table {
    fn read(&mut self) -> Result<Option<Raw>> {
        while self.left == 0 {
            if self.group == self.reader.num_row_groups() {
                return Ok(None);
            }
            self.open_group()?;
        }
        (self.left, self.row) = (self.left - 1, self.row + 1);
        let mut assembly = Assembly { columns: &mut self.columns, room: self.max as i64 };
        let mut row = Map::new();
        for (name, node) in &self.fields {
            row.insert(name.clone(), assembly.value(node)?);
        }
        if assembly.room < 0 {
            let max = self.max;
            return Ok(Some(Raw::Bad(format!(
                "the row is longer than `data.max_row_bytes` = {max} bytes: shorten it or raise data.max_row_bytes"
            ))));
        }
        Ok(Some(Raw::Fields(row)))
    }

    fn open_group(&mut self) -> Result<()> {
        let group = self.reader.get_row_group(self.group)?;
        self.left = group.metadata().num_rows();
        ensure!(self.left >= 0, "row group {}: {} rows", self.group, self.left);
        self.group += 1;
        let columns = (0..group.num_columns()).map(|i| Column::open(&*group, i, &self.file));
        self.columns = columns.collect::<Result<_>>()?;
        Ok(())
    }
}

/// One row being put together.
struct Assembly<'a> {
    columns: &'a mut [Column],
    /// Bytes that the row may still have; below zero its values are passed and not kept.
    room: i64,
}

impl Assembly<'_> {
    fn value(&mut self, node: &Node) -> Result<Value> {
        match node {
            Node::Leaf { column } => {
                let keep = self.room >= 0;
                let (value, bytes) = self.columns[*column].take(keep)?;
                self.room -= (bytes + VALUE_BYTES) as i64;
                Ok(if self.room >= 0 { value } else { Value::Null })
            }
            Node::Group { there, fields } => {
                if self.definition(node)? < *there {
                    return self.absent(node, Value::Null);
                }
                let mut group = Map::new();
                for (name, field) in fields {
                    let value = self.value(field)?;
                    if !value.is_null() || name == "content" {
                        group.insert(name.clone(), value);
                    }
                }
                Ok(Value::Object(group))
            }
            Node::List { there, filled, level, element, map } => {
                let definition = self.definition(node)?;
                if definition < *there {
                    return self.absent(node, Value::Null);
                }
                if definition < *filled {
                    return self.absent(node, if *map { Map::new().into() } else { Vec::<Value>::new().into() });
                }
                let values = self.elements(element, *level)?;
                Ok(if *map { entries(values) } else { values.into() })
            }
        }
    }

    fn elements(&mut self, element: &Node, level: i16) -> Result<Vec<Value>> {
        let first = first_column(element)?;
        let mut values = Vec::new();
        loop {
            let value = self.value(element)?;
            if self.room >= 0 {
                values.push(value);
            }
            if self.columns[first].levels()?.is_none_or(|(_, repetition)| repetition < level) {
                return Ok(values);
            }
        }
    }

    /// How much of the way to a node's values is there.
    fn definition(&mut self, node: &Node) -> Result<i16> {
        let levels = self.columns[first_column(node)?].levels()?;
        Ok(levels.context("a column ends before its rows do")?.0)
    }

    /// Passes the one place that each column of an absent node has.
    fn absent(&mut self, node: &Node, value: Value) -> Result<Value> {
        self.room -= VALUE_BYTES as i64;
        match node {
            Node::Leaf { column } => drop(self.columns[*column].take(false)?),
            Node::Group { fields, .. } => {
                for (_, field) in fields {
                    self.absent(field, Value::Null)?;
                }
            }
            Node::List { element, .. } => drop(self.absent(element, Value::Null)?),
        }
        Ok(value)
    }
}

fn first_column(node: &Node) -> Result<usize> {
    match node {
        Node::Leaf { column } => Ok(*column),
        Node::Group { fields, .. } => first_column(&fields.first().context("a group without fields")?.1),
        Node::List { element, .. } => first_column(element),
    }
}

/// A map's entries, each an object of key and value in this order, as an object.
fn entries(entries: Vec<Value>) -> Value {
    let entry = |entry: Value| {
        let Value::Object(fields) = entry else { return None };
        let mut fields = fields.into_iter().map(|(_, value)| value);
        let key = fields.next()?;
        let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
        Some((key, fields.next().unwrap_or_default()))
    };
    Value::Object(entries.into_iter().filter_map(entry).collect())
}

/// Reads the schema, columns numbered as they come.
struct Schema<'a> {
    next: usize,
    columns: &'a SchemaDescriptor,
}

impl Schema<'_> {
    /// The nodes below a group at these levels of definition and repetition.
    fn fields(&mut self, group: &Type, levels: [i16; 2], depth: usize) -> Result<Vec<(String, Node)>> {
        ensure!(depth < DEPTH, "structures are nested more than {DEPTH} deep");
        let fields = group.get_fields().iter();
        fields.map(|field| Ok((field.name().to_owned(), self.field(field, levels, depth)?))).collect()
    }

    fn field(&mut self, field: &Type, [definition, repetition]: [i16; 2], depth: usize) -> Result<Node> {
        match field.get_basic_info().repetition() {
            Repetition::REQUIRED => self.node(field, [definition, repetition], depth),
            Repetition::OPTIONAL => self.node(field, [definition + 1, repetition], depth),
            // Repeated without a list around it: a list that is always there.
            Repetition::REPEATED => {
                let inner = [definition + 1, repetition + 1];
                let element = Box::new(self.node(field, inner, depth)?);
                Ok(Node::List { there: definition, filled: inner[0], level: inner[1], element, map: false })
            }
        }
    }

    /// A field at the levels it has where it is there.
    fn node(&mut self, field: &Type, levels: [i16; 2], depth: usize) -> Result<Node> {
        if field.is_primitive() {
            let column = self.next;
            self.next += 1;
            ensure!(column < self.columns.num_columns(), "the schema has too few columns");
            return Ok(Node::Leaf { column });
        }
        let info = field.get_basic_info();
        let logical = info.logical_type_ref();
        let list = info.converted_type() == ConvertedType::LIST || logical == Some(&LogicalType::List);
        let map = matches!(info.converted_type(), ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE)
            || logical == Some(&LogicalType::Map);
        let repeated = |inner: &Type| inner.get_basic_info().repetition() == Repetition::REPEATED;
        match field.get_fields() {
            [inner] if (list || map) && repeated(inner) => self.list(field, inner, levels, map, depth),
            [] => bail!("`{}` is a group without fields", field.name()),
            _ => Ok(Node::Group { there: levels[0], fields: self.fields(field, levels, depth + 1)? }),
        }
    }

    fn list(
        &mut self,
        field: &Type,
        inner: &Type,
        [there, repetition]: [i16; 2],
        map: bool,
        depth: usize,
    ) -> Result<Node> {
        ensure!(depth < DEPTH, "lists are nested more than {DEPTH} deep");
        let levels = [there + 1, repetition + 1];
        // Older writers have no group around an element: the format's rules for them go by shape and name.
        let bare = inner.is_primitive()
            || inner.get_fields().len() != 1
            || inner.name() == "array"
            || inner.name() == format!("{}_tuple", field.name());
        let map = map && inner.is_group() && inner.get_fields().len() == 2;
        let element = match bare || map {
            true => self.node(inner, levels, depth + 1)?,
            false => self.field(&inner.get_fields()[0], levels, depth + 1)?,
        };
        Ok(Node::List { there, filled: levels[0], level: levels[1], element: Box::new(element), map })
    }
}
