// y = x * rrms * (w + offset),  rrms = 1 / sqrt(mean(x^2) + eps),  offset 0, or 1 for Gemma
//
// Rows may stand in groups inside wider rows (the heads of a token inside its queries, keys and values): row r begins at
// (r / group) * pitch + (r % group) * hidden, with a pitch for x and one for y, dy and dx. group = 1 and pitches of
// hidden are a plain matrix.
// Forward reads x once and writes y; rrms is kept for the backward pass.
// Backward: with n = x * rrms and g = dy * (w + offset),  dx = rrms * (g - n * mean(g * n)),  dw = sum over rows of dy * n.
// y: one warp takes rows_per_warp rows (1 to 8) and sums over all of them at once; a thread handles eight columns at a time.
// A row's result does not depend on rows_per_warp. dx, dw: a CTA takes a slice of rows, first each row by a warp for its mean,
// then eight columns by a thread, from cache: dx, and the slice's sum of dw into `partials`; rmsnorm_bwd_finish adds the
// slices. f32 accumulators; fixed order, no atomics. Roof: memory.

#include <chunk.cuh>
#include <cta.cuh>
#include <slice_sum.cuh>
#include <types.cuh>

// ---- device code

constexpr int kRowThreads = 128;
constexpr int kSliceThreads = 256;  // at most
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

// Several chunks are loaded before the first is waited for, which a branch between them would prevent: kCount is how many.
constexpr int kInFlight = 4;

template <int kCount, bool kWhole, class T>
__device__ __forceinline__ void add_squares(float& sum, const T* x, int c, int hidden) {
    float v[kCount][kChunk];
#pragma unroll
    for (int j = 0; j < kCount; ++j) load_known<kWhole>(v[j], x + c + j * kWarpElements, hidden - c - j * kWarpElements);
#pragma unroll
    for (int j = 0; j < kCount; ++j)
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sum += v[j][i] * v[j][i];
}

template <int kCount, bool kWhole, class T>
__device__ __forceinline__ void write_scaled(T* y, const T* x, const T* w, float scale, float offset, int c, int hidden) {
    float v[kCount][kChunk], weight[kCount][kChunk];
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
        const int at = c + j * kWarpElements;
        load_known<kWhole>(v[j], x + at, hidden - at);
        load_known<kWhole>(weight[j], w + at, hidden - at);
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
        const int at = c + j * kWarpElements;
#pragma unroll
        for (int i = 0; i < kChunk; ++i) v[j][i] *= scale * (weight[j][i] + offset);
        store_known<kWhole>(y + at, v[j], hidden - at);
    }
}

template <class T, bool kWhole>
__device__ void rmsnorm_fwd_known(T* y, float* rrms, const T* x, const T* w, float eps, float offset, Place place,
                                  int rows_per_warp, int rows) {
    constexpr int kTogether = kInFlight * kWarpElements;
    const int hidden = place.hidden;
    const int lane = threadIdx.x % kWarpThreads;
    const Rows own = rows_of_warp(rows_per_warp, rows);
    if (own.count <= 0) return;
    float sum[kMaxRows] = {};
#pragma unroll
    for (int r = 0; r < kMaxRows; ++r) {
        if (r >= own.count) break;
        const T* from = x + place.x(own.first + r);
        int c = lane * kChunk;
        for (; c + kTogether - kWarpElements < hidden; c += kTogether) add_squares<kInFlight, kWhole>(sum[r], from, c, hidden);
        for (; c < hidden; c += kWarpElements) add_squares<1, kWhole>(sum[r], from, c, hidden);
    }
    sum_rows(sum, rows_per_warp);
#pragma unroll
    for (int r = 0; r < kMaxRows; ++r) {
        if (r >= own.count) break;
        const float scale = 1.0f / sqrtf(sum[r] / hidden + eps);
        const T* from = x + place.x(own.first + r);
        T* to = y + place.y(own.first + r);
        int c = lane * kChunk;
        for (; c + kTogether - kWarpElements < hidden; c += kTogether)
            write_scaled<kInFlight, kWhole>(to, from, w, scale, offset, c, hidden);
        for (; c < hidden; c += kWarpElements) write_scaled<1, kWhole>(to, from, w, scale, offset, c, hidden);
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

// The rows of one CTA of the backward pass: row r of it is first + r, for r < count. A warp takes `per_warp` of them.
struct Slice {
    int first, count, per_warp;
    __device__ __forceinline__ Slice(int slice_rows, int rows)
        : first(blockIdx.x * slice_rows), count(min(slice_rows, rows - first)) {
        const int warps = blockDim.x / kWarpThreads;
        per_warp = (count + warps - 1) / warps;
    }
};

constexpr int kBackwardInFlight = 2;  // of three tensors

template <int kCount, bool kWhole, class T>
__device__ __forceinline__ void add_products(float& dot, const T* dy, const T* x, const T* w, float offset, int c,
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
        for (int i = 0; i < kChunk; ++i) dot += d[j][i] * (weight[j][i] + offset) * v[j][i];
}

// Leaves mean(g * n) of every row of the slice in shared memory.
template <bool kWhole, class T>
__device__ __forceinline__ void find_means(float* means, const T* dy, const T* x, const T* w, const float* rrms,
                                           float offset, const Place& place, const Slice& slice) {
    constexpr int kRows = 2;  // summed over at once
    constexpr int kTogether = kBackwardInFlight * kWarpElements;
    const int hidden = place.hidden, lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
    const int last = min(slice.count, (warp + 1) * slice.per_warp);
    for (int begin = warp * slice.per_warp; begin < last; begin += kRows) {
        float dot[kRows] = {};
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            const int row = slice.first + begin + r;
            if (begin + r >= last) break;
            const T* from = x + place.x(row);
            const T* gradient = dy + place.y(row);
            int c = lane * kChunk;
            for (; c + kTogether - kWarpElements < hidden; c += kTogether)
                add_products<kBackwardInFlight, kWhole>(dot[r], gradient, from, w, offset, c, hidden);
            for (; c < hidden; c += kWarpElements) add_products<1, kWhole>(dot[r], gradient, from, w, offset, c, hidden);
        }
        warp_sum_each(dot);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
            if (lane == 0 && begin + r < last) means[begin + r] = dot[r] * rrms[slice.first + begin + r] / hidden;
    }
}

// What one CTA turns from dy into dx.
template <class T>
struct Backward {
    T* dx;
    const T *dy, *x;
    const float *rrms, *means;
    int accumulate;
    Place place;
    Slice slice;
};

// Eight columns of kRows rows of the slice from `row` on.
template <int kRows, bool kWhole, class T>
__device__ __forceinline__ void finish_rows(float (&dw)[kChunk], const float (&weight)[kChunk], const Backward<T>& of,
                                            int row, int c) {
    const int count = of.place.hidden - c;
    float d[kRows][kChunk], v[kRows][kChunk], sum[kRows][kChunk] = {};
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
        const int at = of.slice.first + row + j;
        load_known<kWhole>(d[j], of.dy + of.place.y(at) + c, count);
        load_known<kWhole>(v[j], of.x + of.place.x(at) + c, count);
    }
    if (of.accumulate) {
#pragma unroll
        for (int j = 0; j < kRows; ++j)
            load_known<kWhole>(sum[j], of.dx + of.place.y(of.slice.first + row + j) + c, count);
    }
#pragma unroll
    for (int j = 0; j < kRows; ++j) {
        const int at = of.slice.first + row + j;
        const float scale = of.rrms[at], mean = of.means[row + j];
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            const float n = v[j][i] * scale;
            dw[i] += d[j][i] * n;
            sum[j][i] += scale * (d[j][i] * weight[i] - n * mean);
        }
        store_known<kWhole>(of.dx + of.place.y(at) + c, sum[j], count);
    }
}

// Eight columns of the slice: dx, and what the rows add to dw.
template <bool kWhole, class T>
__device__ __forceinline__ void finish_columns(float* partial, const T* w, float offset, const Backward<T>& of, int c) {
    float weight[kChunk], dw[kChunk] = {};
    load_known<kWhole>(weight, w + c, of.place.hidden - c);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) weight[i] += offset;
    int row = 0;
    for (; row + kBackwardInFlight <= of.slice.count; row += kBackwardInFlight) finish_rows<kBackwardInFlight, kWhole>(dw, weight, of, row, c);
    for (; row < of.slice.count; ++row) finish_rows<1, kWhole>(dw, weight, of, row, c);
    store_known<kWhole>(partial + c, dw, of.place.hidden - c);
}

template <class T, bool kWhole>
__device__ void rmsnorm_bwd_known(T* dx, float* partials, const T* dy, const T* x, const T* w, const float* rrms,
                                  float offset, int accumulate, const Place& place, int slice_rows, int rows) {
    float* means = shared_memory<float>();
    const Slice slice(slice_rows, rows);
    find_means<kWhole>(means, dy, x, w, rrms, offset, place, slice);
    __syncthreads();
    float* partial = partials + (long long)blockIdx.x * place.hidden;
    const Backward<T> of{dx, dy, x, rrms, means, accumulate, place, slice};
    for (int c = threadIdx.x * kChunk; c < place.hidden; c += blockDim.x * kChunk)
        finish_columns<kWhole>(partial, w, offset, of, c);
}

template <class T>
__device__ void rmsnorm_bwd(T* dx, float* partials, const T* dy, const T* x, const T* w, const float* rrms, float offset,
                            int accumulate, const Place& place, int slice_rows, int rows) {
    const bool aligned = is_aligned(dx) && is_aligned(partials) && is_aligned(dy) && is_aligned(x) && is_aligned(w);
    if (place.is_whole() && aligned) {
        rmsnorm_bwd_known<T, true>(dx, partials, dy, x, w, rrms, offset, accumulate, place, slice_rows, rows);
    } else {
        rmsnorm_bwd_known<T, false>(dx, partials, dy, x, w, rrms, offset, accumulate, place, slice_rows, rows);
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

extern "C" __global__ void __launch_bounds__(kSliceThreads, 2) rmsnorm_bwd_f32(
    float* dx,         // (rows, hidden), added to if accumulate
    float* partials,    // (slices, hidden)
    const float* dy,   // (rows, hidden)
    const float* x,    // (rows, hidden)
    const float* w,    // (hidden)
    const float* rrms,  // (rows)
    float offset, int accumulate, int group, int x_pitch, int y_pitch, int slice_rows, int rows, int hidden) {
    const Place place{group, x_pitch, y_pitch, hidden};
    rmsnorm_bwd<float>(dx, partials, dy, x, w, rrms, offset, accumulate, place, slice_rows, rows);
}

extern "C" __global__ void __launch_bounds__(kSliceThreads, 2) rmsnorm_bwd_bf16(
    bf16* dx,          // (rows, hidden), added to if accumulate
    float* partials,    // (slices, hidden)
    const bf16* dy,    // (rows, hidden)
    const bf16* x,     // (rows, hidden)
    const bf16* w,     // (hidden)
    const float* rrms,  // (rows)
    float offset, int accumulate, int group, int x_pitch, int y_pitch, int slice_rows, int rows, int hidden) {
    const Place place{group, x_pitch, y_pitch, hidden};
    rmsnorm_bwd<bf16>(dx, partials, dy, x, w, rrms, offset, accumulate, place, slice_rows, rows);
}

extern "C" __global__ void __launch_bounds__(kFinishThreads) rmsnorm_bwd_finish(
    float* dw,              // (hidden), added to
    const float* partials,  // (slices, hidden)
    int slices, int hidden) {
    add_slices(dw, partials, hidden, slices, hidden);
}
