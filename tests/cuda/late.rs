//! Training through the driver's interface, where the stand-in runs every launch, but nothing before somebody waits for it:
//! what is freed, copied or read too early, or staged in memory that is used again too soon, changes the bits, for memory is
//! full of NaN before and after use.

use std::{
    collections::BTreeMap,
    env,
    ffi::{CStr, CString, c_char, c_int, c_void},
    mem,
    sync::{Mutex, OnceLock},
};

use serde_json::Value;
use warpo::{
    device::{
        Arg, Choice, DType, Device, GemmBackend, HostOptions, Kernel, Launch, TensorMap, cuda::EMBEDDED, kernels,
    },
    model::{self, ModelConfig},
    ops::{PLAIN_SMEM_BYTES, residual},
    train::{Options, Outcome, run_with},
};

use super::child;
use crate::train::fixture::Fixture;

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}
const RTLD_NOW: c_int = 2;

/// A launch with its arguments as they were when it was queued.
struct Queued {
    kernel: &'static Kernel,
    launch: Launch,
    args: Vec<Arg>,
}

/// By file, the most shared memory that one of its kernels took, if not every GPU has that much.
static LARGE: Mutex<BTreeMap<&str, usize>> = Mutex::new(BTreeMap::new());

/// Whose threads run the launches.
fn runner() -> &'static Device {
    static RUNNER: OnceLock<Device> = OnceLock::new();
    RUNNER.get_or_init(|| Device::host(HostOptions { threads: 2, ..HostOptions::default() }).unwrap())
}

/// Takes as many bytes of every parameter as it has.
extern "C" fn capture(name: *const c_char, config: *const u32, params: *const *const u8) -> *mut c_void {
    // SAFETY: the stand-in hands on a string that ends, seven numbers and a pointer for each parameter.
    let (name, config) = unsafe { (CStr::from_ptr(name), std::slice::from_raw_parts(config, 7)) };
    let named = |kernel: &&&Kernel| kernel.name.as_bytes() == name.to_bytes();
    let kernel: &'static Kernel = kernels::ALL.iter().find(named).expect("only kernels of the build are launched");
    let args = kernel.types.iter().enumerate().map(|(i, ty)| {
        // SAFETY: as above; the type says how many bytes there are.
        unsafe {
            let at = *params.add(i);
            match *ty {
                "CUtensorMap" => Arg::Map(at.cast::<TensorMap>().read_unaligned()),
                "int" | "unsigned" | "float" => Arg::Word(u64::from(at.cast::<u32>().read_unaligned())),
                "unsigned char" => Arg::Word(u64::from(at.read())),
                _ => Arg::Word(at.cast::<u64>().read_unaligned()),
            }
        }
    });
    let three = |from: usize| [config[from], config[from + 1], config[from + 2]];
    let launch = Launch { grid: three(0), block: three(3), smem_bytes: config[6] };
    let bytes = launch.smem_bytes as usize;
    if bytes > PLAIN_SMEM_BYTES {
        let mut large = LARGE.lock().unwrap();
        let most = large.entry(kernel.module).or_default();
        *most = bytes.max(*most);
    }
    Box::into_raw(Box::new(Queued { kernel, launch, args: args.collect() })).cast()
}

extern "C" fn run(queued: *mut c_void) {
    // SAFETY: `capture` made it, and it is run once.
    let mut queued = unsafe { Box::from_raw(queued.cast::<Queued>()) };
    // SAFETY: ops checked the arguments before the launch was queued.
    unsafe { runner().launch(queued.kernel, queued.launch, &mut queued.args) }.expect("the kernel keeps the rules");
}

/// A function of the stand-in, which the program loaded under this name.
fn symbol(name: &str) -> *mut c_void {
    let [library, name] = ["libcuda.so", name].map(|text| CString::new(text).unwrap());
    // SAFETY: both strings end.
    let found = unsafe { dlsym(dlopen(library.as_ptr(), RTLD_NOW), name.as_ptr()) };
    assert!(!found.is_null(), "{name:?} is in the stand-in");
    found
}

pub(super) fn counter(name: &str) -> extern "C" fn() -> c_int {
    // SAFETY: the stand-in's counters have this type.
    unsafe { std::mem::transmute(symbol(&format!("fake_cuda_{name}"))) }
}

/// In the child: from now on launches are run, when somebody waits for them.
pub(super) fn run_launches() {
    // SAFETY: these are the types in fake_driver.c.
    let give_runner = unsafe {
        std::mem::transmute::<*mut c_void, extern "C" fn(*const c_void, *const c_void)>(symbol("fake_cuda_runner"))
    };
    give_runner(capture as *const c_void, run as *const c_void);
}

/// In the child: the model's list of kernels has every launch so far that took much shared memory.
fn check_large_launches(config: &ModelConfig, precision: DType) {
    let listed = model::shared_memory(&Device::cuda(0).unwrap(), config, precision, true);
    let large = mem::take(&mut *LARGE.lock().unwrap());
    for (&module, &bytes) in &large {
        let most = listed.iter().filter(|need| need.module == module).map(|need| need.bytes).max();
        assert!(most >= Some(bytes), "{module} took {bytes} bytes, and the list says {most:?}");
    }
    println!("large in {precision:?}: {large:?}");
}

/// In the child: the same run on the host device with emulated kernels and through the stand-in.
pub fn train() {
    let hopper = env::var("FAKE_CUDA_CAPABILITY").unwrap() == "9.0";
    let [most_behind, graph_launches, graphs_made] = ["most_behind", "graph_launches", "graphs_made"].map(counter);
    let [launches_changed, loaded_late] = ["launches_changed", "loaded_late"].map(counter);
    run_launches();
    let fixture = Fixture::new();
    // Heads that attention on Hopper's units takes, or larger ones.
    let head_dim = env::var("HEAD_DIM").map_or(64, |text| text.parse().unwrap());
    let config = with_heads(&fixture, head_dim);
    let precisions = if head_dim == 64 { &["f32", "bf16"][..] } else { &["f32"] };
    let host = HostOptions { threads: 2, gemm: GemmBackend::Kernel, hopper, ..HostOptions::default() };
    for &precision in precisions {
        // What is computed again has the bits of what was kept.
        let by = |device, name: &str, graph: bool, recompute: &str| {
            let (precision, graph) = (format!("train.precision=\"{precision}\""), format!("train.cuda_graph={graph}"));
            let recompute = format!("train.recompute=\"{recompute}\"");
            let set = ["cache.dir=\"off\"", "train.eval_every=0", "train.save_every=6", &precision, &graph, &recompute];
            let options = Options {
                config: fixture.config(&set),
                device,
                out: fixture.path(name),
                resume: false,
                overwrite: false,
            };
            assert_eq!(run_with(&options, host, &false.into()).unwrap(), Outcome::Finished);
        };
        let [straight, late, graph] = ["host", "late", "graph"].map(|name| format!("{name}-{precision}"));
        by(Choice::Host, &straight, false, "none");
        let before = graph_launches();
        by(Choice::Cuda(0), &late, false, "block");
        fixture.assert_same_run(&straight, &late);
        assert_eq!(graph_launches(), before);
        by(Choice::Cuda(0), &graph, true, "gate_up:1,attention:1");
        fixture.assert_same_run(&straight, &graph);
        assert_eq!((launches_changed(), loaded_late()), (0, 0), "in {precision}");
        check_large_launches(&config, if precision == "f32" { DType::F32 } else { DType::Bf16 });
        println!("same run in {precision}");
    }
    println!("behind a wait: {}", most_behind());
    println!("graphs: {} launched, {} made", graph_launches(), graphs_made());
}

/// Gives the model heads of another size.
fn with_heads(fixture: &Fixture, head_dim: usize) -> ModelConfig {
    let path = fixture.path("model/config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["head_dim"] = head_dim.into();
    std::fs::write(&path, config.to_string()).unwrap();
    ModelConfig::load(&fixture.path("model")).unwrap()
}

/// In the child: models of every head size, in both precisions, trained and scored, by what the GPU says it has.
pub fn shared_memory() {
    let (device, fixture) = (Device::cuda(0).unwrap(), Fixture::new());
    for head_dim in [32, 64, 96, 128, 256] {
        let config = with_heads(&fixture, head_dim);
        for (precision, trains) in [DType::F32, DType::Bf16].into_iter().flat_map(|p| [(p, false), (p, true)]) {
            if let Err(why) = model::check_kernels(&device, &config, precision, trains) {
                println!("refused {head_dim} {precision:?} {}: {why:#}", if trains { "trained" } else { "scored" });
            }
        }
    }
    // Before a file is read: there is none.
    let set = ["data.train=\"missing.jsonl\"", "train.precision=\"bf16\""];
    let options = Options {
        config: fixture.config(&set),
        device: Choice::Cuda(0),
        out: fixture.path("out"),
        resume: false,
        overwrite: false,
    };
    println!("run: {:#}", run_with(&options, HostOptions::default(), &false.into()).unwrap_err());
    assert!(!options.out.exists());
}

/// In the child: what goes into a graph, and what does not.
pub fn graphs() {
    let device = Device::cuda(0).unwrap();
    let [made, changed, loaded_late] = ["graphs_made", "launches_changed", "loaded_late"].map(counter);
    let buffer = device.upload(&[7i32; 8]).unwrap();
    let zero = |parts: &[(usize, usize)]| {
        device.copy_in(&buffer, &[7; 8]).unwrap();
        device.graphed(|| parts.iter().try_for_each(|&(from, to)| device.fill_zero(&buffer.slice(from..to)))).unwrap();
        device.download(&buffer).unwrap()
    };
    // By itself; as a graph; other places in the same graph; and one more fill than it has.
    let runs = [zero(&[(0, 2)]), zero(&[(0, 2)]), zero(&[(4, 8)]), zero(&[(0, 1), (7, 8)])];
    assert_eq!(runs[0], [0, 0, 7, 7, 7, 7, 7, 7]);
    assert_eq!(runs[1], runs[0]);
    assert_eq!(runs[2], [7, 7, 7, 7, 0, 0, 0, 0]);
    assert_eq!(runs[3], [0, 7, 7, 7, 7, 7, 7, 0]);
    assert_eq!(made(), 2);
    let why = device.graphed(|| device.zeros::<i32>(4).map(drop)).unwrap_err();
    println!("allocates: {why:#}");
    let why = device.graphed(|| device.copy_in(&buffer, &[1; 8])).unwrap_err();
    println!("copies in: {why:#}");
    let why = device.graphed(|| device.read(&buffer).map(drop)).unwrap_err();
    println!("copies out: {why:#}");
    let (held, scratch) = (device.memory().allocated, device.zeros::<i32>(4).unwrap());
    let why = device.graphed(|| device.fill_zero(&scratch).map(|()| drop(scratch))).unwrap_err();
    println!("releases: {why:#}");
    assert_eq!(device.memory().allocated, held, "released all the same");
    let why = device.graphed(|| -> anyhow::Result<()> { anyhow::bail!("the work's own error") }).unwrap_err();
    println!("fails: {why:#}");
    assert_eq!(zero(&[(2, 3)]), [7, 7, 0, 7, 7, 7, 7, 7]);
    assert_eq!(made(), 2, "the executable graph of one fill was kept");
    let (x, partials) = (device.zeros::<f32>(64).unwrap(), device.zeros::<f64>(2).unwrap());
    let add = |elements: usize| {
        let x = x.slice(0..elements);
        residual::add(&device, &x, &x, &x, elements)
    };
    let norm = |bytes: usize| {
        let launch = Launch::linear(1, 32).with_smem(bytes);
        // SAFETY: the stand-in runs nothing.
        unsafe {
            kernels::grad_norm::GradNormFinish { stats: &x.slice(0..3), partials: &partials, max_norm: 0.0, slices: 1 }
                .launch(&device, launch)
        }
    };
    // As many launches every time, of which none may take the place of another kernel: one more graph for each of three.
    for _ in 0..3 {
        device.graphed(|| add(64).and_then(|()| norm(256))).unwrap();
        device.graphed(|| norm(256).and_then(|()| add(64))).unwrap();
        device.graphed(|| norm(60_000).and_then(|()| add(32))).unwrap();
    }
    assert_eq!((made(), changed()), (5, 0), "another kernel took a launch's place");
    // A fourth one takes the place of the one that ran longest ago, which then has to be made again.
    device.graphed(|| device.copy(&x.slice(0..2), &x.slice(2..4))).unwrap();
    device.graphed(|| norm(256).and_then(|()| add(8))).unwrap();
    assert_eq!(made(), 6);
    device.graphed(|| add(8).and_then(|()| norm(256))).unwrap();
    assert_eq!((made(), changed(), loaded_late()), (7, 0, 0));
}

#[test]
fn a_graph_follows_what_is_launched() {
    if EMBEDDED.cubins.is_empty() {
        return println!("skipped: built without nvcc");
    }
    let Some(text) = child("graphs", &[], &[]) else { return };
    for (what, refused) in [
        ("allocates", "an allocation"),
        ("copies in", "a copy to the device"),
        ("copies out", "a copy from the device"),
        ("releases", "a release of a buffer"),
    ] {
        let why = format!("{what}: cuda: {refused} inside a graph: do it before or after\n");
        assert!(text.contains(&why), "{text}");
    }
    assert!(text.contains("fails: the work's own error\n"), "{text}");
}

#[test]
fn the_host_device_refuses_what_a_graph_cannot_hold() {
    let device = Device::host(HostOptions::default()).unwrap();
    let buffer = device.zeros::<f32>(4).unwrap();
    let refused = |work: &dyn Fn() -> anyhow::Result<()>| device.graphed(work).unwrap_err().to_string();
    assert!(refused(&|| device.zeros::<f32>(1).map(drop)).contains("an allocation inside a graph"));
    assert!(refused(&|| device.copy_in(&buffer, &[1.0])).contains("a copy to the device inside a graph"));
    assert!(refused(&|| device.download(&buffer).map(drop)).contains("a copy from the device inside a graph"));
    let scratch = std::cell::Cell::new(Some(device.zeros::<f32>(4).unwrap()));
    let release = || scratch.take().map_or(Ok(()), |buffer| device.fill_zero(&buffer));
    assert!(refused(&release).contains("a release of a buffer inside a graph"));
    device.graphed(|| device.fill_zero(&buffer)).unwrap();
    device.copy_in(&buffer, &[1.0]).unwrap();
}

/// 99 KiB of shared memory on 8.6, 8.9 and 12.0, 163 on 8.0, 227 on 9.0. What is refused was counted by hand: four tiles of 64
/// rows of 256 + 8 bf16 and 512 bytes, 2 x 32 rows of 257 floats, four stages of two blocks of 128 x 32 bf16.
#[test]
fn shared_memory_that_is_not_there_is_refused_before_a_run() {
    if EMBEDDED.cubins.is_empty() {
        return println!("skipped: built without nvcc");
    }
    let large_heads = "135680 bytes of shared memory";
    let dkdv =
        ["refused 256 Bf16 trained", "attention_bwd_dkdv_hd256_bf16", large_heads, "set train.precision = \"f32\", or"];
    for (capability, kib, refused) in [
        ("8.0", 163, vec![]),
        ("8.6", 99, vec![dkdv]),
        ("8.9", 99, vec![dkdv]),
        ("9.0", 227, vec![]),
        ("12.0", 99, vec![dkdv]),
        ("8.6", 64, {
            let f32s =
                ["refused 256 F32", "_f32", "65792 bytes of shared memory", "has 65536: take a GPU that has more"];
            let scored =
                ["refused 256 Bf16 scored", "attention_fwd_hd256_bf16", "101376 bytes", "has 65536: take a GPU"];
            let large = ["refused 128 Bf16 trained", "attention_bwd_dkdv_hd128_bf16", "70144 bytes", "has 65536: set"];
            let middle = ["refused 96 Bf16 trained", "attention_bwd_dkdv_hd96_bf16", "80896 bytes", "has 65536: set"];
            vec![f32s, f32s, scored, ["refused 256 Bf16 trained", "dkdv", large_heads, "take a GPU"], large, middle]
        }),
    ] {
        let bytes = (kib * 1024).to_string();
        let variables = [("FAKE_CUDA_CAPABILITY", capability), ("FAKE_CUDA_SMEM", bytes.as_str())];
        let Some(text) = child("shared memory", &[], &variables) else { return };
        assert_eq!(text.matches("refused ").count(), refused.len(), "{capability}, {kib} KiB: {text}");
        for parts in &refused {
            let found = text.lines().any(|line| parts.iter().all(|part| line.contains(part)));
            assert!(found, "{capability}, {kib} KiB: no line of {parts:?}: {text}");
        }
        let run = text.lines().find_map(|line| line.strip_prefix("run: ")).unwrap();
        let want =
            if refused.is_empty() { "missing.jsonl" } else { "heads of 256: attention_bwd_dkdv_hd256_bf16 takes" };
        assert!(run.contains(want), "{capability}, {kib} KiB: {run}");
    }
}

/// Blocks of half as many rows where 64 do not fit: what a row computes is the same.
#[test]
fn large_heads_in_f32_run_in_little_shared_memory() {
    if EMBEDDED.cubins.is_empty() {
        return println!("skipped: built without nvcc");
    }
    let of = |variables: &[(&str, &str)]| {
        let all = [("FAKE_CUDA_CAPABILITY", "8.6"), ("FAKE_CUDA_SMS", "4"), ("HEAD_DIM", "256")];
        child("train late", &[], &[&all, variables].concat())
    };
    for (bytes, taken) in [("101376", 65_792), ("166912", 131_584)] {
        let Some(text) = of(&[("FAKE_CUDA_SMEM", bytes)]) else { return };
        let want = format!("large in F32: {{\"attention_bwd\": {taken}, \"attention_fwd\": 65792}}\n");
        assert!(text.contains("same run in f32\n") && text.contains(&want), "{bytes}: {text}");
    }
}

#[test]
fn a_run_whose_launches_come_late_is_the_same() {
    if EMBEDDED.cubins.is_empty() {
        return println!("skipped: built without nvcc");
    }
    for capability in ["8.0", "9.0"] {
        // As many multiprocessors as the host device has: tiles depend on them.
        let variables = [("FAKE_CUDA_CAPABILITY", capability), ("FAKE_CUDA_SMS", "4")];
        let Some(text) = child("train late", &[], &variables) else { return };
        assert!(text.contains("same run in f32") && text.contains("same run in bf16"), "{capability}: {text}");
        // A step of two layers is some eighty launches, and the one before is read while they wait.
        let behind = text.lines().find_map(|line| line.strip_prefix("behind a wait: ")).unwrap();
        assert!(behind.parse::<usize>().unwrap() > 60, "{capability}: {behind} launches behind a wait");
        // Every micro-batch of eight steps but the first, in both precisions; made anew only where the head has other chunks.
        let graphs = text.lines().find_map(|line| line.strip_prefix("graphs: ")).unwrap();
        println!("{capability}: {graphs}");
        let numbers = graphs.split(' ').filter_map(|word| word.parse::<usize>().ok()).collect::<Vec<_>>();
        assert!(numbers[0] >= 14 && (2..numbers[0] / 2).contains(&numbers[1]), "{capability}: {graphs}");
    }
}
