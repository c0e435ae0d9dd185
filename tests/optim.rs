//! Optimizers as rules over groups: which launches serve them changes nothing, and their state is all that a run resumes.

use half::bf16;
use warpo::{
    device::{DType, Device, Element},
    model::{AnyBuffer, Group, Layout, ParamSet},
    optim::{Moments, Optimizer, RuleKind, Settings},
};

use crate::support::{assert_same_bits, fast_device, normal};

const RULES: [RuleKind; 4] = [
    RuleKind::adamw(0.9, 0.999, 1e-8),
    RuleKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, moments: Moments::Bf16, windows: None },
    RuleKind::AdamW { beta1: 0.95, beta2: 0.999, eps: 1e-8, moments: Moments::Eight, windows: None },
    RuleKind::RmsProp { alpha: 0.99, eps: 1e-8 },
];
const MATRIX: usize = 40;
const VECTOR: usize = 16;

fn settings(rule: RuleKind) -> Settings {
    Settings { rule, weight_decay: 0.1, max_grad_norm: 0.0 }
}

fn params(device: &Device) -> ParamSet<f32> {
    let layout = Layout::of([("w".into(), vec![5, 8], true), ("b".into(), vec![VECTOR], false)]);
    let params = ParamSet::trained(device, layout).unwrap();
    device.copy_in(&params.values(), &normal(1, MATRIX + VECTOR)).unwrap();
    params
}

/// Steps with gradients of their own each, and what the weights are then.
fn steps(optimizer: &Optimizer<f32>, params: &ParamSet<f32>, steps: std::ops::Range<u64>, lr: f64) -> Vec<f32> {
    let device = params.device();
    for step in steps {
        params.zero_grads().unwrap();
        device.copy_in(params.grads(), &normal(100 + step, MATRIX + VECTOR)).unwrap();
        assert!(optimizer.step(lr).unwrap().applied);
    }
    device.download(&params.values()).unwrap()
}

/// A group's rate is its own, and a cut between groups moves no bit.
#[test]
fn groups_have_rates() {
    let device = fast_device(1);
    for rule in RULES {
        let run = |scales: [f64; 2], lr: f64| {
            let params = params(&device);
            let groups: Vec<Group> = params.groups().to_vec();
            assert_eq!(groups.iter().map(|group| group.decay).collect::<Vec<_>>(), [true, false]);
            let scaled = groups.into_iter().zip(scales).map(|(group, lr_scale)| Group { lr_scale, ..group });
            let params = params.grouped(scaled.collect()).unwrap();
            let optimizer = Optimizer::new(&params, &settings(rule)).unwrap();
            let values = steps(&optimizer, &params, 0..3, lr);
            assert_eq!(optimizer.updates().unwrap(), 3);
            values
        };
        let (slow, fast, mixed) = (run([1.0, 1.0], 0.25), run([1.0, 1.0], 0.5), run([1.0, 2.0], 0.25));
        assert_same_bits("the matrix", &mixed[..MATRIX], &slow[..MATRIX]);
        assert_same_bits("the vector", &mixed[MATRIX..], &fast[MATRIX..]);
    }
}

#[test]
fn groups_cover_what_is_trained() {
    let device = fast_device(1);
    let group = |range| Group { name: "matrix".into(), range, decay: true, lr_scale: 1.0 };
    let refused = |groups| params(&device).grouped(groups).err().unwrap().to_string();
    assert_eq!(refused(vec![group(0..40)]), "groups of 40 elements for 56 that are trained");
    assert_eq!(refused(vec![group(8..56)]), "group `matrix`: begins at element 8, not at 0");
}

/// What `tensors` names, the weights and the number of updates are the whole state.
#[test]
fn a_rule_goes_on_from_its_tensors() {
    let device = fast_device(1);
    for rule in RULES {
        let (whole, first, second) = (params(&device), params(&device), params(&device));
        let want = steps(&Optimizer::new(&whole, &settings(rule)).unwrap(), &whole, 0..5, 0.1);
        let saved = Optimizer::new(&first, &settings(rule)).unwrap();
        let values = steps(&saved, &first, 0..2, 0.1);
        let resumed = Optimizer::new(&second, &settings(rule)).unwrap();
        device.copy_in(&second.values(), &values).unwrap();
        for ((name, to), (_, from)) in resumed.tensors().into_iter().zip(saved.tensors()) {
            let copied =
                copy::<f32>(&device, &to, &from) + copy::<bf16>(&device, &to, &from) + copy::<u8>(&device, &to, &from);
            assert_eq!(copied, 1, "{name}");
        }
        second.resume(0, 2);
        resumed.resume(saved.updates().unwrap()).unwrap();
        assert_same_bits("resumed", &steps(&resumed, &second, 2..5, 0.1), &want);
        assert_eq!(resumed.updates().unwrap(), 5);
    }
}

/// Copies a tensor if its elements are of that type.
fn copy<E: Element>(device: &Device, to: &AnyBuffer, from: &AnyBuffer) -> usize {
    let (Some(to), Some(from)) = (to.typed::<E>(), from.typed::<E>()) else { return 0 };
    device.copy(&to, &from).unwrap();
    1
}

/// AdamW with moments of a kind, in the host's memory if windows have a size.
fn adamw(moments: Moments, windows: Option<usize>) -> RuleKind {
    RuleKind::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, moments, windows }
}

const KINDS: [Moments; 3] = [Moments::F32, Moments::Bf16, Moments::Eight];

/// Less than a block, and eight blocks of f32 moments: of 66 blocks and a ragged one pieces of one block and of many.
const WINDOWS: [usize; 2] = [1, 16 << 10];

/// Several steps of a matrix of 65 blocks and a bit, and of a vector, of which one step is refused.
pub fn moved(device: &Device, moments: Moments, windows: Option<usize>) -> Vec<f32> {
    let layout = Layout::of([("w".into(), vec![130, 129], true), ("b".into(), vec![VECTOR], false)]);
    let params = ParamSet::<f32>::trained(device, layout).unwrap();
    let elements = params.grads().len();
    device.copy_in(&params.values(), &normal(1, elements)).unwrap();
    let optimizer = Optimizer::new(&params, &settings(adamw(moments, windows))).unwrap();
    for step in 0..4 {
        params.zero_grads().unwrap();
        let mut grads = normal(100 + step, elements);
        grads[elements / 2] *= if step == 2 { f32::INFINITY } else { 1.0 };
        device.copy_in(params.grads(), &grads).unwrap();
        optimizer.apply(0.1).unwrap();
    }
    assert_eq!(optimizer.updates().unwrap(), 3);
    device.download(&params.values()).unwrap()
}

/// Where moments are kept, and how they are cut on their way, moves no bit.
#[test]
fn moments_in_the_hosts_memory_are_the_same() {
    let device = fast_device(2);
    for moments in KINDS {
        let want = moved(&device, moments, None);
        for windows in WINDOWS {
            let got = moved(&device, moments, Some(windows));
            assert_same_bits(&format!("{moments:?} by {windows} bytes"), &got, &want);
        }
    }
}

/// In the child of the stand-in for the driver, which runs copies as late or as early as it may.
pub fn moments_beside_the_work() {
    let (device, here) = (Device::cuda(0).unwrap(), fast_device(2));
    for moments in KINDS {
        let want = moved(&here, moments, None);
        for windows in WINDOWS {
            assert_same_bits(&format!("{moments:?}"), &moved(&device, moments, Some(windows)), &want);
            println!("{moments:?} by {windows} bytes: the same");
        }
    }
}

/// A run with moments in the host's memory leaves the files of one without, and goes on as either.
#[test]
fn a_run_may_move_its_moments() {
    let fixture = crate::train::fixture::Fixture::new();
    let run = |out: &str, extra: &[&str]| {
        let set = ["--set", "train.save_every=4", "--set", "optim.moments=8bit"];
        let output = fixture.execute(out, &[&set[..], extra].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let on_host = ["--set", "optim.moments_on=host"];
    run("device", &[]);
    run("host", &on_host);
    fixture.assert_same_run("device", "host");
    for gone in ["checkpoint-8", "final"] {
        for out in ["device", "host"] {
            std::fs::remove_dir_all(fixture.path(out).join(gone)).unwrap();
        }
    }
    run("device", &[&on_host[..], &["--resume"]].concat());
    run("host", &["--set", "optim.moments_on=device", "--resume"]);
    run("straight", &[]);
    for out in ["device", "host"] {
        fixture.assert_same_run("straight", out);
    }
    let refused = fixture.execute("other", &["--set", "optim.name=rmsprop", "--set", "optim.moments_on=host"]);
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(why.contains("`optim.moments_on`: `optim.name` is \"rmsprop\", which has no moments"), "{why}");
}

/// What a plan counts for a rule is what the device has less, to the byte.
#[test]
fn an_optimizer_takes_what_is_planned() {
    let device = fast_device(1);
    let on_host = KINDS.into_iter().flat_map(|moments| WINDOWS.map(|windows| adamw(moments, Some(windows))));
    for rule in RULES.into_iter().chain(on_host) {
        // More than a block of moments and more than a slice of the norm, neither whole.
        let layout = Layout::of([("w".into(), vec![130, 129], true), ("b".into(), vec![VECTOR], false)]);
        let params = ParamSet::<f32>::trained(&device, layout).unwrap();
        let before = device.memory().allocated;
        let _optimizer = Optimizer::allocate(&params, &settings(rule)).unwrap();
        assert_eq!(device.memory().allocated - before, rule.bytes(params.groups(), DType::F32), "{rule:?}");
        let moments = match rule {
            RuleKind::AdamW { moments, windows: Some(_), .. } => {
                [8 * 16786, 4 * 16770, 2 * (16770 + 66)][moments as usize]
            }
            _ => 0,
        };
        assert_eq!(rule.host_bytes(params.groups()), moments, "{rule:?}");
    }
}

/// A block of moments is not shared between groups.
#[test]
fn a_group_begins_where_a_block_does() {
    let device = fast_device(1);
    let layout = Layout::of([("w".into(), vec![40], true), ("x".into(), vec![16], true)]);
    let group = |range, lr_scale| Group { name: "part".into(), range, decay: true, lr_scale };
    let params = ParamSet::<f32>::trained(&device, layout).unwrap();
    let params = params.grouped(vec![group(0..40, 1.0), group(40..56, 2.0)]).unwrap();
    let why = Optimizer::new(&params, &settings(RULES[2])).err().unwrap().to_string();
    assert_eq!(why, "moments in 8 bits: a group begins at element 40, not at a multiple of 256");
    Optimizer::new(&params, &settings(RULES[1])).unwrap();
}

/// A run under another rule is saved and resumed as any other.
#[test]
fn an_rmsprop_run_resumes() {
    let fixture = crate::train::fixture::Fixture::new();
    let set = ["--set", "optim.name=rmsprop", "--set", "optim.alpha=0.95", "--set", "train.save_every=4"];
    let run = |out: &str, extra: &[&str]| {
        let output = fixture.execute(out, &[&set[..], extra].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run("straight", &[]);
    run("again", &[]);
    std::fs::remove_dir_all(fixture.path("again/checkpoint-8")).unwrap();
    std::fs::remove_dir_all(fixture.path("again/final")).unwrap();
    run("again", &["--resume"]);
    fixture.assert_same_run("straight", "again");
    let bytes = std::fs::read(fixture.path("straight/checkpoint-8/optimizer.safetensors")).unwrap();
    assert_eq!(safetensors::SafeTensors::deserialize(&bytes).unwrap().names(), ["square_avg"]);
}
