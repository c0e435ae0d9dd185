//! The GPU device against a stand-in for the driver: refusals, arguments, errors. What only a GPU can show is not here.

mod late;
mod streams;

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

use warpo::device::{Choice, CudaOptions, Device, HostOptions, Launch, Readback, TensorShape, cuda::EMBEDDED, kernels};

/// Carried in the binary, so that the tests need no source tree.
const FAKE_DRIVER: &str = include_str!("fake_driver.c");

/// Compiles the stand-in. `None`, with the reason printed, without a C compiler.
fn fake_driver(folder: &Path, flags: &[&str]) -> Option<()> {
    let source = folder.join("fake_driver.c");
    fs::write(&source, FAKE_DRIVER).unwrap();
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC"]).args(flags).arg(&source).arg("-o").arg(folder.join("libcuda.so"));
    match command.status() {
        Ok(status) => {
            assert!(status.success(), "the stand-in for the driver does not compile");
            Some(())
        }
        Err(why) => {
            println!("skipped: cc: {why}");
            None
        }
    }
}

/// What `scenario` prints in a process of its own, whose libcuda is the stand-in.
fn child(scenario: &str, flags: &[&str], variables: &[(&str, &str)]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    fake_driver(folder.path(), flags)?;
    let done = Command::new(env::current_exe().unwrap())
        .args(["--exact", "cuda::in_child", "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", folder.path())
        .env("CUDA_CHILD", scenario)
        .env_remove("FAKE_CUDA")
        .envs(variables.iter().copied())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(done.status.success(), "{scenario}: {text}");
    Some(text)
}

#[test]
#[ignore = "the other tests run it in a process of its own, with a stand-in for the driver"]
fn in_child() {
    match env::var("CUDA_CHILD").expect("CUDA_CHILD names the scenario").as_str() {
        "open" => {
            println!("opened: {}", outcome(Device::cuda(0)));
            println!("auto: {}", outcome(Device::open(Choice::Auto, HostOptions::default())));
        }
        "open 3" => println!("opened: {}", outcome(Device::open(Choice::Cuda(3), HostOptions::default()))),
        "memory" => memory(),
        "launch" => launch(CudaOptions::default()),
        "tensor_map" => tensor_map(),
        "checked launch" => launch(CudaOptions { check_launches: true, ..CudaOptions::default() }),
        "big launch" => big_launch(),
        "train late" => late::train(),
        "graphs" => late::graphs(),
        "streams" => streams::orders(),
        "moments" => {
            late::run_launches();
            crate::optim::moments_beside_the_work();
        }
        "shared memory" => late::shared_memory(),
        other => panic!("scenario {other}"),
    }
}

fn outcome(device: anyhow::Result<Device>) -> String {
    device.map_or_else(|why| format!("{why:#}"), |device| device.describe())
}

#[test]
fn each_refusal_is_one_sentence() {
    let too_old = "one for CUDA 13.0 (580 or newer) is needed";
    let mut cases = vec![
        ("open", "no_device", "9.0", "the NVIDIA driver shows no GPU; --device host runs without one".to_string()),
        ("open", "zero", "9.0", "the NVIDIA driver shows no GPU; --device host runs without one".into()),
        ("open 3", "", "9.0", "device cuda:3 requested, 1 present: cuda:0 to cuda:0".into()),
        ("open", "old", "9.0", format!("the NVIDIA driver is for CUDA 12.4; {too_old}")),
    ];
    let gpu = |capability: &str| format!("Fake GPU (cuda:0, compute capability {capability}, 132 SMs, 8.0 GiB)");
    if EMBEDDED.cubins.is_empty() {
        cases.push(("open", "", "9.0", "this program was built without GPU kernels".into()));
    } else {
        cases.push(("open", "", "9.0", gpu("9.0")));
        cases.push(("open", "", "8.6", gpu("8.6")));
        cases.push(("open", "", "12.0", gpu("12.0")));
        cases.push(("open", "", "7.5", format!("{}: no kernels for it in this program, which has", gpu("7.5"))));
    }
    for (scenario, mode, capability, want) in cases {
        let Some(text) = child(scenario, &[], &[("FAKE_CUDA", mode), ("FAKE_CUDA_CAPABILITY", capability)]) else {
            return;
        };
        let opened = text.lines().find_map(|line| line.split_once("opened: ")).map(|(_, what)| what).unwrap_or(&text);
        assert!(opened.starts_with(&want), "{scenario} {mode} {capability}: {opened}");
        // `auto` is content with the host device only where there is no GPU to use.
        let Some(auto) = text.lines().find_map(|line| line.split_once("auto: ")).map(|(_, what)| what) else {
            continue;
        };
        let no_gpu = ["no_device", "zero"].contains(&mode);
        assert!(
            if no_gpu { auto.starts_with("host (") } else { auto == opened },
            "{scenario} {mode}: auto gives {auto}"
        );
    }
}

#[test]
fn a_driver_without_a_symbol_is_refused() {
    let Some(text) = child("open", &["-DWITHOUT_LAUNCH"], &[]) else { return };
    assert!(text.contains("opened: the NVIDIA driver has no `cuLaunchKernelEx`"), "{text}");
}

/// Without a stand-in, on a machine without a driver.
#[test]
fn no_driver_is_one_sentence() {
    if !warpo::device::cuda::is_absent() {
        return println!("skipped: there is a GPU");
    }
    let why = Device::cuda(0).err().expect("there is no GPU").to_string();
    assert!(why.starts_with("no NVIDIA driver: ") || why.starts_with("the NVIDIA driver shows no GPU"), "{why}");
    assert!(Device::open(Choice::Auto, HostOptions::default()).unwrap().describe().starts_with("host"));
}

fn memory() {
    let device = Device::cuda(0).unwrap();
    let data: Vec<i32> = (0..1000).collect();
    let buffer = device.upload(&data).unwrap();
    let copy = device.zeros::<i32>(1000).unwrap();
    assert_eq!(device.download(&copy).unwrap(), vec![0; 1000]);
    device.copy(&copy.slice(10..20), &buffer.slice(500..510)).unwrap();
    assert_eq!(device.download(&copy.slice(9..12)).unwrap(), [0, 500, 501]);
    // A copy back is of its place in the stream, whatever is written before anybody waits.
    let early = device.read(&buffer.slice(3..6)).unwrap();
    device.copy_in(&buffer, &[7; 1000]).unwrap();
    let late = device.read(&buffer.slice(3..6)).unwrap();
    assert_eq!([early.wait().unwrap(), late.wait().unwrap()], [vec![3, 4, 5], vec![7, 7, 7]]);
    for _ in 0..9 {
        assert_eq!(device.read(&buffer).unwrap().wait().unwrap(), [7; 1000]);
    }
    let nothing = device.alloc::<f32>(0).unwrap();
    assert!(device.read(&nothing).unwrap().wait().unwrap().is_empty());
    assert!(device.download(&nothing).unwrap().is_empty());
    assert_eq!((device.memory().allocated, device.memory().free), (8000, (5 << 30) + (2 << 20)));
    drop((buffer, nothing));
    assert_eq!((device.memory().allocated, device.memory().peak), (4000, 8000));
    let why = device.alloc::<f32>(1 << 29).err().unwrap();
    println!("too much: {why:#}");
    let (start, end) = (device.record().unwrap(), device.record().unwrap());
    assert_eq!(device.elapsed_ms(&start, &end).unwrap(), 1.5);
    // The last buffer outlives the device's own handle.
    drop(device);
    drop(copy);
    println!("end");
}

#[test]
fn memory_is_copied_counted_and_freed() {
    if EMBEDDED.cubins.is_empty() {
        return println!("skipped: built without nvcc");
    }
    let Some(text) = child("memory", &[], &[]) else { return };
    let why = "too much: cuda: out of memory: 2147483648 bytes on top of 4000 held; 5370806272 free of 8589934592: \
               CUDA_ERROR_OUT_OF_MEMORY: the driver's words";
    assert!(text.contains(why), "{text}");
    // Two copies on their way at a time at most, and two of the ring through which copies go to the device.
    assert_eq!(text.matches("page-locked 65536\n").count(), 4, "{text}");
    let before_end = text.split("end\n").next().unwrap();
    assert_eq!(before_end.matches("free\n").count(), 3, "{text}");
}

fn launch(options: CudaOptions) {
    let device = Device::cuda_with(0, options).unwrap();
    let stats = device.upload(&[7.0f32; 3]).unwrap();
    let partials = device.upload(&[1.0f64, 2.5]).unwrap();
    let launch = Launch { grid: [2, 3, 1], ..Launch::linear(1, 64) };
    // SAFETY: the stand-in runs nothing.
    let launched = unsafe {
        kernels::grad_norm::GradNormFinish { stats: &stats, partials: &partials, max_norm: 0.5, slices: -2 }
            .launch(&device, launch)
    };
    if let Err(why) = launched {
        println!("launched: {why:#}");
    }
    if let Err(why) = device.read(&stats).and_then(Readback::wait) {
        println!("read: {why:#}");
    }
    if let Err(why) = device.download(&stats) {
        println!("downloaded: {why:#}");
    }
}

fn tensor_map() {
    let device = Device::cuda_with(0, CudaOptions::default()).unwrap();
    let buffer = device.upload(&[half::bf16::ONE; 96 * 20]).unwrap();
    device.tensor_map(&buffer, &TensorShape::matrix(20, 80, 96, [16, 64])).unwrap();
    println!("{}", device.tensor_map(&buffer, &TensorShape::matrix(21, 80, 96, [16, 64])).unwrap_err());
    println!("{}", device.tensor_map(&buffer, &TensorShape::matrix(20, 80, 90, [16, 64])).unwrap_err());
    println!("{}", device.tensor_map(&buffer, &TensorShape::matrix(20, 80, 96, [16, 32])).unwrap_err());
}

/// Numbers of the enumerations as `cuda.h` has them: bf16 is 9, the 128-byte swizzle 3, 256-byte promotion 3.
#[test]
fn a_tensor_map_is_what_was_asked_for() {
    if EMBEDDED.cubins.is_empty() {
        return println!("skipped: built without nvcc");
    }
    let Some(text) = child("tensor_map", &[], &[]) else { return };
    let want = "map type 9 dims 80,20 pitch 192 tile 64,16 steps 1,1 interleave 0 swizzle 3 promotion 3 fill 0\n";
    assert_eq!(text.matches(want).count(), 1, "{text}");
    assert!(text.contains("a buffer of 1920 elements"), "{text}");
    assert!(text.contains("a pitch is no multiple of 16 bytes"), "{text}");
    assert!(text.contains("rows of a swizzled box have 128 bytes, not 64"), "{text}");
}

#[test]
fn a_launch_hands_over_its_arguments() {
    if EMBEDDED.cubins.is_empty() {
        return println!("skipped: built without nvcc");
    }
    for capability in ["9.0", "8.0", "12.0"] {
        let Some(text) = child("launch", &[], &[("FAKE_CUDA_CAPABILITY", capability)]) else { return };
        let want = "launch grad_norm_finish grid 2,3,1 block 64,1,1 smem 0 attributes 0\n\
                    stats[0] 7 partials[1] 2.5 max_norm 0.5 slices -2\n";
        assert!(text.contains(want), "{capability}: {text}");
    }
}

#[test]
fn a_failed_launch_names_kernel_shape_and_grid() {
    if EMBEDDED.cubins.is_empty() {
        return println!("skipped: built without nvcc");
    }
    let launch = ": max_norm 0.5, slices -2, grid [2, 3, 1], block [64, 1, 1], 0 shared bytes";
    let illegal = "CUDA_ERROR_ILLEGAL_ADDRESS: the driver's words";
    let cases = [
        ("launch", "bad_launch", "launched: grad_norm_finish (kernels/grad_norm.cu:", launch),
        ("launch", "bad_launch", "", "CUDA_ERROR_INVALID_VALUE: the driver's words"),
        ("launch", "bad_image", "", "the driver, for CUDA 13.0, does not load it: CUDA_ERROR_INVALID_IMAGE"),
        ("checked launch", "bad_kernel", "launched: grad_norm_finish (kernels/grad_norm.cu:", launch),
        ("checked launch", "bad_kernel", "", illegal),
        ("launch", "bad_kernel", "read: cuda: one of the last 1 launches failed; the latest was", illegal),
        ("launch", "bad_kernel", "downloaded: cuda: one of the last 1 launches failed; the latest was", illegal),
    ];
    for (scenario, mode, start, end) in cases {
        let Some(text) = child(scenario, &[], &[("FAKE_CUDA", mode)]) else { return };
        assert!(text.lines().any(|line| line.contains(start) && line.contains(end)), "{scenario} {mode}: {text}");
    }
}

fn big_launch() {
    let device = Device::cuda(0).unwrap();
    let (stats, partials) = (device.zeros::<f32>(3).unwrap(), device.zeros::<f64>(2).unwrap());
    let launch = |bytes| {
        let launch = Launch::linear(1, 32).with_smem(bytes);
        // SAFETY: the stand-in runs nothing.
        unsafe {
            kernels::grad_norm::GradNormFinish { stats: &stats, partials: &partials, max_norm: 0.0, slices: 1 }
                .launch(&device, launch)
        }
    };
    launch(48 * 1024).unwrap();
    launch(100_000).unwrap();
    launch(90_000).unwrap();
    println!("too much: {:#}", launch(300_000).unwrap_err());
}

#[test]
fn large_shared_memory_is_asked_for_once() {
    if EMBEDDED.cubins.is_empty() {
        return println!("skipped: built without nvcc");
    }
    let Some(text) = child("big launch", &[], &[]) else { return };
    let asked: Vec<&str> = text.lines().filter(|line| line.contains("attribute 8 ")).collect();
    assert_eq!(asked, ["attribute 8 of grad_norm_finish = 100000"], "{text}");
    assert!(text.contains("300000 shared bytes: Fake GPU allows 232448 bytes of shared memory"), "{text}");
}

#[test]
fn every_kernel_is_embedded_for_every_architecture() {
    if EMBEDDED.cubins.is_empty() {
        return println!("skipped: built without nvcc");
    }
    for kernel in kernels::ALL {
        for (arch, unwanted) in [("80", "_sm90"), ("compute_80", "_sm90"), ("90a", "_sm80")] {
            let found = EMBEDDED.cubins.iter().any(|cubin| cubin.module == kernel.module && cubin.arch == arch);
            assert_eq!(found, !kernel.module.ends_with(unwanted), "{} for {arch}", kernel.name);
        }
    }
}

/// `warpo doctor` with or without the stand-in on the library path; it never fails.
fn doctor(driver: Option<&Path>, mode: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warpo"));
    command.arg("doctor").env("FAKE_CUDA", mode).env_remove("LD_LIBRARY_PATH");
    let done = command.envs(driver.map(|folder| ("LD_LIBRARY_PATH", folder))).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn doctor_tells_what_there_is() {
    let text = doctor(None, "");
    assert!(text.starts_with(&format!("warpo {}\nbuilt with: rustc ", env!("CARGO_PKG_VERSION"))), "{text}");
    assert!(text.contains("\nhost:       host ("), "{text}");
    if warpo::device::cuda::is_absent() {
        assert!(text.contains("\ncuda:       no NVIDIA driver: ") || text.contains("shows no GPU"), "{text}");
    }
    if EMBEDDED.cubins.is_empty() {
        assert!(text.contains("\nkernels:    for the host only; built without nvcc"), "{text}");
        return println!("skipped: built without nvcc");
    }
    assert!(text.contains(&format!("\nkernels:    by {}\n", EMBEDDED.toolchain)), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let Some(()) = fake_driver(folder.path(), &[]) else { return };
    let gpu = "\ndriver:     for CUDA 13.0\ncuda:0      Fake GPU (cuda:0, compute capability 9.0, 132 SMs, 8.0 GiB): ";
    let text = doctor(Some(folder.path()), "");
    assert!(text.contains(&format!("{gpu}loads all {} kernels; copies ", kernels::ALL.len())), "{text}");
    let text = doctor(Some(folder.path()), "bad_image");
    assert!(text.contains(&format!("{gpu}cannot run: kernels/")), "{text}");
}
