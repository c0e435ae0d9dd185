//! The one batch type: trees of token segments, packed back to back in depth-first order without padding.
//!
//! Owns the layout (`subtree_end`, positions, prediction rows) and every index table derived from it.
//! Knows nothing about text, models or losses.

mod value;

use std::ops::Range;

use anyhow::{Result, bail, ensure};

pub use value::Value;

/// Tokens per attention tile; `Forest::tile_bounds` has one entry per tile of this size.
pub const TILE_TOKENS: usize = 64;

/// What a scored segment is to its tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// A response, step or text: what pairs, scores and labels speak of.
    #[default]
    Response,
    /// Why the chosen response is the better one, behind a prompt of its own.
    Rationale,
    /// A completion of another prompt: measured, never learnt.
    Mismatched,
}

/// A run of tokens that continues `parent` (or starts the tree).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Index of the segment this one continues; `None` for a root. Always smaller than the own index.
    pub parent: Option<usize>,
    /// Ids of the vocabulary.
    pub tokens: Vec<u32>,
    /// True if the tokens are predicted: each scored segment is one sequence of the forest.
    pub scored: bool,
    /// Tokens of a scored segment that are read but not predicted, such as another speaker's turn: ascending, disjoint,
    /// inside the segment.
    pub unscored: Vec<Range<usize>>,
    /// What the sequence is, if it is one.
    pub role: Role,
}

impl Segment {
    /// Whether token `offset` of the segment is predicted, if there is a token before it.
    fn predicts(&self, offset: usize) -> bool {
        self.scored && !self.unscored.iter().any(|range| range.contains(&offset))
    }

    /// Prediction rows: a root's first token has no predictor.
    pub fn rows(&self) -> usize {
        let first = usize::from(self.parent.is_none());
        (first..self.tokens.len()).filter(|&offset| self.predicts(offset)).count()
    }
}

/// One preference example: a prompt with its responses, a list, a tree of steps or a plain document.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tree {
    /// Where the example came from, for messages: `file:line`.
    pub name: String,
    /// Depth-first order: a segment's children follow it before its siblings.
    pub segments: Vec<Segment>,
    /// `[chosen, rejected]`, counting scored segments of this tree from 0. Responses come before all others.
    pub pairs: Vec<[usize; 2]>,
    /// One score a response where the data gives scores, higher is better; else empty.
    pub scores: Vec<f64>,
    /// One label a response where the data gives labels, true is desirable; else empty.
    pub labels: Vec<bool>,
    /// Further numbers, one a response each.
    pub values: Vec<(Value, Vec<f64>)>,
}

impl Tree {
    /// A prompt with two responses.
    pub fn pair(name: impl Into<String>, prompt: Vec<u32>, chosen: Vec<u32>, rejected: Vec<u32>) -> Self {
        let response = |tokens| Segment { parent: Some(0), tokens, scored: true, ..Segment::default() };
        Self {
            name: name.into(),
            segments: vec![Segment { tokens: prompt, ..Segment::default() }, response(chosen), response(rejected)],
            pairs: vec![[0, 1]],
            ..Self::default()
        }
    }

    /// The numbers of this kind, one a response; empty if the data has none.
    pub fn values(&self, wanted: Value) -> &[f64] {
        if wanted == Value::Score {
            return &self.scores;
        }
        self.values.iter().find(|(known, _)| *known == wanted).map_or(&[], |(_, values)| values)
    }

    /// Scored segments: index in `segments`, in the order of the forest's sequences.
    pub fn sequences(&self) -> impl Iterator<Item = (usize, &Segment)> {
        self.segments.iter().enumerate().filter(|(_, segment)| segment.scored)
    }

    /// Tokens the tree takes in a forest, shared segments counted once.
    pub fn tokens(&self) -> usize {
        self.segments.iter().map(|s| s.tokens.len()).sum()
    }

    /// Tokens from a root to the end of its longest continuation: the positions that a model needs.
    pub fn longest_path(&self) -> usize {
        let mut depth = vec![0; self.segments.len()];
        for (i, segment) in self.segments.iter().enumerate() {
            depth[i] = segment.parent.map_or(0, |parent| depth[parent]) + segment.tokens.len();
        }
        depth.into_iter().max().unwrap_or(0)
    }

    /// Prediction rows: one per scored token that has a token before it.
    pub fn rows(&self) -> usize {
        self.segments.iter().map(Segment::rows).sum()
    }

    /// Tokens if every scored segment were run as a sequence of its own, prompt repeated.
    pub fn unshared_tokens(&self) -> usize {
        let path = |mut i: usize| {
            let mut tokens = self.segments[i].tokens.len();
            while let Some(parent) = self.segments[i].parent {
                tokens += self.segments[parent].tokens.len();
                i = parent;
            }
            tokens
        };
        (0..self.segments.len()).filter(|&i| self.segments[i].scored).map(path).sum()
    }

    fn check(&self) -> Result<()> {
        ensure!(!self.segments.is_empty(), "{}: a tree needs at least one segment", self.name);
        // The path from the root to the segment visited last; depth-first order means a parent is on it.
        let mut path: Vec<usize> = Vec::new();
        for (i, segment) in self.segments.iter().enumerate() {
            ensure!(!segment.tokens.is_empty(), "{}: segment {i} has no tokens", self.name);
            let mut last = 0;
            for range in &segment.unscored {
                let inside = last <= range.start && range.start < range.end && range.end <= segment.tokens.len();
                ensure!(inside && segment.scored, "{}: segment {i}: unscored tokens {range:?}", self.name);
                last = range.end;
            }
            match segment.parent {
                None => path.clear(),
                Some(parent) => {
                    while path.last().is_some_and(|&last| last != parent) {
                        path.pop();
                    }
                    ensure!(!path.is_empty(), "{}: segment {i} breaks depth-first order: parent {parent}", self.name);
                }
            }
            path.push(i);
        }
        let sequences = self.sequences().count();
        let responses = self.sequences().filter(|(_, segment)| segment.role == Role::Response).count();
        let values = self.values.iter().map(|(_, values)| ("values", values.len()));
        for (what, count) in [("scores", self.scores.len()), ("labels", self.labels.len())].into_iter().chain(values) {
            ensure!(count == 0 || count == responses, "{}: {count} {what} for {responses} responses", self.name);
        }
        let in_order = self.sequences().take(responses).all(|(_, segment)| segment.role == Role::Response);
        ensure!(in_order, "{}: a response comes behind another kind of sequence", self.name);
        for &[chosen, rejected] in &self.pairs {
            if chosen >= sequences || rejected >= sequences || chosen == rejected {
                bail!("{}: pair [{chosen}, {rejected}] of {sequences} sequences", self.name);
            }
        }
        Ok(())
    }
}

/// A packed micro-batch. All index tables are `i32`, as the kernels read them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forest {
    /// (tokens) token ids.
    pub tokens: Vec<i32>,
    /// (tokens) depth in tokens below the tree's root: the rotary position.
    pub position: Vec<i32>,
    /// (tokens) exclusive end of the subtree of the segment that holds the token.
    /// `visible(i, j) = j <= i && i < subtree_end[j]`.
    pub subtree_end: Vec<i32>,
    /// (tiles, 2) smallest and largest `subtree_end` of each tile of `TILE_TOKENS` tokens.
    pub tile_bounds: Vec<i32>,
    /// (rows) token whose hidden state predicts.
    pub row_source: Vec<i32>,
    /// (rows) token id that is predicted.
    pub row_target: Vec<i32>,
    /// (sequences + 1) rows of sequence `s` are `sequence_rows[s]..sequence_rows[s + 1]`.
    pub sequence_rows: Vec<i32>,
    /// (tokens + 1) and (rows): rows that read token `t`, as `token_rows[token_row_offsets[t]..][..]`.
    pub token_row_offsets: Vec<i32>,
    /// See [`token_row_offsets`](Self::token_row_offsets).
    pub token_rows: Vec<i32>,
    /// (distinct), (distinct + 1), (tokens): for each distinct token id, ascending, the tokens that carry it, ascending.
    pub distinct_ids: Vec<i32>,
    /// See [`distinct_ids`](Self::distinct_ids).
    pub distinct_offsets: Vec<i32>,
    /// See [`distinct_ids`](Self::distinct_ids).
    pub distinct_tokens: Vec<i32>,
    /// (trees + 1) rows of tree `t` are `tree_rows[t]..tree_rows[t + 1]`.
    pub tree_rows: Vec<usize>,
}

impl Forest {
    /// Packs whole trees back to back.
    ///
    /// # Errors
    /// A tree that is not in depth-first order, has an empty segment or names a pair it does not have.
    pub fn pack<'a>(trees: impl IntoIterator<Item = &'a Tree>) -> Result<Self> {
        let mut forest = Self { sequence_rows: vec![0], tree_rows: vec![0], ..Self::default() };
        for tree in trees {
            tree.check()?;
            forest.push(tree);
        }
        forest.index_tiles();
        forest.index_rows();
        forest.index_ids();
        Ok(forest)
    }

    /// Tokens in the pack.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Keys that a token's query sees on average: the tokens of its path up to itself.
    pub fn mean_keys(&self) -> usize {
        let seen: u64 = self.position.iter().map(|&position| position as u64 + 1).sum();
        (seen / self.len().max(1) as u64) as usize
    }

    /// True if the pack holds no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Prediction rows in the pack.
    pub fn rows(&self) -> usize {
        self.row_source.len()
    }

    /// Scored segments in the pack.
    pub fn sequences(&self) -> usize {
        self.sequence_rows.len() - 1
    }

    /// Whether token `i` sees token `j`: the attention mask in one line.
    pub fn visible(&self, i: usize, j: usize) -> bool {
        j <= i && (i as i32) < self.subtree_end[j]
    }

    fn push(&mut self, tree: &Tree) {
        let count = tree.segments.len();
        let mut start = vec![0; count];
        let mut depth = vec![0; count];
        for (i, segment) in tree.segments.iter().enumerate() {
            start[i] = self.tokens.len();
            depth[i] = segment.parent.map_or(0, |p| depth[p] + tree.segments[p].tokens.len());
            for (offset, &token) in segment.tokens.iter().enumerate() {
                self.tokens.push(token as i32);
                self.position.push((depth[i] + offset) as i32);
            }
            if segment.scored {
                let before = segment.parent.map(|p| start[p] + tree.segments[p].tokens.len() - 1);
                self.push_rows(before, start[i], segment);
            }
        }
        // Children follow their parent directly, so a subtree ends where its last descendant ends.
        let mut end: Vec<usize> = (0..count).map(|i| start[i] + tree.segments[i].tokens.len()).collect();
        for i in (0..count).rev() {
            if let Some(parent) = tree.segments[i].parent {
                end[parent] = end[parent].max(end[i]);
            }
        }
        for (i, segment) in tree.segments.iter().enumerate() {
            self.subtree_end.extend(segment.tokens.iter().map(|_| end[i] as i32));
        }
        self.tree_rows.push(self.rows());
    }

    /// The last token before the segment predicts its first token; a root's first token has no predictor.
    fn push_rows(&mut self, before: Option<usize>, start: usize, segment: &Segment) {
        for (offset, &token) in segment.tokens.iter().enumerate() {
            let source = if offset == 0 { before } else { Some(start + offset - 1) };
            if let Some(source) = source.filter(|_| segment.predicts(offset)) {
                self.row_source.push(source as i32);
                self.row_target.push(token as i32);
            }
        }
        self.sequence_rows.push(self.row_source.len() as i32);
    }

    fn index_tiles(&mut self) {
        for tile in self.subtree_end.chunks(TILE_TOKENS) {
            self.tile_bounds.push(*tile.iter().min().expect("chunks are not empty"));
            self.tile_bounds.push(*tile.iter().max().expect("chunks are not empty"));
        }
    }

    fn index_rows(&mut self) {
        let mut order: Vec<i32> = (0..self.rows() as i32).collect();
        order.sort_by_key(|&row| (self.row_source[row as usize], row));
        let mut offsets = vec![0; self.len() + 1];
        for &source in &self.row_source {
            offsets[source as usize + 1] += 1;
        }
        for t in 0..self.len() {
            offsets[t + 1] += offsets[t];
        }
        self.token_rows = order;
        self.token_row_offsets = offsets;
    }

    /// The tables `distinct_ids`, `distinct_offsets` and `distinct_tokens` for positions in place of token ids.
    pub fn by_position(&self) -> [Vec<i32>; 3] {
        by_value(&self.position)
    }

    fn index_ids(&mut self) {
        [self.distinct_ids, self.distinct_offsets, self.distinct_tokens] = by_value(&self.tokens);
    }
}

/// Distinct values, ascending; where the tokens of each begin in the third table, and its end; tokens by value, ascending.
fn by_value(values: &[i32]) -> [Vec<i32>; 3] {
    let mut order: Vec<i32> = (0..values.len() as i32).collect();
    order.sort_by_key(|&t| (values[t as usize], t));
    let (mut distinct, mut offsets) = (Vec::new(), Vec::new());
    for (i, &t) in order.iter().enumerate() {
        let value = values[t as usize];
        if distinct.last() != Some(&value) {
            distinct.push(value);
            offsets.push(i as i32);
        }
    }
    offsets.push(order.len() as i32);
    [distinct, offsets, order]
}
