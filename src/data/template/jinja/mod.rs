//! Jinja as `transformers` runs it: Jinja2's sandbox with trimmed and stripped blocks, on Python's values.
//!
//! Texts and refusals are those of Python. What differs is said in `docs/design.md`. A rendering has a budget of work and
//! memory, so that a hostile template is refused instead of running on.

mod ast;
mod calls;
mod checks;
mod eval;
mod expressions;
mod filters;
mod format;
mod iter;
mod json;
mod lexer;
mod loops;
mod machine;
mod meter;
mod methods;
mod names;
mod ops;
mod parser;
mod sequences;
mod strings;
mod text;
mod value;

use std::{collections::HashMap, fmt};

use serde_json::{Map, Value as Json};

pub use eval::Clock;
pub use meter::{Budget, Used};

/// The source of this language: what another version renders is not what is in a cache.
pub const CODE: [&str; 24] = [
    include_str!("mod.rs"),
    include_str!("ast.rs"),
    include_str!("calls.rs"),
    include_str!("checks.rs"),
    include_str!("eval.rs"),
    include_str!("expressions.rs"),
    include_str!("filters.rs"),
    include_str!("format.rs"),
    include_str!("iter.rs"),
    include_str!("json.rs"),
    include_str!("lexer.rs"),
    include_str!("loops.rs"),
    include_str!("machine.rs"),
    include_str!("meter.rs"),
    include_str!("methods.rs"),
    include_str!("names.rs"),
    include_str!("ops.rs"),
    include_str!("parser.rs"),
    include_str!("sequences.rs"),
    include_str!("strings.rs"),
    include_str!("text.rs"),
    include_str!("value.rs"),
    include_str!("../mod.rs"),
    include_str!("../date.rs"),
];

type Result<T> = std::result::Result<T, Fault>;

/// Why a template cannot be compiled or rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    what: String,
    line: usize,
    budget: bool,
}

impl Fault {
    fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), line: 0, budget: false }
    }

    /// The budget is used up.
    fn budget(what: impl Into<String>) -> Self {
        Self { budget: true, ..Self::new(what) }
    }

    /// With the line, unless a line inside of it is known.
    fn at(mut self, line: usize) -> Self {
        self.line = if self.line == 0 { line } else { self.line };
        self
    }

    /// With the name of what failed.
    fn within(mut self, name: &str) -> Self {
        if !self.budget && self.line == 0 && !self.what.starts_with(name) {
            self.what = format!("{name}: {}", self.what);
        }
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        if self.line > 0 {
            write!(f, ", line {}", self.line)?;
        }
        write!(f, ": {}", self.what.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// A compiled template.
#[derive(Debug)]
pub struct Template(ast::Template);

impl Template {
    /// Compiles `source`.
    ///
    /// # Errors
    /// It is no Jinja.
    pub fn new(source: &str) -> Result<Self> {
        parser::parse(source).map(Self)
    }

    /// Whether a variable or function of that name is read anywhere.
    pub fn reads(&self, name: &str) -> bool {
        let blocks = self.0.blocks.iter().any(|(_, block)| names::reads(&block.body, name));
        blocks || names::reads(&self.0.body, name)
    }

    /// The text for `variables`, and what it took.
    ///
    /// # Errors
    /// The template raises, or uses up the budget.
    pub fn render(&self, variables: &Map<String, Json>, clock: Clock, budget: Budget) -> Result<(String, Used)> {
        meter::start(budget);
        let values = variables.iter().map(|(name, value)| Ok((name.clone(), value::Value::from_json(value)?)));
        let context: HashMap<_, _> = values.collect::<Result<_>>()?;
        let text = machine::render(&self.0, context, clock)?;
        Ok((text, meter::used()))
    }
}
