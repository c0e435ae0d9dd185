//! Moments of AdamW in eight bits and in bf16.

use half::bf16;
use warpo::{
    device::{Buffer, DType, Device, Float, Launch},
    ops::{
        adamw::{self, Hyper, Tensors},
        adamw_8bit::{self, BLOCK, Moments},
        adamw_bf16,
    },
    rng::{Draw, Philox, Purpose, bf16_by_chance},
};

use super::{floats, integers, vector};
use crate::{
    device::kernels::moments as kernel,
    support::{assert_same_bits, for_each_device, for_each_host, max_abs, normal, roundoff, widen},
};

/// Codes and exponents of one block.
fn encoded(device: &Device, m: &[f32], v: &[f32], draw: Draw, random_m: bool) -> ([Vec<u8>; 2], Vec<i32>) {
    let (m, v) = (device.upload(m).unwrap(), device.upload(v).unwrap());
    let codes: [Buffer<u8>; 2] = [device.alloc(BLOCK).unwrap(), device.alloc(BLOCK).unwrap()];
    let exponents = device.alloc(2).unwrap();
    let args = kernel::MomentsEncode {
        m_codes: &codes[0],
        v_codes: &codes[1],
        exponents: &exponents,
        m: &m,
        v: &v,
        seed: draw.seed,
        number: draw.number,
        random_m: i32::from(random_m),
    };
    // SAFETY: all are of a block.
    unsafe { args.launch(device, Launch::linear(1, 32)).unwrap() };
    (codes.map(|codes| device.download(&codes).unwrap()), device.download(&exponents).unwrap())
}

fn decoded(device: &Device, codes: &[Vec<u8>; 2], exponents: [i32; 2]) -> [Vec<f32>; 2] {
    let values: [Buffer<f32>; 2] = [device.alloc(BLOCK).unwrap(), device.alloc(BLOCK).unwrap()];
    let [m_codes, v_codes] = codes.each_ref().map(|codes| device.upload(codes).unwrap());
    let [m_exponent, v_exponent] = exponents;
    let [m, v] = values.each_ref();
    let args = kernel::MomentsDecode { m, v, m_codes: &m_codes, v_codes: &v_codes, m_exponent, v_exponent };
    // SAFETY: all are of a block.
    unsafe { args.launch(device, Launch::linear(1, 32)).unwrap() };
    values.map(|values| device.download(&values).unwrap())
}

#[test]
fn a_block_is_the_vector() {
    let all = vector("moments_8bit_block");
    let draw = Draw { seed: all["seed"].as_u64().unwrap(), number: all["step"].as_u64().unwrap() as u32 };
    for_each_host(|device, on| {
        let (codes, exponents) = encoded(device, &floats(&all["m_bits"]), &floats(&all["v_bits"]), draw, false);
        assert_eq!(codes[0], integers::<u8>(&all["m_codes"]), "m on {on}");
        assert_eq!(codes[1], integers::<u8>(&all["v_codes"]), "v on {on}");
        let want = ["m_exponent", "v_exponent"].map(|name| all[name].as_i64().unwrap() as i32);
        assert_eq!(exponents, want, "{on}");
        for (got, name) in decoded(device, &codes, want).iter().zip(["m_decoded", "v_decoded"]) {
            let want: Vec<f64> = serde_json::from_value(all[name].clone()).unwrap();
            assert_eq!(widen(got), want, "{name} on {on}");
        }
    });
}

/// Every code has the value of its definition, 1.mmm times a power of two, under exponents from the largest to those under
/// which codes fall below what f32 has, and is its own code again whatever is drawn.
#[test]
fn every_code_is_its_own() {
    for_each_host(|device, on| {
        let codes: Vec<u8> = (0..=255).collect();
        for exponent in [254, 128, 100, 60, 32] {
            let value = |code: u8, lowest: i32| {
                let at = i32::from(code) + 8 * exponent - lowest;
                f64::from(8 + at.rem_euclid(8)) / 8.0 * 2f64.powi(at.div_euclid(8) - 127)
            };
            let m = |code: u8| match code & 127 {
                0 => 0.0,
                size => {
                    if code > 127 {
                        -value(size, 120)
                    } else {
                        value(size, 120)
                    }
                }
            };
            let v = |code: u8| if code == 0 { 0.0 } else { value(code, 248) };
            let values = decoded(device, &[codes.clone(), codes.clone()], [exponent; 2]);
            assert_eq!(
                widen(&values[0]),
                codes.iter().map(|&code| m(code)).collect::<Vec<_>>(),
                "m of {exponent} on {on}"
            );
            assert_eq!(
                widen(&values[1]),
                codes.iter().map(|&code| v(code)).collect::<Vec<_>>(),
                "v of {exponent} on {on}"
            );
            for random in [false, true] {
                let draw = Draw { seed: 9, number: exponent as u32 };
                let (again, exponents) = encoded(device, &values[0], &values[1], draw, random);
                // -0 is 0.
                let own: Vec<u8> = codes.iter().map(|&code| if code == 128 { 0 } else { code }).collect();
                assert_eq!((&again[0], &again[1]), (&own, &codes), "of {exponent} on {on}");
                assert_eq!(exponents, [exponent; 2], "on {on}");
            }
        }
    });
}

/// A v above 0 keeps a code, however small it is beside the block's largest; a block of zeros is read as zeros.
#[test]
fn nothing_positive_becomes_zero() {
    for_each_host(|device, on| {
        let mut v = vec![0.0f32; BLOCK];
        (v[3], v[70], v[255]) = (1e-3, 1e-38, f32::from_bits(1));
        let draw = Draw { seed: 1, number: 1 };
        let (codes, _) = encoded(device, &vec![0.0; BLOCK], &v, draw, false);
        let kept: Vec<usize> = (0..BLOCK).filter(|&at| codes[1][at] != 0).collect();
        assert_eq!(kept, [3, 70, 255], "{on}");
        let (codes, exponents) = encoded(device, &vec![0.0; BLOCK], &vec![0.0; BLOCK], draw, true);
        let values = decoded(device, &codes, [exponents[0], exponents[1]]);
        assert_eq!(values, [vec![0.0; BLOCK], vec![0.0; BLOCK]], "{on}");
    });
}

/// What a device keeps while it follows a vector.
struct Kept<T, M> {
    params: Buffer<T>,
    low: Buffer<u16>,
    progress: Buffer<f64>,
    moments: M,
}

impl<T: Float, M> Kept<T, M> {
    fn new(device: &Device, start: &[f32], hyper: Hyper, moments: M) -> Self {
        let (weights, low): (Vec<T>, Vec<u16>) = start.iter().map(|&w| T::split(w)).unzip();
        let low = if T::DTYPE == DType::F32 { &[] } else { &low[..] };
        let progress = device.upload(&adamw::progress(0, hyper.beta1, hyper.beta2)).unwrap();
        Self { params: device.upload(&weights).unwrap(), low: device.upload(low).unwrap(), progress, moments }
    }

    fn masters(&self, device: &Device) -> Vec<f32> {
        let (weights, low) = (device.download(&self.params).unwrap(), device.download(&self.low).unwrap());
        weights.into_iter().zip(low.into_iter().chain(std::iter::repeat(0))).map(|(w, low)| w.join(low)).collect()
    }
}

fn eight(device: &Device, elements: usize) -> Moments {
    let blocks = elements.div_ceil(BLOCK);
    let [m, v] = [(); 2].map(|()| device.zeros(elements).unwrap());
    let [m_exponents, v_exponents] = [(); 2].map(|()| device.zeros(blocks).unwrap());
    Moments { m, v, m_exponents, v_exponents }
}

fn step_8bit<T: Float>(
    device: &Device,
    kept: &Kept<T, Moments>,
    grads: &[f32],
    stats: [f32; 3],
    (hyper, draw): (Hyper, Draw),
) {
    let (grads, stats) = (&device.upload(grads).unwrap(), &device.upload(&stats).unwrap());
    let Kept { params, low, progress, moments } = kept;
    let tensors = Tensors { params, low, grads, stats, progress, decay_elements: params.len() };
    adamw_8bit::step(device, &tensors, moments, hyper, draw, 0).unwrap();
}

#[test]
fn steps_in_eight_bits_are_the_vector() {
    for_each_device(|device, on| {
        follows::<f32>(device, on);
        follows::<bf16>(device, on);
    });
}

fn follows<T: Float>(device: &Device, on: &str) {
    let all = vector("adamw_8bit");
    let number = |name: &str| all[name].as_f64().unwrap();
    let hyper = Hyper {
        lr: number("lr"),
        beta1: number("beta1"),
        beta2: number("beta2"),
        eps: number("eps"),
        weight_decay: number("weight_decay"),
    };
    let doubles = |value: &serde_json::Value| serde_json::from_value::<Vec<f64>>(value.clone()).unwrap();
    let start: Vec<f32> = doubles(&all["master_start"]).iter().map(|&w| w as f32).collect();
    let kept = Kept::<T, Moments>::new(device, &start, hyper, eight(device, start.len()));
    let seed = all["seed"].as_u64().unwrap();
    for step in all["steps"].as_array().unwrap() {
        let number = step["step"].as_u64().unwrap();
        let stats = [1.0, step["clip"].as_f64().unwrap() as f32, 1.0];
        let draw = Draw { seed, number: number as u32 };
        step_8bit(device, &kept, &floats(&step["grads_bits"]), stats, (hyper, draw));
        let Moments { m, v, m_exponents, v_exponents } = &kept.moments;
        for (got, name) in [(m, "m_codes"), (v, "v_codes"), (m_exponents, "m_exponents"), (v_exponents, "v_exponents")]
        {
            assert_eq!(device.download(got).unwrap(), integers::<u8>(&step[name]), "{name} of step {number} on {on}");
        }
        // A step rounds the master once, and moves it by at most 3 lr with seven roundings of its own.
        let (got, want) = (widen(&kept.masters(device)), doubles(&step["master"]));
        let unit = roundoff::<f32>();
        let allowed = number as f64 * unit * (max_abs(&want) + 3.0 * 8.0 * hyper.lr);
        let off = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f64::max);
        assert!(off <= allowed, "masters of step {number} on {on}: off by {off:e}, allowed are {allowed:e}");
    }
}

const HYPER: Hyper = Hyper { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

/// Gradients from tiny to large, as a model has them.
fn grads(step: u64, elements: usize) -> Vec<f32> {
    normal(10 + step, elements).iter().enumerate().map(|(i, g)| g * 10f32.powi(i as i32 % 7 - 5)).collect()
}

/// Gradients that are bf16 in memory are those of f32 with the same values, bit for bit; and what is not finite changes nothing.
#[test]
fn narrow_gradients_and_skipped_steps() {
    for_each_host(|device, on| {
        // More than a block, the last of which is not whole.
        let elements = 3 * BLOCK + 21;
        let start = normal(1, elements);
        let run = |narrow: bool| {
            let kept = Kept::<bf16, Moments>::new(device, &start, HYPER, eight(device, elements));
            for number in 1..=3 {
                let rounded: Vec<bf16> = grads(number, elements).into_iter().map(bf16::from_f32).collect();
                let wide: Vec<f32> = rounded.iter().map(|g| g.to_f32()).collect();
                let draw = Draw { seed: 5, number: number as u32 };
                if !narrow {
                    step_8bit(device, &kept, &wide, [1.0, 0.5, 1.0], (HYPER, draw));
                    continue;
                }
                let (grads, stats) = (&device.upload(&rounded).unwrap(), &device.upload(&[1.0f32, 0.5, 1.0]).unwrap());
                let Kept { params, low, progress, moments } = &kept;
                let tensors = Tensors { params, low, grads, stats, progress, decay_elements: elements };
                adamw_8bit::step(device, &tensors, moments, HYPER, draw, 0).unwrap();
            }
            kept
        };
        let state = |kept: &Kept<bf16, Moments>| {
            let Moments { m, v, m_exponents, v_exponents } = &kept.moments;
            (kept.masters(device), [m, v, m_exponents, v_exponents].map(|codes| device.download(codes).unwrap()))
        };
        let (wide, narrow) = (run(false), run(true));
        let before = state(&wide);
        assert_same_bits(&format!("masters on {on}"), &state(&narrow).0, &before.0);
        assert_eq!(state(&narrow).1, before.1, "{on}");
        let draw = Draw { seed: 5, number: 4 };
        step_8bit(device, &wide, &vec![f32::NAN; elements], [f32::NAN, f32::NAN, 0.0], (HYPER, draw));
        assert!(state(&wide) == before, "{on}: a step that is not finite changed something");
    });
}

/// Moments in bf16 against the same steps one element after the other, bit for bit.
#[test]
fn steps_in_bf16_are_their_definition() {
    for_each_host(|device, on| {
        for (elements, beta1, first) in [(1, 0.9, 0), (77, 0.9, 64), (520, 0.995, 8)] {
            steps_in_bf16(device, on, elements, Hyper { beta1, ..HYPER }, first);
        }
    });
}

fn steps_in_bf16(device: &Device, on: &str, elements: usize, hyper: Hyper, first: usize) {
    let start = normal(1, elements);
    let moments: [Buffer<bf16>; 2] = [device.zeros(elements).unwrap(), device.zeros(elements).unwrap()];
    let kept = Kept::<f32, _>::new(device, &start, hyper, moments);
    let (mut w, mut m, mut v) = (start, vec![bf16::ZERO; elements], vec![bf16::ZERO; elements]);
    for number in 1..=4u32 {
        let g = grads(u64::from(number), elements);
        let (grads, stats) = (&device.upload(&g).unwrap(), &device.upload(&[3.0f32, 0.5, 1.0]).unwrap());
        let Kept { params, low, progress, moments } = &kept;
        let tensors = Tensors { params, low, grads, stats, progress, decay_elements: 0 };
        let draw = Draw { seed: 3, number };
        adamw_bf16::step(device, &tensors, moments.each_ref(), hyper, draw, first).unwrap();
        let power = |beta: f64| (0..number).fold(1.0, |power, _| power * beta);
        let step_size = (hyper.lr / (1.0 - power(hyper.beta1))) as f32;
        let correction = (1.0 / (1.0 - power(hyper.beta2)).sqrt()) as f32;
        let halves = |part: u32, at: usize| {
            let stream = Philox::part(3, Purpose::Moments, number, part);
            stream.halves(((first + at) / 8) as u64)[(first + at) % 8]
        };
        for at in 0..elements {
            let clipped = 0.5 * g[at];
            let mean = hyper.beta1 as f32 * m[at].to_f32() + (1.0 - hyper.beta1) as f32 * clipped;
            let square = hyper.beta2 as f32 * v[at].to_f32() + (1.0 - hyper.beta2) as f32 * clipped * clipped;
            w[at] -= step_size * mean / (square.sqrt() * correction + hyper.eps as f32) + 0.0 * w[at];
            m[at] = if hyper.beta1 > 0.99 { bf16_by_chance(mean, halves(1, at)) } else { bf16::from_f32(mean) };
            v[at] = bf16_by_chance(square, halves(0, at));
        }
        let what = format!("step {number} of {elements} on {on}");
        assert_same_bits(&format!("m, {what}"), &device.download(&moments[0]).unwrap(), &m);
        assert_same_bits(&format!("v, {what}"), &device.download(&moments[1]).unwrap(), &v);
        assert_same_bits(&format!("w, {what}"), &kept.masters(device), &w);
    }
}

#[test]
fn places_that_no_block_begins_at_are_refused() {
    let device = crate::support::fast_device(1);
    let kept = Kept::<f32, Moments>::new(&device, &[0.0; 8], HYPER, eight(&device, 8));
    let (grads, stats) = (&device.zeros::<f32>(8).unwrap(), &device.zeros(3).unwrap());
    let Kept { params, low, progress, moments } = &kept;
    let tensors = Tensors { params, low, grads, stats, progress, decay_elements: 0 };
    let draw = Draw { seed: 1, number: 1 };
    let why = adamw_8bit::step(&device, &tensors, moments, HYPER, draw, 8).unwrap_err().to_string();
    assert_eq!(why, "adamw_8bit: elements from 8 on: expected a multiple of 256");
    let narrow: [Buffer<bf16>; 2] = [device.zeros(8).unwrap(), device.zeros(8).unwrap()];
    let why = adamw_bf16::step(&device, &tensors, narrow.each_ref(), HYPER, draw, 4).unwrap_err().to_string();
    assert_eq!(why, "adamw_bf16: elements from 4 on: expected a multiple of 8");
}
