//! The device's random numbers are the host's, and those that were published with the method.

use warpo::{
    device::{Device, Launch},
    rng::{Philox, Purpose},
};

use super::{integers, vector};
use crate::{device::kernels::philox as kernel, support::for_each_host};

type Known = ([u32; 4], [u32; 2], [u32; 4]);

/// `kat_vectors` of Random123, philox4x32 with 10 rounds: counter, key, words.
const KNOWN: [Known; 3] = [
    ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
    ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
    (
        [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
        [0xa409_3822, 0x299f_31d0],
        [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
    ),
];

#[test]
fn known_answers() {
    for_each_host(|device, on| {
        let flat = |part: fn(&Known) -> Vec<u32>| KNOWN.iter().flat_map(part).collect::<Vec<_>>();
        let counters = device.upload(&flat(|case| case.0.to_vec())).unwrap();
        let keys = device.upload(&flat(|case| case.1.to_vec())).unwrap();
        let words = device.alloc(4 * KNOWN.len()).unwrap();
        let args = kernel::PhiloxWords { words: &words, counters: &counters, keys: &keys, cases: KNOWN.len() as i32 };
        // SAFETY: four words and two keys a case.
        unsafe { args.launch(device, Launch::linear(1, 32)).unwrap() };
        assert_eq!(device.download(&words).unwrap(), flat(|case| case.2.to_vec()), "{on}");
    });
}

fn halves(device: &Device, seed: u64, number: u32, stream: u32, first: u64, chunks: usize) -> Vec<u32> {
    let halves = device.alloc(8 * chunks).unwrap();
    let args = kernel::PhiloxHalves { halves: &halves, seed, number, stream, first: first as i64 };
    // SAFETY: eight numbers a thread.
    unsafe { args.launch(device, Launch::linear(1, chunks)).unwrap() };
    device.download(&halves).unwrap()
}

#[test]
fn rounding_bits_are_the_vectors_and_the_hosts() {
    let rows = vector("rounding_bits")["rows"].clone();
    for_each_host(|device, on| {
        for row in rows.as_array().unwrap() {
            let whole = |name: &str| row[name].as_u64().unwrap();
            let [seed, number, purpose, sub, chunk] = ["seed", "number", "purpose", "sub", "chunk"].map(whole);
            let got = halves(device, seed, number as u32, (purpose | sub << 8) as u32, 8 * chunk, 1);
            assert_eq!(got, integers::<u32>(&row["halves"]), "{row} on {on}");
            let purpose = if purpose == 6 { Purpose::Moments } else { Purpose::Gradients };
            let own = Philox::part(seed, purpose, number as u32, sub as u32).halves(chunk);
            assert_eq!(got, own.map(u32::from), "{row} on the host itself");
        }
        // A warp of chunks, at places that need more than 32 bits.
        let first = 8 * ((1 << 32) - 16);
        let stream = Philox::part(7, Purpose::Gradients, 3, 5);
        let want: Vec<u32> = (0..32).flat_map(|chunk| stream.halves(first / 8 + chunk).map(u32::from)).collect();
        assert_eq!(halves(device, 7, 3, 7 | 5 << 8, first, 32), want, "{on}");
    });
}

#[test]
fn bf16_by_chance_is_the_vectors() {
    let all = vector("stochastic_bf16");
    let (mut bits, mut halves) = (integers::<u32>(&all["f32_bits"]), integers::<u32>(&all["halves"]));
    let mut want = integers::<u32>(&all["bf16_bits"]);
    let special = integers::<u32>(&all["specials"]["f32_bits"]);
    halves.extend(special.iter().map(|_| 0xffff));
    bits.extend(special);
    want.extend(integers::<u32>(&all["specials"]["bf16_bits"]));
    for (((&bits, &half), &want), at) in bits.iter().zip(&halves).zip(&want).zip(0..) {
        let got = warpo::rng::bf16_by_chance(f32::from_bits(bits), half as u16);
        assert_eq!(u32::from(got.to_bits()), want, "number {at}");
    }
    for_each_host(|device, on| {
        let rounded = device.alloc(bits.len()).unwrap();
        let (bits, halves) = (device.upload(&bits).unwrap(), device.upload(&halves).unwrap());
        let elements = bits.len() as i32;
        let args = kernel::PhiloxBf16 { rounded: &rounded, bits: &bits, halves: &halves, elements };
        // SAFETY: a thread an element.
        unsafe { args.launch(device, Launch::linear(1, 64)).unwrap() };
        assert_eq!(device.download(&rounded).unwrap(), want, "{on}");
    });
}
