//! Filters of sequences. Those that are generators in Jinja2 are lazy: what nobody reads raises nothing.

use std::cmp::Ordering;

use super::{
    Fault, Result,
    ast::Op,
    calls::{Args, given, length},
    checks,
    eval::item,
    filters::{self, count, folded},
    iter::{Iter, Source, items},
    machine::Machine,
    meter, ops,
    value::{Key, Value, View},
};

/// `value` through the filter of that name.
///
/// # Errors
/// It raises for these values.
pub fn apply(machine: &mut Machine, name: &str, value: Value, args: Args) -> Result<Value> {
    match name {
        "map" => map(&value, args),
        "select" | "reject" | "selectattr" | "rejectattr" => select(name, &value, args),
        "join" => {
            let [separator, attribute] = args.bind(["d", "attribute"])?;
            let mut values = items(machine, &value)?;
            if let Some(getter) = Getter::new(attribute)? {
                values = values.into_iter().map(|value| getter.get(machine, value)).collect::<Result<_>>()?;
            }
            filters::join(&separator.unwrap_or_else(|| Value::text("")), &values)
        }
        "sort" => sort(machine, &value, args),
        "dictsort" => dict_sort(&value, args),
        "unique" => unique(&value, args),
        "groupby" => group_by(machine, &value, args),
        "min" | "max" => extreme(machine, name == "max", &value, args),
        "sum" => sum(machine, &value, args),
        "batch" => batch(&value, args),
        "slice" => slices(&value, args),
        _ => {
            args.plain::<0>(0)?;
            simple(machine, name, &value)
        }
    }
}

fn simple(machine: &mut Machine, name: &str, value: &Value) -> Result<Value> {
    match name {
        "length" | "count" => count(machine, value),
        "list" => Value::list(items(machine, value)?),
        "items" => match value {
            Value::Undefined(_) => Iter::over(value, |_| Ok(None)),
            Value::Dict(fields) => {
                let mut source = Source::new(&Value::View(fields.clone(), View::Items))?;
                Iter::over(value, move |machine| source.next(machine))
            }
            // Raised when it is read, as by a generator.
            _ => Iter::over(value, |_| Err(Fault::new("needs a mapping"))),
        },
        "first" => {
            let first = Source::new(value)?.next(machine)?;
            Ok(first.unwrap_or_else(|| Value::undefined("no first item, the sequence was empty")))
        }
        "last" => {
            let mut source = backwards(machine, value)?;
            let last = source.next(machine)?;
            Ok(last.unwrap_or_else(|| Value::undefined("no last item, the sequence was empty")))
        }
        _ => reverse(machine, value),
    }
}

/// Python's `reversed`.
fn backwards(machine: &mut Machine, value: &Value) -> Result<Source> {
    match value {
        Value::Iter(_) => Err(Fault::new("a generator cannot be read backwards")),
        Value::List(items) | Value::Tuple(items) => Ok(Source::Backwards(items.clone(), items.len())),
        _ => {
            let items = items(machine, value)?;
            let Value::List(items) = Value::list(items)? else { return Ok(Source::Empty) };
            let len = items.len();
            Ok(Source::Backwards(items, len))
        }
    }
}

fn reverse(machine: &mut Machine, value: &Value) -> Result<Value> {
    if let Some(text) = value.as_text() {
        return Ok(Value::text_like(value, text.chars().rev().collect::<String>()));
    }
    if let Value::Iter(_) = value {
        let mut all = items(machine, value)?;
        all.reverse();
        return Value::list(all);
    }
    let mut source = backwards(machine, value)?;
    Iter::over(value, move |machine| source.next(machine))
}

/// What an `attribute` argument picks of an item.
struct Getter {
    parts: Vec<Value>,
    default: Option<Value>,
    fold: bool,
}

impl Getter {
    fn new(attribute: Option<Value>) -> Result<Option<Self>> {
        let parts = match attribute {
            None | Some(Value::None) => return Ok(None),
            Some(value) => parts(&value),
        };
        Ok(Some(Self { parts, default: None, fold: false }))
    }

    fn key(attribute: Option<Value>, case_sensitive: Option<Value>) -> Result<Self> {
        let fold = !case_sensitive.is_some_and(|value| value.is_true());
        let getter = Self::new(attribute)?.unwrap_or(Self { parts: Vec::new(), default: None, fold });
        Ok(Self { fold, ..getter })
    }

    fn get(&self, machine: &mut Machine, value: Value) -> Result<Value> {
        let mut found = value;
        for part in &self.parts {
            found = item(machine, &found, part)?;
            if let (Some(default), Value::Undefined(_)) = (&self.default, &found) {
                found = default.clone();
            }
        }
        Ok(if self.fold { folded(found) } else { found })
    }
}

fn parts(value: &Value) -> Vec<Value> {
    let Some(text) = value.as_text() else { return vec![value.clone()] };
    let part = |part: &str| match part.parse::<i128>() {
        Ok(index) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(index),
        _ => Value::text(part),
    };
    text.split('.').map(part).collect()
}

fn map(value: &Value, mut args: Args) -> Result<Value> {
    let mut source = None;
    let of = value.clone();
    let attribute = args.positional.is_empty() && args.named.iter().any(|(name, _)| &**name == "attribute");
    let name = if attribute || args.positional.is_empty() { None } else { Some(args.positional.remove(0)) };
    Iter::over(value, move |machine| {
        if !of.is_true() {
            return Ok(None);
        }
        if source.is_none() {
            if !attribute && name.is_none() {
                return Err(Fault::new("needs the name of a filter"));
            }
            source = Some(Source::new(&of)?);
        }
        let Some(item) = source.as_mut().map_or(Ok(None), |source| source.next(machine))? else { return Ok(None) };
        let Some(name) = &name else {
            let [attribute, default] = args.clone().bind(["attribute", "default"])?;
            let Some(mut getter) = Getter::new(attribute)? else { return Ok(Some(item)) };
            getter.default = default.filter(|value| !matches!(value, Value::None));
            return getter.get(machine, item).map(Some);
        };
        let Some(name) = name.as_text() else { return Err(Fault::new("the name of a filter is no text")) };
        filters::apply(machine, name, item, args.clone()).map(Some)
    })
}

fn select(kind: &str, value: &Value, args: Args) -> Result<Value> {
    let wanted = kind.starts_with("select");
    let by_attribute = kind.ends_with("attr");
    let Args { mut positional, named } = args;
    let attribute = (by_attribute && !positional.is_empty()).then(|| positional.remove(0));
    let test = (!positional.is_empty()).then(|| positional.remove(0));
    let args = Args { positional, named };
    let of = value.clone();
    let mut source = None;
    Iter::over(value, move |machine| {
        if !of.is_true() {
            return Ok(None);
        }
        if source.is_none() {
            if by_attribute && attribute.is_none() {
                return Err(Fault::new("needs the name of an attribute"));
            }
            source = Some(Source::new(&of)?);
        }
        let getter = Getter::new(attribute.clone())?;
        while let Some(item) = source.as_mut().map_or(Ok(None), |source| source.next(machine))? {
            let picked = match &getter {
                Some(getter) => getter.get(machine, item.clone())?,
                None => item.clone(),
            };
            let passes = match test.as_ref().map(Value::as_text) {
                None => picked.is_true(),
                Some(Some(name)) => checks::apply(machine, name, &picked, args.clone())?,
                Some(None) => return Err(Fault::new("the name of a test is no text")),
            };
            if passes == wanted {
                return Ok(Some(item));
            }
        }
        Ok(None)
    })
}

/// The order in which `keys` are sorted: stable, by `less` alone.
///
/// # Errors
/// `less` fails.
pub fn sorted(keys: Vec<Value>, mut less: impl FnMut(&Value, &Value) -> Result<bool>) -> Result<Vec<usize>> {
    let mut order: Vec<usize> = (0..keys.len()).collect();
    let mut width = 1;
    while width < order.len() {
        let mut merged = Vec::with_capacity(order.len());
        for pair in order.chunks(2 * width) {
            let (mut left, mut right) = pair.split_at(width.min(pair.len()));
            while let (Some((&a, more_left)), Some((&b, more_right))) = (left.split_first(), right.split_first()) {
                if less(&keys[b], &keys[a])? {
                    merged.push(b);
                    right = more_right;
                } else {
                    merged.push(a);
                    left = more_left;
                }
            }
            merged.extend_from_slice(left);
            merged.extend_from_slice(right);
        }
        order = merged;
        width *= 2;
    }
    Ok(order)
}

fn is_less(a: &Value, b: &Value) -> Result<bool> {
    Ok(ops::order(a, b, "<")? == Some(Ordering::Less))
}

/// `values` by `keys`; backwards, equal ones keep their order.
fn sort_by(values: Vec<Value>, keys: Vec<Value>, reverse: bool) -> Result<Vec<Value>> {
    meter::room(2 * values.len() * size_of::<Value>())?;
    let order = sorted(keys, |a, b| if reverse { is_less(b, a) } else { is_less(a, b) })?;
    Ok(order.into_iter().map(|at| values[at].clone()).collect())
}

fn sort(machine: &mut Machine, value: &Value, args: Args) -> Result<Value> {
    let [reverse, case_sensitive, attribute] = args.bind(["reverse", "case_sensitive", "attribute"])?;
    let fold = !case_sensitive.is_some_and(|value| value.is_true());
    let paths: Vec<Vec<Value>> = match &attribute {
        None | Some(Value::None) => vec![Vec::new()],
        Some(value) => match value.as_text() {
            Some(text) => text.split(',').map(|path| parts(&Value::text(path))).collect(),
            None => vec![vec![value.clone()]],
        },
    };
    let getters: Vec<_> = paths.into_iter().map(|parts| Getter { parts, default: None, fold }).collect();
    let values = items(machine, value)?;
    let mut keys = Vec::with_capacity(values.len());
    for value in &values {
        let key = getters.iter().map(|getter| getter.get(machine, value.clone())).collect::<Result<_>>()?;
        keys.push(Value::list(key)?);
    }
    Value::list(sort_by(values, keys, reverse.is_some_and(|reverse| reverse.is_true()))?)
}

fn dict_sort(value: &Value, args: Args) -> Result<Value> {
    let [case_sensitive, by, reverse] = args.bind(["case_sensitive", "by", "reverse"])?;
    let fold = !case_sensitive.is_some_and(|value| value.is_true());
    let by = by.as_ref().map_or_else(|| Ok("key".into()), super::text::str)?;
    if !["key", "value"].contains(&by.as_str()) {
        return Err(Fault::new("sorts by `key` or `value`"));
    }
    let Value::Dict(fields) = value.defined()? else { return Err(Fault::new("needs a mapping")) };
    let (mut pairs, mut keys) = (Vec::new(), Vec::new());
    for (key, value) in fields.iter() {
        let picked = if by == "key" { key.value() } else { value }.clone();
        keys.push(if fold { folded(picked) } else { picked });
        pairs.push(Value::tuple(vec![key.value().clone(), value.clone()])?);
    }
    Value::list(sort_by(pairs, keys, reverse.is_some_and(|reverse| reverse.is_true()))?)
}

fn unique(value: &Value, args: Args) -> Result<Value> {
    let [case_sensitive, attribute] = args.bind(["case_sensitive", "attribute"])?;
    let getter = Getter::key(attribute, case_sensitive)?;
    let of = value.clone();
    let mut source = None;
    let mut seen = indexmap::IndexSet::new();
    Iter::over(value, move |machine| {
        if source.is_none() {
            source = Some(Source::new(&of)?);
        }
        while let Some(item) = source.as_mut().map_or(Ok(None), |source| source.next(machine))? {
            if seen.insert(Key::new(getter.get(machine, item.clone())?)?) {
                return Ok(Some(item));
            }
        }
        Ok(None)
    })
}

fn group_by(machine: &mut Machine, value: &Value, args: Args) -> Result<Value> {
    let [attribute, default, case_sensitive] = args.bind(["attribute", "default", "case_sensitive"])?;
    let mut getter = Getter::key(Some(given(attribute, "attribute")?), case_sensitive)?;
    getter.default = default.filter(|value| !matches!(value, Value::None));
    let values = items(machine, value)?;
    let keys = values.iter().map(|value| getter.get(machine, value.clone())).collect::<Result<Vec<_>>>()?;
    let order = sorted(keys.clone(), is_less)?;
    let mut groups: Vec<(usize, Vec<Value>)> = Vec::new();
    for at in order {
        match groups.last_mut() {
            Some((first, group)) if keys[*first].equals(&keys[at])? => group.push(values[at].clone()),
            _ => groups.push((at, vec![values[at].clone()])),
        }
    }
    let shown = Getter { fold: false, ..getter };
    let mut out = Vec::with_capacity(groups.len());
    for (first, group) in groups {
        let key = shown.get(machine, values[first].clone())?;
        out.push(Value::group(key, Value::list(group)?)?);
    }
    Value::list(out)
}

fn extreme(machine: &mut Machine, largest: bool, value: &Value, args: Args) -> Result<Value> {
    let [case_sensitive, attribute] = args.bind(["case_sensitive", "attribute"])?;
    let getter = Getter::key(attribute, case_sensitive)?;
    let mut best: Option<(Value, Value)> = None;
    for value in items(machine, value)? {
        let key = getter.get(machine, value.clone())?;
        let better = match &best {
            None => true,
            Some((_, old)) if largest => ops::order(&key, old, ">")? == Some(Ordering::Greater),
            Some((_, old)) => is_less(&key, old)?,
        };
        if better {
            best = Some((value, key));
        }
    }
    Ok(best.map_or_else(|| Value::undefined("no aggregated item, the sequence was empty"), |(value, _)| value))
}

fn sum(machine: &mut Machine, value: &Value, args: Args) -> Result<Value> {
    let [attribute, start] = args.bind(["attribute", "start"])?;
    let getter = Getter::new(attribute)?;
    let mut total = start.unwrap_or(Value::Int(0));
    if total.as_text().is_some() {
        return Err(Fault::new("texts are joined, not summed"));
    }
    for value in items(machine, value)? {
        let value = match &getter {
            Some(getter) => getter.get(machine, value)?,
            None => value,
        };
        total = ops::binary(Op::Add, &total, &value)?;
    }
    Ok(total)
}

/// A generator whose items are computed together, when the first is asked for.
fn together(of: &Value, make: impl FnOnce(Vec<Value>) -> Result<Vec<Value>> + 'static) -> Result<Value> {
    let value = of.clone();
    let mut make = Some(make);
    let mut made: Option<Source> = None;
    Iter::over(of, move |machine| {
        if let Some(make) = make.take() {
            made = Some(Source::new(&Value::list(make(items(machine, &value)?)?)?)?);
        }
        made.as_mut().map_or(Ok(None), |made| made.next(machine))
    })
}

fn batch(value: &Value, args: Args) -> Result<Value> {
    let [size, fill] = args.bind(["linecount", "fill_with"])?;
    let size = length(&given(size, "linecount")?)?;
    together(value, move |values| {
        let chunks = values.chunks(size.max(1)).map(|chunk| {
            let mut chunk = chunk.to_vec();
            if let Some(fill) = fill.as_ref().filter(|fill| !matches!(fill, Value::None)) {
                let missing = size.saturating_sub(chunk.len());
                meter::room(missing.saturating_mul(size_of::<Value>()))?;
                chunk.resize(chunk.len() + missing, fill.clone());
            }
            Value::list(chunk)
        });
        chunks.collect()
    })
}

fn slices(value: &Value, args: Args) -> Result<Value> {
    let [count, fill] = args.bind(["slices", "fill_with"])?;
    let count = length(&given(count, "slices")?)?;
    together(value, move |values| {
        if count == 0 {
            return Err(Fault::new("slices: division by zero"));
        }
        meter::room(count.saturating_mul(size_of::<Value>()))?;
        let (size, more) = (values.len() / count, values.len() % count);
        let mut rest = &values[..];
        let slices = (0..count).map(|i| {
            let (slice, after) = rest.split_at(size + usize::from(i < more));
            rest = after;
            let mut slice = slice.to_vec();
            slice.extend(fill.clone().filter(|fill| i >= more && !matches!(fill, Value::None)));
            Value::list(slice)
        });
        slices.collect()
    })
}
