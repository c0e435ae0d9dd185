//! Iteration: what Python's `iter` and `next` do, generators included.

use std::{cell::RefCell, fmt, rc::Rc, sync::Arc};

use super::{
    Fault, Result,
    machine::Machine,
    meter,
    value::{Dict, Items, Range, Text, Value, View, depth_over},
};

type Next = Box<dyn FnMut(&mut Machine) -> Result<Option<Value>>>;

/// A generator: it computes its items when they are asked for, once.
pub struct Iter {
    next: RefCell<Option<Next>>,
    /// How deep what it reads is nested.
    pub depth: usize,
}

impl fmt::Debug for Iter {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Iter")
    }
}

impl Iter {
    /// A generator over `of`.
    ///
    /// # Errors
    /// What it reads nests too deep.
    pub fn over(of: &Value, next: impl FnMut(&mut Machine) -> Result<Option<Value>> + 'static) -> Result<Value> {
        let depth = depth_over(of)?;
        Ok(Value::Iter(Rc::new(Self { next: RefCell::new(Some(Box::new(next))), depth })))
    }

    fn next(&self, machine: &mut Machine) -> Result<Option<Value>> {
        let Some(mut next) = self.next.take() else { return Ok(None) };
        let item = next(machine)?;
        if item.is_some() {
            self.next.replace(Some(next));
        }
        Ok(item)
    }
}

/// A place in something that is iterated over.
#[derive(Debug)]
pub enum Source {
    Empty,
    Items(Rc<Items>, usize),
    Backwards(Rc<Items>, usize),
    Chars(Arc<Text>, usize),
    Dict(Rc<Dict>, View, usize),
    Range(Range, i128),
    Iter(Rc<Iter>),
}

impl Source {
    /// Python's `iter`.
    ///
    /// # Errors
    /// The value is not iterable.
    pub fn new(value: &Value) -> Result<Self> {
        Ok(match value {
            Value::Undefined(_) => Self::Empty,
            Value::Str(text) | Value::Markup(text) => Self::Chars(text.clone(), 0),
            Value::List(items) | Value::Tuple(items) => Self::Items(items.clone(), 0),
            Value::Dict(dict) => Self::Dict(dict.clone(), View::Keys, 0),
            Value::View(dict, view) => Self::Dict(dict.clone(), *view, 0),
            Value::Range(range) => Self::Range(*range, 0),
            Value::Iter(iter) => Self::Iter(iter.clone()),
            _ => return Err(Fault::new(format!("'{}' object is not iterable", value.type_name()))),
        })
    }

    /// Python's `next`.
    ///
    /// # Errors
    /// A generator fails, or the budget is used up.
    pub fn next(&mut self, machine: &mut Machine) -> Result<Option<Value>> {
        meter::spend(1)?;
        Ok(match self {
            Self::Empty => None,
            Self::Items(items, at) => {
                *at += 1;
                items.get(*at - 1).cloned()
            }
            Self::Backwards(items, left) => {
                let at = left.checked_sub(1);
                *left = at.unwrap_or(0);
                at.and_then(|at| items.get(at).cloned())
            }
            Self::Chars(text, at) => {
                let c = text[*at..].chars().next();
                *at += c.map_or(0, char::len_utf8);
                c.map(Value::text)
            }
            Self::Dict(dict, view, at) => {
                *at += 1;
                let Some((key, value)) = dict.get_index(*at - 1) else { return Ok(None) };
                Some(match view {
                    View::Keys => key.value().clone(),
                    View::Values => value.clone(),
                    View::Items => Value::tuple(vec![key.value().clone(), value.clone()])?,
                })
            }
            Self::Range(range, at) => {
                *at += 1;
                range.at(*at - 1).map(Value::Int)
            }
            Self::Iter(iter) => iter.clone().next(machine)?,
        })
    }

    /// All items that are left.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn rest(mut self, machine: &mut Machine) -> Result<Vec<Value>> {
        let mut items = Vec::new();
        while let Some(item) = self.next(machine)? {
            items.push(item);
            if items.len().is_multiple_of(1024) {
                meter::room(items.len() * size_of::<Value>())?;
            }
        }
        Ok(items)
    }
}

/// All items of a value.
///
/// # Errors
/// The value is not iterable, or as [`Source::next`].
pub fn items(machine: &mut Machine, value: &Value) -> Result<Vec<Value>> {
    Source::new(value)?.rest(machine)
}
