// mbarriers: arrivals and transferred bytes counted by phases (sm_90).
//
// A phase is complete when `count` arrivals have come and as many bytes as were expected. A waiter names the phase by its
// parity: 0 for the first, 1 for the second, and again 0; waiting for parity 1 of a fresh barrier passes. Addresses are
// 32 bits in the window of shared memory; one of another CTA of the cluster comes from `map_to_rank`.
#pragma once
#include <cuda_runtime.h>
#include <ldst.cuh>

// One thread initialises; then it fences, and all meet, before anybody else uses the barrier.
__device__ __forceinline__ void mbarrier_init(unsigned barrier, unsigned count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// In any CTA of the cluster. A scope of the cluster would fence all of memory first.
__device__ __forceinline__ void mbarrier_arrive_cluster(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Expects `bytes` more in this phase, then arrives.
__device__ __forceinline__ void mbarrier_arrive_expect(unsigned barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ bool mbarrier_try_wait(unsigned barrier, unsigned parity) {
    unsigned done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return done != 0;
}

// With -DWAIT_LIMIT=n a wait that is not over after n attempts, each of at most ten microseconds, stops the kernel instead of
// hanging. The loop is one statement: written in C++, its way out costs registers that the largest kernels do not have.
__device__ __forceinline__ void mbarrier_wait(unsigned barrier, unsigned parity) {
#ifdef WAIT_LIMIT
    asm volatile(
        "{\n.reg .pred done, more;\n.reg .u32 attempts;\nmov.u32 attempts, 0;\n"
        "AGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1, 10000;\n@done bra OVER;\n"
        "add.u32 attempts, attempts, 1;\nsetp.lt.u32 more, attempts, %2;\n@more bra AGAIN;\ntrap;\n"
        "OVER:\n}" ::"r"(barrier), "r"(parity), "n"(WAIT_LIMIT)
        : "memory");
#else
    while (!mbarrier_try_wait(barrier, parity)) {
    }
#endif
}
