// y = x * rrms * (w + offset),  rrms = 1 / sqrt(mean(x^2) + eps),  offset 0, or 1 for Gemma
//
// Rows may stand in groups inside wider rows (the heads of a token inside its queries, keys and values): row r begins at
// (r / group) * pitch + (r % group) * hidden, with a pitch for x and one for y, dy and dx. group = 1 and pitches of
// hidden are a plain matrix.
// Forward reads x once and writes y; rrms is kept for the backward pass.
// Backward: with n = x * rrms and g = dy * (w + offset),  dx = rrms * (g - n * mean(g * n)),  dw = sum over rows of dy * n.
// y, dx: one warp takes rows_per_warp rows (1 to 8) and sums over all of them at once; a thread handles eight columns at a
// time. dw: every CTA of rmsnorm_bwd_weight sums a fixed slice of rows for 512 columns into `partials`;
// rmsnorm_bwd_weight_finish adds the slices. f32 accumulators; fixed order, no atomics. A row's result does not
// depend on rows_per_warp. Roof: memory.

#include <chunk.cuh>
#include <cta.cuh>
#include <slice_sum.cuh>
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
    // Every chunk of a row that begins at a multiple of 16 bytes is whole and aligned.
    __device__ __forceinline__ bool is_whole() const {
        return hidden % kChunk == 0 && x_pitch % kChunk == 0 && y_pitch % kChunk == 0;
    }
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

// Chunks of a row that a thread has on their way at once.
constexpr int kInFlight = 4;

template <class T, bool kWhole>
__device__ void rmsnorm_fwd_known(T* y, float* rrms, const T* x, const T* w, float eps, float offset, Place place,
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
        for (int first = lane * kChunk; first < hidden; first += kInFlight * kWarpElements) {
            float v[kInFlight][kChunk] = {};
#pragma unroll
            for (int j = 0; j < kInFlight; ++j) {
                const int c = first + j * kWarpElements;
                if (c < hidden) load_known<kWhole>(v[j], from + c, hidden - c);
            }
#pragma unroll
            for (int j = 0; j < kInFlight; ++j)
#pragma unroll
                for (int i = 0; i < kChunk; ++i) sum[r] += v[j][i] * v[j][i];
        }
    }
    sum_rows(sum, rows_per_warp);
#pragma unroll
    for (int r = 0; r < kMaxRows; ++r) {
        if (r >= own.count) break;
        const float scale = 1.0f / sqrtf(sum[r] / hidden + eps);
        const T* from = x + place.x(own.first + r);
        T* to = y + place.y(own.first + r);
        for (int first = lane * kChunk; first < hidden; first += kInFlight * kWarpElements) {
            float v[kInFlight][kChunk], weight[kInFlight][kChunk];
#pragma unroll
            for (int j = 0; j < kInFlight; ++j) {
                const int c = first + j * kWarpElements;
                if (c >= hidden) continue;
                load_known<kWhole>(v[j], from + c, hidden - c);
                load_known<kWhole>(weight[j], w + c, hidden - c);
            }
#pragma unroll
            for (int j = 0; j < kInFlight; ++j) {
                const int c = first + j * kWarpElements;
                if (c >= hidden) continue;
#pragma unroll
                for (int i = 0; i < kChunk; ++i) v[j][i] *= scale * (weight[j][i] + offset);
                store_known<kWhole>(to + c, v[j], hidden - c);
            }
        }
        if (lane == 0) rrms[own.first + r] = scale;
    }
}

template <class T>
__device__ void rmsnorm_fwd(T* y, float* rrms, const T* x, const T* w, float eps, float offset, Place place,
                            int rows_per_warp, int rows) {
    if (place.is_whole() && is_aligned(y) && is_aligned(x) && is_aligned(w)) {
        rmsnorm_fwd_known<T, true>(y, rrms, x, w, eps, offset, place, rows_per_warp, rows);
    } else {
        rmsnorm_fwd_known<T, false>(y, rrms, x, w, eps, offset, place, rows_per_warp, rows);
    }
}

template <class T, bool kWhole>
__device__ void rmsnorm_bwd_known(T* dx, const T* dy, const T* x, const T* w, const float* rrms, float offset,
                                  int accumulate, Place place, int rows_per_warp, int rows) {
    constexpr int kInFlight = 2;  // of three or four rows
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
        for (int first = lane * kChunk; first < hidden; first += kInFlight * kWarpElements) {
            float d[kInFlight][kChunk] = {}, v[kInFlight][kChunk] = {}, weight[kInFlight][kChunk] = {};
#pragma unroll
            for (int j = 0; j < kInFlight; ++j) {
                const int c = first + j * kWarpElements;
                if (c >= hidden) continue;
                load_known<kWhole>(d[j], dy + start + c, hidden - c);
                load_known<kWhole>(v[j], from + c, hidden - c);
                load_known<kWhole>(weight[j], w + c, hidden - c);
            }
#pragma unroll
            for (int j = 0; j < kInFlight; ++j)
#pragma unroll
                for (int i = 0; i < kChunk; ++i) dot[r] += d[j][i] * (weight[j][i] + offset) * v[j][i];
        }
    }
    sum_rows(dot, rows_per_warp);
#pragma unroll
    for (int r = 0; r < kMaxRows; ++r) {
        if (r >= own.count) break;
        const T* from = x + place.x(own.first + r);
        const long long start = place.y(own.first + r);
        const float scale = rrms[own.first + r], mean = dot[r] * scale / hidden;
        for (int first = lane * kChunk; first < hidden; first += kInFlight * kWarpElements) {
            float d[kInFlight][kChunk], v[kInFlight][kChunk], weight[kInFlight][kChunk], sum[kInFlight][kChunk] = {};
#pragma unroll
            for (int j = 0; j < kInFlight; ++j) {
                const int c = first + j * kWarpElements;
                if (c >= hidden) continue;
                load_known<kWhole>(d[j], dy + start + c, hidden - c);
                load_known<kWhole>(v[j], from + c, hidden - c);
                load_known<kWhole>(weight[j], w + c, hidden - c);
                if (accumulate) load_known<kWhole>(sum[j], dx + start + c, hidden - c);
            }
#pragma unroll
            for (int j = 0; j < kInFlight; ++j) {
                const int c = first + j * kWarpElements;
                if (c >= hidden) continue;
#pragma unroll
                for (int i = 0; i < kChunk; ++i)
                    sum[j][i] += scale * (d[j][i] * (weight[j][i] + offset) - v[j][i] * scale * mean);
                store_known<kWhole>(dx + start + c, sum[j], hidden - c);
            }
        }
    }
}

template <class T>
__device__ void rmsnorm_bwd(T* dx, const T* dy, const T* x, const T* w, const float* rrms, float offset,
                            int accumulate, Place place, int rows_per_warp, int rows) {
    if (place.is_whole() && is_aligned(dx) && is_aligned(dy) && is_aligned(x) && is_aligned(w)) {
        rmsnorm_bwd_known<T, true>(dx, dy, x, w, rrms, offset, accumulate, place, rows_per_warp, rows);
    } else {
        rmsnorm_bwd_known<T, false>(dx, dy, x, w, rrms, offset, accumulate, place, rows_per_warp, rows);
    }
}

template <class T, bool kWhole>
__device__ void rmsnorm_bwd_weight_known(float* partials, const T* dy, const T* x, const float* rrms, Place place,
                                         int slice_rows, int rows) {
    const int hidden = place.hidden;
    const int c = (blockIdx.x * kColumnThreads + threadIdx.x) * kChunk;
    if (c >= hidden) return;
    const int first = blockIdx.y * slice_rows, last = min(first + slice_rows, rows);
    float sum[kChunk] = {};
    for (int row = first; row < last; row += kSliceInFlight) {
        float d[kSliceInFlight][kChunk] = {}, v[kSliceInFlight][kChunk] = {}, scale[kSliceInFlight] = {};
#pragma unroll
        for (int j = 0; j < kSliceInFlight; ++j) {
            if (row + j >= last) continue;
            load_known<kWhole>(d[j], dy + place.y(row + j) + c, hidden - c);
            load_known<kWhole>(v[j], x + place.x(row + j) + c, hidden - c);
            scale[j] = rrms[row + j];
        }
#pragma unroll
        for (int j = 0; j < kSliceInFlight; ++j)
#pragma unroll
            for (int i = 0; i < kChunk; ++i) sum[i] += d[j][i] * (v[j][i] * scale[j]);
    }
    store_known<kWhole>(partials + (long long)blockIdx.y * hidden + c, sum, hidden - c);
}

template <class T>
__device__ void rmsnorm_bwd_weight(float* partials, const T* dy, const T* x, const float* rrms, Place place,
                                   int slice_rows, int rows) {
    if (place.is_whole() && is_aligned(partials) && is_aligned(dy) && is_aligned(x)) {
        rmsnorm_bwd_weight_known<T, true>(partials, dy, x, rrms, place, slice_rows, rows);
    } else {
        rmsnorm_bwd_weight_known<T, false>(partials, dy, x, rrms, place, slice_rows, rows);
    }
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

extern "C" __global__ void __launch_bounds__(kFinishThreads) rmsnorm_bwd_weight_finish(
    float* dw,              // (hidden), added to
    const float* partials,  // (slices, hidden)
    int slices, int hidden) {
    add_slices(dw, partials, hidden, slices, hidden);
}
