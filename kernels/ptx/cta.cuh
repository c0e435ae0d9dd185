// What a CTA's threads share: dynamic shared memory, named barriers, warp reductions.
#pragma once
#include <cuda_runtime.h>

extern __shared__ __align__(1024) unsigned char cta_shared_bytes[];

// The CTA's dynamic shared memory, 1024-byte aligned.
template <class T>
__device__ __forceinline__ T* shared_memory() {
    return reinterpret_cast<T*>(cta_shared_bytes);
}

// Butterfly sums: every lane gets the same bits.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

__device__ __forceinline__ double warp_sum(double x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

// Several sums at once: on the host device one meeting of the lanes instead of kCount.
template <int kCount>
__device__ __forceinline__ void warp_sum_each(float (&x)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = warp_sum(x[i]);
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

// Named barrier: `threads` threads of the CTA, a multiple of 32, meet at barrier `kId` (1 to 15).
template <int kId>
__device__ __forceinline__ void named_barrier_sync(int threads) {
    asm volatile("bar.sync %0, %1;" ::"n"(kId), "r"(threads) : "memory");
}

// Counts towards the barrier without waiting.
template <int kId>
__device__ __forceinline__ void named_barrier_arrive(int threads) {
    asm volatile("bar.arrive %0, %1;" ::"n"(kId), "r"(threads) : "memory");
}
