//! What the lines of a scored file come to: one line for people.

use serde_json::{Map, Value};

/// Sums over rows.
#[derive(Default)]
pub struct Summary {
    pairs: usize,
    /// Pairs whose chosen response is more likely.
    right: usize,
    margin: f64,
    chosen: Likelihood,
    rejected: Likelihood,
    /// Of rows that are no pairs.
    others: Likelihood,
}

/// Log-probability, in nats, and tokens.
#[derive(Default)]
struct Likelihood {
    logps: f64,
    tokens: u64,
}

impl Likelihood {
    fn add(&mut self, logps: &Value, tokens: &Value) {
        match (logps, tokens) {
            (Value::Array(logps), Value::Array(tokens)) => {
                logps.iter().zip(tokens).for_each(|(logps, tokens)| self.add(logps, tokens));
            }
            _ => {
                self.logps += logps.as_f64().unwrap_or(f64::NAN);
                self.tokens += tokens.as_u64().unwrap_or_default();
            }
        }
    }

    /// To the power of the mean over tokens.
    fn perplexity(&self) -> f64 {
        (-self.logps / self.tokens as f64).exp()
    }
}

impl Summary {
    /// Adds the line of a row, as it is written.
    pub fn add(&mut self, line: &Map<String, Value>) {
        let (Some(chosen), Some(rejected)) = (line.get("chosen_logps"), line.get("rejected_logps")) else {
            return self.others.add(&line["logps"], &line["tokens"]);
        };
        self.chosen.add(chosen, &line["chosen_tokens"]);
        self.rejected.add(rejected, &line["rejected_tokens"]);
        let margin = chosen.as_f64().unwrap_or(f64::NAN) - rejected.as_f64().unwrap_or(f64::NAN);
        self.pairs += 1;
        self.right += usize::from(margin > 0.0);
        self.margin += margin;
    }

    /// Accuracy and mean margin of pairs, perplexity of responses.
    pub fn describe(&self) -> String {
        if self.pairs == 0 {
            return format!("perplexity {:.3} over {} tokens", self.others.perplexity(), self.others.tokens);
        }
        let pairs = self.pairs as f64;
        format!(
            "accuracy {:.3} (chosen more likely than rejected)  mean margin {:+.4} nats  perplexity {:.3} chosen, {:.3} rejected",
            self.right as f64 / pairs,
            self.margin / pairs,
            self.chosen.perplexity(),
            self.rejected.perplexity()
        )
    }
}
