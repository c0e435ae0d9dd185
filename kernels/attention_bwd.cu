// With p as in attention_fwd.cu, dp_ij = dout_i.v_j, delta_i = dout_i.out_i and ds_ij = p_ij (dp_ij - delta_i):
//
//     dv_j = sum over i of p_ij dout_i    dk_j = scale sum over i of ds_ij q_i    dq_i = scale sum over j of ds_ij k_j
//
// Three kernels, no atomics: attention_bwd_delta; attention_bwd_dkdv, which owns keys and walks the queries that see
// them, over all query heads of its key head; attention_bwd_dq, which owns queries and walks their keys. p is computed
// again from lse in the last two: 7 products instead of 5 buy an order of additions that never changes.
// With a soft cap ds is also multiplied by its slope, 1 - (s / softcap)^2.
// The queries that see key j are the run j..subtree_end[j], of which a window leaves those within it; a prompt's keys
// gather the gradients of the prompt and of every response in one pass.
//
// f32: one thread per row and head, no barrier; accumulators lie in shared memory. dkdv: grid (ceil(tokens / block),
// kv_heads), block 64, or 32 where a GPU has no room for more, 2 block (head_dim + 1) floats. dq: grid (ceil(tokens / 64), heads), block 64, 64 (head_dim + 1).
//
// bf16: the same grids with blocks of 128, four warps of 16 rows each; tensor cores with f32 sums; p and ds are rounded
// to bf16 before their second product. dkdv works on transposed scores, so p and ds leave the first product in the
// registers in which the second wants them. Two tiles of 64 rows stay in shared memory and two are walked, in two
// stages up to head_dim 96: at most 80896 bytes. Heads of 256 are not tuned: four CTAs, the third grid dimension, compute
// the same scores and own 64 columns each, in 135680 bytes.

#include <chunk.cuh>
#include <cta.cuh>
#include <lanes.cuh>
#include <math.cuh>
#include <row_tiles.cuh>
#include <tree_mask.cuh>
#include <types.cuh>

// ---- device code

// Launch bounds with one CTA per SM in view: ptxas would otherwise aim at more and spill. dkdv of bf16 heads of 32 has
// room for three, which the soft cap's registers would take away.
constexpr int kRowThreads = 64;
constexpr int kDeltaThreads = 128;

// Lanes that share a row: eight columns each at a time, so that a warp's load is of whole sectors.
constexpr int kDeltaLanes = 4;

template <class T>
__device__ void attention_bwd_delta(float* delta, const T* dout, const T* out, int tokens, int heads, int head_dim) {
    const long long row = (long long)blockIdx.x * (kDeltaThreads / kDeltaLanes) + threadIdx.x / kDeltaLanes;
    const int lane = threadIdx.x % kDeltaLanes;
    const bool exists = row < (long long)tokens * heads;
    float total = 0.0f;
    for (int d = lane * kChunk; exists && d < head_dim; d += kDeltaLanes * kChunk) {
        float a[kChunk], b[kChunk];
        load_chunk(a, dout + row * head_dim + d);
        load_chunk(b, out + row * head_dim + d);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) a[i] *= b[i];
        total += ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
    }
    total += __shfl_xor_sync(kFullMask, total, 1);
    total += __shfl_xor_sync(kFullMask, total, 2);
    if (exists && lane == 0) delta[row % heads * tokens + row / heads] = total;
}

// Eight values from `from` on, or the last of `count` again and again.
__device__ __forceinline__ Lanes load_lanes_until(const float* from, int count) {
    if (count >= kLanes) return load_lanes_unaligned(from);
    Lanes x;
#pragma unroll
    for (int l = 0; l < kLanes; ++l) x.v[l] = from[min(l, count - 1)];
    return x;
}

template <int kHeadDim>
__device__ void attention_bwd_dkdv_rows(float* dqkv, const float* dout, const float* lse, const float* delta,
                                        const float* qkv, const Mask& mask, const Scores& scores, int heads,
                                        int kv_heads) {
    const int tokens = mask.tokens;
    const Heads dims{heads, kv_heads, kHeadDim};
    const int kv_head = blockIdx.y, rows = blockDim.x;
    const int j = blockIdx.x * rows + threadIdx.x;
    if (j >= tokens) return;
    const float* k = qkv + j * dims.pitch() + dims.key(kv_head);
    const float* v = qkv + j * dims.pitch() + dims.value(kv_head);
    float* dk = shared_memory<float>() + threadIdx.x * (kHeadDim + 1);
    float* dv = dk + rows * (kHeadDim + 1);
    for (int d = 0; d < kHeadDim; d += kLanes) {
        store_lanes_unaligned(dk + d, all_lanes(0.0f));
        store_lanes_unaligned(dv + d, all_lanes(0.0f));
    }
    const int end = mask.subtree_end[j];
    for (int head = kv_head * dims.group(); head < (kv_head + 1) * dims.group(); ++head) {
        const long long stats = (long long)head * tokens;
        for (int i0 = j; i0 < end; i0 += kLanes) {
            const unsigned visible = seeing_lanes(mask, i0, j, end - i0);
            if (visible == 0) continue;
            const float *q_rows[kLanes], *dout_rows[kLanes];
            gather_rows(q_rows, qkv + dims.query(head), dims.pitch(), visible, j, i0);
            gather_rows(dout_rows, dout + dims.query(head), (long long)heads * kHeadDim, visible, j, i0);
            const Lanes score = score_lanes(scores, dot_each<kHeadDim>(k, q_rows));
            Lanes p = exp2_lanes(score - load_lanes_until(lse + stats + i0, end - i0));
            hide(p, visible, 0.0f);
            const Lanes dp = dot_each<kHeadDim>(v, dout_rows);
            Lanes ds = p * (dp - load_lanes_until(delta + stats + i0, end - i0));
            if (scores.capped()) ds = ds * slope_lanes(scores, score);
            hide(ds, visible, 0.0f);
            add_each<kHeadDim>(dv, p, dout_rows);
            add_each<kHeadDim>(dk, ds, q_rows);
        }
    }
    write_row<kHeadDim>(dqkv + j * dims.pitch() + dims.key(kv_head), dk, scores.scale);
    write_row<kHeadDim>(dqkv + j * dims.pitch() + dims.value(kv_head), dv, 1.0f);
}

template <int kHeadDim>
__device__ void attention_bwd_dq_rows(float* dqkv, const float* dout, const float* lse, const float* delta,
                                      const float* qkv, const Mask& mask, const Scores& scores, int heads,
                                      int kv_heads) {
    const int tokens = mask.tokens;
    const Heads dims{heads, kv_heads, kHeadDim};
    const int head = blockIdx.y, kv_head = head / dims.group();
    const int i = blockIdx.x * kRowThreads + threadIdx.x;
    if (i >= tokens) return;
    const float* q = qkv + i * dims.pitch() + dims.query(head);
    const float* own_dout = dout + ((long long)i * heads + head) * kHeadDim;
    const Lanes own_lse = all_lanes(lse[(long long)head * tokens + i]);
    const Lanes own_delta = all_lanes(delta[(long long)head * tokens + i]);
    float* dq = shared_memory<float>() + threadIdx.x * (kHeadDim + 1);
    for (int d = 0; d < kHeadDim; d += kLanes) store_lanes_unaligned(dq + d, all_lanes(0.0f));
    for (int tile = 0; tile * kTileTokens <= i; ++tile) {
        if (mask.tile_bounds[2 * tile + 1] <= i) continue;
        const int end = min((tile + 1) * kTileTokens, i + 1);
        for (int j0 = tile * kTileTokens; j0 < end; j0 += kLanes) {
            const unsigned visible = visible_lanes(mask, i, j0);
            if (visible == 0) continue;
            const float *k_rows[kLanes], *v_rows[kLanes];
            gather_rows(k_rows, qkv + dims.key(kv_head), dims.pitch(), visible, i, j0);
            gather_rows(v_rows, qkv + dims.value(kv_head), dims.pitch(), visible, i, j0);
            const Lanes score = score_lanes(scores, dot_each<kHeadDim>(q, k_rows));
            const Lanes p = exp2_lanes(score - own_lse);
            Lanes ds = p * (dot_each<kHeadDim>(own_dout, v_rows) - own_delta);
            if (scores.capped()) ds = ds * slope_lanes(scores, score);
            hide(ds, visible, 0.0f);
            add_each<kHeadDim>(dq, ds, k_rows);
        }
    }
    write_row<kHeadDim>(dqkv + i * dims.pitch() + dims.query(head), dq, scores.scale);
}

// Queries that dkdv handles at once: what its accumulators leave registers for.
template <int kHeadDim>
constexpr int kQueryFragments = kHeadDim <= 64 ? 8 : 4;
// Columns of a gradient that one CTA owns: more accumulators would spill, so four CTAs compute the same scores.
template <int kHeadDim>
constexpr int kOwnColumns = kHeadDim <= 128 ? kHeadDim : 64;
// Copies of the tiles that are walked; the second one does not fit for the largest heads.
template <int kHeadDim>
constexpr int kStages = kHeadDim <= 96 ? 2 : 1;

// What dkdv reads of one tile of queries and one head.
template <int kHeadDim>
struct QueryStage {
    bf16 q[kTileElements<kHeadDim>];
    bf16 dout[kTileElements<kHeadDim>];
    float lse[kTileTokens];
    float delta[kTileTokens];

    __device__ __forceinline__ void copy(const bf16* q_rows, long long q_pitch, const bf16* dout_rows,
                                         long long dout_pitch, const float* lse_row, const float* delta_row, int first,
                                         int tokens) {
        copy_tile<kHeadDim>(q, q_rows, q_pitch, first, tokens);
        copy_tile<kHeadDim>(dout, dout_rows, dout_pitch, first, tokens);
        const int row = threadIdx.x % kTileTokens, i = first + row;
        const bool second = threadIdx.x >= kTileTokens;
        const float* from = second ? delta_row : lse_row;
        (second ? delta : lse)[row] = i < tokens ? from[i] : 0.0f;
    }
};

template <int kHeadDim>
__device__ void attention_bwd_dkdv_tiles(bf16* dqkv, const bf16* dout, const float* lse, const float* delta,
                                         const bf16* qkv, const Mask& mask, const Scores& scores, int heads,
                                         int kv_heads) {
    const int *tile_bounds = mask.tile_bounds, tokens = mask.tokens;
    constexpr int kPitch = kTilePitch<kHeadDim>, kFragments = kQueryFragments<kHeadDim>;
    constexpr int kLastStage = kStages<kHeadDim> - 1;
    using Stage = QueryStage<kHeadDim>;
    const Heads dims{heads, kv_heads, kHeadDim};
    const int kv_head = blockIdx.y, tile = blockIdx.x, lane = threadIdx.x % kWarpThreads;
    const int warp_row = threadIdx.x / kWarpThreads * kWarpRows;
    const int first_row = tile * kTileTokens + warp_row, first_column = blockIdx.z * kOwnColumns<kHeadDim>;
    bf16* k_tile = shared_memory<bf16>();
    bf16* v_tile = k_tile + kTileElements<kHeadDim>;
    Stage* stages = reinterpret_cast<Stage*>(v_tile + kTileElements<kHeadDim>);

    // The queries that see a key of this tile are a run, walked once for each query head.
    const int run = (tile_bounds[2 * tile + 1] + kTileTokens - 1) / kTileTokens - tile;
    const int steps = run * dims.group();
    const long long out_pitch = (long long)heads * kHeadDim;
    const auto copy_step = [&](int step) {
        const int head = kv_head * dims.group() + step / run, m = tile + step % run;
        const long long stats = (long long)head * tokens;
        stages[step & kLastStage].copy(qkv + dims.query(head), dims.pitch(), dout + dims.query(head), out_pitch,
                                       lse + stats, delta + stats, m * kTileTokens, tokens);
    };
    copy_tile<kHeadDim>(k_tile, qkv + dims.key(kv_head), dims.pitch(), tile * kTileTokens, tokens);
    copy_tile<kHeadDim>(v_tile, qkv + dims.value(kv_head), dims.pitch(), tile * kTileTokens, tokens);
    copy_step(0);
    cp_async_commit();

    int end[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int j = first_row + lane / 4 + 8 * half;
        end[half] = j < tokens ? mask.subtree_end[j] : 0;
    }
    float dk[kOwnColumns<kHeadDim> / 8][4] = {}, dv[kOwnColumns<kHeadDim> / 8][4] = {};
    for (int step = 0; step < steps; ++step) {
        if (kLastStage > 0 && step + 1 < steps) copy_step(step + 1);
        cp_async_commit();
        cp_async_wait<kLastStage>();
        __syncthreads();
        const Stage& stage = stages[step & kLastStage];
        const int m = tile + step % run;
        const bool full = sees_all(mask, m, tile);
#pragma unroll 1
        for (int column = 0; column < kTileTokens; column += 8 * kFragments) {
            const bf16* q_rows = stage.q + column * kPitch;
            const bf16* dout_rows = stage.dout + column * kPitch;
            float p[kFragments][4] = {};
            multiply_rows<kHeadDim>(p, k_tile + warp_row * kPitch, q_rows);
            score_fragments(scores, p);
            const int own = column + lane % 4 * 2;
#pragma unroll
            for (int f = 0; f < kFragments; ++f) {
#pragma unroll
                for (int c = 0; c < 4; ++c)
                    p[f][c] = exp2_approx(p[f][c] - stage.lse[own + 8 * f + c % 2]);
            }
            if (!full) hide_queries(p, mask, end, first_row, m * kTileTokens + column);
            multiply_columns<kHeadDim>(dv, p, dout_rows + first_column);
            float ds[kFragments][4] = {};
            multiply_rows<kHeadDim>(ds, v_tile + warp_row * kPitch, dout_rows);
#pragma unroll
            for (int f = 0; f < kFragments; ++f) {
#pragma unroll
                for (int c = 0; c < 4; ++c) ds[f][c] = p[f][c] * (ds[f][c] - stage.delta[own + 8 * f + c % 2]);
            }
            if (scores.capped()) {
#pragma unroll
                for (int f = 0; f < kFragments; ++f) {
#pragma unroll
                    for (int c = 0; c < 4; ++c) ds[f][c] *= scores.slope(p[f][c], stage.lse[own + 8 * f + c % 2]);
                }
            }
            multiply_columns<kHeadDim>(dk, ds, q_rows + first_column);
        }
        // No warp reads this stage any more.
        __syncthreads();
        if (kLastStage == 0 && step + 1 < steps) copy_step(step + 1);
    }
    const float scales[2] = {scores.scale, scores.scale}, ones[2] = {1.0f, 1.0f};
    store_rows(dqkv + dims.key(kv_head) + first_column, dims.pitch(), first_row, tokens, dk, scales);
    store_rows(dqkv + dims.value(kv_head) + first_column, dims.pitch(), first_row, tokens, dv, ones);
}

template <int kHeadDim>
__device__ void attention_bwd_dq_tiles(bf16* dqkv, const bf16* dout, const float* lse, const float* delta,
                                       const bf16* qkv, const Mask& mask, const Scores& scores, int heads,
                                       int kv_heads) {
    const int *tile_bounds = mask.tile_bounds, tokens = mask.tokens;
    constexpr int kPitch = kTilePitch<kHeadDim>, kLastStage = kStages<kHeadDim> - 1;
    const Heads dims{heads, kv_heads, kHeadDim};
    const int head = blockIdx.y, kv_head = head / dims.group(), lane = threadIdx.x % kWarpThreads;
    // The last queries have the most keys before them and start first.
    const int tile = gridDim.x - 1 - blockIdx.x;
    const int warp_row = threadIdx.x / kWarpThreads * kWarpRows;
    const int first_row = tile * kTileTokens + warp_row, first_column = blockIdx.z * kOwnColumns<kHeadDim>;
    bf16* q_tile = shared_memory<bf16>();
    bf16* dout_tile = q_tile + kTileElements<kHeadDim>;
    bf16* stages = dout_tile + kTileElements<kHeadDim>;
    const auto copy_keys = [&](int n, int stage) {
        bf16* k_tile = stages + 2 * stage * kTileElements<kHeadDim>;
        copy_tile<kHeadDim>(k_tile, qkv + dims.key(kv_head), dims.pitch(), n * kTileTokens, tokens);
        copy_tile<kHeadDim>(k_tile + kTileElements<kHeadDim>, qkv + dims.value(kv_head), dims.pitch(), n * kTileTokens,
                            tokens);
    };
    int n = next_visible_tile(tile_bounds, 0, tile);
    copy_tile<kHeadDim>(q_tile, qkv + dims.query(head), dims.pitch(), tile * kTileTokens, tokens);
    copy_tile<kHeadDim>(dout_tile, dout + dims.query(head), (long long)heads * kHeadDim, tile * kTileTokens, tokens);
    copy_keys(n, 0);
    cp_async_commit();

    float own_lse[2], own_delta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int i = first_row + lane / 4 + 8 * half;
        own_lse[half] = i < tokens ? lse[(long long)head * tokens + i] : 0.0f;
        own_delta[half] = i < tokens ? delta[(long long)head * tokens + i] : 0.0f;
    }
    float dq[kOwnColumns<kHeadDim> / 8][4] = {};
    for (int stage = 0; n <= tile; stage ^= kLastStage) {
        const int next = next_visible_tile(tile_bounds, n + 1, tile);
        if (kLastStage > 0 && next <= tile) copy_keys(next, stage ^ 1);
        cp_async_commit();
        cp_async_wait<kLastStage>();
        __syncthreads();
        const bf16* k_tile = stages + 2 * stage * kTileElements<kHeadDim>;
        const bf16* v_tile = k_tile + kTileElements<kHeadDim>;
        float p[kTileFragments][4] = {}, ds[kTileFragments][4] = {};
        multiply_rows<kHeadDim>(p, q_tile + warp_row * kPitch, k_tile);
        score_fragments(scores, p);
#pragma unroll
        for (int f = 0; f < kTileFragments; ++f) {
#pragma unroll
            for (int c = 0; c < 4; ++c) p[f][c] = exp2_approx(p[f][c] - own_lse[c / 2]);
        }
        if (!sees_all(mask, tile, n)) hide_keys(p, mask, first_row, n * kTileTokens, 0.0f);
        multiply_rows<kHeadDim>(ds, dout_tile + warp_row * kPitch, v_tile);
#pragma unroll
        for (int f = 0; f < kTileFragments; ++f) {
#pragma unroll
            for (int c = 0; c < 4; ++c) ds[f][c] = p[f][c] * (ds[f][c] - own_delta[c / 2]);
        }
        if (scores.capped()) {
#pragma unroll
            for (int f = 0; f < kTileFragments; ++f) {
#pragma unroll
                for (int c = 0; c < 4; ++c) ds[f][c] *= scores.slope(p[f][c], own_lse[c / 2]);
            }
        }
        multiply_columns<kHeadDim>(dq, ds, k_tile + first_column);
        // No warp reads this stage any more.
        __syncthreads();
        if (kLastStage == 0 && next <= tile) copy_keys(next, 0);
        n = next;
    }
    const float scales[2] = {scores.scale, scores.scale};
    store_rows(dqkv + dims.query(head) + first_column, dims.pitch(), first_row, tokens, dq, scales);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kDeltaThreads) attention_bwd_delta_f32(
    float* delta,       // (heads, tokens)
    const float* dout,  // (tokens, heads, head_dim)
    const float* out,   // (tokens, heads, head_dim)
    int tokens, int heads, int head_dim) {
    attention_bwd_delta<float>(delta, dout, out, tokens, heads, head_dim);
}

extern "C" __global__ void __launch_bounds__(kDeltaThreads) attention_bwd_delta_bf16(
    float* delta,       // (heads, tokens)
    const bf16* dout,   // (tokens, heads, head_dim)
    const bf16* out,    // (tokens, heads, head_dim)
    int tokens, int heads, int head_dim) {
    attention_bwd_delta<bf16>(delta, dout, out, tokens, heads, head_dim);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dkdv_hd32_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 32), keys and values written
    const float* dout,       // (tokens, heads, 32)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 32)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv_rows<32>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 3) attention_bwd_dkdv_hd32_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 32), keys and values written
    const bf16* dout,        // (tokens, heads, 32)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 32)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv_tiles<32>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dkdv_hd64_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 64), keys and values written
    const float* dout,       // (tokens, heads, 64)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 64)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv_rows<64>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 1) attention_bwd_dkdv_hd64_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 64), keys and values written
    const bf16* dout,        // (tokens, heads, 64)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 64)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv_tiles<64>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dkdv_hd96_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 96), keys and values written
    const float* dout,       // (tokens, heads, 96)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 96)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv_rows<96>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 1) attention_bwd_dkdv_hd96_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 96), keys and values written
    const bf16* dout,        // (tokens, heads, 96)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 96)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv_tiles<96>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dkdv_hd128_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 128), keys and values written
    const float* dout,       // (tokens, heads, 128)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 128)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv_rows<128>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 1) attention_bwd_dkdv_hd128_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 128), keys and values written
    const bf16* dout,        // (tokens, heads, 128)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 128)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv_tiles<128>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dkdv_hd256_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 256), keys and values written
    const float* dout,       // (tokens, heads, 256)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 256)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv_rows<256>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 1) attention_bwd_dkdv_hd256_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 256), keys and values written
    const bf16* dout,        // (tokens, heads, 256)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 256)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv_tiles<256>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dq_hd32_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 32), queries written
    const float* dout,       // (tokens, heads, 32)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 32)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dq_rows<32>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 1) attention_bwd_dq_hd32_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 32), queries written
    const bf16* dout,        // (tokens, heads, 32)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 32)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dq_tiles<32>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dq_hd64_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 64), queries written
    const float* dout,       // (tokens, heads, 64)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 64)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dq_rows<64>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 1) attention_bwd_dq_hd64_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 64), queries written
    const bf16* dout,        // (tokens, heads, 64)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 64)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dq_tiles<64>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dq_hd96_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 96), queries written
    const float* dout,       // (tokens, heads, 96)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 96)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dq_rows<96>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 1) attention_bwd_dq_hd96_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 96), queries written
    const bf16* dout,        // (tokens, heads, 96)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 96)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dq_tiles<96>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dq_hd128_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 128), queries written
    const float* dout,       // (tokens, heads, 128)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 128)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dq_rows<128>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 1) attention_bwd_dq_hd128_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 128), queries written
    const bf16* dout,        // (tokens, heads, 128)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 128)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dq_tiles<128>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dq_hd256_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 256), queries written
    const float* dout,       // (tokens, heads, 256)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 256)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dq_rows<256>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 1) attention_bwd_dq_hd256_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 256), queries written
    const bf16* dout,        // (tokens, heads, 256)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 256)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_bwd_dq_tiles<256>(dqkv, dout, lse, delta, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}
