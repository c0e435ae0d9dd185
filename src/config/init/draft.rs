//! A configuration in the making: values with the reasons for them, and what was not carried over. Writes commented TOML.

use std::fmt::Write as _;

use crate::{escape::visible, loss::Definition};

/// The keys in the order in which they are written, and what each does.
const KEYS: &[(&str, &str)] = &[
    ("model.path", "A Hugging Face folder, or an id that is in Hugging Face's cache: nothing is downloaded."),
    ("data.train", "Rows to learn from: .jsonl, .json or .parquet, also .gz and .zst; or a list of files."),
    ("data.eval", "Held-out rows; without them nothing is evaluated."),
    ("data.eval_fraction", "Share of the rows that are held out instead, drawn by train.seed."),
    ("data.order", "random, file or length."),
    ("data.columns", "What the file calls the fields."),
    ("data.max_prompt_tokens", "Longest prompt, in tokens."),
    ("data.max_response_tokens", "Longest response, in tokens."),
    ("data.long_prompt", "What is done with a longer prompt: error, drop, keep_start or keep_end."),
    ("data.long_response", "What is done with a longer response: error, drop or keep_start."),
    ("data.long_text", "What is done with a longer document: error, or split into blocks."),
    ("data.template_kwargs", "Further variables for the chat template."),
    ("batch.pairs", "Rows of an optimizer step."),
    ("batch.tokens", "Tokens of one micro-batch at most: bounds the memory and changes no result; a row must fit."),
    ("optim.name", "adamw or rmsprop."),
    ("optim.lr", "Peak learning rate."),
    ("optim.min_lr", "What it falls to."),
    ("optim.schedule", "linear, cosine, constant or warmup_stable_decay."),
    ("optim.warmup_steps", "Steps of linear warm-up."),
    ("optim.warmup_ratio", "Share of all steps that warm up."),
    ("optim.decay_ratio", "Share of all steps over which the rate falls at the end."),
    ("optim.weight_decay", "Weight decay of the matrices."),
    ("optim.beta1", "Decay of the first moment."),
    ("optim.beta2", "Decay of the second moment."),
    ("optim.eps", "Added to the root of the second moment."),
    ("optim.max_grad_norm", "Largest gradient norm; 0 turns clipping off."),
    ("train.epochs", "Passes over the rows."),
    ("train.steps", "Optimizer steps, whatever epochs says."),
    ("train.seed", "Seed of the shuffles."),
    ("train.eval_every", "Steps between evaluations; 0 evaluates before the first and after the last only."),
    ("train.save_every", "Steps between checkpoints; 0 saves after the last only."),
    ("train.keep_checkpoints", "How many of the newest checkpoints are kept; 0 keeps all."),
    ("train.save_best", "Held-out metric whose best weights are kept in best/."),
    ("train.early_stop", "Evaluations without a better value after which the run ends; 0 goes on."),
    ("train.log_every", "Steps between lines on the terminal; metrics.jsonl has every step."),
    ("train.tensorboard", "Whether event files are written, which TensorBoard reads."),
    ("train.precision", "auto (bf16 on a GPU, f32 on the host device), f32 or bf16."),
];

/// A line of the file.
struct Line {
    key: String,
    value: toml::Value,
    /// Why it has this value, or what to mind.
    words: Vec<String>,
    /// False for a line that is written as a comment.
    counts: bool,
}

/// A loss and its parameters.
struct LossTable {
    definition: &'static Definition,
    words: Vec<String>,
    lines: Vec<Line>,
}

/// What another file has and this one has not.
pub struct LeftOut {
    /// Its name there.
    pub name: String,
    /// Its value there, as JSON.
    pub value: String,
    /// The reason.
    pub why: String,
}

impl LeftOut {
    /// In one line of at most so many characters of the value.
    pub fn line(&self, most: usize) -> String {
        let value = match self.value.char_indices().nth(most) {
            Some((end, _)) => format!("{} [...]", &self.value[..end]),
            None => self.value.clone(),
        };
        visible(&format!("`{}` = {value}: {}", self.name, self.why)).into_owned()
    }
}

/// A configuration in the making.
#[derive(Default)]
pub struct Draft {
    head: Vec<String>,
    lines: Vec<Line>,
    losses: Vec<LossTable>,
    left_out: Vec<LeftOut>,
}

impl Draft {
    /// A sentence for the top of the file.
    pub(super) fn say(&mut self, words: impl Into<String>) {
        self.head.push(words.into());
    }

    /// Gives a key a value, and says why.
    pub(super) fn set(&mut self, key: &str, value: impl Into<toml::Value>, words: impl Into<String>) {
        self.put(key, value.into(), words.into(), true);
    }

    /// The same as a comment: what would be written if something else were there.
    pub(super) fn suggest(&mut self, key: &str, value: impl Into<toml::Value>, words: impl Into<String>) {
        self.put(key, value.into(), words.into(), false);
    }

    fn put(&mut self, key: &str, value: toml::Value, words: String, counts: bool) {
        let words = Some(words).filter(|words| !words.is_empty());
        match self.lines.iter_mut().find(|line| line.key == key) {
            Some(line) => {
                (line.value, line.counts) = (value, counts);
                line.words.extend(words);
            }
            None => self.lines.push(Line { key: key.to_owned(), value, words: words.into_iter().collect(), counts }),
        }
    }

    /// A further word about a key that has a value.
    pub(super) fn remark(&mut self, key: &str, words: impl Into<String>) {
        if let Some(line) = self.lines.iter_mut().find(|line| line.key == key) {
            line.words.push(words.into());
        }
    }

    /// What a key is set to.
    pub(super) fn get(&self, key: &str) -> Option<&toml::Value> {
        self.lines.iter().find(|line| line.key == key && line.counts).map(|line| &line.value)
    }

    /// A further loss, and why it is this one.
    pub(super) fn add_loss(&mut self, definition: &'static Definition, words: impl Into<String>) {
        self.losses.push(LossTable { definition, words: vec![words.into()], lines: Vec::new() });
    }

    /// Gives the loss at this place a parameter, if it has one of the name.
    pub(super) fn set_parameter(&mut self, at: usize, name: &str, value: toml::Value, words: String) -> bool {
        let table = &mut self.losses[at];
        let is_there = name == "weight" || table.definition.all_parameters().any(|parameter| parameter.name == name);
        if is_there {
            let words = if words.is_empty() { Vec::new() } else { vec![words] };
            table.lines.push(Line { key: name.to_owned(), value, words, counts: true });
        }
        is_there
    }

    /// Whether the loss at this place was given the parameter.
    pub(super) fn has_parameter(&self, at: usize, name: &str) -> bool {
        self.losses[at].lines.iter().any(|line| line.key == name)
    }

    /// The losses, in order.
    pub(super) fn losses(&self) -> impl Iterator<Item = &'static Definition> + '_ {
        self.losses.iter().map(|table| table.definition)
    }

    /// What is not carried over.
    pub(super) fn leave_out(&mut self, name: &str, value: &serde_json::Value, why: impl Into<String>) {
        self.left_out.push(LeftOut { name: name.to_owned(), value: value.to_string(), why: why.into() });
    }

    /// What was not carried over.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// The file, sections and keys in the usual order.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        self.head.iter().for_each(|words| comment(&mut text, words));
        for section in ["model", "data", "loss", "batch", "optim", "train"] {
            if section == "loss" {
                self.write_losses(&mut text);
                continue;
            }
            let of_section = |key: &str| key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'));
            let mut found = Vec::new();
            for (key, does) in KEYS.iter().filter(|(key, _)| of_section(key)) {
                found.extend(self.lines.iter().filter(|line| line.key == *key).map(|line| (does, line)));
            }
            if !found.is_empty() {
                let _ = write!(text, "\n[{section}]\n");
            }
            for (does, line) in found {
                comment(&mut text, does);
                write_line(&mut text, line, line.key.split_once('.').map_or("", |(_, key)| key));
            }
        }
        self.write_left_out(&mut text);
        text
    }

    fn write_losses(&self, text: &mut String) {
        let header = if self.losses.len() == 1 { "[loss]" } else { "[[loss]]" };
        for LossTable { definition, words, lines } in &self.losses {
            let _ = write!(text, "\n{header}\n");
            comment(text, "`warpo losses` lists what can stand here, `warpo losses NAME` tells of one.");
            words.iter().for_each(|words| comment(text, words));
            let _ = writeln!(text, "name = {:?}", definition.name);
            for line in lines {
                let parameter = definition.all_parameters().find(|parameter| parameter.name == line.key);
                comment(text, parameter.map_or("Its weight in the sum.", |parameter| parameter.meaning));
                write_line(text, line, &line.key);
            }
        }
    }

    fn write_left_out(&self, text: &mut String) {
        if self.left_out.is_empty() {
            return;
        }
        text.push('\n');
        comment(text, "What is not carried over, and why:");
        for left in &self.left_out {
            comment(text, &format!("* {}", left.line(usize::MAX)));
        }
    }
}

fn comment(text: &mut String, words: &str) {
    let _ = writeln!(text, "# {}", visible(words));
}

fn write_line(text: &mut String, line: &Line, key: &str) {
    line.words.iter().for_each(|words| comment(text, words));
    let mark = if line.counts { "" } else { "# " };
    let _ = match line.value {
        toml::Value::Float(small) if small != 0.0 && small.abs() < 1e-3 => writeln!(text, "{mark}{key} = {small:e}"),
        ref value => writeln!(text, "{mark}{key} = {value}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, loss::find};

    #[test]
    fn keys_come_in_order_with_what_they_do() {
        let mut draft = Draft::default();
        draft.say("Made of\nnothing.");
        draft.set("optim.lr", 1e-6, "as usual");
        draft.set("data.train", "t.jsonl", "");
        draft.suggest("data.eval", "held-out.jsonl", "");
        draft.set("model.path", "m", "");
        draft.add_loss(find("dpo").unwrap(), "rows are pairs");
        assert!(draft.set_parameter(0, "beta", 0.2.into(), "as there".into()));
        assert!(!draft.set_parameter(0, "gamma", 0.2.into(), String::new()));
        draft.leave_out("odd", &serde_json::json!({"a": [1, 2]}), "no counterpart");
        let text = draft.to_toml();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("# ") && !line.is_empty()).collect();
        let want = [
            "[model]",
            "path = \"m\"",
            "[data]",
            "train = \"t.jsonl\"",
            "[loss]",
            "name = \"dpo\"",
            "beta = 0.2",
            "[optim]",
            "lr = 1e-6",
        ];
        assert_eq!(lines, want, "{text}");
        assert!(
            text.starts_with("# Made of\\nnothing.\n") && text.contains("\n# eval = \"held-out.jsonl\"\n"),
            "{text}"
        );
        assert!(text.ends_with("# * `odd` = {\"a\":[1,2]}: no counterpart\n"), "{text}");
        assert_eq!(draft.left_out()[0].line(5), "`odd` = {\"a\": [...]: no counterpart");
        toml::from_str::<Config>(&text).unwrap();
    }

    /// Every key there is a text for exists.
    #[test]
    fn the_keys_are_keys() {
        for (key, _) in KEYS {
            let (section, name) = key.split_once('.').unwrap();
            let why = toml::from_str::<Config>(&format!("[{section}]\n{name} = [[[1]]]\n")).err();
            assert!(why.is_none_or(|why| !why.message().starts_with("unknown field")), "{key}");
        }
    }
}
