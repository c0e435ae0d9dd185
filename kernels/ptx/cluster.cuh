// Clusters of CTAs, register shares of warp groups, one lane for a warp (sm_90; setmaxnreg sm_90a).
#pragma once
#include <cuda_runtime.h>
#include <ldst.cuh>

constexpr int kGroupThreads = 128;

__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank;
    asm volatile("mov.u32 %0, %cluster_ctarank;" : "=r"(rank));
    return rank;
}

// The address of the same byte of shared memory in another CTA of the cluster.
__device__ __forceinline__ unsigned map_to_rank(unsigned shared, unsigned rank) {
    unsigned mapped;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(shared), "r"(rank));
    return mapped;
}

__device__ __forceinline__ float load_cluster(unsigned shared) {
    float x;
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(shared) : "memory");
    return x;
}

__device__ __forceinline__ void store_cluster(unsigned shared, float x) {
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(shared), "f"(x) : "memory");
}

// All threads of the cluster arrive, then wait.
__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}

// True in one lane of a warp whose lanes are all here.
__device__ __forceinline__ bool elect_one() {
    unsigned chosen;
    asm volatile(
        "{\n.reg .pred p;\n"
        "elect.sync _|p, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(chosen));
    return chosen != 0;
}

// Every thread of a warp group gives registers back to the CTA's pool, or waits for more.
template <int kRegisters>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
