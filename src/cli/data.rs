//! `warpo data RUN.toml`: what a run's rows become, and what the loss covers.

use std::{
    fmt::Write as _,
    io::{IsTerminal, stdout},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Result;

use crate::{
    config::Config,
    data::{
        Dataset,
        batches::{self, Packing},
        loader::Loader,
        sets::Sets,
        tokenize::Tokenizer,
    },
    escape::visible,
    forest::{Segment, Tree},
    model::ModelConfig,
    report::terminal,
    train::unused::{self, Facts},
};

/// Rows left out that are listed one by one.
const LISTED: usize = 20;
/// Characters of the longest bar.
const BAR: usize = 24;

#[derive(clap::Args)]
pub struct Args {
    /// Run configuration
    #[arg(value_name = "RUN.toml")]
    config: PathBuf,
    /// Rows of the training data to show
    #[arg(long, value_name = "N", default_value_t = 1)]
    show: usize,
    /// Overrides a key of the configuration, such as `batch.tokens=8192`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let config = Config::load(&args.config, &args.set)?;
    let model = ModelConfig::load(&config.model.path)?;
    let mut sets = Sets::read(config.encoder(model.vocab, model.positions)?, &config.sets()?, terminal::counting_rows)?;
    sets.reshape(config.loss.read()?.reshape(), config.batch.tokens)?;
    let loader =
        batches::loader(&sets.train, config.data.order, config.train.seed, config.step_size(), config.batch.tokens)?;
    let mut text = report(&config, &sets, &loader, args.show, stdout().is_terminal())?;
    for note in notes(&config, &loader)? {
        let _ = writeln!(text, "{}", visible(&note));
    }
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What of the configuration a run would not use.
fn notes(config: &Config, loader: &Loader) -> Result<Vec<String>> {
    let total_steps = config.train.steps.or_else(|| loader.steps_in(config.train.epochs)).unwrap_or(u64::MAX);
    unused::notes(&Facts { config, loss: &config.loss.read()?, total_steps, device: None })
}

fn report(config: &Config, sets: &Sets, loader: &Loader, show: usize, color: bool) -> Result<String> {
    let mut text = String::new();
    for tree in sets.train.trees.iter().take(show) {
        text += &row(&tree?, sets.encoder.tokenizer(), color)?;
    }
    for origin in &sets.origins {
        let _ = writeln!(text, "{}", visible(origin));
    }
    text += &file("train", &sets.train, config)?;
    let packing = batches::packing(&sets.train.trees, loader)?;
    let _ = writeln!(text, "  {}", packing.describe(config.step_size()));
    if let Some(eval) = &sets.eval {
        text += &file("eval", eval, config)?;
    }
    Ok(text)
}

/// A row's segments as text and as tokens; what the loss covers is green on a terminal and in brackets elsewhere.
fn row(tree: &Tree, tokenizer: &Tokenizer, color: bool) -> Result<String> {
    let mut text = format!("{}: {} tokens\n", visible(&tree.name), tree.tokens());
    let mut sequence = 0;
    for segment in &tree.segments {
        let name = if segment.scored { scored_name(tree, sequence) } else { "prompt".to_owned() };
        sequence += usize::from(segment.scored);
        let _ = writeln!(text, "  {name}, {} tokens: {:?}", segment.tokens.len(), tokenizer.decode(&segment.tokens)?);
        let _ = writeln!(text, "    {}", tokens(segment, tokenizer, color));
    }
    text.push('\n');
    Ok(text)
}

fn scored_name(tree: &Tree, sequence: usize) -> String {
    let mut name = match tree.pairs[..] {
        [[chosen, _]] if chosen == sequence => "chosen".to_owned(),
        [[_, rejected]] if rejected == sequence => "rejected".to_owned(),
        _ => format!("response {sequence}"),
    };
    if let Some(score) = tree.scores.get(sequence) {
        let _ = write!(name, " (score {score})");
    }
    if let Some(label) = tree.labels.get(sequence) {
        let _ = write!(name, " (label {label})");
    }
    name
}

/// The tokens with a dot between them, runs under the loss marked. A character of several tokens stands at the first of
/// them, if the loss covers all or none.
fn tokens(segment: &Segment, tokenizer: &Tokenizer, color: bool) -> String {
    let (open, close) = if color { ("\x1b[32m", "\x1b[0m") } else { ("⟦", "⟧") };
    // A root's first token has nothing before it that could predict it.
    let first = usize::from(segment.parent.is_none());
    let covered =
        |at: usize| segment.scored && at >= first && !segment.unscored.iter().any(|range| range.contains(&at));
    let places: Vec<usize> = (0..segment.tokens.len()).collect();
    let runs = places.chunk_by(|&a, &b| covered(a) == covered(b)).map(|run| {
        let ids = &segment.tokens[run[0]..run[0] + run.len()];
        let text = tokenizer.show(ids).iter().map(|piece| visible(piece)).collect::<Vec<_>>().join("·");
        if covered(run[0]) { format!("{open}{text}{close}") } else { text }
    });
    runs.collect::<Vec<_>>().join("·")
}

/// Counts, lengths, whole-file packing and rows left out.
fn file(name: &str, data: &Dataset, config: &Config) -> Result<String> {
    let mut text = format!("{name}: {} rows, {} left out\n", data.rows(), data.skipped.len());
    data.report.documents().into_iter().for_each(|documents| text += &format!("  {documents}\n"));
    let mut lengths = ["prompts", "responses", "trees"].map(Lengths::of);
    data.trees.visit(
        |_| (),
        |tree, ()| {
            tree.segments.iter().for_each(|segment| lengths[usize::from(segment.scored)].add(segment.tokens.len()));
            lengths[2].add(tree.tokens());
            Ok(())
        },
    )?;
    lengths.iter().for_each(|lengths| text += &lengths.histogram());
    let budget = config.batch.tokens;
    let packing = Packing::of_all(&data.trees, &batches::plan_all(&data.trees, budget)?, budget);
    let _ = writeln!(
        text,
        "  the whole file: {} packs of {} tokens, {:.1} % full; shared prompts save {:.0} % of {} tokens",
        packing.packs,
        config.batch.tokens,
        100.0 * packing.fill(),
        100.0 * packing.saved(),
        packing.unshared
    );
    for skipped in data.skipped.iter().take(LISTED) {
        let _ = writeln!(text, "  left out: {}", visible(skipped));
    }
    if data.skipped.len() > LISTED {
        let _ = writeln!(text, "  and {} more left out", data.skipped.len() - LISTED);
    }
    Ok(text)
}

/// How many lengths lie between one power of two and the next.
struct Lengths {
    name: &'static str,
    count: usize,
    sum: usize,
    least: usize,
    most: usize,
    /// By the power of two at which each begins.
    bins: Vec<usize>,
}

impl Lengths {
    fn of(name: &'static str) -> Self {
        Self { name, count: 0, sum: 0, least: usize::MAX, most: 0, bins: Vec::new() }
    }

    fn bin(length: usize) -> usize {
        length.max(1).ilog2() as usize
    }

    fn add(&mut self, length: usize) {
        let bin = Self::bin(length);
        self.bins.resize(self.bins.len().max(bin + 1), 0);
        self.bins[bin] += 1;
        (self.count, self.sum) = (self.count + 1, self.sum + length);
        (self.least, self.most) = (self.least.min(length), self.most.max(length));
    }

    fn histogram(&self) -> String {
        let Self { name, count, sum, least, most, bins } = self;
        if *count == 0 {
            return String::new();
        }
        let mean = *sum as f64 / *count as f64;
        let mut text = format!("  {name}: {count} of {least} to {most} tokens, {mean:.1} on average\n");
        let largest = bins.iter().copied().max().unwrap_or(1);
        for (power, &count) in bins.iter().enumerate().skip(Self::bin(*least)) {
            let range = format!("{}-{}", 1usize << power, (2usize << power) - 1);
            let bar = "#".repeat((count * BAR).div_ceil(largest));
            let _ = writeln!(text, "    {range:>11} {count:>8} {bar}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, ops::Range};

    use serde_json::json;

    use super::*;
    use crate::forest::Role;

    /// A vocabulary of characters with a byte each beside them, as SentencePiece makes; or of bytes, as GPT-2's, with two
    /// and a half of the three bytes of a character as tokens.
    fn tokenizer(of_bytes: bool) -> Tokenizer {
        let (vocab, merges, byte_level, decoder) = if of_bytes {
            let byte = |byte: u8| match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte).to_string(),
                // In order from 256 on.
                0..=32 => char::from_u32(256 + u32::from(byte)).unwrap().to_string(),
                127..=160 => char::from_u32(256 + 33 + u32::from(byte) - 127).unwrap().to_string(),
                173 => '\u{143}'.to_string(),
            };
            let mut vocab: serde_json::Map<_, _> = (0..=255u8).map(|b| (byte(b), json!(b))).collect();
            vocab.insert("æĹ".into(), json!(256));
            let level =
                json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
            (vocab, json!([["æ", "Ĺ"]]), level.clone(), level)
        } else {
            let mut vocab: serde_json::Map<_, _> = (0..=255u8).map(|b| (format!("<0x{b:02X}>"), json!(b))).collect();
            ["a", "b", "é"].iter().enumerate().for_each(|(i, c)| drop(vocab.insert((*c).into(), json!(256 + i))));
            let fallback = json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]});
            (vocab, json!([]), serde_json::Value::Null, fallback)
        };
        let special = json!({"id": vocab.len(), "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                             "normalized": false, "special": true});
        let whole = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [special],
            "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": decoder,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": !of_bytes, "ignore_merges": false,
                      "vocab": vocab, "merges": merges}});
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("tokenizer.json"), whole.to_string()).unwrap();
        fs::write(folder.path().join("config.json"), r#"{"eos_token_id": 0}"#).unwrap();
        Tokenizer::load(folder.path(), 512).unwrap()
    }

    fn shown(tokenizer: &Tokenizer, tokens: &[u32], unscored: Range<usize>) -> String {
        let segment = Segment {
            parent: Some(0),
            tokens: tokens.to_vec(),
            scored: true,
            unscored: vec![unscored],
            role: Role::Response,
        };
        super::tokens(&segment, tokenizer, false)
    }

    #[test]
    fn a_character_of_several_tokens_is_readable() {
        for of_bytes in [true, false] {
            let tokenizer = tokenizer(of_bytes);
            for (text, want) in
                [("a日b", ["a·日··b", "a·日···b"]), ("é", ["é·", "é"]), ("🙂日", ["🙂····日·", "🙂····日··"])]
            {
                let ids = tokenizer.encode(text).unwrap();
                let found = shown(&tokenizer, &ids, 0..0);
                assert_eq!(found, format!("⟦{}⟧", want[usize::from(!of_bytes)]), "{ids:?}");
                // A dot between any two tokens.
                assert_eq!(found.matches('·').count() + 1, ids.len());
            }
        }
    }

    /// Where the loss covers some of a character's tokens only, and where no character comes of them.
    #[test]
    fn parts_of_a_character_are_bytes() {
        let [bytes, characters] = [true, false].map(tokenizer);
        let ids = bytes.encode("日").unwrap();
        assert_eq!(ids.len(), 2);
        assert_eq!(shown(&bytes, &ids, 0..1), "<0xE6><0x97>·⟦<0xA5>⟧");
        assert_eq!(shown(&bytes, &[ids[0], bytes.size() as u32 - 1, ids[1]], 0..0), "⟦<0xE6><0x97>·</s>·<0xA5>⟧");
        assert_eq!(shown(&bytes, &[ids[0], u32::from(b'a')], 0..0), "⟦<0xE6><0x97>·a⟧");
        let ids = characters.encode("日a").unwrap();
        assert_eq!(ids.len(), 4);
        assert_eq!(shown(&characters, &ids, 1..2), "⟦<0xE6>⟧·<0x97>·⟦<0xA5>·a⟧");
        assert_eq!(shown(&characters, &ids[..2], 0..0), "⟦<0xE6>·<0x97>⟧");
    }
}
