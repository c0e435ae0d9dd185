// y = x * rrms * (w + offset),  rrms = 1 / sqrt(mean(x^2) + eps),  offset 0, or 1 for Gemma
//
// Rows may stand in groups inside wider rows (the heads of a token inside its queries, keys and values): row r begins at
// (r / group) * pitch + (r % group) * hidden, with a pitch for x and one for y, dy and dx. group = 1 and pitches of
// hidden are a plain matrix.
// Forward reads x once and writes y; rrms is kept for the backward pass.
// Backward: with n = x * rrms and g = dy * (w + offset),  dx = rrms * (g - n * mean(g * n)),  dw = sum over rows of dy * n.
// y, dx: one warp takes rows_per_warp rows (1 to 8) and sums over all of them at once; a thread handles eight columns at a
// time. dw: every CTA of rmsnorm_bwd_weight sums a fixed slice of rows for 512 columns into `partials`;
// rmsnorm_bwd_weight_finish adds the slices in order. f32 accumulators; fixed order, no atomics. A row's result does not
// depend on rows_per_warp. Roof: memory.

#include <chunk.cuh>
#include <cta.cuh>
#include <types.cuh>

// ---- device code

constexpr int kRowThreads = 128;
constexpr int kColumnThreads = 64;
constexpr int kMaxRows = 8;  // of one warp
constexpr int kWarpElements = kWarpThreads * kChunk;

// Where rows stand.
struct Place {
    int group, x_pitch, y_pitch, hidden;
    __device__ __forceinline__ long long x(int row) const { return at(row, x_pitch); }
    __device__ __forceinline__ long long y(int row) const { return at(row, y_pitch); }
    __device__ __forceinline__ long long at(int row, int pitch) const {
        return (long long)(row / group) * pitch + row % group * hidden;
    }
};

// The rows of one warp: row r of it is first + r, for r < count.
struct Rows {
    int first, count;
};

__device__ __forceinline__ Rows rows_of_warp(int rows_per_warp, int rows) {
    const int warp = blockIdx.x * (kRowThreads / kWarpThreads) + threadIdx.x / kWarpThreads;
    return {warp * rows_per_warp, min(rows_per_warp, rows - warp * rows_per_warp)};
}

__device__ __forceinline__ void sum_rows(float (&sum)[kMaxRows], int rows_per_warp) {
    if (rows_per_warp == 1) {
        sum[0] = warp_sum(sum[0]);
    } else {
        warp_sum_each(sum);
    }
}

template <class T>
__device__ void rmsnorm_fwd(T* y, float* rrms, const T* x, const T* w, float eps, float offset, Place place,
                            int rows_per_warp, int rows) {
    const int hidden = place.hidden;
    const int lane = threadIdx.x % kWarpThreads;
    const Rows own = rows_of_warp(rows_per_warp, rows);
    if (own.count <= 0) return;
    float sum[kMaxRows] = {};
#pragma unroll
    for (int r = 0; r < kMaxRows; ++r) {
        if (r >= own.count) break;
        const T* from = x + place.x(own.first + r);
        for (int c = lane * kChunk; c < hidden; c += kWarpElements) {
            float v[kChunk];
            load_chunk(v, from + c, hidden - c);
#pragma unroll
            for (int i = 0; i < kChunk; ++i) sum[r] += v[i] * v[i];
        }
    }
    sum_rows(sum, rows_per_warp);
#pragma unroll
    for (int r = 0; r < kMaxRows; ++r) {
        if (r >= own.count) break;
        const float scale = 1.0f / sqrtf(sum[r] / hidden + eps);
        const T* from = x + place.x(own.first + r);
        T* to = y + place.y(own.first + r);
        for (int c = lane * kChunk; c < hidden; c += kWarpElements) {
            float v[kChunk], weight[kChunk];
            load_chunk(v, from + c, hidden - c);
            load_chunk(weight, w + c, hidden - c);
#pragma unroll
            for (int i = 0; i < kChunk; ++i) v[i] *= scale * (weight[i] + offset);
            store_chunk(to + c, v, hidden - c);
        }
        if (lane == 0) rrms[own.first + r] = scale;
    }
}

template <class T>
__device__ void rmsnorm_bwd(T* dx, const T* dy, const T* x, const T* w, const float* rrms, float offset,
                            int accumulate, Place place, int rows_per_warp, int rows) {
    const int hidden = place.hidden;
    const int lane = threadIdx.x % kWarpThreads;
    const Rows own = rows_of_warp(rows_per_warp, rows);
    if (own.count <= 0) return;
    float dot[kMaxRows] = {};
#pragma unroll
    for (int r = 0; r < kMaxRows; ++r) {
        if (r >= own.count) break;
        const T* from = x + place.x(own.first + r);
        const long long start = place.y(own.first + r);
        for (int c = lane * kChunk; c < hidden; c += kWarpElements) {
            float d[kChunk], v[kChunk], weight[kChunk];
            load_chunk(d, dy + start + c, hidden - c);
            load_chunk(v, from + c, hidden - c);
            load_chunk(weight, w + c, hidden - c);
#pragma unroll
            for (int i = 0; i < kChunk; ++i) dot[r] += d[i] * (weight[i] + offset) * v[i];
        }
    }
    sum_rows(dot, rows_per_warp);
#pragma unroll
    for (int r = 0; r < kMaxRows; ++r) {
        if (r >= own.count) break;
        const T* from = x + place.x(own.first + r);
        const long long start = place.y(own.first + r);
        const float scale = rrms[own.first + r], mean = dot[r] * scale / hidden;
        for (int c = lane * kChunk; c < hidden; c += kWarpElements) {
            float d[kChunk], v[kChunk], weight[kChunk], sum[kChunk] = {};
            load_chunk(d, dy + start + c, hidden - c);
            load_chunk(v, from + c, hidden - c);
            load_chunk(weight, w + c, hidden - c);
            if (accumulate) load_chunk(sum, dx + start + c, hidden - c);
#pragma unroll
            for (int i = 0; i < kChunk; ++i) sum[i] += scale * (d[i] * (weight[i] + offset) - v[i] * scale * mean);
            store_chunk(dx + start + c, sum, hidden - c);
        }
    }
}

template <class T>
__device__ void rmsnorm_bwd_weight(float* partials, const T* dy, const T* x, const float* rrms, Place place,
                                   int slice_rows, int rows) {
    const int hidden = place.hidden;
    const int c = (blockIdx.x * kColumnThreads + threadIdx.x) * kChunk;
    if (c >= hidden) return;
    const int first = blockIdx.y * slice_rows, last = min(first + slice_rows, rows);
    float sum[kChunk] = {};
    for (int row = first; row < last; ++row) {
        float d[kChunk], v[kChunk];
        load_chunk(d, dy + place.y(row) + c, hidden - c);
        load_chunk(v, x + place.x(row) + c, hidden - c);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sum[i] += d[i] * (v[i] * rrms[row]);
    }
    store_chunk(partials + (long long)blockIdx.y * hidden + c, sum, hidden - c);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kRowThreads) rmsnorm_fwd_f32(
    float* y,        // (rows, hidden)
    float* rrms,     // (rows), kept for the backward pass
    const float* x,  // (rows, hidden)
    const float* w,  // (hidden)
    float eps, float offset, int group, int x_pitch, int y_pitch, int rows_per_warp, int rows, int hidden) {
    rmsnorm_fwd<float>(y, rrms, x, w, eps, offset, {group, x_pitch, y_pitch, hidden}, rows_per_warp, rows);
}

extern "C" __global__ void __launch_bounds__(kRowThreads) rmsnorm_fwd_bf16(
    bf16* y,        // (rows, hidden)
    float* rrms,    // (rows), kept for the backward pass
    const bf16* x,  // (rows, hidden)
    const bf16* w,  // (hidden)
    float eps, float offset, int group, int x_pitch, int y_pitch, int rows_per_warp, int rows, int hidden) {
    rmsnorm_fwd<bf16>(y, rrms, x, w, eps, offset, {group, x_pitch, y_pitch, hidden}, rows_per_warp, rows);
}

extern "C" __global__ void __launch_bounds__(kRowThreads) rmsnorm_bwd_f32(
    float* dx,          // (rows, hidden), added to if accumulate
    const float* dy,    // (rows, hidden)
    const float* x,     // (rows, hidden)
    const float* w,     // (hidden)
    const float* rrms,  // (rows)
    float offset, int accumulate, int group, int x_pitch, int y_pitch, int rows_per_warp, int rows, int hidden) {
    rmsnorm_bwd<float>(dx, dy, x, w, rrms, offset, accumulate, {group, x_pitch, y_pitch, hidden}, rows_per_warp, rows);
}

extern "C" __global__ void __launch_bounds__(kRowThreads) rmsnorm_bwd_bf16(
    bf16* dx,           // (rows, hidden), added to if accumulate
    const bf16* dy,     // (rows, hidden)
    const bf16* x,      // (rows, hidden)
    const bf16* w,      // (hidden)
    const float* rrms,  // (rows)
    float offset, int accumulate, int group, int x_pitch, int y_pitch, int rows_per_warp, int rows, int hidden) {
    rmsnorm_bwd<bf16>(dx, dy, x, w, rrms, offset, accumulate, {group, x_pitch, y_pitch, hidden}, rows_per_warp, rows);
}

extern "C" __global__ void __launch_bounds__(kColumnThreads) rmsnorm_bwd_weight_f32(
    float* partials,    // (slices, hidden)
    const float* dy,    // (rows, hidden)
    const float* x,     // (rows, hidden)
    const float* rrms,  // (rows)
    int group, int x_pitch, int y_pitch, int slice_rows, int rows, int hidden) {
    rmsnorm_bwd_weight<float>(partials, dy, x, rrms, {group, x_pitch, y_pitch, hidden}, slice_rows, rows);
}

extern "C" __global__ void __launch_bounds__(kColumnThreads) rmsnorm_bwd_weight_bf16(
    float* partials,    // (slices, hidden)
    const bf16* dy,     // (rows, hidden)
    const bf16* x,      // (rows, hidden)
    const float* rrms,  // (rows)
    int group, int x_pitch, int y_pitch, int slice_rows, int rows, int hidden) {
    rmsnorm_bwd_weight<bf16>(partials, dy, x, rrms, {group, x_pitch, y_pitch, hidden}, slice_rows, rows);
}

extern "C" __global__ void __launch_bounds__(kColumnThreads) rmsnorm_bwd_weight_finish(
    float* dw,              // (hidden), added to
    const float* partials,  // (slices, hidden)
    int slices, int hidden) {
    const int c = (blockIdx.x * kColumnThreads + threadIdx.x) * kChunk;
    if (c >= hidden) return;
    float sum[kChunk] = {}, own[kChunk];
    for (int s = 0; s < slices; ++s) {
        load_chunk(own, partials + (long long)s * hidden + c, hidden - c);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sum[i] += own[i];
    }
    load_chunk(own, dw + c, hidden - c);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) own[i] += sum[i];
    store_chunk(dw + c, own, hidden - c);
}
