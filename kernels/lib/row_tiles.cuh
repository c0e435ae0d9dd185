// Tiles of 64 bf16 rows in shared memory, and the tensor-core products that each of four warps does for 16 of them.
//
// A warp's result is an array of fragments of 16 x 8: fragment f, with g = lane / 4 and q = lane % 4, holds columns
// 8f + 2q and 8f + 2q + 1 of row g in [0] and [1], and of row g + 8 in [2] and [3].
#pragma once
#include <ldst.cuh>
#include <mma.cuh>
#include <tree_mask.cuh>
#include <types.cuh>

constexpr int kTileThreads = 128;
constexpr int kWarpRows = 16;
constexpr int kTileFragments = kTileTokens / 8;

// Eight elements of padding put the eight rows that ldmatrix reads at once on different banks.
template <int kHeadDim>
constexpr int kTilePitch = kHeadDim + 8;
template <int kHeadDim>
constexpr int kTileElements = kTileTokens * kTilePitch<kHeadDim>;

// Rows first.. of a matrix of `tokens` rows, zeros after its end. Ends with the caller's commit, wait and barrier.
template <int kHeadDim>
__device__ __forceinline__ void copy_tile(bf16* tile, const bf16* matrix, long long pitch, int first, int tokens) {
    constexpr int kChunks = kHeadDim / 8;
#pragma unroll
    for (int step = 0; step < kTileTokens * kChunks / kTileThreads; ++step) {
        const int chunk = step * kTileThreads + threadIdx.x;
        const int row = chunk / kChunks, column = chunk % kChunks * 8;
        const bool inside = first + row < tokens;
        const bf16* from = matrix + (inside ? first + row : first) * pitch + column;
        cp_async16(tile + row * kTilePitch<kHeadDim> + column, from, inside ? 16 : 0);
    }
}

// sum(16 x 8 kFragments) += a(16 x kHeadDim) * b(8 kFragments x kHeadDim)^T, both stored by rows.
template <int kHeadDim, int kFragments>
__device__ __forceinline__ void multiply_rows(float (&sum)[kFragments][4], const bf16* a, const bf16* b) {
    constexpr int kPitch = kTilePitch<kHeadDim>;
    const int lane = threadIdx.x % kWarpThreads;
    const bf16* a_row = a + lane % 16 * kPitch + lane / 16 * 8;
    const bf16* b_row = b + (lane % 8 + lane / 16 * 8) * kPitch + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < kHeadDim; k += 16) {
        unsigned left[4];
        ldmatrix_x4(left, a_row + k);
#pragma unroll
        for (int f = 0; f < kFragments; f += 2) {
            unsigned right[4];
            ldmatrix_x4(right, b_row + f * 8 * kPitch + k);
            mma_m16n8k16(sum[f], left, {right[0], right[1]});
            mma_m16n8k16(sum[f + 1], left, {right[2], right[3]});
        }
    }
}

// sum(16 x 8 kColumns) += x(16 x 8 kFragments) * b(8 kFragments x 8 kColumns); x is rounded to bf16, b stored by rows of
// a tile, of which it may be some columns.
template <int kHeadDim, int kColumns, int kFragments>
__device__ __forceinline__ void multiply_columns(float (&sum)[kColumns][4], const float (&x)[kFragments][4],
                                                 const bf16* b) {
    constexpr int kPitch = kTilePitch<kHeadDim>;
    const int lane = threadIdx.x % kWarpThreads;
    const bf16* b_row = b + lane % 16 * kPitch + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < kFragments; k += 2) {
        const unsigned left[4] = {pack_bf16x2(x[k][0], x[k][1]), pack_bf16x2(x[k][2], x[k][3]),
                                  pack_bf16x2(x[k + 1][0], x[k + 1][1]), pack_bf16x2(x[k + 1][2], x[k + 1][3])};
#pragma unroll
        for (int f = 0; f < kColumns; f += 2) {
            unsigned right[4];
            ldmatrix_x4_trans(right, b_row + k * 8 * kPitch + f * 8);
            mma_m16n8k16(sum[f], left, {right[0], right[1]});
            mma_m16n8k16(sum[f + 1], left, {right[2], right[3]});
        }
    }
}

// Writes the warp's rows that lie in the matrix: row g of the fragments is row `first` + g, times by[0] (by[1] for the
// lower eight).
template <int kColumns>
__device__ __forceinline__ void store_rows(bf16* matrix, long long pitch, int first, int tokens,
                                           const float (&x)[kColumns][4], const float (&by)[2]) {
    const int lane = threadIdx.x % kWarpThreads;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first + lane / 4 + 8 * half;
        if (row >= tokens) continue;
        auto* to = reinterpret_cast<unsigned*>(matrix + row * pitch + lane % 4 * 2);
#pragma unroll
        for (int f = 0; f < kColumns; ++f)
            to[4 * f] = pack_bf16x2(x[f][2 * half] * by[half], x[f][2 * half + 1] * by[half]);
    }
}

// The next tile of keys from `tile` on that some query of `last` sees; after `last` there is none.
__device__ __forceinline__ int next_visible_tile(const int* tile_bounds, int tile, int last) {
    while (tile <= last && tile_bounds[2 * tile + 1] <= last * kTileTokens) ++tile;
    return tile;
}

// Whether every query of one tile sees every key of another.
__device__ __forceinline__ bool sees_all(const Mask& mask, int queries, int keys) {
    return mask.window == 0 && keys < queries &&
           min((queries + 1) * kTileTokens, mask.tokens) <= mask.tile_bounds[2 * keys];
}

// Fragments as the accumulators they are.
template <int kFragments>
__device__ __forceinline__ float (&in_a_row(float (&x)[kFragments][4]))[4 * kFragments] {
    return reinterpret_cast<float(&)[4 * kFragments]>(x);
}

template <int kFragments>
__device__ __forceinline__ void scale_fragments(float (&x)[kFragments][4], float by) {
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
        for (int c = 0; c < 4; ++c) x[f][c] *= by;
    }
}

// Products to scores in base 2.
template <int kFragments>
__device__ __forceinline__ void score_fragments(const Scores& scores, float (&x)[kFragments][4]) {
    if (!scores.capped()) return scale_fragments(x, scores.factor());
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
        for (int c = 0; c < 4; ++c) x[f][c] = scores.cap(x[f][c]);
    }
}

// Rows are queries from `i0` on, columns keys from `j0` on: puts `by` where the query does not see the key.
template <int kFragments>
__device__ __forceinline__ void hide_keys(float (&x)[kFragments][4], const Mask& mask, int i0, int j0, float by) {
    const int lane = threadIdx.x % kWarpThreads;
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const int i = i0 + lane / 4 + c / 2 * 8, j = j0 + 8 * f + lane % 4 * 2 + c % 2;
            if (j > i || j >= mask.tokens || i >= mask.subtree_end[j] || !mask.in_window(i, j)) x[f][c] = by;
        }
    }
}

// Rows are keys from `j0` on, columns queries from `i0` on: puts 0 where the query does not see the key.
template <int kFragments>
__device__ __forceinline__ void hide_queries(float (&x)[kFragments][4], const Mask& mask, const int (&end)[2], int j0,
                                             int i0) {
    const int lane = threadIdx.x % kWarpThreads;
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const int j = j0 + lane / 4 + c / 2 * 8, i = i0 + 8 * f + lane % 4 * 2 + c % 2;
            if (j > i || i >= end[c / 2] || !mask.in_window(i, j)) x[f][c] = 0.0f;
        }
    }
}
