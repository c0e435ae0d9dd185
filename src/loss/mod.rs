//! Losses: from the log-probability of every row to one coefficient per row, and the metrics that go with it.
//!
//! A loss is a sum of heads over groups of sequences; a head is one row in the table of its family's kernel. One file per
//! family: to add a loss, read the file of the family it belongs to. Nothing else in the engine changes: the backward pass
//! starts from the coefficients. This module knows nothing about text or models.

pub mod batch;
pub mod definition;
pub mod difference;
mod groups;
pub mod likelihood;
pub mod list;
mod metrics;
pub mod page;
pub mod separate;
mod step;
pub mod token;
pub mod with_likelihood;

use anyhow::{Context, Result, bail, ensure};

pub use crate::data::reshape::Reshape;
use crate::{
    forest::Value,
    model::MaskKind,
    ops::{
        loss_likelihood,
        loss_rows::{SLOPES, SUMS},
    },
    spelling,
};
pub use definition::{Definition, HeadPart, LossFamily, LossHead, Mean, Parameters, Shape, Special};
pub use groups::Groups;
pub use metrics::{HIGHER, Margin, Measured, MetricSums, Reading, higher_is_better};
pub use step::{Outputs, Step};

/// Every loss, by family.
pub fn all() -> impl Iterator<Item = &'static Definition> {
    let families = [
        difference::LOSSES,
        separate::LOSSES,
        batch::LOSSES,
        with_likelihood::LOSSES,
        list::LOSSES,
        token::LOSSES,
        likelihood::LOSSES,
    ];
    families.into_iter().flatten()
}

/// The loss of this name, whatever its case.
///
/// # Errors
/// There is none: says which is near.
pub fn find(name: &str) -> Result<&'static Definition> {
    all().find(|loss| loss.is_called(name)).with_context(|| {
        let names = all().flat_map(|loss| std::iter::once(loss.name).chain(loss.aliases.iter().copied()));
        format!("there is no loss of this name: {}`warpo losses` lists them", spelling::hint(name, names))
    })
}

/// One loss with its parameters, and its weight in the sum.
#[derive(Clone, Debug)]
pub struct Term {
    /// The row of its table.
    pub definition: &'static Definition,
    /// In the sum.
    pub weight: f64,
    /// Values of what may be set.
    pub parameters: Parameters,
}

impl Term {
    /// A loss with its defaults and weight 1.
    ///
    /// # Errors
    /// There is no loss of this name.
    pub fn named(name: &str) -> Result<Self> {
        let definition = find(name)?;
        Ok(Self { definition, weight: 1.0, parameters: Parameters::defaults(definition) })
    }

    fn reshape(&self) -> Reshape {
        match self.definition.special {
            Special::Reshape(reshape) => reshape,
            _ => Reshape::None,
        }
    }

    fn parts(&self) -> Vec<HeadPart> {
        let mut parts = (self.definition.parts)(&self.parameters);
        parts.iter_mut().for_each(|part| part.weight *= self.weight);
        parts
    }
}

/// What a run minimises: a sum of losses over the same groups.
#[derive(Clone, Debug)]
pub struct Loss {
    terms: Vec<Term>,
}

impl Loss {
    /// The sum of these losses.
    ///
    /// # Errors
    /// There is none, or they need data of different shapes: says which.
    pub fn new(terms: Vec<Term>) -> Result<Self> {
        let loss = Self { terms };
        ensure!(!loss.terms.is_empty(), "no loss: give it a `name`");
        let shape = loss.shape();
        for term in &loss.terms {
            let own = term.definition.shape;
            ensure!(
                own == shape || own == Shape::Single && shape == Shape::Pair,
                "`{}` learns from {}, `{}` from {}: losses of one run need the same data",
                loss.terms[0].definition.name,
                loss.terms[0].definition.shape.describe(),
                term.definition.name,
                own.describe()
            );
            let values = term.definition.values;
            ensure!(
                values.is_empty() || values == loss.needed_values(),
                "`{}` needs {} of each row, another loss of the run other numbers: run them one by one",
                term.definition.name,
                values.iter().map(|&value| value.columns()).collect::<Vec<_>>().join(" and ")
            );
        }
        for (what, reshape) in loss.terms.iter().map(|term| (term.definition.name, term.reshape())) {
            ensure!(
                loss.terms.iter().all(|term| term.reshape() == reshape || term.definition.shape == Shape::Single),
                "`{what}` changes the rows it learns from: it cannot be combined with losses that do not"
            );
        }
        ensure!(
            loss.masks().is_none() || loss.terms.len() == 1,
            "`{}` weights the tokens of every loss of the run: it stands alone",
            loss.names()
        );
        ensure!(loss.terms.iter().any(|term| term.weight > 0.0), "every `weight` is 0: there is nothing to train");
        Ok(loss)
    }

    /// One loss with its defaults.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn named(name: &str) -> Result<Self> {
        Self::new(vec![Term::named(name)?])
    }

    /// One loss with these parameters.
    ///
    /// # Errors
    /// There is no such loss or parameter, or a value is out of its range.
    pub fn with(name: &str, parameters: &[(&str, f64)]) -> Result<Self> {
        let mut term = Term::named(name)?;
        for (key, value) in parameters {
            let set = term.parameters.set(term.definition, key, &toml::Value::Float(*value));
            set.with_context(|| format!("`{key}` = {value}"))?;
        }
        Self::new(vec![term])
    }

    /// The losses that are added up.
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// The heads, and the term each belongs to.
    pub fn parts(&self) -> Vec<(usize, HeadPart)> {
        let parts = |(i, term): (usize, &Term)| term.parts().into_iter().map(move |part| (i, part));
        self.terms.iter().enumerate().flat_map(parts).collect()
    }

    /// Operations and bytes of the heads of a step of these rows and sequences, and of the way from rows and back. About
    /// forty operations a row, most of them of log(1 - exp(x)) where it is wanted, and two hundred a sequence and head; a row
    /// moves four f32, a sequence its sums once for each head and its slopes twice.
    pub fn cost(&self, rows: usize, sequences: usize) -> (f64, f64) {
        let (rows, sequences, heads) = (rows as f64, sequences as f64, self.parts().len() as f64);
        let numbers = SUMS as f64 * (1.0 + heads) + SLOPES as f64 * (2.0 + heads);
        (40.0 * rows + 200.0 * heads * sequences, 16.0 * rows + 8.0 * numbers * sequences)
    }

    /// How sequences stand together.
    pub fn shape(&self) -> Shape {
        let shapes = self.terms.iter().map(|term| term.definition.shape);
        shapes.reduce(|a, b| if a == Shape::Single { b } else { a }).unwrap_or(Shape::Single)
    }

    /// The names of its losses.
    pub fn names(&self) -> String {
        self.terms.iter().map(|term| term.definition.name).collect::<Vec<_>>().join(" + ")
    }

    /// Whether a part sees the whole step at once.
    pub fn couples_the_step(&self) -> bool {
        self.parts().iter().any(|(_, part)| matches!(part.head, LossHead::Batch { .. }))
    }

    /// Whether log-ratios to the starting weights enter.
    pub fn needs_reference(&self) -> bool {
        self.terms.iter().any(|term| term.definition.reference)
    }

    /// Whether the reference's distribution of every row enters.
    pub fn needs_divergence(&self) -> bool {
        self.parts().iter().any(|(_, part)| part.needs_divergence())
    }

    /// Whether the sum of squared probabilities of every row enters.
    pub fn needs_collisions(&self) -> bool {
        self.parts().iter().any(|(_, part)| part.needs_collisions())
    }

    /// Whether a row's log-probability is not all that enters.
    pub fn needs_distributions(&self) -> bool {
        self.needs_divergence() || self.needs_collisions()
    }

    /// Whether it has a running reference point: see [`loss_batch::STATE`](crate::ops::loss_batch::STATE).
    pub fn carries(&self) -> bool {
        self.couples_the_step() && self.terms.iter().any(|term| term.parameters.is_open("delta"))
    }

    /// The same loss with a running reference point held where `state` has it: what held-out rows are measured by.
    pub fn held(&self, state: &[f64]) -> Self {
        let mut loss = self.clone();
        let mean = if state[1] > 0.0 { state[0] / state[1] } else { 0.0 };
        loss.terms.iter_mut().for_each(|term| term.parameters.fill_in("delta", mean));
        loss
    }

    /// How rows are changed before they are learnt from.
    pub fn reshape(&self) -> Reshape {
        let own = self.terms.iter().map(Term::reshape).find(|&reshape| reshape != Reshape::None);
        own.unwrap_or(if self.shape() == Shape::Single { Reshape::Chosen } else { Reshape::None })
    }

    /// How much of the older reference is taken off, where the loss has one.
    pub fn acceleration(&self) -> Option<f64> {
        let term = self.terms.iter().find(|term| term.definition.special == Special::OlderReference)?;
        Some(term.parameters.get("alpha"))
    }

    /// The masks of tokens, where the loss has them.
    pub fn masks(&self) -> Option<MaskKind> {
        self.terms.iter().find_map(|term| match term.definition.special {
            Special::Masks(masks) => Some(masks),
            _ => None,
        })
    }

    /// Whether it has a slope where the policy is the reference: a term on the policy's samples has none there.
    pub fn moves_at_the_reference(&self) -> bool {
        let still = |function| function == loss_likelihood::function::ONLINE;
        !self
            .parts()
            .iter()
            .all(|(_, part)| matches!(part.head, LossHead::Likelihood { function, .. } if still(function)))
    }

    fn needs_complements(&self) -> bool {
        let function = loss_likelihood::function::UNLIKELIHOOD;
        self.parts()
            .iter()
            .any(|(_, part)| matches!(part.head, LossHead::Likelihood { function: f, .. } if f == function))
    }

    fn needs_rationale(&self) -> bool {
        self.terms.iter().any(|term| term.definition.rationale)
    }

    fn needs_scores(&self) -> bool {
        self.parts().iter().any(|(_, part)| list::needs_scores(part.head))
    }

    fn needed_values(&self) -> &'static [Value] {
        let mut values = self.terms.iter().map(|term| term.definition.values);
        values.find(|values| !values.is_empty()).unwrap_or(&[])
    }

    /// LD-DPO's weight of the longer response's tail.
    fn row_weight(&self) -> Option<f64> {
        let term = self.terms.iter().find(|term| term.definition.special == Special::TailWeight)?;
        Some(term.parameters.get("ld_alpha"))
    }

    /// Factor of a log-ratio in a reward: the first term's beta.
    fn beta(&self) -> f64 {
        let of = |term: &Term| term.parameters.iter().find(|(name, _)| *name == "beta").map(|(_, beta)| beta);
        self.terms.iter().find_map(of).unwrap_or(1.0)
    }
}

/// The losses that `[loss]` names: a table, or several as `[[loss]]`. `at` says where a key was set.
///
/// # Errors
/// One line with place, key, value and remedy.
pub fn read(tables: &[toml::Table], at: &dyn Fn(&str) -> String) -> Result<Loss> {
    let mut terms = Vec::new();
    for table in tables {
        let name = match table.get("name") {
            Some(toml::Value::String(name)) => name.as_str(),
            Some(other) => bail!("{}: `loss.name` = {other}: must be the name of a loss", at("loss.name")),
            None if table.is_empty() || tables.len() == 1 => "dpo",
            None => bail!("{}: a `[[loss]]` has no `name`: name a loss", at("loss.name")),
        };
        let mut term = Term::named(name).with_context(|| format!("{}: `loss.name` = {name:?}", at("loss.name")))?;
        for (key, value) in table.iter().filter(|(key, _)| *key != "name") {
            let dotted = format!("loss.{key}");
            if key == "weight" {
                let weight = value.as_float().or(value.as_integer().map(|whole| whole as f64));
                let weight = weight.filter(|weight| weight.is_finite() && *weight >= 0.0);
                term.weight = weight.with_context(|| {
                    format!("{}: `{dotted}` = {value}: must be a finite number of 0 or more", at(&dotted))
                })?;
                continue;
            }
            let set = term.parameters.set(term.definition, key, value);
            set.map_err(|why| anyhow::anyhow!("{}: `{dotted}` = {value}: {why}", at(&dotted)))?;
        }
        terms.push(term);
    }
    Loss::new(terms).map_err(|why| anyhow::anyhow!("{}: `loss`: {why}", at("loss")))
}

impl Loss {
    /// The tables that [`read`] reads, with every default written out.
    pub fn to_tables(&self) -> Vec<toml::Table> {
        let table = |term: &Term| {
            let mut table = toml::Table::new();
            table.insert("name".into(), term.definition.name.into());
            if term.weight != 1.0 {
                table.insert("weight".into(), term.weight.into());
            }
            for (parameter, (name, value)) in term.definition.all_parameters().zip(term.parameters.iter()) {
                let shown = match parameter.range {
                    definition::Bounds::OneOf(words) => words[value as usize].into(),
                    _ => value.into(),
                };
                if !value.is_nan() {
                    table.insert(name.into(), shown);
                }
            }
            table
        };
        self.terms.iter().map(table).collect()
    }
}
