//! Tokens to a tree: statements. Grammar and refusals are those of Jinja2's parser and compiler.

use std::sync::Arc;

use super::{
    Fault, Result,
    ast::{Arguments, Body, Expr, For, MacroDef, Name, Scoped, Stmt, Target, Template},
    lexer::{self, Lined, Token},
    names,
};

/// How deep expressions and statements may nest.
const DEPTH: usize = 90;

/// Reads tokens; expressions are read in `expressions.rs`.
pub struct Parser {
    tokens: Vec<Lined>,
    at: usize,
    depth: usize,
    /// Whether `break` and `continue` have a loop.
    in_loop: bool,
    blocks: Vec<(Name, Scoped)>,
}

/// Compiles a template.
///
/// # Errors
/// It is no Jinja.
pub fn parse(source: &str) -> Result<Template> {
    let mut parser = Parser { tokens: lexer::tokens(source)?, at: 0, depth: 0, in_loop: false, blocks: Vec::new() };
    let body = parser.subparse(&[]).and_then(|body| match parser.peek() {
        Token::End => Ok(body),
        _ => Err(Fault::new("the template ends too late")),
    });
    let body = body.map_err(|fault| fault.at(parser.line()))?;
    let mut template = Template { body, names: Vec::new(), blocks: parser.blocks };
    names::resolve(&mut template)?;
    Ok(template)
}

impl Parser {
    /// The token that is read next.
    pub fn peek(&self) -> &Token {
        &self.tokens[self.at].0
    }

    /// The token behind that.
    pub fn peek_second(&self) -> &Token {
        &self.tokens[(self.at + 1).min(self.tokens.len() - 1)].0
    }

    /// The line of the next token.
    pub fn line(&self) -> usize {
        self.tokens[self.at].1
    }

    /// Reads one token.
    pub fn next(&mut self) -> Token {
        let token = self.peek().clone();
        if token != Token::End {
            self.at += 1;
        }
        token
    }

    /// Whether the next token is the word `word`.
    pub fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Name(name) if name == word)
    }

    /// Whether the next token is the operator `op`.
    pub fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Token::Op(found) if *found == op)
    }

    /// Reads `word` if it is next.
    pub fn skip_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    /// Reads `op` if it is next.
    pub fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        self.at += usize::from(found);
        found
    }

    /// Reads `op`.
    ///
    /// # Errors
    /// Something else is next.
    pub fn expect_op(&mut self, op: &'static str) -> Result<()> {
        if self.skip_op(op) { Ok(()) } else { Err(self.unexpected(&format!("`{op}`"))) }
    }

    /// Reads a name.
    ///
    /// # Errors
    /// Something else is next.
    pub fn name(&mut self) -> Result<Name> {
        match self.peek() {
            Token::Name(name) => {
                let name = name.as_str().into();
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    /// That something else than `expected` is next.
    pub fn unexpected(&self, expected: &str) -> Fault {
        let found = match self.peek() {
            Token::Data(_) => "text".into(),
            Token::BlockBegin | Token::VariableBegin => "the beginning of a tag".into(),
            Token::BlockEnd | Token::VariableEnd => "the end of the tag".into(),
            Token::Name(name) => format!("`{name}`"),
            Token::Text(text) => format!("the text {text:?}"),
            Token::Int(number) => format!("`{number}`"),
            Token::Float(number) => format!("`{number}`"),
            Token::Op(op) => format!("`{op}`"),
            Token::End => "the end of the template".into(),
        };
        Fault::new(format!("expected {expected}, found {found}"))
    }

    /// `read` one level deeper.
    ///
    /// # Errors
    /// It fails, or nests too deep.
    pub fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= DEPTH {
            return Err(Fault::new(format!("nests more than {DEPTH} deep")));
        }
        self.depth += 1;
        let read = read(self);
        self.depth -= 1;
        read
    }

    fn subparse(&mut self, ends: &[&str]) -> Result<Body> {
        let mut body = Vec::new();
        loop {
            match self.next() {
                Token::Data(text) => body.push(Stmt::Text(text.into())),
                Token::VariableBegin => {
                    let line = self.line();
                    body.push(Stmt::Print(self.tuple(true, None, false)?, line));
                    if self.next() != Token::VariableEnd {
                        self.at -= 1;
                        return Err(self.unexpected("`}}`"));
                    }
                }
                Token::BlockBegin => {
                    if ends.iter().any(|end| self.is_word(end)) {
                        return Ok(body);
                    }
                    self.deeper(|parser| parser.statement(&mut body))?;
                    self.block_end()?;
                }
                Token::End if ends.is_empty() => return Ok(body),
                _ => return Err(Fault::new(format!("the template ends before `{}`", ends.join("` or `")))),
            }
        }
    }

    fn block_end(&mut self) -> Result<()> {
        if *self.peek() != Token::BlockEnd {
            return Err(self.unexpected("`%}`"));
        }
        self.at += 1;
        Ok(())
    }

    /// The body up to one of `ends`, whose word is read and returned.
    fn statements(&mut self, ends: &[&str]) -> Result<(Body, String)> {
        self.skip_op(":");
        self.block_end()?;
        let body = self.subparse(ends)?;
        match self.next() {
            Token::Name(end) => Ok((body, end)),
            _ => Err(Fault::new("a block has no end")),
        }
    }

    fn scoped(&mut self, end: &str) -> Result<Scoped> {
        Ok(Scoped { body: self.statements(&[end])?.0, names: Vec::new() })
    }

    /// A body that is a function in Python, where no loop outside can be left.
    fn function(&mut self, end: &str) -> Result<Scoped> {
        let outer = std::mem::replace(&mut self.in_loop, false);
        let body = self.scoped(end);
        self.in_loop = outer;
        body
    }

    fn statement(&mut self, body: &mut Body) -> Result<()> {
        let line = self.line();
        let word = self.name()?;
        body.push(match &*word {
            "for" => self.parse_for(line)?,
            "if" => self.parse_if(line)?,
            "set" => self.parse_set(line)?,
            "macro" => {
                let name = self.name()?;
                Stmt::Macro(self.macro_def(Some(name), "endmacro")?)
            }
            "call" => self.parse_call_block(line)?,
            "filter" => {
                let filter = self.filter(None, true)?;
                Stmt::Filter(filter, self.scoped("endfilter")?, line)
            }
            "with" => self.parse_with(line)?,
            "generation" => Stmt::Generation(self.function("endgeneration")?),
            "block" => self.parse_block()?,
            "print" => return self.parse_print(body, line),
            "break" | "continue" if !self.in_loop => return Err(Fault::new(format!("`{word}` outside of a loop"))),
            "break" => Stmt::Break,
            "continue" => Stmt::Continue,
            "include" => self.parse_load("include", line)?,
            "import" => self.parse_load("import", line)?,
            "from" => self.parse_load("from", line)?,
            "extends" => self.parse_load("extends", line)?,
            "autoescape" => return Err(Fault::new("`autoescape` is not supported: chat templates are no HTML")),
            _ => return Err(Fault::new(format!("unknown tag `{word}`"))),
        });
        Ok(())
    }

    fn parse_for(&mut self, line: usize) -> Result<Stmt> {
        let target = self.target(false, Some("in"))?;
        if target.leaves().iter().any(|leaf| matches!(leaf, Target::Name(name) if &**name == "loop")) {
            return Err(Fault::new("`loop` cannot be the variable of a loop"));
        }
        if !self.skip_word("in") {
            return Err(self.unexpected("`in`"));
        }
        let iter = self.tuple(false, Some("recursive"), false)?;
        let test = if self.skip_word("if") { Some(self.expression()?) } else { None };
        let recursive = self.skip_word("recursive");
        let outer = std::mem::replace(&mut self.in_loop, true);
        let (body, end) = self.statements(&["endfor", "else"])?;
        self.in_loop = outer && !recursive;
        let otherwise = if end == "else" { self.statements(&["endfor"])?.0 } else { Vec::new() };
        self.in_loop = outer;
        let [body_names, test_names, otherwise_names] = Default::default();
        let node =
            For { target, iter, test, recursive, body, otherwise, body_names, test_names, otherwise_names, line };
        Ok(Stmt::For(Arc::new(node)))
    }

    fn parse_if(&mut self, mut line: usize) -> Result<Stmt> {
        let mut branches = Vec::new();
        loop {
            let test = self.tuple(false, None, false)?;
            let (body, end) = self.statements(&["elif", "else", "endif"])?;
            branches.push((test, body, line));
            match end.as_str() {
                "elif" => line = self.line(),
                "else" => return Ok(Stmt::If(branches, self.statements(&["endif"])?.0)),
                _ => return Ok(Stmt::If(branches, Vec::new())),
            }
        }
    }

    fn parse_set(&mut self, line: usize) -> Result<Stmt> {
        let target = self.target(true, None)?;
        if self.skip_op("=") {
            return Ok(Stmt::Set(target, self.tuple(true, None, false)?, line));
        }
        let filter = if self.is_op("|") { Some(self.filter(None, false)?) } else { None };
        Ok(Stmt::SetBlock(target, filter, self.scoped("endset")?, line))
    }

    fn parse_with(&mut self, line: usize) -> Result<Stmt> {
        let mut values = Vec::new();
        while *self.peek() != Token::BlockEnd {
            if !values.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(false, None)?;
            self.expect_op("=")?;
            values.push((target, self.expression()?));
        }
        Ok(Stmt::With(values, self.scoped("endwith")?, line))
    }

    fn parse_block(&mut self) -> Result<Stmt> {
        let name = self.name()?;
        let scoped = self.skip_word("scoped");
        let required = self.skip_word("required");
        let body = self.function("endblock")?;
        self.skip_word(&name);
        let blank = |stmt: &Stmt| matches!(stmt, Stmt::Text(text) if text.chars().all(super::text::is_space));
        if required && !body.body.iter().all(blank) {
            return Err(Fault::new("a required block can only contain space"));
        }
        if self.blocks.iter().any(|(other, _)| *other == name) {
            return Err(Fault::new(format!("block `{name}` is defined twice")));
        }
        self.blocks.push((name.clone(), body));
        if scoped {
            return Err(Fault::new(format!("block `{name}`: `scoped` is not supported: leave the block's tags out")));
        }
        Ok(Stmt::Block(name, required))
    }

    fn parse_print(&mut self, body: &mut Body, line: usize) -> Result<()> {
        let mut first = true;
        while *self.peek() != Token::BlockEnd {
            if !std::mem::take(&mut first) {
                self.expect_op(",")?;
            }
            body.push(Stmt::Print(self.expression()?, line));
        }
        Ok(())
    }

    /// What names another template; the rest of the tag is read over.
    fn parse_load(&mut self, what: &'static str, line: usize) -> Result<Stmt> {
        let template = self.expression()?;
        while !matches!(self.peek(), Token::BlockEnd | Token::End) {
            self.at += 1;
        }
        Ok(Stmt::Load(what, template, line))
    }

    fn parse_call_block(&mut self, line: usize) -> Result<Stmt> {
        let (parameters, defaults) = if self.is_op("(") { self.signature()? } else { Default::default() };
        let call = self.expression()?;
        if !matches!(call, Expr::Call(..)) {
            return Err(Fault::new("`call` needs a call"));
        }
        let Scoped { body, .. } = self.function("endcall")?;
        Ok(Stmt::CallBlock(call, Arc::new(macro_of(None, parameters, defaults, body)), line))
    }

    fn macro_def(&mut self, name: Option<Name>, end: &str) -> Result<Arc<MacroDef>> {
        let (parameters, defaults) = self.signature()?;
        let Scoped { body, .. } = self.function(end)?;
        Ok(Arc::new(macro_of(name, parameters, defaults, body)))
    }

    fn signature(&mut self) -> Result<(Vec<Name>, Vec<Expr>)> {
        self.expect_op("(")?;
        let (mut parameters, mut defaults) = (Vec::new(), Vec::new());
        while !self.is_op(")") {
            if !parameters.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.assignable()?;
            if parameters.contains(&name) {
                return Err(Fault::new(format!("parameter `{name}` is there twice")));
            }
            parameters.push(name);
            if self.skip_op("=") {
                defaults.push(self.expression()?);
            } else if !defaults.is_empty() {
                return Err(Fault::new("a parameter without a default follows one with a default"));
            }
        }
        self.expect_op(")")?;
        Ok((parameters, defaults))
    }

    fn assignable(&mut self) -> Result<Name> {
        let name = self.name()?;
        if matches!(&*name, "true" | "false" | "none" | "True" | "False" | "None") {
            return Err(Fault::new(format!("`{name}` cannot be assigned to")));
        }
        Ok(name)
    }

    /// What is assigned to; attributes of a namespace if `attributes`.
    fn target(&mut self, attributes: bool, end: Option<&str>) -> Result<Target> {
        let mut targets = Vec::new();
        let mut tuple = false;
        loop {
            let ends = matches!(self.peek(), Token::BlockEnd | Token::VariableEnd) || self.is_op(")");
            if !targets.is_empty() && (ends || end.is_some_and(|end| self.is_word(end))) {
                break;
            }
            targets.push(self.one_target(attributes)?);
            if !self.skip_op(",") {
                break;
            }
            tuple = true;
        }
        match targets.pop() {
            Some(target) if !tuple => Ok(target),
            last => {
                targets.extend(last);
                Ok(Target::Tuple(targets))
            }
        }
    }

    fn one_target(&mut self, attributes: bool) -> Result<Target> {
        if self.skip_op("(") {
            let inner = self.deeper(|parser| parser.target(attributes, None))?;
            self.expect_op(")")?;
            return Ok(inner);
        }
        if attributes && matches!(self.peek_second(), Token::Op(".")) {
            let name = self.name()?;
            self.expect_op(".")?;
            return Ok(Target::Attribute(name, self.name()?));
        }
        Ok(Target::Name(self.assignable()?))
    }
}

fn macro_of(name: Option<Name>, parameters: Vec<Name>, defaults: Vec<Expr>, body: Body) -> MacroDef {
    MacroDef { name, parameters, defaults, body, names: Vec::new(), caller: false, kwargs: false, varargs: false }
}

/// No arguments.
pub fn no_arguments() -> Box<Arguments> {
    Box::default()
}
