// Hopper's units one at a time, on small whole numbers whose results are exact.

#include <cluster.cuh>
#include <cta.cuh>
#include <ldst.cuh>
#include <mbarrier.cuh>
#include <tma.cuh>
#include <types.cuh>
#include <wgmma.cuh>

constexpr int kN = 128;
constexpr int kK = 64;
constexpr int kPanelBytes = 64 * 128;

// Loads A (64, 64) and B (128, 64), each along or across k, and waits for both. Byte 0 holds the mbarrier.
template <bool kAAcross, bool kBAcross>
__device__ void load_operands(unsigned a, unsigned b, const CUtensorMap* a_map, const CUtensorMap* b_map) {
    const unsigned barrier = shared_address(shared_memory<char>());
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, 3 * kPanelBytes);
        tma_load(a, a_map, 0, 0, barrier);
        if (kBAcross) {
            tma_load(b, b_map, 0, 0, barrier);
            tma_load(b + kPanelBytes, b_map, 64, 0, barrier);
        } else {
            tma_load(b, b_map, 0, 0, barrier);
        }
    }
    mbarrier_wait(barrier, 0);
}

__device__ void write_product(float* d, const float (&sum)[kN / 2]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = 0; i < kN / 2; ++i) {
        const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
        d[row * kN + column] = sum[i];
    }
}

template <bool kAAcross, bool kBAcross>
__device__ void product(float* d, const CUtensorMap* a_map, const CUtensorMap* b_map) {
    const unsigned a = shared_address(shared_memory<char>() + 1024), b = a + kPanelBytes;
    load_operands<kAAcross, kBAcross>(a, b, a_map, b_map);
    const unsigned long long a_matrix = kAAcross ? matrix_across_k(a, kK) : matrix_along_k(a);
    const unsigned long long b_matrix = kBAcross ? matrix_across_k(b, kK) : matrix_along_k(b);
    float sum[kN / 2];
    wgmma_fence();
    for (int k = 0; k < kK / 16; ++k)
        wgmma<kAAcross, kBAcross>(sum, a_matrix + k * (kAAcross ? 128 : 2), b_matrix + k * (kBAcross ? 128 : 2), k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    write_product(d, sum);
}

extern "C" __global__ void __launch_bounds__(128) product_nt(
    float* d,                                    // (64, 128)
    const __grid_constant__ CUtensorMap a_map,   // (64, 64), k contiguous
    const __grid_constant__ CUtensorMap b_map) { // (128, 64), k contiguous
    product<false, false>(d, &a_map, &b_map);
}

extern "C" __global__ void __launch_bounds__(128) product_nn(
    float* d, const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map) {
    product<false, true>(d, &a_map, &b_map);
}

extern "C" __global__ void __launch_bounds__(128) product_tn(
    float* d, const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map) {
    product<true, true>(d, &a_map, &b_map);
}

extern "C" __global__ void __launch_bounds__(128) product_tt(
    float* d, const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map) {
    product<true, false>(d, &a_map, &b_map);
}

// A from registers, read from the swizzled tile by ldmatrix.
extern "C" __global__ void __launch_bounds__(128) product_registers(
    float* d, const __grid_constant__ CUtensorMap a_map, const __grid_constant__ CUtensorMap b_map) {
    char* a_tile = shared_memory<char>() + 1024;
    const unsigned a = shared_address(a_tile), b = a + kPanelBytes;
    load_operands<false, false>(a, b, &a_map, &b_map);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = 16 * warp + lane % 16;
    float sum[kN / 2];
    unsigned fragment[kK / 16][4];
    for (int k = 0; k < kK / 16; ++k)
        ldmatrix_x4(fragment[k], a_tile + row * 128 + (((2 * k + lane / 16) ^ (row & 7)) << 4));
    wgmma_fence();
    for (int k = 0; k < kK / 16; ++k) wgmma<false>(sum, fragment[k], matrix_along_k(b) + 2 * k, k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    write_product(d, sum);
}

// Copies a box to another place of another tensor: edges are filled with zeros on the way in and cut on the way out.
extern "C" __global__ void __launch_bounds__(32) move_box(
    const __grid_constant__ CUtensorMap from, const __grid_constant__ CUtensorMap to, int x, int y, int to_x, int to_y,
    int bytes, int add) {
    const unsigned barrier = shared_address(shared_memory<char>()), tile = barrier + 1024;
    if (threadIdx.x != 0) return;
    mbarrier_init(barrier, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(barrier, bytes);
    tma_load(tile, &from, x, y, barrier);
    mbarrier_wait(barrier, 0);
    if (add)
        tma_add(&to, tile, to_x, to_y);
    else
        tma_store(&to, tile, to_x, to_y);
    bulk_commit();
    bulk_wait<0>();
}

// Two CTAs each load half of a (64, 64) tile for both; then each writes the whole.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(64) multicast_pair(
    bf16* y,                                   // (2, 64, 64)
    const __grid_constant__ CUtensorMap map) { // (64, 64) in boxes of 32 rows
    char* tile = shared_memory<char>() + 1024;
    const unsigned barrier = shared_address(shared_memory<char>()), rank = cluster_rank();
    if (threadIdx.x == 0) {
        mbarrier_init(barrier, 1);
        fence_mbarrier_init();
    }
    cluster_sync();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier, kPanelBytes);
        tma_load_multicast(shared_address(tile) + rank * kPanelBytes / 2, &map, 0, 32 * rank, barrier, 3);
    }
    mbarrier_wait(barrier, 0);
    for (int i = threadIdx.x; i < 64 * 64; i += 64) {
        const int row = i / 64, column = i % 64;
        const int byte = row * 128 + (((column / 8) ^ (row & 7)) << 4) + 2 * (column % 8);
        y[rank * 64 * 64 + i] = *reinterpret_cast<const bf16*>(tile + byte);
    }
    cluster_sync();
}

// A ring through the cluster: each CTA hands a number to the next one's shared memory.
extern "C" __global__ void __cluster_dims__(4, 1, 1) __launch_bounds__(32) hand_on(float* y) {
    const unsigned own = shared_address(shared_memory<char>());
    if (threadIdx.x == 0) {
        store_cluster(map_to_rank(own, (cluster_rank() + 1) % 4), 10.0f + cluster_rank());
    }
    cluster_sync();
    if (threadIdx.x == 0) y[blockIdx.x] = load_cluster(own);
    cluster_sync();
}

// stmatrix then ldmatrix give back what went in; so do both transposed.
extern "C" __global__ void __launch_bounds__(32) store_and_load_matrix(int* y) {
    char* row = shared_memory<char>() + 16 * threadIdx.x;
    unsigned in[4], out[4], crossed[4];
    for (int i = 0; i < 4; ++i) in[i] = 1000 * i + threadIdx.x;
    stmatrix_x4(row, in);
    __syncwarp();
    ldmatrix_x4(out, row);
    __syncwarp();
    stmatrix_x4_trans(row, in);
    __syncwarp();
    ldmatrix_x4_trans(crossed, row);
    for (int i = 0; i < 4; ++i) y[32 * i + threadIdx.x] = in[i] == out[i] && in[i] == crossed[i];
}

// A producer warp group feeds two consumers through a ring of `stages` 1 KB slots, `count` times.
extern "C" __global__ void __launch_bounds__(384, 1) ring(float* y, const float* x, int stages, int count) {
    const unsigned full = shared_address(shared_memory<char>()), empty = full + 8 * stages, slots = full + 1024;
    const float* values = shared_memory<float>() + 256;
    if (threadIdx.x == 0) {
        for (int s = 0; s < stages; ++s) {
            mbarrier_init(full + 8 * s, 1);
            mbarrier_init(empty + 8 * s, 8);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x / kGroupThreads == 2) {
        give_registers<40>();
        if (threadIdx.x == 2 * kGroupThreads) {
            for (int i = 0; i < count; ++i) {
                const int s = i % stages, parity = i / stages & 1;
                mbarrier_wait(empty + 8 * s, parity ^ 1);
                mbarrier_arrive_expect(full + 8 * s, 1024);
                bulk_load(slots + 1024 * s, x + 256 * i, 1024, full + 8 * s);
            }
        }
        return;
    }
    take_registers<232>();
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) {
        const int s = i % stages, parity = i / stages & 1;
        mbarrier_wait(full + 8 * s, parity);
        sum += values[256 * s + threadIdx.x];
        fence_async();
        __syncwarp();
        if (elect_one()) mbarrier_arrive(empty + 8 * s);
    }
    y[threadIdx.x] = sum;
}
