// The main loop of products on Hopper: a producer thread fills a ring of shared-memory slots by bulk tensor copies, two warp
// groups multiply from it.
//
// A cluster of two CTAs works on two tiles of D (m, n), one above the other. Each CTA fetches its own rows of A and half of
// the columns of B that both need, and multicasts that half, so that a slot costs the L2 cache (kTileM + kTileN / 2) rows
// instead of kTileM + kTileN. Both CTAs of a cluster walk the same tiles and the same blocks of k.
//
// A slot holds one block of k = 64 of both operands: A in kTileM rows of 128 bytes or, if it lies across k, in panels of 64
// columns by 64 rows of k; behind it B likewise.
#pragma once
#include <cluster.cuh>
#include <cta.cuh>
#include <mbarrier.cuh>
#include <mma.cuh>
#include <tma.cuh>
#include <types.cuh>
#include <wgmma.cuh>

// Two groups multiply, the third one's first warp fetches.
constexpr int kMultipliers = 2;
constexpr int kPipelineThreads = 384;
static_assert(kPipelineThreads == (kMultipliers + 1) * kGroupThreads, "");
// Registers a thread: (40 + 2 * 232) * 128 is what 384 threads enter with. With 24 for the producer ptxas spills there.
constexpr int kProducerRegisters = 40;
constexpr int kMultiplierRegisters = 232;

constexpr int kClusterCtas = 2;
constexpr unsigned short kBothCtas = 3;
constexpr int kBlockK = 64;
// A panel is 64 rows of 128 bytes: the unit of swizzled copies.
constexpr int kPanelRows = 64;
constexpr int kPanelBytes = kPanelRows * 128;
constexpr int kMaxStages = 8;
// The barriers at the head of shared memory; panels stand at multiples of 1024 bytes.
constexpr int kBarrierBytes = 1024;

// Whether the reduction is the contiguous index of each operand.
struct Nt {
    static constexpr bool kAAcross = false, kBAcross = false;
};
struct Nn {
    static constexpr bool kAAcross = false, kBAcross = true;
};
struct Tn {
    static constexpr bool kAAcross = true, kBAcross = true;
};

struct Problem {
    int m, n, k, stages;
};

// What a CTA does at a time: the tile that begins at (m0, n0), of its sum over k some blocks.
struct Unit {
    int m0, n0, first_block, blocks;
    int slice;  // where the sum of a part goes; a whole sum is -1
};

// Pairs of tiles are counted in bands of so many rows of them, so that a wave of clusters shares operands in L2.
struct Pair {
    int row, column;
};
__device__ __forceinline__ Pair pair_at(int tile, int rows, int columns) {
    constexpr int kBandPairs = 8;
    const int band = tile / (kBandPairs * columns), within = tile % (kBandPairs * columns);
    const int height = min(rows - band * kBandPairs, kBandPairs);
    return {band * kBandPairs + within % height, within / height};
}

// What a cluster walks: pairs of tiles one above the other.
template <int kTileM, int kColumns>
struct Walk {
    static constexpr bool kSplits = false;
    int pairs, columns, blocks;

    __device__ __forceinline__ Walk(const Problem& p)
        : pairs((p.m + kClusterCtas * kTileM - 1) / (kClusterCtas * kTileM)),
          columns((p.n + kColumns - 1) / kColumns),
          blocks((p.k + kBlockK - 1) / kBlockK) {}
    __device__ __forceinline__ int count() const { return pairs * columns; }
    static __device__ __forceinline__ int first() { return blockIdx.x / kClusterCtas; }
    static __device__ __forceinline__ int step() { return gridDim.x / kClusterCtas; }

    // A tile of this CTA.
    __device__ __forceinline__ Unit unit(int tile, int rank) const {
        const Pair pair = pair_at(tile, pairs, columns);
        return {(pair.row * kClusterCtas + rank) * kTileM, pair.column * kColumns, 0, blocks, -1};
    }
};

// The same, but only `whole` pairs of tiles are summed by one cluster each. The sums of the rest, which would fill no wave,
// are split along k into `splits` parts, not more than there are blocks: slice part * rest + tile, so that clusters that run
// beside each other read the same rows of both operands.
template <int kTileM, int kColumns>
struct SplitWalk : Walk<kTileM, kColumns> {
    static constexpr bool kSplits = true;
    int whole, splits;

    __device__ __forceinline__ SplitWalk(const Problem& p, int whole, int splits)
        : Walk<kTileM, kColumns>(p), whole(whole), splits(splits) {}
    __device__ __forceinline__ int rest() const { return this->pairs * this->columns - whole; }
    __device__ __forceinline__ int count() const { return whole + rest() * splits; }

    __device__ __forceinline__ Unit unit(int index, int rank) const {
        if (index < whole) return Walk<kTileM, kColumns>::unit(index, rank);
        const int slice = index - whole, part = slice / rest();
        Unit unit = Walk<kTileM, kColumns>::unit(whole + slice % rest(), rank);
        unit.first_block = this->blocks * part / splits;
        unit.blocks = this->blocks * (part + 1) / splits - unit.first_block;
        unit.slice = slice;
        return unit;
    }
};

// Slots in turn. A slot's `full` completes when its bytes have landed, `empty` when every warp that multiplies from it, in
// both CTAs because both write to it, has let go of it.
template <int kTileM, int kTileN>
struct Ring {
    static constexpr int kSlotBytes = (kTileM + kTileN) * 128;
    unsigned barriers, slots;
    int stages, stage = 0;
    unsigned parity = 0;

    __device__ __forceinline__ Ring(unsigned shared, int offset, int stages)
        : barriers(shared), slots(shared + offset), stages(stages) {}
    __device__ __forceinline__ unsigned full() const { return barriers + 8 * stage; }
    __device__ __forceinline__ unsigned empty() const { return barriers + 8 * (kMaxStages + stage); }
    __device__ __forceinline__ unsigned a() const { return slots + stage * kSlotBytes; }
    __device__ __forceinline__ unsigned b() const { return a() + kTileM * 128; }
    __device__ __forceinline__ void next() {
        if (++stage < stages) return;
        stage = 0;
        parity ^= 1;
    }

    // By one thread, before the cluster meets.
    __device__ __forceinline__ void init() const {
        for (int s = 0; s < stages; ++s) {
            mbarrier_init(barriers + 8 * s, 1);
            mbarrier_init(barriers + 8 * (kMaxStages + s), kClusterCtas * kMultipliers * kGroupThreads / kWarpThreads);
        }
        fence_mbarrier_init();
    }

    // A warp lets go of the slot in both CTAs.
    __device__ __forceinline__ void release() const {
        const int lane = threadIdx.x % kWarpThreads;
        __syncwarp();
        if (lane < kClusterCtas) mbarrier_arrive_cluster(map_to_rank(empty(), lane));
    }

    // A slot that is released here cannot be written by the other CTA, nor its barrier arrived at, once this returns.
    __device__ __forceinline__ void drain() {
        for (int s = 0; s < stages; ++s) {
            mbarrier_wait(empty(), parity ^ 1);
            next();
        }
    }
};

// Fetches the blocks of one unit. This CTA's half of B begins `half_step` columns after the other's, unless B lies across k:
// then the halves are the upper and the lower rows of k.
template <class Order, int kTileM, int kTileN>
__device__ __forceinline__ void fetch_tile(Ring<kTileM, kTileN>& ring, const CUtensorMap* a_map, const CUtensorMap* b_map,
                                           const Unit& unit, int rank, int half_step) {
    constexpr int kHalfBytes = kTileN / 2 * 128, kHalfK = kBlockK / 2;
    const int m0 = unit.m0, n0 = unit.n0;
    for (int block = 0; block < unit.blocks; ++block) {
        const int k0 = (unit.first_block + block) * kBlockK;
        mbarrier_wait(ring.empty(), ring.parity ^ 1);
        mbarrier_arrive_expect(ring.full(), Ring<kTileM, kTileN>::kSlotBytes);
        if constexpr (Order::kAAcross) {
#pragma unroll
            for (int panel = 0; panel < kTileM / 64; ++panel)
                tma_load(ring.a() + panel * kPanelBytes, a_map, m0 + 64 * panel, k0, ring.full());
        } else {
            tma_load(ring.a(), a_map, k0, m0, ring.full());
        }
        if constexpr (Order::kBAcross) {
#pragma unroll
            for (int panel = 0; panel < kTileN / 64; ++panel)
                tma_load_multicast(ring.b() + panel * kPanelBytes + rank * kHalfK * 128, b_map, n0 + 64 * panel,
                                   k0 + rank * kHalfK, ring.full(), kBothCtas);
        } else {
            tma_load_multicast(ring.b() + rank * kHalfBytes, b_map, k0, n0 + rank * half_step, ring.full(), kBothCtas);
        }
        ring.next();
    }
}

// sum = the tile's rows of this group: kTileM / 2, in blocks of 64.
template <class Order, int kTileM, int kTileN>
__device__ __forceinline__ void multiply_tile(float (&sum)[kTileM / 128][kTileN / 2], Ring<kTileM, kTileN>& ring, int group,
                                              int blocks) {
    constexpr int kRowBlocks = kTileM / 128;
    // Of a descriptor, which counts 16 bytes: 16 along k, and 64 rows or one panel.
    constexpr int kAStep = Order::kAAcross ? 128 : 2, kBStep = Order::kBAcross ? 128 : 2, kPanelStep = kPanelBytes / 16;
    for (int block = 0; block < blocks; ++block) {
        mbarrier_wait(ring.full(), ring.parity);
        const unsigned a_rows = ring.a() + group * kRowBlocks * kPanelBytes;
        const unsigned long long a = Order::kAAcross ? matrix_across_k(a_rows, kBlockK) : matrix_along_k(a_rows);
        const unsigned long long b = Order::kBAcross ? matrix_across_k(ring.b(), kBlockK) : matrix_along_k(ring.b());
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kBlockK / 16; ++k)
#pragma unroll
            for (int i = 0; i < kRowBlocks; ++i)
                wgmma<Order::kAAcross, Order::kBAcross>(sum[i], a + k * kAStep + i * kPanelStep, b + k * kBStep, block + k);
        wgmma_commit();
        // The other group's products run meanwhile.
        wgmma_wait<0>();
        ring.release();
        ring.next();
    }
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i) hold_registers(sum[i]);
}

// The threads of one multiplying group meet.
__device__ __forceinline__ void group_sync(int group) {
    if (group == 0)
        named_barrier_sync<1>(kGroupThreads);
    else
        named_barrier_sync<2>(kGroupThreads);
}

// Two panels in turn through which a group's results leave for global memory. One thread issues the stores and waits for
// them.
struct Outbox {
    static constexpr int kBytes = kMultipliers * 2 * kPanelBytes;
    char* panels;
    int group, turn = 0;

    __device__ __forceinline__ Outbox(char* all, int group) : panels(all + group * 2 * kPanelBytes), group(group) {}
    static __device__ __forceinline__ bool issues() { return threadIdx.x % kGroupThreads == 0; }

    // The next panel, once the store that read it last has done so.
    __device__ __forceinline__ char* open() {
        if (issues()) bulk_wait_read<1>();
        group_sync(group);
        return opened();
    }
    __device__ __forceinline__ char* opened() const { return panels + turn * kPanelBytes; }

    // Sends what the group wrote, or adds it to what is there.
    template <bool kAdd>
    __device__ __forceinline__ void send(const CUtensorMap* map, int column, int row) {
        fence_async();
        group_sync(group);
        if (issues()) {
            const unsigned panel = shared_address(panels + turn * kPanelBytes);
            if constexpr (kAdd)
                tma_add(map, panel, column, row);
            else
                tma_store(map, panel, column, row);
            bulk_commit();
        }
        turn ^= 1;
    }

    __device__ __forceinline__ void close() const {
        if (issues()) bulk_wait<0>();
    }
};

// Of the thread's accumulators of 64 rows: 4 j and 4 j + 1 are this row, columns 8 j on from this one; 4 j + 2 and 4 j + 3
// eight rows below.
__device__ __forceinline__ int fragment_row() {
    return threadIdx.x % kGroupThreads / kWarpThreads * 16 + threadIdx.x % kWarpThreads / 4;
}
__device__ __forceinline__ int fragment_column() { return threadIdx.x % 4 * 2; }

// 64 rows of 64 columns as bf16 into the open panel.
template <int kFirst, int kCount>
__device__ __forceinline__ void write_panel(const Outbox& outbox, const float (&sum)[kCount], int panel) {
    const int lane = threadIdx.x % kWarpThreads, warp_row = threadIdx.x % kGroupThreads / kWarpThreads * 16;
    char* rows = outbox.opened() + (warp_row + lane % 16) * 128;
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
        unsigned words[4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int at = kFirst / 2 + 4 * (8 * panel + j + half);
            words[2 * half] = pack_bf16x2(sum[at], sum[at + 1]);
            words[2 * half + 1] = pack_bf16x2(sum[at + 2], sum[at + 3]);
        }
        stmatrix_x4(rows + ((j + lane / 16 ^ lane % 8) << 4), words);
    }
}

// 64 rows of some of the tile's columns as bf16, in panels of 64.
template <int kFirst, int kColumns, int kCount>
__device__ __forceinline__ void write_rows(Outbox& outbox, const CUtensorMap* d_map, const float (&sum)[kCount], int row0,
                                           int n0, const Problem& p) {
#pragma unroll
    for (int panel = 0; panel < kColumns / 64; ++panel) {
        const int column0 = n0 + 64 * panel;
        if (column0 >= p.n || row0 >= p.m) break;
        outbox.open();
        write_panel<kFirst>(outbox, sum, panel);
        outbox.send<false>(d_map, column0, row0);
    }
}

struct alignas(8) FloatPair {
    float x, y;
};

// 64 rows as f32, in panels of 32 columns.
template <bool kAdd, int kCount>
__device__ __forceinline__ void write_wide_rows(Outbox& outbox, const CUtensorMap* d_map, const float (&sum)[kCount],
                                                int row0, int n0, const Problem& p) {
    const int lane = threadIdx.x % kWarpThreads, warp_row = threadIdx.x % kGroupThreads / kWarpThreads * 16;
#pragma unroll
    for (int panel = 0; panel < kCount / 16; ++panel) {
        const int column0 = n0 + 32 * panel;
        if (column0 >= p.n || row0 >= p.m) break;
        char* row = outbox.open() + (warp_row + lane / 4) * 128;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int at = 4 * (4 * panel + j), chunk = 2 * j + lane % 4 / 2;
            char* to = row + ((chunk ^ lane / 4) << 4) + lane % 2 * 8;
            *reinterpret_cast<FloatPair*>(to) = {sum[at], sum[at + 1]};
            *reinterpret_cast<FloatPair*>(to + 8 * 128) = {sum[at + 2], sum[at + 3]};
        }
        outbox.send<kAdd>(d_map, column0, row0);
    }
}

// Adds two neighbours, which lie at an even index of an even number of columns.
__device__ __forceinline__ void add_pair(float& x, float& y, const bf16* from, bool is_there) {
    const unsigned pair = is_there ? *reinterpret_cast<const unsigned*>(from) : 0u;
    x += __uint_as_float(pair << 16);
    y += __uint_as_float(pair & 0xffff0000u);
}

// Adds a bias (n) to rows whose columns begin at `n0`; n is even.
template <int kCount>
__device__ __forceinline__ void add_bias(float (&sum)[kCount], const bf16* bias, int n0, const Problem& p) {
    const int column0 = n0 + fragment_column();
#pragma unroll
    for (int j = 0; j < kCount / 4; ++j) {
        const int column = column0 + 8 * j;
        add_pair(sum[4 * j], sum[4 * j + 1], bias + column, column < p.n);
        add_pair(sum[4 * j + 2], sum[4 * j + 3], bias + column, column < p.n);
    }
}

// Fetches for every unit of the CTA, or multiplies and hands each block of 64 rows to `write` (outbox, sum, row0, n0), and the
// slice if the walk splits sums. A tile's columns are the walk's columns of the result; where these are half of them,
// `half_step` rows of B apart from the same of another result.
template <class Order, int kTileM, int kTileN, class Walk, class Write>
__device__ __forceinline__ void multiply_tiles(const CUtensorMap* a_map, const CUtensorMap* b_map, int stages, const Walk& walk,
                                               Write write, int half_step = kTileN / 2) {
    char* shared = shared_memory<char>();
    const int group = __shfl_sync(kFullMask, threadIdx.x / kGroupThreads, 0), rank = cluster_rank();
    Ring<kTileM, kTileN> ring(shared_address(shared), kBarrierBytes + Outbox::kBytes, stages);
    if (threadIdx.x == 0) ring.init();
    cluster_sync();
    if (group == kMultipliers) {
        give_registers<kProducerRegisters>();
        if (threadIdx.x / kWarpThreads != kMultipliers * kGroupThreads / kWarpThreads || !elect_one()) return;
        prefetch_map(a_map);
        prefetch_map(b_map);
        for (int index = walk.first(); index < walk.count(); index += walk.step())
            fetch_tile<Order>(ring, a_map, b_map, walk.unit(index, rank), rank, half_step);
        ring.drain();
    } else {
        take_registers<kMultiplierRegisters>();
        Outbox outbox(shared + kBarrierBytes, group);
        for (int index = walk.first(); index < walk.count(); index += walk.step()) {
            const Unit unit = walk.unit(index, rank);
            float sum[kTileM / 128][kTileN / 2];
            multiply_tile<Order>(sum, ring, group, unit.blocks);
#pragma unroll
            for (int i = 0; i < kTileM / 128; ++i) {
                const int row0 = unit.m0 + (group * kTileM / 128 + i) * 64;
                if constexpr (Walk::kSplits)
                    write(outbox, sum[i], row0, unit.n0, unit.slice);
                else
                    write(outbox, sum[i], row0, unit.n0);
            }
        }
        outbox.close();
    }
}
