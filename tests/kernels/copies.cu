// Kernels that break a rule of asynchronous copies if `broken` is set. One CTA of 64 threads, four floats a thread.

#include <cta.cuh>
#include <ldst.cuh>

extern "C" __global__ void copy_read_early(float* y, const float* x, int n, int broken) {
    const int i = 4 * threadIdx.x;
    float* s = shared_memory<float>();
    cp_async16(s + i, x + i, 16);
    cp_async_commit();
    if (!broken) cp_async_wait<0>();
    y[i] = s[i];  // mistake: copy_read_early
}

extern "C" __global__ void copy_without_barrier(float* y, const float* x, int n, int broken) {
    const int i = 4 * threadIdx.x;
    float* s = shared_memory<float>();
    cp_async16(s + i, x + i, 16);
    cp_async_commit();
    cp_async_wait<0>();
    if (!broken) __syncthreads();
    if (broken && i == 0) return;
    y[i] = s[(i + n - 4) % n];  // mistake: copy_without_barrier
}

extern "C" __global__ void copy_without_commit(float* y, const float* x, int n, int broken) {
    const int i = 4 * threadIdx.x;
    float* s = shared_memory<float>();
    cp_async16(s + i, x + i, 16);
    if (!broken) cp_async_commit();
    cp_async_wait<0>();  // mistake: copy_without_commit
    y[i] = s[i];
}

extern "C" __global__ void copy_waits_too_little(float* y, const float* x, int n, int broken) {
    const int i = 4 * threadIdx.x;
    float* s = shared_memory<float>();
    cp_async16(s + i, x + i, 16);
    cp_async_commit();
    cp_async16(s + n + i, x + i, 8);
    cp_async_commit();
    if (broken)
        cp_async_wait<1>();
    else
        cp_async_wait<0>();
    y[i] = s[i] + s[n + i + 3];  // mistake: copy_waits_too_little
}

extern "C" __global__ void copy_from_misaligned(float* y, const float* x, int n, int broken) {
    const int i = 4 * threadIdx.x;
    float* s = shared_memory<float>();
    cp_async16(s + i, x + i + broken, 12);  // mistake: copy_from_misaligned
    cp_async_commit();
    cp_async_wait<0>();
    y[i] = s[i];
}

extern "C" __global__ void copy_to_misaligned(float* y, const float* x, int n, int broken) {
    const int i = 4 * threadIdx.x;
    float* s = shared_memory<float>();
    cp_async16(s + i + 2 * broken, x + i, 16);  // mistake: copy_to_misaligned
    cp_async_commit();
    cp_async_wait<0>();
    y[i] = s[i];
}

extern "C" __global__ void copy_overwritten(float* y, const float* x, int n, int broken) {
    const int i = 4 * threadIdx.x;
    float* s = shared_memory<float>();
    cp_async16(s + i, x + i, 16);
    cp_async_commit();
    if (!broken) cp_async_wait<0>();
    s[i + 1] = 0.0f;  // mistake: copy_overwritten
    cp_async_wait<0>();
    y[i] = s[i];
}

extern "C" __global__ void copy_over_copy(float* y, const float* x, int n, int broken) {
    const int i = 4 * threadIdx.x;
    float* s = shared_memory<float>();
    cp_async16(s + i, x + i, 16);
    cp_async_commit();
    cp_async16(s + i + (broken ? 0 : n), x + i, 16);  // mistake: copy_over_copy
    cp_async_commit();
    cp_async_wait<0>();
    y[i] = s[i];
}

// The next copy into a slot that others still read.
extern "C" __global__ void copy_into_slot_in_use(float* y, const float* x, int n, int broken) {
    const int i = 4 * threadIdx.x;
    float* s = shared_memory<float>();
    for (int step = 0; step < 2; ++step) {
        cp_async16(s + i, x + i, 16);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        y[i] = s[(i + 4) % n];  // mistake: copy_into_slot_in_use
        if (!broken) __syncthreads();
    }
}

extern "C" __global__ void copy_past_end(float* y, const float* x, int n, int broken) {
    const int i = 4 * threadIdx.x;
    float* s = shared_memory<float>();
    cp_async16(s + i, x + i + 4 * broken, 16);  // mistake: copy_past_end
    cp_async_commit();
    cp_async_wait<0>();
    y[i] = s[i];
}

extern "C" __global__ void copy_past_shared(float* y, const float* x, int n, int broken) {
    const int i = 4 * threadIdx.x;
    float* s = shared_memory<float>();
    cp_async16(s + i + 2 * n * broken, x + i, 16);  // mistake: copy_past_shared
    cp_async_commit();
    cp_async_wait<0>();
    y[i] = x[i];
}

extern "C" __global__ void copy_uninitialised(float* y, const float* x, int n, int broken) {
    const int i = 4 * threadIdx.x;
    float* s = shared_memory<float>();
    cp_async16(s + i, broken ? y + i : x + i, 16);  // mistake: copy_uninitialised
    cp_async_commit();
    cp_async_wait<0>();
    y[i] = s[i];
}
