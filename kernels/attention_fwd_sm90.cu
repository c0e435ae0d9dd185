// attention_fwd.cu's bf16 kernels on Hopper's own units, for heads of 64 and 128: the same definition, mask and outputs.
//
// Grid (heads, ceil(tokens / queries)), the heads of one key head side by side so that they share its keys in L2, the last
// queries first because they have the most keys before them. 64 queries by tiles of 64 keys with one group that computes
// and 160 threads (two CTAs an SM), or 128 by 128 with two groups and 384 threads; the first warp after them fetches
// (lib/attention_pipeline.cuh). The scores of the next tile are issued before the weights of this one meet their values, so the
// tensor cores work while the softmax does. Weights stay in registers. Tiles of which every query sees every key do no work
// for the mask; the element test reads one subtree_end a column from the slot.
// `bounded` kernels also know a window and a soft cap, 0 is none.
// Roof: tensor cores; exp2 for heads of 64.

#include <attention_pipeline.cuh>
#include <online_softmax.cuh>

// ---- device code

template <int kCount>
__device__ __forceinline__ void scale_rows(float (&sum)[kCount], const float (&by)[2]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[i] *= by[i % 4 / 2];
}

// One group's 64 queries: the weighted sum of the values, the softmax's state.
template <int kHeadDim, int kGroups, int kTileKeys, bool kBounded>
__device__ __forceinline__ void attend(float (&sum)[kHeadDim / 2], Softmax& softmax,
                                       TileRing<kGroups, kTileKeys, kHeadDim>& ring, int group, const Mask& mask,
                                       const Scores& scores, int first_row) {
    char* memory = shared_memory<char>();
    auto weigh = [&](float (&s)[kTileKeys / 2], const int* ends, int note, float (&shrink)[2]) {
        if (kBounded && scores.capped()) {
#pragma unroll
            for (int i = 0; i < kTileKeys / 2; ++i) s[i] = scores.cap(s[i]);
        }
        if (note % 2 == 0) hide_columns<kBounded>(s, mask, ends, first_row, note / 2 * kTileKeys, -INFINITY);
        softmax.step(s, shrink);
    };
    unsigned weights[kTileKeys / 16][4];
    float shrink[2];
    auto values = ring;
    mbarrier_wait(ring.own_full(), 0);
    // The first tile; there is always one, a query sees itself.
    {
        float s[kTileKeys / 2];
        mbarrier_wait(ring.full(kKeysPart), ring.parity);
        wgmma_fence();
        multiply_heads<64, kTileKeys, kHeadDim>(s, ring.own(group), ring.tile(kKeysPart));
        wgmma_commit();
        wgmma_wait<0>();
        hold_registers(s);
        weigh(s, ring.ends(memory), ring.note(memory), shrink);
        ring.release_words(kKeysPart);
        ring.next();
        pack_operand(weights, s);
    }
    while (true) {
        mbarrier_wait(ring.full(kKeysPart), ring.parity);
        const int note = ring.note(memory);
        if (note == kNoMoreTiles) break;
        float s[kTileKeys / 2];
        wgmma_fence();
        multiply_heads<64, kTileKeys, kHeadDim>(s, ring.own(group), ring.tile(kKeysPart));
        wgmma_commit();
        mbarrier_wait(values.full(kValuesPart), values.parity);
        wgmma_fence();
        add_rows<kTileKeys, kHeadDim>(sum, weights, values.tile(kValuesPart));
        wgmma_commit();
        wgmma_wait<1>();
        hold_registers(s);
        weigh(s, ring.ends(memory), note, shrink);
        ring.release_words(kKeysPart);
        ring.next();
        wgmma_wait<0>();
        hold_registers(sum);
        values.release(kValuesPart);
        values.next();
        scale_rows(sum, shrink);
        pack_operand(weights, s);
    }
    mbarrier_wait(values.full(kValuesPart), values.parity);
    wgmma_fence();
    add_rows<kTileKeys, kHeadDim>(sum, weights, values.tile(kValuesPart));
    wgmma_commit();
    wgmma_wait<0>();
    hold_registers(sum);
}

template <int kHeadDim, int kGroups, int kTileKeys, bool kBounded>
__device__ __forceinline__ void attention_fwd(float* lse, const CUtensorMap* out_map, const CUtensorMap* qkv_map,
                                              const CUtensorMap* ends_map, const Mask& mask, const Scores& scores,
                                              int heads, int kv_heads, int stages) {
    char* memory = shared_memory<char>();
    const Heads dims{heads, kv_heads, kHeadDim};
    const int head = blockIdx.x, kv_head = head / dims.group();
    const int first = (gridDim.y - 1 - blockIdx.y) * kGroups * 64;
    const int group = __shfl_sync(kFullMask, threadIdx.x / kGroupThreads, 0);
    TileRing<kGroups, kTileKeys, kHeadDim> ring(shared_address(memory), stages);
    if (threadIdx.x == 0) ring.init();
    __syncthreads();
    if (group == kGroups) {
        if (kGroups > 1) give_registers<kProducerRegisters>();
        if (threadIdx.x / kWarpThreads != kGroups * kGroupThreads / kWarpThreads) return;
        if (elect_one()) {
            mbarrier_arrive_expect(ring.own_full(), kGroups * 64 * kHeadDim * 2);
            fetch_own(ring, 0, qkv_map, dims.query(head), first);
        }
        __syncwarp();
        fetch_keys(ring, qkv_map, ends_map, mask.tile_bounds, mask.tokens, first, dims.key(kv_head), dims.value(kv_head),
                   mask.window == 0);
        return;
    }
    if (kGroups > 1) take_registers<kMultiplierRegisters>();
    const int first_row = first + group * 64;
    float sum[kHeadDim / 2] = {};
    Softmax softmax{kBounded && scores.capped() ? 1.0f : scores.factor()};
    attend<kHeadDim, kGroups, kTileKeys, kBounded>(sum, softmax, ring, group, mask, scores, first_row);
    softmax.finish();
    // Rows after the last token have seen nothing; they are not stored.
    const float by[2] = {1.0f / softmax.total[0], 1.0f / softmax.total[1]};
    scale_rows(sum, by);
    Outbox outbox(memory + kBarrierBytes, group);
    write_rows<0, kHeadDim>(outbox, out_map, sum, first_row, head * kHeadDim, {mask.tokens, heads * kHeadDim, 0, 0});
    outbox.close();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int i = first_row + fragment_row() + 8 * half;
        if (threadIdx.x % 4 == 0 && i < mask.tokens)
            lse[(long long)head * mask.tokens + i] = softmax.top[half] * softmax.factor + log2f(softmax.total[half]);
    }
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(160, 2) attention_fwd_hd64_64x64_bf16(
    const __grid_constant__ CUtensorMap out_map,          // (tokens, heads * 64), written
    float* lse,                                           // (heads, tokens), base 2
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 64)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads, int stages) {
    attention_fwd<64, 1, 64, false>(lse, &out_map, &qkv_map, &subtree_end_map,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap}, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(160, 2) attention_fwd_hd64_64x64_bounded_bf16(
    const __grid_constant__ CUtensorMap out_map,          // (tokens, heads * 64), written
    float* lse,                                           // (heads, tokens), base 2
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 64)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads, int stages) {
    attention_fwd<64, 1, 64, true>(lse, &out_map, &qkv_map, &subtree_end_map,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap}, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_fwd_hd64_128x128_bf16(
    const __grid_constant__ CUtensorMap out_map,          // (tokens, heads * 64), written
    float* lse,                                           // (heads, tokens), base 2
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 64)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads, int stages) {
    attention_fwd<64, 2, 128, false>(lse, &out_map, &qkv_map, &subtree_end_map,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap}, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_fwd_hd64_128x128_bounded_bf16(
    const __grid_constant__ CUtensorMap out_map,          // (tokens, heads * 64), written
    float* lse,                                           // (heads, tokens), base 2
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 64)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads, int stages) {
    attention_fwd<64, 2, 128, true>(lse, &out_map, &qkv_map, &subtree_end_map,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap}, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(160, 2) attention_fwd_hd128_64x64_bf16(
    const __grid_constant__ CUtensorMap out_map,          // (tokens, heads * 128), written
    float* lse,                                           // (heads, tokens), base 2
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 128)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads, int stages) {
    attention_fwd<128, 1, 64, false>(lse, &out_map, &qkv_map, &subtree_end_map,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap}, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(160, 2) attention_fwd_hd128_64x64_bounded_bf16(
    const __grid_constant__ CUtensorMap out_map,          // (tokens, heads * 128), written
    float* lse,                                           // (heads, tokens), base 2
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 128)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads, int stages) {
    attention_fwd<128, 1, 64, true>(lse, &out_map, &qkv_map, &subtree_end_map,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap}, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_fwd_hd128_128x128_bf16(
    const __grid_constant__ CUtensorMap out_map,          // (tokens, heads * 128), written
    float* lse,                                           // (heads, tokens), base 2
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 128)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads, int stages) {
    attention_fwd<128, 2, 128, false>(lse, &out_map, &qkv_map, &subtree_end_map,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap}, heads, kv_heads, stages);
}

extern "C" __global__ void __launch_bounds__(384, 1) attention_fwd_hd128_128x128_bounded_bf16(
    const __grid_constant__ CUtensorMap out_map,          // (tokens, heads * 128), written
    float* lse,                                           // (heads, tokens), base 2
    const __grid_constant__ CUtensorMap qkv_map,          // (tokens, (heads + 2 kv_heads) * 128)
    const __grid_constant__ CUtensorMap subtree_end_map,  // (1, tokens)
    const int* tile_bounds,                               // (ceil(tokens / 64), 2)
    const int* position,                                  // (tokens)
    float scale, float softcap, int window, int tokens, int heads, int kv_heads, int stages) {
    attention_fwd<128, 2, 128, true>(lse, &out_map, &qkv_map, &subtree_end_map,
        {nullptr, tile_bounds, position, window, tokens}, {scale, softcap}, heads, kv_heads, stages);
}
