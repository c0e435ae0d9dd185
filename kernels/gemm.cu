// D (m, n) = A * B or D += A * B in three operand orders, all row-major, the reduction over k:
//   nt: A (m, k), B (n, k)    nn: A (m, k), B (k, n)    tn: A (k, m), B (k, n)
//
// bf16: tensor cores. One CTA owns whole 128x128 tiles of D and walks them in a fixed order (persistent grid of
// 256-thread CTAs, 64 KB of shared memory); 8 warps of 64x32 each. cp.async fills a ring of 4 stages of k = 32 that runs
// on across tiles, so the loads of the next tile are in flight during the epilogue. An operand is stored in shared memory
// as it lies in global memory; ldmatrix transposes where the reduction is not the contiguous index. Sixteen-byte chunks
// are swizzled so that copies and ldmatrix are free of bank conflicts. Ragged m, n, k are zero-filled.
// f32: plain FMA, 64x64 tiles, 4x4 a thread, k ascending, 17 KB of shared memory.
// f32 accumulation in both; one owner per tile, no atomics, no split of k: the same bits on every run.
// Gradients of weights that are added up in bf16 (narrow) overwrite D rounded to nearest, or are added to it in f32 and rounded
// by chance: lib/philox.cuh, by an element's place in the arena, where D begins at `first`.
// Every operand is read once per tile row or column, D is written once. Roof: tensor cores (bf16), FMA units (f32).
// ptxas 13.0, sm_80 and sm_90a: bf16 119 to 125 registers, f32 89 to 115, no spills, two CTAs a multiprocessor.

#include <cta.cuh>
#include <ldst.cuh>
#include <mma.cuh>
#include <philox.cuh>
#include <types.cuh>

// ---- device code

constexpr int kThreads = 256;
constexpr int kCtasPerSm = 2;
// Tiles are walked in bands of this many tile rows, so that a wave of CTAs shares operands in L2.
constexpr int kBandTiles = 8;

// Whether the reduction is the contiguous index of each operand.
struct Nt {
    static constexpr bool kAAlongK = true, kBAlongK = true;
};
struct Nn {
    static constexpr bool kAAlongK = true, kBAlongK = false;
};
struct Tn {
    static constexpr bool kAAlongK = false, kBAlongK = false;
};

struct Problem {
    int m, n, k, lda, ldb, ldd;
};

// The square tiles of D in the order they are walked.
template <int kTile>
struct Tiles {
    int rows, columns;

    __device__ __forceinline__ Tiles(const Problem& p)
        : rows((p.m + kTile - 1) / kTile), columns((p.n + kTile - 1) / kTile) {}
    __device__ __forceinline__ int count() const { return rows * columns; }
    __device__ __forceinline__ void place(int tile, int& m0, int& n0) const {
        const int band = tile / (kBandTiles * columns), within = tile % (kBandTiles * columns);
        const int height = min(rows - band * kBandTiles, kBandTiles);
        m0 = (band * kBandTiles + within % height) * kTile;
        n0 = within / height * kTile;
    }
};

template <class T>
struct alignas(2 * sizeof(T)) Pair {
    T first, second;
};

template <class D>
__device__ __forceinline__ void store(D* d, float x, int accumulate) {
    *d = from_f32<D>(accumulate ? to_f32(*d) + x : x);
}

// Two neighbours of a row, of which `columns` exist; one access if the address allows it.
template <class D>
__device__ __forceinline__ void store_pair(D* d, float x, float y, int columns, bool aligned, int accumulate) {
    if (columns >= 2 && aligned) {
        auto* pair = reinterpret_cast<Pair<D>*>(d);
        if (accumulate) {
            const Pair<D> old = *pair;
            x += to_f32(old.first);
            y += to_f32(old.second);
        }
        *pair = Pair<D>{from_f32<D>(x), from_f32<D>(y)};
        return;
    }
    if (columns >= 1) store(d, x, accumulate);
    if (columns >= 2) store(d + 1, y, accumulate);
}

// Where results go as they are.
template <class D>
struct Plain {
    D* d;
    int ldd, accumulate;
    bool aligned;

    __device__ __forceinline__ Plain(D* d, int ldd, int accumulate)
        : d(d),
          ldd(ldd),
          accumulate(accumulate),
          aligned(ldd % 2 == 0 && reinterpret_cast<unsigned long long>(d) % sizeof(Pair<D>) == 0) {}
    __device__ __forceinline__ void one(int row, int column, float x) const {
        store(d + (long long)row * ldd + column, x, accumulate);
    }
    __device__ __forceinline__ void pair(int row, int column, float x, float y, int columns) const {
        store_pair(d + (long long)row * ldd + column, x, y, columns, aligned, accumulate);
    }
};

// Where gradients are added up in bf16.
struct Narrow {
    bf16* d;
    int ldd, accumulate;
    Draw draw;
    long long first;

    __device__ __forceinline__ void one(int row, int column, float x) const {
        const long long at = (long long)row * ldd + column;
        if (accumulate) x = round_by_chance(to_f32(d[at]) + x, random_half(draw, first + at));
        d[at] = from_f32<bf16>(x);
    }
    __device__ __forceinline__ void pair(int row, int column, float x, float y, int columns) const {
        if (columns < 2) {
            if (columns == 1) one(row, column, x);
            return;
        }
        const long long at = (long long)row * ldd + column;
        if (accumulate) {
            x += to_f32(d[at]);
            y += to_f32(d[at + 1]);
            round_pair(x, y, draw, first + at);
        }
        d[at] = from_f32<bf16>(x);
        d[at + 1] = from_f32<bf16>(y);
    }
};

// bf16 on tensor cores.

constexpr int kTile = 128;
constexpr int kBlockK = 32;
constexpr int kStages = 4;
constexpr int kChunk = 8;  // elements of a 16-byte copy
constexpr int kOperandElements = kTile * kBlockK;
constexpr int kWarpM = 64;
constexpr int kWarpN = 32;

// An operand's 128 x 32 block in shared memory: rows of 32 along k, or 32 rows of 128 across it.
template <bool kAlongK>
struct Block {
    static constexpr int kRowChunks = (kAlongK ? kBlockK : kTile) / kChunk;

    static __device__ __forceinline__ int element(int row, int chunk) {
        const int swizzled = chunk ^ (kAlongK ? row >> 1 & 3 : row & 7);
        return (row * kRowChunks + swizzled) * kChunk;
    }

    // Starts the copy of the block at (outer0, k0); what lies outside is zero-filled.
    static __device__ __forceinline__ void fetch(bf16* block, const bf16* x, int ld, int outer0, int k0, int outer,
                                                 int k) {
        const int row0 = kAlongK ? outer0 : k0, rows = kAlongK ? outer : k;
        const int column0 = kAlongK ? k0 : outer0, columns = kAlongK ? k : outer;
#pragma unroll
        for (int i = threadIdx.x; i < kOperandElements / kChunk; i += kThreads) {
            const int row = row0 + i / kRowChunks, column = column0 + i % kRowChunks * kChunk;
            const int valid = row < rows ? min(max(columns - column, 0), kChunk) : 0;
            const bf16* from = valid > 0 ? x + (long long)row * ld + column : x;
            cp_async16(block + element(i / kRowChunks, i % kRowChunks), from, valid * (int)sizeof(bf16));
        }
    }

    // Four 8x8 matrices, two along each index. A's fragment counts across k first, B's along k first.
    template <bool kIsA>
    static __device__ __forceinline__ void fragment(unsigned (&r)[4], const bf16* block, int outer, int k) {
        const int lane = threadIdx.x % kWarpThreads, matrix = lane / 8, in_matrix = lane % 8;
        outer += 8 * (kIsA ? matrix & 1 : matrix >> 1);
        k += 8 * (kIsA ? matrix >> 1 : matrix & 1);
        if constexpr (kAlongK)
            ldmatrix_x4(r, block + element(outer + in_matrix, k / kChunk));
        else
            ldmatrix_x4_trans(r, block + element(k + in_matrix, outer / kChunk));
    }
};

// The CTA's sequence of k-blocks over all its tiles, as the copies walk it.
template <class Order>
struct Fetcher {
    const bf16 *a, *b;
    bf16* ring;
    Problem p;
    Tiles<kTile> tiles;
    int tile, k0 = 0, stage = 0, m0 = 0, n0 = 0;

    __device__ __forceinline__ Fetcher(bf16* ring, const bf16* a, const bf16* b, const Problem& p)
        : a(a), b(b), ring(ring), p(p), tiles(p), tile(blockIdx.x) {
        tiles.place(tile, m0, n0);
    }

    // Starts one k-block's copies; beyond the last tile only the group is closed, so that waits keep counting.
    __device__ __forceinline__ void next() {
        if (tile < tiles.count()) {
            bf16* a_block = ring + stage * 2 * kOperandElements;
            Block<Order::kAAlongK>::fetch(a_block, a, p.lda, m0, k0, p.m, p.k);
            Block<Order::kBAlongK>::fetch(a_block + kOperandElements, b, p.ldb, n0, k0, p.n, p.k);
            k0 += kBlockK;
            if (k0 >= p.k) {
                k0 = 0;
                tile += gridDim.x;
                if (tile < tiles.count()) tiles.place(tile, m0, n0);
            }
        }
        cp_async_commit();
        stage = (stage + 1) % kStages;
    }
};

template <class Order>
__device__ __forceinline__ void multiply(float (&sum)[4][4][4], const bf16* a_block, const bf16* b_block, int warp_m,
                                         int warp_n) {
#pragma unroll
    for (int k = 0; k < kBlockK; k += 16) {
        unsigned a[4][4], b[4][2];
#pragma unroll
        for (int i = 0; i < 4; ++i)
            Block<Order::kAAlongK>::template fragment<true>(a[i], a_block, warp_m + 16 * i, k);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            unsigned two[4];
            Block<Order::kBAlongK>::template fragment<false>(two, b_block, warp_n + 16 * j, k);
            b[2 * j][0] = two[0], b[2 * j][1] = two[1];
            b[2 * j + 1][0] = two[2], b[2 * j + 1][1] = two[3];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) mma_m16n8k16(sum[i][j], a[i], b[j]);
    }
}

template <class Out>
__device__ __forceinline__ void write_warp_tile(const Out& out, const float (&sum)[4][4][4], int row0, int column0,
                                                const Problem& p) {
    const int lane = threadIdx.x % kWarpThreads;
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = row0 + 16 * i + 8 * half + lane / 4;
            if (row >= p.m) continue;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int column = column0 + 8 * j + lane % 4 * 2;
                out.pair(row, column, sum[i][j][2 * half], sum[i][j][2 * half + 1], p.n - column);
            }
        }
}

template <class Order, class Out>
__device__ __forceinline__ void gemm_bf16_to(const Out& out, const bf16* a, const bf16* b, const Problem& p) {
    const int warp = threadIdx.x / kWarpThreads;
    const int warp_m = warp / (kTile / kWarpN) * kWarpM, warp_n = warp % (kTile / kWarpN) * kWarpN;
    const Tiles<kTile> tiles(p);
    bf16* ring = shared_memory<bf16>();
    Fetcher<Order> fetcher(ring, a, b, p);
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) fetcher.next();
    int stage = 0;
    for (int tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
        float sum[4][4][4] = {};
        for (int k0 = 0; k0 < p.k; k0 += kBlockK) {
            cp_async_wait<kStages - 2>();
            // Publishes the stage, and guards the one read last, which the next copies overwrite.
            __syncthreads();
            fetcher.next();
            const bf16* a_block = ring + stage * 2 * kOperandElements;
            multiply<Order>(sum, a_block, a_block + kOperandElements, warp_m, warp_n);
            stage = (stage + 1) % kStages;
        }
        int m0, n0;
        tiles.place(tile, m0, n0);
        write_warp_tile(out, sum, m0 + warp_m, n0 + warp_n, p);
    }
}

template <class Order, class D>
__device__ __forceinline__ void gemm_bf16(D* d, const bf16* a, const bf16* b, int accumulate, const Problem& p) {
    gemm_bf16_to<Order>(Plain<D>(d, p.ldd, accumulate), a, b, p);
}

// f32 on FMA units.

constexpr int kFmaTile = 64;
constexpr int kFmaK = 16;
// Four floats of padding keep rows 16-byte aligned and spread the transposing writes over the banks.
constexpr int kFmaPitch = kFmaTile + 4;
constexpr int kFmaLoads = kFmaTile * kFmaK / kThreads;

// One operand's 64 x 16 block on its way from global memory through registers to shared memory, there (k, 64).
template <bool kAlongK>
struct FmaBlock {
    float value[kFmaLoads];

    static __device__ __forceinline__ int outer_of(int i) { return kAlongK ? i / kFmaK : i % kFmaTile; }
    static __device__ __forceinline__ int k_of(int i) { return kAlongK ? i % kFmaK : i / kFmaTile; }

    __device__ __forceinline__ void load(const float* x, int ld, int outer0, int k0, int outer_end, int k_end) {
#pragma unroll
        for (int i = 0; i < kFmaLoads; ++i) {
            const int at = threadIdx.x + i * kThreads;
            const int outer = outer0 + outer_of(at), k = k0 + k_of(at);
            const long long row = kAlongK ? outer : k, column = kAlongK ? k : outer;
            value[i] = outer < outer_end && k < k_end ? x[row * ld + column] : 0.0f;
        }
    }

    __device__ __forceinline__ void put(float* block) const {
#pragma unroll
        for (int i = 0; i < kFmaLoads; ++i) {
            const int at = threadIdx.x + i * kThreads;
            block[k_of(at) * kFmaPitch + outer_of(at)] = value[i];
        }
    }
};

__device__ __forceinline__ void load_four(float (&x)[4], const float* from) {
    const Pack16 four = load16(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = __uint_as_float(four.word[i]);
}

__device__ __forceinline__ void multiply_f32(float (&sum)[4][4], const float* a_block, const float* b_block) {
#pragma unroll
    for (int k = 0; k < kFmaK; ++k) {
        float a[4], b[4];
        load_four(a, a_block + k * kFmaPitch);
        load_four(b, b_block + k * kFmaPitch);
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
    }
}

template <class Order, class Out>
__device__ __forceinline__ void gemm_f32_to(const Out& out, const float* a, const float* b, const Problem& p) {
    constexpr int kOperand = kFmaK * kFmaPitch;
    const int own_m = threadIdx.x / 16 * 4, own_n = threadIdx.x % 16 * 4;
    const Tiles<kFmaTile> tiles(p);
    float* buffers = shared_memory<float>();
    for (int tile = blockIdx.x; tile < tiles.count(); tile += gridDim.x) {
        int m0, n0;
        tiles.place(tile, m0, n0);
        FmaBlock<Order::kAAlongK> a_next;
        FmaBlock<Order::kBAlongK> b_next;
        float sum[4][4] = {};
        float* buffer = buffers;
        a_next.load(a, p.lda, m0, 0, p.m, p.k);
        b_next.load(b, p.ldb, n0, 0, p.n, p.k);
        for (int k0 = 0; k0 < p.k; k0 += kFmaK) {
            // Two buffers: the one written here was last read before the barrier of the block before.
            a_next.put(buffer);
            b_next.put(buffer + kOperand);
            __syncthreads();
            a_next.load(a, p.lda, m0, k0 + kFmaK, p.m, p.k);
            b_next.load(b, p.ldb, n0, k0 + kFmaK, p.n, p.k);
            multiply_f32(sum, buffer + own_m, buffer + kOperand + own_n);
            buffer = buffer == buffers ? buffers + 2 * kOperand : buffers;
        }
        // The next tile starts with the first buffer again, which may be the one just read.
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int row = m0 + own_m + i, column = n0 + own_n + j;
                if (row < p.m && column < p.n) out.one(row, column, sum[i][j]);
            }
    }
}

template <class Order>
__device__ __forceinline__ void gemm_f32(float* d, const float* a, const float* b, int accumulate, const Problem& p) {
    gemm_f32_to<Order>(Plain<float>(d, p.ldd, accumulate), a, b, p);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kThreads, kCtasPerSm) gemm_nt_f32(
    float* d,        // (m, n), row pitch ldd, added to if accumulate
    const float* a,  // (m, k), row pitch lda
    const float* b,  // (n, k), row pitch ldb
    int accumulate, int m, int n, int k, int lda, int ldb, int ldd) {
    gemm_f32<Nt>(d, a, b, accumulate, {m, n, k, lda, ldb, ldd});
}

extern "C" __global__ void __launch_bounds__(kThreads, kCtasPerSm) gemm_nt_bf16(
    bf16* d,        // (m, n), row pitch ldd, added to if accumulate
    const bf16* a,  // (m, k), row pitch lda
    const bf16* b,  // (n, k), row pitch ldb
    int accumulate, int m, int n, int k, int lda, int ldb, int ldd) {
    gemm_bf16<Nt>(d, a, b, accumulate, {m, n, k, lda, ldb, ldd});
}

extern "C" __global__ void __launch_bounds__(kThreads, kCtasPerSm) gemm_nt_wide_bf16(
    float* d,       // (m, n), row pitch ldd, added to if accumulate
    const bf16* a,  // (m, k), row pitch lda
    const bf16* b,  // (n, k), row pitch ldb
    int accumulate, int m, int n, int k, int lda, int ldb, int ldd) {
    gemm_bf16<Nt>(d, a, b, accumulate, {m, n, k, lda, ldb, ldd});
}

extern "C" __global__ void __launch_bounds__(kThreads, kCtasPerSm) gemm_nn_f32(
    float* d,        // (m, n), row pitch ldd, added to if accumulate
    const float* a,  // (m, k), row pitch lda
    const float* b,  // (k, n), row pitch ldb
    int accumulate, int m, int n, int k, int lda, int ldb, int ldd) {
    gemm_f32<Nn>(d, a, b, accumulate, {m, n, k, lda, ldb, ldd});
}

extern "C" __global__ void __launch_bounds__(kThreads, kCtasPerSm) gemm_nn_bf16(
    bf16* d,        // (m, n), row pitch ldd, added to if accumulate
    const bf16* a,  // (m, k), row pitch lda
    const bf16* b,  // (k, n), row pitch ldb
    int accumulate, int m, int n, int k, int lda, int ldb, int ldd) {
    gemm_bf16<Nn>(d, a, b, accumulate, {m, n, k, lda, ldb, ldd});
}

extern "C" __global__ void __launch_bounds__(kThreads, kCtasPerSm) gemm_nn_wide_bf16(
    float* d,       // (m, n), row pitch ldd, added to if accumulate
    const bf16* a,  // (m, k), row pitch lda
    const bf16* b,  // (k, n), row pitch ldb
    int accumulate, int m, int n, int k, int lda, int ldb, int ldd) {
    gemm_bf16<Nn>(d, a, b, accumulate, {m, n, k, lda, ldb, ldd});
}

extern "C" __global__ void __launch_bounds__(kThreads, kCtasPerSm) gemm_tn_f32(
    float* d,        // (m, n), row pitch ldd, added to if accumulate
    const float* a,  // (k, m), row pitch lda
    const float* b,  // (k, n), row pitch ldb
    int accumulate, int m, int n, int k, int lda, int ldb, int ldd) {
    gemm_f32<Tn>(d, a, b, accumulate, {m, n, k, lda, ldb, ldd});
}

extern "C" __global__ void __launch_bounds__(kThreads, kCtasPerSm) gemm_tn_bf16(
    bf16* d,        // (m, n), row pitch ldd, added to if accumulate
    const bf16* a,  // (k, m), row pitch lda
    const bf16* b,  // (k, n), row pitch ldb
    int accumulate, int m, int n, int k, int lda, int ldb, int ldd) {
    gemm_bf16<Tn>(d, a, b, accumulate, {m, n, k, lda, ldb, ldd});
}

extern "C" __global__ void __launch_bounds__(kThreads, kCtasPerSm) gemm_tn_wide_bf16(
    float* d,       // (m, n), row pitch ldd, added to if accumulate
    const bf16* a,  // (k, m), row pitch lda
    const bf16* b,  // (k, n), row pitch ldb
    int accumulate, int m, int n, int k, int lda, int ldb, int ldd) {
    gemm_bf16<Tn>(d, a, b, accumulate, {m, n, k, lda, ldb, ldd});
}

extern "C" __global__ void __launch_bounds__(kThreads, kCtasPerSm) gemm_tn_narrow_f32(
    bf16* d,        // (m, n), row pitch ldd, added to if accumulate
    const float* a,  // (k, m), row pitch lda
    const float* b,  // (k, n), row pitch ldb
    int accumulate, int m, int n, int k, int lda, int ldb, int ldd, unsigned long long seed, unsigned number, unsigned part,
    long long first) {
    const Narrow out{d, ldd, accumulate, {seed, number, kGradients | part << 8}, first};
    gemm_f32_to<Tn>(out, a, b, {m, n, k, lda, ldb, ldd});
}

extern "C" __global__ void __launch_bounds__(kThreads, kCtasPerSm) gemm_tn_narrow_bf16(
    bf16* d,        // (m, n), row pitch ldd, added to if accumulate
    const bf16* a,  // (k, m), row pitch lda
    const bf16* b,  // (k, n), row pitch ldb
    int accumulate, int m, int n, int k, int lda, int ldb, int ldd, unsigned long long seed, unsigned number, unsigned part,
    long long first) {
    const Narrow out{d, ldd, accumulate, {seed, number, kGradients | part << 8}, first};
    gemm_bf16_to<Tn>(out, a, b, {m, n, k, lda, ldb, ldd});
}
