// Kernels that break a rule of barriers or warp collectives if `broken` is set. One CTA of 64 threads.

#include <cta.cuh>

extern "C" __global__ void exit_before_barrier(float* y, const float* x, int n, int broken) {
    if (broken && threadIdx.x == 3) return;
    __syncthreads();  // mistake: exit_before_barrier
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void barriers_in_branches(float* y, const float* x, int n, int broken) {
    if (broken && threadIdx.x % 2 == 0)
        __syncthreads();
    else
        __syncthreads();  // mistake: barriers_in_branches
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void barrier_counts_differ(float* y, const float* x, int n, int broken) {
    named_barrier_sync<1>(broken && threadIdx.x >= 32 ? 32 : 64);  // mistake: barrier_counts_differ
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void barrier_of_48(float* y, const float* x, int n, int broken) {
    named_barrier_sync<1>(broken ? 48 : 64);  // mistake: barrier_of_48
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void half_warps_at_barrier(float* y, const float* x, int n, int broken) {
    if (broken ? threadIdx.x % 32 < 16 : threadIdx.x < 32) named_barrier_sync<1>(32);  // mistake: half_warps_at_barrier
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void two_barriers_crossed(float* y, const float* x, int n, int broken) {
    if (threadIdx.x < 32) {
        named_barrier_sync<1>(64);
        named_barrier_sync<2>(64);
    } else {
        if (broken)
            named_barrier_sync<2>(64);  // mistake: two_barriers_crossed
        else
            named_barrier_sync<1>(64);
        if (broken)
            named_barrier_sync<1>(64);
        else
            named_barrier_sync<2>(64);
    }
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void arrive_twice(float* y, const float* x, int n, int broken) {
    if (threadIdx.x < 32) {
        named_barrier_arrive<1>(64);
        if (broken) named_barrier_arrive<1>(64);  // mistake: arrive_twice
    } else {
        named_barrier_sync<1>(64);
    }
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void nobody_waits(float* y, const float* x, int n, int broken) {
    if (threadIdx.x < 32)
        named_barrier_arrive<1>(64);
    else if (!broken)
        named_barrier_sync<1>(64);
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void shuffles_in_branches(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    float got;
    if (broken && i % 2 == 0)
        got = __shfl_xor_sync(0xffffffffu, x[i], 1);
    else
        got = __shfl_xor_sync(0xffffffffu, x[i], 1);  // mistake: shuffles_in_branches
    y[i] = got;
}

extern "C" __global__ void exit_before_collective(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    if (broken && i == 40) return;
    y[i] = warp_sum(x[i]);  // mistake: exit_before_collective
}

extern "C" __global__ void lane_not_in_mask(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    __syncwarp(broken ? 0x7fffffffu : 0xffffffffu);  // mistake: lane_not_in_mask
    y[i] = x[i];
}

extern "C" __global__ void shuffle_from_outside(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    y[i] = x[i];
    if (i % 32 < 16) y[i] += __shfl_sync(0xffffu, x[i], broken ? 20 : 4);  // mistake: shuffle_from_outside
}

extern "C" __global__ void masks_differ(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    y[i] = x[i];
    __syncwarp(broken && i % 32 == 7 ? 0xfffu : 0xffffffffu);  // mistake: masks_differ
}
