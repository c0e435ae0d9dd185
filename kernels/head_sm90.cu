// The product of the language-model head on Hopper's own units, z (rows, vocab) = x (rows, hidden) w (vocab, hidden)^T, of
// which no logit is stored. For each row and each 256 columns of the vocabulary:
//   top = max z,  sum = sum exp(z - top),  weighted = sum (z - top) exp(z - top),  e = exp(z - top) as bf16
// and the row's target logit. head.cu makes lse and log-probabilities of these, and gradients of e.
//
// e instead of z, because bf16 keeps 8 bits: of a logit of 20 that is an error of 6 % in its probability, of e one of 0.2 %.
// With a soft cap z is softcap tanh(z / softcap). Columns from vocab on, which the copies fill with zeros, count for nothing.
//
// The main loop is lib/product_pipeline.cuh's with tiles of 128 x 256; launch as gemm_sm90.cu. Four lanes hold a row of a
// tile; sums in f32 in a fixed order. head_statistics_bf16 stores no e: for passes without gradients.
// Roof: tensor cores.

#include <logit_statistics.cuh>
#include <math.cuh>
#include <product_pipeline.cuh>

// ---- device code

constexpr int kTileM = 128;
constexpr int kTileN = kStatisticsColumns;
constexpr float kLog2E = 1.4426950408889634f;

// Where the statistics go.
struct RowResults {
    LogitStatistics* statistics;
    float* target_logits;
    const int* targets;
    float softcap;
};

// Calls `use` (element, row's half, column) for every accumulator.
template <class Use>
__device__ __forceinline__ void for_each_logit(float (&z)[kTileN / 2], int n0, Use use) {
#pragma unroll
    for (int i = 0; i < kTileN / 2; ++i) use(z[i], i % 4 / 2, n0 + i / 4 * 8 + fragment_column() + i % 2);
}

// The thread that holds a row's target writes it down. Few tiles hold one.
__device__ __forceinline__ void note_targets(float (&z)[kTileN / 2], const RowResults& results, int row, int n0, int rows) {
    int target[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) target[half] = row + 8 * half < rows ? results.targets[row + 8 * half] : -1;
    const auto is_here = [&](int column) { return n0 <= column && column < n0 + kTileN; };
    if (!__any_sync(kFullMask, is_here(target[0]) || is_here(target[1]))) return;
    for_each_logit(z, n0, [&](float z, int half, int column) {
        if (column == target[half]) results.target_logits[row + 8 * half] = z;
    });
}

// In place of the logit of a column that is not there: its exponential is 0, and so is 0 times this.
constexpr float kNoLogit = -1e30f;

// Eight chains of additions instead of one.
__device__ __forceinline__ float add_up(const float (&part)[8]) {
    return ((part[0] + part[4]) + (part[2] + part[6])) + ((part[1] + part[5]) + (part[3] + part[7]));
}

// Of the four lanes that hold a row.
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(kFullMask, x, 1);
    return x + __shfl_xor_sync(kFullMask, x, 2);
}

// Logits of 64 rows become exponentials relative to the largest of their row here.
__device__ __forceinline__ void take_statistics(float (&z)[kTileN / 2], const RowResults& results, int row0, int n0,
                                                const Problem& p) {
    const int row = row0 + fragment_row(), vocab = p.n;
    if (results.softcap > 0.0f)
        for_each_logit(z, n0, [&](float& z, int, int) { z = results.softcap * tanhf(z / results.softcap); });
    note_targets(z, results, row, n0, p.m);
    if (n0 + kTileN > vocab)
        for_each_logit(z, n0, [&](float& z, int, int column) { z = column < vocab ? z : kNoLogit; });
    float top[2] = {-INFINITY, -INFINITY};
    for_each_logit(z, n0, [&](float z, int half, int) { top[half] = fmaxf(top[half], z); });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        top[half] = fmaxf(top[half], __shfl_xor_sync(kFullMask, top[half], 1));
        top[half] = fmaxf(top[half], __shfl_xor_sync(kFullMask, top[half], 2));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        float part[8] = {}, weighted[8] = {};
#pragma unroll
        for (int j = 0; j < kTileN / 8; ++j)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                float& own = z[4 * j + 2 * half + c];
                const float t = own - top[half];
                own = exp2_approx(t * kLog2E);
                part[j % 4 * 2 + c] += own;
                weighted[j % 4 * 2 + c] += own * t;
            }
        const LogitStatistics all = {top[half], row_sum(add_up(part)), row_sum(add_up(weighted))};
        const int own = row + 8 * half;
        if (threadIdx.x % 4 == 0 && own < p.m) results.statistics[(long long)(n0 / kTileN) * p.m + own] = all;
    }
}

template <bool kStore>
__device__ __forceinline__ void head_project(const CUtensorMap* exponentials_map, const CUtensorMap* x_map,
                                             const CUtensorMap* w_map, const RowResults& results, const Problem& p) {
    auto write = [&](Outbox& outbox, float (&sum)[kTileN / 2], int row0, int n0) {
        if (n0 >= p.n || row0 >= p.m) return;
        take_statistics(sum, results, row0, n0, p);
        if constexpr (kStore) write_rows<0, kTileN>(outbox, exponentials_map, sum, row0, n0, p);
    };
    multiply_tiles<Nt, kTileM, kTileN>(x_map, w_map, p.stages, Walk<kTileM, kTileN>(p), write);
}

// ---- entry points

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) head_project_bf16(
    const __grid_constant__ CUtensorMap exponentials_map,  // (rows, vocab), written
    float* statistics,                                     // (ceil(vocab / 256), rows, 3) top, sum, weighted
    float* target_logits,                                  // (rows)
    const __grid_constant__ CUtensorMap x_map,             // (rows, hidden)
    const __grid_constant__ CUtensorMap w_map,             // (vocab, hidden)
    const int* targets,                                    // (rows), each in 0..vocab
    float softcap, int rows, int vocab, int hidden, int stages) {
    head_project<true>(&exponentials_map, &x_map, &w_map,
        {reinterpret_cast<LogitStatistics*>(statistics), target_logits, targets, softcap}, {rows, vocab, hidden, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) head_statistics_bf16(
    float* statistics,                          // (ceil(vocab / 256), rows, 3) top, sum, weighted
    float* target_logits,                       // (rows)
    const __grid_constant__ CUtensorMap x_map,  // (rows, hidden)
    const __grid_constant__ CUtensorMap w_map,  // (vocab, hidden)
    const int* targets,                         // (rows), each in 0..vocab
    float softcap, int rows, int vocab, int hidden, int stages) {
    head_project<false>(nullptr, &x_map, &w_map,
        {reinterpret_cast<LogitStatistics*>(statistics), target_logits, targets, softcap}, {rows, vocab, hidden, stages});
}
