// Kernels that break a rule of memory if `broken` is set and are right if it is not. One CTA, one element a thread;
// the line with the mistake carries its kernel's name.

#include <cta.cuh>
#include <ldst.cuh>

extern "C" __global__ void read_past_end(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    if (i < n) y[i] = x[i + broken];  // mistake: read_past_end
}

extern "C" __global__ void write_before_start(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    if (i < n) y[i - broken] = x[i];  // mistake: write_before_start
}

extern "C" __global__ void write_far_away(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    if (i < n) y[i + broken * (1ll << 36)] = x[i];  // mistake: write_far_away
}

extern "C" __global__ void read_16_past_end(float* y, const float* x, int n, int broken) {
    const int i = 4 * threadIdx.x;
    if (i + 4 > n) return;
    store16(y + i, load16(x + i + 4 * broken));  // mistake: read_16_past_end
}

extern "C" __global__ void misaligned_4(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    const char* from = reinterpret_cast<const char*>(x + i) + 2 * broken;
    if (i < n) y[i] = *reinterpret_cast<const float*>(from);  // mistake: misaligned_4
}

extern "C" __global__ void misaligned_16(float* y, const float* x, int n, int broken) {
    const int i = 4 * threadIdx.x;
    if (i + 4 + broken > n) return;
    store16(y + i, load16(x + i + broken));  // mistake: misaligned_16
}

extern "C" __global__ void uninitialised(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    if (i >= n) return;
    if (!broken) y[i] = 0.0f;
    y[i] += x[i];  // mistake: uninitialised
}

extern "C" __global__ void shared_past_end(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    float* s = shared_memory<float>();
    s[i + broken] = x[i];  // mistake: shared_past_end
    y[i] = s[i + broken];
}

extern "C" __global__ void shared_uninitialised(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    float* s = shared_memory<float>();
    if (!broken || i != 5) s[i] = x[i];
    y[i] = s[i];  // mistake: shared_uninitialised
}

// A pointer to a thread's own variable means nothing to another thread.
extern "C" __global__ void local_of_another(float* y, const float* x, int n, int broken) {
    const int i = threadIdx.x;
    float** s = shared_memory<float*>();
    float own[2] = {x[i], x[i]};
    s[i] = own;
    __syncthreads();
    const float* from = s[broken ? (i + 1) % n : i];
    y[i] = from[1];  // mistake: local_of_another
    __syncthreads();
    own[0] = y[i];
}

extern "C" __global__ void read_address(float* y, unsigned long long address) {
    y[0] = *reinterpret_cast<const float*>(address);  // mistake: read_address
}
