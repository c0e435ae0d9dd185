//! Tokens to a tree: expressions, in the order in which their operators bind.

use std::sync::Arc;

use super::{
    Fault, Result,
    ast::{Arguments, Cmp, Expr, Literal, Op},
    lexer::Token,
    parser::{Parser, no_arguments},
    value::Value,
};

/// How many operators of one kind may follow each other: each is one level of the tree.
const CHAIN: usize = 200;

impl Parser {
    /// A tuple without parentheses, or one expression.
    ///
    /// # Errors
    /// There is no expression.
    pub fn tuple(&mut self, conditions: bool, end: Option<&str>, parentheses: bool) -> Result<Expr> {
        let mut items = Vec::new();
        let mut tuple = false;
        loop {
            let ends = matches!(self.peek(), Token::BlockEnd | Token::VariableEnd) || self.is_op(")");
            if ends || end.is_some_and(|end| self.is_word(end)) {
                break;
            }
            items.push(if conditions { self.expression()? } else { self.or()? });
            if !self.skip_op(",") {
                break;
            }
            tuple = true;
        }
        match items.pop() {
            Some(item) if !tuple => Ok(item),
            None if !parentheses => Err(self.unexpected("an expression")),
            last => {
                items.extend(last);
                Ok(Expr::Tuple(items))
            }
        }
    }

    /// One expression.
    ///
    /// # Errors
    /// There is none.
    pub fn expression(&mut self) -> Result<Expr> {
        self.deeper(Self::condition)
    }

    fn condition(&mut self) -> Result<Expr> {
        let mut value = self.or()?;
        for _ in 0..CHAIN {
            if !self.skip_word("if") {
                return Ok(value);
            }
            let test = self.or()?;
            let otherwise = if self.skip_word("else") { Some(Box::new(self.expression()?)) } else { None };
            value = Expr::Condition(test.into(), value.into(), otherwise);
        }
        Err(too_long())
    }

    fn or(&mut self) -> Result<Expr> {
        let mut left = self.and()?;
        for _ in 0..CHAIN {
            if !self.skip_word("or") {
                return Ok(left);
            }
            left = Expr::Or(left.into(), self.and()?.into());
        }
        Err(too_long())
    }

    fn and(&mut self) -> Result<Expr> {
        let mut left = self.not()?;
        for _ in 0..CHAIN {
            if !self.skip_word("and") {
                return Ok(left);
            }
            left = Expr::And(left.into(), self.not()?.into());
        }
        Err(too_long())
    }

    fn not(&mut self) -> Result<Expr> {
        if self.skip_word("not") {
            return Ok(Expr::Not(self.deeper(Self::not)?.into()));
        }
        self.compare()
    }

    fn compare(&mut self) -> Result<Expr> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        while let Some(cmp) = self.comparison() {
            rest.push((cmp, self.sum()?));
        }
        Ok(if rest.is_empty() { first } else { Expr::Compare(first.into(), rest) })
    }

    fn comparison(&mut self) -> Option<Cmp> {
        let cmp = match self.peek() {
            Token::Op("==") => Cmp::Eq,
            Token::Op("!=") => Cmp::Ne,
            Token::Op("<") => Cmp::Lt,
            Token::Op("<=") => Cmp::Le,
            Token::Op(">") => Cmp::Gt,
            Token::Op(">=") => Cmp::Ge,
            Token::Name(word) if word == "in" => Cmp::In,
            Token::Name(word)
                if word == "not" && matches!(self.peek_second(), Token::Name(second) if second == "in") =>
            {
                self.next();
                Cmp::NotIn
            }
            _ => return None,
        };
        self.next();
        Some(cmp)
    }

    fn operator(&mut self, ops: &[(&'static str, Op)]) -> Option<Op> {
        ops.iter().find(|(op, _)| self.skip_op(op)).map(|(_, op)| *op)
    }

    fn binary(&mut self, ops: &[(&'static str, Op)], operand: fn(&mut Self) -> Result<Expr>) -> Result<Expr> {
        let mut left = operand(self)?;
        for _ in 0..CHAIN {
            let Some(op) = self.operator(ops) else { return Ok(left) };
            left = Expr::Binary(op, left.into(), operand(self)?.into());
        }
        Err(too_long())
    }

    fn sum(&mut self) -> Result<Expr> {
        self.binary(&[("+", Op::Add), ("-", Op::Sub)], Self::concat)
    }

    fn concat(&mut self) -> Result<Expr> {
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    fn product(&mut self) -> Result<Expr> {
        let ops = [("*", Op::Mul), ("/", Op::Div), ("//", Op::FloorDiv), ("%", Op::Mod)];
        self.binary(&ops, |parser| parser.binary(&[("**", Op::Pow)], |parser| parser.unary(true)))
    }

    fn unary(&mut self, filters: bool) -> Result<Expr> {
        let node = if self.skip_op("-") {
            Expr::Negative(self.deeper(|parser| parser.unary(false))?.into())
        } else if self.skip_op("+") {
            Expr::Positive(self.deeper(|parser| parser.unary(false))?.into())
        } else {
            self.primary()?
        };
        let node = self.postfix(node)?;
        if filters { self.filters(node) } else { Ok(node) }
    }

    fn primary(&mut self) -> Result<Expr> {
        let literal = match self.peek().clone() {
            Token::Name(name) => match name.as_str() {
                "true" | "True" => Literal::Bool(true),
                "false" | "False" => Literal::Bool(false),
                "none" | "None" => Literal::None,
                _ => return Ok(Expr::Name(self.name()?)),
            },
            Token::Text(text) => return Ok(self.texts(text)),
            Token::Int(number) => Literal::Int(number),
            Token::Float(number) => Literal::Float(number),
            Token::Op("(") => {
                self.next();
                let tuple = self.deeper(|parser| parser.tuple(true, None, true))?;
                self.expect_op(")")?;
                return Ok(tuple);
            }
            Token::Op("[") => return self.list(),
            Token::Op("{") => return self.dict(),
            _ => return Err(self.unexpected("an expression")),
        };
        self.next();
        Ok(Expr::Literal(literal))
    }

    /// Texts behind each other are one.
    fn texts(&mut self, mut text: String) -> Expr {
        self.next();
        while let Token::Text(more) = self.peek() {
            text.push_str(more);
            self.next();
        }
        match Value::text(text) {
            Value::Str(text) => Expr::Literal(Literal::Text(text)),
            _ => Expr::Literal(Literal::None),
        }
    }

    fn list(&mut self) -> Result<Expr> {
        self.expect_op("[")?;
        let mut items = Vec::new();
        while !self.is_op("]") {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            if self.is_op("]") {
                break;
            }
            items.push(self.expression()?);
        }
        self.expect_op("]")?;
        Ok(Expr::List(items))
    }

    fn dict(&mut self) -> Result<Expr> {
        self.expect_op("{")?;
        let mut pairs = Vec::new();
        while !self.is_op("}") {
            if !pairs.is_empty() {
                self.expect_op(",")?;
            }
            if self.is_op("}") {
                break;
            }
            let key = self.expression()?;
            self.expect_op(":")?;
            pairs.push((key, self.expression()?));
        }
        self.expect_op("}")?;
        Ok(Expr::Dict(pairs))
    }

    fn postfix(&mut self, mut node: Expr) -> Result<Expr> {
        for _ in 0..CHAIN {
            node = match self.peek() {
                Token::Op(".") => self.attribute(node)?,
                Token::Op("[") => self.subscript(node)?,
                Token::Op("(") => Expr::Call(node.into(), self.arguments()?),
                _ => return Ok(node),
            };
        }
        Err(too_long())
    }

    fn filters(&mut self, mut node: Expr) -> Result<Expr> {
        for _ in 0..CHAIN {
            node = match self.peek() {
                Token::Op("|") => self.filter(Some(node), false)?,
                Token::Name(word) if word == "is" => self.test(node)?,
                Token::Op("(") => Expr::Call(node.into(), self.arguments()?),
                _ => return Ok(node),
            };
        }
        Err(too_long())
    }

    fn attribute(&mut self, node: Expr) -> Result<Expr> {
        self.expect_op(".")?;
        if let Token::Int(index) = *self.peek() {
            self.next();
            return Ok(Expr::Item(node.into(), Expr::Literal(Literal::Int(index)).into()));
        }
        Ok(Expr::Attribute(node.into(), self.name()?))
    }

    fn subscript(&mut self, node: Expr) -> Result<Expr> {
        self.expect_op("[")?;
        let mut indices = Vec::new();
        let mut slice = None;
        while !self.is_op("]") {
            if !indices.is_empty() || slice.is_some() {
                self.expect_op(",")?;
            }
            let first = if self.is_op(":") { None } else { Some(self.expression()?) };
            if !self.is_op(":") {
                indices.extend(first);
                continue;
            }
            let [second, third] = [self.slice_part()?, self.slice_part()?];
            if slice.replace([first, second, third]).is_some() || !indices.is_empty() {
                return Err(Fault::new("a slice stands beside another index"));
            }
        }
        self.expect_op("]")?;
        match (slice, indices.pop()) {
            (Some(parts), None) => Ok(Expr::Slice(node.into(), parts.into())),
            (Some(_), Some(_)) => Err(Fault::new("a slice stands beside another index")),
            (None, Some(index)) if indices.is_empty() => Ok(Expr::Item(node.into(), index.into())),
            (None, last) => {
                indices.extend(last);
                Ok(Expr::Item(node.into(), Expr::Tuple(indices).into()))
            }
        }
    }

    /// What stands behind a colon of a slice.
    fn slice_part(&mut self) -> Result<Option<Expr>> {
        if !self.skip_op(":") || [":", "]", ","].iter().any(|op| self.is_op(op)) {
            return Ok(None);
        }
        self.expression().map(Some)
    }

    fn arguments(&mut self) -> Result<Box<Arguments>> {
        self.deeper(Self::argument_list)
    }

    fn argument_list(&mut self) -> Result<Box<Arguments>> {
        self.expect_op("(")?;
        let mut found = Arguments::default();
        let wrong = || Fault::new("a call's arguments stand in the wrong order");
        let mut first = true;
        while !self.is_op(")") {
            if !std::mem::take(&mut first) {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            if self.skip_op("*") {
                if found.star.replace(self.expression()?).is_some() || found.stars.is_some() {
                    return Err(wrong());
                }
            } else if self.skip_op("**") {
                if found.stars.replace(self.expression()?).is_some() {
                    return Err(wrong());
                }
            } else if matches!((self.peek(), self.peek_second()), (Token::Name(_), Token::Op("="))) {
                let name = self.name()?;
                self.next();
                if found.stars.is_some() || found.named.iter().any(|(other, _)| *other == name) {
                    return Err(wrong());
                }
                found.named.push((name, self.expression()?));
            } else {
                if found.star.is_some() || found.stars.is_some() || !found.named.is_empty() {
                    return Err(wrong());
                }
                found.positional.push(self.expression()?);
            }
        }
        self.expect_op(")")?;
        Ok(found.into())
    }

    fn dotted(&mut self) -> Result<Arc<str>> {
        let mut name = self.name()?.to_string();
        while self.skip_op(".") {
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name.into())
    }

    /// Filters behind `node`; the first without its bar if `bare`.
    ///
    /// # Errors
    /// There is no name.
    pub fn filter(&mut self, node: Option<Expr>, mut bare: bool) -> Result<Expr> {
        let mut node = node;
        for _ in 0..CHAIN {
            if !std::mem::take(&mut bare) && !self.skip_op("|") {
                return node.ok_or_else(|| self.unexpected("a filter"));
            }
            let name = self.dotted()?;
            let arguments = if self.is_op("(") { self.arguments()? } else { no_arguments() };
            node = Some(Expr::Filter(node.map(Box::new), name, arguments));
        }
        Err(too_long())
    }

    fn test(&mut self, node: Expr) -> Result<Expr> {
        self.next();
        let negated = self.skip_word("not");
        let name = self.dotted()?;
        let mut arguments = no_arguments();
        match self.peek() {
            Token::Op("(") => arguments = self.arguments()?,
            Token::Name(word) if matches!(word.as_str(), "else" | "or" | "and") => {}
            Token::Name(word) if word == "is" => return Err(Fault::new("tests cannot be chained with `is`")),
            Token::Name(_) | Token::Text(_) | Token::Int(_) | Token::Float(_) | Token::Op("[" | "{") => {
                let argument = self.deeper(Self::primary)?;
                arguments.positional.push(self.postfix(argument)?);
            }
            _ => {}
        }
        let test = Expr::Test(node.into(), name, arguments);
        Ok(if negated { Expr::Not(test.into()) } else { test })
    }
}

fn too_long() -> Fault {
    Fault::new(format!("an expression has more than {CHAIN} operators of one kind behind each other"))
}
