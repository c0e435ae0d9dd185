// attention_bwd.cu's bf16 kernels on Hopper's own units, for heads of 64 and 128: the same definition, mask and outputs, the
// same two kernels without atomics. delta comes from attention_bwd.cu.
//
// dq, grid (heads, ceil(tokens / queries)): as attention_fwd_sm90.cu, with rows of q and of dout of its own. The scores
// ds = p (dp - delta) stay in registers and meet the tile of keys from which the scores came.
// dkdv, grid (kv_heads, ceil(tokens / keys)): groups own 64 keys each and walk the run of queries that see a key of the CTA,
// once for each query head of their key head. Scores are transposed, so that p and ds leave the first products in the
// registers in which the second ones want them; lse and delta come with the tile, one of each a column. The first keys have
// the longest runs and start first.
// Gradients of queries and keys turn back by their positions (rope.cu) before they are rounded, if they were turned.
// Names give the own rows, then the walked ones: 64 by 64 with one group that computes and 160 threads (two CTAs an SM), 128
// by 128 with two groups and 384 threads; dkdv keeps two sums, and takes 128 keys by 64 queries instead. The first
// warp after the groups fetches (lib/attention_pipeline.cuh).
// `bounded` kernels also know a window and a soft cap, 0 is none.
// Roof: tensor cores.

#include <attention_pipeline.cuh>
#include <math.cuh>
#include <rotary.cuh>

// ---- device code

// Scores become weights, p = exp2(score - lse).
template <bool kBounded>
__device__ __forceinline__ float weight(const Scores& scores, float x, float lse) {
    if (kBounded && scores.capped()) return exp2_approx(scores.cap(x) - lse);
    return exp2_approx(x * scores.factor() - lse);
}

template <bool kBounded>
__device__ __forceinline__ float score_gradient(const Scores& scores, float p, float dp, float lse, float delta) {
    const float ds = p * (dp - delta);
    return kBounded && scores.capped() ? ds * scores.slope(p, lse) : ds;
}

// ---- queries and their keys

template <int kHeadDim, int kGroups, int kTileKeys, bool kBounded>
__device__ __forceinline__ void sum_dq(float (&dq)[kHeadDim / 2], TileRing<kGroups, kTileKeys, kHeadDim, 2>& ring, int group,
                                       const float (&lse)[2], const float (&delta)[2], const Mask& mask,
                                       const Scores& scores, int first_row) {
    char* memory = shared_memory<char>();
    mbarrier_wait(ring.own_full(), 0);
    while (true) {
        mbarrier_wait(ring.full(kKeysPart), ring.parity);
        const int note = ring.note(memory);
        if (note == kNoMoreTiles) return;
        float p[kTileKeys / 2], ds[kTileKeys / 2];
        wgmma_fence();
        multiply_heads<64, kTileKeys, kHeadDim>(p, ring.own(group), ring.tile(kKeysPart));
        wgmma_commit();
        mbarrier_wait(ring.full(kValuesPart), ring.parity);
        wgmma_fence();
        multiply_heads<64, kTileKeys, kHeadDim>(ds, ring.own(group, 1), ring.tile(kValuesPart));
        wgmma_commit();
        wgmma_wait<1>();
        hold_registers(p);
#pragma unroll
        for (int i = 0; i < kTileKeys / 2; ++i) p[i] = weight<kBounded>(scores, p[i], lse[i % 4 / 2]);
        if (note % 2 == 0) hide_columns<kBounded>(p, mask, ring.ends(memory), first_row, note / 2 * kTileKeys, 0.0f);
        wgmma_wait<0>();
        hold_registers(ds);
        ring.release(kValuesPart);
#pragma unroll
        for (int i = 0; i < kTileKeys / 2; ++i)
            ds[i] = score_gradient<kBounded>(scores, p[i], ds[i], lse[i % 4 / 2], delta[i % 4 / 2]);
        unsigned packed[kTileKeys / 16][4];
        pack_operand(packed, ds);
        wgmma_fence();
        add_rows<kTileKeys, kHeadDim>(dq, packed, ring.tile(kKeysPart));
        wgmma_commit();
        wgmma_wait<0>();
        hold_registers(dq);
        ring.release_words(kKeysPart);
        ring.next();
    }
}

// Where the gradients go, and what they come from.
struct BackwardMaps {
    const CUtensorMap *dqkv, *dout, *qkv;
};

// Gradients of queries or keys that were turned by their positions turn back.
template <int kHeadDim>
__device__ __forceinline__ void turn_back(float (&d)[kHeadDim / 2], const Rotary& rotary, int rotates, int first_row,
                                          int tokens) {
    if (rotates) rotary.turn<kHeadDim>(d, first_row + fragment_row(), tokens, 0, kHeadDim, -1.0f);
}

template <int kHeadDim, int kGroups, int kTileKeys, bool kBounded>
__device__ __forceinline__ void attention_bwd_dq(const BackwardMaps& maps, const CUtensorMap* ends_map, const float* lse,
                                                 const float* delta, const Mask& mask, const Scores& scores,
                                                 const Rotary& rotary, int rotates, int heads, int kv_heads, int stages) {
    char* memory = shared_memory<char>();
    const Heads dims{heads, kv_heads, kHeadDim};
    const int head = blockIdx.x, kv_head = head / dims.group();
    const int first = (gridDim.y - 1 - blockIdx.y) * kGroups * 64;
    const int group = __shfl_sync(kFullMask, threadIdx.x / kGroupThreads, 0);
    TileRing<kGroups, kTileKeys, kHeadDim, 2> ring(shared_address(memory), stages);
    if (threadIdx.x == 0) ring.init();
    __syncthreads();
    if (group == kGroups) {
        if (kGroups > 1) give_registers<kProducerRegisters>();
        if (threadIdx.x / kWarpThreads != kGroups * kGroupThreads / kWarpThreads) return;
        if (elect_one()) {
            mbarrier_arrive_expect(ring.own_full(), 2 * kGroups * 64 * kHeadDim * 2);
            fetch_own(ring, 0, maps.qkv, dims.query(head), first);
            fetch_own(ring, 1, maps.dout, dims.query(head), first);
        }
        __syncwarp();
        fetch_keys(ring, maps.qkv, ends_map, mask.tile_bounds, mask.tokens, first, dims.key(kv_head), dims.value(kv_head),
                   mask.window == 0);
        return;
    }
    if (kGroups > 1) take_registers<kMultiplierRegisters>();
    const int first_row = first + group * 64;
    float own_lse[2], own_delta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int i = first_row + fragment_row() + 8 * half;
        own_lse[half] = i < mask.tokens ? lse[(long long)head * mask.tokens + i] : 0.0f;
        own_delta[half] = i < mask.tokens ? delta[(long long)head * mask.tokens + i] : 0.0f;
    }
    float dq[kHeadDim / 2] = {};
    sum_dq<kHeadDim, kGroups, kTileKeys, kBounded>(dq, ring, group, own_lse, own_delta, mask, scores, first_row);
    scale_all(dq, scores.scale);
    turn_back<kHeadDim>(dq, rotary, rotates, first_row, mask.tokens);
    Outbox outbox(memory + kBarrierBytes, group);
    write_rows<0, kHeadDim>(outbox, maps.dqkv, dq, first_row, dims.query(head), {mask.tokens, (int)dims.pitch(), 0, 0});
    outbox.close();
}

// ---- keys and the queries that see them

// The tiles of queries that see a key of the CTA, and before which query every key of it is seen by all.
template <int kTileKeys, int kTileQueries>
struct QueryRun {
    int first, last, whole_from, whole_until;

    __device__ __forceinline__ QueryRun(const Mask& mask, int key0) {
        constexpr int kParts = kTileKeys / kTileTokens;
        const int part0 = key0 / kTileTokens, parts = (mask.tokens + kTileTokens - 1) / kTileTokens;
        int lowest = 0x7fffffff, highest = 0;
        for (int part = part0; part < min(part0 + kParts, parts); ++part) {
            lowest = min(lowest, mask.tile_bounds[2 * part]);
            highest = max(highest, mask.tile_bounds[2 * part + 1]);
        }
        first = key0 / kTileQueries;
        last = (highest + kTileQueries - 1) / kTileQueries;
        whole_from = key0 + kTileKeys;
        whole_until = mask.window == 0 ? lowest : 0;
    }
    __device__ __forceinline__ bool whole(int tile) const {
        return tile * kTileQueries >= whole_from && (tile + 1) * kTileQueries <= whole_until;
    }
};

// A copy starts at a multiple of 16 bytes, a head's lse and delta anywhere: up to three numbers come with them from before.
constexpr int kBefore = 4;

__device__ __forceinline__ int words_before(int head, int tokens) { return head * tokens % kBefore; }

// Every tile of the run for every query head of the key head.
template <int kGroups, int kTileQueries, int kHeadDim>
__device__ __forceinline__ void fetch_queries(TileRing<kGroups, kTileQueries, kHeadDim, 2>& ring, const BackwardMaps& maps,
                                              const CUtensorMap* lse_map, const CUtensorMap* delta_map, const Heads& dims,
                                              int kv_head, const QueryRun<kGroups * 64, kTileQueries>& run, int tokens) {
    constexpr int kBytes = TileRing<kGroups, kTileQueries, kHeadDim, 2>::kTileBytes + (kTileQueries + kBefore) * 4;
    static_assert((kTileQueries + kBefore) * 4 <= kWordsBytes / 2);
    const auto fetch = [&](Part part, const CUtensorMap* map, const CUtensorMap* statistics, int head, int row) {
        mbarrier_wait(ring.empty(part), ring.parity ^ 1);
        mbarrier_arrive_expect(ring.full(part), kBytes);
        fetch_rows<kTileQueries, kHeadDim>(ring.tile(part), map, dims.query(head), row, ring.full(part));
        tma_load(ring.words(part), statistics, head * tokens + row - words_before(head, tokens), 0, ring.full(part));
    };
    for (int head = kv_head * dims.group(); head < (kv_head + 1) * dims.group(); ++head)
        for (int tile = run.first; tile < run.last; ++tile) {
            fetch(kQueriesPart, maps.qkv, lse_map, head, tile * kTileQueries);
            fetch(kDoutPart, maps.dout, delta_map, head, tile * kTileQueries);
            ring.next();
        }
}

// Rows are keys from `j0` on, of which the thread's two end at `ends`, columns queries from `i0` on: puts 0 where the query
// does not see the key.
template <bool kBounded, int kCount>
__device__ __forceinline__ void hide_unseeing(float (&p)[kCount], const Mask& mask, const int (&ends)[2], int j0, int i0) {
    const int key = j0 + fragment_row();
#pragma unroll
    for (int f = 0; f < kCount / 4; ++f) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const int j = key + c / 2 * 8, i = i0 + 8 * f + fragment_column() + c % 2;
            bool visible = j <= i && i < ends[c / 2];
            if (kBounded) visible = visible && mask.in_window(i, j);
            if (!visible) p[4 * f + c] = 0.0f;
        }
    }
}

// One tile of queries: dv += p^T dout, dk += ds^T q.
template <int kHeadDim, int kGroups, int kTileQueries, bool kBounded>
__device__ __forceinline__ void add_queries(float (&dk)[kHeadDim / 2], float (&dv)[kHeadDim / 2],
                                            TileRing<kGroups, kTileQueries, kHeadDim, 2>& ring, int group, const Mask& mask,
                                            const Scores& scores, const int (&ends)[2], int first_row, int query0,
                                            int before, bool whole) {
    char* memory = shared_memory<char>();
    const float* lse = ring.statistics(memory, kQueriesPart) + before + fragment_column();
    const float* delta = ring.statistics(memory, kDoutPart) + before + fragment_column();
    float p[kTileQueries / 2], ds[kTileQueries / 2];
    mbarrier_wait(ring.full(kQueriesPart), ring.parity);
    wgmma_fence();
    multiply_heads<64, kTileQueries, kHeadDim>(p, ring.own(group), ring.tile(kQueriesPart));
    wgmma_commit();
    mbarrier_wait(ring.full(kDoutPart), ring.parity);
    wgmma_fence();
    multiply_heads<64, kTileQueries, kHeadDim>(ds, ring.own(group, 1), ring.tile(kDoutPart));
    wgmma_commit();
    wgmma_wait<1>();
    hold_registers(p);
#pragma unroll
    for (int i = 0; i < kTileQueries / 2; ++i) p[i] = weight<kBounded>(scores, p[i], lse[i / 4 * 8 + i % 2]);
    if (!whole) hide_unseeing<kBounded>(p, mask, ends, first_row, query0);
    unsigned packed[kTileQueries / 16][4];
    pack_operand(packed, p);
    wgmma_wait<0>();
    hold_registers(ds);
    wgmma_fence();
    add_rows<kTileQueries, kHeadDim>(dv, packed, ring.tile(kDoutPart));
    wgmma_commit();
#pragma unroll
    for (int i = 0; i < kTileQueries / 2; ++i) {
        const int column = i / 4 * 8 + i % 2;
        ds[i] = score_gradient<kBounded>(scores, p[i], ds[i], lse[column], delta[column]);
    }
    unsigned packed_ds[kTileQueries / 16][4];
    pack_operand(packed_ds, ds);
    wgmma_fence();
    add_rows<kTileQueries, kHeadDim>(dk, packed_ds, ring.tile(kQueriesPart));
    wgmma_commit();
    wgmma_wait<1>();
    hold_registers(dv);
    // Of both halves: no words are read after these.
    ring.release_words(kDoutPart);
    wgmma_wait<0>();
    hold_registers(dk);
    ring.release(kQueriesPart);
    ring.next();
}

template <int kHeadDim, int kGroups, int kTileQueries, bool kBounded>
__device__ __forceinline__ void attention_bwd_dkdv(const BackwardMaps& maps, const CUtensorMap* lse_map,
                                                   const CUtensorMap* delta_map, const Mask& mask, const Scores& scores,
                                                   const Rotary& rotary, int rotates, int heads, int kv_heads, int stages) {
    char* memory = shared_memory<char>();
    const Heads dims{heads, kv_heads, kHeadDim};
    const int kv_head = blockIdx.x, first = blockIdx.y * kGroups * 64;
    const int group = __shfl_sync(kFullMask, threadIdx.x / kGroupThreads, 0);
    const QueryRun<kGroups * 64, kTileQueries> run(mask, first);
    TileRing<kGroups, kTileQueries, kHeadDim, 2> ring(shared_address(memory), stages);
    if (threadIdx.x == 0) ring.init();
    __syncthreads();
    if (group == kGroups) {
        if (kGroups > 1) give_registers<kProducerRegisters>();
        if (threadIdx.x / kWarpThreads != kGroups * kGroupThreads / kWarpThreads || !elect_one()) return;
        mbarrier_arrive_expect(ring.own_full(), 2 * kGroups * 64 * kHeadDim * 2);
        fetch_own(ring, 0, maps.qkv, dims.key(kv_head), first);
        fetch_own(ring, 1, maps.qkv, dims.value(kv_head), first);
        fetch_queries(ring, maps, lse_map, delta_map, dims, kv_head, run, mask.tokens);
        return;
    }
    if (kGroups > 1) take_registers<kMultiplierRegisters>();
    const int first_row = first + group * 64;
    int ends[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int j = first_row + fragment_row() + 8 * half;
        ends[half] = j < mask.tokens ? mask.subtree_end[j] : 0;
    }
    float dk[kHeadDim / 2] = {}, dv[kHeadDim / 2] = {};
    mbarrier_wait(ring.own_full(), 0);
    for (int repeat = 0; repeat < dims.group(); ++repeat) {
        const int before = words_before(kv_head * dims.group() + repeat, mask.tokens);
        for (int tile = run.first; tile < run.last; ++tile)
            add_queries<kHeadDim, kGroups, kTileQueries, kBounded>(dk, dv, ring, group, mask, scores, ends, first_row,
                                                                   tile * kTileQueries, before, run.whole(tile));
    }
    scale_all(dk, scores.scale);
    turn_back<kHeadDim>(dk, rotary, rotates, first_row, mask.tokens);
    Outbox outbox(memory + kBarrierBytes, group);
    const Problem edges{mask.tokens, (int)dims.pitch(), 0, 0};
    write_rows<0, kHeadDim>(outbox, maps.dqkv, dk, first_row, dims.key(kv_head), edges);
    write_rows<0, kHeadDim>(outbox, maps.dqkv, dv, first_row, dims.value(kv_head), edges);
    outbox.close();
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(160, 2) attention_bwd_dq_hd64_64x64_bf16(
    const __grid_constant__ CUtensorMap dqkv_map,         // (tokens, (heads + 2 kv_heads) * 64), queries written
    const __grid_constant__ CUtensorMap dout_map,         // (tokens, heads * 64)
    const float* lse,                                     // (heads, tokens), base 2
    const float* delta,                                   // (heads, tokens)
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 64)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    const float* cos,                                     // (positions, 32), if rotates
    const float* sin,                                     // (positions, 32), if rotates
    float scale, float softcap, int window, int rotates, int tokens, int heads, int kv_heads, int stages) {
    attention_bwd_dq<64, 1, 64, false>({&dqkv_map, &dout_map, &qkv_map}, &subtree_end_map, lse, delta,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap},
        {cos, sin, position}, rotates, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(160, 2) attention_bwd_dq_hd64_64x64_bounded_bf16(
    const __grid_constant__ CUtensorMap dqkv_map,         // (tokens, (heads + 2 kv_heads) * 64), queries written
    const __grid_constant__ CUtensorMap dout_map,         // (tokens, heads * 64)
    const float* lse,                                     // (heads, tokens), base 2
    const float* delta,                                   // (heads, tokens)
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 64)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    const float* cos,                                     // (positions, 32), if rotates
    const float* sin,                                     // (positions, 32), if rotates
    float scale, float softcap, int window, int rotates, int tokens, int heads, int kv_heads, int stages) {
    attention_bwd_dq<64, 1, 64, true>({&dqkv_map, &dout_map, &qkv_map}, &subtree_end_map, lse, delta,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap},
        {cos, sin, position}, rotates, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_bwd_dq_hd64_128x128_bf16(
    const __grid_constant__ CUtensorMap dqkv_map,         // (tokens, (heads + 2 kv_heads) * 64), queries written
    const __grid_constant__ CUtensorMap dout_map,         // (tokens, heads * 64)
    const float* lse,                                     // (heads, tokens), base 2
    const float* delta,                                   // (heads, tokens)
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 64)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    const float* cos,                                     // (positions, 32), if rotates
    const float* sin,                                     // (positions, 32), if rotates
    float scale, float softcap, int window, int rotates, int tokens, int heads, int kv_heads, int stages) {
    attention_bwd_dq<64, 2, 128, false>({&dqkv_map, &dout_map, &qkv_map}, &subtree_end_map, lse, delta,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap},
        {cos, sin, position}, rotates, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_bwd_dq_hd64_128x128_bounded_bf16(
    const __grid_constant__ CUtensorMap dqkv_map,         // (tokens, (heads + 2 kv_heads) * 64), queries written
    const __grid_constant__ CUtensorMap dout_map,         // (tokens, heads * 64)
    const float* lse,                                     // (heads, tokens), base 2
    const float* delta,                                   // (heads, tokens)
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 64)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    const float* cos,                                     // (positions, 32), if rotates
    const float* sin,                                     // (positions, 32), if rotates
    float scale, float softcap, int window, int rotates, int tokens, int heads, int kv_heads, int stages) {
    attention_bwd_dq<64, 2, 128, true>({&dqkv_map, &dout_map, &qkv_map}, &subtree_end_map, lse, delta,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap},
        {cos, sin, position}, rotates, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(160, 2) attention_bwd_dq_hd128_64x64_bf16(
    const __grid_constant__ CUtensorMap dqkv_map,         // (tokens, (heads + 2 kv_heads) * 128), queries written
    const __grid_constant__ CUtensorMap dout_map,         // (tokens, heads * 128)
    const float* lse,                                     // (heads, tokens), base 2
    const float* delta,                                   // (heads, tokens)
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 128)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    const float* cos,                                     // (positions, 64), if rotates
    const float* sin,                                     // (positions, 64), if rotates
    float scale, float softcap, int window, int rotates, int tokens, int heads, int kv_heads, int stages) {
    attention_bwd_dq<128, 1, 64, false>({&dqkv_map, &dout_map, &qkv_map}, &subtree_end_map, lse, delta,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap},
        {cos, sin, position}, rotates, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(160, 2) attention_bwd_dq_hd128_64x64_bounded_bf16(
    const __grid_constant__ CUtensorMap dqkv_map,         // (tokens, (heads + 2 kv_heads) * 128), queries written
    const __grid_constant__ CUtensorMap dout_map,         // (tokens, heads * 128)
    const float* lse,                                     // (heads, tokens), base 2
    const float* delta,                                   // (heads, tokens)
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 128)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    const float* cos,                                     // (positions, 64), if rotates
    const float* sin,                                     // (positions, 64), if rotates
    float scale, float softcap, int window, int rotates, int tokens, int heads, int kv_heads, int stages) {
    attention_bwd_dq<128, 1, 64, true>({&dqkv_map, &dout_map, &qkv_map}, &subtree_end_map, lse, delta,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap},
        {cos, sin, position}, rotates, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_bwd_dq_hd128_128x128_bf16(
    const __grid_constant__ CUtensorMap dqkv_map,         // (tokens, (heads + 2 kv_heads) * 128), queries written
    const __grid_constant__ CUtensorMap dout_map,         // (tokens, heads * 128)
    const float* lse,                                     // (heads, tokens), base 2
    const float* delta,                                   // (heads, tokens)
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 128)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    const float* cos,                                     // (positions, 64), if rotates
    const float* sin,                                     // (positions, 64), if rotates
    float scale, float softcap, int window, int rotates, int tokens, int heads, int kv_heads, int stages) {
    attention_bwd_dq<128, 2, 128, false>({&dqkv_map, &dout_map, &qkv_map}, &subtree_end_map, lse, delta,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap},
        {cos, sin, position}, rotates, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_bwd_dq_hd128_128x128_bounded_bf16(
    const __grid_constant__ CUtensorMap dqkv_map,         // (tokens, (heads + 2 kv_heads) * 128), queries written
    const __grid_constant__ CUtensorMap dout_map,         // (tokens, heads * 128)
    const float* lse,                                     // (heads, tokens), base 2
    const float* delta,                                   // (heads, tokens)
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 128)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    const float* cos,                                     // (positions, 64), if rotates
    const float* sin,                                     // (positions, 64), if rotates
    float scale, float softcap, int window, int rotates, int tokens, int heads, int kv_heads, int stages) {
    attention_bwd_dq<128, 2, 128, true>({&dqkv_map, &dout_map, &qkv_map}, &subtree_end_map, lse, delta,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap},
        {cos, sin, position}, rotates, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(160, 2) attention_bwd_dkdv_hd64_64x64_bf16(
    const __grid_constant__ CUtensorMap dqkv_map,   // (tokens, (heads + 2 kv_heads) * 64), keys and values written
    const __grid_constant__ CUtensorMap dout_map,   // (tokens, heads * 64)
    const __grid_constant__ CUtensorMap lse_map,    // (1, heads * tokens), base 2
    const __grid_constant__ CUtensorMap delta_map,  // (1, heads * tokens)
    const __grid_constant__ CUtensorMap qkv_map,    // (tokens, (heads + 2 kv_heads) * 64)
    const int* subtree_end,                         // (tokens)
    const int* tile_bounds,                         // (ceil(tokens / 64), 2)
    const int* position,                            // (tokens)
    const float* cos,                               // (positions, 32), if rotates
    const float* sin,                               // (positions, 32), if rotates
    float scale, float softcap, int window, int rotates, int tokens, int heads, int kv_heads, int stages) {
    attention_bwd_dkdv<64, 1, 64, false>({&dqkv_map, &dout_map, &qkv_map}, &lse_map, &delta_map,
        {subtree_end, tile_bounds, position, window, tokens}, {scale, softcap},
        {cos, sin, position}, rotates, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(160, 2) attention_bwd_dkdv_hd64_64x64_bounded_bf16(
    const __grid_constant__ CUtensorMap dqkv_map,   // (tokens, (heads + 2 kv_heads) * 64), keys and values written
    const __grid_constant__ CUtensorMap dout_map,   // (tokens, heads * 64)
    const __grid_constant__ CUtensorMap lse_map,    // (1, heads * tokens), base 2
    const __grid_constant__ CUtensorMap delta_map,  // (1, heads * tokens)
    const __grid_constant__ CUtensorMap qkv_map,    // (tokens, (heads + 2 kv_heads) * 64)
    const int* subtree_end,                         // (tokens)
    const int* tile_bounds,                         // (ceil(tokens / 64), 2)
    const int* position,                            // (tokens)
    const float* cos,                               // (positions, 32), if rotates
    const float* sin,                               // (positions, 32), if rotates
    float scale, float softcap, int window, int rotates, int tokens, int heads, int kv_heads, int stages) {
    attention_bwd_dkdv<64, 1, 64, true>({&dqkv_map, &dout_map, &qkv_map}, &lse_map, &delta_map,
        {subtree_end, tile_bounds, position, window, tokens}, {scale, softcap},
        {cos, sin, position}, rotates, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_bwd_dkdv_hd64_128x64_bf16(
    const __grid_constant__ CUtensorMap dqkv_map,   // (tokens, (heads + 2 kv_heads) * 64), keys and values written
    const __grid_constant__ CUtensorMap dout_map,   // (tokens, heads * 64)
    const __grid_constant__ CUtensorMap lse_map,    // (1, heads * tokens), base 2
    const __grid_constant__ CUtensorMap delta_map,  // (1, heads * tokens)
    const __grid_constant__ CUtensorMap qkv_map,    // (tokens, (heads + 2 kv_heads) * 64)
    const int* subtree_end,                         // (tokens)
    const int* tile_bounds,                         // (ceil(tokens / 64), 2)
    const int* position,                            // (tokens)
    const float* cos,                               // (positions, 32), if rotates
    const float* sin,                               // (positions, 32), if rotates
    float scale, float softcap, int window, int rotates, int tokens, int heads, int kv_heads, int stages) {
    attention_bwd_dkdv<64, 2, 64, false>({&dqkv_map, &dout_map, &qkv_map}, &lse_map, &delta_map,
        {subtree_end, tile_bounds, position, window, tokens}, {scale, softcap},
        {cos, sin, position}, rotates, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_bwd_dkdv_hd64_128x64_bounded_bf16(
    const __grid_constant__ CUtensorMap dqkv_map,   // (tokens, (heads + 2 kv_heads) * 64), keys and values written
    const __grid_constant__ CUtensorMap dout_map,   // (tokens, heads * 64)
    const __grid_constant__ CUtensorMap lse_map,    // (1, heads * tokens), base 2
    const __grid_constant__ CUtensorMap delta_map,  // (1, heads * tokens)
    const __grid_constant__ CUtensorMap qkv_map,    // (tokens, (heads + 2 kv_heads) * 64)
    const int* subtree_end,                         // (tokens)
    const int* tile_bounds,                         // (ceil(tokens / 64), 2)
    const int* position,                            // (tokens)
    const float* cos,                               // (positions, 32), if rotates
    const float* sin,                               // (positions, 32), if rotates
    float scale, float softcap, int window, int rotates, int tokens, int heads, int kv_heads, int stages) {
    attention_bwd_dkdv<64, 2, 64, true>({&dqkv_map, &dout_map, &qkv_map}, &lse_map, &delta_map,
        {subtree_end, tile_bounds, position, window, tokens}, {scale, softcap},
        {cos, sin, position}, rotates, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_bwd_dkdv_hd128_128x64_bf16(
    const __grid_constant__ CUtensorMap dqkv_map,   // (tokens, (heads + 2 kv_heads) * 128), keys and values written
    const __grid_constant__ CUtensorMap dout_map,   // (tokens, heads * 128)
    const __grid_constant__ CUtensorMap lse_map,    // (1, heads * tokens), base 2
    const __grid_constant__ CUtensorMap delta_map,  // (1, heads * tokens)
    const __grid_constant__ CUtensorMap qkv_map,    // (tokens, (heads + 2 kv_heads) * 128)
    const int* subtree_end,                         // (tokens)
    const int* tile_bounds,                         // (ceil(tokens / 64), 2)
    const int* position,                            // (tokens)
    const float* cos,                               // (positions, 64), if rotates
    const float* sin,                               // (positions, 64), if rotates
    float scale, float softcap, int window, int rotates, int tokens, int heads, int kv_heads, int stages) {
    attention_bwd_dkdv<128, 2, 64, false>({&dqkv_map, &dout_map, &qkv_map}, &lse_map, &delta_map,
        {subtree_end, tile_bounds, position, window, tokens}, {scale, softcap},
        {cos, sin, position}, rotates, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_bwd_dkdv_hd128_128x64_bounded_bf16(
    const __grid_constant__ CUtensorMap dqkv_map,   // (tokens, (heads + 2 kv_heads) * 128), keys and values written
    const __grid_constant__ CUtensorMap dout_map,   // (tokens, heads * 128)
    const __grid_constant__ CUtensorMap lse_map,    // (1, heads * tokens), base 2
    const __grid_constant__ CUtensorMap delta_map,  // (1, heads * tokens)
    const __grid_constant__ CUtensorMap qkv_map,    // (tokens, (heads + 2 kv_heads) * 128)
    const int* subtree_end,                         // (tokens)
    const int* tile_bounds,                         // (ceil(tokens / 64), 2)
    const int* position,                            // (tokens)
    const float* cos,                               // (positions, 64), if rotates
    const float* sin,                               // (positions, 64), if rotates
    float scale, float softcap, int window, int rotates, int tokens, int heads, int kv_heads, int stages) {
    attention_bwd_dkdv<128, 2, 64, true>({&dqkv_map, &dout_map, &qkv_map}, &lse_map, &delta_map,
        {subtree_end, tile_bounds, position, window, tokens}, {scale, softcap},
        {cos, sin, position}, rotates, heads, kv_heads, stages);
}
