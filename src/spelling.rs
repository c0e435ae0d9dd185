//! Which of the known words one was meant to be.

/// Letters to put in, take out, exchange or swap with the next until one is the other (optimal string alignment).
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let [a, b] = [a, b].map(|word| word.chars().collect::<Vec<_>>());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let exchanged = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let is_swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            let swapped = if is_swapped { rows[i - 2][j - 2] + 1 } else { usize::MAX };
            row.push(exchanged.min(rows[i - 1][j] + 1).min(row[j - 1] + 1).min(swapped));
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// How far a known word may be from this one: a third of its letters, three at most.
pub(crate) fn reach(word: &str) -> usize {
    word.chars().count().div_ceil(3).min(3)
}

/// The nearest of the known words within reach, whatever the case; of several as near one that begins alike, or the first.
pub(crate) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let distances = known.map(|known| (distance(&word, &known.to_lowercase()), known));
    let close = distances.filter(|(distance, _)| *distance <= reach(&word));
    let differs = |known: &str| !known.chars().take(1).eq(word.chars().take(1));
    close.min_by_key(|(distance, known)| (*distance, differs(known))).map(|(_, known)| known)
}

/// "did you mean …? " for an error, or nothing.
pub(crate) fn hint<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    nearest(word, known).map(|known| format!("did you mean `{known}`? ")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{distance, nearest};

    #[test]
    fn near_words() {
        let known = ["aot", "kto", "simpo", "dpo"];
        for (word, want) in
            [("kot", Some("kto")), ("SimPro", Some("simpo")), ("dpp", Some("dpo")), ("zzzzzz", None), ("", None)]
        {
            assert_eq!(nearest(word, known.into_iter()), want, "{word}");
        }
        for (a, b, want) in [("", "abc", 3), ("kot", "kto", 1), ("sitting", "kitten", 3), ("ca", "abc", 3)] {
            assert_eq!((distance(a, b), distance(b, a)), (want, want), "{a} {b}");
        }
    }
}
