//! What a plan says to people: the table, what is computed again and what that costs, what would fit without, and what would help.

use std::fmt;

use serde_json::{Map, Value, json};

use super::planner::{Decision, Remedy};
use crate::{
    device::DType,
    error::Error,
    model::{Capacity, Rung},
    units::gigabytes,
};

impl Decision {
    /// Whether the device has the memory.
    pub fn fits(&self) -> bool {
        self.free == 0 || self.plan.total() <= self.free
    }

    /// Refuses a run that fits on no rung.
    ///
    /// # Errors
    /// One line with the numbers and what would help.
    pub fn check(&self) -> anyhow::Result<()> {
        let Err(why) = self.plan.check_free(self.free) else { return Ok(()) };
        let line = match &self.remedies()[..] {
            [] => format!("{why:#}; {}", self.no_remedy()),
            remedies => format!("{why:#}; what would help: {}", remedies.join("; ")),
        };
        Err(Error::OutOfMemory { wanted: self.plan.total(), free: self.free, line }.into())
    }

    /// What would help where nothing fits, in words with the total of each.
    pub fn remedies(&self) -> Vec<String> {
        let remedy = |Remedy { change, total }: &Remedy| {
            let enough = if *total <= self.free { "" } else { ", not enough" };
            format!("{change}: {}{enough}", gigabytes(*total))
        };
        self.remedies.iter().map(remedy).collect()
    }

    /// Why nothing would help.
    pub fn no_remedy(&self) -> String {
        let state = self.plan.total() - self.plan.policy.growing();
        if state > self.free {
            return format!("what does not grow with the micro-batch takes {} alone", gigabytes(state));
        }
        format!("a smaller micro-batch does not hold the longest row of {} tokens", self.longest_row)
    }

    /// `gate and value in 15 of 32 layers, attention in all`.
    fn layers(&self) -> String {
        let levels = &self.plan.policy.levels;
        let on = |rung: Rung| levels.iter().filter(|&&level| level >= rung).count();
        let mut seen = 0;
        let mut parts = Vec::new();
        for rung in Rung::ALL.into_iter().skip(1).rev() {
            let count = on(rung);
            if count > seen {
                let share =
                    if count == levels.len() { "all".into() } else { format!("{count} of {} layers", levels.len()) };
                parts.push(format!("{} in {share}", words(rung)));
            }
            seen = count;
        }
        parts.join(", ")
    }

    fn is_chunked(&self) -> bool {
        let capacity = self.plan.policy.capacity;
        capacity.head_chunk_rows < self.usual_chunk_rows.min(capacity.rows)
    }

    fn recomputes(&self) -> bool {
        self.plan.policy.levels.iter().any(|rung| *rung != Rung::None)
    }

    /// Table and notes.
    pub fn without_limit(&self) -> String {
        let notes = self.notes().into_iter();
        [self.plan.to_string()].into_iter().chain(notes).collect::<Vec<_>>().join("\n")
    }

    /// All numbers, for programs.
    pub fn json(&self) -> Value {
        let policy = &self.plan.policy;
        let mut parts = Map::new();
        let others = self.plan.others.iter().map(|(name, plan)| (*name, plan.total()));
        for (name, bytes) in policy.parts().into_iter().chain(others) {
            parts.insert(name.replace(' ', "_"), bytes.into());
        }
        let remedy = |remedy: &Remedy| {
            let fits = remedy.total <= self.free;
            json!({ "change": remedy.change, "total_bytes": remedy.total, "fits": fits })
        };
        json!({
            "fits": self.fits(),
            "total_bytes": self.plan.total(),
            "device_bytes": (self.free > 0).then_some(self.free),
            "precision": if policy.precision == DType::Bf16 { "bf16" } else { "f32" },
            "tokens": policy.capacity.tokens,
            "rows": policy.capacity.rows,
            "longest_row": self.longest_row,
            "parts": parts,
            "levels": policy.levels.iter().map(|rung| rung.name()).collect::<Vec<_>>(),
            "head_chunk_rows": policy.capacity.head_chunk_rows,
            "more_work": self.more_work,
            "head_more_work": self.head_more_work,
            "host_bytes": self.plan.on_host,
            "link_seconds": self.link_seconds,
            "total_bytes_without": self.without.total(),
            "tokens_without": self.tokens_without,
            "remedies": self.remedies.iter().map(remedy).collect::<Vec<_>>(),
        })
    }

    /// The lines below the table.
    fn notes(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let line = |what: String, less: usize, more: f64| {
            format!("{what}: {} less, about {:.0} % more work", gigabytes(less), 100.0 * more)
        };
        let layers = self.without.policy.saved.saturating_sub(self.plan.policy.saved);
        if self.recomputes() {
            lines.push(line(format!("recompute: {}", self.layers()), layers, self.more_work));
        }
        if self.plan.on_host > 0 {
            lines.push(format!(
                "moments: {} of the host's memory; an update copies them in and out, {:.2} s at 50 GB/s each way",
                gigabytes(self.plan.on_host),
                self.link_seconds
            ));
        }
        if self.is_chunked() {
            let Capacity { rows, head_chunk_rows, .. } = self.plan.policy.capacity;
            let head = self.without.total().saturating_sub(self.plan.total()).saturating_sub(layers);
            lines.push(line(
                format!("head: logits of {head_chunk_rows} of {rows} rows at a time"),
                head,
                self.head_more_work,
            ));
        }
        if self.free > 0 && self.without.total() > self.free {
            let smaller = match self.tokens_without {
                Some(tokens) => format!("{tokens} tokens a micro-batch fit without"),
                None => "no micro-batch fits without".to_owned(),
            };
            let row = self.longest_row;
            lines.push(format!(
                "  nothing recomputed would need {}; {smaller} (longest row: {row})",
                gigabytes(self.without.total())
            ));
        }
        lines
    }
}

fn words(rung: Rung) -> &'static str {
    match rung {
        Rung::None => "nothing",
        Rung::Attention => "attention",
        Rung::GateUp => "gate and value",
        Rung::Qkv => "queries, keys and values",
        Rung::Block => "all but the stream",
    }
}

/// The table under what of how much is used, and the notes.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.without_limit();
        let (head, rest) = text.split_once('\n').unwrap_or((&text, ""));
        match self.free {
            0 => f.write_str(&text),
            free => write!(f, "{head}: {} of {}\n{rest}", gigabytes(self.plan.total()), gigabytes(free)),
        }
    }
}
