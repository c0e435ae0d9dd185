//! The tree of a template. Parts that outlive their place (loops, macros) are shared.

use std::sync::Arc;

use super::value::Text;

/// A name; shared, since every scope holds it.
pub type Name = Arc<str>;
/// Statements in their order.
pub type Body = Vec<Stmt>;

/// A literal.
#[derive(Clone, Debug)]
pub enum Literal {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Arc<Text>),
}

/// Operators between two values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

/// Comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// Arguments of a call, filter or test.
#[derive(Debug, Default)]
pub struct Arguments {
    pub positional: Vec<Expr>,
    pub named: Vec<(Name, Expr)>,
    pub star: Option<Expr>,
    pub stars: Option<Expr>,
}

/// An expression.
#[derive(Debug)]
pub enum Expr {
    Literal(Literal),
    Name(Name),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Box<Expr>, Name),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, Box<[Option<Expr>; 3]>),
    Call(Box<Expr>, Box<Arguments>),
    /// Without an expression it is applied to the text of a block.
    Filter(Option<Box<Expr>>, Name, Box<Arguments>),
    Test(Box<Expr>, Name, Box<Arguments>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    Binary(Op, Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Compare(Box<Expr>, Vec<(Cmp, Expr)>),
    /// Test, value, and the value otherwise.
    Condition(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
}

/// Where a value is assigned to.
#[derive(Debug)]
pub enum Target {
    Name(Name),
    /// An attribute of a namespace.
    Attribute(Name, Name),
    Tuple(Vec<Target>),
}

impl Target {
    /// Every part that is no tuple.
    pub fn leaves(&self) -> Vec<&Self> {
        match self {
            Self::Tuple(targets) => targets.iter().flat_map(Self::leaves).collect(),
            _ => vec![self],
        }
    }
}

/// What a name of a scope is when the scope begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Set by who opens the scope.
    Parameter,
    /// The variable of the conversation.
    Context,
    /// The same name of the scope outside.
    Outer,
    /// Not there until it is assigned.
    Missing,
}

/// The names of a scope.
pub type Names = Vec<(Name, Load)>;

/// `{% for %}`.
#[derive(Debug)]
pub struct For {
    pub target: Target,
    pub iter: Expr,
    pub test: Option<Expr>,
    pub recursive: bool,
    pub body: Body,
    pub otherwise: Body,
    pub body_names: Names,
    pub test_names: Names,
    pub otherwise_names: Names,
    pub line: usize,
}

/// `{% macro %}`, and what a call block hands on.
#[derive(Debug)]
pub struct MacroDef {
    /// `None` for the body of a call block.
    pub name: Option<Name>,
    pub parameters: Vec<Name>,
    /// Of the last parameters.
    pub defaults: Vec<Expr>,
    pub body: Body,
    pub names: Names,
    pub caller: bool,
    pub kwargs: bool,
    pub varargs: bool,
}

/// A body with names of its own.
#[derive(Debug)]
pub struct Scoped {
    pub body: Body,
    pub names: Names,
}

/// A statement.
#[derive(Debug)]
pub enum Stmt {
    Text(Box<str>),
    Print(Expr, usize),
    For(Arc<For>),
    /// Tests with their bodies, and the body otherwise.
    If(Vec<(Expr, Body, usize)>, Body),
    Macro(Arc<MacroDef>),
    /// The call, the macro that its caller is, and the line.
    CallBlock(Expr, Arc<MacroDef>, usize),
    /// `{% generation %}`: a body in a scope of its own.
    Generation(Scoped),
    Filter(Expr, Scoped, usize),
    With(Vec<(Target, Expr)>, Scoped, usize),
    Set(Target, Expr, usize),
    /// With the filter that its text passes through.
    SetBlock(Target, Option<Expr>, Scoped, usize),
    Block(Name, bool),
    /// What there is nothing to load from for, refused when it is reached.
    Load(&'static str, Expr, usize),
    Break,
    Continue,
}

/// A compiled template.
#[derive(Debug)]
pub struct Template {
    pub body: Body,
    pub names: Names,
    pub blocks: Vec<(Name, Scoped)>,
}
