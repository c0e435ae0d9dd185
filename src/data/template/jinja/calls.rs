//! What can be called: global functions and macros, and how arguments meet parameters.

use std::{cell::Cell, rc::Rc, sync::Arc};

use indexmap::IndexMap;

use super::{
    Fault, Result,
    ast::{MacroDef, Name},
    iter,
    machine::{Machine, Scope},
    meter, text,
    value::{Cycler, Joiner, Key, Namespace, Range, Value},
};

/// How deep calls may nest: Python's recursion limit ends macros at about as many.
const DEPTH: usize = 100;
/// As in Jinja2's sandbox.
const MAX_RANGE: i128 = 100_000;

/// The global functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    Lipsum,
    RaiseException,
    StrftimeNow,
}

impl Function {
    /// The function of that name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "range" => Self::Range,
            "dict" => Self::Dict,
            "namespace" => Self::Namespace,
            "cycler" => Self::Cycler,
            "joiner" => Self::Joiner,
            "lipsum" => Self::Lipsum,
            "raise_exception" => Self::RaiseException,
            "strftime_now" => Self::StrftimeNow,
            _ => return None,
        })
    }
}

/// A macro with the scope that it was defined in.
#[derive(Debug)]
pub struct Macro {
    pub def: Arc<MacroDef>,
    pub scope: Rc<Scope>,
}

/// The arguments of a call.
#[derive(Clone, Debug, Default)]
pub struct Args {
    pub positional: Vec<Value>,
    pub named: Vec<(Name, Value)>,
}

impl Args {
    /// Positional arguments.
    pub fn of(positional: Vec<Value>) -> Self {
        Self { positional, named: Vec::new() }
    }

    /// The arguments of parameters with these names.
    ///
    /// # Errors
    /// There are more, others, or one twice.
    pub fn bind<const N: usize>(self, names: [&str; N]) -> Result<[Option<Value>; N]> {
        if self.positional.len() > N {
            return Err(Fault::new(format!("takes at most {N} arguments, found {}", self.positional.len())));
        }
        let mut values = [const { None }; N];
        for (slot, value) in values.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.named {
            let Some(at) = names.iter().position(|own| **own == *name) else {
                return Err(Fault::new(format!("has no argument `{name}`")));
            };
            if values[at].replace(value).is_some() {
                return Err(Fault::new(format!("argument `{name}` is given twice")));
            }
        }
        Ok(values)
    }

    /// The arguments of parameters without names, of which `least` are needed.
    ///
    /// # Errors
    /// There are more, fewer, or some with names.
    pub fn plain<const N: usize>(self, least: usize) -> Result<[Option<Value>; N]> {
        if let Some((name, _)) = self.named.first() {
            return Err(Fault::new(format!("has no argument `{name}`")));
        }
        if self.positional.len() < least {
            return Err(Fault::new(format!("needs {least} arguments, found {}", self.positional.len())));
        }
        self.bind([""; N])
    }
}

/// The value of an argument that must be given.
///
/// # Errors
/// It is not.
pub fn given(value: Option<Value>, name: &str) -> Result<Value> {
    value.ok_or_else(|| Fault::new(format!("needs the argument `{name}`")))
}

/// An argument that is an integer.
///
/// # Errors
/// It is none.
pub fn integer(value: &Value) -> Result<i128> {
    let value = value.defined()?;
    value.as_int().ok_or_else(|| Fault::new(format!("an integer is needed, found '{}'", value.type_name())))
}

/// An argument that is a length.
///
/// # Errors
/// It is no integer; a negative one is 0.
pub fn length(value: &Value) -> Result<usize> {
    usize::try_from(integer(value)?.max(0)).map_err(|_| Fault::new("a length is too large"))
}

/// Calls `callee`.
///
/// # Errors
/// It cannot be called so, or fails.
pub fn call(machine: &mut Machine, callee: &Value, args: Args) -> Result<Value> {
    meter::spend(1)?;
    match callee.defined()? {
        Value::Function(function) => call_function(machine, *function, args),
        Value::Method(method) => super::methods::call(machine, &method.0, &method.1, args),
        Value::Macro(node) => call_macro(machine, node, args),
        Value::Loop(state) => {
            let [iterable] = args.plain(1)?;
            super::loops::recurse(machine, state, &given(iterable, "iterable")?)
        }
        Value::Joiner(joiner) => {
            args.plain::<0>(0)?;
            Ok(if joiner.used.replace(true) { joiner.separator.clone() } else { Value::text("") })
        }
        other => Err(Fault::new(format!("'{}' object cannot be called", other.type_name()))),
    }
}

fn call_function(machine: &mut Machine, function: Function, args: Args) -> Result<Value> {
    match function {
        Function::Range => range(args),
        Function::Dict => dict(machine, args),
        Function::Namespace => namespace(machine, args),
        Function::Cycler if args.positional.is_empty() => Err(Fault::new("cycler: at least one item is needed")),
        Function::Cycler => {
            let no: Args = Args { positional: Vec::new(), named: args.named };
            no.plain::<0>(0)?;
            Ok(Value::Cycler(Rc::new(Cycler { items: args.positional, at: Cell::new(0) })))
        }
        Function::Joiner => {
            let [separator] = args.bind(["sep"])?;
            let separator = separator.unwrap_or_else(|| Value::text(", "));
            Ok(Value::Joiner(Rc::new(Joiner { separator, used: Cell::new(false) })))
        }
        Function::Lipsum => Err(Fault::new("lipsum is random text: a chat template cannot use it")),
        Function::RaiseException => {
            let [message] = args.bind(["message"])?;
            Err(Fault::new(text::str(&given(message, "message")?)?))
        }
        Function::StrftimeNow => {
            let [format] = args.bind(["format"])?;
            let format = given(format, "format")?;
            let Some(format) = format.as_text() else {
                return Err(Fault::new("strftime_now: the format is no text"));
            };
            Ok(Value::text(machine.now(format)))
        }
    }
}

fn range(args: Args) -> Result<Value> {
    let [first, second, third] = args.plain(1)?;
    let first = integer(&given(first, "stop")?)?;
    let step = third.as_ref().map_or(Ok(1), integer)?;
    let range = match second {
        Some(stop) => Range { start: first, stop: integer(&stop)?, step },
        None => Range { start: 0, stop: first, step },
    };
    if step == 0 {
        return Err(Fault::new("range: the step must not be zero"));
    }
    if range.start.checked_sub(range.stop).is_none() || range.len() > MAX_RANGE {
        return Err(Fault::new(format!("range: more than {MAX_RANGE} items")));
    }
    Ok(Value::Range(range))
}

/// The pairs of a mapping, or of an iterable of pairs.
fn entries(machine: &mut Machine, value: &Value) -> Result<Vec<(Value, Value)>> {
    if let Value::Dict(dict) = value {
        meter::spend(dict.len())?;
        return Ok(dict.iter().map(|(key, value)| (key.value().clone(), value.clone())).collect());
    }
    let mut entries = Vec::new();
    for pair in iter::items(machine, value)? {
        let pair = iter::items(machine, &pair)?;
        let [key, value] = <[Value; 2]>::try_from(pair).map_err(|_| Fault::new("dict: an item is no pair"))?;
        entries.push((key, value));
    }
    Ok(entries)
}

/// What `dict` makes of its arguments.
fn dict_map(machine: &mut Machine, args: Args) -> Result<IndexMap<Key, Value>> {
    let Args { positional, named } = args;
    let [from] = Args::of(positional).plain(0)?;
    let mut map = IndexMap::new();
    if let Some(from) = from {
        for (key, value) in entries(machine, from.defined()?)? {
            map.insert(Key::new(key)?, value);
        }
    }
    for (name, value) in named {
        map.insert(Key::new(Value::text(&*name))?, value);
    }
    Ok(map)
}

fn dict(machine: &mut Machine, args: Args) -> Result<Value> {
    Value::dict(dict_map(machine, args)?)
}

fn namespace(machine: &mut Machine, args: Args) -> Result<Value> {
    let mut fields = IndexMap::new();
    for (key, value) in dict_map(machine, args)? {
        let Some(name) = key.value().as_text() else { return Err(Fault::new("namespace: a name is no text")) };
        private(name)?;
        fields.insert(Arc::from(&***name), value);
    }
    let namespace = Rc::new(Namespace(fields.into()));
    machine.keep_namespace(&namespace);
    Ok(Value::Namespace(namespace))
}

/// `transformers` keeps these names out of namespaces.
///
/// # Errors
/// The name begins with an underscore.
pub fn private(name: &str) -> Result<()> {
    if name.starts_with('_') {
        return Err(Fault::new(format!("namespace: `{name}` begins with an underscore: rename it")));
    }
    Ok(())
}

/// Calls a macro: its text.
fn call_macro(machine: &mut Machine, node: &Macro, args: Args) -> Result<Value> {
    let def = &node.def;
    let name = def.name.as_deref().unwrap_or("caller");
    let scope = Scope::inside(&node.scope);
    let Args { mut positional, mut named } = args;
    let rest = positional.split_off(def.parameters.len().min(positional.len()));
    let mut take = |name: &str| named.iter().position(|(own, _)| **own == *name).map(|at| named.remove(at).1);
    let given = positional.len();
    let mut values: Vec<Option<Value>> = positional.into_iter().map(Some).collect();
    for parameter in &def.parameters[given..] {
        values.push(take(parameter));
    }
    if def.caller && !def.parameters.iter().any(|name| &**name == "caller") {
        let caller = take("caller").filter(|value| !matches!(value, Value::None));
        scope.set("caller", caller.unwrap_or_else(|| Value::undefined("no caller is defined")));
    }
    if def.kwargs {
        let fields = named.drain(..).map(|(name, value)| Ok((Key::new(Value::text(&*name))?, value)));
        scope.set("kwargs", Value::dict(fields.collect::<Result<_>>()?)?);
    }
    if let Some((other, _)) = named.first() {
        return Err(Fault::new(format!("macro `{name}` has no argument `{other}`")));
    }
    if def.varargs {
        scope.set("varargs", Value::tuple(rest)?);
    } else if !rest.is_empty() {
        return Err(Fault::new(format!("macro `{name}` takes at most {} arguments", def.parameters.len())));
    }
    machine.called(DEPTH, |machine| invoke(machine, def, &scope, values))
}

fn invoke(machine: &mut Machine, def: &MacroDef, scope: &Rc<Scope>, values: Vec<Option<Value>>) -> Result<Value> {
    let first_default = def.parameters.len() - def.defaults.len();
    for (name, value) in def.parameters.iter().zip(&values) {
        scope.declare(name, value.clone());
    }
    machine.enter(scope, &def.names);
    for (i, (name, value)) in def.parameters.iter().zip(values).enumerate() {
        if value.is_none() {
            let value = match i.checked_sub(first_default) {
                Some(at) => machine.expr(&def.defaults[at], scope)?,
                None => Value::undefined(format!("parameter '{name}' was not provided")),
            };
            scope.set(name, value);
        }
    }
    machine.capture(|machine| machine.exec(&def.body, scope).map(drop)).map(Value::text)
}
