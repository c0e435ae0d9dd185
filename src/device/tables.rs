//! Index tables in device memory: what kernels take addresses from, and the rules that keep these inside their buffers.

use anyhow::{Result, ensure};

use super::Buffer;

/// A table and the rule of its entries.
pub(crate) struct Table<'a> {
    what: &'static str,
    pub(super) entries: &'a Buffer<i32>,
    rule: Rule,
}

enum Rule {
    /// Each in `0..below`.
    Below(usize),
    /// The same, each more than the one before.
    Ascending(usize),
    /// Where runs begin in a list of so many entries, and where the last ends: none less than the one before. No run is shorter
    /// or longer than this.
    Offsets(usize, [usize; 2]),
}

impl<'a> Table<'a> {
    /// Entries in `0..below`.
    pub fn below(what: &'static str, entries: &'a Buffer<i32>, below: usize) -> Self {
        Self { what, entries, rule: Rule::Below(below) }
    }

    /// Entries in `0..below`, no two alike.
    pub fn ascending(what: &'static str, entries: &'a Buffer<i32>, below: usize) -> Self {
        Self { what, entries, rule: Rule::Ascending(below) }
    }

    /// Beginnings of runs in a list of `entries`, and the end of the last.
    pub fn offsets(what: &'static str, offsets: &'a Buffer<i32>, entries: usize) -> Self {
        Self::runs(what, offsets, entries, [0, usize::MAX])
    }

    /// As [`offsets`](Self::offsets), of runs that have `least` to `most` entries.
    pub fn runs(what: &'static str, offsets: &'a Buffer<i32>, entries: usize, [least, most]: [usize; 2]) -> Self {
        Self { what, entries: offsets, rule: Rule::Offsets(entries, [least, most]) }
    }

    /// # Errors
    /// The first of `entries`, which are this table's, that breaks the rule.
    pub(super) fn check(&self, entries: &[i32]) -> Result<()> {
        let what = self.what;
        let within = |i: usize, below: usize| {
            let entry = entries[i];
            ensure!(
                usize::try_from(entry).is_ok_and(|e| e < below),
                "{what}: entry {i} is {entry}: expected 0..{below}"
            );
            Ok(())
        };
        match self.rule {
            Rule::Below(below) => (0..entries.len()).try_for_each(|i| within(i, below)),
            Rule::Ascending(below) => (0..entries.len()).try_for_each(|i| {
                within(i, below)?;
                ensure!(i == 0 || entries[i - 1] < entries[i], "{what}: entry {i} is not more than the one before");
                Ok(())
            }),
            Rule::Offsets(end, [least, most]) => (0..entries.len()).try_for_each(|i| {
                within(i, end.saturating_add(1))?;
                let Some(before) = i.checked_sub(1).map(|i| entries[i]) else { return Ok(()) };
                let run = usize::try_from(entries[i] - before).ok().filter(|run| (least..=most).contains(run));
                ensure!(run.is_some(), "{what}: entries {} and {i} are {before} and {}", i - 1, entries[i]);
                Ok(())
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device, HostOptions};

    #[test]
    fn what_breaks_a_rule_is_named() {
        let device = Device::host(HostOptions::default()).unwrap();
        let buffer = device.zeros::<i32>(1).unwrap();
        let below = |entries: &[i32]| Table::below("ids", &buffer, 4).check(entries).map_err(|why| why.to_string());
        assert_eq!(below(&[0, 3, 3]), Ok(()));
        assert_eq!(below(&[0, 4]), Err("ids: entry 1 is 4: expected 0..4".into()));
        assert_eq!(below(&[-1]), Err("ids: entry 0 is -1: expected 0..4".into()));
        let ascending = |entries: &[i32]| Table::ascending("ids", &buffer, 4).check(entries);
        assert!(ascending(&[0, 1, 3]).is_ok() && ascending(&[1, 1]).is_err() && ascending(&[4]).is_err());
        let runs = |entries: &[i32]| Table::runs("offsets", &buffer, 4, [1, 2]).check(entries);
        assert!(runs(&[0, 1, 3, 4]).is_ok() && runs(&[2, 4]).is_ok() && runs(&[]).is_ok());
        let broken: [&[i32]; 6] = [&[0, 3], &[1, 1], &[2, 1], &[3, 5], &[-1, 0], &[i32::MIN, i32::MAX]];
        assert!(broken.iter().all(|entries| runs(entries).is_err()));
    }
}
