//! What strict mode knows of buffers: freed ones, copies between them, fills, shared memory's end.

use anyhow::Result;
use warpo::device::{Buffer, Device, HostOptions, Launch, ThreadOrder, host::Completion};

use super::kernels::memory as kernel;
use crate::support::fast_device;

fn strict() -> Device {
    Device::host(HostOptions::strict(ThreadOrder::InOrder, Completion::Early)).unwrap()
}

fn read(device: &Device, x: &Buffer<f32>) -> Result<()> {
    let y = device.alloc::<f32>(x.len())?;
    // SAFETY: both hold a value a thread.
    unsafe {
        kernel::read_past_end(
            device,
            Launch::linear(1, x.len()),
            kernel::Memory { y: &y, x, n: x.len() as i32, broken: 0 },
        )
    }
}

fn read_address(device: &Device, address: u64) -> String {
    let y = device.alloc::<f32>(1).unwrap();
    // SAFETY: strict mode stops the kernel before it reads what it may not.
    let outcome = unsafe { kernel::ReadAddress { y: &y, address }.launch(device, Launch::linear(1, 1)) };
    outcome.map_or_else(|why| format!("{why:#}"), |()| "no mistake".into())
}

#[test]
fn a_freed_buffer_is_named() {
    let device = strict();
    let x = device.upload(&[1.0f32; 1000]).unwrap();
    let address = x.address() + 12;
    assert_eq!(read_address(&device, address), "no mistake");
    drop(x);
    let report = read_address(&device, address);
    assert!(report.contains("byte 12 of a buffer of 4000 bytes that was freed"), "{report}");
}

#[test]
fn addresses_that_are_nobodys() {
    let device = strict();
    let report = read_address(&device, 0);
    assert!(report.contains("out of bounds read of 4 bytes at 0x0"), "{report}");
    let report = read_address(&device, u64::MAX - 3);
    assert!(report.contains("out of bounds read of 4 bytes at 0xfffffffffffffffc"), "{report}");
    let on_the_stack = 0u32;
    let report = read_address(&device, &raw const on_the_stack as u64);
    assert!(report.contains("out of bounds"), "{report}");
    let other = strict().upload(&[1.0f32]).unwrap();
    let report = read_address(&device, other.address());
    assert!(report.contains("out of bounds"), "{report}");
}

#[test]
fn constants_of_the_program_may_be_read() {
    static CONSTANT: f32 = 1.0;
    assert_eq!(read_address(&strict(), &raw const CONSTANT as u64), "no mistake");
}

#[test]
fn what_was_never_written_stays_so_in_a_copy() {
    let device = strict();
    let (whole, half, copy) =
        (device.alloc::<f32>(64).unwrap(), device.upload(&[1.0f32; 32]).unwrap(), device.alloc::<f32>(64).unwrap());
    device.copy(&whole.slice(0..32), &half).unwrap();
    device.copy(&copy, &whole).unwrap();
    read(&device, &copy.slice(0..32)).unwrap();
    let report = format!("{:#}", read(&device, &copy).unwrap_err());
    assert!(report.contains("thread 32: uninitialised read of 4 bytes"), "{report}");
    device.fill_zero(&copy.slice(32..64)).unwrap();
    read(&device, &copy).unwrap();
    device.copy(&copy, &whole).unwrap();
    read(&device, &copy).unwrap_err();
}

#[test]
fn shared_memory_ends_where_the_launch_says() {
    let device = strict();
    let (x, y) = (device.upload(&[1.0f32; 64]).unwrap(), device.alloc::<f32>(64).unwrap());
    let launch = |bytes| Launch::linear(1, 64).with_smem(bytes);
    // SAFETY: strict mode stops the kernel before it goes out of bounds.
    unsafe {
        kernel::shared_past_end(&device, launch(256), kernel::Memory { y: &y, x: &x, n: 64, broken: 0 }).unwrap();
        kernel::shared_past_end(&device, launch(260), kernel::Memory { y: &y, x: &x, n: 64, broken: 1 }).unwrap();
        let report = format!(
            "{:#}",
            kernel::shared_past_end(&device, launch(256), kernel::Memory { y: &y, x: &x, n: 64, broken: 1 })
                .unwrap_err()
        );
        assert!(report.contains("thread 63: out of bounds write of 4 bytes"), "{report}");
        assert!(report.contains("byte 256 of 256 bytes of shared memory"), "{report}");
        kernel::shared_past_end(&device, launch(0), kernel::Memory { y: &y, x: &x, n: 64, broken: 0 }).unwrap_err();
    }
}

#[test]
fn launches_over_the_limits_are_refused() {
    for device in [strict(), fast_device(1)] {
        let (x, y) = (device.upload(&[1.0f32; 1]).unwrap(), device.alloc::<f32>(1).unwrap());
        for launch in [Launch::linear(1, 1025), Launch::linear(1, 32).with_smem(232_449)] {
            // SAFETY: refused before anything runs.
            let report =
                unsafe { kernel::read_past_end(&device, launch, kernel::Memory { y: &y, x: &x, n: 1, broken: 0 }) }
                    .unwrap_err()
                    .to_string();
            assert!(report.contains("at most"), "{report}");
        }
    }
}
