//! Training through the driver's interface, where the stand-in runs every launch, but nothing before somebody waits for it:
//! what is freed, copied or read too early, or staged in memory that is used again too soon, changes the bits, for memory is
//! full of NaN before and after use.

use std::{
    env,
    ffi::{CStr, CString, c_char, c_int, c_void},
    sync::OnceLock,
};

use serde_json::Value;
use warpo::{
    device::{Arg, Choice, Device, GemmBackend, HostOptions, Kernel, Launch, TensorMap, cuda::EMBEDDED, kernels},
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

fn counter(name: &str) -> extern "C" fn() -> c_int {
    // SAFETY: the stand-in's counters have this type.
    unsafe { std::mem::transmute(symbol(&format!("fake_cuda_{name}"))) }
}

/// In the child: the same run on the host device with emulated kernels and through the stand-in.
pub fn train() {
    let hopper = env::var("FAKE_CUDA_CAPABILITY").unwrap() == "9.0";
    // SAFETY: these are the types in fake_driver.c.
    let give_runner = unsafe {
        std::mem::transmute::<*mut c_void, extern "C" fn(*const c_void, *const c_void)>(symbol("fake_cuda_runner"))
    };
    let [most_behind, graph_launches, graphs_made] = ["most_behind", "graph_launches", "graphs_made"].map(counter);
    give_runner(capture as *const c_void, run as *const c_void);
    let fixture = Fixture::new();
    // Heads that attention on Hopper's units takes.
    let path = fixture.path("model/config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["head_dim"] = 64.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let host = HostOptions { threads: 2, gemm: GemmBackend::Kernel, hopper, ..HostOptions::default() };
    for precision in ["f32", "bf16"] {
        let by = |device, name: &str, graph: bool| {
            let (precision, graph) = (format!("train.precision=\"{precision}\""), format!("train.cuda_graph={graph}"));
            let set = ["cache.dir=\"off\"", "train.eval_every=0", "train.save_every=6", &precision, &graph];
            let options = Options { config: fixture.config(&set), device, out: fixture.path(name), resume: false };
            assert_eq!(run_with(&options, host, &false.into()).unwrap(), Outcome::Finished);
        };
        let [straight, late, graph] = ["host", "late", "graph"].map(|name| format!("{name}-{precision}"));
        by(Choice::Host, &straight, false);
        let before = graph_launches();
        by(Choice::Cuda(0), &late, false);
        fixture.assert_same_run(&straight, &late);
        assert_eq!(graph_launches(), before);
        by(Choice::Cuda(0), &graph, true);
        fixture.assert_same_run(&straight, &graph);
        println!("same run in {precision}");
    }
    println!("behind a wait: {}", most_behind());
    println!("graphs: {} launched, {} made", graph_launches(), graphs_made());
}

/// In the child: what goes into a graph, and what does not.
pub fn graphs() {
    let device = Device::cuda(0).unwrap();
    let made = counter("graphs_made");
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
    let why = device.graphed(|| -> anyhow::Result<()> { anyhow::bail!("the work's own error") }).unwrap_err();
    println!("fails: {why:#}");
    assert_eq!(zero(&[(2, 3)]), [7, 7, 0, 7, 7, 7, 7, 7]);
}

#[test]
fn a_graph_follows_what_is_launched() {
    if EMBEDDED.cubins.is_empty() {
        return println!("skipped: built without nvcc");
    }
    let Some(text) = child("graphs", &[], &[]) else { return };
    assert!(text.contains("allocates: graph: end of capture: "), "{text}");
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
    device.graphed(|| device.fill_zero(&buffer)).unwrap();
    device.copy_in(&buffer, &[1.0]).unwrap();
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
