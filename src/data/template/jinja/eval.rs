//! Expressions, and what `.` and `[]` find.

use std::{rc::Rc, sync::Arc};

use indexmap::IndexMap;

use super::{
    Fault, Result,
    ast::{Arguments, Expr, Literal},
    calls::{self, Args},
    checks, filters, iter,
    machine::{Machine, Scope},
    meter, methods, ops,
    value::{Key, Name, Value},
};

/// Writes the current time in a format.
pub type Clock = Arc<dyn Fn(&str) -> String>;

impl Machine<'_> {
    /// The value of an expression.
    ///
    /// # Errors
    /// An operation raises.
    pub fn expr(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        meter::spend(1)?;
        match expr {
            Expr::Literal(literal) => return Ok(value_of(literal)),
            Expr::Name(name) => return Ok(self.variable(name, scope)),
            _ => {}
        }
        self.deeper(|machine| machine.compound(expr, scope))
    }

    fn compound(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        match expr {
            Expr::Literal(literal) => Ok(value_of(literal)),
            Expr::Name(name) => Ok(self.variable(name, scope)),
            Expr::List(items) => Value::list(self.exprs(items, scope)?),
            Expr::Tuple(items) => Value::tuple(self.exprs(items, scope)?),
            Expr::Dict(pairs) => self.dict(pairs, scope),
            Expr::Attribute(inner, name) => {
                let value = self.expr(inner, scope)?;
                attribute(self, &value, name)
            }
            Expr::Item(inner, index) => {
                let value = self.expr(inner, scope)?;
                let index = self.expr(index, scope)?;
                item(self, &value, &index)
            }
            Expr::Slice(inner, parts) => self.slice(inner, parts, scope),
            Expr::Call(..) => self.call_with(expr, scope, None),
            Expr::Filter(inner, name, arguments) => {
                let value = match inner {
                    Some(inner) => self.expr(inner, scope)?,
                    None => Value::text(""),
                };
                let args = self.arguments(arguments, scope)?;
                filters::apply(self, name, value, args)
            }
            Expr::Test(inner, name, arguments) => {
                let value = self.expr(inner, scope)?;
                let args = self.arguments(arguments, scope)?;
                Ok(Value::Bool(checks::apply(self, name, &value, args)?))
            }
            Expr::Concat(parts) => ops::concat(&self.exprs(parts, scope)?),
            _ => self.logic(expr, scope),
        }
    }

    fn logic(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        match expr {
            Expr::Not(inner) => Ok(Value::Bool(!self.expr(inner, scope)?.is_true())),
            Expr::Negative(inner) => ops::sign(&self.expr(inner, scope)?, true),
            Expr::Positive(inner) => ops::sign(&self.expr(inner, scope)?, false),
            Expr::Binary(op, a, b) => {
                let a = self.expr(a, scope)?;
                let b = self.expr(b, scope)?;
                ops::binary(*op, &a, &b)
            }
            Expr::And(a, b) => {
                let a = self.expr(a, scope)?;
                if a.is_true() { self.expr(b, scope) } else { Ok(a) }
            }
            Expr::Or(a, b) => {
                let a = self.expr(a, scope)?;
                if a.is_true() { Ok(a) } else { self.expr(b, scope) }
            }
            Expr::Compare(first, rest) => {
                let mut left = self.expr(first, scope)?;
                for (cmp, right) in rest {
                    let right = self.expr(right, scope)?;
                    if !ops::compare(self, *cmp, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Expr::Condition(test, value, otherwise) => match (self.expr(test, scope)?.is_true(), otherwise) {
                (true, _) => self.expr(value, scope),
                (false, Some(otherwise)) => self.expr(otherwise, scope),
                (false, None) => Ok(Value::undefined("an `if` without `else` was false")),
            },
            _ => Ok(Value::None),
        }
    }

    fn exprs(&mut self, exprs: &[Expr], scope: &Rc<Scope>) -> Result<Vec<Value>> {
        exprs.iter().map(|expr| self.expr(expr, scope)).collect()
    }

    fn dict(&mut self, pairs: &[(Expr, Expr)], scope: &Rc<Scope>) -> Result<Value> {
        let mut map = IndexMap::with_capacity(pairs.len());
        for (key, value) in pairs {
            let key = Key::new(self.expr(key, scope)?)?;
            map.insert(key, self.expr(value, scope)?);
        }
        Value::dict(map)
    }

    fn slice(&mut self, inner: &Expr, parts: &[Option<Expr>; 3], scope: &Rc<Scope>) -> Result<Value> {
        let value = self.expr(inner, scope)?;
        let mut bounds = [Value::None, Value::None, Value::None];
        for (bound, part) in bounds.iter_mut().zip(parts) {
            if let Some(part) = part {
                *bound = self.expr(part, scope)?;
            }
        }
        ops::slice(&value, &bounds)
    }

    /// A call, with the caller of a call block.
    ///
    /// # Errors
    /// It raises.
    pub fn call_with(&mut self, expr: &Expr, scope: &Rc<Scope>, caller: Option<Value>) -> Result<Value> {
        let Expr::Call(callee, arguments) = expr else { return Ok(Value::None) };
        let callee = self.expr(callee, scope)?;
        let mut args = self.arguments(arguments, scope)?;
        if let Some(caller) = caller {
            args.named.push(("caller".into(), caller));
        }
        calls::call(self, &callee, args)
    }

    /// The values of arguments.
    ///
    /// # Errors
    /// One raises, or a name is given twice.
    pub fn arguments(&mut self, arguments: &Arguments, scope: &Rc<Scope>) -> Result<Args> {
        let mut args = Args::of(self.exprs(&arguments.positional, scope)?);
        for (name, expr) in &arguments.named {
            args.named.push((name.clone(), self.expr(expr, scope)?));
        }
        if let Some(star) = &arguments.star {
            let star = self.expr(star, scope)?;
            args.positional.extend(iter::items(self, &star)?);
        }
        if let Some(stars) = &arguments.stars {
            let Value::Dict(fields) = self.expr(stars, scope)? else {
                return Err(Fault::new("`**` needs a mapping"));
            };
            for (key, value) in fields.iter() {
                let Some(name) = key.value().as_text() else { return Err(Fault::new("`**`: a key is no text")) };
                if args.named.iter().any(|(own, _)| **own == ***name) {
                    return Err(Fault::new(format!("argument `{}` is given twice", &***name)));
                }
                args.named.push((Arc::from(&***name), value.clone()));
            }
        }
        Ok(args)
    }
}

fn value_of(literal: &Literal) -> Value {
    match literal {
        Literal::None => Value::None,
        Literal::Bool(x) => Value::Bool(*x),
        Literal::Int(x) => Value::Int(*x),
        Literal::Float(x) => Value::Float(*x),
        Literal::Text(text) => Value::Str(text.clone()),
    }
}

fn nothing(value: &Value, name: &str) -> Value {
    Value::undefined(format!("'{} object' has no attribute '{name}'", value.type_name()))
}

/// Python's own attribute of an object, if it has one: a method, or a number that is part of it. What the sandbox
/// forbids is undefined.
fn own(machine: &mut Machine, value: &Value, name: &str) -> Result<Option<Value>> {
    if name.starts_with('_') {
        let there = methods::is_internal(name) || matches!(value, Value::Namespace(_));
        let unsafe_value = || {
            let what = format!("access to attribute '{name}' of '{}' object is not allowed", value.type_name());
            Value::undefined(what)
        };
        return Ok(there.then(unsafe_value));
    }
    Ok(match value {
        Value::Namespace(namespace) => namespace.0.borrow().get(name).cloned(),
        Value::Loop(state) => match state.attribute(machine, name)? {
            None if matches!(name, "cycle" | "changed") => Some(method(value, name)),
            found => found,
        },
        Value::Tuple(items) if items.group && name == "grouper" => items.first().cloned(),
        Value::Tuple(items) if items.group && name == "list" => items.get(1).cloned(),
        Value::Cycler(cycler) if name == "current" => cycler.items.get(cycler.at.get()).cloned(),
        Value::Macro(node) if name == "name" => Some(match &node.def.name {
            Some(name) => Value::text(&**name),
            None => Value::None,
        }),
        Value::Macro(node) if name == "arguments" => {
            Some(Value::tuple(node.def.parameters.iter().map(|name| Value::text(&**name)).collect())?)
        }
        _ => methods::own(value, name),
    })
}

/// A method that is bound to its object.
pub fn method(value: &Value, name: &str) -> Value {
    Value::Method(Rc::new((value.clone(), name.into())))
}

/// `value.name`: an attribute of the object, else its item.
///
/// # Errors
/// The value is undefined.
pub fn attribute(machine: &mut Machine, value: &Value, name: &str) -> Result<Value> {
    if let Some(found) = own(machine, value, name)? {
        return Ok(found);
    }
    let value = value.defined()?;
    let Value::Dict(dict) = value else { return Ok(nothing(value, name)) };
    meter::scan(name.len())?;
    Ok(dict.get(&Name(name)).cloned().unwrap_or_else(|| nothing(value, name)))
}

/// `value[index]`: an item, else the attribute of that name.
///
/// # Errors
/// The value is undefined.
pub fn item(machine: &mut Machine, value: &Value, index: &Value) -> Result<Value> {
    let value = value.defined()?;
    if let Some(found) = subscript(value, index)? {
        return Ok(found);
    }
    let Some(name) = index.as_text() else {
        let index = super::text::str(index).unwrap_or_default();
        return Ok(Value::undefined(format!("{} object has no element {index}", value.type_name())));
    };
    Ok(own(machine, value, name)?.unwrap_or_else(|| nothing(value, name)))
}

/// What Python's subscript finds; `None` where that is a `TypeError` or `LookupError`.
fn subscript(value: &Value, index: &Value) -> Result<Option<Value>> {
    if let Value::Dict(dict) = value {
        return Ok(match index.as_text() {
            Some(text) => {
                meter::scan(text.len())?;
                dict.get(&Name(text)).cloned()
            }
            None => Key::new(index.clone()).ok().and_then(|key| dict.get(&key).cloned()),
        });
    }
    let Some(index) = index.as_int() else { return Ok(None) };
    let from_end = |len: usize| {
        let index = if index < 0 { index + len as i128 } else { index };
        usize::try_from(index).ok().filter(|&index| index < len)
    };
    Ok(match value {
        Value::List(items) | Value::Tuple(items) => from_end(items.len()).and_then(|at| items.get(at).cloned()),
        Value::Str(text) | Value::Markup(text) => {
            meter::scan(text.len())?;
            let c = from_end(text.count()).and_then(|at| text.at(at));
            c.map(|c| Value::text_like(value, c))
        }
        Value::Range(range) => {
            from_end(usize::try_from(range.len()).unwrap_or(0)).and_then(|at| range.at(at as i128)).map(Value::Int)
        }
        _ => None,
    })
}
