// y = n * w + b,  n = (x - mean(x)) * rstd,  rstd = 1 / sqrt(mean((x - mean(x))^2) + eps)
//
// Forward reads x three times (mean, variance around it, result; the later two from cache) and writes y; stats keeps
// mean and rstd for the backward pass. Backward: with g = dy * w,  dx = rstd * (g - mean(g) - n * mean(g * n)),
// dw = sum over rows of dy * n,  db = sum over rows of dy. y, dx: one warp per row, eight columns a thread at a time.
// dw, db: every CTA of layernorm_bwd_weight sums a fixed slice of rows for 512 columns into `partials`, first all of dw,
// then all of db; layernorm_bwd_weight_finish adds the slices in order. f32 accumulators; fixed order, no atomics.
// Roof: memory.

#include <chunk.cuh>
#include <cta.cuh>
#include <types.cuh>

// ---- device code

constexpr int kRowThreads = 128;
constexpr int kColumnThreads = 64;
constexpr int kWarpElements = kWarpThreads * kChunk;

__device__ __forceinline__ int row_of_warp() {
    return blockIdx.x * (kRowThreads / kWarpThreads) + threadIdx.x / kWarpThreads;
}

template <class T>
__device__ void layernorm_fwd(T* y, float* stats, const T* x, const T* w, const T* b, float eps, int rows,
                              int hidden) {
    const int lane = threadIdx.x % kWarpThreads, row = row_of_warp();
    if (row >= rows) return;
    const long long start = (long long)row * hidden;
    float v[kChunk], sum = 0.0f;
    for (int c = lane * kChunk; c < hidden; c += kWarpElements) {
        load_chunk(v, x + start + c, hidden - c);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sum += v[i];
    }
    const float mean = warp_sum(sum) / hidden;
    float square = 0.0f;
    for (int c = lane * kChunk; c < hidden; c += kWarpElements) {
        load_chunk(v, x + start + c, hidden - c);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            const float d = c + i < hidden ? v[i] - mean : 0.0f;
            square += d * d;
        }
    }
    const float rstd = 1.0f / sqrtf(warp_sum(square) / hidden + eps);
    for (int c = lane * kChunk; c < hidden; c += kWarpElements) {
        float weight[kChunk], shift[kChunk];
        load_chunk(v, x + start + c, hidden - c);
        load_chunk(weight, w + c, hidden - c);
        load_chunk(shift, b + c, hidden - c);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) v[i] = (v[i] - mean) * rstd * weight[i] + shift[i];
        store_chunk(y + start + c, v, hidden - c);
    }
    if (lane == 0) {
        stats[2 * row] = mean;
        stats[2 * row + 1] = rstd;
    }
}

template <class T>
__device__ void layernorm_bwd(T* dx, const T* dy, const T* x, const T* w, const float* stats, int accumulate,
                              int rows, int hidden) {
    const int lane = threadIdx.x % kWarpThreads, row = row_of_warp();
    if (row >= rows) return;
    const long long start = (long long)row * hidden;
    const float mean = stats[2 * row], rstd = stats[2 * row + 1];
    float d[kChunk], v[kChunk], weight[kChunk], sum = 0.0f, dot = 0.0f;
    for (int c = lane * kChunk; c < hidden; c += kWarpElements) {
        load_chunk(d, dy + start + c, hidden - c);
        load_chunk(v, x + start + c, hidden - c);
        load_chunk(weight, w + c, hidden - c);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            const float g = d[i] * weight[i];
            sum += g;
            dot += g * (v[i] - mean);
        }
    }
    const float mean_g = warp_sum(sum) / hidden, mean_gn = warp_sum(dot) * rstd / hidden;
    for (int c = lane * kChunk; c < hidden; c += kWarpElements) {
        float total[kChunk] = {};
        load_chunk(d, dy + start + c, hidden - c);
        load_chunk(v, x + start + c, hidden - c);
        load_chunk(weight, w + c, hidden - c);
        if (accumulate) load_chunk(total, dx + start + c, hidden - c);
#pragma unroll
        for (int i = 0; i < kChunk; ++i)
            total[i] += rstd * (d[i] * weight[i] - mean_g - (v[i] - mean) * rstd * mean_gn);
        store_chunk(dx + start + c, total, hidden - c);
    }
}

template <class T>
__device__ void layernorm_bwd_weight(float* partials, const T* dy, const T* x, const float* stats, int slice_rows,
                                     int rows, int hidden) {
    const int c = (blockIdx.x * kColumnThreads + threadIdx.x) * kChunk;
    if (c >= hidden) return;
    const int first = blockIdx.y * slice_rows, last = min(first + slice_rows, rows);
    float dw[kChunk] = {}, db[kChunk] = {};
    for (int row = first; row < last; ++row) {
        const long long at = (long long)row * hidden + c;
        const float mean = stats[2 * row], rstd = stats[2 * row + 1];
        float d[kChunk], v[kChunk];
        load_chunk(d, dy + at, hidden - c);
        load_chunk(v, x + at, hidden - c);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            dw[i] += d[i] * ((v[i] - mean) * rstd);
            db[i] += d[i];
        }
    }
    float* to = partials + 2 * (long long)blockIdx.y * hidden + c;
    store_chunk(to, dw, hidden - c);
    store_chunk(to + hidden, db, hidden - c);
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

extern "C" __global__ void __launch_bounds__(kColumnThreads) layernorm_bwd_weight_finish(
    float* dw,              // (hidden), added to
    float* db,              // (hidden), added to
    const float* partials,  // (slices, 2, hidden)
    int slices, int hidden) {
    const int c = (blockIdx.x * kColumnThreads + threadIdx.x) * kChunk;
    if (c >= hidden) return;
    for (int part = 0; part < 2; ++part) {
        float sum[kChunk] = {}, own[kChunk];
        for (int s = 0; s < slices; ++s) {
            load_chunk(own, partials + (2 * (long long)s + part) * hidden + c, hidden - c);
#pragma unroll
            for (int i = 0; i < kChunk; ++i) sum[i] += own[i];
        }
        float* to = (part == 0 ? dw : db) + c;
        load_chunk(own, to, hidden - c);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) own[i] += sum[i];
        store_chunk(to, own, hidden - c);
    }
}
