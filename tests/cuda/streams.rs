//! Copies on streams of their own, in the order that events keep: the stand-in runs each stream as late as it may.

use warpo::{
    device::{Device, HostOptions, Pinned, Stream, cuda::EMBEDDED},
    ops::residual,
};

use super::{child, late};

const LEN: usize = 300;

/// Doubles elements in pieces of 100 through one buffer: each is copied in, worked on and copied back, in an order that
/// `keep`s each of three rules or not.
fn double(device: &Device, keep: [bool; 3]) -> Vec<f32> {
    let host: Pinned<f32> = device.pinned(LEN).unwrap();
    device.write_pinned(&host, 0, &(0..LEN).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
    let buffer = device.zeros::<f32>(100).unwrap();
    let wait = |kept: bool, waits: Stream, other: Stream| {
        let mark = device.mark(other).unwrap();
        if kept {
            device.wait_on(waits, &mark).unwrap();
        }
    };
    wait(true, Stream::CopyIn, Stream::Work);
    for start in (0..LEN).step_by(100) {
        let piece = || start..start + 100;
        device.copy_from_pinned(&buffer, &host, piece()).unwrap();
        wait(keep[0], Stream::Work, Stream::CopyIn);
        residual::add(device, &buffer, &buffer, &buffer, 100).unwrap();
        wait(keep[1], Stream::CopyOut, Stream::Work);
        device.copy_to_pinned(&host, piece(), &buffer).unwrap();
        wait(keep[2], Stream::CopyIn, Stream::CopyOut);
    }
    let doubled = device.read_pinned(&host, 0..LEN).unwrap();
    let part: Vec<f32> = device.read_pinned(&host, 50..52).unwrap();
    assert_eq!([part[0].to_bits(), part[1].to_bits()], [doubled[50].to_bits(), doubled[51].to_bits()]);
    doubled
}

fn wanted() -> Vec<f32> {
    (0..LEN).map(|i| 2.0 * i as f32).collect()
}

/// In the child.
pub fn orders() {
    late::run_launches();
    let (device, waits) = (Device::cuda(0).unwrap(), late::counter("waits_across"));
    let held = device.memory().allocated;
    assert!(double(&device, [true; 3]) == wanted());
    assert_eq!(device.memory().allocated, held);
    println!("waits: {}", waits());
    for missing in 0..3 {
        let right = double(&device, [0, 1, 2].map(|rule| rule != missing)) == wanted();
        println!("without wait {missing}: {}", if right { "as if it were there" } else { "wrong" });
    }
    let why = device.graphed(|| device.pinned::<f32>(4).map(drop));
    assert!(why.is_ok(), "the first graph runs by itself");
    let why = device.graphed(|| device.pinned::<f32>(4).map(drop)).unwrap_err();
    println!("in a graph: {why:#}");
}

#[test]
fn copies_keep_the_order_of_events() {
    if EMBEDDED.cubins.is_empty() {
        return println!("skipped: built without nvcc");
    }
    // Copies as late as they may be miss one order, and copies as early as they may be the others.
    let [late, early] = ["late", "early"].map(|copies| child("streams", &[], &[("FAKE_CUDA_COPIES", copies)]));
    let (Some(late), Some(early)) = (late, early) else { return };
    for wait in 0..3 {
        let line = format!("without wait {wait}: wrong\n");
        assert!(late.contains(&line) || early.contains(&line), "nobody misses wait {wait}: {late}{early}");
    }
    assert!(!late.contains("waits: 0\n"), "no stream waited for another: {late}");
    assert!(late.contains("in a graph: cuda: an allocation inside a graph"), "{late}");
}

/// Moments in page-locked memory: nothing is read before its copy, and none after its window was used again.
#[test]
fn moments_pass_through_windows_beside_the_work() {
    if EMBEDDED.cubins.is_empty() {
        return println!("skipped: built without nvcc");
    }
    for copies in ["late", "early"] {
        let Some(text) = child("moments", &[], &[("FAKE_CUDA_COPIES", copies)]) else { return };
        assert_eq!(text.matches("bytes: the same\n").count(), 6, "{copies}: {text}");
    }
}

#[test]
fn the_host_device_copies_at_once() {
    let device = Device::host(HostOptions::default()).unwrap();
    assert_eq!(double(&device, [true; 3]), wanted());
    let held = device.memory().allocated;
    let host = device.pinned::<f32>(10).unwrap();
    assert_eq!(device.memory().allocated, held, "memory of the host is not the device's");
    let why = device.read_pinned(&host, 8..11).unwrap_err().to_string();
    assert_eq!(why, "page-locked memory: 8..11 of 10 elements");
    let buffer = device.zeros::<f32>(3).unwrap();
    let why = device.copy_from_pinned(&buffer, &host, 0..4).unwrap_err().to_string();
    assert_eq!(why, "copy of 0..4 into 3 elements");
}
