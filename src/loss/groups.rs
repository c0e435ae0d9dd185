//! Which sequences of a micro-batch stand together, and the numbers that came with them.

use anyhow::{Result, bail, ensure};

use super::{
    Loss, Shape,
    definition::{Mean, Special},
};
use crate::{
    forest::{Role, Tree},
    ops::{loss_list, loss_rows::VALUES},
};

/// Groups of one micro-batch or of a step. A slot is a sequence's place in a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Groups {
    /// Rows of each sequence.
    pub rows: Vec<usize>,
    /// (slots) sequence.
    pub slots: Vec<usize>,
    /// (groups + 1) slots of group `g` are `starts[g]..starts[g + 1]`.
    pub starts: Vec<usize>,
    /// (slots, [`VALUES`])
    pub values: Vec<f64>,
    /// (rows) weight of each row; empty if all are 1.
    pub weights: Vec<f32>,
}

impl Default for Groups {
    fn default() -> Self {
        Self { rows: Vec::new(), slots: Vec::new(), starts: vec![0], values: Vec::new(), weights: Vec::new() }
    }
}

impl Groups {
    /// Number of groups.
    pub fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// True without a group.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a part's sum over a step of these groups is multiplied by: its weight over what its mean counts.
    pub fn scale(&self, weight: f64, mean: Mean) -> f64 {
        let over = match mean {
            Mean::Groups => self.len(),
            Mean::Rows(place) => self.rows_at(place),
            Mean::AllRows => self.slots.iter().map(|&sequence| self.rows[sequence]).sum(),
            Mean::Own => 1,
        };
        weight / over.max(1) as f64
    }

    /// Slots of a group.
    pub fn of(&self, group: usize) -> std::ops::Range<usize> {
        self.starts[group]..self.starts[group + 1]
    }

    /// Adds another micro-batch's groups behind these.
    pub fn append(&mut self, other: &Self) {
        let (sequences, slots) = (self.rows.len(), self.slots.len());
        self.rows.extend(&other.rows);
        self.slots.extend(other.slots.iter().map(|slot| sequences + slot));
        self.starts.extend(other.starts.iter().skip(1).map(|start| slots + start));
        self.values.extend(&other.values);
        self.weights.extend(&other.weights);
    }

    /// Rows of the step in sequences at this place of their groups.
    pub fn rows_at(&self, place: usize) -> usize {
        let slots = (0..self.len()).map(|group| self.of(group)).filter(|slots| slots.len() > place);
        slots.map(|slots| self.rows[self.slots[slots.start + place]]).sum()
    }

    fn push(&mut self, first: usize, members: &[usize], values: &[[f64; VALUES]]) {
        self.slots.extend(members.iter().map(|member| first + member));
        self.values.extend(values.iter().flatten());
        self.starts.push(self.slots.len());
    }
}

impl Loss {
    /// The groups of these trees, packed in this order.
    ///
    /// # Errors
    /// A tree does not have what the loss needs; by the tree's name.
    pub fn groups<'t>(&self, trees: impl IntoIterator<Item = &'t Tree>) -> Result<Groups> {
        let mut groups = Groups::default();
        for tree in trees {
            self.add(&mut groups, tree).map_err(|why| anyhow::anyhow!("{}: {why}", tree.name))?;
        }
        Ok(groups)
    }

    fn add(&self, groups: &mut Groups, tree: &Tree) -> Result<()> {
        let first = groups.rows.len();
        groups.rows.extend(tree.sequences().map(|(_, segment)| segment.rows()));
        match self.shape() {
            Shape::Pair => self.add_pairs(groups, first, tree)?,
            Shape::List => self.add_lists(groups, first, tree)?,
            Shape::Labelled => self.add_labelled(groups, first, tree)?,
            Shape::Single => self.add_single(groups, first, tree)?,
        }
        self.add_weights(groups, first, tree);
        Ok(())
    }

    fn refuse<T>(&self, has: &str) -> Result<T> {
        bail!("{has}, and the loss `{}` learns from {}", self.names(), self.shape().describe())
    }

    /// The two values of a response.
    fn values(&self, tree: &Tree, response: usize) -> Result<[f64; VALUES]> {
        let mut found = [0.0; VALUES];
        for (place, &value) in self.needed_values().iter().enumerate() {
            let Some(&number) = tree.values(value).get(response) else {
                bail!("the row has no {}, and the loss `{}` needs it", value.columns(), self.names());
            };
            found[place] = number;
        }
        Ok(found)
    }

    fn add_pairs(&self, groups: &mut Groups, first: usize, tree: &Tree) -> Result<()> {
        let pairs = pairs(tree);
        if pairs.is_empty() {
            let siblings = tree.labels.is_empty() && siblings(tree).any(|set| set.len() > 1);
            return match siblings && tree.scores.is_empty() {
                true => self.refuse("the row has several responses and no score of each"),
                false => self.refuse("the row has no two responses of which one is better"),
            };
        }
        let joint = tree.sequences().all(|(_, segment)| segment.parent.is_none());
        if joint && self.terms.iter().all(|term| term.definition.special != Special::JointPrompts) {
            bail!("the row has a `rejected_prompt`, and the loss `{}` compares answers to one prompt", self.names());
        }
        let rationale = tree.sequences().position(|(_, segment)| segment.role == Role::Rationale);
        if self.needs_rationale() && rationale.is_none() {
            bail!("the row has no `rationale`, and the loss `{}` needs it", self.names());
        }
        for pair in pairs {
            let mut values = vec![self.values(tree, pair[0])?, self.values(tree, pair[1])?];
            let mut members = pair.to_vec();
            if let Some(rationale) = rationale.filter(|_| self.needs_rationale()) {
                members.push(rationale);
                values.push([0.0; VALUES]);
            }
            groups.push(first, &members, &values);
        }
        Ok(())
    }

    fn add_lists(&self, groups: &mut Groups, first: usize, tree: &Tree) -> Result<()> {
        // Labels are 1 and 0, and say so in the second value.
        let hard: Vec<f64> = match &tree.pairs[..] {
            &[[chosen, _]] => (0..2).map(|i| f64::from(u8::from(i == chosen))).collect(),
            _ => tree.labels.iter().map(|&label| f64::from(u8::from(label))).collect(),
        };
        let scored = hard.is_empty();
        let scores = if scored { &tree.scores } else { &hard };
        ensure!(scored || !self.needs_scores(), "the row has labels, and the loss `{}` needs scores", self.names());
        let before = groups.len();
        for set in siblings(tree).filter(|set| set.len() > 1 && !scores.is_empty()) {
            ensure!(
                set.len() <= loss_list::LONGEST,
                "a list of {} responses: at most {} go together, leave some out",
                set.len(),
                loss_list::LONGEST
            );
            let differ = set.iter().any(|&i| scores[i] != scores[set[0]]);
            if differ {
                let values: Vec<_> = set.iter().map(|&i| [scores[i], f64::from(u8::from(!scored))]).collect();
                groups.push(first, &set, &values);
            }
        }
        if groups.len() == before {
            return self.refuse("the row has no two responses of different score or label");
        }
        Ok(())
    }

    fn add_labelled(&self, groups: &mut Groups, first: usize, tree: &Tree) -> Result<()> {
        let labels: Vec<bool> = match &tree.pairs[..] {
            &[[chosen, _]] => (0..2).map(|i| i == chosen).collect(),
            _ => tree.labels.clone(),
        };
        if labels.is_empty() {
            return self.refuse("the row has no label");
        }
        let mismatched = tree.sequences().enumerate().filter(|(_, (_, segment))| segment.role == Role::Mismatched);
        let mut mismatched = mismatched.map(|(sequence, _)| sequence);
        for (response, label) in labels.into_iter().enumerate() {
            let value = [f64::from(u8::from(label)), 0.0];
            match mismatched.next() {
                Some(other) => groups.push(first, &[response, other], &[value, [0.0; VALUES]]),
                None => groups.push(first, &[response], &[value]),
            }
        }
        Ok(())
    }

    fn add_single(&self, groups: &mut Groups, first: usize, tree: &Tree) -> Result<()> {
        match &tree.pairs[..] {
            &[[chosen, _]] => groups.push(first, &[chosen], &[self.values(tree, chosen)?]),
            _ if tree.labels.is_empty() && tree.sequences().count() == 1 => {
                groups.push(first, &[0], &[self.values(tree, 0)?]);
            }
            _ => return self.refuse("the row has several responses, or labels"),
        }
        Ok(())
    }

    /// LD-DPO's weights: 1 up to the length of the shorter response, less behind it.
    fn add_weights(&self, groups: &mut Groups, first: usize, tree: &Tree) {
        let Some(alpha) = self.row_weight() else { return };
        let (rows, pairs) = (&groups.rows[first..], pairs(tree));
        let shortest = |sequence: usize| {
            let own = pairs.iter().filter(|pair| pair.contains(&sequence));
            own.map(|pair| rows[pair[0]].min(rows[pair[1]])).min().unwrap_or(usize::MAX)
        };
        for (sequence, &rows) in rows.iter().enumerate() {
            let full = shortest(sequence);
            groups.weights.extend((0..rows).map(|row| if row < full { 1.0 } else { alpha as f32 }));
        }
    }
}

/// The pairs of a tree: its own, or best against worst of each set of scored siblings.
fn pairs(tree: &Tree) -> Vec<[usize; 2]> {
    if !tree.pairs.is_empty() || tree.scores.is_empty() {
        return tree.pairs.clone();
    }
    let pair = |set: Vec<usize>| {
        let score = |&i: &usize| tree.scores[i];
        let best = set.iter().copied().reduce(|a, b| if score(&b) > score(&a) { b } else { a })?;
        let worst = set.iter().copied().reduce(|a, b| if score(&b) < score(&a) { b } else { a })?;
        (score(&best) > score(&worst)).then_some([best, worst])
    };
    siblings(tree).filter_map(pair).collect()
}

/// Responses that continue the same segment, by their numbers.
fn siblings(tree: &Tree) -> impl Iterator<Item = Vec<usize>> {
    let mut sets: Vec<(Option<usize>, Vec<usize>)> = Vec::new();
    for (sequence, (_, segment)) in tree.sequences().enumerate() {
        if segment.role == Role::Response {
            match sets.iter_mut().find(|(parent, _)| *parent == segment.parent) {
                Some((_, set)) => set.push(sequence),
                None => sets.push((segment.parent, vec![sequence])),
            }
        }
    }
    sets.into_iter().map(|(_, set)| set)
}
