//! Held-out pairs by their margin: `held_out.jsonl` of a run folder, made anew by each evaluation.

use std::{io::Write, path::Path};

use anyhow::Result;
use serde_json::json;

use crate::{
    data::tokenize::Tokenizer,
    feed::HeldOut,
    files,
    forest::{Segment, Tree},
    loss::Margin,
    report::MARGINS,
};

/// Letters of a text at most, and tokens that are looked at for them.
const LETTERS: usize = 240;
const TOKENS: usize = 240;

/// Writes a line a pair, the widest margin first. `margins` are those of an evaluation of all `rows`.
///
/// # Errors
/// Rows cannot be read, or the file cannot be written.
pub fn write(out: &Path, rows: &HeldOut, margins: &[Margin], tokenizer: &Tokenizer) -> Result<()> {
    let mut lines = Vec::with_capacity(margins.len());
    // Sequences are counted over all packs, and pairs come in their order.
    let (mut first, mut rest) = (0, margins.iter().peekable());
    for pack in 0..rows.packs() {
        for tree in rows.trees(pack)? {
            let own = first..first + tree.sequences().count();
            while let Some(margin) = rest.next_if(|margin| own.contains(&margin.sequences[0])) {
                lines.push((margin.margin(), line(&tree, first, margin, tokenizer)?));
            }
            first = own.end;
        }
    }
    lines.sort_by(|a, b| b.0.total_cmp(&a.0));
    files::write_whole(&out.join(MARGINS), |file| lines.iter().try_for_each(|(_, line)| Ok(writeln!(file, "{line}")?)))
}

fn line(tree: &Tree, first: usize, margin: &Margin, tokenizer: &Tokenizer) -> Result<String> {
    let segments = margin.sequences.map(|sequence| tree.sequences().nth(sequence - first));
    let text = |segment: Option<(usize, &Segment)>| {
        segment.map_or(Ok(String::new()), |(_, segment)| start(&segment.tokens, tokenizer))
    };
    let [chosen, rejected] = [text(segments[0])?, text(segments[1])?];
    let [chosen_reward, rejected_reward] = margin.rewards;
    let line = json!({
        "row": tree.name,
        "margin": margin.margin(),
        "rewards/chosen": chosen_reward,
        "rewards/rejected": rejected_reward,
        "prompt": end(&prompt(tree, segments[0].map(|(_, segment)| segment)), tokenizer)?,
        "chosen": chosen,
        "rejected": rejected,
    });
    Ok(line.to_string())
}

/// The tokens that a response follows.
fn prompt(tree: &Tree, response: Option<&Segment>) -> Vec<u32> {
    let (mut pieces, mut parent) = (Vec::new(), response.and_then(|segment| segment.parent));
    while let Some(place) = parent {
        pieces.push(&tree.segments[place].tokens[..]);
        parent = tree.segments[place].parent;
    }
    pieces.reverse();
    pieces.concat()
}

/// The first letters of a text.
fn start(tokens: &[u32], tokenizer: &Tokenizer) -> Result<String> {
    let text = tokenizer.decode(&tokens[..tokens.len().min(TOKENS)])?;
    let short: String = text.chars().take(LETTERS).collect();
    Ok(if short.len() < text.len() || tokens.len() > TOKENS { short + " [...]" } else { short })
}

/// The last letters of a text.
fn end(tokens: &[u32], tokenizer: &Tokenizer) -> Result<String> {
    let text = tokenizer.decode(&tokens[tokens.len().saturating_sub(TOKENS)..])?;
    let left_out = text.chars().count().saturating_sub(LETTERS);
    let short: String = text.chars().skip(left_out).collect();
    Ok(if left_out > 0 || tokens.len() > TOKENS { format!("[...] {short}") } else { short })
}
