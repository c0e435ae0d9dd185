//! Python's operators: arithmetic, comparisons, membership and slices.

use std::cmp::Ordering;

use super::{
    Fault, Result,
    ast::{Cmp, Op},
    format, iter,
    machine::Machine,
    meter,
    text::{self, escape, escaped},
    value::{Key, Range, Value, View},
};

fn unsupported(op: &str, a: &Value, b: &Value) -> Fault {
    Fault::new(format!("unsupported operand types for {op}: '{}' and '{}'", a.type_name(), b.type_name()))
}

fn too_large() -> Fault {
    Fault::new("an integer has more than 127 bits")
}

/// `a op b`.
///
/// # Errors
/// Python raises for these types or values.
pub fn binary(op: Op, a: &Value, b: &Value) -> Result<Value> {
    meter::spend(1)?;
    if op == Op::Mod && a.as_text().is_some() {
        return format::percent(a, b);
    }
    let (a, b) = (a.defined()?, b.defined()?);
    match op {
        Op::Add if a.as_number().is_none() => add(a, b),
        Op::Mul if a.as_number().is_none() || b.as_number().is_none() => repeat(a, b),
        _ => match (a.as_int(), b.as_int()) {
            (Some(x), Some(y)) => integers(op, x, y),
            _ => match (a.as_number(), b.as_number()) {
                (Some(x), Some(y)) => floats(op, x, y),
                _ => Err(unsupported(symbol(op), a, b)),
            },
        },
    }
}

fn symbol(op: Op) -> &'static str {
    match op {
        Op::Add => "+",
        Op::Sub => "-",
        Op::Mul => "*",
        Op::Div => "/",
        Op::FloorDiv => "//",
        Op::Mod => "%",
        Op::Pow => "**",
    }
}

fn integers(op: Op, a: i128, b: i128) -> Result<Value> {
    let zero = || if b == 0 { Err(Fault::new("division by zero")) } else { Ok(()) };
    let number = match op {
        Op::Add => a.checked_add(b),
        Op::Sub => a.checked_sub(b),
        Op::Mul => a.checked_mul(b),
        Op::Div => {
            zero()?;
            return Ok(Value::Float(a as f64 / b as f64));
        }
        Op::FloorDiv => {
            zero()?;
            let quotient = a.checked_div(b).ok_or_else(too_large)?;
            Some(if a % b != 0 && (a < 0) != (b < 0) { quotient - 1 } else { quotient })
        }
        Op::Mod => {
            zero()?;
            let rest = a.checked_rem(b).ok_or_else(too_large)?;
            Some(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
        }
        Op::Pow if b < 0 => return floats(op, a as f64, b as f64),
        Op::Pow => match a {
            0 | 1 => Some(if b == 0 { 1 } else { a }),
            -1 => Some(if b % 2 == 0 { 1 } else { -1 }),
            _ => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
        },
    };
    number.map(Value::Int).ok_or_else(too_large)
}

fn floats(op: Op, a: f64, b: f64) -> Result<Value> {
    if b == 0.0 && matches!(op, Op::Div | Op::FloorDiv | Op::Mod) || (op == Op::Pow && a == 0.0 && b < 0.0) {
        return Err(Fault::new("division by zero"));
    }
    let number = match op {
        Op::Add => a + b,
        Op::Sub => a - b,
        Op::Mul => a * b,
        Op::Div => a / b,
        Op::FloorDiv => floor_div(a, b),
        Op::Mod => modulo(a, b),
        Op::Pow => {
            let power = a.powf(b);
            if power.is_nan() && !a.is_nan() && !b.is_nan() {
                return Err(Fault::new("a power of a negative number is complex"));
            }
            if power.is_infinite() && a.is_finite() && b.is_finite() {
                return Err(Fault::new("a power is too large"));
            }
            power
        }
    };
    Ok(Value::Float(number))
}

fn modulo(a: f64, b: f64) -> f64 {
    let rest = a % b;
    if rest == 0.0 {
        0f64.copysign(b)
    } else if (b < 0.0) == (rest < 0.0) {
        rest
    } else {
        rest + b
    }
}

/// As CPython's `float_divmod`.
fn floor_div(a: f64, b: f64) -> f64 {
    let mut quotient = (a - a % b) / b;
    if a % b != 0.0 && (b < 0.0) != (a % b < 0.0) {
        quotient -= 1.0;
    }
    if quotient == 0.0 {
        return 0f64.copysign(a / b);
    }
    let floor = quotient.floor();
    if quotient - floor > 0.5 { floor + 1.0 } else { floor }
}

fn add(a: &Value, b: &Value) -> Result<Value> {
    match (a, b) {
        (Value::Markup(_), _) | (_, Value::Markup(_)) if a.as_text().is_some() && b.as_text().is_some() => {
            Ok(Value::markup(escaped(a)? + &escaped(b)?))
        }
        (Value::Str(x), Value::Str(y)) => {
            meter::room(x.len() + y.len())?;
            Ok(Value::text([&***x, &***y].concat()))
        }
        (Value::List(x), Value::List(y)) => {
            meter::room((x.len() + y.len()) * size_of::<Value>())?;
            meter::spend(x.len() + y.len())?;
            Value::list([&***x, &***y].concat())
        }
        (Value::Tuple(x), Value::Tuple(y)) => {
            meter::room((x.len() + y.len()) * size_of::<Value>())?;
            meter::spend(x.len() + y.len())?;
            Value::tuple([&***x, &***y].concat())
        }
        (Value::Str(_), _) => Err(Fault::new(format!("can only concatenate text to text, found '{}'", b.type_name()))),
        _ => Err(unsupported("+", a, b)),
    }
}

/// A sequence times an integer.
fn repeat(a: &Value, b: &Value) -> Result<Value> {
    let (sequence, times) = if b.as_int().is_some() { (a, b) } else { (b, a) };
    let Some(times) = times.as_int() else { return Err(unsupported("*", a, b)) };
    let times = usize::try_from(times.max(0)).map_err(|_| too_large())?;
    match sequence {
        Value::Str(text) | Value::Markup(text) => {
            meter::room(text.len().saturating_mul(times))?;
            Ok(Value::text_like(sequence, text.repeat(times)))
        }
        Value::List(items) | Value::Tuple(items) => {
            let count = items.len().saturating_mul(times);
            meter::room(count.saturating_mul(size_of::<Value>()))?;
            meter::spend(count)?;
            let items: Vec<_> = (0..times).flat_map(|_| items.iter().cloned()).collect();
            if matches!(sequence, Value::List(_)) { Value::list(items) } else { Value::tuple(items) }
        }
        _ => Err(unsupported("*", a, b)),
    }
}

/// `-a`, or `+a`.
///
/// # Errors
/// It is no number.
pub fn sign(value: &Value, negative: bool) -> Result<Value> {
    let value = value.defined()?;
    match (value.as_int(), value) {
        (Some(x), _) => Ok(Value::Int(if negative { x.checked_neg().ok_or_else(too_large)? } else { x })),
        (_, Value::Float(x)) => Ok(Value::Float(if negative { -x } else { *x })),
        _ => Err(Fault::new(format!("bad operand type for a sign: '{}'", value.type_name()))),
    }
}

/// `a cmp b`.
///
/// # Errors
/// Python raises for these types.
pub fn compare(machine: &mut Machine, cmp: Cmp, a: &Value, b: &Value) -> Result<bool> {
    match cmp {
        Cmp::Eq => a.equals(b),
        Cmp::Ne => Ok(!a.equals(b)?),
        Cmp::In => contains(machine, b, a),
        Cmp::NotIn => Ok(!contains(machine, b, a)?),
        Cmp::Lt => Ok(order(a, b, "<")? == Some(Ordering::Less)),
        Cmp::Gt => Ok(order(a, b, ">")? == Some(Ordering::Greater)),
        Cmp::Le => Ok(matches!(order(a, b, "<=")?, Some(Ordering::Less | Ordering::Equal))),
        Cmp::Ge => Ok(matches!(order(a, b, ">=")?, Some(Ordering::Greater | Ordering::Equal))),
    }
}

/// How two values are ordered; `None` where a NaN is in the way.
///
/// # Errors
/// Python does not order these types.
pub fn order(a: &Value, b: &Value, op: &str) -> Result<Option<Ordering>> {
    meter::spend(1)?;
    let (a, b) = (a.defined()?, b.defined()?);
    match (a, b) {
        (Value::Str(x) | Value::Markup(x), Value::Str(y) | Value::Markup(y)) => {
            meter::scan(x.len().min(y.len()))?;
            Ok(Some((**x).cmp(&**y)))
        }
        (Value::List(x), Value::List(y)) | (Value::Tuple(x), Value::Tuple(y)) => {
            for (x, y) in x.iter().zip(y.iter()) {
                if !x.is_same(y) && !x.equals(y)? {
                    return order(x, y, op);
                }
            }
            Ok(Some(x.len().cmp(&y.len())))
        }
        _ => match (a.as_int(), b.as_int(), a.as_number(), b.as_number()) {
            (Some(x), Some(y), ..) => Ok(Some(x.cmp(&y))),
            (.., Some(x), Some(y)) => Ok(x.partial_cmp(&y)),
            _ => {
                Err(Fault::new(format!("'{op}' is not supported between '{}' and '{}'", a.type_name(), b.type_name())))
            }
        },
    }
}

/// `value in container`.
///
/// # Errors
/// The container has no members, or text is searched for no text.
pub fn contains(machine: &mut Machine, container: &Value, value: &Value) -> Result<bool> {
    match container {
        Value::Str(text) | Value::Markup(text) => {
            let Some(part) = value.as_text() else {
                return Err(Fault::new(format!("'in' needs text on its left, found '{}'", value.type_name())));
            };
            meter::scan(text.len())?;
            Ok(text.contains(&***part))
        }
        Value::Dict(dict) | Value::View(dict, View::Keys) => Ok(dict.contains_key(&Key::new(value.clone())?)),
        Value::Range(range) => Ok(match value.as_int() {
            Some(x) => in_range(*range, x),
            None => value.as_number().is_some_and(|x| x.fract() == 0.0 && in_range(*range, x as i128)),
        }),
        _ => {
            let mut source = iter::Source::new(container)?;
            while let Some(item) = source.next(machine)? {
                if item.is_same(value) || item.equals(value)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

fn in_range(range: Range, x: i128) -> bool {
    (x - range.start) % range.step == 0 && (0..range.len()).contains(&((x - range.start) / range.step))
}

/// `value[start:stop:step]`.
///
/// # Errors
/// The value has no slices, or a bound is no integer.
pub fn slice(value: &Value, bounds: &[Value; 3]) -> Result<Value> {
    let value = value.defined()?;
    let [start, stop, step] = bounds;
    let Some(len) = value.len().filter(|_| !matches!(value, Value::Dict(_) | Value::View(..))) else {
        return Err(Fault::new(format!("'{}' object has no slices", value.type_name())));
    };
    let step = bound(step)?.unwrap_or(1);
    if step == 0 {
        return Err(Fault::new("slice step cannot be zero"));
    }
    let len = len as i128;
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |x: i128| if x < 0 { (x + len).max(low) } else { x.min(high) };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    let start = bound(start)?.map_or(first, clamp);
    let stop = bound(stop)?.map_or(last, clamp);
    let range = Range { start, stop, step };
    meter::spend(usize::try_from(range.len()).unwrap_or(usize::MAX) / 16)?;
    match value {
        Value::Str(text) | Value::Markup(text) => {
            meter::scan(text.len())?;
            Ok(Value::text_like(value, slice_text(text, range)))
        }
        Value::Range(of) => Ok(Value::Range(Range {
            start: of.start + start * of.step,
            stop: of.start + stop * of.step,
            step: of.step * step,
        })),
        _ => {
            let Some(items) = value.as_items() else { return Err(Fault::new("no slices")) };
            let picked = (0..range.len()).filter_map(|i| range.at(i)).filter_map(|i| usize::try_from(i).ok());
            let picked = picked.filter_map(|i| items.get(i).cloned()).collect();
            if matches!(value, Value::List(_)) { Value::list(picked) } else { Value::tuple(picked) }
        }
    }
}

fn slice_text(text: &super::value::Text, range: Range) -> String {
    let index = |i: i128| usize::try_from(i.max(0)).unwrap_or(usize::MAX);
    if range.step == 1 {
        let (from, to) = (text.byte(index(range.start)), text.byte(index(range.stop)));
        return text.get(from..to).unwrap_or_default().into();
    }
    let chars: Vec<char> = text.chars().collect();
    (0..range.len()).filter_map(|i| range.at(i)).filter_map(|i| chars.get(index(i))).collect()
}

fn bound(value: &Value) -> Result<Option<i128>> {
    match (value, value.as_int()) {
        (Value::None, _) => Ok(None),
        (_, Some(x)) => Ok(Some(x)),
        _ => Err(Fault::new(format!("slice indices must be integers, found '{}'", value.type_name()))),
    }
}

/// The values of `~`, one behind the other.
///
/// # Errors
/// One has no text.
pub fn concat(values: &[Value]) -> Result<Value> {
    let mut out = String::new();
    for value in values {
        text::write_str(&mut out, value)?;
    }
    Ok(Value::text(out))
}

/// Texts joined by `separator`, escaped where the separator is safe HTML.
///
/// # Errors
/// The result does not fit the budget.
pub fn join(separator: &Value, parts: &[Value]) -> Result<Value> {
    let markup = matches!(separator, Value::Markup(_));
    let between = separator.as_text().map_or("", |text| &***text);
    let mut out = String::new();
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            meter::room(out.len() + between.len())?;
            out.push_str(between);
        }
        if markup && !matches!(part, Value::Markup(_)) {
            out.push_str(&escape(&text::str(part)?));
        } else {
            text::write_str(&mut out, part)?;
        }
        meter::spend(1)?;
        meter::room(out.len())?;
    }
    Ok(Value::text_like(separator, out))
}
