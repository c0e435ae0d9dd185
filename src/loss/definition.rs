//! What a loss is: its name, its formula, its parameters with their ranges, the data it needs, and the heads it is made of.

use std::fmt;

use anyhow::{Result, bail, ensure};

use crate::ops::{loss_difference::flag, loss_rows::PARAMETERS};
use crate::{data::reshape::Reshape, forest::Value, model::MaskKind};

/// One loss, as documented and as run.
#[derive(Debug)]
pub struct Definition {
    /// What `[loss] name` says.
    pub name: &'static str,
    /// Other names it goes by, TRL's among them.
    pub aliases: &'static [&'static str],
    /// Whose head computes it.
    pub family: LossFamily,
    /// Value and slope in the notation of `docs/losses.md`.
    pub formula: &'static str,
    /// Its slopes, in words and signs.
    pub gradient: &'static str,
    /// What may be set, by group.
    pub parameters: &'static [&'static [Parameter]],
    /// How its sequences stand together.
    pub shape: Shape,
    /// Numbers every row needs; the first is what the head reads first.
    pub values: &'static [Value],
    /// Whether every row needs a rationale.
    pub rationale: bool,
    /// What it needs beside rows and reference.
    pub special: Special,
    /// Whether log-ratios to the starting weights are formed.
    pub reference: bool,
    /// Where it is defined.
    pub source: &'static str,
    /// What surprises people.
    pub traps: &'static [&'static str],
    /// The heads it is the sum of.
    pub parts: fn(&Parameters) -> Vec<HeadPart>,
}

/// What a head has to know: one kernel each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossFamily {
    /// Of a pair's difference of log-ratios.
    Difference,
    /// The same by means over tokens.
    PerTokenDifference,
    /// Of each side of a pair by itself.
    Separate,
    /// Of all rows of a step together.
    Batch,
    /// A preference and a likelihood.
    WithLikelihood,
    /// Of ranked or graded lists.
    List,
    /// Of tokens' ratios and divergences.
    Token,
    /// Of single responses.
    Likelihood,
    /// Of the policy's own samples.
    OnPolicy,
}

impl LossFamily {
    /// Its number in the literature notes and what its members have in common.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Difference => "F1: a function of one margin",
            Self::PerTokenDifference => "F2: a function of one margin per token",
            Self::Separate => "F3: a function of both log-ratios",
            Self::Batch => "F4: coupled over the whole step",
            Self::WithLikelihood => "F5: a preference and a likelihood",
            Self::List => "F6: a list of responses",
            Self::Token => "F7: token weights or token divergences",
            Self::Likelihood => "F8: a likelihood",
            Self::OnPolicy => "F9: a term on samples of the policy",
        }
    }
}

/// What a loss does to rows or asks of a run besides its heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Nothing.
    None,
    /// Rows of another form.
    Reshape(Reshape),
    /// Weights of tokens.
    Masks(MaskKind),
    /// Tokens beyond the shorter response count `ld_alpha`.
    TailWeight,
    /// The reference is carried on from an older one by `alpha`.
    OlderReference,
    /// The two sides may answer prompts of their own.
    JointPrompts,
}

/// How sequences stand together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A chosen and a rejected response: pairs, or the best and the worst of siblings in a tree of steps.
    Pair,
    /// Responses with scores or labels: lists, siblings in a tree of steps, pairs as lists of two.
    List,
    /// Single responses, each desirable or not; a pair is one of each.
    Labelled,
    /// Single responses to learn; of a pair the chosen one.
    Single,
}

impl Shape {
    /// The rows that have this shape, in words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Pair => "pairs, or trees of scored steps",
            Self::List => "lists of responses, trees of scored steps, or pairs",
            Self::Labelled => "completions with a label, or pairs",
            Self::Single => "completions, texts, or the chosen side of pairs",
        }
    }
}

/// A number or choice of a loss.
#[derive(Debug)]
pub struct Parameter {
    /// What `[loss] name` says.
    pub name: &'static str,
    /// Not a number: the parameter may be left out, and its meaning says what happens then.
    pub default: f64,
    /// Which values are taken.
    pub range: Bounds,
    /// In a few words.
    pub meaning: &'static str,
}

/// What a parameter may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bounds {
    /// Above this.
    Above(f64),
    /// This or more.
    AtLeast(f64),
    /// From the first up to, but not including, the second.
    Below(f64, f64),
    /// Both ends included.
    Within(f64, f64),
    /// Above the first, up to, but not including, the second.
    Inside(f64, f64),
    /// Any finite number.
    Any,
    /// One of these words; its value is the word's place.
    OneOf(&'static [&'static str]),
}

impl Bounds {
    fn accepts(self, value: f64) -> bool {
        value.is_finite()
            && match self {
                Self::Above(low) => value > low,
                Self::AtLeast(low) => value >= low,
                Self::Below(low, high) => value >= low && value < high,
                Self::Within(low, high) => value >= low && value <= high,
                Self::Inside(low, high) => value > low && value < high,
                Self::Any | Self::OneOf(_) => true,
            }
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Above(low) => write!(f, "above {low}"),
            Self::AtLeast(low) => write!(f, "{low} or more"),
            Self::Below(low, high) => write!(f, "{low} or more and below {high}"),
            Self::Within(low, high) => write!(f, "from {low} to {high}"),
            Self::Inside(low, high) => write!(f, "above {low} and below {high}"),
            Self::Any => write!(f, "a finite number"),
            Self::OneOf(words) => write!(f, "one of {}", words.join(", ")),
        }
    }
}

impl Parameter {
    /// A value as the configuration writes it.
    pub fn show(&self, value: f64) -> String {
        match self.range {
            Bounds::OneOf(words) => format!("{:?}", words[value as usize]),
            _ => value.to_string(),
        }
    }

    fn read(&self, value: &toml::Value) -> Result<f64> {
        let number = match (self.range, value) {
            (Bounds::OneOf(words), toml::Value::String(word)) => {
                words.iter().position(|known| known == word).map(|place| place as f64)
            }
            (Bounds::OneOf(_), _) => None,
            (_, toml::Value::Float(number)) => Some(*number),
            (_, toml::Value::Integer(number)) => Some(*number as f64),
            _ => None,
        };
        match number.filter(|&number| self.range.accepts(number)) {
            Some(number) => Ok(number),
            None => bail!("must be {}", self.range),
        }
    }
}

impl Definition {
    /// All parameters, those of every loss last.
    pub fn all_parameters(&self) -> impl Iterator<Item = &'static Parameter> + use<> {
        self.parameters.iter().flat_map(|list| list.iter())
    }

    /// Whether it goes by this name, whatever its case.
    pub fn is_called(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name) || self.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(name))
    }
}

/// The strength of the pull towards the reference.
pub const fn beta(default: f64) -> Parameter {
    Parameter {
        name: "beta",
        default,
        range: Bounds::Above(0.0),
        meaning: "strength of the pull towards the reference",
    }
}

/// A likelihood term beside a preference.
pub const SFT_WEIGHT: Parameter = Parameter {
    name: "sft_weight",
    default: 0.0,
    range: Bounds::AtLeast(0.0),
    meaning: "weight of the chosen responses' mean negative log-likelihood per token of the step",
};

/// Losses that take a likelihood term and nothing else in common.
pub const SFT: &[Parameter] = &[SFT_WEIGHT];

/// The parameters of a loss, defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters(Vec<(&'static str, f64)>);

impl Parameters {
    /// Nothing but defaults.
    pub fn defaults(definition: &Definition) -> Self {
        Self(definition.all_parameters().map(|p| (p.name, p.default)).collect())
    }

    /// A parameter of the definition.
    ///
    /// # Panics
    /// The definition has no such parameter.
    pub fn get(&self, name: &str) -> f64 {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("the loss has no parameter `{name}`")).1
    }

    /// As [`get`](Self::get), 0 where there is none.
    pub fn get_or_0(&self, name: &str) -> f64 {
        self.0.iter().find(|(known, _)| *known == name).map_or(0.0, |found| found.1)
    }

    /// Whether there is such a parameter and it was left open.
    pub fn is_open(&self, name: &str) -> bool {
        self.0.iter().any(|(known, own)| *known == name && own.is_nan())
    }

    /// Gives a parameter that was left out a value.
    pub fn fill_in(&mut self, name: &str, value: f64) {
        let found = self.0.iter_mut().find(|(known, own)| *known == name && own.is_nan());
        found.into_iter().for_each(|found| found.1 = value);
    }

    /// Puts a value in the place of the default.
    ///
    /// # Errors
    /// The definition has no such parameter, or the value is out of its range: what is wrong, without the key.
    pub fn set(&mut self, definition: &Definition, name: &str, value: &toml::Value) -> Result<()> {
        let Some(parameter) = definition.all_parameters().find(|p| p.name == name) else {
            let known: Vec<String> = definition.all_parameters().map(|p| format!("`{}`", p.name)).collect();
            bail!("unknown key; the loss `{}` has `name`, `weight`, {}", definition.name, known.join(", "));
        };
        let number = parameter.read(value)?;
        let place = self.0.iter_mut().find(|(known, _)| *known == name);
        ensure!(place.is_some(), "unknown key");
        place.into_iter().for_each(|found| found.1 = number);
        Ok(())
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, f64)> + '_ {
        self.0.iter().copied()
    }
}

/// One head of a loss.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadPart {
    /// Which head, and its function.
    pub head: LossHead,
    /// Its weight in the loss.
    pub weight: f64,
    /// What its sum is divided by.
    pub mean: Mean,
    /// What may be set, by group.
    pub parameters: [f64; PARAMETERS],
}

/// Which kernel, which function of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossHead {
    /// Of differences of log-ratios.
    Difference {
        /// The function's number in the kernel.
        phi: i32,
        /// What is done to the difference before.
        map: i32,
        /// What it looks at beside.
        flags: i32,
    },
    /// Of each side by itself.
    Separate {
        /// Its number in the kernel.
        function: i32,
    },
    /// Of single responses.
    Likelihood {
        /// Its number in the kernel.
        function: i32,
        /// Which slot of a group is learnt.
        place: i32,
    },
    /// Of lists.
    List {
        /// Its number in the kernel.
        function: i32,
    },
    /// Of all rows of a step.
    Batch {
        /// Its number in the kernel.
        function: i32,
    },
}

/// What a part is averaged over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mean {
    /// The groups of the step.
    Groups,
    /// The rows of the step in the sequences at this place of their groups: TRL's batch-token mean.
    Rows(usize),
    /// The rows of all slots of the step.
    AllRows,
    /// It is a mean already.
    Own,
}

impl HeadPart {
    /// A head averaged over groups, of weight 1.
    pub fn new(head: LossHead, parameters: &[f64]) -> Self {
        let mut all = [0.0; PARAMETERS];
        all[..parameters.len()].copy_from_slice(parameters);
        Self { head, weight: 1.0, mean: Mean::Groups, parameters: all }
    }

    /// The part with this weight.
    pub fn weighted(mut self, weight: f64) -> Self {
        self.weight = weight;
        self
    }

    /// The part under another mean.
    pub fn over(mut self, mean: Mean) -> Self {
        self.mean = mean;
        self
    }

    fn flag(&self, wanted: i32) -> bool {
        matches!(self.head, LossHead::Difference { flags, .. } if flags & wanted != 0)
    }

    /// Whether it needs the reference's distribution of every row.
    pub fn needs_divergence(&self) -> bool {
        self.flag(flag::WITH_DIVERGENCE)
    }

    /// Whether it needs the sum of squared probabilities of every row.
    pub fn needs_collisions(&self) -> bool {
        self.flag(flag::POLICY_WEIGHTED)
    }
}
