//! What an optimizer is: a rule that moves weights by their clipped gradients, group by group, and what it remembers.

use std::ops::Range;

use anyhow::Result;

use crate::{
    device::{Buffer, Device},
    model::{AnyBuffer, Group, ParamSet},
};

/// A rule with its state for one set of weights.
pub trait Rule<T> {
    /// Moves the masters of all groups. `stats` is the norm of all gradients, the factor that clips them and whether they are
    /// finite, as [`grad_norm`] leaves them on the device: if they are not, nothing changes and no update is counted.
    ///
    /// # Errors
    /// A launch fails.
    ///
    /// [`grad_norm`]: crate::ops::grad_norm
    fn step(&self, params: &ParamSet<T>, stats: &Buffer<f32>, lr: f64) -> Result<()>;

    /// What it remembers of each trained element, by name, in the order of the arena.
    fn tensors(&self) -> Vec<(&'static str, AnyBuffer)>;

    /// Updates applied so far.
    ///
    /// # Errors
    /// The driver refuses.
    fn updates(&self, device: &Device) -> Result<u64>;

    /// Goes on as after so many updates; [`tensors`](Self::tensors) are the caller's to fill.
    ///
    /// # Errors
    /// The driver refuses.
    fn resume(&self, device: &Device, updates: u64) -> Result<()>;
}

/// Groups that one launch can serve: neighbours of one rate, the decayed ones first.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sweep {
    pub range: Range<usize>,
    /// Of the range, from its start.
    pub decay_elements: usize,
    pub lr_scale: f64,
}

/// The fewest launches that serve all groups.
pub(super) fn sweeps(groups: &[Group]) -> Vec<Sweep> {
    let mut sweeps: Vec<Sweep> = Vec::new();
    for Group { range, decay, lr_scale, .. } in groups.iter().filter(|group| !group.range.is_empty()) {
        let decayed = if *decay { range.len() } else { 0 };
        match sweeps.last_mut() {
            Some(last) if last.lr_scale == *lr_scale && (!decay || last.decay_elements == last.range.len()) => {
                last.range.end = range.end;
                last.decay_elements += decayed;
            }
            _ => sweeps.push(Sweep { range: range.clone(), decay_elements: decayed, lr_scale: *lr_scale }),
        }
    }
    sweeps
}

/// The same launches, none of which has elements on both sides of a boundary.
pub(super) fn cut(sweeps: Vec<Sweep>, boundary: usize) -> Vec<Sweep> {
    let halves = |Sweep { range, decay_elements, lr_scale }: Sweep| {
        let at = boundary.clamp(range.start, range.end);
        let decayed = decay_elements.min(at - range.start);
        [
            Sweep { range: range.start..at, decay_elements: decayed, lr_scale },
            Sweep { range: at..range.end, decay_elements: decay_elements - decayed, lr_scale },
        ]
    };
    sweeps.into_iter().flat_map(halves).filter(|sweep| !sweep.range.is_empty()).collect()
}

/// The same launches, none of which has more than so many of the elements before `end`.
pub(super) fn cut_at_every(sweeps: Vec<Sweep>, elements: usize, end: usize) -> Vec<Sweep> {
    let parts = |sweep: Sweep| {
        let inside = sweep.range.start.min(end)..sweep.range.end.min(end);
        inside.skip(elements).step_by(elements).fold(vec![sweep], |mut parts, at| {
            let last = parts.pop().into_iter().collect();
            parts.extend(cut(last, at));
            parts
        })
    };
    sweeps.into_iter().flat_map(parts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_share_a_launch() {
        let group = |range, decay, lr_scale| Group { name: String::new(), range, decay, lr_scale };
        let sweep = |range, decay_elements, lr_scale| Sweep { range, decay_elements, lr_scale };
        let of = |groups: &[Group]| sweeps(groups);
        assert_eq!(of(&[group(0..6, true, 1.0), group(6..8, false, 1.0)]), [sweep(0..8, 6, 1.0)]);
        assert_eq!(of(&[group(0..6, true, 1.0), group(6..8, true, 1.0)]), [sweep(0..8, 8, 1.0)]);
        assert_eq!(of(&[group(0..0, true, 2.0), group(0..8, false, 1.0)]), [sweep(0..8, 0, 1.0)]);
        assert_eq!(
            of(&[group(0..6, false, 1.0), group(6..8, true, 1.0), group(8..9, true, 4.0)]),
            [sweep(0..6, 0, 1.0), sweep(6..8, 2, 1.0), sweep(8..9, 1, 4.0)]
        );
        assert_eq!(of(&[]), []);
        let whole = || vec![sweep(0..8, 6, 1.0), sweep(8..9, 0, 4.0)];
        assert_eq!(cut(whole(), 6), [sweep(0..6, 6, 1.0), sweep(6..8, 0, 1.0), sweep(8..9, 0, 4.0)]);
        assert_eq!(cut(whole(), 4), [sweep(0..4, 4, 1.0), sweep(4..8, 2, 1.0), sweep(8..9, 0, 4.0)]);
        assert_eq!([cut(whole(), 0), cut(whole(), 9)], [whole(), whole()]);
        let threes = [sweep(0..3, 3, 1.0), sweep(3..6, 3, 1.0), sweep(6..8, 0, 1.0), sweep(8..9, 0, 4.0)];
        assert_eq!(cut_at_every(whole(), 3, 9), threes);
        assert_eq!(
            cut_at_every(whole(), 3, 6),
            threes[..1].iter().cloned().chain([sweep(3..8, 3, 1.0), sweep(8..9, 0, 4.0)]).collect::<Vec<_>>()
        );
        assert_eq!(cut_at_every(whole(), 8, 9), whole());
    }
}
