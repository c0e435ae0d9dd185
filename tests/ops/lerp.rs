use half::bf16;
use warpo::{
    device::{Device, Float},
    ops::lerp,
};

use crate::{
    oracles,
    support::{cast, for_each_device, normal, type_name, widen},
};

/// One element, ragged, exact chunks, exact CTA, more than one CTA.
const SHAPES: &[usize] = &[1, 13, 64, 1024, 2500];

#[test]
fn lerp_f32() {
    // Half a unit of the difference, of the product and of the sum, relative to the largest number there is.
    for_each_device(|device, on| between::<f32>(device, on, 3.0 * 2f64.powi(-24)));
}

#[test]
fn lerp_bf16() {
    // Half a unit of eight bits, and what f32 does before.
    for_each_device(|device, on| between::<bf16>(device, on, 2f64.powi(-8) + 3.0 * 2f64.powi(-24)));
}

fn between<T: Float>(device: &Device, on: &str, limit: f64) {
    for (&elements, weight) in
        SHAPES.iter().flat_map(|elements| [0.0, 1e-4, 0.25, 0.6, 1.0].map(|weight| (elements, weight)))
    {
        let (y, x): (Vec<T>, Vec<T>) = (cast(&normal(1, elements + 1)), cast(&normal(2, elements + 1)));
        // A start that is not a multiple of 16 bytes takes the other path.
        for skip in [0, 1] {
            let range = skip..skip + elements;
            let [on_y, on_x] = [&y, &x].map(|values| device.upload(values).unwrap());
            let part = on_y.slice(range.clone());
            lerp::lerp(device, &part, &on_x.slice(range.clone()), weight, elements).unwrap();
            let mut want = widen(&y);
            let inside = oracles::lerp::lerp(&widen(&y[range.clone()]), &widen(&x[range.clone()]), f64::from(weight));
            want[range.clone()].copy_from_slice(&inside);
            let got = widen(&device.download(&on_y).unwrap());
            let what = format!("lerp {} {elements} from {skip} by {weight} on {on}", type_name::<T>());
            for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                let (a, b) = (y[at].to_f32(), x[at].to_f32());
                let most = f64::from(a.abs().max(b.abs()).max((a - b).abs()));
                let exact = weight == 0.0 || weight == 1.0 || !range.contains(&at);
                let allowed = if exact { 0.0 } else { limit * most };
                assert!((got - want).abs() <= allowed, "{what}: {got} at {at} is not {want}");
            }
        }
    }
}
