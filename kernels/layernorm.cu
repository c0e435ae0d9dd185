// y = n * w + b,  n = (x - mean(x)) * rstd,  rstd = 1 / sqrt(mean((x - mean(x))^2) + eps)
//
// Forward reads x three times (mean, variance around it, result; the later two from cache) and writes y; stats keeps
// mean and rstd for the backward pass. Backward: with g = dy * w,  dx = rstd * (g - mean(g) - n * mean(g * n)),
// dw = sum over rows of dy * n,  db = sum over rows of dy. y, dx: one warp per row, eight columns a thread at a time.
// dw, db: every CTA of layernorm_bwd_weight sums a fixed slice of rows for 512 columns into `partials`, first all of dw,
// then all of db; layernorm_bwd_weight_finish adds the slices. f32 accumulators; fixed order, no atomics.
// Roof: memory.

#include <chunk.cuh>
#include <cta.cuh>
#include <slice_sum.cuh>
#include <types.cuh>

// ---- device code

constexpr int kRowThreads = 128;
constexpr int kColumnThreads = 64;
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

template <class T, bool kWhole>
__device__ void layernorm_bwd_known(T* dx, const T* dy, const T* x, const T* w, const float* stats, int accumulate,
                                    int rows, int hidden) {
    constexpr int kInFlight = 2;  // of three or four rows
    const int lane = threadIdx.x % kWarpThreads, row = row_of_warp();
    if (row >= rows) return;
    const long long start = (long long)row * hidden;
    const float mean = stats[2 * row], rstd = stats[2 * row + 1];
    float d[kInFlight][kChunk], v[kInFlight][kChunk], weight[kInFlight][kChunk], sum = 0.0f, dot = 0.0f;
    for (int first = lane * kChunk; first < hidden; first += kInFlight * kWarpElements) {
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
            const int c = first + j * kWarpElements;
            if (c >= hidden) continue;
            load_known<kWhole>(d[j], dy + start + c, hidden - c);
            load_known<kWhole>(v[j], x + start + c, hidden - c);
            load_known<kWhole>(weight[j], w + c, hidden - c);
        }
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
            if (first + j * kWarpElements >= hidden) continue;
#pragma unroll
            for (int i = 0; i < kChunk; ++i) {
                const float g = d[j][i] * weight[j][i];
                sum += g;
                dot += g * (v[j][i] - mean);
            }
        }
    }
    const float mean_g = warp_sum(sum) / hidden, mean_gn = warp_sum(dot) * rstd / hidden;
    for (int first = lane * kChunk; first < hidden; first += kInFlight * kWarpElements) {
        float total[kInFlight][kChunk] = {};
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
            const int c = first + j * kWarpElements;
            if (c >= hidden) continue;
            load_known<kWhole>(d[j], dy + start + c, hidden - c);
            load_known<kWhole>(v[j], x + start + c, hidden - c);
            load_known<kWhole>(weight[j], w + c, hidden - c);
            if (accumulate) load_known<kWhole>(total[j], dx + start + c, hidden - c);
        }
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) {
            const int c = first + j * kWarpElements;
            if (c >= hidden) continue;
#pragma unroll
            for (int i = 0; i < kChunk; ++i)
                total[j][i] += rstd * (d[j][i] * weight[j][i] - mean_g - (v[j][i] - mean) * rstd * mean_gn);
            store_known<kWhole>(dx + start + c, total[j], hidden - c);
        }
    }
}

template <class T>
__device__ void layernorm_bwd(T* dx, const T* dy, const T* x, const T* w, const float* stats, int accumulate,
                              int rows, int hidden) {
    if (hidden % kChunk == 0 && is_aligned(dx) && is_aligned(dy) && is_aligned(x) && is_aligned(w)) {
        layernorm_bwd_known<T, true>(dx, dy, x, w, stats, accumulate, rows, hidden);
    } else {
        layernorm_bwd_known<T, false>(dx, dy, x, w, stats, accumulate, rows, hidden);
    }
}

template <class T, bool kWhole>
__device__ void layernorm_bwd_weight_known(float* partials, const T* dy, const T* x, const float* stats,
                                           int slice_rows, int rows, int hidden) {
    const int c = (blockIdx.x * kColumnThreads + threadIdx.x) * kChunk;
    if (c >= hidden) return;
    const int first = blockIdx.y * slice_rows, last = min(first + slice_rows, rows);
    float dw[kChunk] = {}, db[kChunk] = {};
    for (int row = first; row < last; row += kSliceInFlight) {
        float d[kSliceInFlight][kChunk] = {}, v[kSliceInFlight][kChunk] = {};
        float mean[kSliceInFlight] = {}, rstd[kSliceInFlight] = {};
#pragma unroll
        for (int j = 0; j < kSliceInFlight; ++j) {
            if (row + j >= last) continue;
            const long long at = (long long)(row + j) * hidden + c;
            load_known<kWhole>(d[j], dy + at, hidden - c);
            load_known<kWhole>(v[j], x + at, hidden - c);
            mean[j] = stats[2 * (row + j)];
            rstd[j] = stats[2 * (row + j) + 1];
        }
#pragma unroll
        for (int j = 0; j < kSliceInFlight; ++j)
#pragma unroll
            for (int i = 0; i < kChunk; ++i) {
                dw[i] += d[j][i] * ((v[j][i] - mean[j]) * rstd[j]);
                db[i] += d[j][i];
            }
    }
    float* to = partials + 2 * (long long)blockIdx.y * hidden + c;
    store_known<kWhole>(to, dw, hidden - c);
    store_known<kWhole>(to + hidden, db, hidden - c);
}

template <class T>
__device__ void layernorm_bwd_weight(float* partials, const T* dy, const T* x, const float* stats, int slice_rows,
                                     int rows, int hidden) {
    if (hidden % kChunk == 0 && is_aligned(partials) && is_aligned(dy) && is_aligned(x)) {
        layernorm_bwd_weight_known<T, true>(partials, dy, x, stats, slice_rows, rows, hidden);
    } else {
        layernorm_bwd_weight_known<T, false>(partials, dy, x, stats, slice_rows, rows, hidden);
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

extern "C" __global__ void __launch_bounds__(kRowThreads) layernorm_bwd_f32(
    float* dx,          // (rows, hidden), added to if accumulate
    const float* dy,    // (rows, hidden)
    const float* x,     // (rows, hidden)
    const float* w,     // (hidden)
    const float* stats,  // (rows, 2)
    int accumulate, int rows, int hidden) {
    layernorm_bwd<float>(dx, dy, x, w, stats, accumulate, rows, hidden);
}

extern "C" __global__ void __launch_bounds__(kRowThreads) layernorm_bwd_bf16(
    bf16* dx,           // (rows, hidden), added to if accumulate
    const bf16* dy,     // (rows, hidden)
    const bf16* x,      // (rows, hidden)
    const bf16* w,      // (hidden)
    const float* stats,  // (rows, 2)
    int accumulate, int rows, int hidden) {
    layernorm_bwd<bf16>(dx, dy, x, w, stats, accumulate, rows, hidden);
}

extern "C" __global__ void __launch_bounds__(kColumnThreads) layernorm_bwd_weight_f32(
    float* partials,     // (slices, 2, hidden)
    const float* dy,    // (rows, hidden)
    const float* x,     // (rows, hidden)
    const float* stats,  // (rows, 2)
    int slice_rows, int rows, int hidden) {
    layernorm_bwd_weight<float>(partials, dy, x, stats, slice_rows, rows, hidden);
}

extern "C" __global__ void __launch_bounds__(kColumnThreads) layernorm_bwd_weight_bf16(
    float* partials,     // (slices, 2, hidden)
    const bf16* dy,     // (rows, hidden)
    const bf16* x,      // (rows, hidden)
    const float* stats,  // (rows, 2)
    int slice_rows, int rows, int hidden) {
    layernorm_bwd_weight<bf16>(partials, dy, x, stats, slice_rows, rows, hidden);
}

extern "C" __global__ void __launch_bounds__(kFinishThreads) layernorm_bwd_weight_finish(
    float* dw,              // (hidden), added to
    float* db,              // (hidden), added to
    const float* partials,  // (slices, 2, hidden)
    int slices, int hidden) {
    const int part = blockIdx.y;
    add_slices(part == 0 ? dw : db, partials + part * hidden, 2 * (long long)hidden, slices, hidden);
}
