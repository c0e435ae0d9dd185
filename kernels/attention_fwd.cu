// out_i = sum over visible j of p_ij v_j,  p_ij = exp(scale q_i.k_j) / sum over visible j' of exp(scale q_i.k_j')
//
// visible(i, j) = j <= i and i < subtree_end[j]: j lies on the path from the root of i's tree to i. Tiles of 64 keys
// that no query of a tile sees are skipped by their largest subtree_end. Scores are kept in base 2: s = scale log2(e)
// q.k, and lse (heads, tokens) is the base-2 logarithm of the denominator, for the backward pass. The softmax is
// online: the running maximum only ever sees visible scores, so what a query does not see cannot change its bits.
//
// f32: one thread per query and head; no thread needs another, so there is no barrier. Its output row lies in shared
// memory. Grid (ceil(tokens / 64), heads), block 64, 64 (head_dim + 1) floats of shared memory.

#include <cta.cuh>
#include <lanes.cuh>
#include <math.cuh>
#include <tree_mask.cuh>
#include <types.cuh>

// ---- device code

constexpr float kLog2E = 1.4426950408889634f;
// Launch bounds with one CTA per SM in view: ptxas would otherwise aim at more and spill.
constexpr int kRowThreads = 64;

template <class T, int kHeadDim>
__device__ void attention_fwd(T* out, float* lse, const T* qkv, const int* subtree_end, const int* tile_bounds,
                              float scale, int tokens, int heads, int kv_heads) {
    const Heads dims{heads, kv_heads, kHeadDim};
    const int head = blockIdx.y, kv_head = head / dims.group();
    const int i = blockIdx.x * kRowThreads + threadIdx.x;
    if (i >= tokens) return;
    const T* q = qkv + i * dims.pitch() + dims.query(head);
    const T* keys = qkv + dims.key(kv_head);
    const T* values = qkv + dims.value(kv_head);
    // One float of padding spreads the rows of a warp over the banks.
    float* row = shared_memory<float>() + threadIdx.x * (kHeadDim + 1);
    for (int d = 0; d < kHeadDim; d += kLanes) store_lanes_unaligned(row + d, all_lanes(0.0f));
    float top = -INFINITY, total = 0.0f;
    for (int tile = 0; tile * kTileTokens <= i; ++tile) {
        if (tile_bounds[2 * tile + 1] <= i) continue;
        const int end = min((tile + 1) * kTileTokens, i + 1);
        for (int j0 = tile * kTileTokens; j0 < end; j0 += kLanes) {
            const unsigned visible = visible_lanes(subtree_end, i, j0);
            if (visible == 0) continue;
            const T *k_rows[kLanes], *v_rows[kLanes];
            gather_rows(k_rows, keys, dims.pitch(), visible, i, j0);
            gather_rows(v_rows, values, dims.pitch(), visible, i, j0);
            Lanes score = dot_each<kHeadDim>(q, k_rows) * all_lanes(scale * kLog2E);
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
    lse[(long long)head * tokens + i] = top + log2f(total);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_fwd_hd32_f32(
    float* out,              // (tokens, heads, 32)
    float* lse,              // (heads, tokens), base 2
    const float* qkv,        // (tokens, heads + 2 kv_heads, 32)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_fwd<float, 32>(out, lse, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_fwd_hd32_bf16(
    bf16* out,               // (tokens, heads, 32)
    float* lse,              // (heads, tokens), base 2
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 32)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_fwd<bf16, 32>(out, lse, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_fwd_hd64_f32(
    float* out,              // (tokens, heads, 64)
    float* lse,              // (heads, tokens), base 2
    const float* qkv,        // (tokens, heads + 2 kv_heads, 64)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_fwd<float, 64>(out, lse, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_fwd_hd64_bf16(
    bf16* out,               // (tokens, heads, 64)
    float* lse,              // (heads, tokens), base 2
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 64)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_fwd<bf16, 64>(out, lse, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_fwd_hd96_f32(
    float* out,              // (tokens, heads, 96)
    float* lse,              // (heads, tokens), base 2
    const float* qkv,        // (tokens, heads + 2 kv_heads, 96)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_fwd<float, 96>(out, lse, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_fwd_hd96_bf16(
    bf16* out,               // (tokens, heads, 96)
    float* lse,              // (heads, tokens), base 2
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 96)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_fwd<bf16, 96>(out, lse, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_fwd_hd128_f32(
    float* out,              // (tokens, heads, 128)
    float* lse,              // (heads, tokens), base 2
    const float* qkv,        // (tokens, heads + 2 kv_heads, 128)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_fwd<float, 128>(out, lse, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_fwd_hd128_bf16(
    bf16* out,               // (tokens, heads, 128)
    float* lse,              // (heads, tokens), base 2
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 128)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_fwd<bf16, 128>(out, lse, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}
