// With p as in attention_fwd.cu, dp_ij = dout_i.v_j, delta_i = dout_i.out_i and ds_ij = p_ij (dp_ij - delta_i):
//
//     dv_j = sum over i of p_ij dout_i    dk_j = scale sum over i of ds_ij q_i    dq_i = scale sum over j of ds_ij k_j
//
// Three kernels, no atomics: attention_bwd_delta; attention_bwd_dkdv, which owns keys and walks the queries that see
// them, over all query heads of its key head; attention_bwd_dq, which owns queries and walks their keys. p is computed
// again from lse in the last two: 7 products instead of 5 buy an order of additions that never changes.
// The queries that see key j are the run j..subtree_end[j], so keys need no mask at all; a prompt's keys gather the
// gradients of the prompt and of every response in one pass.
//
// f32: one thread per row and head, no barrier; accumulators lie in shared memory. dkdv: grid (ceil(tokens / 64),
// kv_heads), block 64, 128 (head_dim + 1) floats. dq: grid (ceil(tokens / 64), heads), block 64, 64 (head_dim + 1).

#include <cta.cuh>
#include <lanes.cuh>
#include <tree_mask.cuh>
#include <types.cuh>

// ---- device code

constexpr float kLog2E = 1.4426950408889634f;
// Launch bounds with one CTA per SM in view: ptxas would otherwise aim at more and spill.
constexpr int kRowThreads = 64;

template <class T>
__device__ void attention_bwd_delta(float* delta, const T* dout, const T* out, int tokens, int heads, int head_dim) {
    const long long row = (long long)blockIdx.x * kRowThreads + threadIdx.x;
    if (row >= (long long)tokens * heads) return;
    const T *a = dout + row * head_dim, *b = out + row * head_dim;
    float sum[kLanes] = {};
    for (int d = 0; d < head_dim; d += kLanes) {
#pragma unroll
        for (int l = 0; l < kLanes; ++l) sum[l] += to_f32(a[d + l]) * to_f32(b[d + l]);
    }
    const float total = ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
    delta[row % heads * tokens + row / heads] = total;
}

// Eight values from `from` on, or the last of `count` again and again.
__device__ __forceinline__ Lanes load_lanes_until(const float* from, int count) {
    if (count >= kLanes) return load_lanes_unaligned(from);
    Lanes x;
#pragma unroll
    for (int l = 0; l < kLanes; ++l) x.v[l] = from[min(l, count - 1)];
    return x;
}

template <class T, int kHeadDim>
__device__ void attention_bwd_dkdv(T* dqkv, const T* dout, const float* lse, const float* delta,
                                   const T* qkv, const int* subtree_end, float scale, int tokens, int heads,
                                   int kv_heads) {
    const Heads dims{heads, kv_heads, kHeadDim};
    const int kv_head = blockIdx.y;
    const int j = blockIdx.x * kRowThreads + threadIdx.x;
    if (j >= tokens) return;
    const T* k = qkv + j * dims.pitch() + dims.key(kv_head);
    const T* v = qkv + j * dims.pitch() + dims.value(kv_head);
    float* dk = shared_memory<float>() + threadIdx.x * (kHeadDim + 1);
    float* dv = dk + kRowThreads * (kHeadDim + 1);
    for (int d = 0; d < kHeadDim; d += kLanes) {
        store_lanes_unaligned(dk + d, all_lanes(0.0f));
        store_lanes_unaligned(dv + d, all_lanes(0.0f));
    }
    const int end = subtree_end[j];
    for (int head = kv_head * dims.group(); head < (kv_head + 1) * dims.group(); ++head) {
        const long long stats = (long long)head * tokens;
        for (int i0 = j; i0 < end; i0 += kLanes) {
            const unsigned visible = end - i0 >= kLanes ? 0xffu : (1u << (end - i0)) - 1;
            const T *q_rows[kLanes], *dout_rows[kLanes];
            gather_rows(q_rows, qkv + dims.query(head), dims.pitch(), visible, j, i0);
            gather_rows(dout_rows, dout + dims.query(head), (long long)heads * kHeadDim, visible, j, i0);
            const Lanes score = dot_each<kHeadDim>(k, q_rows) * all_lanes(scale * kLog2E);
            Lanes p = exp2_lanes(score - load_lanes_until(lse + stats + i0, end - i0));
            hide(p, visible, 0.0f);
            const Lanes dp = dot_each<kHeadDim>(v, dout_rows);
            Lanes ds = p * (dp - load_lanes_until(delta + stats + i0, end - i0));
            hide(ds, visible, 0.0f);
            add_each<kHeadDim>(dv, p, dout_rows);
            add_each<kHeadDim>(dk, ds, q_rows);
        }
    }
    write_row<kHeadDim>(dqkv + j * dims.pitch() + dims.key(kv_head), dk, scale);
    write_row<kHeadDim>(dqkv + j * dims.pitch() + dims.value(kv_head), dv, 1.0f);
}

template <class T, int kHeadDim>
__device__ void attention_bwd_dq(T* dqkv, const T* dout, const float* lse, const float* delta,
                                 const T* qkv, const int* subtree_end, const int* tile_bounds, float scale,
                                 int tokens, int heads, int kv_heads) {
    const Heads dims{heads, kv_heads, kHeadDim};
    const int head = blockIdx.y, kv_head = head / dims.group();
    const int i = blockIdx.x * kRowThreads + threadIdx.x;
    if (i >= tokens) return;
    const T* q = qkv + i * dims.pitch() + dims.query(head);
    const T* own_dout = dout + ((long long)i * heads + head) * kHeadDim;
    const Lanes own_lse = all_lanes(lse[(long long)head * tokens + i]);
    const Lanes own_delta = all_lanes(delta[(long long)head * tokens + i]);
    float* dq = shared_memory<float>() + threadIdx.x * (kHeadDim + 1);
    for (int d = 0; d < kHeadDim; d += kLanes) store_lanes_unaligned(dq + d, all_lanes(0.0f));
    for (int tile = 0; tile * kTileTokens <= i; ++tile) {
        if (tile_bounds[2 * tile + 1] <= i) continue;
        const int end = min((tile + 1) * kTileTokens, i + 1);
        for (int j0 = tile * kTileTokens; j0 < end; j0 += kLanes) {
            const unsigned visible = visible_lanes(subtree_end, i, j0);
            if (visible == 0) continue;
            const T *k_rows[kLanes], *v_rows[kLanes];
            gather_rows(k_rows, qkv + dims.key(kv_head), dims.pitch(), visible, i, j0);
            gather_rows(v_rows, qkv + dims.value(kv_head), dims.pitch(), visible, i, j0);
            const Lanes score = dot_each<kHeadDim>(q, k_rows) * all_lanes(scale * kLog2E);
            const Lanes p = exp2_lanes(score - own_lse);
            Lanes ds = p * (dot_each<kHeadDim>(own_dout, v_rows) - own_delta);
            hide(ds, visible, 0.0f);
            add_each<kHeadDim>(dq, ds, k_rows);
        }
    }
    write_row<kHeadDim>(dqkv + i * dims.pitch() + dims.query(head), dq, scale);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_delta_f32(
    float* delta,       // (heads, tokens)
    const float* dout,  // (tokens, heads, head_dim)
    const float* out,   // (tokens, heads, head_dim)
    int tokens, int heads, int head_dim) {
    attention_bwd_delta<float>(delta, dout, out, tokens, heads, head_dim);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_delta_bf16(
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
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv<float, 32>(dqkv, dout, lse, delta, qkv, subtree_end, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dkdv_hd32_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 32), keys and values written
    const bf16* dout,        // (tokens, heads, 32)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 32)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv<bf16, 32>(dqkv, dout, lse, delta, qkv, subtree_end, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dkdv_hd64_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 64), keys and values written
    const float* dout,       // (tokens, heads, 64)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 64)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv<float, 64>(dqkv, dout, lse, delta, qkv, subtree_end, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dkdv_hd64_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 64), keys and values written
    const bf16* dout,        // (tokens, heads, 64)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 64)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv<bf16, 64>(dqkv, dout, lse, delta, qkv, subtree_end, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dkdv_hd96_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 96), keys and values written
    const float* dout,       // (tokens, heads, 96)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 96)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv<float, 96>(dqkv, dout, lse, delta, qkv, subtree_end, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dkdv_hd96_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 96), keys and values written
    const bf16* dout,        // (tokens, heads, 96)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 96)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv<bf16, 96>(dqkv, dout, lse, delta, qkv, subtree_end, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dkdv_hd128_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 128), keys and values written
    const float* dout,       // (tokens, heads, 128)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 128)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv<float, 128>(dqkv, dout, lse, delta, qkv, subtree_end, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dkdv_hd128_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 128), keys and values written
    const bf16* dout,        // (tokens, heads, 128)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 128)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dkdv<bf16, 128>(dqkv, dout, lse, delta, qkv, subtree_end, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dq_hd32_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 32), queries written
    const float* dout,       // (tokens, heads, 32)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 32)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dq<float, 32>(dqkv, dout, lse, delta, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dq_hd32_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 32), queries written
    const bf16* dout,        // (tokens, heads, 32)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 32)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dq<bf16, 32>(dqkv, dout, lse, delta, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dq_hd64_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 64), queries written
    const float* dout,       // (tokens, heads, 64)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 64)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dq<float, 64>(dqkv, dout, lse, delta, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dq_hd64_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 64), queries written
    const bf16* dout,        // (tokens, heads, 64)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 64)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dq<bf16, 64>(dqkv, dout, lse, delta, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dq_hd96_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 96), queries written
    const float* dout,       // (tokens, heads, 96)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 96)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dq<float, 96>(dqkv, dout, lse, delta, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dq_hd96_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 96), queries written
    const bf16* dout,        // (tokens, heads, 96)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 96)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dq<bf16, 96>(dqkv, dout, lse, delta, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dq_hd128_f32(
    float* dqkv,             // (tokens, heads + 2 kv_heads, 128), queries written
    const float* dout,       // (tokens, heads, 128)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const float* qkv,        // (tokens, heads + 2 kv_heads, 128)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dq<float, 128>(dqkv, dout, lse, delta, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}

extern "C" __global__ void __launch_bounds__(kRowThreads, 1) attention_bwd_dq_hd128_bf16(
    bf16* dqkv,              // (tokens, heads + 2 kv_heads, 128), queries written
    const bf16* dout,        // (tokens, heads, 128)
    const float* lse,        // (heads, tokens), base 2
    const float* delta,      // (heads, tokens)
    const bf16* qkv,         // (tokens, heads + 2 kv_heads, 128)
    const int* subtree_end,  // (tokens)
    const int* tile_bounds,  // (ceil(tokens / 64), 2)
    float scale, int tokens, int heads, int kv_heads) {
    attention_bwd_dq<bf16, 128>(dqkv, dout, lse, delta, qkv, subtree_end, tile_bounds, scale, tokens, heads, kv_heads);
}
