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

// Chunks of a row that a thread has on their way at once.
constexpr int kInFlight = 4;

// Calls f(chunk, how many of its elements are in the row) for a thread's chunks of `row`, several loaded before the first.
template <bool kWhole, class T, class Visit>
__device__ __forceinline__ void for_each_chunk(const T* row, int hidden, Visit visit) {
    for (int first = threadIdx.x % kWarpThreads * kChunk; first < hidden; first += kInFlight * kWarpElements) {
        float v[kInFlight][kChunk] = {};
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
            const int c = first + j * kWarpElements;
            if (c < hidden) load_known<kWhole>(v[j], row + c, hidden - c);
        }
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) visit(v[j], hidden - first - j * kWarpElements);
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
    for (int c = lane * kChunk; c < hidden; c += kWarpElements) {
        float v[kChunk], weight[kChunk], shift[kChunk];
        load_known<kWhole>(v, x + start + c, hidden - c);
        load_known<kWhole>(weight, w + c, hidden - c);
        load_known<kWhole>(shift, b + c, hidden - c);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) v[i] = (v[i] - mean) * rstd * weight[i] + shift[i];
        store_known<kWhole>(y + start + c, v, hidden - c);
    }
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

// Leaves mean(g) and mean(g * n) of every row of the slice in shared memory.
template <bool kWhole, class T>
__device__ __forceinline__ void find_means(float* means, const T* dy, const T* x, const T* w, const float* stats,
                                           const Slice& slice, int hidden) {
    constexpr int kInFlight = 2;  // of three tensors
    const int lane = threadIdx.x % kWarpThreads;
    for (int row = threadIdx.x / kWarpThreads; row < slice.count; row += blockDim.x / kWarpThreads) {
        const long long start = (long long)(slice.first + row) * hidden;
        const float mean = stats[2 * (slice.first + row)], rstd = stats[2 * (slice.first + row) + 1];
        float sum = 0.0f, dot = 0.0f;
        for (int first = lane * kChunk; first < hidden; first += kInFlight * kWarpElements) {
            float d[kInFlight][kChunk] = {}, v[kInFlight][kChunk] = {}, weight[kInFlight][kChunk] = {};
#pragma unroll
            for (int j = 0; j < kInFlight; ++j) {
                const int c = first + j * kWarpElements;
                if (c >= hidden) continue;
                load_known<kWhole>(d[j], dy + start + c, hidden - c);
                load_known<kWhole>(v[j], x + start + c, hidden - c);
                load_known<kWhole>(weight[j], w + c, hidden - c);
            }
#pragma unroll
            for (int j = 0; j < kInFlight; ++j)
#pragma unroll
                for (int i = 0; i < kChunk; ++i) {
                    // What lies beyond the row has no gradient.
                    const float g = d[j][i] * weight[j][i];
                    sum += g;
                    dot += g * (v[j][i] - mean);
                }
        }
        float both[2] = {sum, dot};
        warp_sum_each(both);
        if (lane == 0) {
            means[2 * row] = both[0] / hidden;
            means[2 * row + 1] = both[1] * rstd / hidden;
        }
    }
}

// Eight columns of the slice: dx, and what the rows add to dw and db.
template <bool kWhole, class T>
__device__ __forceinline__ void finish_columns(T* dx, float* partial, const float* means, const T* dy, const T* x,
                                               const T* w, const float* stats, int accumulate, const Slice& slice,
                                               int hidden, int c) {
    constexpr int kInFlight = 2;  // rows of three tensors
    const int count = hidden - c;
    float weight[kChunk], dw[kChunk] = {}, db[kChunk] = {};
    load_known<kWhole>(weight, w + c, count);
    for (int row = 0; row < slice.count; row += kInFlight) {
        float d[kInFlight][kChunk], v[kInFlight][kChunk], total[kInFlight][kChunk] = {};
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
            if (row + j >= slice.count) continue;
            const long long at = (long long)(slice.first + row + j) * hidden + c;
            load_known<kWhole>(d[j], dy + at, count);
            load_known<kWhole>(v[j], x + at, count);
            if (accumulate) load_known<kWhole>(total[j], dx + at, count);
        }
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
            if (row + j >= slice.count) continue;
            const long long at = slice.first + row + j;
            const float mean = stats[2 * at], rstd = stats[2 * at + 1];
            const float mean_g = means[2 * (row + j)], mean_gn = means[2 * (row + j) + 1];
#pragma unroll
            for (int i = 0; i < kChunk; ++i) {
                const float n = (v[j][i] - mean) * rstd;
                dw[i] += d[j][i] * n;
                db[i] += d[j][i];
                total[j][i] += rstd * (d[j][i] * weight[i] - mean_g - n * mean_gn);
            }
            store_known<kWhole>(dx + at * hidden + c, total[j], count);
        }
    }
    store_known<kWhole>(partial + c, dw, count);
    store_known<kWhole>(partial + hidden + c, db, count);
}

template <class T, bool kWhole>
__device__ void layernorm_bwd_known(T* dx, float* partials, const T* dy, const T* x, const T* w, const float* stats,
                                    int accumulate, int slice_rows, int rows, int hidden) {
    float* means = shared_memory<float>();
    const Slice slice(slice_rows, rows);
    find_means<kWhole>(means, dy, x, w, stats, slice, hidden);
    __syncthreads();
    float* partial = partials + 2 * (long long)blockIdx.x * hidden;
    for (int c = threadIdx.x * kChunk; c < hidden; c += blockDim.x * kChunk)
        finish_columns<kWhole>(dx, partial, means, dy, x, w, stats, accumulate, slice, hidden, c);
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

extern "C" __global__ void __launch_bounds__(kSliceThreads) layernorm_bwd_f32(
    float* dx,          // (rows, hidden), added to if accumulate
    float* partials,     // (slices, 2, hidden)
    const float* dy,    // (rows, hidden)
    const float* x,     // (rows, hidden)
    const float* w,     // (hidden)
    const float* stats,  // (rows, 2)
    int accumulate, int slice_rows, int rows, int hidden) {
    layernorm_bwd<float>(dx, partials, dy, x, w, stats, accumulate, slice_rows, rows, hidden);
}

extern "C" __global__ void __launch_bounds__(kSliceThreads) layernorm_bwd_bf16(
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
