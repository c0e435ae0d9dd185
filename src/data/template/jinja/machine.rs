//! Runs a template: scopes, statements, output.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use super::{
    Fault, Result,
    ast::{Load, Names, Scoped, Stmt, Target, Template},
    calls::{Args, Function, Macro},
    eval::Clock,
    iter, loops,
    meter::{self, Charge},
    text,
    value::{Namespace, Value},
};

/// How deep statements and expressions may nest while they run, macros and loops included.
const DEPTH: usize = 1000;

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Next,
    Break,
    Continue,
}

/// The variables of a body; `None` for one that is known and not there.
#[derive(Debug, Default)]
pub struct Scope {
    variables: RefCell<Vec<(Arc<str>, Option<Value>)>>,
    outer: Option<Rc<Scope>>,
    /// Whether what is assigned here is seen by blocks.
    root: bool,
}

impl Scope {
    /// A scope inside of `outer`.
    pub fn inside(outer: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { outer: Some(outer.clone()), ..Self::default() })
    }

    /// The variable, if a scope knows the name.
    pub fn find(&self, name: &str) -> Option<Option<Value>> {
        let own = self.variables.borrow();
        match own.iter().find(|(own, _)| **own == *name) {
            Some((_, value)) => Some(value.clone()),
            None => self.outer.as_ref()?.find(name),
        }
    }

    /// Makes the name known here, with a value if there is one.
    pub fn declare(&self, name: &str, value: Option<Value>) {
        let mut own = self.variables.borrow_mut();
        match own.iter_mut().find(|(own, _)| **own == *name) {
            Some((_, old)) => *old = value,
            None => own.push((name.into(), value)),
        }
    }

    /// Sets a variable of this scope.
    pub fn set(&self, name: &str, value: Value) {
        self.declare(name, Some(value));
    }

    fn knows(&self, name: &str) -> bool {
        self.variables.borrow().iter().any(|(own, _)| **own == *name)
    }
}

#[derive(Debug)]
struct Output {
    text: String,
    charge: Charge,
}

/// The state of one rendering.
pub struct Machine<'a> {
    /// What the conversation sets.
    context: HashMap<String, Value>,
    /// What the template's outermost statements assign.
    exported: HashMap<Arc<str>, Value>,
    template: &'a Template,
    clock: Clock,
    output: Output,
    depth: usize,
    calls: usize,
    /// What refers to each other in circles, to be taken apart in the end.
    scopes: Vec<Rc<Scope>>,
    namespaces: Vec<Rc<Namespace>>,
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        for scope in self.scopes.drain(..) {
            scope.variables.take();
        }
        for namespace in self.namespaces.drain(..) {
            namespace.0.take();
        }
    }
}

fn output() -> Output {
    Output { text: String::new(), charge: Charge::new(0) }
}

/// The text of `template` with the variables of `context`.
///
/// # Errors
/// The template raises, or uses up its budget.
pub fn render(template: &Template, context: HashMap<String, Value>, clock: Clock) -> Result<String> {
    let mut machine = Machine {
        context,
        exported: HashMap::new(),
        template,
        clock,
        output: output(),
        depth: 0,
        calls: 0,
        scopes: Vec::new(),
        namespaces: Vec::new(),
    };
    let root = Rc::new(Scope { root: true, ..Scope::default() });
    machine.scopes.push(root.clone());
    machine.enter(&root, &template.names);
    machine.exec(&template.body, &root)?;
    Ok(std::mem::take(&mut machine.output.text))
}

impl Machine<'_> {
    /// The current time as `format` writes it.
    pub fn now(&self, format: &str) -> String {
        (self.clock)(format)
    }

    /// Takes a namespace apart in the end.
    pub fn keep_namespace(&mut self, namespace: &Rc<Namespace>) {
        self.namespaces.push(namespace.clone());
    }

    /// A variable of the conversation, or a global function.
    fn resolve(&self, name: &str) -> Option<Value> {
        let own = self.exported.get(name).or_else(|| self.context.get(name));
        let own = own.cloned().or_else(|| Function::named(name).map(Value::Function));
        // The template itself, of which only this is known: that it is there.
        own.or_else(|| (name == "self").then(|| super::eval::method(&Value::None, name)))
    }

    /// Gives the names of a scope what they begin with.
    pub fn enter(&self, scope: &Scope, names: &Names) {
        for (name, load) in names {
            let value = match load {
                Load::Parameter if scope.knows(name) => continue,
                Load::Parameter | Load::Missing => None,
                Load::Context => self.resolve(name),
                Load::Outer => scope.outer.as_ref().and_then(|outer| outer.find(name)).flatten(),
            };
            scope.declare(name, value);
        }
    }

    /// The value of a name.
    pub fn variable(&self, name: &str, scope: &Scope) -> Value {
        let value = scope.find(name).unwrap_or_else(|| self.resolve(name));
        value.unwrap_or_else(|| Value::undefined(format!("'{name}' is undefined")))
    }

    /// `run` one level deeper.
    ///
    /// # Errors
    /// It fails, or nests too deep.
    pub fn deeper<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= DEPTH {
            return Err(Fault::budget(format!("nests more than {DEPTH} deep")));
        }
        self.depth += 1;
        let result = run(self);
        self.depth -= 1;
        result
    }

    /// `run` as a call, of which at most `limit` are inside of each other.
    ///
    /// # Errors
    /// It fails, or there are more.
    pub fn called<T>(&mut self, limit: usize, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.calls >= limit {
            return Err(Fault::budget(format!("calls itself more than {limit} deep")));
        }
        self.calls += 1;
        let result = run(self);
        self.calls -= 1;
        result
    }

    /// Writes text to the output.
    ///
    /// # Errors
    /// The budget is used up.
    pub fn write(&mut self, text: &str) -> Result<()> {
        self.output.charge.grow(text.len());
        meter::room(0)?;
        self.output.text.push_str(text);
        Ok(())
    }

    /// What `run` writes.
    ///
    /// # Errors
    /// It fails.
    pub fn capture(&mut self, run: impl FnOnce(&mut Self) -> Result<()>) -> Result<String> {
        let outer = std::mem::replace(&mut self.output, output());
        let result = run(self);
        let inner = std::mem::replace(&mut self.output, outer);
        result.map(|()| inner.text)
    }

    /// Assigns to a target.
    ///
    /// # Errors
    /// The value has another number of parts, or the target is no namespace.
    pub fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
        match target {
            Target::Name(name) => {
                if scope.root && !name.starts_with('_') {
                    self.exported.insert(name.clone(), value.clone());
                }
                scope.set(name, value);
            }
            Target::Attribute(name, attribute) => {
                let Value::Namespace(namespace) = self.variable(name, scope) else {
                    return Err(Fault::new(format!("'{name}' is no namespace: its attributes cannot be set")));
                };
                super::calls::private(attribute)?;
                // The depth is looked at here, where a circle could be closed.
                super::value::depth_over(&value)?;
                namespace.0.borrow_mut().insert(attribute.clone(), value);
            }
            Target::Tuple(targets) => {
                let values = iter::items(self, &value)?;
                if values.len() != targets.len() {
                    let (found, expected) = (values.len(), targets.len());
                    return Err(Fault::new(format!("{found} values cannot be unpacked into {expected}")));
                }
                for (target, value) in targets.iter().zip(values) {
                    self.assign(target, value, scope)?;
                }
            }
        }
        Ok(())
    }

    /// Namespaces of a target are looked at before the value is computed.
    fn check_target(&self, target: &Target, scope: &Scope) -> Result<()> {
        for leaf in target.leaves() {
            if let Target::Attribute(name, _) = leaf
                && !matches!(self.variable(name, scope), Value::Namespace(_))
            {
                return Err(Fault::new(format!("'{name}' is no namespace: its attributes cannot be set")));
            }
        }
        Ok(())
    }

    /// Runs a body.
    ///
    /// # Errors
    /// A statement raises.
    pub fn exec(&mut self, body: &[Stmt], scope: &Rc<Scope>) -> Result<Flow> {
        for stmt in body {
            meter::spend(1)?;
            let flow = self.deeper(|machine| machine.stmt(stmt, scope))?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    fn stmt(&mut self, stmt: &Stmt, scope: &Rc<Scope>) -> Result<Flow> {
        let done = match stmt {
            Stmt::Text(text) => self.write(text),
            Stmt::Print(expr, line) => self.print(expr, scope).map_err(|fault| fault.at(*line)),
            Stmt::For(node) => return loops::run(self, node, scope).map_err(|fault| fault.at(node.line)),
            Stmt::If(branches, otherwise) => {
                for (test, body, line) in branches {
                    if self.expr(test, scope).map_err(|fault| fault.at(*line))?.is_true() {
                        return self.exec(body, scope);
                    }
                }
                return self.exec(otherwise, scope);
            }
            Stmt::Set(target, expr, line) => self.set(target, expr, scope).map_err(|fault| fault.at(*line)),
            Stmt::Break => return Ok(Flow::Break),
            Stmt::Continue => return Ok(Flow::Continue),
            Stmt::Filter(_, inner, line) | Stmt::With(_, inner, line) => {
                return self.inner(stmt, inner, scope).map_err(|fault| fault.at(*line));
            }
            _ => self.rare(stmt, scope),
        };
        done.map(|()| Flow::Next)
    }

    fn print(&mut self, expr: &super::ast::Expr, scope: &Rc<Scope>) -> Result<()> {
        let value = self.expr(expr, scope)?;
        match value.as_text() {
            Some(text) => self.write(text),
            None => {
                let text = text::str(&value)?;
                self.write(&text)
            }
        }
    }

    fn set(&mut self, target: &Target, expr: &super::ast::Expr, scope: &Rc<Scope>) -> Result<()> {
        self.check_target(target, scope)?;
        let value = self.expr(expr, scope)?;
        self.assign(target, value, scope)
    }

    /// Bodies with a scope of their own that a loop outside can be left from.
    fn inner(&mut self, stmt: &Stmt, inner: &Scoped, scope: &Rc<Scope>) -> Result<Flow> {
        let inside = Scope::inside(scope);
        if let Stmt::With(values, ..) = stmt {
            for (target, expr) in values {
                let value = self.expr(expr, scope)?;
                self.assign(target, value, &inside)?;
            }
            self.enter(&inside, &inner.names);
            return self.exec(&inner.body, &inside);
        }
        let Stmt::Filter(filter, ..) = stmt else { return Ok(Flow::Next) };
        self.enter(&inside, &inner.names);
        let mut flow = Flow::Next;
        let text = self.capture(|machine| {
            flow = machine.exec(&inner.body, &inside)?;
            Ok(())
        })?;
        // A loop that is left loses what the block wrote, as in Jinja2.
        if flow != Flow::Next {
            return Ok(flow);
        }
        let value = self.filtered(filter, Value::text(text), &inside)?;
        self.write(&plain(&value)?)?;
        Ok(Flow::Next)
    }

    fn rare(&mut self, stmt: &Stmt, scope: &Rc<Scope>) -> Result<()> {
        match stmt {
            Stmt::Macro(def) => {
                let value = self.macro_value(def, scope);
                let name = def.name.clone().unwrap_or_else(|| "caller".into());
                self.assign(&Target::Name(name), value, scope)
            }
            Stmt::CallBlock(call, def, line) => {
                let caller = self.macro_value(def, scope);
                let value = self.call_with(call, scope, Some(caller)).map_err(|fault| fault.at(*line))?;
                self.write(&plain(&value)?)
            }
            Stmt::Generation(inner) => {
                let inside = Scope::inside(scope);
                self.enter(&inside, &inner.names);
                self.exec(&inner.body, &inside).map(drop)
            }
            Stmt::SetBlock(target, filter, inner, line) => {
                self.set_block(target, filter.as_ref(), inner, scope).map_err(|fault| fault.at(*line))
            }
            Stmt::Block(name, required) => self.block(name, *required),
            Stmt::Load(what, expr, line) => {
                let _ = self.expr(expr, scope)?;
                Err(Fault::new(format!("`{what}`: a chat template has no other templates to load")).at(*line))
            }
            _ => Ok(()),
        }
    }

    fn set_block(
        &mut self,
        target: &Target,
        filter: Option<&super::ast::Expr>,
        inner: &Scoped,
        scope: &Rc<Scope>,
    ) -> Result<()> {
        let inside = Scope::inside(scope);
        self.enter(&inside, &inner.names);
        let text = self.capture(|machine| machine.exec(&inner.body, &inside).map(drop))?;
        let value = match filter {
            Some(filter) => self.filtered(filter, Value::text(text), &inside)?,
            None => Value::text(text),
        };
        self.check_target(target, scope)?;
        self.assign(target, value, scope)
    }

    fn block(&mut self, name: &str, required: bool) -> Result<()> {
        let template = self.template;
        let Some((_, block)) = template.blocks.iter().find(|(own, _)| **own == *name) else { return Ok(()) };
        if required {
            return Err(Fault::new(format!("block `{name}` is required and not there")));
        }
        let scope = Rc::new(Scope::default());
        self.scopes.push(scope.clone());
        self.enter(&scope, &block.names);
        self.exec(&block.body, &scope).map(drop)
    }

    fn macro_value(&mut self, def: &Arc<super::ast::MacroDef>, scope: &Rc<Scope>) -> Value {
        self.scopes.push(scope.clone());
        Value::Macro(Rc::new(Macro { def: def.clone(), scope: scope.clone() }))
    }

    /// A filter applied to the text of a block.
    fn filtered(&mut self, filter: &super::ast::Expr, text: Value, scope: &Rc<Scope>) -> Result<Value> {
        let super::ast::Expr::Filter(inner, name, arguments) = filter else { return Ok(text) };
        let value = match inner {
            Some(inner) => self.filtered(inner, text, scope)?,
            None => text,
        };
        let args: Args = self.arguments(arguments, scope)?;
        super::filters::apply(self, name, value, args)
    }
}

/// The text of a value that must be text.
fn plain(value: &Value) -> Result<String> {
    match value.as_text() {
        Some(text) => Ok(text.to_string()),
        None => Err(Fault::new(format!("a block needs text, found '{}'", value.type_name()))),
    }
}
