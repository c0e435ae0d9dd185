//! `for` loops and their `loop` variable.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use super::{
    Fault, Result,
    ast::For,
    calls::Args,
    iter::{Iter, Source},
    machine::{Flow, Machine, Scope},
    value::Value,
};

/// How deep recursive loops may nest.
const DEPTH: usize = 100;

/// A running loop.
#[derive(Debug)]
pub struct LoopState {
    node: Arc<For>,
    scope: Rc<Scope>,
    depth: usize,
    at: RefCell<At>,
}

#[derive(Debug)]
struct At {
    source: Source,
    /// The length of what is looped over, where it has one.
    length: Option<usize>,
    /// The next item, if it was looked at; `Some(None)`: there is none.
    after: Option<Option<Value>>,
    before: Option<Value>,
    current: Option<Value>,
    index0: i128,
    changed: Option<Vec<Value>>,
}

/// Runs a loop in `scope`.
///
/// # Errors
/// The value is not iterable, or the body fails.
pub fn run(machine: &mut Machine, node: &Arc<For>, scope: &Rc<Scope>) -> Result<Flow> {
    let iterable = machine.expr(&node.iter, scope)?;
    if node.recursive {
        let text = machine.capture(|machine| repeat(machine, node, scope, &iterable, 0).map(drop))?;
        machine.write(&text)?;
        return Ok(Flow::Next);
    }
    repeat(machine, node, scope, &iterable, 0)
}

/// `loop(iterable)` inside of a recursive loop.
///
/// # Errors
/// The loop is not recursive, or as [`run`].
pub fn recurse(machine: &mut Machine, state: &LoopState, iterable: &Value) -> Result<Value> {
    if !state.node.recursive {
        return Err(Fault::new("the loop needs the mark `recursive` to be called"));
    }
    let text = machine.called(DEPTH, |machine| {
        machine.capture(|machine| repeat(machine, &state.node, &state.scope, iterable, state.depth + 1).map(drop))
    })?;
    Ok(Value::text(text))
}

fn repeat(machine: &mut Machine, node: &Arc<For>, scope: &Rc<Scope>, iterable: &Value, depth: usize) -> Result<Flow> {
    let (source, length) = match &node.test {
        None => (Source::new(iterable)?, iterable.len()),
        Some(_) => (Source::new(&filtered(node, scope, iterable)?)?, None),
    };
    let at = At { source, length, after: None, before: None, current: None, index0: -1, changed: None };
    let state = Rc::new(LoopState { node: node.clone(), scope: scope.clone(), depth, at: at.into() });
    let mut empty = true;
    while let Some(item) = state.advance(machine)? {
        empty = false;
        let body = Scope::inside(scope);
        body.set("loop", Value::Loop(state.clone()));
        machine.assign(&node.target, item, &body)?;
        machine.enter(&body, &node.body_names);
        if machine.exec(&node.body, &body)? == Flow::Break {
            break;
        }
    }
    if empty && !node.otherwise.is_empty() {
        let body = Scope::inside(scope);
        machine.enter(&body, &node.otherwise_names);
        return machine.exec(&node.otherwise, &body);
    }
    Ok(Flow::Next)
}

/// The items that pass the loop's test.
fn filtered(node: &Arc<For>, scope: &Rc<Scope>, iterable: &Value) -> Result<Value> {
    let mut source = Source::new(iterable)?;
    let (node, scope) = (node.clone(), scope.clone());
    Iter::over(iterable, move |machine| {
        while let Some(item) = source.next(machine)? {
            let inside = Scope::inside(&scope);
            machine.assign(&node.target, item.clone(), &inside)?;
            machine.enter(&inside, &node.test_names);
            let Some(test) = &node.test else { return Ok(Some(item)) };
            if machine.expr(test, &inside)?.is_true() {
                return Ok(Some(item));
            }
        }
        Ok(None)
    })
}

impl LoopState {
    /// The next item, and everything that moves with it.
    fn advance(&self, machine: &mut Machine) -> Result<Option<Value>> {
        let peeked = self.at.borrow_mut().after.take();
        let item = match peeked {
            Some(item) => item,
            None => self.pull(machine)?,
        };
        let mut at = self.at.borrow_mut();
        if item.is_some() {
            at.index0 += 1;
            at.before = at.current.take();
            at.current.clone_from(&item);
        }
        Ok(item)
    }

    /// The next item of the source, which may run a test that reads this loop.
    fn pull(&self, machine: &mut Machine) -> Result<Option<Value>> {
        let mut source = std::mem::replace(&mut self.at.borrow_mut().source, Source::Empty);
        let item = source.next(machine);
        self.at.borrow_mut().source = source;
        item
    }

    fn peek(&self, machine: &mut Machine) -> Result<Option<Value>> {
        if let Some(item) = &self.at.borrow().after {
            return Ok(item.clone());
        }
        let item = self.pull(machine)?;
        self.at.borrow_mut().after = Some(item.clone());
        Ok(item)
    }

    /// How many items there are; what has no length is read to its end.
    ///
    /// # Errors
    /// A generator fails.
    pub fn length(&self, machine: &mut Machine) -> Result<i128> {
        if let Some(length) = self.at.borrow().length {
            return Ok(length as i128);
        }
        let source = std::mem::replace(&mut self.at.borrow_mut().source, Source::Empty);
        let rest = source.rest(machine)?;
        let mut at = self.at.borrow_mut();
        let peeked = usize::from(matches!(at.after, Some(Some(_))));
        let seen = usize::try_from(at.index0 + 1).unwrap_or(0);
        let length = rest.len() + seen + peeked;
        at.length = Some(length);
        at.source = Source::new(&Value::list(rest)?)?;
        Ok(length as i128)
    }

    /// An attribute of `loop`; `None` if it has none of that name.
    ///
    /// # Errors
    /// A generator fails.
    pub fn attribute(&self, machine: &mut Machine, name: &str) -> Result<Option<Value>> {
        let index0 = self.at.borrow().index0;
        Ok(Some(match name {
            "index0" => Value::Int(index0),
            "index" => Value::Int(index0 + 1),
            "first" => Value::Bool(index0 == 0),
            "last" => Value::Bool(self.peek(machine)?.is_none()),
            "length" => Value::Int(self.length(machine)?),
            "revindex" => Value::Int(self.length(machine)? - index0),
            "revindex0" => Value::Int(self.length(machine)? - index0 - 1),
            "depth" => Value::Int(self.depth as i128 + 1),
            "depth0" => Value::Int(self.depth as i128),
            "previtem" => {
                let before = self.at.borrow().before.clone();
                before.unwrap_or_else(|| Value::undefined("there is no previous item"))
            }
            "nextitem" => self.peek(machine)?.unwrap_or_else(|| Value::undefined("there is no next item")),
            _ => return Ok(None),
        }))
    }

    /// `loop.cycle(...)`.
    ///
    /// # Errors
    /// There is nothing to choose from.
    pub fn cycle(&self, args: Args) -> Result<Value> {
        let index0 = usize::try_from(self.at.borrow().index0).unwrap_or(0);
        let count = args.positional.len();
        if count == 0 || !args.named.is_empty() {
            return Err(Fault::new("loop.cycle: items are needed, without names"));
        }
        Ok(args.positional.into_iter().nth(index0 % count).unwrap_or(Value::None))
    }

    /// `loop.changed(...)`.
    ///
    /// # Errors
    /// The budget is used up.
    pub fn changed(&self, args: Args) -> Result<bool> {
        let new = args.positional;
        let old = self.at.borrow_mut().changed.take();
        let same = match &old {
            Some(old) => Value::tuple(old.clone())?.equals(&Value::tuple(new.clone())?)?,
            None => false,
        };
        self.at.borrow_mut().changed = Some(new);
        Ok(!same)
    }
}
