// y += b, the same vector for every row;  backward: db += sum of dy over rows.
// Forward reads and writes y once, one thread per eight columns of a row. Backward reads dy once: every CTA of
// bias_bwd sums a fixed slice of rows for 512 columns into `partials`, bias_bwd_finish adds the slices.
// f32 arithmetic; fixed order, no atomics. Roof: memory.

#include <chunk.cuh>
#include <slice_sum.cuh>
#include <types.cuh>

// ---- device code

constexpr int kThreads = 128;
constexpr int kColumnThreads = 64;

template <class T>
__device__ void bias_add(T* y, const T* b, int rows, int width) {
    const int chunks = (width + kChunk - 1) / kChunk;
    const int item = blockIdx.x * kThreads + threadIdx.x;
    const int row = item / chunks, c = item % chunks * kChunk;
    if (row >= rows) return;
    float sum[kChunk], own[kChunk];
    T* at = y + (long long)row * width + c;
    load_chunk(sum, at, width - c);
    load_chunk(own, b + c, width - c);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) sum[i] += own[i];
    store_chunk(at, sum, width - c);
}

template <class T, bool kWhole>
__device__ void bias_bwd_known(float* partials, const T* dy, int slice_rows, int rows, int width) {
    constexpr int kInFlight = 2 * kSliceInFlight;
    const int c = (blockIdx.x * kColumnThreads + threadIdx.x) * kChunk;
    if (c >= width) return;
    const int first = blockIdx.y * slice_rows, last = min(first + slice_rows, rows);
    float sum[kChunk] = {};
    const T* from = dy + c;
    int row = first;
    for (; row + kInFlight <= last; row += kInFlight)
        add_rows<kInFlight, kWhole>(sum, from + (long long)row * width, width, width - c);
    for (; row < last; ++row) add_rows<1, kWhole>(sum, from + (long long)row * width, width, width - c);
    store_known<kWhole>(partials + (long long)blockIdx.y * width + c, sum, width - c);
}

template <class T>
__device__ void bias_bwd(float* partials, const T* dy, int slice_rows, int rows, int width) {
    if (width % kChunk == 0 && is_aligned(partials) && is_aligned(dy)) {
        bias_bwd_known<T, true>(partials, dy, slice_rows, rows, width);
    } else {
        bias_bwd_known<T, false>(partials, dy, slice_rows, rows, width);
    }
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kThreads) bias_add_f32(
    float* y,        // (rows, width), in place
    const float* b,  // (width)
    int rows, int width) {
    bias_add<float>(y, b, rows, width);
}

extern "C" __global__ void __launch_bounds__(kThreads) bias_add_bf16(
    bf16* y,        // (rows, width), in place
    const bf16* b,  // (width)
    int rows, int width) {
    bias_add<bf16>(y, b, rows, width);
}

extern "C" __global__ void __launch_bounds__(kColumnThreads) bias_bwd_f32(
    float* partials,  // (slices, width)
    const float* dy,   // (rows, width)
    int slice_rows, int rows, int width) {
    bias_bwd<float>(partials, dy, slice_rows, rows, width);
}

extern "C" __global__ void __launch_bounds__(kColumnThreads) bias_bwd_bf16(
    float* partials,  // (slices, width)
    const bf16* dy,    // (rows, width)
    int slice_rows, int rows, int width) {
    bias_bwd<bf16>(partials, dy, slice_rows, rows, width);
}

extern "C" __global__ void __launch_bounds__(kFinishThreads) bias_bwd_finish(
    float* db,              // (width), added to
    const float* partials,  // (slices, width)
    int slices, int width) {
    add_slices(db, partials, width, slices, width);
}
