//! Rows as some losses need them: completions behind other prompts, control tokens, both responses in one text.

use std::sync::Arc;

use anyhow::{Context, Result, bail};

use super::{
    tokenize::Tokenizer,
    trees::{Change, Trees},
};
use crate::forest::{Role, Segment, Tree};

/// How rows are changed before they are learnt from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reshape {
    /// As they are.
    #[default]
    None,
    /// Each response of a prompt is also run behind another prompt: KTO.
    Mismatch,
    /// Control tokens stand before responses.
    Control,
    /// The rejected response stands before the chosen one, both behind markers.
    Hindsight,
    /// What is not learnt from is left out.
    Chosen,
}

/// What stands before a good and a bad response: HALOs' control tokens.
const CONTROLS: [&str; 2] = ["<|good|>", "<|bad|>"];
/// What stands before the worse and the better response in Chain of Hindsight.
const MARKERS: [&str; 2] = ["A less helpful answer: ", "A more helpful answer: "];

/// Changes all rows of a set: from then on each is read as the loss needs it. `budget` is the longest tree allowed, in tokens.
///
/// # Errors
/// A row does not have what the change needs, or is too long after it; by the row's name.
pub fn apply(reshape: Reshape, trees: &mut Trees, tokenizer: &Tokenizer, budget: usize) -> Result<()> {
    let Some(change) = Reshaper::new(reshape, tokenizer)? else { return Ok(()) };
    *trees = trees.changed(Arc::new(change))?;
    let Some(row) = trees.tokens().iter().position(|&tokens| tokens as usize > budget) else { return Ok(()) };
    let Tree { name, .. } = trees.tree(row)?;
    bail!(
        "{name}: with what the loss adds the row has {} tokens, `batch.tokens` = {budget}: shorten it or raise batch.tokens",
        trees.tokens()[row]
    )
}

/// What happens to a row on its way from its file.
#[derive(Clone, Debug)]
pub(super) enum Reshaper {
    Mismatch,
    /// Tokens before the chosen and the rejected response.
    Control([Vec<u32>; 2]),
    Chosen,
    /// Tokens before the worse and the better response, and those that end a text.
    Hindsight {
        markers: [Vec<u32>; 2],
        ends: Vec<u32>,
    },
}

impl Reshaper {
    fn new(reshape: Reshape, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let encode = |[first, second]: [&str; 2]| -> Result<[Vec<u32>; 2]> {
            Ok([tokenizer.encode_rendered(first)?, tokenizer.encode_rendered(second)?])
        };
        Ok(Some(match reshape {
            Reshape::None => return Ok(None),
            Reshape::Mismatch => Self::Mismatch,
            Reshape::Control => Self::Control(encode(CONTROLS)?),
            Reshape::Chosen => Self::Chosen,
            Reshape::Hindsight => Self::Hindsight { markers: encode(MARKERS)?, ends: tokenizer.ends().to_vec() },
        }))
    }
}

impl Change for Reshaper {
    fn needs_row_before(&self) -> bool {
        matches!(self, Self::Mismatch)
    }

    fn apply(&self, mut tree: Tree, before: Option<&Tree>) -> Result<Tree> {
        match self {
            Self::Mismatch => mismatch(&mut tree, before)?,
            Self::Control(controls) => control(&mut tree, controls)?,
            Self::Chosen => chosen(&mut tree),
            Self::Hindsight { markers, ends } => hindsight(&mut tree, markers, ends)?,
        }
        Ok(tree)
    }
}

/// Each response's prompt also gets a response of the row before.
fn mismatch(tree: &mut Tree, before: Option<&Tree>) -> Result<()> {
    let responses = |tree: &Tree| tree.sequences().map(|(_, segment)| segment.clone()).collect::<Vec<_>>();
    let before = before.map(responses).unwrap_or_default();
    for (i, response) in responses(tree).iter().enumerate() {
        let parent = response.parent.with_context(|| {
            format!("{}: the row has no prompt, and the loss `kto` needs one to mismatch: give `prompt`", tree.name)
        })?;
        let other = before[i % before.len()].clone();
        tree.segments.push(Segment { parent: Some(parent), role: Role::Mismatched, ..other });
    }
    Ok(())
}

fn pair(tree: &Tree, what: &str) -> Result<[usize; 2]> {
    let sequences: Vec<usize> = tree.sequences().map(|(i, _)| i).collect();
    let &[[chosen, rejected]] = &tree.pairs[..] else {
        anyhow::bail!("{}: the row is not a pair, and the loss `{what}` learns from pairs", tree.name);
    };
    Ok([sequences[chosen], sequences[rejected]])
}

/// Puts tokens that are read, not learnt, before a segment's own.
fn put_before(segment: &mut Segment, tokens: &[u32]) {
    let shift = tokens.len();
    let moved = segment.unscored.iter().map(|range| range.start + shift..range.end + shift);
    segment.unscored = std::iter::once(0..shift).chain(moved).collect();
    segment.tokens.splice(0..0, tokens.iter().copied());
}

fn control(tree: &mut Tree, controls: &[Vec<u32>; 2]) -> Result<()> {
    for (i, tokens) in pair(tree, "control_sft")?.into_iter().zip(controls) {
        put_before(&mut tree.segments[i], tokens);
    }
    Ok(())
}

/// Of a pair the path to the chosen response.
fn chosen(tree: &mut Tree) {
    let &[[chosen, _]] = &tree.pairs[..] else { return };
    let Some((mut segment, _)) = tree.sequences().nth(chosen) else { return };
    let mut path = vec![tree.segments[segment].clone()];
    while let Some(parent) = tree.segments[segment].parent {
        path.insert(0, Segment { scored: false, ..tree.segments[parent].clone() });
        segment = parent;
    }
    for (i, segment) in path.iter_mut().enumerate() {
        segment.parent = i.checked_sub(1);
    }
    let of = |numbers: &[f64]| numbers.get(chosen).copied().into_iter().collect::<Vec<f64>>();
    tree.scores = of(&tree.scores);
    tree.values.iter_mut().for_each(|(_, numbers)| *numbers = of(numbers));
    tree.segments = path;
    tree.pairs.clear();
}

/// One text: prompt, marker, rejected response, marker, chosen response.
fn hindsight(tree: &mut Tree, markers: &[Vec<u32>; 2], ends: &[u32]) -> Result<()> {
    let [chosen, rejected] = pair(tree, "hindsight_sft")?;
    let [mut better, mut worse] = [chosen, rejected].map(|i| tree.segments[i].clone());
    // The text goes on behind the worse response: its end is no end.
    if worse.tokens.len() > 1 && worse.tokens.last().is_some_and(|last| ends.contains(last)) {
        worse.tokens.pop();
        let length = worse.tokens.len();
        worse.unscored.retain_mut(|range| {
            range.end = range.end.min(length);
            range.start < range.end
        });
    }
    put_before(&mut worse, &markers[0]);
    put_before(&mut better, &markers[1]);
    better.parent = Some(1);
    tree.segments.truncate(1);
    tree.segments.extend([worse, better]);
    // The rejected response is the first sequence now.
    tree.pairs = vec![[1, 0]];
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer() -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/quickstart-model");
        Tokenizer::load(&folder, 1024).unwrap()
    }

    fn pair() -> Tree {
        Tree::pair("row", vec![1, 2, 3], vec![4, 5, 0], vec![6, 0])
    }

    fn reshaped(reshape: Reshape, trees: Vec<Tree>, budget: usize) -> Result<Vec<Tree>> {
        let mut trees: Trees = trees.into_iter().collect();
        apply(reshape, &mut trees, &tokenizer(), budget)?;
        trees.iter().collect()
    }

    #[test]
    fn controls_are_read_and_not_learnt() {
        let (tokenizer, trees) = (tokenizer(), reshaped(Reshape::Control, vec![pair()], 100).unwrap());
        for (segment, text, own) in [(1, CONTROLS[0], &[4, 5, 0][..]), (2, CONTROLS[1], &[6, 0])] {
            let control = tokenizer.encode_rendered(text).unwrap();
            let segment = &trees[0].segments[segment];
            assert_eq!(segment.tokens, [&control[..], own].concat());
            assert_eq!((segment.unscored.len(), segment.unscored[0].clone()), (1, 0..control.len()));
            assert_eq!(segment.rows(), own.len());
        }
    }

    /// Both responses carry loss, prompt and markers none; the worse one's end is no end.
    #[test]
    fn hindsight_is_one_text() {
        let (tokenizer, trees) = (tokenizer(), reshaped(Reshape::Hindsight, vec![pair()], 100).unwrap());
        let [worse, better] = MARKERS.map(|text| tokenizer.encode_rendered(text).unwrap());
        let [prompt, first, second] = &trees[0].segments[..] else { panic!("{:?}", trees[0]) };
        assert_eq!(prompt.tokens, [1, 2, 3]);
        assert_eq!(first.tokens, [&worse[..], &[6]].concat());
        assert_eq!(second.tokens, [&better[..], &[4, 5, 0]].concat());
        assert_eq!((first.parent, second.parent), (Some(0), Some(1)));
        assert_eq!((first.rows(), second.rows()), (1, 3));
        assert_eq!(trees[0].pairs, [[1, 0]]);
    }

    #[test]
    fn a_mismatched_completion_is_the_row_before() {
        let single = |prompt: u32, completion: u32| {
            let response = Segment { parent: Some(0), tokens: vec![completion], scored: true, ..Segment::default() };
            let segments = vec![Segment { tokens: vec![prompt], ..Segment::default() }, response];
            Tree { name: format!("row {prompt}"), segments, labels: vec![true], ..Tree::default() }
        };
        let trees = reshaped(Reshape::Mismatch, vec![single(1, 11), single(2, 12), single(3, 13)], 100).unwrap();
        let others: Vec<u32> = trees.iter().map(|tree| tree.segments[2].tokens[0]).collect();
        assert_eq!(others, [13, 11, 12]);
        assert!(
            trees.iter().all(|tree| tree.segments[2].role == Role::Mismatched && tree.segments[2].parent == Some(0))
        );
        // Of a pair, each side gets a side of the pair before.
        let pairs = vec![pair(), Tree::pair("next", vec![7], vec![8], vec![9])];
        let pairs = reshaped(Reshape::Mismatch, pairs, 100).unwrap();
        let tokens = |tree: &Tree| tree.segments[3..].iter().map(|segment| segment.tokens.clone()).collect::<Vec<_>>();
        assert_eq!(tokens(&pairs[0]), [vec![8], vec![9]]);
        assert_eq!(tokens(&pairs[1]), [vec![4, 5, 0], vec![6, 0]]);
        let document =
            vec![Tree { segments: vec![Segment { tokens: vec![1, 2], scored: true, ..Segment::default() }], ..pair() }];
        let why = reshaped(Reshape::Mismatch, document, 100).unwrap_err().to_string();
        assert!(why.contains("has no prompt"), "{why}");
    }

    #[test]
    fn a_likelihood_of_pairs_runs_the_chosen_side_alone() {
        let mut tree = Tree { scores: vec![2.0, 1.0], ..pair() };
        chosen(&mut tree);
        assert_eq!(tree.segments, pair().segments[..2]);
        assert_eq!((tree.pairs.len(), tree.scores), (0, vec![2.0]));
    }

    #[test]
    fn what_the_change_makes_too_long_is_refused() {
        let why = reshaped(Reshape::Mismatch, vec![pair(), pair()], 10).unwrap_err().to_string();
        assert!(why.starts_with("row: with what the loss adds the row has 13 tokens, `batch.tokens` = 10"), "{why}");
    }
}
