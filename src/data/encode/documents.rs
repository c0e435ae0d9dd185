//! Plain documents that are longer than a response may be, cut into blocks for continued pre-training.

use anyhow::{Context, Result};

use crate::forest::{Segment, Tree};

/// Cuts a document into blocks of at most `longest` tokens, two at least. A block begins with the last token of the one
/// before: nothing predicts a block's first token, so the overlap is what gets every token but the document's first
/// predicted, once.
///
/// # Errors
/// The tree is no document.
pub(super) fn split(tree: Tree, longest: usize) -> Result<Vec<Tree>> {
    let Tree { name, segments, .. } = tree;
    let [document] = <[Segment; 1]>::try_from(segments).ok().context("a document is one segment")?;
    let tokens = document.tokens;
    let step = longest.max(2) - 1;
    let count = (tokens.len() - 1).div_ceil(step);
    let block = |i: usize| {
        let tokens = tokens[i * step..tokens.len().min((i + 1) * step + 1)].to_vec();
        let segments = vec![Segment { tokens, scored: true, ..Segment::default() }];
        Tree { name: format!("{name}, block {} of {count}", i + 1), segments, ..Tree::default() }
    };
    Ok((0..count).map(block).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the blocks predict, in their order, is the document behind its first token.
    #[test]
    fn every_token_is_predicted_once() {
        for (len, longest) in [(2, 2), (7, 2), (7, 3), (8, 3), (9, 3), (100, 7), (101, 100), (200, 100), (5, 9)] {
            let tokens: Vec<u32> = (0..len).collect();
            let document = Segment { tokens: tokens.clone(), scored: true, ..Segment::default() };
            let tree = Tree { name: "a.jsonl:1".into(), segments: vec![document], ..Tree::default() };
            let blocks = split(tree, longest).unwrap();
            let predicted: Vec<u32> = blocks.iter().flat_map(|block| block.segments[0].tokens[1..].to_vec()).collect();
            assert_eq!(predicted, tokens[1..], "{len} in blocks of {longest}");
            for (block, next) in blocks.iter().zip(&blocks[1..]) {
                let (tokens, next) = (&block.segments[0].tokens, &next.segments[0].tokens);
                assert_eq!((tokens.len(), tokens.last()), (longest, next.first()));
                assert!((2..=longest).contains(&next.len()));
            }
            assert_eq!(blocks[0].name, format!("a.jsonl:1, block 1 of {}", blocks.len()));
        }
    }
}
