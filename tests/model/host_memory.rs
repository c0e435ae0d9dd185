//! What starting, saving and resuming take of the host beside the device's own buffers, measured in a process of its own.

use std::{env, fs, path::Path, process::Command};

use warpo::{
    device::{Device, Float, HostOptions},
    files::safetensors::{self, Reader, Spec},
    model::{AnyBuffer, Capacity, Companions, MemoryPlan, Model, ModelConfig, ParamSet},
    optim::{Optimizer, RuleKind, Settings},
};

/// Names the folder, in the process that is measured.
const FOLDER: &str = "WARPO_TEST_HOST_MEMORY";
/// Beside buffers: pieces, kernels, the test binary itself.
const ALLOWED: usize = 100_000_000;

/// Some 52 million weights: 104 MB in bf16, 210 MB in f32, most of them in one table.
fn config() -> ModelConfig {
    let json = r#"{"model_type": "llama", "vocab_size": 24000, "hidden_size": 1024, "intermediate_size": 2816,
        "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 64, "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        "initializer_range": 0.02}"#;
    ModelConfig::parse(json).unwrap()
}

/// Peak resident bytes of this process.
fn peak() -> usize {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
}

/// A model and its optimizer start from a seed, are saved, and are filled again from what was saved.
fn run<T: Float>(folder: &Path) {
    let device = Device::host(HostOptions { threads: 1, ..HostOptions::default() }).unwrap();
    let config = config();
    let capacity = Capacity { tokens: 16, rows: 16, head_chunk_rows: 16 };
    let model = Model::<T>::new(&device, &config, MemoryPlan::new(&config, T::DTYPE, capacity).unwrap()).unwrap();
    let rule = RuleKind::adamw(0.9, 0.999, 1e-8);
    let settings = Settings { rule, weight_decay: 0.0, max_grad_norm: 1.0 };
    let optimizer = Optimizer::allocate(model.params(), &settings).unwrap();
    model.randomize(1).unwrap();
    model.save(folder, &Companions::none()).unwrap();
    save(model.params(), &optimizer, &folder.join("optimizer.safetensors"));
    model.load(folder).unwrap();
    let file = Reader::open(folder.join("optimizer.safetensors")).unwrap();
    for (name, tensor) in optimizer.tensors() {
        tensor.load(&device, &file, name, &[tensor.len()]).unwrap();
    }
    println!("\n{} {}", peak(), device.memory().peak);
}

fn save<T: Float>(params: &ParamSet<T>, optimizer: &Optimizer<T>, path: &Path) {
    let tensors = optimizer.tensors();
    let spec = |(name, tensor): &(&str, AnyBuffer)| Spec {
        name: name.to_string(),
        dtype: tensor.dtype(),
        shape: vec![tensor.len()],
    };
    let specs: Vec<Spec> = tensors.iter().map(spec).collect();
    safetensors::write(path, None, &specs, |file| {
        tensors.iter().enumerate().try_for_each(|(number, (_, tensor))| tensor.save(params.device(), file, number))
    })
    .unwrap();
}

/// Does nothing but in the process that the tests below start.
#[test]
fn measured() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    match folder.file_name().unwrap().to_str().unwrap() {
        "bf16" => run::<half::bf16>(folder),
        _ => run::<f32>(folder),
    }
}

#[test]
fn pieces_are_all_that_the_host_holds() {
    let scratch = tempfile::tempdir().unwrap();
    for precision in ["f32", "bf16"] {
        let folder = scratch.path().join(precision);
        let child = Command::new(env::current_exe().unwrap())
            .args(["model::host_memory::measured", "--exact", "--nocapture", "--test-threads=1"])
            .env(FOLDER, &folder)
            .output()
            .unwrap();
        let text = String::from_utf8(child.stdout).unwrap();
        let numbers = text.lines().find_map(|line| {
            let (peak, buffers) = line.split_once(' ')?;
            Some([peak.parse::<usize>().ok()?, buffers.parse::<usize>().ok()?])
        });
        let [peak, buffers] = numbers.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&child.stderr)));
        println!("{precision}: {peak} bytes at most, {buffers} of them buffers of the device");
        assert!(buffers > 800_000_000, "{precision}: {buffers} bytes are no model of this size");
        assert!(peak < buffers + ALLOWED, "{precision}: {peak} bytes, of which buffers take {buffers}");
        fs::remove_dir_all(folder).unwrap();
    }
}
