//! Sets of weights beside the arena they run in, and the one file that multiplies by them.

use std::fs;

use warpo::{
    device::DType,
    forest::Forest,
    model::{Capacity, DivergenceSlopes, Home, Layout, MemoryPlan, Model, ParamSet, Slopes},
};

use super::{list, model_for, pair, random_params, steps, tiny_config};
use crate::support::{assert_same_bits, fast_device, normal, root};

/// Log-probabilities of a forest.
fn logps(model: &Model<f32>, forest: &Forest) -> Vec<f32> {
    let batch = model.upload(forest).unwrap();
    model.forward(&batch).unwrap();
    model.device().download(&model.logps(&batch).unwrap()).unwrap()
}

fn others() -> Vec<f32> {
    let values = random_params::<f32>(&tiny_config(false, 2));
    values.iter().zip(normal(77, values.len())).map(|(w, noise)| w + 0.05 * noise).collect()
}

/// Two sets of weights take turns in one arena and give what two models give.
#[test]
fn sets_share_an_arena() {
    let (device, config) = (fast_device(2), tiny_config(false, 2));
    let forest = Forest::pack(&[pair(1, [12, 7, 5]), steps(2), list(3, 6, 3)]).unwrap();
    let (own, other) = (model_for::<f32>(&device, &config, &forest), model_for::<f32>(&device, &config, &forest));
    device.copy_in(&other.params().values(), &others()).unwrap();
    let want = [logps(&own, &forest), logps(&other, &forest)];
    assert_ne!(want[0], want[1]);

    let held = device.memory().allocated;
    let set = ParamSet::frozen(&device, Layout::new(&config)).unwrap();
    assert_eq!(device.memory().allocated - held, Layout::new(&config).elements * 4);
    device.copy_in(&set.values(), &others()).unwrap();
    let beside = own.over(set).unwrap();
    assert_eq!(device.memory().allocated - held, Layout::new(&config).elements * 4, "a second arena");
    for _ in 0..2 {
        assert_same_bits("own weights", &logps(&own, &forest), &want[0]);
        assert_same_bits("the other's", &logps(&beside, &forest), &want[1]);
    }
    let batch = beside.upload(&forest).unwrap();
    let slopes = device.zeros(batch.rows).unwrap();
    let why = beside.backward(&batch, &Slopes::by_logps(&slopes)).unwrap_err().to_string();
    assert_eq!(why, "the memory plan is for forward passes only");
    let stranger = ParamSet::frozen(&device, Layout::new(&tiny_config(true, 2))).unwrap();
    assert_eq!(own.over(stranger).err().unwrap().to_string(), "weights of another model in a shared arena");
}

/// What runs forward only has bytes and no gradients.
#[test]
fn a_reference_is_frozen() {
    let (device, config) = (fast_device(1), tiny_config(false, 2));
    let capacity = Capacity { tokens: 64, rows: 64, head_chunk_rows: 16 };
    let plan = MemoryPlan::forward_only(&config, DType::F32, capacity).unwrap();
    let model = Model::<f32>::new(&device, &config, plan).unwrap();
    let head = &model.layout().head;
    assert_eq!(model.params().home(head), Home::Frozen(head.start * 4..head.end * 4));
    assert!(model.params().grads().is_empty() && model.params().groups().is_empty());
    let trained = ParamSet::<f32>::trained(&device, Layout::new(&config)).unwrap();
    assert_eq!(trained.home(head), Home::Trained(head.clone()));
    assert_eq!(trained.weight(head).len(), trained.grad(head).len());
}

/// A pass without slopes is a mistake.
#[test]
fn slopes_are_asked_for() {
    let (device, config) = (fast_device(1), tiny_config(false, 2));
    let forest = Forest::pack(&[pair(1, [3, 2, 2])]).unwrap();
    let model = model_for::<f32>(&device, &config, &forest);
    let batch = model.upload(&forest).unwrap();
    let why = model.backward(&batch, &Slopes::default()).unwrap_err().to_string();
    assert_eq!(why, "a backward pass without slopes");
}

/// Slopes that are left out are slopes of 0.
#[test]
fn divergences_alone_have_slopes() {
    let (device, config) = (fast_device(2), tiny_config(false, 2));
    let forest = Forest::pack(&[pair(1, [12, 7, 5]), steps(2)]).unwrap();
    let (own, other) = (model_for::<f32>(&device, &config, &forest), model_for::<f32>(&device, &config, &forest));
    device.copy_in(&other.params().values(), &others()).unwrap();
    let batch = own.upload(&forest).unwrap();
    let (slopes, zeros) = (device.upload(&normal(4, batch.rows)).unwrap(), device.zeros(batch.rows).unwrap());
    let grads = |logps| {
        own.forward(&batch).unwrap();
        other.forward(&batch).unwrap();
        let kept = own.divergence(&other, &batch).unwrap();
        own.zero_grads().unwrap();
        let divergences = Some(DivergenceSlopes { slopes: &slopes, reference: &other, kept: &kept });
        own.backward(&batch, &Slopes { logps, divergences, ..Slopes::default() }).unwrap();
        device.download(own.params().grads()).unwrap()
    };
    let alone = grads(None);
    assert!(alone.iter().any(|&g| g != 0.0));
    assert_same_bits("slopes of 0", &alone, &grads(Some(&zeros)));
}

/// Products with a layer's weights are launched from `linear.rs` alone: an adapter, or weights in another form, is a change
/// of that file. The head's products are those of `ops::head`; `kernels.rs` asks what products take and launches none.
#[test]
fn one_file_multiplies_by_weights() {
    let products = ["gemm::run", "rope::project", "swiglu::project"];
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join("src/model")).unwrap() {
        let path = entry.unwrap().path();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if products.iter().any(|product| text.contains(product)) {
            found.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    assert_eq!(found, ["linear.rs"]);
}
