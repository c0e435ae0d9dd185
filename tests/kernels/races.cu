// Kernels with a race in shared memory if `broken` is set and without one if it is not. One CTA of n threads; the line
// where the second of the two accesses is found, threads in order, carries its kernel's name.

#include <cta.cuh>

extern "C" __global__ void race_read_after_write(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    float* s = shared_memory<float>();
    s[i] = x[i];
    if (!broken) __syncthreads();
    if (broken && i == 0) return;
    y[i] = s[(i + n - 1) % n];  // mistake: race_read_after_write
}

extern "C" __global__ void race_write_after_write(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    float* s = shared_memory<float>();
    if (broken || i == 0) s[0] = x[i];  // mistake: race_write_after_write
    __syncthreads();
    y[i] = s[0];
}

extern "C" __global__ void race_write_after_read(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    float* s = shared_memory<float>();
    s[i] = x[i];
    __syncthreads();
    const float sum = s[0] + s[i];  // mistake: race_write_after_read
    if (!broken) __syncthreads();
    if (i == n - 1) s[0] = sum;
    y[i] = sum;
}

extern "C" __global__ void race_in_warp(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    float* s = shared_memory<float>();
    s[i] = x[i];
    if (!broken) __syncwarp();
    if (broken && i % 32 == 0) return;
    y[i] = s[i / 32 * 32 + (i + 31) % 32];  // mistake: race_in_warp
}

// Lanes that meet with a mask are ordered among themselves only.
extern "C" __global__ void race_outside_mask(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x, half = i % 32 / 16;
    float* s = shared_memory<float>();
    s[i] = x[i];
    __syncwarp(0xffffu << 16 * half);
    if (broken && half == 0) return;
    y[i] = s[i ^ (broken ? 16 : 8)];  // mistake: race_outside_mask
}

// A collective orders the lanes of a warp, not the warps.
extern "C" __global__ void race_between_warps(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    float* s = shared_memory<float>();
    s[i] = x[i];
    __syncwarp();
    if (broken && i < 32) return;
    y[i] = s[broken ? i - 32 : i ^ 1];  // mistake: race_between_warps
}

// Warp 0 fills a slot for warp 1 and then another time: "full" is barrier 1, "empty" barrier 2.
extern "C" __global__ void race_slot_not_released(float* y, const float* x, int n, int broken) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float* s = shared_memory<float>();
    if (warp == 0) {
        s[lane] = x[lane];
        named_barrier_arrive<1>(64);
        if (!broken) named_barrier_sync<2>(64);
        s[lane] = 0.0f;
    } else {
        named_barrier_sync<1>(64);
        y[lane] = s[lane ^ 1];  // mistake: race_slot_not_released
        if (!broken) named_barrier_arrive<2>(64);
    }
}

// Arriving tells the others what this thread did; it does not tell this thread what the others did.
extern "C" __global__ void race_arrive_is_no_wait(float* y, const float* x, int n, int broken) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float* s = shared_memory<float>();
    s[threadIdx.x] = x[threadIdx.x];
    if (warp == 1 && broken)
        named_barrier_arrive<1>(64);
    else
        named_barrier_sync<1>(64);
    y[threadIdx.x] = s[32 * (1 - warp) + lane];  // mistake: race_arrive_is_no_wait
}
