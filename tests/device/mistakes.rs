//! Every check of strict mode: a kernel that breaks one rule is reported, its twin without the mistake passes.

use anyhow::Result;
use warpo::device::{Buffer, Device, HostOptions, Launch, ThreadOrder, host::Completion};

use super::kernels::{copies, meetings, memory, races, units_mistakes_sm90 as units};
use crate::support::{fast_device, strict_devices};

type Launcher = unsafe fn(&Device, Launch, &Buffer<f32>, &Buffer<f32>, i32, i32) -> Result<()>;

/// What the report must say besides kernel, block and place.
struct Case {
    name: &'static str,
    launcher: Launcher,
    says: &'static [&'static str],
}

/// A kernel, the structure of its file's arguments, and what its report says.
macro_rules! case {
    ($file:ident::$arguments:ident, $kernel:ident, $says:expr $(,)?) => {
        Case {
            name: stringify!($kernel),
            // SAFETY: handed on.
            launcher: |device, launch, y, x, n, broken| unsafe {
                $file::$kernel(device, launch, $file::$arguments { y, x, n, broken })
            },
            says: $says,
        }
    };
}

const THREADS: usize = 64;

/// How the kernels of one file are launched, and what each of their reports says.
struct Setup {
    source: &'static str,
    launch: Launch,
    /// Values in and out.
    elements: usize,
    says: &'static [&'static str],
}

/// One CTA of 64 threads with room for two floats (or one pointer) an element.
fn one_cta(source: &'static str, elements: usize) -> Setup {
    let launch = Launch::linear(1, THREADS).with_smem(8 * elements);
    Setup { source, launch, elements, says: &["block (0, 0, 0)", "thread"] }
}

fn run(device: &Device, launcher: Launcher, setup: &Setup, broken: bool) -> Result<()> {
    let x = device.upload(&vec![1.0f32; setup.elements])?;
    let y = device.alloc::<f32>(setup.elements)?;
    // SAFETY: the kernels index with less than `elements`, unless they are meant to be caught before it does harm.
    unsafe { launcher(device, setup.launch, &y, &x, setup.elements as i32, i32::from(broken)) }
}

fn check(setup: &Setup, cases: &[Case]) {
    let in_order = || Device::host(HostOptions::strict(ThreadOrder::InOrder, Completion::Late)).unwrap();
    for Case { name, launcher, says } in cases {
        let Err(report) = run(&in_order(), *launcher, setup, true) else {
            panic!("{name}: the mistake was not reported");
        };
        let report = format!("{report:#}");
        println!("{report}");
        let mut parts = vec![format!("{name} (tests/kernels/")];
        parts.extend(setup.says.iter().chain(*says).map(|part| (*part).to_string()));
        parts.extend(line_of(setup.source, name).map(|line| format!(".cu:{line}")));
        for part in parts {
            assert!(report.contains(&part), "{name}: the report does not say `{part}`: {report}");
        }
        for (device, on) in strict_devices() {
            assert!(run(&device, *launcher, setup, true).is_err(), "{name} on {on}: the mistake was not reported");
            run(&device, *launcher, setup, false).unwrap_or_else(|why| panic!("{name} on {on}: {why:#}"));
        }
    }
}

/// The line that carries the mistake.
fn line_of(source: &str, name: &str) -> Option<usize> {
    let mark = format!("// mistake: {name}");
    source.lines().position(|line| line.ends_with(&mark)).map(|at| at + 1)
}

#[test]
fn global_and_shared_memory() {
    let cases = [
        case!(
            memory::Memory,
            read_past_end,
            &["thread 63", "out of bounds read of 4 bytes at 0x", "0 bytes past the end of `x` (256 bytes)"],
        ),
        case!(memory::Memory, write_before_start, &["thread 0", "write", "4 bytes before `y` (256 bytes)"],),
        case!(memory::Memory, write_far_away, &["thread 0", "out of bounds write", "bytes past the end of"]),
        case!(memory::Memory, read_16_past_end, &["thread 15", "out of bounds read of 16 bytes", "`x`"]),
        case!(memory::Memory, misaligned_4, &["thread 0", "misaligned read of 4 bytes", "multiple of 4"]),
        case!(memory::Memory, misaligned_16, &["thread 0", "misaligned read of 16 bytes", "multiple of 16"]),
        case!(memory::Memory, uninitialised, &["thread 0", "uninitialised read", "byte 0 of `y` (256 bytes)"]),
        case!(memory::Memory, shared_uninitialised, &["thread 5", "uninitialised read", "byte 20 of shared memory"],),
        case!(memory::Memory, local_of_another, &["thread 63", "out of bounds read of 4 bytes"]),
    ];
    check(&one_cta(include_str!("../kernels/memory.cu"), THREADS), &cases);
}

#[test]
fn races_in_shared_memory() {
    let cases = [
        case!(
            races::Race,
            race_read_after_write,
            &[
                "thread 1: race: read of 4 bytes",
                "(shared byte 0)",
                "write of byte 0 by thread 0 at tests/kernels/races.cu:9",
            ],
        ),
        case!(races::Race, race_write_after_write, &["race: write", "write of byte 0 by thread 0"]),
        case!(races::Race, race_write_after_read, &["race: read", "write of byte 0 by thread 63"]),
        case!(races::Race, race_in_warp, &["thread 1: race: read", "by thread 0"]),
        case!(races::Race, race_outside_mask, &["race: read", "write of byte"]),
        case!(races::Race, race_between_warps, &["race: read", "write of byte"]),
        case!(races::Race, race_slot_not_released, &["race: read", "write of byte"]),
        case!(races::Race, race_arrive_is_no_wait, &["thread 32: race: read", "by thread 0"]),
    ];
    check(&one_cta(include_str!("../kernels/races.cu"), THREADS), &cases);
}

fn meeting_cases() -> Vec<Case> {
    vec![
        case!(meetings::Meetings, exit_before_barrier, &["barrier mismatch", "thread 3 gone", "(63 of 64 arrived)"],),
        case!(meetings::Meetings, barriers_in_branches, &["thread 1: barrier divergence"]),
        case!(meetings::Meetings, barrier_counts_differ, &["thread 32: barrier mismatch"]),
        case!(meetings::Meetings, barrier_of_48, &["thread 0: barrier 1", "48 threads is no multiple of 32"]),
        case!(meetings::Meetings, half_warps_at_barrier, &["barrier divergence: 16 of the 32 lanes of warp 0"],),
        case!(
            meetings::Meetings,
            two_barriers_crossed,
            &["deadlock", "32 threads (0 to 31) wait at barrier 1", "32 threads (32 to 63) wait at barrier 2"],
        ),
        case!(meetings::Meetings, arrive_twice, &["thread 0: barrier mismatch", "second time"]),
        case!(meetings::Meetings, nobody_waits, &["barrier mismatch: 32 of 64 threads came to barrier 1"]),
        case!(meetings::Meetings, shuffles_in_branches, &["thread 1: warp divergence"]),
        case!(meetings::Meetings, exit_before_collective, &["thread 40: warp divergence: exits while"]),
        case!(meetings::Meetings, lane_not_in_mask, &["lane 31 is not in its own mask 0x7fffffff"]),
        case!(meetings::Meetings, shuffle_from_outside, &["a lane that is not in the mask"]),
        case!(meetings::Meetings, masks_differ, &["warp divergence", "with mask 0x00000fff"]),
    ]
}

#[test]
fn barriers_and_collectives() {
    check(&one_cta(include_str!("../kernels/meetings.cu"), THREADS), &meeting_cases());
}

/// These need no instrumentation: the fast device reports them too, and goes on working.
#[test]
fn barriers_and_collectives_on_the_fast_device() {
    let setup = one_cta(include_str!("../kernels/meetings.cu"), THREADS);
    for device in [fast_device(1), fast_device(2)] {
        for Case { name, launcher, says } in meeting_cases() {
            let Err(report) = run(&device, launcher, &setup, true) else {
                panic!("{name}: the mistake was not reported");
            };
            let report = format!("{report:#}");
            says.iter().for_each(|part| assert!(report.contains(part), "{name}: {report}"));
            run(&device, launcher, &setup, false).unwrap_or_else(|why| panic!("{name}: {why:#}"));
        }
    }
}

#[test]
fn asynchronous_copies() {
    let cases = [
        case!(copies::Copy, copy_read_early, &["thread 0: asynchronous copy still pending: read of 4 bytes"],),
        case!(copies::Copy, copy_without_barrier, &["thread 1: race: read", "by thread 0"]),
        case!(copies::Copy, copy_without_commit, &["thread 0: wait without commit"]),
        case!(copies::Copy, copy_waits_too_little, &["asynchronous copy still pending: read"]),
        case!(copies::Copy, copy_from_misaligned, &["misaligned asynchronous copy: read of 12 bytes"]),
        case!(copies::Copy, copy_to_misaligned, &["misaligned asynchronous copy: write of 16 bytes"]),
        case!(copies::Copy, copy_overwritten, &["asynchronous copy still pending: write of 4 bytes"]),
        case!(copies::Copy, copy_over_copy, &["asynchronous copy still pending: write of 16 bytes"]),
        case!(copies::Copy, copy_into_slot_in_use, &["thread"]),
        case!(copies::Copy, copy_past_end, &["thread 63: out of bounds read of 16 bytes", "past the end of `x`"],),
        case!(copies::Copy, copy_past_shared, &["thread 0: out of bounds write", "of 2048 bytes of shared memory"],),
        case!(copies::Copy, copy_uninitialised, &["thread 0: uninitialised read of 16 bytes", "`y`"]),
    ];
    check(&one_cta(include_str!("../kernels/copies.cu"), 4 * THREADS), &cases);
}

/// Three warps are no warp group; the kernel is right otherwise.
#[test]
fn a_product_needs_a_whole_group() {
    let launch = Launch::linear(1, 96).with_smem(2048 + 2 * 8192);
    let setup = Setup { source: "", launch, elements: 256, says: &[] };
    for (device, on) in strict_devices() {
        let report =
            run(&device, case!(units::UnitsMistakesSm90, product_not_fenced, &[]).launcher, &setup, false).unwrap_err();
        let report = format!("{report:#}");
        assert!(report.contains("of 96 is in no whole warp group"), "on {on}: {report}");
    }
}

/// Asynchronous units of Hopper: two CTAs, in some kernels a cluster, each a warp group with room for two tiles.
#[test]
fn hopper_units() {
    let cases = [
        case!(units::UnitsMistakesSm90, wait_left_out, &[]),
        case!(units::UnitsMistakesSm90, wrong_parity, &[]),
        case!(units::UnitsMistakesSm90, expects_too_little, &["expect_tx"]),
        case!(units::UnitsMistakesSm90, expects_too_much, &["deadlock", "1 of 1 arrived", "1024 bytes missing"]),
        case!(units::UnitsMistakesSm90, init_not_fenced, &["missing fence.mbarrier_init"]),
        case!(units::UnitsMistakesSm90, used_before_init, &["was never initialised"]),
        case!(units::UnitsMistakesSm90, initialised_twice, &["initialised a second time"]),
        case!(units::UnitsMistakesSm90, left_in_a_phase, &["the kernel ends in the middle of phase 0"]),
        case!(units::UnitsMistakesSm90, parity_alias, &["parity alias: waits at", "for phase 0"]),
        case!(units::UnitsMistakesSm90, slot_released_early, &[]),
        case!(units::UnitsMistakesSm90, copy_over_reads, &["race: write of 1024 bytes", "the read of byte"]),
        case!(
            units::UnitsMistakesSm90,
            slot_read_not_fenced,
            &[
                "thread 127: missing fence.proxy.async: write of 1024 bytes at 0x",
                "(shared byte 1024)",
                "thread 0 read byte 1024 at tests/kernels/units_mistakes_sm90.cu:",
                "no fence of its own lies before",
            ],
        ),
        case!(
            units::UnitsMistakesSm90,
            slot_fenced_too_late,
            &["thread 127: missing fence.proxy.async: write of 1024 bytes", "read byte"],
        ),
        case!(
            units::UnitsMistakesSm90,
            slot_fenced_by_one_lane,
            &["thread 127: missing fence.proxy.async: write of 1024 bytes", "thread 1 read byte 1028 at"],
        ),
        case!(
            units::UnitsMistakesSm90,
            copy_over_writes_not_fenced,
            &["thread 0: missing fence.proxy.async: write of 1024 bytes", "thread 0 wrote byte 1024 at"],
        ),
        case!(units::UnitsMistakesSm90, copy_to_odd_place, &["shared byte 1032 is no multiple of 16"]),
        case!(units::UnitsMistakesSm90, store_not_fenced, &["missing fence.proxy.async: read of 1024 bytes"]),
        case!(units::UnitsMistakesSm90, store_not_waited_for, &["exits without waiting for the bulk store"]),
        case!(units::UnitsMistakesSm90, store_overwritten, &["still being read: write of 4 bytes"]),
        case!(units::UnitsMistakesSm90, operand_not_fenced, &["missing fence.proxy.async: read of 16 bytes"]),
        case!(units::UnitsMistakesSm90, product_not_fenced, &["missing wgmma.fence: the accumulators"]),
        case!(units::UnitsMistakesSm90, accumulator_in_flight, &["accumulator in flight: read of 4 bytes"]),
        case!(units::UnitsMistakesSm90, fragment_in_flight, &["fragment of A in flight: write of 4 bytes"]),
        case!(units::UnitsMistakesSm90, operand_overwritten, &["still being read: write of 4 bytes"]),
        case!(units::UnitsMistakesSm90, wait_without_commit, &["wait without commit"]),
        case!(units::UnitsMistakesSm90, product_left_behind, &["exits before the wait for the products"]),
        case!(units::UnitsMistakesSm90, wrong_stride, &["descriptor of A", "no multiple of 1024"]),
        case!(units::UnitsMistakesSm90, off_the_pattern, &["descriptor of A", "not on the swizzle pattern"]),
        case!(units::UnitsMistakesSm90, half_a_group, &["deadlock", "wait for their warp group"]),
        case!(units::UnitsMistakesSm90, more_registers_than_there_are, &["deadlock", "wait for 256 registers"],),
        case!(units::UnitsMistakesSm90, odd_registers, &["not a multiple of 8 from 24 to 256"]),
        case!(
            units::UnitsMistakesSm90,
            arrives_at_unfenced,
            &["missing fence.mbarrier_init: arrival from another CTA"],
        ),
        case!(units::UnitsMistakesSm90, reads_peer_early, &["uninitialised read of 4 bytes"]),
        case!(units::UnitsMistakesSm90, reads_peer_gone, &["CTA 1 of the cluster has exited"]),
        case!(units::UnitsMistakesSm90, waits_without_arriving, &["barrier.cluster.wait without arrive"]),
    ];
    let setup = Setup {
        source: include_str!("../kernels/units_mistakes_sm90.cu"),
        launch: Launch::linear(2, 128).with_smem(2048 + 2 * 8192),
        elements: 256,
        says: &["block ("],
    };
    check(&setup, &cases);
}
