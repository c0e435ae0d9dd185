// y = a + b, added in f32. One thread per eight elements; y may be a or b. Roof: memory.

#include <chunk.cuh>
#include <types.cuh>

// ---- device code

constexpr int kThreads = 128;

template <class T>
__device__ void residual_add(T* y, const T* a, const T* b, long long elements) {
    const long long i = ((long long)blockIdx.x * kThreads + threadIdx.x) * kChunk;
    if (i >= elements) return;
    float sum[kChunk], other[kChunk];
    load_chunk(sum, a + i, elements - i);
    load_chunk(other, b + i, elements - i);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) sum[k] += other[k];
    store_chunk(y + i, sum, elements - i);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kThreads) residual_add_f32(
    float* y,        // (elements), may be a or b
    const float* a,  // (elements)
    const float* b,  // (elements)
    long long elements) {
    residual_add<float>(y, a, b, elements);
}

extern "C" __global__ void __launch_bounds__(kThreads) residual_add_bf16(
    bf16* y,        // (elements), may be a or b
    const bf16* a,  // (elements)
    const bf16* b,  // (elements)
    long long elements) {
    residual_add<bf16>(y, a, b, elements);
}
