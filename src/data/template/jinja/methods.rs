//! Methods of lists, dictionaries and the other types; those of text are in `strings.rs`.

use indexmap::IndexMap;

use super::{
    Fault, Result,
    calls::{Args, Function, given, integer},
    eval::method,
    iter,
    machine::Machine,
    strings,
    value::{Key, Value, View},
};

pub use strings::{is_lower, is_upper};

const LIST: [&str; 3] = ["copy", "count", "index"];
const DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
/// What would change a list or a dictionary, which templates must not.
const CHANGES: [&str; 8] = ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const DICT_CHANGES: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];
const INT: [&str; 5] = ["as_integer_ratio", "bit_count", "bit_length", "conjugate", "to_bytes"];
const FLOAT: [&str; 4] = ["as_integer_ratio", "conjugate", "hex", "is_integer"];
/// Attributes that Python's objects have and the sandbox hides.
const INTERNAL: [&str; 14] = [
    "__class__",
    "__doc__",
    "__init__",
    "__getattribute__",
    "__getitem__",
    "__len__",
    "__iter__",
    "__str__",
    "__repr__",
    "__eq__",
    "__hash__",
    "__reduce__",
    "__dir__",
    "__format__",
];

/// Whether Python's objects have an attribute of that name that is hidden.
pub fn is_internal(name: &str) -> bool {
    INTERNAL.contains(&name)
}

/// An attribute of the object that Python finds before any item.
pub fn own(value: &Value, name: &str) -> Option<Value> {
    let hidden =
        || Value::undefined(format!("access to attribute '{name}' of '{}' object is not allowed", value.type_name()));
    let has = match value {
        Value::Str(_) | Value::Markup(_) => strings::NAMES.contains(&name),
        Value::List(_) if CHANGES.contains(&name) => return Some(hidden()),
        Value::List(_) => LIST.contains(&name),
        Value::Tuple(_) => LIST[1..].contains(&name),
        Value::Dict(_) if DICT_CHANGES.contains(&name) => return Some(hidden()),
        Value::Dict(_) => DICT.contains(&name),
        Value::Range(range) => match name {
            "start" => return Some(Value::Int(range.start)),
            "stop" => return Some(Value::Int(range.stop)),
            "step" => return Some(Value::Int(range.step)),
            _ => LIST[1..].contains(&name),
        },
        Value::Bool(_) | Value::Int(_) => match name {
            "real" | "numerator" => return value.as_int().map(Value::Int),
            "imag" => return Some(Value::Int(0)),
            "denominator" => return Some(Value::Int(1)),
            _ => INT.contains(&name),
        },
        Value::Float(x) => match name {
            "real" => return Some(Value::Float(*x)),
            "imag" => return Some(Value::Float(0.0)),
            _ => FLOAT.contains(&name),
        },
        Value::Function(Function::Dict) => name == "fromkeys",
        Value::Cycler(_) => ["next", "reset"].contains(&name),
        Value::Joiner(joiner) if name == "sep" => return Some(joiner.separator.clone()),
        _ => false,
    };
    has.then(|| method(value, name))
}

/// Calls a method.
///
/// # Errors
/// The arguments do not fit, or it raises.
pub fn call(machine: &mut Machine, value: &Value, name: &str, args: Args) -> Result<Value> {
    let result = match value {
        Value::Str(text) | Value::Markup(text) => strings::call(machine, value, text, name, args),
        Value::List(_) | Value::Tuple(_) | Value::Range(_) => sequence(machine, value, name, args),
        Value::Dict(_) => dict(machine, value, name, args),
        Value::Function(_) => from_keys(machine, args),
        Value::Loop(state) if name == "cycle" => state.cycle(args),
        Value::Loop(state) => state.changed(args).map(Value::Bool),
        Value::Cycler(cycler) => {
            args.plain::<0>(0)?;
            let at = cycler.at.get();
            cycler.at.set(if name == "next" { (at + 1) % cycler.items.len() } else { 0 });
            Ok(if name == "next" { cycler.items[at].clone() } else { Value::None })
        }
        _ => number(value, name, args),
    };
    result.map_err(|fault| fault.within(&format!("`{name}`")))
}

fn number(value: &Value, name: &str, args: Args) -> Result<Value> {
    args.plain::<0>(0)?;
    match (value, value.as_int(), name) {
        (_, Some(x), "bit_length") => Ok(Value::Int(i128::from(128 - x.unsigned_abs().leading_zeros()))),
        (_, Some(x), "bit_count") => Ok(Value::Int(i128::from(x.unsigned_abs().count_ones()))),
        (_, Some(x), "conjugate") => Ok(Value::Int(x)),
        (_, Some(x), "as_integer_ratio") => Value::tuple(vec![Value::Int(x), Value::Int(1)]),
        (Value::Float(x), _, "conjugate") => Ok(Value::Float(*x)),
        (Value::Float(x), _, "is_integer") => Ok(Value::Bool(x.fract() == 0.0)),
        _ => Err(Fault::new("is not supported")),
    }
}

fn sequence(machine: &mut Machine, value: &Value, name: &str, args: Args) -> Result<Value> {
    if name == "copy" {
        args.plain::<0>(0)?;
        return Ok(value.clone());
    }
    let [wanted, start, stop] = args.plain(1)?;
    let wanted = given(wanted, "value")?;
    let items = iter::items(machine, value)?;
    let mut matches = Vec::new();
    for (i, item) in items.iter().enumerate() {
        if item.is_same(&wanted) || item.equals(&wanted)? {
            matches.push(i as i128);
        }
    }
    if name == "count" {
        return Ok(Value::Int(matches.len() as i128));
    }
    let len = items.len() as i128;
    let bound = |value: Option<Value>, otherwise: i128| match value {
        Some(value) => integer(&value).map(|x| if x < 0 { (x + len).max(0) } else { x }),
        None => Ok(otherwise),
    };
    let range = bound(start, 0)?..bound(stop, len)?;
    let found = matches.into_iter().find(|at| range.contains(at));
    found.map(Value::Int).ok_or_else(|| Fault::new("the value is not there"))
}

fn dict(machine: &mut Machine, value: &Value, name: &str, args: Args) -> Result<Value> {
    let Value::Dict(fields) = value else { return Ok(Value::None) };
    match name {
        "get" => {
            let [key, default] = args.plain(1)?;
            let key = Key::new(given(key, "key")?)?;
            Ok(fields.get(&key).cloned().unwrap_or_else(|| default.unwrap_or(Value::None)))
        }
        "fromkeys" => from_keys(machine, args),
        _ => {
            args.plain::<0>(0)?;
            Ok(match name {
                "keys" => Value::View(fields.clone(), View::Keys),
                "values" => Value::View(fields.clone(), View::Values),
                "items" => Value::View(fields.clone(), View::Items),
                _ => value.clone(),
            })
        }
    }
}

fn from_keys(machine: &mut Machine, args: Args) -> Result<Value> {
    let [keys, value] = args.plain(1)?;
    let value = value.unwrap_or(Value::None);
    let mut map = IndexMap::new();
    for key in iter::items(machine, &given(keys, "keys")?)? {
        map.insert(Key::new(key)?, value.clone());
    }
    Value::dict(map)
}
