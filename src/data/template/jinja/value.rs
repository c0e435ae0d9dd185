//! Values of a template as Python has them: types, truth, equality, hashing, and what a JSON value becomes.

use std::{
    cell::RefCell,
    hash::{Hash, Hasher},
    ops::Deref,
    rc::Rc,
    sync::Arc,
};

use indexmap::{Equivalent, IndexMap};
use serde_json::Value as Json;

use super::{
    Fault, Result,
    calls::{Function, Macro},
    iter::Iter,
    loops::LoopState,
    meter::{self, Charge},
};

/// How deep values may nest; Python's own recursion limit stops printing them at about as many.
const DEPTH: usize = 400;
const VALUE_BYTES: usize = 64;

/// Text, with whether it is ASCII, so that most indexing is by bytes.
#[derive(Debug)]
pub struct Text {
    text: Box<str>,
    ascii: bool,
    _charge: Charge,
}

impl Text {
    fn new(text: String) -> Self {
        let ascii = text.is_ascii();
        Self { _charge: Charge::new(text.len() + VALUE_BYTES), text: text.into(), ascii }
    }

    /// Length in code points.
    pub fn count(&self) -> usize {
        if self.ascii { self.text.len() } else { self.text.chars().count() }
    }

    /// The code point at `index`.
    pub fn at(&self, index: usize) -> Option<char> {
        if self.ascii { self.text.as_bytes().get(index).map(|&b| b.into()) } else { self.text.chars().nth(index) }
    }

    /// The byte where code point `index` begins, or the end.
    pub fn byte(&self, index: usize) -> usize {
        if self.ascii {
            return index.min(self.text.len());
        }
        self.text.char_indices().nth(index).map_or(self.text.len(), |(byte, _)| byte)
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// The items of a list or tuple; they never change.
#[derive(Debug)]
pub struct Items {
    items: Vec<Value>,
    depth: usize,
    /// Whether this is a pair of `groupby`, whose items have names.
    pub group: bool,
    _charge: Charge,
}

impl Items {
    fn new(items: Vec<Value>, group: bool) -> Result<Self> {
        let depth = deeper(&items)?;
        Ok(Self { depth, group, _charge: Charge::new(VALUE_BYTES * (items.len() + 1)), items })
    }
}

impl Deref for Items {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.items
    }
}

/// A dictionary in the order of insertion.
#[derive(Debug)]
pub struct Dict {
    map: IndexMap<Key, Value>,
    depth: usize,
    _charge: Charge,
}

impl Deref for Dict {
    type Target = IndexMap<Key, Value>;

    fn deref(&self) -> &IndexMap<Key, Value> {
        &self.map
    }
}

/// `keys()`, `values()` or `items()` of a dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Keys,
    Values,
    Items,
}

/// `range(start, stop, step)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: i128,
    pub stop: i128,
    pub step: i128,
}

impl Range {
    /// How many numbers it has.
    pub fn len(&self) -> i128 {
        let span = if self.step > 0 { self.stop - self.start } else { self.start - self.stop };
        if span <= 0 { 0 } else { (span - 1) / self.step.abs() + 1 }
    }

    /// The number at `index`.
    pub fn at(&self, index: i128) -> Option<i128> {
        (0..self.len()).contains(&index).then(|| self.start + index * self.step)
    }
}

/// `namespace(...)`, the one value that a template can change.
#[derive(Debug, Default)]
pub struct Namespace(pub RefCell<IndexMap<Arc<str>, Value>>);

/// `cycler(...)`: items and the position.
#[derive(Debug)]
pub struct Cycler {
    pub items: Vec<Value>,
    pub at: std::cell::Cell<usize>,
}

/// `joiner(...)`: separator, and whether it was called.
#[derive(Debug)]
pub struct Joiner {
    pub separator: Value,
    pub used: std::cell::Cell<bool>,
}

/// A value of a template.
#[derive(Clone, Debug)]
pub enum Value {
    /// With what is said when it is used.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Arc<Text>),
    /// Text that is marked as safe HTML: it escapes what it is joined with.
    Markup(Arc<Text>),
    List(Rc<Items>),
    Tuple(Rc<Items>),
    Dict(Rc<Dict>),
    View(Rc<Dict>, View),
    Range(Range),
    Iter(Rc<Iter>),
    Namespace(Rc<Namespace>),
    Cycler(Rc<Cycler>),
    Joiner(Rc<Joiner>),
    Loop(Rc<LoopState>),
    Macro(Rc<Macro>),
    Function(Function),
    /// A method that is bound to its object.
    Method(Rc<(Value, Arc<str>)>),
}

impl Value {
    /// Text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Str(Arc::new(Text::new(text.into())))
    }

    /// Text of the same kind as `like`.
    pub fn text_like(like: &Self, text: impl Into<String>) -> Self {
        let text = Arc::new(Text::new(text.into()));
        if matches!(like, Self::Markup(_)) { Self::Markup(text) } else { Self::Str(text) }
    }

    /// Safe HTML.
    pub fn markup(text: impl Into<String>) -> Self {
        Self::Markup(Arc::new(Text::new(text.into())))
    }

    /// A list.
    ///
    /// # Errors
    /// It nests too deep.
    pub fn list(items: Vec<Self>) -> Result<Self> {
        Ok(Self::List(Rc::new(Items::new(items, false)?)))
    }

    /// A tuple.
    ///
    /// # Errors
    /// It nests too deep.
    pub fn tuple(items: Vec<Self>) -> Result<Self> {
        Ok(Self::Tuple(Rc::new(Items::new(items, false)?)))
    }

    /// A pair of `groupby`.
    ///
    /// # Errors
    /// It nests too deep.
    pub fn group(grouper: Self, list: Self) -> Result<Self> {
        Ok(Self::Tuple(Rc::new(Items::new(vec![grouper, list], true)?)))
    }

    /// A dictionary.
    ///
    /// # Errors
    /// It nests too deep.
    pub fn dict(map: IndexMap<Key, Self>) -> Result<Self> {
        let keys = map.keys().map(|key| &key.0);
        let depth = deeper(keys.chain(map.values()))?;
        let charge = Charge::new(2 * VALUE_BYTES * (map.len() + 1));
        Ok(Self::Dict(Rc::new(Dict { map, depth, _charge: charge })))
    }

    /// An undefined value with what is said when it is used.
    pub fn undefined(what: impl Into<Rc<str>>) -> Self {
        Self::Undefined(what.into())
    }

    /// What a JSON value is in Python.
    ///
    /// # Errors
    /// It nests too deep.
    pub fn from_json(json: &Json) -> Result<Self> {
        Ok(match json {
            Json::Null => Self::None,
            Json::Bool(x) => Self::Bool(*x),
            Json::Number(x) => match (x.as_i64(), x.as_u64()) {
                (Some(x), _) => Self::Int(x.into()),
                (_, Some(x)) => Self::Int(x.into()),
                _ => Self::Float(x.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::text(text.as_str()),
            Json::Array(items) => Self::list(items.iter().map(Self::from_json).collect::<Result<_>>()?)?,
            Json::Object(fields) => {
                let pair =
                    |(key, value): (&String, &Json)| Ok((Key(Self::text(key.as_str())), Self::from_json(value)?));
                Self::dict(fields.iter().map(pair).collect::<Result<_>>()?)?
            }
        })
    }

    /// The text of a string.
    pub fn as_text(&self) -> Option<&Arc<Text>> {
        match self {
            Self::Str(text) | Self::Markup(text) => Some(text),
            _ => None,
        }
    }

    /// The integer of an integer or a boolean.
    pub fn as_int(&self) -> Option<i128> {
        match self {
            Self::Bool(x) => Some(i128::from(*x)),
            Self::Int(x) => Some(*x),
            _ => None,
        }
    }

    /// A number as a float.
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            _ => self.as_int().map(|x| x as f64),
        }
    }

    /// Items of a list or tuple.
    pub fn as_items(&self) -> Option<&Rc<Items>> {
        match self {
            Self::List(items) | Self::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// Python's name of the type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Markup(_) => "Markup",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::View(_, View::Keys) => "dict_keys",
            Self::View(_, View::Values) => "dict_values",
            Self::View(_, View::Items) => "dict_items",
            Self::Range(_) => "range",
            Self::Iter(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
            Self::Loop(_) => "LoopContext",
            Self::Macro(_) => "Macro",
            Self::Function(_) => "function",
            Self::Method(_) => "method",
        }
    }

    /// Python's `len`, where the type has one without side effects.
    pub fn len(&self) -> Option<usize> {
        match self {
            Self::Undefined(_) => Some(0),
            Self::Str(text) | Self::Markup(text) => Some(text.count()),
            Self::List(items) | Self::Tuple(items) => Some(items.len()),
            Self::Dict(dict) | Self::View(dict, _) => Some(dict.map.len()),
            Self::Range(range) => usize::try_from(range.len()).ok(),
            _ => None,
        }
    }

    /// Python's `bool`.
    pub fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(x) => *x,
            Self::Int(x) => *x != 0,
            Self::Float(x) => *x != 0.0,
            Self::Str(text) | Self::Markup(text) => !text.is_empty(),
            _ => self.len().is_none_or(|len| len > 0),
        }
    }

    /// The value, or what is said of an undefined one.
    ///
    /// # Errors
    /// It is undefined.
    pub fn defined(&self) -> Result<&Self> {
        match self {
            Self::Undefined(what) => Err(Fault::new(what.to_string())),
            value => Ok(value),
        }
    }

    /// Whether both are one object, where that can be told.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) => true,
            (Self::Bool(a), Self::Bool(b)) => a == b,
            (Self::Int(a), Self::Int(b)) => a == b && (-5..=256).contains(a),
            (Self::Str(a), Self::Str(b)) | (Self::Markup(a), Self::Markup(b)) => {
                Arc::ptr_eq(a, b) || (a.len() < 2 && a.text == b.text)
            }
            (Self::List(a), Self::List(b)) => Rc::ptr_eq(a, b),
            (Self::Tuple(a), Self::Tuple(b)) => Rc::ptr_eq(a, b) || (a.is_empty() && b.is_empty()),
            (Self::Dict(a), Self::Dict(b)) => Rc::ptr_eq(a, b),
            (Self::Undefined(a), Self::Undefined(b)) => Rc::ptr_eq(a, b),
            (Self::Iter(a), Self::Iter(b)) => Rc::ptr_eq(a, b),
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            (Self::Macro(a), Self::Macro(b)) => Rc::ptr_eq(a, b),
            (Self::Loop(a), Self::Loop(b)) => Rc::ptr_eq(a, b),
            (Self::Function(a), Self::Function(b)) => a == b,
            _ => false,
        }
    }

    /// Python's `==`.
    ///
    /// # Errors
    /// The budget is used up.
    pub fn equals(&self, other: &Self) -> Result<bool> {
        meter::spend(1)?;
        Ok(match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Str(a) | Self::Markup(a), Self::Str(b) | Self::Markup(b)) => {
                meter::scan(a.len().min(b.len()))?;
                a.text == b.text
            }
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => all_equal(a, b)?,
            (Self::Dict(a), Self::Dict(b)) => dicts_equal(a, b)?,
            (Self::View(a, View::Keys), Self::View(b, View::Keys)) => {
                a.map.len() == b.map.len() && a.map.keys().all(|key| b.map.contains_key(key))
            }
            (Self::Range(a), Self::Range(b)) => {
                a.len() == b.len() && (a.len() == 0 || (a.start == b.start && (a.len() == 1 || a.step == b.step)))
            }
            (Self::Method(a), Self::Method(b)) => a.1 == b.1 && a.0.is_same(&b.0),
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => match (self.as_number(), other.as_number()) {
                    (Some(a), Some(b)) => a == b,
                    _ => self.is_same(other),
                },
            },
        })
    }
}

fn deeper<'a>(items: impl IntoIterator<Item = &'a Value>) -> Result<usize> {
    let depth = items.into_iter().map(|item| match item {
        Value::List(items) | Value::Tuple(items) => items.depth,
        Value::Dict(dict) | Value::View(dict, _) => dict.depth,
        Value::Iter(iter) => iter.depth,
        Value::Method(method) => deeper([&method.0]).unwrap_or(DEPTH),
        _ => 0,
    });
    let depth = depth.max().unwrap_or(0) + 1;
    if depth > DEPTH { Err(Fault::budget(format!("nests values more than {DEPTH} deep"))) } else { Ok(depth) }
}

/// The depth of a value that holds `value`.
///
/// # Errors
/// It nests too deep.
pub fn depth_over(value: &Value) -> Result<usize> {
    deeper([value])
}

fn all_equal(a: &[Value], b: &[Value]) -> Result<bool> {
    if a.len() != b.len() {
        return Ok(false);
    }
    for (a, b) in a.iter().zip(b) {
        if !a.is_same(b) && !a.equals(b)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn dicts_equal(a: &Dict, b: &Dict) -> Result<bool> {
    if a.map.len() != b.map.len() {
        return Ok(false);
    }
    for (key, value) in &a.map {
        let Some(other) = b.map.get(key) else { return Ok(false) };
        if !value.is_same(other) && !value.equals(other)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A value that can be a key: equal numbers are one key, as in Python.
#[derive(Clone, Debug)]
pub struct Key(Value);

impl Key {
    /// `value` as a key.
    ///
    /// # Errors
    /// It has no hash.
    pub fn new(value: Value) -> Result<Self> {
        hashable(&value)?;
        Ok(Self(value))
    }

    /// The value.
    pub fn value(&self) -> &Value {
        &self.0
    }
}

fn hashable(value: &Value) -> Result<()> {
    meter::spend(1)?;
    match value {
        Value::List(_) | Value::Dict(_) | Value::View(_, View::Keys | View::Items) => {
            Err(Fault::new(format!("unhashable type: '{}'", value.type_name())))
        }
        Value::Tuple(items) => items.iter().try_for_each(hashable),
        Value::Str(text) | Value::Markup(text) => meter::scan(text.len()),
        _ => Ok(()),
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0.is_same(&other.0) || self.0.equals(&other.0).unwrap_or(false)
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        hash(&self.0, state);
    }
}

fn hash<H: Hasher>(value: &Value, state: &mut H) {
    match value {
        Value::Str(text) | Value::Markup(text) => str::hash(text, state),
        Value::Tuple(items) => items.iter().for_each(|item| hash(item, state)),
        Value::Float(x) if x.fract() != 0.0 || x.abs() >= 1e36 => x.to_bits().hash(state),
        Value::Float(x) => (*x as i128).hash(state),
        Value::Bool(_) | Value::Int(_) => value.as_int().unwrap_or(0).hash(state),
        _ => value.type_name().hash(state),
    }
}

/// A string key that is looked up.
pub struct Name<'a>(pub &'a str);

impl Hash for Name<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Equivalent<Key> for Name<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        key.0.as_text().is_some_and(|text| &***text == self.0)
    }
}
