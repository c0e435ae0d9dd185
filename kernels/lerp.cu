// y = y + weight (x - y): part of the way from y to x, counted from the nearer end, so that weight 0 leaves y as it is and
// weight 1 gives x. In f32; bf16 results are weights and are rounded as these (lib/split_master.cuh). lerp_master goes to the
// f32 masters of bf16 weights. One thread per eight elements. Roof: memory.

#include <chunk.cuh>
#include <split_master.cuh>
#include <types.cuh>

// ---- device code

constexpr int kThreads = 128;

__device__ __forceinline__ void go(float (&from)[kChunk], const float (&to)[kChunk], float weight) {
    const bool near = weight < 0.5f;
    const float part = near ? weight : weight - 1.0f;
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
        const float way = to[k] - from[k];
        from[k] = fmaf(part, way, near ? from[k] : to[k]);
    }
}

template <class T>
__device__ void lerp(T* y, const T* x, float weight, long long elements) {
    const long long i = ((long long)blockIdx.x * kThreads + threadIdx.x) * kChunk;
    if (i >= elements) return;
    float from[kChunk], to[kChunk];
    load_chunk(from, y + i, elements - i);
    load_chunk(to, x + i, elements - i);
    go(from, to, weight);
    store_weights(y + i, from, elements - i);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kThreads) lerp_f32(
    float* y,        // (elements)
    const float* x,  // (elements)
    float weight,
    long long elements) {
    lerp<float>(y, x, weight, elements);
}

extern "C" __global__ void __launch_bounds__(kThreads) lerp_bf16(
    bf16* y,        // (elements)
    const bf16* x,  // (elements)
    float weight,
    long long elements) {
    lerp<bf16>(y, x, weight, elements);
}

extern "C" __global__ void __launch_bounds__(kThreads) lerp_master_bf16(
    float* y,                   // (elements)
    const bf16* x,              // (elements) weights
    const unsigned short* low,  // (elements) the rest of their masters
    float weight,
    long long elements) {
    const long long i = ((long long)blockIdx.x * kThreads + threadIdx.x) * kChunk;
    if (i >= elements) return;
    float from[kChunk], to[kChunk];
    load_chunk(from, y + i, elements - i);
    load_master(to, x + i, low + i, elements - i);
    go(from, to, weight);
    store_chunk(y + i, from, elements - i);
}
