// y = gelu(x) in its tanh form (lib/gelu.cuh);  backward: dx = dy * gelu'(x).
// The backward pass computes y again, for the gradient of the matrix behind it, with the bits of the forward pass.
// Every tensor is read or written once; one thread per eight elements; arithmetic in f32. Roof: memory.

#include <chunk.cuh>
#include <gelu.cuh>
#include <types.cuh>

// ---- device code

constexpr int kThreads = 128;

template <class T>
__device__ void gelu_fwd(T* y, const T* x, long long elements) {
    const long long at = ((long long)blockIdx.x * kThreads + threadIdx.x) * kChunk;
    if (at >= elements) return;
    float v[kChunk];
    load_chunk(v, x + at, elements - at);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) v[i] = gelu(v[i]);
    store_chunk(y + at, v, elements - at);
}

template <class T>
__device__ void gelu_bwd(T* dx, T* y, const T* dy, const T* x, long long elements) {
    const long long at = ((long long)blockIdx.x * kThreads + threadIdx.x) * kChunk;
    if (at >= elements) return;
    float v[kChunk], d[kChunk];
    load_chunk(v, x + at, elements - at);
    load_chunk(d, dy + at, elements - at);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
        const float gate = gelu_gate(v[i]);
        d[i] *= gelu_slope(v[i], gate);
        v[i] *= gate;
    }
    store_chunk(dx + at, d, elements - at);
    store_chunk(y + at, v, elements - at);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kThreads) gelu_fwd_f32(
    float* y,        // (elements), may be x
    const float* x,  // (elements)
    long long elements) {
    gelu_fwd<float>(y, x, elements);
}

extern "C" __global__ void __launch_bounds__(kThreads) gelu_fwd_bf16(
    bf16* y,        // (elements), may be x
    const bf16* x,  // (elements)
    long long elements) {
    gelu_fwd<bf16>(y, x, elements);
}

extern "C" __global__ void __launch_bounds__(kThreads) gelu_bwd_f32(
    float* dx,        // (elements), may be x
    float* y,         // (elements), as forward; may be dy
    const float* dy,  // (elements)
    const float* x,   // (elements)
    long long elements) {
    gelu_bwd<float>(dx, y, dy, x, elements);
}

extern "C" __global__ void __launch_bounds__(kThreads) gelu_bwd_bf16(
    bf16* dx,        // (elements), may be x
    bf16* y,         // (elements), as forward; may be dy
    const bf16* dy,  // (elements)
    const bf16* x,   // (elements)
    long long elements) {
    gelu_bwd<bf16>(dx, y, dy, x, elements);
}
