//! What kernels call: the C interface of `kernels/host/simt_system.h`, and of its instrumented build.

use std::ffi::{CStr, c_char, c_void};

use super::{
    Fault, ThreadOrder,
    place::Place,
    simt::{
        CURRENT, Operation, SimtThread, Worker,
        bulk::Shape,
        wait_or_stop,
        wgmma::{Fragments, Step},
        worker,
    },
};
use crate::device::tensor_map::TensorMap;

#[unsafe(no_mangle)]
extern "C" fn simt_thread() -> *mut SimtThread {
    CURRENT.get()
}

#[unsafe(no_mangle)]
extern "C" fn simt_barrier(id: u32, threads: u32, wait: u32, file: *const c_char, line: u32) {
    let worker = worker();
    // SAFETY: called by the running CUDA thread, which has control of the worker.
    unsafe {
        let outcome = (*worker).arrive(id, threads, wait != 0, Place { file, line });
        wait_or_stop(worker, outcome);
    }
}

#[unsafe(no_mangle)]
extern "C" fn simt_collective(mask: u32, payload: *mut c_void, operation: Operation, file: *const c_char, line: u32) {
    let worker = worker();
    // SAFETY: called by the running CUDA thread, which has control of the worker. Every payload lies on the stack of a
    // thread that waits here, and all lanes came to the same call; no reference to the worker is held during it.
    unsafe {
        let outcome = match (*worker).meet(mask, payload, Place { file, line }) {
            Ok(true) => {
                let mut lanes = (*worker).payloads(mask);
                if let Some(operation) = operation {
                    operation(lanes.as_mut_ptr(), mask);
                }
                Ok((*worker).part(mask))
            }
            waits_or_fails => waits_or_fails,
        };
        wait_or_stop(worker, outcome);
    }
}

#[unsafe(no_mangle)]
extern "C" fn simt_fail(message: *const c_char, file: *const c_char, line: u32) {
    let worker = worker();
    // SAFETY: called by the running CUDA thread with a static message.
    unsafe {
        let message = CStr::from_ptr(message).to_string_lossy();
        let me = &mut *worker;
        let place = if file.is_null() { me.place() } else { Place { file, line } };
        me.fail(&format!("{message} at {place}"));
    }
}

/// Runs a step of the running thread, which waits if it is not to go on.
fn step(work: impl FnOnce(&mut Worker) -> Result<bool, String>) {
    let worker = worker();
    // SAFETY: called by the running CUDA thread, which has control of the worker until it suspends.
    unsafe {
        let outcome = work(&mut *worker);
        wait_or_stop(worker, outcome);
    }
}

/// Whether the kernel is run with this fault.
fn has(fault: Fault) -> bool {
    // SAFETY: as in `step`.
    unsafe { (*worker()).options().fault == Some(fault) }
}

#[unsafe(no_mangle)]
extern "C" fn simt_elect(file: *const c_char, line: u32) -> u32 {
    simt_collective(u32::MAX, std::ptr::null_mut(), None, file, line);
    let worker = worker();
    // SAFETY: as in `step`.
    let (thread, schedule) = unsafe { ((*worker).running_thread(), (*worker).options().schedule) };
    // Which lane is unspecified.
    let chosen = if schedule == ThreadOrder::Reversed { 31 } else { 0 };
    u32::from(thread % 32 == chosen)
}

#[unsafe(no_mangle)]
extern "C" fn simt_mbarrier_init(barrier: u32, count: u32, file: *const c_char, line: u32) {
    step(|worker| worker.mbarrier_init(barrier, count, Place { file, line }).map(|()| true));
}

#[unsafe(no_mangle)]
extern "C" fn simt_mbarrier_arrive(barrier: u32, bytes: u32, arrivals: u32, file: *const c_char, line: u32) {
    let bytes = if has(Fault::NoExpectedBytes) { 0 } else { bytes };
    step(|worker| worker.mbarrier_arrive(barrier, bytes, arrivals, Place { file, line }));
}

#[unsafe(no_mangle)]
extern "C" fn simt_mbarrier_wait(barrier: u32, parity: u32, file: *const c_char, line: u32) {
    let parity = parity ^ u32::from(has(Fault::WrongParity));
    step(|worker| worker.mbarrier_wait(barrier, parity, Place { file, line }));
}

#[unsafe(no_mangle)]
extern "C" fn simt_fence(barriers: u32) {
    step(|worker| {
        if barriers != 0 {
            worker.fence_mbarriers();
        } else if !has(Fault::NoAsyncFence) {
            worker.strict.fence(worker.running_thread());
        }
        Ok(true)
    });
}

#[unsafe(no_mangle)]
extern "C" fn simt_cluster_barrier(wait: u32, file: *const c_char, line: u32) {
    step(|worker| worker.cluster_barrier(wait != 0, Place { file, line }));
}

#[unsafe(no_mangle)]
extern "C" fn simt_registers(count: u32, grow: u32, file: *const c_char, line: u32) {
    step(|worker| worker.registers(count as usize, grow != 0, Place { file, line }));
}

#[unsafe(no_mangle)]
extern "C" fn simt_bulk_tensor(
    kind: u32,
    map: *const TensorMap,
    shared: u32,
    barrier: u32,
    at: *const i32,
    rank: u32,
    ctas: u32,
    file: *const c_char,
    line: u32,
) {
    let place = Place { file, line };
    step(|worker| {
        // SAFETY: the kernel passes the address of a parameter; a C++ object of 128 bytes, maybe less aligned than ours.
        let words = unsafe { map.cast::<[u64; 16]>().read_unaligned() };
        let map = TensorMap::read(&words).filter(|map| map.rank == rank as usize);
        let map = map.ok_or_else(|| format!("bulk copy at {place}: not a tensor map of rank {rank}"))?;
        // SAFETY: `rank` coordinates, at most four.
        let at = std::array::from_fn(|i| if i < map.rank { unsafe { at.add(i).read() } } else { 0 });
        worker.start_bulk(kind, Shape::Box { map, at, written: kind != 0 }, shared, barrier, ctas, place).map(|()| true)
    });
}

#[unsafe(no_mangle)]
extern "C" fn simt_bulk(kind: u32, global: u64, shared: u32, barrier: u32, bytes: u32, file: *const c_char, line: u32) {
    let shape = Shape::Bytes { address: global, bytes: bytes as usize };
    step(|worker| worker.start_bulk(kind, shape, shared, barrier, 0, Place { file, line }).map(|()| true));
}

#[unsafe(no_mangle)]
extern "C" fn simt_bulk_commit() {
    step(|worker| {
        worker.commit_bulk();
        Ok(true)
    });
}

#[unsafe(no_mangle)]
extern "C" fn simt_bulk_wait(pending: u32, file: *const c_char, line: u32) {
    // Without the waits in between; the last one is what lets the thread go.
    if pending == 0 || !has(Fault::NoStoreWait) {
        step(|worker| worker.wait_bulk(pending, Place { file, line }).map(|()| true));
    }
}

#[unsafe(no_mangle)]
extern "C" fn simt_wgmma(
    d: *mut f32,
    n: u32,
    a: *const u32,
    a_matrix: u64,
    b_matrix: u64,
    flags: u32,
    file: *const c_char,
    line: u32,
) {
    let a_matrix = a.is_null().then_some(a_matrix);
    let b_matrix = if has(Fault::WrongStride) { b_matrix + (64 << 32) } else { b_matrix };
    let product = Step::Product { n: n as usize, flags, a_matrix, b_matrix };
    step(|worker| worker.group_step(product, Fragments { d, a }, Place { file, line }));
}

#[unsafe(no_mangle)]
extern "C" fn simt_wgmma_fence() {
    if has(Fault::NoProductFence) {
        return;
    }
    step(|worker| {
        worker.strict.product_fence(worker.running_thread());
        Ok(true)
    });
}

#[unsafe(no_mangle)]
extern "C" fn simt_wgmma_commit(file: *const c_char, line: u32) {
    step(|worker| worker.group_step(Step::Commit, Fragments::NONE, Place { file, line }));
}

#[unsafe(no_mangle)]
extern "C" fn simt_wgmma_wait(pending: u32, file: *const c_char, line: u32) {
    if !has(Fault::NoProductWait) {
        step(|worker| worker.group_step(Step::Wait { pending }, Fragments::NONE, Place { file, line }));
    }
}

#[unsafe(no_mangle)]
extern "C" fn simt_cluster_access(shared: u32, value: *mut f32, write: u32, file: *const c_char, line: u32) {
    // SAFETY: `value` is a variable of the calling thread.
    step(|worker| {
        unsafe { worker.cluster_access(shared, &mut *value, write != 0, Place { file, line }) }.map(|()| true)
    });
}

/// What the instrumented build calls beside.
#[cfg(feature = "strict")]
mod instrumented {
    use super::*;
    use crate::device::host::{simt, strict::CtaChecks};

    /// Runs a check for the running thread, which goes no further if it fails.
    fn checked(check: impl FnOnce(&mut CtaChecks) -> Result<(), String>) {
        let Some(worker) = simt::running_worker() else {
            return;
        };
        // SAFETY: called by the running CUDA thread, which has control of the worker until it suspends.
        unsafe {
            let me: &mut Worker = &mut *worker;
            let thread = me.running_thread();
            if !me.strict.watches(thread) {
                let (own, rank) = (me.own_ranges(), me.rank_of(thread));
                me.strict.turn_to(thread, own, rank);
            }
            let outcome = check(&mut me.strict);
            if let Err(message) = outcome {
                wait_or_stop(worker, Err(message));
            }
        }
    }

    /// Every instrumented access; called by `kernels/host/instrumentation.cpp`.
    #[unsafe(no_mangle)]
    extern "C" fn simt_instrumented(address: u64, bytes: u64, alignment: u32, write: u32, code: u64) {
        checked(|checks| checks.instrumented(address, bytes as usize, alignment as usize, write != 0, code));
    }

    /// An access that the instrumentation cannot see: what a warp-wide instruction reads.
    #[unsafe(no_mangle)]
    extern "C" fn simt_access(address: u64, bytes: u32, alignment: u32, write: u32, file: *const c_char, line: u32) {
        let place = Place { file, line };
        checked(|checks| checks.told(address, bytes as usize, alignment as usize, write != 0, place));
    }

    #[unsafe(no_mangle)]
    extern "C" fn simt_cp_async(shared: u64, global: u64, copied: u32, bytes: u32, file: *const c_char, line: u32) {
        let place = Place { file, line };
        checked(|checks| checks.copy_async(shared, global, copied as usize, bytes as usize, place));
    }

    #[unsafe(no_mangle)]
    extern "C" fn simt_cp_async_commit() {
        checked(|checks| {
            checks.commit_copies();
            Ok(())
        });
    }

    #[unsafe(no_mangle)]
    extern "C" fn simt_cp_async_wait(pending: u32, file: *const c_char, line: u32) {
        checked(|checks| checks.wait_copies(pending, Place { file, line }));
    }
}
