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

// Elements of sixteen bytes.
template <class G>
constexpr int kVector = 16 / (int)sizeof(G);

__device__ __forceinline__ double squares(const Pack16& pack, const float*) {
    double sum = 0.0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const double g = __uint_as_float(pack.word[k]);
        sum += g * g;
    }
    return sum;
}

__device__ __forceinline__ double squares(const Pack16& pack, const bf16*) {
    double sum = 0.0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        const double low = __uint_as_float(pack.word[k] << 16), high = __uint_as_float(pack.word[k] & 0xffff0000u);
        sum += low * low;
        sum += high * high;
    }
    return sum;
}

// Sixteen bytes of elements from `i` on, those past `end` left out.
template <class G>
__device__ __forceinline__ double square_sum(const G* grads, long long i, long long end) {
    if (i + kVector<G> <= end && ((unsigned long long)(grads + i) & 15) == 0) {
        return squares(load16(grads + i), grads);
    }
    double sum = 0.0;
    for (long long k = i; k < min(i + kVector<G>, end); ++k) sum += (double)to_f32(grads[k]) * to_f32(grads[k]);
    return sum;
}

template <class G>
__device__ void grad_norm_partials(double* partials, const G* grads, int slice_elements, int slices, long long elements) {
    const int lane = threadIdx.x % kWarpThreads;
    const int slice = blockIdx.x * (kSliceThreads / kWarpThreads) + threadIdx.x / kWarpThreads;
    if (slice >= slices) return;
    const long long first = (long long)slice * slice_elements, end = min(first + slice_elements, elements);
    double sum = 0.0;
    for (long long i = first + lane * kVector<G>; i < end; i += kWarpThreads * kVector<G>) sum += square_sum(grads, i, end);
    sum = warp_sum(sum);
    if (lane == 0) partials[slice] = sum;
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kSliceThreads) grad_norm_partials_f32(
    double* partials,    // (slices)
    const float* grads,  // (elements)
    int slice_elements, int slices, long long elements) {
    grad_norm_partials<float>(partials, grads, slice_elements, slices, elements);
}

extern "C" __global__ void __launch_bounds__(kSliceThreads) grad_norm_partials_bf16(
    double* partials,   // (slices)
    const bf16* grads,  // (elements)
    int slice_elements, int slices, long long elements) {
    grad_norm_partials<bf16>(partials, grads, slice_elements, slices, elements);
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
