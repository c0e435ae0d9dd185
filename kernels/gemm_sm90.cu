// D (m, n) = A * B, or D += A * B, in three operand orders, all row-major, the reduction over k, on Hopper's own units:
//   nt: A (m, k), B (n, k)    nn: A (m, k), B (k, n)    tn: A (k, m), B (k, n)
// bf16 results may add a bias (n) and an addend (m, n) before they are rounded (the residual, or D itself); n is even then.
//
// Persistent grid of clusters of two CTAs of 384 threads; lib/product_pipeline.cuh has the main loop. Each of the two
// multiplying groups owns half of the tile's rows: 64 rows of 128x256 or 128x192, 128 rows of 256x128, 64 of 128x128. Results
// leave through two panels a group in shared memory by bulk stores, while the producer fetches for the next tile; f32
// results are added by bulk reductions where they accumulate. Ragged m, n, k are zero-filled on the way in and cut on the way
// out. `stages` slots of (tile_m + tile_n) * 128 bytes follow 33 KB of barriers and panels.
// Gradients that are added up in bf16 (narrow) leave as bf16 results do, rounded to nearest where they overwrite D; otherwise D is
// added in f32 and the sum rounded by chance: lib/philox.cuh, by an element's place in the arena, where D begins at `first`.
// f32 accumulation in k order, one owner per tile. Gradients of weights (tn, f32) may split the sums of tiles that would fill
// no wave along k: the parts go to a workspace and gemm_add_slices adds them in order. The same bits on every run.
// Roof: tensor cores.

#include <philox.cuh>
#include <product_pipeline.cuh>
#include <slice_sum.cuh>

// ---- device code

// What is added to a bf16 result before it is rounded; either may be absent.
struct Extras {
    const bf16 *addend, *bias;
    int addend_pitch, with_addend, with_bias;
};

// To 64 rows of D from (row0, n0) on.
template <int kTileN>
__device__ __forceinline__ void add_extras(float (&sum)[kTileN / 2], const Extras& extras, int row0, int n0,
                                           const Problem& p) {
    const int row = row0 + fragment_row(), column0 = n0 + fragment_column();
    if (extras.with_bias) add_bias(sum, extras.bias, n0, p);
    if (extras.with_addend) {
#pragma unroll
        for (int j = 0; j < kTileN / 8; ++j) {
            const int column = column0 + 8 * j;
            const bf16* from = extras.addend + (long long)row * extras.addend_pitch + column;
            add_pair(sum[4 * j], sum[4 * j + 1], from, row < p.m && column < p.n);
            add_pair(sum[4 * j + 2], sum[4 * j + 3], from + 8ll * extras.addend_pitch, row + 8 < p.m && column < p.n);
        }
    }
}

template <class Order, int kTileM, int kTileN>
__device__ __forceinline__ void gemm_bf16(const CUtensorMap* d_map, const CUtensorMap* a_map, const CUtensorMap* b_map,
                                          const Extras& extras, const Problem& p) {
    const auto write = [&](Outbox& outbox, float (&sum)[kTileN / 2], int row0, int n0) {
        add_extras<kTileN>(sum, extras, row0, n0, p);
        write_rows<0, kTileN>(outbox, d_map, sum, row0, n0, p);
    };
    multiply_tiles<Order, kTileM, kTileN>(a_map, b_map, p.stages, Walk<kTileM, kTileN>(p), write);
}

template <class Order, int kTileM, int kTileN>
__device__ __forceinline__ void gemm_wide(const CUtensorMap* d_map, const CUtensorMap* a_map, const CUtensorMap* b_map,
                                          int accumulate, const Problem& p) {
    const auto write = [&](Outbox& outbox, const float (&sum)[kTileN / 2], int row0, int n0) {
        if (accumulate)
            write_wide_rows<true>(outbox, d_map, sum, row0, n0, p);
        else
            write_wide_rows<false>(outbox, d_map, sum, row0, n0, p);
    };
    multiply_tiles<Order, kTileM, kTileN>(a_map, b_map, p.stages, Walk<kTileM, kTileN>(p), write);
}

// As gemm_wide; sums of parts go to the workspace, where a slice is the 2 * kTileM rows of a pair of tiles.
template <int kTileM, int kTileN>
__device__ __forceinline__ void gemm_split(const CUtensorMap* d_map, const CUtensorMap* slices_map, const CUtensorMap* a_map,
                                           const CUtensorMap* b_map, int accumulate, const Problem& p, int whole, int splits) {
    constexpr int kPairRows = kClusterCtas * kTileM;
    const auto write = [&](Outbox& outbox, const float (&sum)[kTileN / 2], int row0, int n0, int slice) {
        if (slice < 0 && accumulate) {
            write_wide_rows<true>(outbox, d_map, sum, row0, n0, p);
        } else {
            const bool whole_sum = slice < 0;
            const Problem edges = whole_sum ? p : Problem{(slice + 1) * kPairRows, kTileN, 0, 0};
            const int row = whole_sum ? row0 : slice * kPairRows + row0 % kPairRows;
            write_wide_rows<false>(outbox, whole_sum ? d_map : slices_map, sum, row, whole_sum ? n0 : 0, edges);
        }
    };
    multiply_tiles<Tn, kTileM, kTileN>(a_map, b_map, p.stages, SplitWalk<kTileM, kTileN>(p, whole, splits), write);
}

// Where gradients are added up in bf16.
struct Narrow {
    bf16* d;
    int ldd, accumulate;
    Draw draw;
    long long first;
};

constexpr int kPanelWords = 16;  // of random bits that a thread needs for its pairs of neighbours in a panel

// Of the chunks of a panel's 64 rows from (row0, column0) on: the four threads that have a chunk between them draw every fourth
// and share the words through the panel. In a loop, because the unrolled rounds would be the larger part of the kernel.
__device__ __forceinline__ void draw_words(unsigned (&words)[kPanelWords], unsigned* panel, const Narrow& narrow, int row0,
                                           int column0) {
    const int thread = threadIdx.x % kGroupThreads, quad = thread - thread % 4, row = row0 + fragment_row();
#pragma unroll 1
    for (int i = thread % 4; i < kPanelWords; i += 4) {
        unsigned drawn[4];
        random_words(drawn, narrow.draw, narrow.first + (row + 8ll * (i % 2)) * narrow.ldd + column0 + 8 * (i / 2));
#pragma unroll
        for (int q = 0; q < 4; ++q) panel[i * kGroupThreads + quad + q] = drawn[q];
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kPanelWords; ++i) words[i] = panel[i * kGroupThreads + thread];
}

// What a panel's 64 rows of sums and D give, rounded by chance. `n` is even.
template <int kCount>
__device__ __forceinline__ void add_by_chance(float (&total)[2 * kPanelWords], const float (&sum)[kCount], int panel,
                                              const unsigned (&words)[kPanelWords], const Narrow& narrow, int row0,
                                              int column0, const Problem& p) {
    const int row = row0 + fragment_row();
#pragma unroll
    for (int i = 0; i < kPanelWords; ++i) {
        const int column = column0 + 8 * (i / 2) + fragment_column(), below = i % 2;
        const bf16* from = narrow.d + (row + 8ll * below) * narrow.ldd + column;
        float x = sum[32 * panel + 2 * i], y = sum[32 * panel + 2 * i + 1];
        add_pair(x, y, from, row + 8 * below < p.m && column < p.n);
        total[2 * i] = round_by_chance(x, words[i] & 0xffffu);
        total[2 * i + 1] = round_by_chance(y, words[i] >> 16);
    }
}

// 64 rows of the tile as bf16, added to D. The sums stay as they are: registers that the next products write must not move.
template <int kColumns, int kCount>
__device__ __forceinline__ void add_rows_by_chance(Outbox& outbox, const CUtensorMap* d_map, const float (&sum)[kCount],
                                                   const Narrow& narrow, int row0, int n0, const Problem& p) {
#pragma unroll
    for (int panel = 0; panel < kColumns / 64; ++panel) {
        const int column0 = n0 + 64 * panel;
        if (column0 >= p.n || row0 >= p.m) break;
        unsigned words[kPanelWords];
        float total[2 * kPanelWords];
        draw_words(words, reinterpret_cast<unsigned*>(outbox.open()), narrow, row0, column0);
        add_by_chance(total, sum, panel, words, narrow, row0, column0, p);
        // Some of the words are still read.
        group_sync(outbox.group);
        write_panel<0>(outbox, total, 0);
        outbox.send<false>(d_map, column0, row0);
    }
}

// As gemm_split with such a D.
template <int kTileM, int kTileN>
__device__ __forceinline__ void gemm_narrow(const CUtensorMap* d_map, const CUtensorMap* slices_map, const CUtensorMap* a_map,
                                            const CUtensorMap* b_map, const Narrow& narrow, const Problem& p, int whole,
                                            int splits) {
    constexpr int kPairRows = kClusterCtas * kTileM;
    const auto write = [&](Outbox& outbox, const float (&sum)[kTileN / 2], int row0, int n0, int slice) {
        if (slice < 0) {
            if (narrow.accumulate)
                add_rows_by_chance<kTileN>(outbox, d_map, sum, narrow, row0, n0, p);
            else
                write_rows<0, kTileN>(outbox, d_map, sum, row0, n0, p);
        } else {
            const Problem edges = {(slice + 1) * kPairRows, kTileN, 0, 0};
            write_wide_rows<false>(outbox, slices_map, sum, slice * kPairRows + row0 % kPairRows, 0, edges);
        }
    };
    multiply_tiles<Tn, kTileM, kTileN>(a_map, b_map, p.stages, SplitWalk<kTileM, kTileN>(p, whole, splits), write);
}

constexpr int kAddThreads = 256;

// The chunk of D that a thread of gemm_add_slices has, and the sum of its parts. False if there is none.
struct Share {
    int row, column;
    float sum[kChunk];

    __device__ __forceinline__ bool add(const float* slices, int m, int n, int tile_m, int tile_n, int whole, int splits) {
        const int pair_rows = kClusterCtas * tile_m, pair_ctas = pair_rows * tile_n / (kAddThreads * kChunk);
        const int rows = (m + pair_rows - 1) / pair_rows, columns = (n + tile_n - 1) / tile_n, rest = rows * columns - whole;
        const int within = (blockIdx.x % pair_ctas * kAddThreads + threadIdx.x) * kChunk;
        const Pair pair = pair_at(whole + blockIdx.x / pair_ctas, rows, columns);
        row = pair.row * pair_rows + within / tile_n;
        column = pair.column * tile_n + within % tile_n;
        if (row >= m || column >= n) return false;
        const float* from = slices + ((long long)blockIdx.x * kAddThreads + threadIdx.x) * kChunk;
        const long long pitch = (long long)rest * pair_rows * tile_n;
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sum[i] = 0.0f;
        int part = 0;
        for (; part + kSliceInFlight <= splits; part += kSliceInFlight)
            add_rows<kSliceInFlight, true>(sum, from + part * pitch, pitch, kChunk);
        for (; part < splits; ++part) add_rows<1, true>(sum, from + part * pitch, pitch, kChunk);
        return true;
    }

    template <class D>
    __device__ __forceinline__ void add_old(const D* from, int n) {
        float before[kChunk];
        load_chunk(before, from, n - column);
#pragma unroll
        for (int i = 0; i < kChunk; ++i) sum[i] += before[i];
    }
};

// ---- entry points

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nt_128x256_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n), written
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (n, k)
    const bf16* addend,                         // (m, n), row pitch addend_pitch; may be d
    const bf16* bias,                           // (n)
    int addend_pitch, int with_addend, int with_bias, int m, int n, int k, int stages) {
    gemm_bf16<Nt, 128, 256>(&d_map, &a_map, &b_map, {addend, bias, addend_pitch, with_addend, with_bias}, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nt_128x256_wide_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n) f32, written, or added to if accumulate
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (n, k)
    int accumulate, int m, int n, int k, int stages) {
    gemm_wide<Nt, 128, 256>(&d_map, &a_map, &b_map, accumulate, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nt_256x128_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n), written
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (n, k)
    const bf16* addend,                         // (m, n), row pitch addend_pitch; may be d
    const bf16* bias,                           // (n)
    int addend_pitch, int with_addend, int with_bias, int m, int n, int k, int stages) {
    gemm_bf16<Nt, 256, 128>(&d_map, &a_map, &b_map, {addend, bias, addend_pitch, with_addend, with_bias}, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nt_256x128_wide_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n) f32, written, or added to if accumulate
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (n, k)
    int accumulate, int m, int n, int k, int stages) {
    gemm_wide<Nt, 256, 128>(&d_map, &a_map, &b_map, accumulate, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nt_128x192_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n), written
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (n, k)
    const bf16* addend,                         // (m, n), row pitch addend_pitch; may be d
    const bf16* bias,                           // (n)
    int addend_pitch, int with_addend, int with_bias, int m, int n, int k, int stages) {
    gemm_bf16<Nt, 128, 192>(&d_map, &a_map, &b_map, {addend, bias, addend_pitch, with_addend, with_bias}, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nt_128x192_wide_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n) f32, written, or added to if accumulate
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (n, k)
    int accumulate, int m, int n, int k, int stages) {
    gemm_wide<Nt, 128, 192>(&d_map, &a_map, &b_map, accumulate, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nt_128x128_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n), written
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (n, k)
    const bf16* addend,                         // (m, n), row pitch addend_pitch; may be d
    const bf16* bias,                           // (n)
    int addend_pitch, int with_addend, int with_bias, int m, int n, int k, int stages) {
    gemm_bf16<Nt, 128, 128>(&d_map, &a_map, &b_map, {addend, bias, addend_pitch, with_addend, with_bias}, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nt_128x128_wide_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n) f32, written, or added to if accumulate
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (n, k)
    int accumulate, int m, int n, int k, int stages) {
    gemm_wide<Nt, 128, 128>(&d_map, &a_map, &b_map, accumulate, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nn_128x256_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n), written
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (k, n)
    const bf16* addend,                         // (m, n), row pitch addend_pitch; may be d
    const bf16* bias,                           // (n)
    int addend_pitch, int with_addend, int with_bias, int m, int n, int k, int stages) {
    gemm_bf16<Nn, 128, 256>(&d_map, &a_map, &b_map, {addend, bias, addend_pitch, with_addend, with_bias}, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nn_128x256_wide_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n) f32, written, or added to if accumulate
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (k, n)
    int accumulate, int m, int n, int k, int stages) {
    gemm_wide<Nn, 128, 256>(&d_map, &a_map, &b_map, accumulate, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nn_256x128_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n), written
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (k, n)
    const bf16* addend,                         // (m, n), row pitch addend_pitch; may be d
    const bf16* bias,                           // (n)
    int addend_pitch, int with_addend, int with_bias, int m, int n, int k, int stages) {
    gemm_bf16<Nn, 256, 128>(&d_map, &a_map, &b_map, {addend, bias, addend_pitch, with_addend, with_bias}, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nn_256x128_wide_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n) f32, written, or added to if accumulate
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (k, n)
    int accumulate, int m, int n, int k, int stages) {
    gemm_wide<Nn, 256, 128>(&d_map, &a_map, &b_map, accumulate, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nn_128x192_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n), written
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (k, n)
    const bf16* addend,                         // (m, n), row pitch addend_pitch; may be d
    const bf16* bias,                           // (n)
    int addend_pitch, int with_addend, int with_bias, int m, int n, int k, int stages) {
    gemm_bf16<Nn, 128, 192>(&d_map, &a_map, &b_map, {addend, bias, addend_pitch, with_addend, with_bias}, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nn_128x192_wide_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n) f32, written, or added to if accumulate
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (k, n)
    int accumulate, int m, int n, int k, int stages) {
    gemm_wide<Nn, 128, 192>(&d_map, &a_map, &b_map, accumulate, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nn_128x128_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n), written
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (k, n)
    const bf16* addend,                         // (m, n), row pitch addend_pitch; may be d
    const bf16* bias,                           // (n)
    int addend_pitch, int with_addend, int with_bias, int m, int n, int k, int stages) {
    gemm_bf16<Nn, 128, 128>(&d_map, &a_map, &b_map, {addend, bias, addend_pitch, with_addend, with_bias}, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_nn_128x128_wide_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n) f32, written, or added to if accumulate
    const __grid_constant__ CUtensorMap a_map,  // (m, k)
    const __grid_constant__ CUtensorMap b_map,  // (k, n)
    int accumulate, int m, int n, int k, int stages) {
    gemm_wide<Nn, 128, 128>(&d_map, &a_map, &b_map, accumulate, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_tn_128x256_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n), written
    const __grid_constant__ CUtensorMap a_map,  // (k, m)
    const __grid_constant__ CUtensorMap b_map,  // (k, n)
    const bf16* addend,                         // (m, n), row pitch addend_pitch; may be d
    const bf16* bias,                           // (n)
    int addend_pitch, int with_addend, int with_bias, int m, int n, int k, int stages) {
    gemm_bf16<Tn, 128, 256>(&d_map, &a_map, &b_map, {addend, bias, addend_pitch, with_addend, with_bias}, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_tn_128x256_wide_bf16(
    const __grid_constant__ CUtensorMap d_map,       // (m, n) f32, written, or added to if accumulate
    const __grid_constant__ CUtensorMap slices_map,  // (splits * rest * 2 * tile_m, tile_n) f32, written if splits > 1
    const __grid_constant__ CUtensorMap a_map,       // (k, m)
    const __grid_constant__ CUtensorMap b_map,       // (k, n)
    int accumulate, int m, int n, int k, int stages, int whole, int splits) {
    gemm_split<128, 256>(&d_map, &slices_map, &a_map, &b_map, accumulate, {m, n, k, stages}, whole, splits);
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_tn_256x128_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n), written
    const __grid_constant__ CUtensorMap a_map,  // (k, m)
    const __grid_constant__ CUtensorMap b_map,  // (k, n)
    const bf16* addend,                         // (m, n), row pitch addend_pitch; may be d
    const bf16* bias,                           // (n)
    int addend_pitch, int with_addend, int with_bias, int m, int n, int k, int stages) {
    gemm_bf16<Tn, 256, 128>(&d_map, &a_map, &b_map, {addend, bias, addend_pitch, with_addend, with_bias}, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_tn_256x128_wide_bf16(
    const __grid_constant__ CUtensorMap d_map,       // (m, n) f32, written, or added to if accumulate
    const __grid_constant__ CUtensorMap slices_map,  // (splits * rest * 2 * tile_m, tile_n) f32, written if splits > 1
    const __grid_constant__ CUtensorMap a_map,       // (k, m)
    const __grid_constant__ CUtensorMap b_map,       // (k, n)
    int accumulate, int m, int n, int k, int stages, int whole, int splits) {
    gemm_split<256, 128>(&d_map, &slices_map, &a_map, &b_map, accumulate, {m, n, k, stages}, whole, splits);
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_tn_128x192_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n), written
    const __grid_constant__ CUtensorMap a_map,  // (k, m)
    const __grid_constant__ CUtensorMap b_map,  // (k, n)
    const bf16* addend,                         // (m, n), row pitch addend_pitch; may be d
    const bf16* bias,                           // (n)
    int addend_pitch, int with_addend, int with_bias, int m, int n, int k, int stages) {
    gemm_bf16<Tn, 128, 192>(&d_map, &a_map, &b_map, {addend, bias, addend_pitch, with_addend, with_bias}, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_tn_128x192_wide_bf16(
    const __grid_constant__ CUtensorMap d_map,       // (m, n) f32, written, or added to if accumulate
    const __grid_constant__ CUtensorMap slices_map,  // (splits * rest * 2 * tile_m, tile_n) f32, written if splits > 1
    const __grid_constant__ CUtensorMap a_map,       // (k, m)
    const __grid_constant__ CUtensorMap b_map,       // (k, n)
    int accumulate, int m, int n, int k, int stages, int whole, int splits) {
    gemm_split<128, 192>(&d_map, &slices_map, &a_map, &b_map, accumulate, {m, n, k, stages}, whole, splits);
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_tn_128x128_bf16(
    const __grid_constant__ CUtensorMap d_map,  // (m, n), written
    const __grid_constant__ CUtensorMap a_map,  // (k, m)
    const __grid_constant__ CUtensorMap b_map,  // (k, n)
    const bf16* addend,                         // (m, n), row pitch addend_pitch; may be d
    const bf16* bias,                           // (n)
    int addend_pitch, int with_addend, int with_bias, int m, int n, int k, int stages) {
    gemm_bf16<Tn, 128, 128>(&d_map, &a_map, &b_map, {addend, bias, addend_pitch, with_addend, with_bias}, {m, n, k, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_tn_128x128_wide_bf16(
    const __grid_constant__ CUtensorMap d_map,       // (m, n) f32, written, or added to if accumulate
    const __grid_constant__ CUtensorMap slices_map,  // (splits * rest * 2 * tile_m, tile_n) f32, written if splits > 1
    const __grid_constant__ CUtensorMap a_map,       // (k, m)
    const __grid_constant__ CUtensorMap b_map,       // (k, n)
    int accumulate, int m, int n, int k, int stages, int whole, int splits) {
    gemm_split<128, 128>(&d_map, &slices_map, &a_map, &b_map, accumulate, {m, n, k, stages}, whole, splits);
}

// D = the sums over parts, or D += them, for the tiles that SplitWalk splits. One thread per chunk of a row of a pair, of which
// a CTA takes a part.
extern "C" __global__ void __launch_bounds__(kAddThreads) gemm_add_slices(
    float* d,             // (m, n), written, or added to if accumulate
    const float* slices,  // (splits, rest, 2 * tile_m, tile_n)
    int accumulate, int m, int n, int ldd, int tile_m, int tile_n, int whole, int splits) {
    Share share;
    if (!share.add(slices, m, n, tile_m, tile_n, whole, splits)) return;
    float* to = d + (long long)share.row * ldd + share.column;
    if (accumulate) share.add_old(to, n);
    store_chunk(to, share.sum, n - share.column);
}

extern "C" __global__ void __launch_bounds__(kAddThreads) gemm_add_slices_narrow(
    bf16* d,              // (m, n), written, or added to if accumulate
    const float* slices,  // (splits, rest, 2 * tile_m, tile_n)
    int accumulate, int m, int n, int ldd, int tile_m, int tile_n, int whole, int splits, unsigned long long seed,
    unsigned number, unsigned part, long long first) {
    Share share;
    if (!share.add(slices, m, n, tile_m, tile_n, whole, splits)) return;
    const long long at = (long long)share.row * ldd + share.column;
    if (accumulate) {
        share.add_old(d + at, n);
        round_chunk(share.sum, {seed, number, kGradients | part << 8}, first + at);
    }
    store_chunk(d + at, share.sum, n - share.column);
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_tn_128x256_narrow_bf16(
    const __grid_constant__ CUtensorMap d_map,       // (m, n), written
    const __grid_constant__ CUtensorMap slices_map,  // (splits * rest * 2 * tile_m, tile_n) f32, written if splits > 1
    const __grid_constant__ CUtensorMap a_map,       // (k, m)
    const __grid_constant__ CUtensorMap b_map,       // (k, n)
    bf16* d,                                         // (m, n), row pitch ldd: what d_map maps; added to if accumulate
    int accumulate, int m, int n, int k, int stages, int whole, int splits, int ldd, unsigned long long seed, unsigned number,
    unsigned part, long long first) {
    const Narrow narrow{d, ldd, accumulate, {seed, number, kGradients | part << 8}, first};
    gemm_narrow<128, 256>(&d_map, &slices_map, &a_map, &b_map, narrow, {m, n, k, stages}, whole, splits);
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_tn_256x128_narrow_bf16(
    const __grid_constant__ CUtensorMap d_map,       // (m, n), written
    const __grid_constant__ CUtensorMap slices_map,  // (splits * rest * 2 * tile_m, tile_n) f32, written if splits > 1
    const __grid_constant__ CUtensorMap a_map,       // (k, m)
    const __grid_constant__ CUtensorMap b_map,       // (k, n)
    bf16* d,                                         // (m, n), row pitch ldd: what d_map maps; added to if accumulate
    int accumulate, int m, int n, int k, int stages, int whole, int splits, int ldd, unsigned long long seed, unsigned number,
    unsigned part, long long first) {
    const Narrow narrow{d, ldd, accumulate, {seed, number, kGradients | part << 8}, first};
    gemm_narrow<256, 128>(&d_map, &slices_map, &a_map, &b_map, narrow, {m, n, k, stages}, whole, splits);
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_tn_128x192_narrow_bf16(
    const __grid_constant__ CUtensorMap d_map,       // (m, n), written
    const __grid_constant__ CUtensorMap slices_map,  // (splits * rest * 2 * tile_m, tile_n) f32, written if splits > 1
    const __grid_constant__ CUtensorMap a_map,       // (k, m)
    const __grid_constant__ CUtensorMap b_map,       // (k, n)
    bf16* d,                                         // (m, n), row pitch ldd: what d_map maps; added to if accumulate
    int accumulate, int m, int n, int k, int stages, int whole, int splits, int ldd, unsigned long long seed, unsigned number,
    unsigned part, long long first) {
    const Narrow narrow{d, ldd, accumulate, {seed, number, kGradients | part << 8}, first};
    gemm_narrow<128, 192>(&d_map, &slices_map, &a_map, &b_map, narrow, {m, n, k, stages}, whole, splits);
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) gemm_tn_128x128_narrow_bf16(
    const __grid_constant__ CUtensorMap d_map,       // (m, n), written
    const __grid_constant__ CUtensorMap slices_map,  // (splits * rest * 2 * tile_m, tile_n) f32, written if splits > 1
    const __grid_constant__ CUtensorMap a_map,       // (k, m)
    const __grid_constant__ CUtensorMap b_map,       // (k, n)
    bf16* d,                                         // (m, n), row pitch ldd: what d_map maps; added to if accumulate
    int accumulate, int m, int n, int k, int stages, int whole, int splits, int ldd, unsigned long long seed, unsigned number,
    unsigned part, long long first) {
    const Narrow narrow{d, ldd, accumulate, {seed, number, kGradients | part << 8}, first};
    gemm_narrow<128, 128>(&d_map, &slices_map, &a_map, &b_map, narrow, {m, n, k, stages}, whole, splits);
}
