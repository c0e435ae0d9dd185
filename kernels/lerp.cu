// y = y + weight (x - y): part of the way from y to x, counted from the nearer end, so that weight 0 leaves y as it is and
// weight 1 gives x. In f32. One thread per eight elements. Roof: memory.

#include <chunk.cuh>
#include <types.cuh>

// ---- device code

constexpr int kThreads = 128;

template <class T>
__device__ void lerp(T* y, const T* x, float weight, long long elements) {
    const long long i = ((long long)blockIdx.x * kThreads + threadIdx.x) * kChunk;
    if (i >= elements) return;
    float from[kChunk], to[kChunk];
    load_chunk(from, y + i, elements - i);
    load_chunk(to, x + i, elements - i);
    const bool near = weight < 0.5f;
    const float part = near ? weight : weight - 1.0f;
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
        const float way = to[k] - from[k];
        from[k] = fmaf(part, way, near ? from[k] : to[k]);
    }
    store_chunk(y + i, from, elements - i);
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
