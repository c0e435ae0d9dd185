// Sums and maxima over a CTA in a fixed order: warps first, then the warps' results in warp order.
#pragma once
#include <cta.cuh>
#include <types.cuh>

// `scratch` holds one float per warp and may be reused after the call. Every thread gets the result.
template <class Combine>
__device__ __forceinline__ float cta_reduce(float x, float* scratch, Combine combine) {
    const int lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
    const int warps = blockDim.x / kWarpThreads;
    x = combine.warp(x);
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    float total = scratch[0];
    for (int w = 1; w < warps; ++w) total = combine(total, scratch[w]);
    __syncthreads();
    return total;
}

struct Sum {
    __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
    __device__ __forceinline__ float warp(float x) const { return warp_sum(x); }
};

struct Max {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
    __device__ __forceinline__ float warp(float x) const { return warp_max(x); }
};
