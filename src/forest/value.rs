//! Numbers that come with responses: what each is called, which it may be, and which fields of a row it stands in.

/// A number that comes with a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// How good the response is; higher is better. Stands in [`Tree::scores`](super::Tree::scores).
    Score,
    /// Probability that the chosen response is the better one, 0 to 1.
    Preference,
    /// Mean probability to win against other responses, 0 to 1.
    WinRate,
    /// Visits of a search, 0 or more.
    Visits,
    /// A margin that somebody else measured.
    Margin,
    /// UPO's weight of the pair, 0 to 1.
    Uncertainty,
    /// The logit of a judge that prefers the chosen response.
    JudgeLogit,
    /// Whose preference it is: a whole number.
    Group,
}

/// What is known of a kind of number.
struct Kind {
    value: Value,
    name: &'static str,
    range: Range,
    columns: &'static str,
}

/// Which numbers a kind has.
#[derive(Clone, Copy)]
enum Range {
    Any,
    Probability,
    Count,
    Whole,
}

/// Every kind, in the order of the numbers by which files know them.
const KINDS: [Kind; 8] = [
    kind(Value::Score, "score", Range::Any, "`score_chosen` and `score_rejected` (a single response: `score`)"),
    kind(Value::Preference, "preference", Range::Probability, "`preference`"),
    kind(Value::WinRate, "winrate", Range::Probability, "`win_rate_chosen` and `win_rate_rejected`"),
    kind(
        Value::Visits,
        "visits",
        Range::Count,
        "`visits_chosen` and `visits_rejected` (a tree: `visits` of each node)",
    ),
    kind(Value::Margin, "margin", Range::Any, "`margin`"),
    kind(Value::Uncertainty, "uncertainty", Range::Probability, "`uncertainty`"),
    kind(Value::JudgeLogit, "judgelogit", Range::Any, "`judge_logit`"),
    kind(Value::Group, "group", Range::Whole, "`group`"),
];

const fn kind(value: Value, name: &'static str, range: Range, columns: &'static str) -> Kind {
    Kind { value, name, range, columns }
}

impl Value {
    /// The kind with this number, if there is one.
    pub fn numbered(number: usize) -> Option<Self> {
        KINDS.get(number).map(|kind| kind.value)
    }

    fn kind(self) -> &'static Kind {
        &KINDS[self as usize]
    }

    /// What a message calls it.
    pub fn name(self) -> &'static str {
        self.kind().name
    }

    /// The fields it comes in.
    pub fn columns(self) -> &'static str {
        self.kind().columns
    }

    /// What a number must be that is none of this kind.
    pub fn refusal(self, number: f64) -> Option<&'static str> {
        let (wanted, fits) = match self.kind().range {
            Range::Any => return None,
            Range::Probability => ("from 0 to 1", (0.0..=1.0).contains(&number)),
            Range::Count => ("0 or more", number >= 0.0),
            Range::Whole => ("a whole number", number.fract() == 0.0),
        };
        (!fits).then_some(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_numbers() {
        for (number, kind) in KINDS.iter().enumerate() {
            assert_eq!(kind.value as usize, number, "{}", kind.name);
            assert_eq!(format!("{:?}", kind.value).to_lowercase(), kind.name);
        }
        assert_eq!(Value::numbered(KINDS.len()), None);
    }
}
