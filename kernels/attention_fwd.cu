// out_i = sum over visible j of p_ij v_j,  p_ij = exp(s_ij) / sum over visible j' of exp(s_ij'),  s_ij = scale q_i.k_j,
// or with a soft cap s_ij = softcap tanh(scale q_i.k_j / softcap)
//
// visible(i, j) = j <= i and i < subtree_end[j]: j lies on the path from the root of i's tree to i; and with a window
// position[i] - position[j] < window. Tiles of 64 keys that no query of a tile sees are skipped by their largest
// subtree_end; a window skips none. Scores are kept in base 2, and lse (heads, tokens) is the base-2 logarithm of the
// denominator, for the backward pass. The softmax is online: the running maximum only ever sees visible scores, so what
// a query does not see cannot change its bits. Window and soft cap are branches all threads take alike, 0 is none.
//
// f32: one thread per query and head, eight keys at a time. No thread needs another, so there is no barrier, and groups
// of keys it does not see are skipped. Its output row lies in shared memory. Grid (ceil(tokens / 64), heads), block 64,
// 64 (head_dim + 1) floats of shared memory.
//
// bf16: one CTA per 64 queries and head, four warps of 16 rows, tiles of 64 keys. Products on tensor cores with f32
// sums; weights are rounded to bf16 before they meet the values. Values arrive while the scores are computed, the next
// keys while the values are used. Grid (ceil(tokens / 64), heads), block 128, 384 (head_dim + 8) bytes. Heads of 256 are
// not tuned: two CTAs, the third grid dimension, compute the same scores and own 128 columns each.
// Roof: tensor cores through mma.sync; exp2 for heads of 64 and below.

#include <cta.cuh>
#include <lanes.cuh>
#include <math.cuh>
#include <online_softmax.cuh>
#include <row_tiles.cuh>
#include <tree_mask.cuh>
#include <types.cuh>

// ---- device code

// Launch bounds with one CTA per SM in view: ptxas would otherwise aim at more and spill. bf16 heads of 32 and 64 have
// room for four and three, which the soft cap's registers would take away.
constexpr int kRowThreads = 64;

template <int kHeadDim>
__device__ void attention_fwd_rows(float* out, float* lse, const float* qkv, const Mask& mask, const Scores& scores,
                                   int heads, int kv_heads) {
    const Heads dims{heads, kv_heads, kHeadDim};
    const int head = blockIdx.y, kv_head = head / dims.group();
    const int i = blockIdx.x * kRowThreads + threadIdx.x;
    if (i >= mask.tokens) return;
    const float* q = qkv + i * dims.pitch() + dims.query(head);
    const float* keys = qkv + dims.key(kv_head);
    const float* values = qkv + dims.value(kv_head);
    // One float of padding spreads the rows of a warp over the banks.
    float* row = shared_memory<float>() + threadIdx.x * (kHeadDim + 1);
    for (int d = 0; d < kHeadDim; d += kLanes) store_lanes_unaligned(row + d, all_lanes(0.0f));
    float top = -INFINITY, total = 0.0f;
    for (int tile = 0; tile * kTileTokens <= i; ++tile) {
        if (mask.tile_bounds[2 * tile + 1] <= i) continue;
        const int end = min((tile + 1) * kTileTokens, i + 1);
        for (int j0 = tile * kTileTokens; j0 < end; j0 += kLanes) {
            const unsigned visible = visible_lanes(mask, i, j0);
            if (visible == 0) continue;
            const float *k_rows[kLanes], *v_rows[kLanes];
            gather_rows(k_rows, keys, dims.pitch(), visible, i, j0);
            gather_rows(v_rows, values, dims.pitch(), visible, i, j0);
            Lanes score = score_lanes(scores, dot_each<kHeadDim>(q, k_rows));
            hide(score, visible, -INFINITY);
            const float highest = max_lane(score);
            if (highest > top) {
                const float shrink = exp2_approx(top - highest);
                scale_row<kHeadDim>(row, shrink);
                total *= shrink;
                top = highest;
            }
            const Lanes p = exp2_lanes(score - all_lanes(top));
            total += sum_lanes(p);
            add_each<kHeadDim>(row, p, v_rows);
        }
    }
    write_row<kHeadDim>(out + ((long long)i * heads + head) * kHeadDim, row, 1.0f / total);
    lse[(long long)head * mask.tokens + i] = top + log2f(total);
}

// Columns of the output that one CTA owns: more accumulators would spill, so two CTAs compute the same scores.
template <int kHeadDim>
constexpr int kOwnColumns = kHeadDim <= 128 ? kHeadDim : 128;

template <int kHeadDim>
__device__ void attention_fwd_tiles(bf16* out, float* lse, const bf16* qkv, const Mask& mask, const Scores& scores,
                                    int heads, int kv_heads) {
    const int *tile_bounds = mask.tile_bounds, tokens = mask.tokens;
    const Heads dims{heads, kv_heads, kHeadDim};
    const int head = blockIdx.y, kv_head = head / dims.group();
    // The last queries have the most keys before them and start first.
    const int tile = gridDim.x - 1 - blockIdx.x;
    const int warp_row = threadIdx.x / kWarpThreads * kWarpRows;
    const int first_row = tile * kTileTokens + warp_row, first_column = blockIdx.z * kOwnColumns<kHeadDim>;
    bf16* q_tile = shared_memory<bf16>();
    bf16* k_tile = q_tile + kTileElements<kHeadDim>;
    bf16* v_tile = k_tile + kTileElements<kHeadDim>;
    const bf16* keys = qkv + dims.key(kv_head);
    const bf16* values = qkv + dims.value(kv_head);

    int n = next_visible_tile(tile_bounds, 0, tile);
    copy_tile<kHeadDim>(q_tile, qkv + dims.query(head), dims.pitch(), tile * kTileTokens, tokens);
    copy_tile<kHeadDim>(k_tile, keys, dims.pitch(), n * kTileTokens, tokens);
    cp_async_commit();
    float sum[kOwnColumns<kHeadDim> / 8][4] = {};
    // The scores are in base 2 already.
    Softmax softmax{1.0f};
    while (n <= tile) {
        cp_async_wait<0>();
        // The keys are here, and no warp reads the values of the tile before.
        __syncthreads();
        copy_tile<kHeadDim>(v_tile, values, dims.pitch(), n * kTileTokens, tokens);
        cp_async_commit();
        float s[kTileFragments][4] = {};
        multiply_rows<kHeadDim>(s, q_tile + warp_row * kTilePitch<kHeadDim>, k_tile);
        score_fragments(scores, s);
        if (!sees_all(mask, tile, n)) hide_keys(s, mask, first_row, n * kTileTokens, -INFINITY);
        float shrink[2];
        softmax.step(in_a_row(s), shrink);
#pragma unroll
        for (int f = 0; f < kOwnColumns<kHeadDim> / 8; ++f) {
#pragma unroll
            for (int c = 0; c < 4; ++c) sum[f][c] *= shrink[c / 2];
        }
        const int next = next_visible_tile(tile_bounds, n + 1, tile);
        cp_async_wait<0>();
        // The values are here, and no warp reads these keys any more.
        __syncthreads();
        if (next <= tile) copy_tile<kHeadDim>(k_tile, keys, dims.pitch(), next * kTileTokens, tokens);
        cp_async_commit();
        multiply_columns<kHeadDim>(sum, s, v_tile + first_column);
        n = next;
    }
    // Nothing is pending: the last commit was empty.
    softmax.finish();
    const float by[2] = {1.0f / softmax.total[0], 1.0f / softmax.total[1]};
    store_rows(out + dims.query(head) + first_column, (long long)heads * kHeadDim, first_row, tokens, sum, by);
    const int lane = threadIdx.x % kWarpThreads;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int i = first_row + lane / 4 + 8 * half;
        if (lane % 4 == 0 && i < tokens && blockIdx.z == 0)
            lse[(long long)head * tokens + i] = softmax.top[half] + log2f(softmax.total[half]);
    }
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_fwd_hd32_f32(
    float* out,              // (tokens, heads, 32)
    float* lse,              // (heads, tokens), base 2
    const float* qkv,        // (tokens, heads + 2 kv_heads, 32)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_fwd_rows<32>(out, lse, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 4) attention_fwd_hd32_bf16(
    bf16* out,               // (tokens, heads, 32)
    float* lse,              // (heads, tokens), base 2
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 32)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_fwd_tiles<32>(out, lse, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_fwd_hd64_f32(
    float* out,              // (tokens, heads, 64)
    float* lse,              // (heads, tokens), base 2
    const float* qkv,        // (tokens, heads + 2 kv_heads, 64)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_fwd_rows<64>(out, lse, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 3) attention_fwd_hd64_bf16(
    bf16* out,               // (tokens, heads, 64)
    float* lse,              // (heads, tokens), base 2
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 64)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_fwd_tiles<64>(out, lse, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_fwd_hd96_f32(
    float* out,              // (tokens, heads, 96)
    float* lse,              // (heads, tokens), base 2
    const float* qkv,        // (tokens, heads + 2 kv_heads, 96)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_fwd_rows<96>(out, lse, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 1) attention_fwd_hd96_bf16(
    bf16* out,               // (tokens, heads, 96)
    float* lse,              // (heads, tokens), base 2
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 96)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_fwd_tiles<96>(out, lse, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_fwd_hd128_f32(
    float* out,              // (tokens, heads, 128)
    float* lse,              // (heads, tokens), base 2
    const float* qkv,        // (tokens, heads + 2 kv_heads, 128)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_fwd_rows<128>(out, lse, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 1) attention_fwd_hd128_bf16(
    bf16* out,               // (tokens, heads, 128)
    float* lse,              // (heads, tokens), base 2
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 128)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_fwd_tiles<128>(out, lse, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_fwd_hd256_f32(
    float* out,              // (tokens, heads, 256)
    float* lse,              // (heads, tokens), base 2
    const float* qkv,        // (tokens, heads + 2 kv_heads, 256)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_fwd_rows<256>(out, lse, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kTileThreads, 1) attention_fwd_hd256_bf16(
    bf16* out,               // (tokens, heads, 256)
    float* lse,              // (heads, tokens), base 2
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 256)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    const int* position,     // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads) {
    attention_fwd_tiles<256>(out, lse, qkv, {subtree_end, tile_bounds, position, window, tokens},
        {scale, softcap}, heads, kv_heads);
}
