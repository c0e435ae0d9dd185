use half::bf16;
use warpo::{
    device::{Device, Float},
    forest::{Forest, Tree},
    ops::embedding,
};

use crate::{
    oracles,
    support::{assert_same_bits, assert_within_rule, cast, for_each_device, normal, roundoff, type_name, widen},
};

/// (tokens, hidden, vocab): one token, ragged width and count, exact chunks, wider than one CTA sums.
const SHAPES: &[(usize, usize, usize)] = &[(3, 8, 2), (5, 13, 300), (40, 128, 7), (19, 520, 11)];

#[test]
fn fwd_f32() {
    for_each_device(fwd::<f32>);
}

#[test]
fn fwd_bf16() {
    for_each_device(fwd::<bf16>);
}

#[test]
fn bwd_f32() {
    for_each_device(bwd::<f32>);
}

#[test]
fn bwd_bf16() {
    for_each_device(bwd::<bf16>);
}

/// A pack whose ids come back irregularly; the largest id is the last row of the table.
fn forest(tokens: usize, vocab: usize) -> Forest {
    let ids: Vec<u32> = (0..tokens).map(|t| (t * t + vocab - 1) as u32 % vocab as u32).collect();
    let third = tokens / 3;
    let part = |range: std::ops::Range<usize>| ids[range].to_vec();
    let tree = Tree::pair("test", part(0..third), part(third..2 * third), part(2 * third..tokens));
    Forest::pack([&tree]).unwrap()
}

fn fwd<T: Float>(device: &Device, on: &str) {
    for &(tokens, hidden, vocab) in SHAPES {
        let ids = forest(tokens, vocab).tokens;
        let table: Vec<T> = cast(&normal(1, vocab * hidden));
        let want: Vec<f64> = oracles::embedding::fwd(&ids, &widen(&table), hidden);
        let y = device.alloc::<T>(tokens * hidden).unwrap();
        let (ids, table) = (device.upload(&ids).unwrap(), device.upload(&table).unwrap());
        embedding::fwd(device, &y, &ids, &table, 1.0, tokens, hidden, vocab).unwrap();

        let what = format!("embedding fwd {} {tokens}x{hidden} on {on}", type_name::<T>());
        assert_same_bits(&what, &widen(&device.download(&y).unwrap()), &want);
    }
}

fn bwd<T: Float>(device: &Device, on: &str) {
    for &(tokens, hidden, vocab) in SHAPES {
        let forest = forest(tokens, vocab);
        let before = normal(2, vocab * hidden);
        let dy: Vec<T> = cast(&normal(3, tokens * hidden));
        let mut want = oracles::embedding::bwd(&widen(&dy), &forest.tokens, hidden, vocab);
        want.iter_mut().zip(&before).for_each(|(d, b)| *d += f64::from(*b));

        let dtable = device.upload(&before).unwrap();
        let table = |data: &[i32]| device.upload(data).unwrap();
        let (ids, offsets) = (table(&forest.distinct_ids), table(&forest.distinct_offsets));
        let (by_id, dy_device) = (table(&forest.distinct_tokens), device.upload(&dy).unwrap());
        embedding::bwd(device, &dtable, &dy_device, &ids, &offsets, &by_id, 1.0, tokens, hidden, vocab).unwrap();

        let got = device.download(&dtable).unwrap();
        let what = format!("embedding bwd {} {tokens}x{hidden} on {on}", type_name::<T>());
        // At most `tokens` additions in f32, each partial sum at most 5 per token.
        let allowance = 5.0 * (tokens * tokens) as f64 * roundoff::<f32>();
        assert_within_rule(&what, &widen(&got), &want, &want, allowance);
        assert_same_bits(&format!("{what}, order"), &got, &in_order(&before, &dy, &forest.tokens, hidden));
    }
}

/// The sum the kernel promises bit by bit: tokens ascending, then the value that was there.
fn in_order<T: Float>(before: &[f32], dy: &[T], ids: &[i32], hidden: usize) -> Vec<f32> {
    let mut sums = vec![0.0f32; before.len()];
    for (t, &id) in ids.iter().enumerate() {
        for c in 0..hidden {
            sums[id as usize * hidden + c] += dy[t * hidden + c].to_f32();
        }
    }
    let occurs = |i: usize| ids.contains(&((i / hidden) as i32));
    (0..before.len()).map(|i| if occurs(i) { before[i] + sums[i] } else { before[i] }).collect()
}

/// A power of two scales without rounding: both directions give the scaled bits.
#[test]
fn a_scale() {
    let (tokens, hidden, vocab) = (40, 128, 7);
    let forest = forest(tokens, vocab);
    let (table, dy) = (normal(1, vocab * hidden), normal(3, tokens * hidden));
    for_each_device(|device, on| {
        let run = |scale: f32| {
            let y = device.alloc::<f32>(tokens * hidden).unwrap();
            let dtable = device.zeros::<f32>(vocab * hidden).unwrap();
            let up = |data: &[i32]| device.upload(data).unwrap();
            let (values, d) = (device.upload(&table).unwrap(), device.upload(&dy).unwrap());
            embedding::fwd(device, &y, &up(&forest.tokens), &values, scale, tokens, hidden, vocab).unwrap();
            let (ids, offsets, order) =
                (up(&forest.distinct_ids), up(&forest.distinct_offsets), up(&forest.distinct_tokens));
            embedding::bwd(device, &dtable, &d, &ids, &offsets, &order, scale, tokens, hidden, vocab).unwrap();
            (device.download(&y).unwrap(), device.download(&dtable).unwrap())
        };
        let (once, scaled) = (run(1.0), run(8.0));
        let times = |values: &[f32]| values.iter().map(|v| 8.0 * v).collect::<Vec<f32>>();
        assert_same_bits(&format!("y on {on}"), &scaled.0, &times(&once.0));
        assert_same_bits(&format!("dtable on {on}"), &scaled.1, &times(&once.1));
    });
}
