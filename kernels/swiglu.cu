// y = silu(g) * u,  silu(g) = g * sig(g),  with g = gate_up[:, :ffn] and u = gate_up[:, ffn:].
// Backward, with s = sig(g):  dg = dy * u * s * (1 + g * (1 - s)),  du = dy * g * s.
// The backward pass computes y again, for the gradient of the matrix behind it, with the bits of the forward pass.
// Every tensor is read or written once; one thread per eight columns; arithmetic in f32. Roof: memory.

#include <chunk.cuh>
#include <sigmoid.cuh>
#include <types.cuh>

// ---- device code

constexpr int kThreads = 128;

template <class T>
__device__ void swiglu_fwd(T* y, const T* gate_up, int rows, int ffn) {
    const int chunks = (ffn + kChunk - 1) / kChunk;
    const int item = blockIdx.x * kThreads + threadIdx.x;
    const int row = item / chunks, c = item % chunks * kChunk;
    if (row >= rows) return;
    const T* from = gate_up + 2 * (long long)row * ffn + c;
    float gate[kChunk], up[kChunk];
    load_chunk(gate, from, ffn - c);
    load_chunk(up, from + ffn, ffn - c);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) up[i] *= gate[i] * sigmoid(gate[i]);
    store_chunk(y + (long long)row * ffn + c, up, ffn - c);
}

template <class T>
__device__ void swiglu_bwd(T* dgate_up, T* y, const T* dy, const T* gate_up, int rows, int ffn) {
    const int chunks = (ffn + kChunk - 1) / kChunk;
    const int item = blockIdx.x * kThreads + threadIdx.x;
    const int row = item / chunks, c = item % chunks * kChunk;
    if (row >= rows) return;
    const long long at = 2 * (long long)row * ffn + c;
    float gate[kChunk], up[kChunk], d[kChunk];
    load_chunk(gate, gate_up + at, ffn - c);
    load_chunk(up, gate_up + at + ffn, ffn - c);
    load_chunk(d, dy + (long long)row * ffn + c, ffn - c);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
        const float g = gate[i], s = sigmoid(g);
        gate[i] = d[i] * up[i] * s * (1.0f + g * (1.0f - s));
        const float own_up = up[i];
        up[i] = d[i] * g * s;
        d[i] = own_up * (g * s);
    }
    store_chunk(dgate_up + at, gate, ffn - c);
    store_chunk(dgate_up + at + ffn, up, ffn - c);
    store_chunk(y + (long long)row * ffn + c, d, ffn - c);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kThreads) swiglu_fwd_f32(
    float* y,              // (rows, ffn)
    const float* gate_up,  // (rows, 2 * ffn)
    int rows, int ffn) {
    swiglu_fwd<float>(y, gate_up, rows, ffn);
}

extern "C" __global__ void __launch_bounds__(kThreads) swiglu_fwd_bf16(
    bf16* y,              // (rows, ffn)
    const bf16* gate_up,  // (rows, 2 * ffn)
    int rows, int ffn) {
    swiglu_fwd<bf16>(y, gate_up, rows, ffn);
}

extern "C" __global__ void __launch_bounds__(kThreads) swiglu_bwd_f32(
    float* dgate_up,       // (rows, 2 * ffn), may be gate_up
    float* y,              // (rows, ffn), as forward; may be dy
    const float* dy,       // (rows, ffn)
    const float* gate_up,  // (rows, 2 * ffn)
    int rows, int ffn) {
    swiglu_bwd<float>(dgate_up, y, dy, gate_up, rows, ffn);
}

extern "C" __global__ void __launch_bounds__(kThreads) swiglu_bwd_bf16(
    bf16* dgate_up,       // (rows, 2 * ffn), may be gate_up
    bf16* y,              // (rows, ffn), as forward; may be dy
    const bf16* dy,       // (rows, ffn)
    const bf16* gate_up,  // (rows, 2 * ffn)
    int rows, int ffn) {
    swiglu_bwd<bf16>(dgate_up, y, dy, gate_up, rows, ffn);
}
