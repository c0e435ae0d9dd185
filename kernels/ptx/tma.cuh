// Bulk copies between global and shared memory by the tensor memory accelerator (sm_90).
//
// One thread issues a copy for the CTA. A tensor map says how a tensor lies in global memory and how large a box is;
// coordinates count elements, the contiguous dimension first, and may reach over the tensor's edges: a load fills with
// zeros, a store leaves them out. Loads complete on an mbarrier with the bytes of the whole box, and overwrite shared memory
// that threads who touched it themselves fenced (`fence_async`) before they let go of it. Stores read shared memory that the
// writers fenced before they met; the issuing thread waits for its groups.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>
#include <ldst.cuh>

// For those this thread meets afterwards, what it wrote to shared memory is visible to asynchronous units, and what it read is
// read before they overwrite it.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// L2 policies.
constexpr unsigned long long kEvictNormal = 0x1000000000000000ull;
constexpr unsigned long long kEvictFirst = 0x12f0000000000000ull;
constexpr unsigned long long kEvictLast = 0x14f0000000000000ull;

__device__ __forceinline__ void tma_load(unsigned to, const CUtensorMap* map, int x, int y, unsigned barrier,
                                         unsigned long long policy = kEvictNormal) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y), "l"(policy)
        : "memory");
}

__device__ __forceinline__ void tma_load(unsigned to, const CUtensorMap* map, int x, int y, int z, unsigned barrier,
                                         unsigned long long policy = kEvictNormal) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "l"(policy)
        : "memory");
}

// The same bytes into every CTA of the mask, each completing on its own mbarrier at the same offset.
__device__ __forceinline__ void tma_load_multicast(unsigned to, const CUtensorMap* map, int x, int y, unsigned barrier,
                                                   unsigned short ctas, unsigned long long policy = kEvictNormal) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
        ".L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;" ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y),
        "h"(ctas), "l"(policy)
        : "memory");
}

__device__ __forceinline__ void tma_store(const CUtensorMap* map, unsigned from, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(from),
                 "r"(x), "r"(y)
                 : "memory");
}

__device__ __forceinline__ void tma_store(const CUtensorMap* map, unsigned from, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
                 "r"(from), "r"(x), "r"(y), "r"(z)
                 : "memory");
}

// Adds instead of overwriting. The order of additions from several CTAs is open.
__device__ __forceinline__ void tma_add(const CUtensorMap* map, unsigned from, int x, int y) {
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                 "r"(from), "r"(x), "r"(y)
                 : "memory");
}

// Contiguous bytes, a multiple of 16 as both addresses.
__device__ __forceinline__ void bulk_load(unsigned to, const void* from, unsigned bytes, unsigned barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

__device__ __forceinline__ void bulk_store(void* to, unsigned from, unsigned bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all but `kPending` of this thread's groups have read shared memory.
template <int kPending>
__device__ __forceinline__ void bulk_wait_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Waits until they are complete.
template <int kPending>
__device__ __forceinline__ void bulk_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}
