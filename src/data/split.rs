//! Rows drawn by chance: those that are held out, and the share of a file that is taken.

use std::collections::HashMap;

use anyhow::{Result, ensure};

use super::{Dataset, Report};
use crate::{
    forest::Tree,
    rng::{Philox, Purpose},
};

/// What stays together when rows are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Together {
    /// Rows with the same prompt.
    Prompts,
    /// Blocks of the same document.
    Documents,
}

/// What is drawn, and by which stream of numbers.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Share of the rows, 0 to 1: so many, rounded, and one at least; more where rows stay together.
    pub fraction: f64,
    /// Of the run.
    pub seed: u64,
    /// A draw has a number of its own.
    pub stream: u32,
    /// What is drawn as one.
    pub together: Together,
}

impl Dataset {
    /// Takes the drawn rows out of these, in their order; at least one row stays.
    ///
    /// # Errors
    /// All rows belong together, or they cannot be read.
    pub fn take(&mut self, draw: &Draw) -> Result<Self> {
        let groups = Groups::of(self, draw.together)?;
        ensure!(groups.count > 1, "all {} rows have the same prompt", self.trees.len());
        let drawn = groups.drawn(draw, groups.count - 1);
        let mut taken = Self { trees: self.trees.clone(), ..Self::default() };
        taken.leave_out(&others(&drawn, self.trees.len()), &groups)?;
        self.leave_out(&drawn, &groups)?;
        Ok(taken)
    }

    /// Keeps the drawn rows.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn keep(&mut self, draw: &Draw) -> Result<()> {
        let groups = Groups::of(self, draw.together)?;
        let drawn = groups.drawn(draw, groups.count);
        self.leave_out(&others(&drawn, self.trees.len()), &groups)
    }

    /// `rows` ascend.
    fn leave_out(&mut self, rows: &[usize], groups: &Groups) -> Result<()> {
        self.trees.leave_out(rows)?;
        let mut row = 0..;
        self.weights.retain(|_| row.next().is_some_and(|row| rows.binary_search(&row).is_err()));
        let left = (0..groups.blocks.len()).filter(|row| rows.binary_search(row).is_err());
        let blocks: Vec<Option<u32>> = left.filter_map(|row| groups.blocks[row]).map(Some).collect();
        let mut documents = blocks.clone();
        documents.dedup();
        self.report = Report { blocks: blocks.len(), documents_cut: documents.len(), ..self.report };
        Ok(())
    }
}

/// All rows up to `count` but these, which ascend.
fn others(rows: &[usize], count: usize) -> Vec<usize> {
    (0..count).filter(|row| rows.binary_search(row).is_err()).collect()
}

/// Which rows belong together.
struct Groups {
    /// Of each row.
    group: Vec<u32>,
    count: usize,
    /// Of each row, the number of the document it is a block of.
    blocks: Vec<Option<u32>>,
}

impl Groups {
    fn of(data: &Dataset, together: Together) -> Result<Self> {
        let (mut group, mut blocks) = (Vec::new(), Vec::new());
        let (mut prompts, mut documents) = (HashMap::new(), HashMap::new());
        let number = |known: &mut HashMap<u128, u32>, key: u128| {
            let next = known.len() as u32;
            *known.entry(key).or_insert(next)
        };
        data.trees.visit(
            |tree| (prompt(tree), document(tree)),
            |_, (prompt, document)| {
                blocks.push(document.map(|document| number(&mut documents, document)));
                let next = group.len() as u128;
                group.push(match (document, together) {
                    (Some(document), _) => number(&mut prompts, document),
                    (None, Together::Prompts) => number(&mut prompts, prompt),
                    (None, Together::Documents) => number(&mut prompts, next),
                });
                Ok(())
            },
        )?;
        Ok(Self { group, count: prompts.len(), blocks })
    }

    /// Rows of groups in an order that follows from the seed, as many as the share asks for and no more groups than `most`.
    fn drawn(&self, draw: &Draw, most: usize) -> Vec<usize> {
        let wanted = ((draw.fraction * self.group.len() as f64).round() as usize).max(1);
        let mut sizes = vec![0; self.count];
        self.group.iter().for_each(|&group| sizes[group as usize] += 1);
        let order = Philox::new(draw.seed, Purpose::Split, draw.stream).permutation(self.count);
        let (mut taken, mut chosen) = (0, vec![false; self.count]);
        for &group in order.iter().take(most) {
            if taken >= wanted {
                break;
            }
            taken += sizes[group as usize];
            chosen[group as usize] = true;
        }
        (0..self.group.len()).filter(|&row| chosen[self.group[row] as usize]).collect()
    }
}

/// What a row's prompt is known by; a row without a prompt, by all it begins with.
pub fn prompt(tree: &Tree) -> u128 {
    let tokens = tree.segments.first().map(|segment| &segment.tokens[..]).unwrap_or_default();
    key(bytemuck::cast_slice(tokens))
}

/// What the document is known by that a row is a block of.
fn document(tree: &Tree) -> Option<u128> {
    tree.name.split_once(", block ").map(|(name, _)| key(name.as_bytes()))
}

/// Half of a hash: two in 2^64 prompts are taken for the same.
fn key(bytes: &[u8]) -> u128 {
    let hash = blake3::hash(bytes);
    u128::from_le_bytes(hash.as_bytes()[..16].try_into().expect("sixteen bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs of which every two share a prompt.
    fn pairs(count: u32) -> Dataset {
        let tree = |row: u32| Tree::pair(format!("rows:{row}"), vec![1, row / 2], vec![2, row], vec![3]);
        Dataset { trees: (0..count).map(tree).collect(), weights: vec![2.0; count as usize], ..Dataset::default() }
    }

    fn names(data: &Dataset) -> Vec<String> {
        data.trees.iter().map(|tree| tree.unwrap().name).collect()
    }

    fn draw(fraction: f64, seed: u64, together: Together) -> Draw {
        Draw { fraction, seed, stream: 0, together }
    }

    #[test]
    fn prompts_are_on_one_side_and_nothing_is_lost() {
        for seed in 0..20 {
            let (all, mut train) = (pairs(40), pairs(40));
            let eval = train.take(&draw(0.25, seed, Together::Prompts)).unwrap();
            assert_eq!((train.trees.len(), eval.trees.len(), train.weights.len()), (30, 10, 30));
            assert!(eval.weights.is_empty());
            let (train, eval) = (names(&train), names(&eval));
            assert!(eval.chunks(2).all(|two| {
                let number = |name: &str| name[5..].parse::<u32>().unwrap();
                number(&two[0]) + 1 == number(&two[1]) && number(&two[0]) % 2 == 0
            }));
            let mut both = [train, eval].concat();
            both.sort_by_key(|name| name[5..].parse::<u32>().unwrap());
            assert_eq!(both, names(&all));
        }
        let of = |seed| names(&pairs(40).take(&draw(0.25, seed, Together::Prompts)).unwrap());
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }

    #[test]
    fn one_row_at_least_is_on_each_side() {
        for fraction in [1e-9, 0.999_999] {
            let mut train = pairs(4);
            let eval = train.take(&draw(fraction, 1, Together::Prompts)).unwrap();
            assert_eq!((train.trees.len(), eval.trees.len()), (2, 2));
        }
        let why = pairs(2).take(&draw(0.5, 1, Together::Prompts)).unwrap_err().to_string();
        assert_eq!(why, "all 2 rows have the same prompt");
    }

    #[test]
    fn a_share_of_a_file_is_drawn_row_by_row() {
        let mut data = pairs(40);
        data.keep(&draw(0.25, 3, Together::Documents)).unwrap();
        assert_eq!((data.trees.len(), data.weights.len()), (10, 10));
        assert_eq!(data.trees.unshared_tokens(), 10 * (2 * 2 + 3));
        let mut whole = pairs(5);
        whole.keep(&draw(1.0, 3, Together::Documents)).unwrap();
        assert_eq!(whole.trees.len(), 5);
    }

    #[test]
    fn blocks_of_a_document_stay_together() {
        let tree = |row: u32| {
            let mut tree =
                Tree::pair(format!("a:{}, block {} of 3", row / 3, row % 3 + 1), vec![row], vec![1], vec![2]);
            tree.pairs.clear();
            tree
        };
        let report = Report { documents_cut: 4, blocks: 12, ..Report::default() };
        let mut train = Dataset { trees: (0..12).map(tree).collect(), report, ..Dataset::default() };
        let eval = train.take(&draw(0.1, 5, Together::Prompts)).unwrap();
        assert_eq!((eval.trees.len(), eval.rows(), train.rows()), (3, 1, 3));
    }
}
