//! Every check of strict mode: a kernel that breaks one rule is reported, its twin without the mistake passes.

use anyhow::Result;
use warpo::device::{Buffer, Device, HostOptions, Launch, Schedule, host::Completion};

use super::kernels::{copies, meetings, memory, races, units_mistakes_sm90 as units};
use crate::support::{fast_device, strict_devices};

type Launcher = unsafe fn(&Device, Launch, &Buffer<f32>, &Buffer<f32>, i32, i32) -> Result<()>;

/// What the report must say besides kernel, block and place.
struct Case {
    name: &'static str,
    launcher: Launcher,
    says: &'static [&'static str],
}

fn case(name: &'static str, launcher: Launcher, says: &'static [&'static str]) -> Case {
    Case { name, launcher, says }
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
    let in_order = || Device::host(HostOptions::strict(Schedule::InOrder, Completion::Late)).unwrap();
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
        case(
            "read_past_end",
            memory::read_past_end,
            &["thread 63", "out of bounds read of 4 bytes at 0x", "0 bytes past the end of `x` (256 bytes)"],
        ),
        case(
            "write_before_start",
            memory::write_before_start,
            &["thread 0", "write", "4 bytes before `y` (256 bytes)"],
        ),
        case("write_far_away", memory::write_far_away, &["thread 0", "out of bounds write", "bytes past the end of"]),
        case("read_16_past_end", memory::read_16_past_end, &["thread 15", "out of bounds read of 16 bytes", "`x`"]),
        case("misaligned_4", memory::misaligned_4, &["thread 0", "misaligned read of 4 bytes", "multiple of 4"]),
        case("misaligned_16", memory::misaligned_16, &["thread 0", "misaligned read of 16 bytes", "multiple of 16"]),
        case("uninitialised", memory::uninitialised, &["thread 0", "uninitialised read", "byte 0 of `y` (256 bytes)"]),
        case(
            "shared_uninitialised",
            memory::shared_uninitialised,
            &["thread 5", "uninitialised read", "byte 20 of shared memory"],
        ),
        case("local_of_another", memory::local_of_another, &["thread 63", "out of bounds read of 4 bytes"]),
    ];
    check(&one_cta(include_str!("../kernels/memory.cu"), THREADS), &cases);
}

#[test]
fn races_in_shared_memory() {
    let cases = [
        case(
            "race_read_after_write",
            races::race_read_after_write,
            &[
                "thread 1: race: read of 4 bytes",
                "(shared byte 0)",
                "write of byte 0 by thread 0 at tests/kernels/races.cu:9",
            ],
        ),
        case("race_write_after_write", races::race_write_after_write, &["race: write", "write of byte 0 by thread 0"]),
        case("race_write_after_read", races::race_write_after_read, &["race: read", "write of byte 0 by thread 63"]),
        case("race_in_warp", races::race_in_warp, &["thread 1: race: read", "by thread 0"]),
        case("race_outside_mask", races::race_outside_mask, &["race: read", "write of byte"]),
        case("race_between_warps", races::race_between_warps, &["race: read", "write of byte"]),
        case("race_slot_not_released", races::race_slot_not_released, &["race: read", "write of byte"]),
        case("race_arrive_is_no_wait", races::race_arrive_is_no_wait, &["thread 32: race: read", "by thread 0"]),
    ];
    check(&one_cta(include_str!("../kernels/races.cu"), THREADS), &cases);
}

fn meeting_cases() -> Vec<Case> {
    vec![
        case(
            "exit_before_barrier",
            meetings::exit_before_barrier,
            &["barrier mismatch", "thread 3 gone", "(63 of 64 arrived)"],
        ),
        case("barriers_in_branches", meetings::barriers_in_branches, &["thread 1: barrier divergence"]),
        case("barrier_counts_differ", meetings::barrier_counts_differ, &["thread 32: barrier mismatch"]),
        case("barrier_of_48", meetings::barrier_of_48, &["thread 0: barrier 1", "48 threads is no multiple of 32"]),
        case(
            "half_warps_at_barrier",
            meetings::half_warps_at_barrier,
            &["barrier divergence: 16 of the 32 lanes of warp 0"],
        ),
        case(
            "two_barriers_crossed",
            meetings::two_barriers_crossed,
            &["deadlock", "32 threads (0 to 31) wait at barrier 1", "32 threads (32 to 63) wait at barrier 2"],
        ),
        case("arrive_twice", meetings::arrive_twice, &["thread 0: barrier mismatch", "second time"]),
        case("nobody_waits", meetings::nobody_waits, &["barrier mismatch: 32 of 64 threads came to barrier 1"]),
        case("shuffles_in_branches", meetings::shuffles_in_branches, &["thread 1: warp divergence"]),
        case("exit_before_collective", meetings::exit_before_collective, &["thread 40: warp divergence: exits while"]),
        case("lane_not_in_mask", meetings::lane_not_in_mask, &["lane 31 is not in its own mask 0x7fffffff"]),
        case("shuffle_from_outside", meetings::shuffle_from_outside, &["a lane that is not in the mask"]),
        case("masks_differ", meetings::masks_differ, &["warp divergence", "with mask 0x00000fff"]),
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
        case(
            "copy_read_early",
            copies::copy_read_early,
            &["thread 0: asynchronous copy still pending: read of 4 bytes"],
        ),
        case("copy_without_barrier", copies::copy_without_barrier, &["thread 1: race: read", "by thread 0"]),
        case("copy_without_commit", copies::copy_without_commit, &["thread 0: wait without commit"]),
        case("copy_waits_too_little", copies::copy_waits_too_little, &["asynchronous copy still pending: read"]),
        case("copy_from_misaligned", copies::copy_from_misaligned, &["misaligned asynchronous copy: read of 12 bytes"]),
        case("copy_to_misaligned", copies::copy_to_misaligned, &["misaligned asynchronous copy: write of 16 bytes"]),
        case("copy_overwritten", copies::copy_overwritten, &["asynchronous copy still pending: write of 4 bytes"]),
        case("copy_over_copy", copies::copy_over_copy, &["asynchronous copy still pending: write of 16 bytes"]),
        case("copy_into_slot_in_use", copies::copy_into_slot_in_use, &["thread"]),
        case(
            "copy_past_end",
            copies::copy_past_end,
            &["thread 63: out of bounds read of 16 bytes", "past the end of `x`"],
        ),
        case(
            "copy_past_shared",
            copies::copy_past_shared,
            &["thread 0: out of bounds write", "of 2048 bytes of shared memory"],
        ),
        case("copy_uninitialised", copies::copy_uninitialised, &["thread 0: uninitialised read of 16 bytes", "`y`"]),
    ];
    check(&one_cta(include_str!("../kernels/copies.cu"), 4 * THREADS), &cases);
}

/// Three warps are no warp group; the kernel is right otherwise.
#[test]
fn a_product_needs_a_whole_group() {
    let launch = Launch::linear(1, 96).with_smem(2048 + 2 * 8192);
    let setup = Setup { source: "", launch, elements: 256, says: &[] };
    for (device, on) in strict_devices() {
        let report = run(&device, units::product_not_fenced, &setup, false).unwrap_err();
        let report = format!("{report:#}");
        assert!(report.contains("of 96 is in no whole warp group"), "on {on}: {report}");
    }
}

/// Asynchronous units of Hopper: two CTAs, in some kernels a cluster, each a warp group with room for two tiles.
#[test]
fn hopper_units() {
    let cases = [
        case("wait_left_out", units::wait_left_out, &[]),
        case("wrong_parity", units::wrong_parity, &[]),
        case("expects_too_little", units::expects_too_little, &["expect_tx"]),
        case("expects_too_much", units::expects_too_much, &["deadlock", "1 of 1 arrived", "1024 bytes missing"]),
        case("init_not_fenced", units::init_not_fenced, &["missing fence.mbarrier_init"]),
        case("used_before_init", units::used_before_init, &["was never initialised"]),
        case("initialised_twice", units::initialised_twice, &["initialised a second time"]),
        case("left_in_a_phase", units::left_in_a_phase, &["the kernel ends in the middle of phase 0"]),
        case("parity_alias", units::parity_alias, &["parity alias: waits at", "for phase 0"]),
        case("slot_released_early", units::slot_released_early, &[]),
        case("copy_over_reads", units::copy_over_reads, &["race: write of 1024 bytes", "the read of byte"]),
        case(
            "slot_read_not_fenced",
            units::slot_read_not_fenced,
            &[
                "thread 127: missing fence.proxy.async: write of 1024 bytes at 0x",
                "(shared byte 1024)",
                "thread 0 read byte 1024 at tests/kernels/units_mistakes_sm90.cu:",
                "no fence of its own lies before",
            ],
        ),
        case(
            "slot_fenced_too_late",
            units::slot_fenced_too_late,
            &["thread 127: missing fence.proxy.async: write of 1024 bytes", "read byte"],
        ),
        case(
            "slot_fenced_by_one_lane",
            units::slot_fenced_by_one_lane,
            &["thread 127: missing fence.proxy.async: write of 1024 bytes", "thread 1 read byte 1028 at"],
        ),
        case(
            "copy_over_writes_not_fenced",
            units::copy_over_writes_not_fenced,
            &["thread 0: missing fence.proxy.async: write of 1024 bytes", "thread 0 wrote byte 1024 at"],
        ),
        case("copy_to_odd_place", units::copy_to_odd_place, &["shared byte 1032 is no multiple of 16"]),
        case("store_not_fenced", units::store_not_fenced, &["missing fence.proxy.async: read of 1024 bytes"]),
        case("store_not_waited_for", units::store_not_waited_for, &["exits without waiting for the bulk store"]),
        case("store_overwritten", units::store_overwritten, &["still being read: write of 4 bytes"]),
        case("operand_not_fenced", units::operand_not_fenced, &["missing fence.proxy.async: read of 16 bytes"]),
        case("product_not_fenced", units::product_not_fenced, &["missing wgmma.fence: the accumulators"]),
        case("accumulator_in_flight", units::accumulator_in_flight, &["accumulator in flight: read of 4 bytes"]),
        case("fragment_in_flight", units::fragment_in_flight, &["fragment of A in flight: write of 4 bytes"]),
        case("operand_overwritten", units::operand_overwritten, &["still being read: write of 4 bytes"]),
        case("wait_without_commit", units::wait_without_commit, &["wait without commit"]),
        case("product_left_behind", units::product_left_behind, &["exits before the wait for the products"]),
        case("wrong_stride", units::wrong_stride, &["descriptor of A", "no multiple of 1024"]),
        case("off_the_pattern", units::off_the_pattern, &["descriptor of A", "not on the swizzle pattern"]),
        case("half_a_group", units::half_a_group, &["deadlock", "wait for their warp group"]),
        case(
            "more_registers_than_there_are",
            units::more_registers_than_there_are,
            &["deadlock", "wait for 256 registers"],
        ),
        case("odd_registers", units::odd_registers, &["not a multiple of 8 from 24 to 256"]),
        case(
            "arrives_at_unfenced",
            units::arrives_at_unfenced,
            &["missing fence.mbarrier_init: arrival from another CTA"],
        ),
        case("reads_peer_early", units::reads_peer_early, &["uninitialised read of 4 bytes"]),
        case("reads_peer_gone", units::reads_peer_gone, &["CTA 1 of the cluster has exited"]),
        case("waits_without_arriving", units::waits_without_arriving, &["barrier.cluster.wait without arrive"]),
    ];
    let setup = Setup {
        source: include_str!("../kernels/units_mistakes_sm90.cu"),
        launch: Launch::linear(2, 128).with_smem(2048 + 2 * 8192),
        elements: 256,
        says: &["block ("],
    };
    check(&setup, &cases);
}
