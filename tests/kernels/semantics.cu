// What the instructions mean: small kernels whose results are known exactly.

#include <cta.cuh>
#include <ldst.cuh>
#include <mma.cuh>
#include <types.cuh>

// ---- device code

constexpr int kStages = 3;
constexpr int kStepColumns = 16;
constexpr int kRows = 32;
constexpr int kColumns = 16;
constexpr int kStageElements = (kRows + kColumns) * kStepColumns;

// Brings columns 16 step.. of both operands into a stage: 16 bytes a thread for a, and for b the first warp.
__device__ __forceinline__ void fetch(bf16* stage, const bf16* a, const bf16* b, int step, int k) {
    const int t = threadIdx.x, row = t / 2, column = t % 2 * 8;
    cp_async16(stage + row * kStepColumns + column, a + row * k + step * kStepColumns + column, 16);
    if (t < 2 * kColumns)
        cp_async16(stage + (kRows + row) * kStepColumns + column, b + row * k + step * kStepColumns + column, 16);
}

__device__ __forceinline__ void multiply(float (&d)[2][4], const bf16* stage) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned a[4], b[4];
    ldmatrix_x4(a, stage + (16 * warp + lane % 16) * kStepColumns + lane / 16 * 8);
    ldmatrix_x4(b, stage + (kRows + lane / 16 * 8 + lane % 8) * kStepColumns + lane / 8 % 2 * 8);
    const unsigned low[2] = {b[0], b[1]}, high[2] = {b[2], b[3]};
    mma_m16n8k16(d[0], a, low);
    mma_m16n8k16(d[1], a, high);
}

// ---- entry points

extern "C" __global__ void shuffles(int* y, int operand, int width) {
    const int lane = threadIdx.x, value = 100 + lane;
    y[lane] = __shfl_sync(kFullMask, value, operand, width);
    y[32 + lane] = __shfl_xor_sync(kFullMask, value, operand, width);
    y[64 + lane] = __shfl_up_sync(kFullMask, value, operand, width);
    y[96 + lane] = __shfl_down_sync(kFullMask, value, operand, width);
}

// Lanes 0 to 15 and 16 to 31 meet apart.
extern "C" __global__ void votes(unsigned* y, const int* x) {
    const int lane = threadIdx.x;
    y[lane] = __ballot_sync(kFullMask, x[lane]);
    y[32 + lane] = __any_sync(kFullMask, x[lane]);
    y[64 + lane] = __all_sync(kFullMask, x[lane]);
    const unsigned half = 0xffffu << (lane < 16 ? 0 : 16);
    if (lane < 16)
        y[96 + lane] = __ballot_sync(half, x[lane]) + 2 * __all_sync(half, x[lane]);
    else
        y[96 + lane] = __ballot_sync(half, x[lane]) + 2 * __all_sync(half, x[lane]);
}

extern "C" __global__ void reductions(float* sum, double* sum64, float* max, const float* x) {
    const int i = threadIdx.x;
    sum[i] = warp_sum(x[i]);
    sum64[i] = warp_sum((double)x[i]);
    max[i] = warp_max(x[i]);
}

extern "C" __global__ void load_matrices(
    unsigned* y,    // (2, 32, 4): plain and transposed, lane, register
    const bf16* x,  // (4, 8, 8)
    int pitch) {
    const int lane = threadIdx.x;
    bf16* s = shared_memory<bf16>();
    for (int i = lane; i < 256; i += 32) s[i / 8 * pitch + i % 8] = x[i];
    __syncwarp();
    unsigned r[4];
    ldmatrix_x4(r, s + lane * pitch);
    for (int i = 0; i < 4; ++i) y[4 * lane + i] = r[i];
    ldmatrix_x4_trans(r, s + lane * pitch);
    for (int i = 0; i < 4; ++i) y[128 + 4 * lane + i] = r[i];
}

extern "C" __global__ void multiply_matrices(
    float* d,       // (16, 8), added to
    const bf16* a,  // (16, 16)
    const bf16* b   // (16, 8)
) {
    const int g = threadIdx.x / 4, q = threadIdx.x % 4 * 2;
    const auto pair = [](bf16 low, bf16 high) { return pack_bf16x2(to_f32(low), to_f32(high)); };
    unsigned fa[4], fb[2];
    for (int i = 0; i < 4; ++i) {
        const bf16* from = a + (g + i % 2 * 8) * 16 + q + i / 2 * 8;
        fa[i] = pair(from[0], from[1]);
    }
    for (int i = 0; i < 2; ++i) fb[i] = pair(b[(q + 8 * i) * 8 + g], b[(q + 8 * i + 1) * 8 + g]);
    float fd[4];
    for (int i = 0; i < 4; ++i) fd[i] = d[(g + i / 2 * 8) * 8 + q + i % 2];
    mma_m16n8k16(fd, fa, fb);
    for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + q + i % 2] = fd[i];
}

// Warp 0 hands numbers to warp 1 through two slots; barriers 1 and 2 say "full", 3 and 4 "empty".
extern "C" __global__ void produce_and_consume(int* y, const int* x, int steps) {
    const int lane = threadIdx.x % 32;
    int* s = shared_memory<int>();
    if (threadIdx.x < 32) {
        for (int step = 0; step < steps; ++step) {
            if (step >= 2 && step % 2 == 0) named_barrier_sync<3>(64);
            if (step >= 2 && step % 2 == 1) named_barrier_sync<4>(64);
            s[32 * (step % 2) + lane] = x[32 * step + lane];
            if (step % 2 == 0)
                named_barrier_arrive<1>(64);
            else
                named_barrier_arrive<2>(64);
        }
    } else {
        for (int step = 0; step < steps; ++step) {
            if (step % 2 == 0)
                named_barrier_sync<1>(64);
            else
                named_barrier_sync<2>(64);
            y[32 * step + lane] = s[32 * (step % 2) + 31 - lane];
            if (step + 2 < steps && step % 2 == 0) named_barrier_arrive<3>(64);
            if (step + 2 < steps && step % 2 == 1) named_barrier_arrive<4>(64);
        }
    }
}

// y = a b^T through a ring of three stages. `mistake` 1 leaves out the barrier that frees a stage, 2 waits for one
// group too few.
extern "C" __global__ void pipeline(
    float* y,       // (CTAs, 32, 16)
    const bf16* a,  // (CTAs, 32, k)
    const bf16* b,  // (16, k)
    int k, int mistake) {
    bf16* stages = shared_memory<bf16>();
    a += (long long)blockIdx.x * kRows * k;
    const int steps = k / kStepColumns;
    for (int step = 0; step < kStages - 1; ++step) {
        if (step < steps) fetch(stages + step * kStageElements, a, b, step, k);
        cp_async_commit();
    }
    float d[2][4] = {};
    for (int step = 0; step < steps; ++step) {
        if (mistake == 2)
            cp_async_wait<kStages - 1>();
        else
            cp_async_wait<kStages - 2>();
        if (mistake != 1 || step < 2) __syncthreads();
        const int next = step + kStages - 1;
        if (next < steps) fetch(stages + next % kStages * kStageElements, a, b, next, k);
        cp_async_commit();
        multiply(d, stages + step % kStages * kStageElements);
    }
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    y += ((long long)blockIdx.x * kRows + 16 * warp) * kColumns;
    for (int n = 0; n < 2; ++n)
        for (int i = 0; i < 4; ++i) y[(lane / 4 + i / 2 * 8) * kColumns + 8 * n + lane % 4 * 2 + i % 2] = d[n][i];
}

// Writes down who runs when, before and after a barrier. Only the host device runs one thread at a time.
extern "C" __global__ void order_of_threads(int* order, int* count) {
    order[(*count)++] = threadIdx.x;
    __syncthreads();
    order[(*count)++] = threadIdx.x;
    __syncwarp();
    order[(*count)++] = threadIdx.x;
}

extern "C" __global__ void order_of_blocks(int* order, int* count) {
    order[(*count)++] = blockIdx.x + gridDim.x * blockIdx.y;
}

extern "C" __global__ void indices(int* y) {
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    y[(long long)block * blockDim.x * blockDim.y * blockDim.z + thread] =
        threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z + 1000 * blockIdx.x + 10000 * blockIdx.y + 100000 * blockIdx.z;
}
