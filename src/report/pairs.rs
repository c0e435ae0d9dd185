//! The held-out pairs of a run, by their margin, as its folder has them.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use serde::Deserialize;

use super::MARGINS;

/// Pairs that are shown of either end.
const SHOWN: usize = 5;

/// A pair, and what the model makes of it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Pair {
    /// File and line.
    pub row: String,
    /// Reward of the chosen response less that of the rejected one.
    pub margin: f64,
    /// The end of what both answer.
    pub prompt: String,
    /// The start of the response that is preferred.
    pub chosen: String,
    /// The start of the other one.
    pub rejected: String,
}

/// The pairs of the widest margins, and those of the narrowest, widest first. None where the run has no such file.
pub fn read(folder: &Path) -> [Vec<Pair>; 2] {
    let Ok(file) = File::open(folder.join(MARGINS)) else { return [Vec::new(), Vec::new()] };
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    let mut widest: Vec<Pair> = lines.filter_map(|line| serde_json::from_str(&line).ok()).collect();
    let first = widest.len().saturating_sub(SHOWN).max(SHOWN.min(widest.len()));
    let narrowest = widest.split_off(first);
    widest.truncate(SHOWN);
    [widest, narrowest]
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn both_ends_are_read_and_no_pair_twice() {
        let folder = tempfile::tempdir().unwrap();
        let ends = |count: usize| {
            let line = |n| {
                format!("{{\"row\":\"r{n}\",\"margin\":-{n},\"prompt\":\"p\",\"chosen\":\"c\",\"rejected\":\"r\"}}\n")
            };
            fs::write(folder.path().join(MARGINS), (0..count).map(line).collect::<String>()).unwrap();
            read(folder.path()).map(|pairs| pairs.iter().map(|pair| pair.margin as i64).collect::<Vec<_>>())
        };
        assert_eq!(ends(20), [vec![0, -1, -2, -3, -4], vec![-15, -16, -17, -18, -19]]);
        assert_eq!(ends(7), [vec![0, -1, -2, -3, -4], vec![-5, -6]]);
        assert_eq!(ends(2), [vec![0, -1], vec![]]);
    }
}
