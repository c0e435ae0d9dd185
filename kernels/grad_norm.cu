// norm = sqrt(sum of g^2) over the gradient arena, and what follows from it: the clip factor
// min(1, max_norm / (norm + 1e-6)) as PyTorch takes it, and whether the norm is finite.
// grad_norm_partials: one warp per slice of slice_elements elements; squares of f32 are exact in f64 and cannot overflow
// there, so the sum is infinite or NaN only if an element is. grad_norm_finish: one CTA adds the slices. The slices and
// the order of additions depend on the number of elements alone. Reads the gradients once. Roof: memory.

#include <cta.cuh>
#include <ldst.cuh>
#include <types.cuh>

// ---- device code

constexpr int kSliceThreads = 128;
constexpr int kFinishThreads = 256;
constexpr int kVector = 4;

// Four elements from `i` on, those past `end` left out.
__device__ __forceinline__ double square_sum(const float* grads, long long i, long long end) {
    double sum = 0.0;
    if (i + kVector <= end && ((unsigned long long)(grads + i) & 15) == 0) {
        const Pack16 pack = load16(grads + i);
#pragma unroll
        for (int k = 0; k < kVector; ++k) {
            const double g = __uint_as_float(pack.word[k]);
            sum += g * g;
        }
    } else {
        for (long long k = i; k < min(i + kVector, end); ++k) sum += (double)grads[k] * grads[k];
    }
    return sum;
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kSliceThreads) grad_norm_partials(
    double* partials,    // (slices)
    const float* grads,  // (elements)
    int slice_elements, int slices, long long elements) {
    const int lane = threadIdx.x % kWarpThreads;
    const int slice = blockIdx.x * (kSliceThreads / kWarpThreads) + threadIdx.x / kWarpThreads;
    if (slice >= slices) return;
    const long long first = (long long)slice * slice_elements, end = min(first + slice_elements, elements);
    double sum = 0.0;
    for (long long i = first + lane * kVector; i < end; i += kWarpThreads * kVector) sum += square_sum(grads, i, end);
    sum = warp_sum(sum);
    if (lane == 0) partials[slice] = sum;
}

extern "C" __global__ void __launch_bounds__(kFinishThreads) grad_norm_finish(
    float* stats,            // (3) norm, clip factor, 1 if finite
    const double* partials,  // (slices)
    float max_norm,          // 0 or less: no clipping
    int slices) {
    double* warp_sums = shared_memory<double>();
    double sum = 0.0;
    for (int s = threadIdx.x; s < slices; s += kFinishThreads) sum += partials[s];
    sum = warp_sum(sum);
    if (threadIdx.x % kWarpThreads == 0) warp_sums[threadIdx.x / kWarpThreads] = sum;
    __syncthreads();
    if (threadIdx.x != 0) return;
    double total = 0.0;
    for (int w = 0; w < kFinishThreads / kWarpThreads; ++w) total += warp_sums[w];
    const float norm = (float)sqrt(total);
    stats[0] = norm;
    stats[1] = max_norm > 0.0f ? fminf(1.0f, max_norm / (norm + 1e-6f)) : 1.0f;
    // False for NaN too.
    stats[2] = norm <= 3.402823466e38f ? 1.0f : 0.0f;
}
