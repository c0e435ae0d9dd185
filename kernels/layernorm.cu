// y = n * w + b,  n = (x - mean(x)) * rstd,  rstd = 1 / sqrt(mean((x - mean(x))^2) + eps)
//
// Forward reads x three times (mean, variance around it, result; the later two from cache) and writes y; stats keeps
// mean and rstd for the backward pass. Backward: with g = dy * w,  dx = rstd * (g - mean(g) - n * mean(g * n)),
// dw = sum over rows of dy * n,  db = sum over rows of dy. y: one warp per row, eight columns a thread at a time.
// dx, dw, db: a CTA takes a slice of rows, first each row by a warp for its means, then eight columns by a thread, from cache:
// dx, and the slice's sums into `partials`, first dw, then db; layernorm_bwd_finish adds the slices. f32 accumulators; fixed
// order, no atomics. Roof: memory.

#include <chunk.cuh>
#include <cta.cuh>
#include <slice_sum.cuh>
#include <types.cuh>

// ---- device code

constexpr int kRowThreads = 128;
constexpr int kSliceThreads = 256;  // at most
constexpr int kWarpElements = kWarpThreads * kChunk;

__device__ __forceinline__ int row_of_warp() {
    return blockIdx.x * (kRowThreads / kWarpThreads) + threadIdx.x / kWarpThreads;
}

// Several chunks are loaded before the first is waited for, which a branch between them would prevent.
constexpr int kInFlight = 4;

// Calls visit(chunk, how many of its elements are in the row) for kCount of a thread's chunks of `row` from `c` on.
template <int kCount, bool kWhole, class T, class Visit>
__device__ __forceinline__ void visit_chunks(const T* row, int c, int hidden, Visit visit) {
    float v[kCount][kChunk];
#pragma unroll
    for (int j = 0; j < kCount; ++j) load_known<kWhole>(v[j], row + c + j * kWarpElements, hidden - c - j * kWarpElements);
#pragma unroll
    for (int j = 0; j < kCount; ++j) visit(v[j], hidden - c - j * kWarpElements);
}

template <bool kWhole, class T, class Visit>
__device__ __forceinline__ void for_each_chunk(const T* row, int hidden, Visit visit) {
    constexpr int kTogether = kInFlight * kWarpElements;
    int c = threadIdx.x % kWarpThreads * kChunk;
    for (; c + kTogether - kWarpElements < hidden; c += kTogether) visit_chunks<kInFlight, kWhole>(row, c, hidden, visit);
    for (; c < hidden; c += kWarpElements) visit_chunks<1, kWhole>(row, c, hidden, visit);
}

template <int kCount, bool kWhole, class T>
__device__ __forceinline__ void write_normalised(T* y, const T* x, const T* w, const T* b, float mean, float rstd, int c,
                                                 int hidden) {
    float v[kCount][kChunk], weight[kCount][kChunk], shift[kCount][kChunk];
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
        const int at = c + j * kWarpElements;
        load_known<kWhole>(v[j], x + at, hidden - at);
        load_known<kWhole>(weight[j], w + at, hidden - at);
        load_known<kWhole>(shift[j], b + at, hidden - at);
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
        const int at = c + j * kWarpElements;
#pragma unroll
        for (int i = 0; i < kChunk; ++i) v[j][i] = (v[j][i] - mean) * rstd * weight[j][i] + shift[j][i];
        store_known<kWhole>(y + at, v[j], hidden - at);
    }
}

template <class T, bool kWhole>
__device__ void layernorm_fwd_known(T* y, float* stats, const T* x, const T* w, const T* b, float eps, int rows,
                                    int hidden) {
    const int lane = threadIdx.x % kWarpThreads, row = row_of_warp();
    if (row >= rows) return;
    const long long start = (long long)row * hidden;
    float sum = 0.0f;
    for_each_chunk<kWhole>(x + start, hidden, [&](const float(&v)[kChunk], int) {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sum += v[i];
    });
    const float mean = warp_sum(sum) / hidden;
    float square = 0.0f;
    for_each_chunk<kWhole>(x + start, hidden, [&](const float(&v)[kChunk], int count) {
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            const float d = i < count ? v[i] - mean : 0.0f;
            square += d * d;
        }
    });
    const float rstd = 1.0f / sqrtf(warp_sum(square) / hidden + eps);
    constexpr int kTogether = 2 * kWarpElements;
    int c = lane * kChunk;
    for (; c + kTogether - kWarpElements < hidden; c += kTogether)
        write_normalised<2, kWhole>(y + start, x + start, w, b, mean, rstd, c, hidden);
    for (; c < hidden; c += kWarpElements)
        write_normalised<1, kWhole>(y + start, x + start, w, b, mean, rstd, c, hidden);
    if (lane == 0) {
        stats[2 * row] = mean;
        stats[2 * row + 1] = rstd;
    }
}

template <class T>
__device__ void layernorm_fwd(T* y, float* stats, const T* x, const T* w, const T* b, float eps, int rows,
                              int hidden) {
    if (hidden % kChunk == 0 && is_aligned(y) && is_aligned(x) && is_aligned(w) && is_aligned(b)) {
        layernorm_fwd_known<T, true>(y, stats, x, w, b, eps, rows, hidden);
    } else {
        layernorm_fwd_known<T, false>(y, stats, x, w, b, eps, rows, hidden);
    }
}

// The rows of one CTA of the backward pass: row r of it is first + r, for r < count.
struct Slice {
    int first, count;
    __device__ __forceinline__ Slice(int slice_rows, int rows)
        : first(blockIdx.x * slice_rows), count(min(slice_rows, rows - first)) {}
};

constexpr int kBackwardInFlight = 2;  // of three tensors

template <int kCount, bool kWhole, class T>
__device__ __forceinline__ void add_products(float (&sums)[2], const T* dy, const T* x, const T* w, float mean, int c,
                                             int hidden) {
    float d[kCount][kChunk], v[kCount][kChunk], weight[kCount][kChunk];
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
        const int at = c + j * kWarpElements;
        load_known<kWhole>(d[j], dy + at, hidden - at);
        load_known<kWhole>(v[j], x + at, hidden - at);
        load_known<kWhole>(weight[j], w + at, hidden - at);
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j)
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            // What lies beyond the row has no gradient.
            const float g = d[j][i] * weight[j][i];
            sums[0] += g;
            sums[1] += g * (v[j][i] - mean);
        }
}

// Leaves mean(g) and mean(g * n) of every row of the slice in shared memory.
template <bool kWhole, class T>
__device__ __forceinline__ void find_means(float* means, const T* dy, const T* x, const T* w, const float* stats,
                                           const Slice& slice, int hidden) {
    constexpr int kTogether = kBackwardInFlight * kWarpElements;
    const int lane = threadIdx.x % kWarpThreads;
    for (int row = threadIdx.x / kWarpThreads; row < slice.count; row += blockDim.x / kWarpThreads) {
        const long long start = (long long)(slice.first + row) * hidden;
        const float mean = stats[2 * (slice.first + row)], rstd = stats[2 * (slice.first + row) + 1];
        float sums[2] = {};
        int c = lane * kChunk;
        for (; c + kTogether - kWarpElements < hidden; c += kTogether)
            add_products<kBackwardInFlight, kWhole>(sums, dy + start, x + start, w, mean, c, hidden);
        for (; c < hidden; c += kWarpElements)
            add_products<1, kWhole>(sums, dy + start, x + start, w, mean, c, hidden);
        warp_sum_each(sums);
        if (lane == 0) {
            means[2 * row] = sums[0] / hidden;
            means[2 * row + 1] = sums[1] * rstd / hidden;
        }
    }
}

// What one CTA turns from dy into dx.
template <class T>
struct Backward {
    T* dx;
    const T *dy, *x;
    const float *stats, *means;
    int accumulate, hidden;
    Slice slice;
};

// Eight columns of kRows rows of the slice from `row` on.
template <int kRows, bool kWhole, class T>
__device__ __forceinline__ void finish_rows(float (&dw)[kChunk], float (&db)[kChunk], const float (&weight)[kChunk],
                                            const Backward<T>& of, int row, int c) {
    const int count = of.hidden - c;
    const long long first = of.slice.first + row, at = first * of.hidden + c;
    float d[kRows][kChunk], v[kRows][kChunk], total[kRows][kChunk] = {};
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
        load_known<kWhole>(d[j], of.dy + at + j * of.hidden, count);
        load_known<kWhole>(v[j], of.x + at + j * of.hidden, count);
    }
    if (of.accumulate) {
#pragma unroll
        for (int j = 0; j < kRows; ++j) load_known<kWhole>(total[j], of.dx + at + j * of.hidden, count);
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
        const float mean = of.stats[2 * (first + j)], rstd = of.stats[2 * (first + j) + 1];
        const float mean_g = of.means[2 * (row + j)], mean_gn = of.means[2 * (row + j) + 1];
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            const float n = (v[j][i] - mean) * rstd;
            dw[i] += d[j][i] * n;
            db[i] += d[j][i];
            total[j][i] += rstd * (d[j][i] * weight[i] - mean_g - n * mean_gn);
        }
        store_known<kWhole>(of.dx + at + j * of.hidden, total[j], count);
    }
}

// Eight columns of the slice: dx, and what the rows add to dw and db.
template <bool kWhole, class T>
__device__ __forceinline__ void finish_columns(float* partial, const T* w, const Backward<T>& of, int c) {
    const int count = of.hidden - c;
    float weight[kChunk], dw[kChunk] = {}, db[kChunk] = {};
    load_known<kWhole>(weight, w + c, count);
    int row = 0;
    for (; row + kBackwardInFlight <= of.slice.count; row += kBackwardInFlight)
        finish_rows<kBackwardInFlight, kWhole>(dw, db, weight, of, row, c);
    for (; row < of.slice.count; ++row) finish_rows<1, kWhole>(dw, db, weight, of, row, c);
    store_known<kWhole>(partial + c, dw, count);
    store_known<kWhole>(partial + of.hidden + c, db, count);
}

template <class T, bool kWhole>
__device__ void layernorm_bwd_known(T* dx, float* partials, const T* dy, const T* x, const T* w, const float* stats,
                                    int accumulate, int slice_rows, int rows, int hidden) {
    float* means = shared_memory<float>();
    const Slice slice(slice_rows, rows);
    find_means<kWhole>(means, dy, x, w, stats, slice, hidden);
    __syncthreads();
    float* partial = partials + 2 * (long long)blockIdx.x * hidden;
    const Backward<T> of{dx, dy, x, stats, means, accumulate, hidden, slice};
    for (int c = threadIdx.x * kChunk; c < hidden; c += blockDim.x * kChunk) finish_columns<kWhole>(partial, w, of, c);
}

template <class T>
__device__ void layernorm_bwd(T* dx, float* partials, const T* dy, const T* x, const T* w, const float* stats,
                              int accumulate, int slice_rows, int rows, int hidden) {
    const bool aligned = is_aligned(dx) && is_aligned(partials) && is_aligned(dy) && is_aligned(x) && is_aligned(w);
    if (hidden % kChunk == 0 && aligned) {
        layernorm_bwd_known<T, true>(dx, partials, dy, x, w, stats, accumulate, slice_rows, rows, hidden);
    } else {
        layernorm_bwd_known<T, false>(dx, partials, dy, x, w, stats, accumulate, slice_rows, rows, hidden);
    }
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kRowThreads) layernorm_fwd_f32(
    float* y,        // (rows, hidden)
    float* stats,  // (rows, 2) mean and rstd, kept for the backward pass
    const float* x,  // (rows, hidden)
    const float* w,  // (hidden)
    const float* b,  // (hidden)
    float eps, int rows, int hidden) {
    layernorm_fwd<float>(y, stats, x, w, b, eps, rows, hidden);
}

extern "C" __global__ void __launch_bounds__(kRowThreads) layernorm_fwd_bf16(
    bf16* y,        // (rows, hidden)
    float* stats, // (rows, 2) mean and rstd, kept for the backward pass
    const bf16* x,  // (rows, hidden)
    const bf16* w,  // (hidden)
    const bf16* b,  // (hidden)
    float eps, int rows, int hidden) {
    layernorm_fwd<bf16>(y, stats, x, w, b, eps, rows, hidden);
}

extern "C" __global__ void __launch_bounds__(kSliceThreads, 2) layernorm_bwd_f32(
    float* dx,          // (rows, hidden), added to if accumulate
    float* partials,     // (slices, 2, hidden)
    const float* dy,    // (rows, hidden)
    const float* x,     // (rows, hidden)
    const float* w,     // (hidden)
    const float* stats,  // (rows, 2)
    int accumulate, int slice_rows, int rows, int hidden) {
    layernorm_bwd<float>(dx, partials, dy, x, w, stats, accumulate, slice_rows, rows, hidden);
}

extern "C" __global__ void __launch_bounds__(kSliceThreads, 2) layernorm_bwd_bf16(
    bf16* dx,           // (rows, hidden), added to if accumulate
    float* partials,     // (slices, 2, hidden)
    const bf16* dy,     // (rows, hidden)
    const bf16* x,      // (rows, hidden)
    const bf16* w,      // (hidden)
    const float* stats,  // (rows, 2)
    int accumulate, int slice_rows, int rows, int hidden) {
    layernorm_bwd<bf16>(dx, partials, dy, x, w, stats, accumulate, slice_rows, rows, hidden);
}

extern "C" __global__ void __launch_bounds__(kFinishThreads) layernorm_bwd_finish(
    float* dw,              // (hidden), added to
    float* db,              // (hidden), added to
    const float* partials,  // (slices, 2, hidden)
    int slices, int hidden) {
    const int part = blockIdx.y;
    add_slices(part == 0 ? dw : db, partials + part * hidden, 2 * (long long)hidden, slices, hidden);
}
