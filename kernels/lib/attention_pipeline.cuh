// How attention on Hopper's units gets its rows: groups own 64 rows each, of queries or of keys, and work through tiles of
// the others. A warp fills a ring of slots with these tiles by bulk tensor copies.
//
// A slot holds two tiles, keys and values or queries and gradients of outputs, and a few words a row: the keys' subtree_end,
// or the queries' lse and delta. Both tiles have barriers of their own, so that scores start before the second one is here.
// Tiles lie in panels of 64 columns by their rows, 128 bytes a row, swizzled.
#pragma once
#include <product_pipeline.cuh>
#include <tree_mask.cuh>

// Shared memory: barriers and notes, the groups' own rows, the slots. A group's own 64 rows of a head are up to two panels;
// the first of its rows become the outbox through which its results leave.
constexpr int kNotesAt = 512;
constexpr int kOwnBytes = 2 * kPanelBytes;
constexpr int kWordsBytes = 1024;
// The note of a slot says which tile it holds and whether every query sees every key of it.
constexpr int kNoMoreTiles = -1;

enum Part { kKeysPart, kValuesPart, kQueriesPart = kKeysPart, kDoutPart = kValuesPart };

// kOwn: how many times 64 rows a group owns, of as many tensors.
template <int kGroups, int kTileRows, int kHeadDim, int kOwn = 1>
struct TileRing {
    static constexpr int kTileBytes = kTileRows * kHeadDim * 2, kSlotBytes = 2 * kTileBytes + kWordsBytes;
    unsigned shared;
    int stages, stage = 0;
    unsigned parity = 0;

    __device__ __forceinline__ TileRing(unsigned shared, int stages) : shared(shared), stages(stages) {}
    __device__ __forceinline__ unsigned own_full() const { return shared + 8 * (4 * kMaxStages); }
    __device__ __forceinline__ unsigned full(Part part) const { return shared + 8 * (part * kMaxStages + stage); }
    __device__ __forceinline__ unsigned empty(Part part) const { return shared + 8 * ((2 + part) * kMaxStages + stage); }
    __device__ __forceinline__ unsigned own(int group, int tensor = 0) const {
        return shared + kBarrierBytes + (tensor * kGroups + group) * kOwnBytes;
    }
    __device__ __forceinline__ unsigned slot_at() const {
        return kBarrierBytes + kOwn * kGroups * kOwnBytes + stage * kSlotBytes;
    }
    __device__ __forceinline__ unsigned tile(Part part) const { return shared + slot_at() + part * kTileBytes; }
    // A word for each row of the tile; a second one for each 512 bytes further.
    __device__ __forceinline__ unsigned words(Part part = kKeysPart) const {
        return shared + slot_at() + 2 * kTileBytes + part * (kWordsBytes / 2);
    }
    __device__ __forceinline__ const int* ends(const char* memory) const {
        return reinterpret_cast<const int*>(memory + slot_at() + 2 * kTileBytes);
    }
    __device__ __forceinline__ const float* statistics(const char* memory, Part part) const {
        return reinterpret_cast<const float*>(memory + slot_at() + 2 * kTileBytes + part * (kWordsBytes / 2));
    }
    __device__ __forceinline__ int& note(char* memory) const { return reinterpret_cast<int*>(memory + kNotesAt)[stage]; }
    __device__ __forceinline__ void next() {
        if (++stage < stages) return;
        stage = 0;
        parity ^= 1;
    }

    // By one thread, before the CTA meets.
    __device__ __forceinline__ void init() const {
        for (int i = 0; i < 4 * kMaxStages; ++i)
            mbarrier_init(shared + 8 * i, i < 2 * kMaxStages ? 1 : kGroups * kGroupThreads / kWarpThreads);
        mbarrier_init(own_full(), 1);
        fence_mbarrier_init();
    }

    // A warp lets go of half of the slot, of which only products have read.
    __device__ __forceinline__ void release(Part part) const {
        __syncwarp();
        if (threadIdx.x % kWarpThreads == 0) mbarrier_arrive(empty(part));
    }

    // The same where its threads have read words: the barrier orders these reads with threads alone, the fence with the copy
    // that comes next.
    __device__ __forceinline__ void release_words(Part part) const {
        fence_async();
        release(part);
    }
};

// Rows of a head into panels.
template <int kRows, int kHeadDim>
__device__ __forceinline__ void fetch_rows(unsigned to, const CUtensorMap* map, int column, int row, unsigned barrier) {
#pragma unroll
    for (int panel = 0; panel < kHeadDim / 64; ++panel)
#pragma unroll
        for (int block = 0; block < kRows / 64; ++block)
            tma_load(to + panel * kRows * 128 + block * kPanelBytes, map, column + 64 * panel, row + 64 * block, barrier);
}

// The rows that the groups own of one tensor.
template <int kGroups, int kTileRows, int kHeadDim, int kOwn>
__device__ __forceinline__ void fetch_own(const TileRing<kGroups, kTileRows, kHeadDim, kOwn>& ring, int tensor,
                                          const CUtensorMap* map, int column, int first) {
    for (int g = 0; g < kGroups; ++g)
        fetch_rows<64, kHeadDim>(ring.own(g, tensor), map, column, first + 64 * g, ring.own_full());
}

// The tiles of keys that some of `queries` queries from `first` on see, in order, found by a warp 32 at a time: their
// number, and whether all is seen.
template <int kTileKeys, class Visit>
__device__ __forceinline__ void for_each_visible_tile(const int* tile_bounds, int tokens, int first, int queries,
                                                      Visit visit) {
    constexpr int kParts = kTileKeys / kTileTokens;
    const int lane = threadIdx.x % kWarpThreads, parts = (tokens + kTileTokens - 1) / kTileTokens;
    const int tiles = (min(first + queries, tokens) + kTileKeys - 1) / kTileKeys;
    for (int base = 0; base < tiles; base += kWarpThreads) {
        const int tile = base + lane;
        int lowest = 0x7fffffff, highest = 0;
        for (int part = tile * kParts; tile < tiles && part < min((tile + 1) * kParts, parts); ++part) {
            lowest = min(lowest, tile_bounds[2 * part]);
            highest = max(highest, tile_bounds[2 * part + 1]);
        }
        unsigned seen = __ballot_sync(kFullMask, highest > first);
        const unsigned whole = __ballot_sync(kFullMask, (tile + 1) * kTileKeys <= first && lowest >= first + queries);
        for (; seen != 0; seen &= seen - 1) {
            const int bit = __ffs(seen) - 1;
            visit(base + bit, whole >> bit & 1);
        }
    }
}

// The warp that fetches: every visible tile of keys and values of one key head, then the end.
template <int kGroups, int kTileKeys, int kHeadDim, int kOwn>
__device__ __forceinline__ void fetch_keys(TileRing<kGroups, kTileKeys, kHeadDim, kOwn>& ring, const CUtensorMap* qkv_map,
                                           const CUtensorMap* ends_map, const int* tile_bounds, int tokens, int first,
                                           int key_column, int value_column, bool may_be_whole) {
    constexpr int kTileBytes = TileRing<kGroups, kTileKeys, kHeadDim, kOwn>::kTileBytes;
    char* memory = shared_memory<char>();
    const bool issues = elect_one();
    for_each_visible_tile<kTileKeys>(tile_bounds, tokens, first, kGroups * 64, [&](int tile, bool whole) {
        if (issues) {
            const int row = tile * kTileKeys;
            mbarrier_wait(ring.empty(kKeysPart), ring.parity ^ 1);
            ring.note(memory) = 2 * tile + (whole && may_be_whole);
            mbarrier_arrive_expect(ring.full(kKeysPart), kTileBytes + kTileKeys * 4);
            fetch_rows<kTileKeys, kHeadDim>(ring.tile(kKeysPart), qkv_map, key_column, row, ring.full(kKeysPart));
            tma_load(ring.words(), ends_map, row, 0, ring.full(kKeysPart));
            mbarrier_wait(ring.empty(kValuesPart), ring.parity ^ 1);
            mbarrier_arrive_expect(ring.full(kValuesPart), kTileBytes);
            fetch_rows<kTileKeys, kHeadDim>(ring.tile(kValuesPart), qkv_map, value_column, row, ring.full(kValuesPart));
        }
        ring.next();
    });
    if (!issues) return;
    mbarrier_wait(ring.empty(kKeysPart), ring.parity ^ 1);
    ring.note(memory) = kNoMoreTiles;
    mbarrier_arrive(ring.full(kKeysPart));
}

// s (64, kBRows) = a b^T over the columns of a head; `a` is 64 rows of a tile of kARows.
template <int kARows, int kBRows, int kHeadDim>
__device__ __forceinline__ void multiply_heads(float (&s)[kBRows / 2], unsigned a_rows, unsigned b_rows) {
    const unsigned long long a = matrix_along_k(a_rows), b = matrix_along_k(b_rows);
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k)
        wgmma<false, false>(s, a + k / 4 * (kARows * 8) + k % 4 * 2, b + k / 4 * (kBRows * 8) + k % 4 * 2, k);
}

// sum (64, kHeadDim) += x (64, kRows) b (kRows, kHeadDim), x from registers.
template <int kRows, int kHeadDim>
__device__ __forceinline__ void add_rows(float (&sum)[kHeadDim / 2], const unsigned (&x)[kRows / 16][4], unsigned rows) {
    const unsigned long long b = matrix_across_k(rows, kRows);
#pragma unroll
    for (int k = 0; k < kRows / 16; ++k) wgmma<true>(sum, x[k], b + k * 128, 1);
}

// Accumulators as the left operand of the next product, rounded to bf16: both have the same places in a thread.
template <int kCount>
__device__ __forceinline__ void pack_operand(unsigned (&x)[kCount / 8][4], const float (&s)[kCount]) {
#pragma unroll
    for (int k = 0; k < kCount / 8; ++k)
#pragma unroll
        for (int r = 0; r < 4; ++r) x[k][r] = pack_bf16x2(s[8 * k + 2 * r], s[8 * k + 2 * r + 1]);
}

template <int kCount>
__device__ __forceinline__ void scale_all(float (&sum)[kCount], float by) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum[i] *= by;
}

struct alignas(8) IntPair {
    int x, y;
};

// Rows are queries from `i0` on, columns the keys of a tile from `j0` on: puts `by` where the query does not see the key.
template <bool kBounded, int kCount>
__device__ __forceinline__ void hide_columns(float (&s)[kCount], const Mask& mask, const int* ends, int i0, int j0,
                                             float by) {
    const int i = i0 + fragment_row();
#pragma unroll
    for (int f = 0; f < kCount / 4; ++f) {
        const int column = 8 * f + fragment_column();
        const IntPair pair = *reinterpret_cast<const IntPair*>(ends + column);
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const int row = i + c / 2 * 8, j = j0 + column + c % 2;
            // No branch: both comparisons cost less than one.
            bool visible = (j <= row) & (row < (c % 2 == 0 ? pair.x : pair.y));
            if (kBounded) visible = visible && mask.in_window(row, j);
            if (!visible) s[4 * f + c] = by;
        }
    }
}
