// Eight floats at a time in one thread: eight registers here, one vector register in the twin for the host device.
#pragma once
#include <ldst.cuh>
#include <math.cuh>

constexpr int kLanes = 8;

struct Lanes {
    float v[kLanes];
};

__device__ __forceinline__ Lanes all_lanes(float x) {
    Lanes y;
#pragma unroll
    for (int l = 0; l < kLanes; ++l) y.v[l] = x;
    return y;
}

// From a 16-byte aligned address.
__device__ __forceinline__ Lanes load_lanes(const float* from) {
    Lanes y;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const Pack16 pack = load16(from + 4 * half);
#pragma unroll
        for (int l = 0; l < 4; ++l) y.v[4 * half + l] = __uint_as_float(pack.word[l]);
    }
    return y;
}

// Word by word, from any float's address.
__device__ __forceinline__ Lanes load_lanes_unaligned(const float* from) {
    Lanes y;
#pragma unroll
    for (int l = 0; l < kLanes; ++l) y.v[l] = from[l];
    return y;
}

__device__ __forceinline__ void store_lanes_unaligned(float* to, Lanes x) {
#pragma unroll
    for (int l = 0; l < kLanes; ++l) to[l] = x.v[l];
}

__device__ __forceinline__ Lanes operator+(Lanes a, Lanes b) {
#pragma unroll
    for (int l = 0; l < kLanes; ++l) a.v[l] += b.v[l];
    return a;
}

__device__ __forceinline__ Lanes operator-(Lanes a, Lanes b) {
#pragma unroll
    for (int l = 0; l < kLanes; ++l) a.v[l] -= b.v[l];
    return a;
}

__device__ __forceinline__ Lanes operator*(Lanes a, Lanes b) {
#pragma unroll
    for (int l = 0; l < kLanes; ++l) a.v[l] *= b.v[l];
    return a;
}

__device__ __forceinline__ Lanes exp2_lanes(Lanes x) {
#pragma unroll
    for (int l = 0; l < kLanes; ++l) x.v[l] = exp2_approx(x.v[l]);
    return x;
}

__device__ __forceinline__ float max_lane(Lanes x) {
    const float(&v)[kLanes] = x.v;
    return fmaxf(fmaxf(fmaxf(v[0], v[4]), fmaxf(v[2], v[6])), fmaxf(fmaxf(v[1], v[5]), fmaxf(v[3], v[7])));
}

// Lanes l and l + 4, then l and l + 2, then the last two.
__device__ __forceinline__ float sum_lanes(Lanes x) {
    const float(&v)[kLanes] = x.v;
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// Lane r of the result is the sum of x[r].
__device__ __forceinline__ Lanes sum_each(const Lanes (&x)[kLanes]) {
    Lanes y;
#pragma unroll
    for (int r = 0; r < kLanes; ++r) y.v[r] = sum_lanes(x[r]);
    return y;
}
