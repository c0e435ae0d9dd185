//! Tests: what stands behind `is`.

use super::{
    Fault, Result,
    ast::{Cmp, Op},
    calls::{Args, given},
    filters,
    machine::Machine,
    methods, ops,
    text::str,
    value::{Key, Value},
};

/// Names of all tests.
pub const NAMES: [&str; 39] = [
    "odd",
    "even",
    "divisibleby",
    "defined",
    "undefined",
    "filter",
    "test",
    "none",
    "boolean",
    "false",
    "true",
    "integer",
    "float",
    "lower",
    "upper",
    "string",
    "mapping",
    "number",
    "sequence",
    "iterable",
    "callable",
    "sameas",
    "escaped",
    "in",
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    "ge",
    ">=",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
];

/// Whether `value` passes the test of that name.
///
/// # Errors
/// There is no such test, or it raises for these values.
pub fn apply(machine: &mut Machine, name: &str, value: &Value, args: Args) -> Result<bool> {
    let found = match comparison(name) {
        Some(cmp) => {
            let [other] = args.plain(1)?;
            ops::compare(machine, cmp, value, &given(other, "other")?)
        }
        None => plain(machine, name, value, args),
    };
    found.map_err(|fault| fault.within(&format!("test `{name}`")))
}

fn comparison(name: &str) -> Option<Cmp> {
    Some(match name {
        "==" | "eq" | "equalto" => Cmp::Eq,
        "!=" | "ne" => Cmp::Ne,
        ">" | "gt" | "greaterthan" => Cmp::Gt,
        ">=" | "ge" => Cmp::Ge,
        "<" | "lt" | "lessthan" => Cmp::Lt,
        "<=" | "le" => Cmp::Le,
        _ => return None,
    })
}

fn plain(machine: &mut Machine, name: &str, value: &Value, args: Args) -> Result<bool> {
    match name {
        "divisibleby" => {
            let [number] = args.bind(["num"])?;
            return modulo(value, &given(number, "num")?, 0);
        }
        "sameas" => {
            let [other] = args.bind(["other"])?;
            return Ok(value.is_same(&given(other, "other")?));
        }
        "in" => {
            let [container] = args.bind(["seq"])?;
            return ops::contains(machine, &given(container, "seq")?, value);
        }
        _ => args.plain::<0>(0)?,
    };
    Ok(match name {
        "odd" => modulo(value, &Value::Int(2), 1)?,
        "even" => modulo(value, &Value::Int(2), 0)?,
        "filter" => names(value, &filters::NAMES)?,
        "test" => names(value, &NAMES)?,
        "lower" => methods::is_lower(&str(value)?),
        "upper" => methods::is_upper(&str(value)?),
        _ => return kind(name, value),
    })
}

fn kind(name: &str, value: &Value) -> Result<bool> {
    Ok(match name {
        "defined" => !matches!(value, Value::Undefined(_)),
        "undefined" => matches!(value, Value::Undefined(_)),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "false" => matches!(value, Value::Bool(false)),
        "true" => matches!(value, Value::Bool(true)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "string" => value.as_text().is_some(),
        "mapping" => matches!(value, Value::Dict(_)),
        "number" => value.as_number().is_some(),
        "sequence" => value.len().is_some() && !matches!(value, Value::View(..)),
        "iterable" => value.len().is_some() || matches!(value, Value::Iter(_) | Value::Loop(_)),
        "callable" => matches!(
            value,
            Value::Undefined(_)
                | Value::Function(_)
                | Value::Method(_)
                | Value::Macro(_)
                | Value::Loop(_)
                | Value::Joiner(_)
        ),
        "escaped" => matches!(value, Value::Markup(_)),
        _ => return Err(Fault::new("is not known")),
    })
}

fn names(value: &Value, names: &[&str]) -> Result<bool> {
    Key::new(value.clone())?;
    Ok(value.as_text().is_some_and(|text| names.contains(&&***text)))
}

fn modulo(value: &Value, number: &Value, rest: i128) -> Result<bool> {
    ops::binary(Op::Mod, value, number)?.equals(&Value::Int(rest))
}
