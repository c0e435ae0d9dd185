use std::{collections::HashMap, fs, path::Path};

use half::{bf16, f16};
use safetensors::{Dtype, tensor::TensorView};
use tempfile::TempDir;
use warpo::{
    device::{Device, Float, HostOptions},
    model::{Layout, ModelConfig, ParamSet, weights},
};

use super::tiny_config;
use crate::support::normal;

fn device() -> Device {
    Device::host(HostOptions { threads: 1, ..HostOptions::default() }).unwrap()
}

/// A tensor as it lies in a file.
#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type Tensors = HashMap<String, Stored>;

fn tensors(layout: &Layout, dtype: Dtype) -> Tensors {
    let stored = |(i, spec): (usize, &warpo::model::TensorSpec)| {
        let values = normal(i as u64, spec.elements());
        let bytes = match dtype {
            Dtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Dtype::BF16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        (spec.name.clone(), Stored { dtype, shape: spec.shape.clone(), bytes })
    };
    layout.tensors.iter().enumerate().map(stored).collect()
}

fn write(path: &Path, tensors: &Tensors) {
    let view = |stored| {
        let Stored { dtype, shape, bytes }: &Stored = stored;
        TensorView::new(*dtype, shape.clone(), bytes).unwrap()
    };
    let views: HashMap<&String, TensorView> = tensors.iter().map(|(name, stored)| (name, view(stored))).collect();
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Half of the tensors in each of two files, with an index.
fn write_sharded(folder: &Path, tensors: &Tensors) {
    let mut shards = [Tensors::new(), Tensors::new()];
    let mut map = serde_json::Map::new();
    let mut names: Vec<_> = tensors.keys().collect();
    names.sort();
    for (i, name) in names.into_iter().enumerate() {
        shards[i % 2].insert(name.clone(), tensors[name].clone());
        map.insert(name.clone(), format!("model-0000{}-of-00002.safetensors", i % 2 + 1).into());
    }
    for (i, shard) in shards.iter().enumerate() {
        write(&folder.join(format!("model-0000{}-of-00002.safetensors", i + 1)), shard);
    }
    let index = serde_json::json!({"metadata": {"total_size": 0}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

fn load<T: Float>(config: &ModelConfig, folder: &Path) -> anyhow::Result<Vec<T>> {
    let device = device();
    let params = ParamSet::<T>::frozen(&device, Layout::new(config))?;
    weights::load(&params, config, folder)?;
    device.download(&params.values())
}

/// What loading a folder with these tensors says.
fn refusal(config: &ModelConfig, change: impl FnOnce(&mut Tensors)) -> String {
    let folder = TempDir::new().unwrap();
    let mut tensors = tensors(&Layout::new(config), Dtype::F32);
    change(&mut tensors);
    write(&folder.path().join("model.safetensors"), &tensors);
    refused(config, folder.path())
}

fn refused(config: &ModelConfig, folder: &Path) -> String {
    let message = format!("{:#}", load::<f32>(config, folder).expect_err("the folder is refused"));
    assert!(!message.contains('\n'), "{message}");
    message
}

fn assert_contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn save_and_load_give_the_same_bits() {
    for tied in [true, false] {
        save_and_load::<f32>(tied);
        save_and_load::<bf16>(tied);
    }
}

fn save_and_load<T: Float>(tied: bool) {
    let config = tiny_config(tied, 2);
    let (device, layout) = (device(), Layout::new(&config));
    let folder = TempDir::new().unwrap();
    let params = ParamSet::<T>::frozen(&device, layout.clone()).unwrap();
    weights::random(&params, &config, 7).unwrap();
    weights::save(&params, folder.path()).unwrap();
    assert_eq!(load::<T>(&config, folder.path()).unwrap(), device.download(&params.values()).unwrap());

    let bytes = fs::read(folder.path().join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), layout.tensors.len());
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
}

/// What bf16 cannot hold is kept where the optimizer adds to it.
#[test]
fn the_master_has_the_values_of_the_files() {
    let config = tiny_config(false, 2);
    let layout = Layout::new(&config);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let folder = TempDir::new().unwrap();
        write(&folder.path().join("model.safetensors"), &tensors(&layout, dtype));
        let device = device();
        let params = ParamSet::<bf16>::trained(&device, layout.clone()).unwrap();
        weights::load(&params, &config, folder.path()).unwrap();
        let exact = load::<f32>(&config, folder.path()).unwrap();
        assert_eq!(params.masters(&(0..layout.elements)).unwrap(), exact, "{dtype:?}");
        let rounded: Vec<bf16> = exact.iter().map(|&value| bf16::split(value).0).collect();
        assert_eq!(device.download(&params.values()).unwrap(), rounded, "{dtype:?}");
        assert_eq!(load::<bf16>(&config, folder.path()).unwrap(), rounded, "{dtype:?}, frozen");
        let lost = exact.iter().zip(&rounded).filter(|(exact, rounded)| rounded.to_f32() != **exact).count();
        assert_eq!(lost == 0, dtype == Dtype::BF16, "{lost} values that bf16 cannot hold");
    }
}

#[test]
fn element_types_and_shards() {
    let config = tiny_config(false, 2);
    let layout = Layout::new(&config);
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let stored = tensors(&layout, dtype);
        let want: Vec<f32> = layout
            .tensors
            .iter()
            .enumerate()
            .flat_map(|(i, spec)| normal(i as u64, spec.elements()))
            .map(|x| match dtype {
                Dtype::F16 => f16::from_f32(x).to_f32(),
                Dtype::BF16 => bf16::from_f32(x).to_f32(),
                _ => x,
            })
            .collect();
        let (single, sharded) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        write(&single.path().join("model.safetensors"), &stored);
        write_sharded(sharded.path(), &stored);
        assert_eq!(load::<f32>(&config, single.path()).unwrap(), want, "{dtype:?}");
        assert_eq!(load::<f32>(&config, sharded.path()).unwrap(), want, "{dtype:?} sharded");
        let rounded: Vec<bf16> = want.iter().map(|&x| bf16::split(x).0).collect();
        assert_eq!(load::<bf16>(&config, sharded.path()).unwrap(), rounded, "{dtype:?} to bf16");
    }
}

#[test]
fn random_start_depends_on_seed_and_tensor() {
    let (tied, untied) = (tiny_config(true, 2), tiny_config(false, 2));
    let device = device();
    let fill = |config: &ModelConfig, seed| {
        let layout = Layout::new(config);
        let params = ParamSet::<f32>::frozen(&device, layout.clone()).unwrap();
        weights::random(&params, config, seed).unwrap();
        let values = device.download(&params.values()).unwrap();
        layout.tensors.into_iter().map(|s| (s.name.clone(), values[s.range()].to_vec())).collect::<HashMap<_, _>>()
    };
    let (a, b, other) = (fill(&tied, 1), fill(&untied, 1), fill(&tied, 2));
    for (name, values) in &a {
        assert_eq!(values, &b[name], "{name}");
        assert_eq!(values == &other[name], name.contains("norm"), "{name}");
        if name.contains("norm") {
            assert!(values.iter().all(|&x| x == 1.0), "{name}");
            continue;
        }
        // Mean and deviation of n numbers stray by d / sqrt(n) and d / sqrt(2 n): five times that is never seen.
        let (n, deviation) = (values.len() as f64, tied.initializer_range);
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let spread = (values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n).sqrt();
        assert!(mean.abs() < 5.0 * deviation / n.sqrt(), "{name}: mean {mean}");
        assert!((spread - deviation).abs() < 5.0 * deviation / (2.0 * n).sqrt(), "{name}: deviation {spread}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let config = tiny_config(false, 2);
    let key = "model.layers.1.self_attn.k_proj.weight";
    let message = refusal(&config, |t| t.get_mut(key).unwrap().shape = vec![48, 64]);
    assert_contains(&message, &["model.safetensors", key, "expected [64, 48]", "found [48, 64]"]);
    let message = refusal(&config, |t| drop(t.remove(key)));
    assert_contains(&message, &["model.safetensors", "missing tensor", key]);
    let message = refusal(&config, |t| t.retain(|name, _| !name.contains("layers.0")));
    assert_contains(&message, &["missing tensors", "model.layers.0.", "and 5 more"]);
    let bias = "model.layers.0.self_attn.q_proj.bias";
    let extra = Stored { dtype: Dtype::F32, shape: vec![1], bytes: vec![0; 4] };
    let message = refusal(&config, |t| drop(t.insert(bias.to_owned(), extra)));
    assert_contains(&message, &["not part of this model", bias]);
    let message = refusal(&config, |t| t.get_mut("model.norm.weight").unwrap().dtype = Dtype::I32);
    assert_contains(&message, &["model.norm.weight", "I32", "F32, F16 and BF16"]);
    let nan = f32::NAN.to_le_bytes();
    let message = refusal(&config, |t| t.get_mut("model.norm.weight").unwrap().bytes[8..12].copy_from_slice(&nan));
    assert_contains(&message, &["model.norm.weight", "element 2 is NaN"]);
}

#[test]
fn rotary_buffers_and_an_equal_tied_head_are_accepted() {
    let config = tiny_config(true, 2);
    let mut stored = tensors(&Layout::new(&config), Dtype::F32);
    let frequencies = Stored { dtype: Dtype::F32, shape: vec![16], bytes: vec![0; 64] };
    stored.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), frequencies);
    let head = stored["model.embed_tokens.weight"].clone();
    stored.insert("lm_head.weight".to_owned(), head);
    let folder = TempDir::new().unwrap();
    write(&folder.path().join("model.safetensors"), &stored);
    load::<f32>(&config, folder.path()).unwrap();

    stored.get_mut("lm_head.weight").unwrap().bytes[40] ^= 1;
    write(&folder.path().join("model.safetensors"), &stored);
    assert_contains(&refused(&config, folder.path()), &["lm_head.weight", "tie_word_embeddings"]);
}

#[test]
fn broken_files_are_named() {
    let config = tiny_config(true, 2);
    let folder = TempDir::new().unwrap();
    assert_contains(&refused(&config, folder.path()), &["neither model.safetensors nor model.safetensors.index.json"]);

    let path = folder.path().join("model.safetensors");
    write(&path, &tensors(&Layout::new(&config), Dtype::F32));
    let whole = fs::read(&path).unwrap();
    // Within the data, within the header, within the header's length, nothing at all.
    for keep in [whole.len() - 1, 100, 5, 0] {
        fs::write(&path, &whole[..keep]).unwrap();
        assert_contains(&refused(&config, folder.path()), &["model.safetensors", "truncated"]);
    }
    fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    assert_contains(&refused(&config, folder.path()), &["bytes, found"]);
    let mut broken = whole.clone();
    broken[9] = b'#';
    fs::write(&path, &broken).unwrap();
    assert_contains(&refused(&config, folder.path()), &["broken header"]);
    fs::remove_file(&path).unwrap();

    write_sharded(folder.path(), &tensors(&Layout::new(&config), Dtype::F32));
    let shard = folder.path().join("model-00002-of-00002.safetensors");
    let mut stored = fs::read(&shard).unwrap();
    stored.pop();
    fs::write(&shard, stored).unwrap();
    assert_contains(&refused(&config, folder.path()), &["model-00002-of-00002.safetensors", "truncated"]);
    fs::remove_file(&shard).unwrap();
    assert_contains(&refused(&config, folder.path()), &["index.json", "model-00002-of-00002.safetensors"]);
    let index = folder.path().join("model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("model-00002", "../model-00002")).unwrap();
    assert_contains(&refused(&config, folder.path()), &["is not a file name"]);
    let far = text.replace("model-00002", "/etc/model-00002");
    fs::write(&index, far).unwrap();
    assert_contains(&refused(&config, folder.path()), &["is not a file name"]);
    fs::write(&index, "{}").unwrap();
    assert_contains(&refused(&config, folder.path()), &["index.json", "broken index"]);
}

/// Headers that say what is not so, each refused at once and without the memory that they ask for.
#[test]
fn lying_headers_are_refused() {
    let config = tiny_config(true, 2);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    let file = |length: u64, json: &str| [&length.to_le_bytes()[..], json.as_bytes(), &[0; 64]].concat();
    let tensor = |shape: &str, offsets: &str| {
        let json = format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
        file(json.len() as u64, &json)
    };
    for (bytes, part) in [
        (file(u64::MAX, "{}"), "the header takes 18446744073709551615 bytes"),
        (file(1 << 40, "{}"), "the header takes 1099511627776 bytes"),
        (file(90_000_000, "{}"), "truncated"),
        (tensor("[16]", "[0, 60]"), "broken header"),
        (tensor("[16]", "[4, 68]"), "broken header"),
        (tensor("[18446744073709551615, 16]", "[0, 64]"), "broken header"),
        (tensor("[16]", "[64, 0]"), "broken header"),
        (tensor("[17]", "[0, 68]"), "expected"),
        (tensor("[-1]", "[0, 64]"), "broken header"),
    ] {
        fs::write(&path, bytes).unwrap();
        assert_contains(&refused(&config, folder.path()), &["model.safetensors", part]);
    }
    // A hole of 64 GiB, all of it header.
    let sparse = fs::File::create(&path).unwrap();
    std::io::Write::write_all(&mut &sparse, &((64u64 << 30) - 8).to_le_bytes()).unwrap();
    sparse.set_len(64 << 30).unwrap();
    assert_contains(&refused(&config, folder.path()), &["not safetensors", "100000000"]);
}

/// An index whose names its files do not have may be another model's: refused, with what to do where it is the tied head.
#[test]
fn an_index_that_names_what_no_file_has_is_refused() {
    let config = tiny_config(true, 2);
    for (name, remedy) in [("lm_head.weight", "remove its line"), ("model.norm.weight_v", "where the index places it")]
    {
        let folder = TempDir::new().unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        write_sharded(folder.path(), &tensors(&Layout::new(&config), Dtype::F32));
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
        json["weight_map"][name] = "model-00002-of-00002.safetensors".into();
        fs::write(&index, json.to_string()).unwrap();
        assert_contains(&refused(&config, folder.path()), &[name, remedy]);
    }
}

#[test]
fn weights_in_other_forms_are_named_with_a_remedy() {
    let config = tiny_config(true, 2);
    for name in [
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "consolidated.00.pth",
        "consolidated.safetensors",
        "tiny-Q4_K_M.gguf",
        "tf_model.h5",
        "model.ckpt.index",
        "flax_model.msgpack",
        "model.fp16.safetensors",
    ] {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join(name), "not read").unwrap();
        assert_contains(&refused(&config, folder.path()), &["neither model.safetensors nor", name, "save_pretrained"]);
        let why = format!("{:#}", ModelConfig::load(folder.path()).unwrap_err());
        assert_contains(&why, &["needs a config.json", name, "save_pretrained"]);
    }
}

#[test]
fn git_lfs_pointers_are_named() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00ff\nsize 123456\n";
    let config = tiny_config(true, 2);
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("config.json"), pointer).unwrap();
    let why = format!("{:#}", ModelConfig::load(folder.path()).unwrap_err());
    assert_contains(&why, &["config.json", "a Git LFS pointer", "git lfs pull"]);
    fs::write(folder.path().join("model.safetensors"), pointer).unwrap();
    assert_contains(&refused(&config, folder.path()), &["model.safetensors", "a Git LFS pointer", "git lfs pull"]);
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    write_sharded(folder.path(), &tensors(&Layout::new(&config), Dtype::F32));
    fs::write(folder.path().join("model-00001-of-00002.safetensors"), pointer).unwrap();
    assert_contains(&refused(&config, folder.path()), &["model-00001-of-00002.safetensors", "a Git LFS pointer"]);
}

#[test]
fn a_failed_save_leaves_the_old_file() {
    let config = tiny_config(true, 2);
    let (device, layout) = (device(), Layout::new(&config));
    let folder = TempDir::new().unwrap();
    let params = ParamSet::<f32>::frozen(&device, layout).unwrap();
    device.fill_zero(&params.values()).unwrap();
    weights::save(&params, folder.path()).unwrap();
    let path = folder.path().join("model.safetensors");
    let before = fs::read(&path).unwrap();
    let failed = warpo::files::write_whole(&path, |out| {
        std::io::Write::write_all(out, b"half")?;
        anyhow::bail!("the disk is full")
    });
    assert_contains(&format!("{:#}", failed.unwrap_err()), &["model.safetensors", "the disk is full"]);
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// GPT-2's matrices lie the other way round in files. The larger ones are read and written in several pieces, here with a
/// ragged last one.
#[test]
fn transposed_matrices_go_in_pieces() {
    let json =
        r#"{"model_type": "gpt2", "n_embd": 1088, "n_head": 17, "n_layer": 1, "n_positions": 8, "vocab_size": 8}"#;
    let config = ModelConfig::parse(json).unwrap();
    let (device, layout, folder) = (device(), Layout::new(&config), TempDir::new().unwrap());
    let params = ParamSet::<f32>::frozen(&device, layout.clone()).unwrap();
    weights::random(&params, &config, 3).unwrap();
    weights::save(&params, folder.path()).unwrap();
    let values = device.download(&params.values()).unwrap();
    assert_eq!(load::<f32>(&config, folder.path()).unwrap(), values);

    let bytes = fs::read(folder.path().join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for name in ["attn.c_attn", "mlp.c_fc", "mlp.c_proj"] {
        let spec = layout.get(&format!("transformer.h.0.{name}.weight")).unwrap();
        let [rows, columns] = spec.shape[..] else { panic!("{spec:?}") };
        let own = &values[spec.range()];
        let stored = bytemuck::allocation::pod_collect_to_vec::<u8, f32>(file.tensor(&spec.name).unwrap().data());
        for (i, value) in stored.iter().enumerate() {
            assert!(*value == own[i % rows * columns + i / rows], "{name}: element {i}");
        }
    }
}

/// A long row of random numbers is the same whichever pieces it is drawn in.
#[test]
fn pieces_of_a_random_start() {
    let philox = warpo::rng::Philox::new(5, warpo::rng::Purpose::Init, 1);
    let (mut whole, mut pieces) = (vec![0.0; 23], vec![0.0; 23]);
    philox.fill_normal(&mut whole, 1.5);
    philox.fill_normal_from(0, &mut pieces[..8], 1.5);
    philox.fill_normal_from(2, &mut pieces[8..], 1.5);
    assert_eq!(whole, pieces);
}
