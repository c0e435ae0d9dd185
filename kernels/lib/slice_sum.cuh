// Sums over rows that were cut into slices: what the CTAs left in `partials` (slices, columns) is added up. Rows and slices
// are added in an order that depends on neither the device nor the launch.
#pragma once
#include <chunk.cuh>
#include <cta.cuh>

constexpr int kSliceInFlight = 4;  // rows whose loads are on their way at once
constexpr int kFinishThreads = 256;
constexpr int kFinishColumns = 64;
constexpr int kFinishLanes = kFinishColumns / kChunk;
constexpr int kFinishGroups = kFinishThreads / kFinishLanes;
// A group's sums in shared memory: first halves of all chunks, a gap, second halves; neither side meets a bank twice.
constexpr int kFinishSecondHalf = 48;
constexpr int kFinishPitch = kFinishSecondHalf + kFinishColumns / 2;

// sum += kRows rows, `pitch` apart. All loads are issued before the first is waited for, which a branch between them would
// prevent.
template <int kRows, bool kWhole, class T>
__device__ __forceinline__ void add_rows(float (&sum)[kChunk], const T* from, long long pitch, int count) {
    float x[kRows][kChunk];
#pragma unroll
    for (int j = 0; j < kRows; ++j) load_known<kWhole>(x[j], from + j * pitch, count);
#pragma unroll
    for (int j = 0; j < kRows; ++j)
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sum[i] += x[j][i];
}

// to[c] += the sum over slices of partials[slice * pitch + c], for 64 columns a CTA: each of 32 groups of threads adds every
// 32nd slice, then the groups are added in order. Shared memory: 32 x 80 floats.
template <bool kWhole>
__device__ void add_slices_known(float* to, const float* partials, long long pitch, int slices, int columns) {
    float* sums = shared_memory<float>();
    const int group = threadIdx.x / kFinishLanes, lane = threadIdx.x % kFinishLanes;
    const int c = blockIdx.x * kFinishColumns + lane * kChunk;
    float sum[kChunk] = {};
    if (c < columns) {
        const long long step = kFinishGroups * pitch;
        int s = group;
        for (; s + (kSliceInFlight - 1) * kFinishGroups < slices; s += kSliceInFlight * kFinishGroups)
            add_rows<kSliceInFlight, kWhole>(sum, partials + s * pitch + c, step, columns - c);
        for (; s < slices; s += kFinishGroups) add_rows<1, kWhole>(sum, partials + s * pitch + c, step, columns - c);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Pack16 pack;
#pragma unroll
        for (int i = 0; i < 4; ++i) pack.word[i] = __float_as_uint(sum[4 * half + i]);
        store16(sums + group * kFinishPitch + half * kFinishSecondHalf + lane * 4, pack);
    }
    __syncthreads();
    const int column = blockIdx.x * kFinishColumns + threadIdx.x;
    if (threadIdx.x < kFinishColumns && column < columns) {
        const int chunk = threadIdx.x / kChunk, half = threadIdx.x % kChunk / 4;
        const float* own = sums + half * kFinishSecondHalf + chunk * 4 + threadIdx.x % 4;
        float total = 0.0f;
        for (int g = 0; g < kFinishGroups; ++g) total += own[g * kFinishPitch];
        to[column] += total;
    }
}

__device__ __forceinline__ void add_slices(float* to, const float* partials, long long pitch, int slices, int columns) {
    if (columns % kChunk == 0 && pitch % kChunk == 0 && is_aligned(partials)) {
        add_slices_known<true>(to, partials, pitch, slices, columns);
    } else {
        add_slices_known<false>(to, partials, pitch, slices, columns);
    }
}
