//! Which scope a name belongs to. Jinja2 settles this when it compiles, not when it runs: a scope that assigns or reads a
//! name anywhere has it from its beginning, with what stood outside at that moment.

use std::sync::Arc;

use super::{
    Fault, Result,
    ast::{Arguments, Expr, For, Load, MacroDef, Name, Names, Scoped, Stmt, Target, Template},
};

#[derive(Clone, Default)]
struct Symbols<'a> {
    outer: Option<&'a Symbols<'a>>,
    names: Names,
    stores: Vec<Name>,
}

/// Fills the names of every scope.
///
/// # Errors
/// A macro's `caller` is in the wrong place.
pub fn resolve(template: &mut Template) -> Result<()> {
    let mut root = Symbols::default();
    root.body(&template.body);
    root.inner(&mut template.body)?;
    template.names = root.names;
    for (_, block) in &mut template.blocks {
        scoped(block, &Symbols::default())?;
    }
    Ok(())
}

fn scoped(scope: &mut Scoped, outer: &Symbols) -> Result<()> {
    let mut symbols = Symbols::inside(outer);
    symbols.body(&scope.body);
    symbols.inner(&mut scope.body)?;
    scope.names = symbols.names;
    Ok(())
}

fn for_loop(node: &mut For, outer: &Symbols) -> Result<()> {
    let mut body = Symbols::inside(outer);
    body.parameter(&"loop".into());
    body.parameters(&node.target);
    body.body(&node.body);
    body.inner(&mut node.body)?;
    node.body_names = body.names;
    let mut test = Symbols::inside(outer);
    test.parameters(&node.target);
    node.test.iter().for_each(|expr| test.expr(expr));
    node.test_names = test.names;
    let mut otherwise = Symbols::inside(outer);
    otherwise.body(&node.otherwise);
    otherwise.inner(&mut node.otherwise)?;
    node.otherwise_names = otherwise.names;
    Ok(())
}

fn macro_def(node: &mut MacroDef, outer: &Symbols) -> Result<()> {
    let reads = |name: &str| reads(&node.body, name);
    let has = |name: &str| node.parameters.iter().position(|parameter| &**parameter == name);
    let (caller, kwargs, varargs) = (reads("caller"), reads("kwargs"), reads("varargs"));
    if caller && has("caller").is_some_and(|at| at < node.parameters.len() - node.defaults.len()) {
        return Err(Fault::new("a macro's parameter `caller` needs a default"));
    }
    (node.caller, node.kwargs, node.varargs) =
        (caller, kwargs && has("kwargs").is_none(), varargs && has("varargs").is_none());
    let mut symbols = Symbols::inside(outer);
    node.parameters.iter().for_each(|name| symbols.parameter(name));
    for (name, there) in [("caller", node.caller), ("kwargs", node.kwargs), ("varargs", node.varargs)] {
        if there {
            symbols.parameter(&name.into());
        }
    }
    node.defaults.iter().for_each(|expr| symbols.expr(expr));
    symbols.body(&node.body);
    symbols.inner(&mut node.body)?;
    node.names = symbols.names;
    Ok(())
}

impl<'a> Symbols<'a> {
    fn inside(outer: &'a Self) -> Self {
        Self { outer: Some(outer), ..Self::default() }
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|(own, _)| &**own == name)
    }

    fn finds(&self, name: &str) -> bool {
        self.has(name) || self.outer.is_some_and(|outer| outer.finds(name))
    }

    fn set(&mut self, name: &Name, load: Load) {
        match self.names.iter_mut().find(|(own, _)| own == name) {
            Some((_, own)) => *own = load,
            None => self.names.push((name.clone(), load)),
        }
    }

    fn parameter(&mut self, name: &Name) {
        self.stores.push(name.clone());
        self.set(name, Load::Parameter);
    }

    fn parameters(&mut self, target: &Target) {
        for leaf in target.leaves() {
            if let Target::Name(name) = leaf {
                self.parameter(name);
            }
        }
    }

    fn load(&mut self, name: &Name) {
        if !self.finds(name) {
            self.set(name, Load::Context);
        }
    }

    fn store(&mut self, name: &Name) {
        self.stores.push(name.clone());
        if !self.has(name) {
            let outside = self.outer.is_some_and(|outer| outer.finds(name));
            self.set(name, if outside { Load::Outer } else { Load::Missing });
        }
    }

    fn target(&mut self, target: &Target) {
        match target {
            Target::Name(name) => self.store(name),
            Target::Attribute(name, _) => self.load(name),
            Target::Tuple(targets) => targets.iter().for_each(|target| self.target(target)),
        }
    }

    fn body(&mut self, body: &[Stmt]) {
        body.iter().for_each(|stmt| self.stmt(stmt));
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::Print(expr, _) | Stmt::Load(_, expr, _) | Stmt::CallBlock(expr, ..) | Stmt::Filter(expr, ..) => {
                self.expr(expr);
            }
            Stmt::For(node) => self.expr(&node.iter),
            Stmt::If(branches, otherwise) => self.branches(branches, otherwise),
            Stmt::Macro(node) => node.name.iter().for_each(|name| self.store(name)),
            Stmt::With(values, ..) => values.iter().for_each(|(_, expr)| self.expr(expr)),
            Stmt::Set(target, expr, _) => {
                self.expr(expr);
                self.target(target);
            }
            Stmt::SetBlock(target, filter, ..) => {
                filter.iter().for_each(|expr| self.expr(expr));
                self.target(target);
            }
            Stmt::Text(_) | Stmt::Generation(_) | Stmt::Block(..) | Stmt::Break | Stmt::Continue => {}
        }
    }

    /// A name that only some branches assign is what it was outside.
    fn branches(&mut self, branches: &[(Expr, Vec<Stmt>, usize)], otherwise: &[Stmt]) {
        let Some(((test, body, _), rest)) = branches.split_first() else { return self.body(otherwise) };
        self.expr(test);
        let [mut first, mut second, mut third] = [self.clone(), self.clone(), self.clone()];
        first.body(body);
        for (test, body, _) in rest {
            second.expr(test);
            let mut branch = second.clone();
            branch.body(body);
            second.merge([branch]);
        }
        third.body(otherwise);
        self.merge([first, second, third]);
    }

    fn merge<const N: usize>(&mut self, branches: [Symbols<'a>; N]) {
        let mut stores: Vec<Name> = Vec::new();
        for branch in &branches {
            stores.extend(branch.stores.iter().filter(|name| !self.stores.contains(name)).cloned());
        }
        for branch in branches {
            branch.names.iter().for_each(|(name, load)| self.set(name, *load));
        }
        for name in stores {
            let outside = self.outer.is_some_and(|outer| outer.finds(&name));
            self.set(&name, if outside { Load::Outer } else { Load::Context });
            self.stores.push(name);
        }
    }

    fn arguments(&mut self, arguments: &Arguments) {
        expressions(arguments).for_each(|expr| self.expr(expr));
    }

    fn expr(&mut self, expr: &Expr) {
        if let Expr::Name(name) = expr {
            self.load(name);
        }
        children(expr).into_iter().for_each(|child| self.expr(child));
        if let Expr::Call(_, arguments) | Expr::Filter(_, _, arguments) | Expr::Test(_, _, arguments) = expr {
            self.arguments(arguments);
        }
    }

    /// The scopes inside a body of this one.
    fn inner(&self, body: &mut [Stmt]) -> Result<()> {
        for stmt in body {
            match stmt {
                Stmt::For(node) => for_loop(unique(node)?, self)?,
                Stmt::If(branches, otherwise) => {
                    branches.iter_mut().try_for_each(|(_, body, _)| self.inner(body))?;
                    self.inner(otherwise)?;
                }
                Stmt::Macro(node) | Stmt::CallBlock(_, node, _) => macro_def(unique(node)?, self)?,
                Stmt::Generation(scope) | Stmt::Filter(_, scope, _) | Stmt::SetBlock(_, _, scope, _) => {
                    scoped(scope, self)?;
                }
                Stmt::With(values, scope, _) => {
                    let mut symbols = Symbols::inside(self);
                    values.iter().for_each(|(target, _)| symbols.parameters(target));
                    symbols.body(&scope.body);
                    symbols.inner(&mut scope.body)?;
                    scope.names = symbols.names;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn unique<T>(node: &mut Arc<T>) -> Result<&mut T> {
    Arc::get_mut(node).ok_or_else(|| Fault::new("a part of the template is shared"))
}

fn expressions(arguments: &Arguments) -> impl Iterator<Item = &Expr> {
    let named = arguments.named.iter().map(|(_, expr)| expr);
    arguments.positional.iter().chain(named).chain(&arguments.star).chain(&arguments.stars)
}

/// The expressions of an expression, without its arguments.
fn children(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::Literal(_) | Expr::Name(_) | Expr::Filter(None, ..) => Vec::new(),
        Expr::List(items) | Expr::Tuple(items) | Expr::Concat(items) => items.iter().collect(),
        Expr::Dict(pairs) => pairs.iter().flat_map(|(key, value)| [key, value]).collect(),
        Expr::Attribute(inner, _)
        | Expr::Call(inner, _)
        | Expr::Filter(Some(inner), ..)
        | Expr::Test(inner, ..)
        | Expr::Not(inner)
        | Expr::Negative(inner)
        | Expr::Positive(inner) => vec![inner],
        Expr::Item(a, b) | Expr::Binary(_, a, b) | Expr::And(a, b) | Expr::Or(a, b) => vec![a, b],
        Expr::Slice(inner, parts) => std::iter::once(&**inner).chain(parts.iter().flatten()).collect(),
        Expr::Compare(first, rest) => std::iter::once(&**first).chain(rest.iter().map(|(_, expr)| expr)).collect(),
        Expr::Condition(test, value, otherwise) => {
            [&**test, &**value].into_iter().chain(otherwise.as_deref()).collect()
        }
    }
}

fn mentions(expr: &Expr, name: &str) -> bool {
    let of = match expr {
        Expr::Name(own) => return &**own == name,
        Expr::Call(_, arguments) | Expr::Filter(_, _, arguments) | Expr::Test(_, _, arguments) => {
            expressions(arguments).any(|expr| mentions(expr, name))
        }
        _ => false,
    };
    of || children(expr).into_iter().any(|child| mentions(child, name))
}

/// Whether `name` is read anywhere in `body`.
pub fn reads(body: &[Stmt], name: &str) -> bool {
    let any = |exprs: &[&Expr]| exprs.iter().any(|expr| mentions(expr, name));
    body.iter().any(|stmt| match stmt {
        Stmt::Print(expr, _) | Stmt::Load(_, expr, _) | Stmt::Set(_, expr, _) => any(&[expr]),
        Stmt::For(node) => {
            any(&[&node.iter])
                || node.test.as_ref().is_some_and(|expr| mentions(expr, name))
                || reads(&node.body, name)
                || reads(&node.otherwise, name)
        }
        Stmt::If(branches, otherwise) => {
            branches.iter().any(|(test, body, _)| any(&[test]) || reads(body, name)) || reads(otherwise, name)
        }
        Stmt::Macro(node) => node.defaults.iter().any(|expr| mentions(expr, name)) || reads(&node.body, name),
        Stmt::CallBlock(expr, node, _) => any(&[expr]) || reads(&node.body, name),
        Stmt::Filter(expr, scope, _) => any(&[expr]) || reads(&scope.body, name),
        Stmt::With(values, scope, _) => values.iter().any(|(_, expr)| mentions(expr, name)) || reads(&scope.body, name),
        Stmt::SetBlock(_, filter, scope, _) => {
            filter.as_ref().is_some_and(|expr| mentions(expr, name)) || reads(&scope.body, name)
        }
        Stmt::Generation(scope) => reads(&scope.body, name),
        Stmt::Text(_) | Stmt::Block(..) | Stmt::Break | Stmt::Continue => false,
    })
}
