//! One pass over all rows before a run: the hash by which a run knows them again, whether they can be learnt from, and what
//! both sets have in common.

use std::collections::HashMap;

use anyhow::Result;

use super::{encode::too_long_for_the_model, sets::Sets, split, trees::Trees};
use crate::{
    cache::{KeyBuilder, Parts},
    forest::{Segment, Tree},
};

/// Bytes that are hashed at a time: enough for all cores.
const BLOCK: usize = 1 << 20;

/// What is known of both sets.
pub struct Survey {
    /// Of the rows to learn from, and of those held out.
    pub hashes: [Option<String>; 2],
    /// Held-out rows, and how many of them have a prompt that is learnt from.
    pub held_out: [usize; 2],
}

impl Survey {
    /// A line where prompts are on both sides.
    pub fn overlap(&self) -> Option<String> {
        let [rows, known] = self.held_out;
        (known > 0).then(|| {
            format!("note: {known} of {rows} held-out rows have a prompt that is trained on too: they measure what is remembered")
        })
    }
}

/// What a pass finds.
struct Found {
    /// Of everything a loss could learn from: tokens, trees, masks, and all that comes with them; not the rows' names.
    hash: String,
    /// What is said of the first row that is longer than the model reads.
    too_long: Option<String>,
}

impl Sets {
    /// Looks at the rows of both sets, all of which `check` lets pass and a model of so many positions can read.
    ///
    /// # Errors
    /// The first of `check`, the first row that is too long, or rows cannot be read.
    pub fn survey(&self, positions: usize, check: impl Fn(&Tree) -> Result<()> + Sync) -> Result<Survey> {
        // How many held-out rows have a prompt, until it is met among the others.
        let (mut prompts, mut known) = (HashMap::<u128, usize>::new(), 0);
        let held_out = self
            .eval
            .as_ref()
            .map(|eval| survey(&eval.trees, positions, &check, |prompt| *prompts.entry(prompt).or_default() += 1));
        let eval = held_out.transpose();
        let meet = |prompt| known += prompts.remove(&prompt).unwrap_or_default();
        // What is wrong with the rows to learn from is said first.
        let train = survey(&self.train.trees, positions, &check, meet)?;
        let eval = eval?;
        if let Some(why) = train.too_long.or_else(|| eval.as_ref()?.too_long.clone()) {
            anyhow::bail!(why);
        }
        let rows = self.eval.as_ref().map_or(0, |eval| eval.trees.len());
        Ok(Survey { hashes: [Some(train.hash), eval.map(|found| found.hash)], held_out: [rows, known] })
    }
}

fn survey(
    trees: &Trees,
    positions: usize,
    check: impl Fn(&Tree) -> Result<()> + Sync,
    mut meet: impl FnMut(u128),
) -> Result<Found> {
    let (mut key, mut parts, mut too_long) = (KeyBuilder::new("rows 1"), Parts::default(), None);
    let look = |tree: &Tree| (check(tree), tree.longest_path(), row_parts(tree), split::prompt(tree));
    trees.visit(look, |tree, (checked, longest, own, prompt)| {
        checked?;
        meet(prompt);
        if longest > positions {
            too_long.get_or_insert_with(|| format!("{}: {}", tree.name, too_long_for_the_model(longest, positions)));
        }
        parts.append(&own);
        if parts.len() > BLOCK {
            key.parts(&parts);
            parts.clear();
        }
        Ok(())
    })?;
    Ok(Found { hash: key.parts(&parts).finish().hex(), too_long })
}

/// What a row puts into the hash.
fn row_parts(tree: &Tree) -> Parts {
    let mut key = Parts::default();
    // Written out, so that another field is looked at here.
    let Tree { name: _, segments, pairs, scores, labels, values } = tree;
    for Segment { parent, tokens, scored, unscored, role } in segments {
        let parent = parent.map_or(u64::MAX, |parent| parent as u64);
        let ranges = unscored.iter().flat_map(|range| [range.start as u64, range.end as u64]);
        let shape: Vec<u64> = [parent, u64::from(*scored), *role as u64].into_iter().chain(ranges).collect();
        key.part("segment", bytemuck::cast_slice(&shape)).part("tokens", bytemuck::cast_slice(tokens));
    }
    let pairs: Vec<u64> = pairs.iter().flatten().map(|&sequence| sequence as u64).collect();
    let labels: Vec<u8> = labels.iter().map(|&label| u8::from(label)).collect();
    key.part("pairs", bytemuck::cast_slice(&pairs)).part("labels", &labels);
    key.part("scores", bytemuck::cast_slice(scores));
    for (value, numbers) in values {
        key.part(&format!("{value:?}"), bytemuck::cast_slice(numbers));
    }
    key.part("end", &[]);
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forest::{Role, Value as Kind};

    fn tree() -> Tree {
        let mut tree = Tree::pair("rows.jsonl:1", vec![1, 2, 3], vec![4, 5], vec![6]);
        tree.values = vec![(Kind::Margin, vec![0.5, 0.0])];
        tree
    }

    #[test]
    fn every_field_of_a_row_but_its_name_is_bound() {
        type Change = fn(&mut Tree);
        let changes: [(&str, Change); 11] = [
            ("token", |tree| tree.segments[1].tokens[0] = 9),
            ("border", |tree| {
                let moved = tree.segments[1].tokens.remove(0);
                tree.segments[0].tokens.push(moved);
            }),
            ("parent", |tree| tree.segments[2].parent = Some(1)),
            ("scored", |tree| tree.segments[2].scored = false),
            ("mask", |tree| tree.segments[1].unscored.push(0..1)),
            ("role", |tree| tree.segments[2].role = Role::Rationale),
            ("pair", |tree| tree.pairs[0] = [1, 0]),
            ("scores", |tree| tree.scores = vec![1.0, 0.0]),
            ("labels", |tree| tree.labels = vec![true, false]),
            ("value", |tree| tree.values[0].1[0] = 0.5000000000000001),
            ("kind of value", |tree| tree.values[0].0 = Kind::Visits),
        ];
        let rows_hash =
            |trees: &[Tree]| survey(&trees.iter().cloned().collect(), 100, |_| Ok(()), |_| ()).unwrap().hash;
        let plain = rows_hash(&[tree()]);
        for (what, change) in changes {
            let mut other = tree();
            change(&mut other);
            assert_ne!(rows_hash(&[other]), plain, "{what}");
        }
        assert_ne!(rows_hash(&[tree(), tree()]), plain);
        let renamed = Tree { name: "elsewhere.jsonl:7".into(), ..tree() };
        assert_eq!(rows_hash(&[renamed]), plain);
    }
}
