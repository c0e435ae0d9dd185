// Rotary positions in the Hugging Face layout: with half = head_dim / 2, c = cos[position, d], s = sin[position, d],
//     x[d]        ->  x[d] * c - x[d + half] * s
//     x[d + half] ->  x[d + half] * c + x[d] * s        for d < half.
// `inverse` turns the other way (s -> -s), which is the transpose and so the backward pass. Works in place on the first
// heads + kv_heads heads of each token (queries and keys); the values behind them are not touched. One thread per eight
// pairs; arithmetic in f32. Roof: memory.

#include <chunk.cuh>
#include <types.cuh>

// ---- device code

constexpr int kThreads = 128;

template <class T>
__device__ void rope_apply(T* qkv, const int* position, const float* cos, const float* sin, int inverse, int tokens,
                           int heads, int kv_heads, int head_dim) {
    const int half = head_dim / 2, chunks = (half + kChunk - 1) / kChunk;
    const int item = blockIdx.x * kThreads + threadIdx.x;
    const int d = item % chunks * kChunk, turned = heads + kv_heads;
    const int head = item / chunks % turned, token = item / chunks / turned;
    if (token >= tokens) return;
    T* x = qkv + ((long long)token * (turned + kv_heads) + head) * head_dim + d;
    const long long angle = (long long)position[token] * half + d;
    float a[kChunk], b[kChunk], c[kChunk], s[kChunk];
    load_chunk(a, x, half - d);
    load_chunk(b, x + half, half - d);
    load_chunk(c, cos + angle, half - d);
    load_chunk(s, sin + angle, half - d);
    const float sign = inverse ? -1.0f : 1.0f;
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
        const float low = a[i], high = b[i], turn = sign * s[i];
        a[i] = low * c[i] - high * turn;
        b[i] = high * c[i] + low * turn;
    }
    store_chunk(x, a, half - d);
    store_chunk(x + half, b, half - d);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kThreads) rope_apply_f32(
    float* qkv,           // (tokens, heads + 2 * kv_heads, head_dim), in place
    const int* position,  // (tokens), each in 0..positions
    const float* cos,     // (positions, head_dim / 2)
    const float* sin,     // (positions, head_dim / 2)
    int inverse, int tokens, int heads, int kv_heads, int head_dim) {
    rope_apply<float>(qkv, position, cos, sin, inverse, tokens, heads, kv_heads, head_dim);
}

extern "C" __global__ void __launch_bounds__(kThreads) rope_apply_bf16(
    bf16* qkv,            // (tokens, heads + 2 * kv_heads, head_dim), in place
    const int* position,  // (tokens), each in 0..positions
    const float* cos,     // (positions, head_dim / 2)
    const float* sin,     // (positions, head_dim / 2)
    int inverse, int tokens, int heads, int kv_heads, int head_dim) {
    rope_apply<bf16>(qkv, position, cos, sin, inverse, tokens, heads, kv_heads, head_dim);
}
