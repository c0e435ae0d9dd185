// Kernels that break a rule of Hopper's units if `broken` is set. Two CTAs of 128 threads, 256 floats in and out.

#include <cluster.cuh>
#include <cta.cuh>
#include <ldst.cuh>
#include <mbarrier.cuh>
#include <tma.cuh>
#include <wgmma.cuh>

// Byte 0: two mbarriers; byte 1024: a kilobyte; byte 2048: two tiles of 8 KB.
__device__ unsigned barrier_at(int i) { return shared_address(shared_memory<char>()) + 8 * i; }
__device__ float* values() { return shared_memory<float>() + 256; }

// Two mbarriers of one arrival each.
__device__ void start(int fence = 1) {
    if (threadIdx.x == 0) {
        mbarrier_init(barrier_at(0), 1);
        mbarrier_init(barrier_at(1), 1);
        if (fence) fence_mbarrier_init();
    }
    __syncthreads();
}

__device__ void load_values(const float* x, int expected = 1024) {
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier_at(0), expected);
        bulk_load(shared_address(values()), x, 1024, barrier_at(0));
    }
}

extern "C" __global__ void wait_left_out(float* y, const float* x, int n, int broken) {
    start();
    load_values(x);
    if (!broken || threadIdx.x == 0) mbarrier_wait(barrier_at(0), 0);
    y[threadIdx.x] = values()[threadIdx.x];
}

extern "C" __global__ void wrong_parity(float* y, const float* x, int n, int broken) {
    start();
    load_values(x);
    mbarrier_wait(barrier_at(0), broken ? 1 : 0);
    y[threadIdx.x] = values()[threadIdx.x];
    __syncthreads();
}

extern "C" __global__ void expects_too_little(float* y, const float* x, int n, int broken) {
    start();
    load_values(x, broken ? 512 : 1024);
    mbarrier_wait(barrier_at(0), 0);
    y[threadIdx.x] = values()[threadIdx.x];
}

extern "C" __global__ void expects_too_much(float* y, const float* x, int n, int broken) {
    start();
    load_values(x, broken ? 2048 : 1024);
    mbarrier_wait(barrier_at(0), 0);  // mistake: expects_too_much
    y[threadIdx.x] = values()[threadIdx.x];
}

extern "C" __global__ void init_not_fenced(float* y, const float* x, int n, int broken) {
    start(!broken);
    load_values(x);
    mbarrier_wait(barrier_at(0), 0);
    y[threadIdx.x] = values()[threadIdx.x];
}

extern "C" __global__ void used_before_init(float* y, const float* x, int n, int broken) {
    if (!broken) start();
    if (threadIdx.x == 0) mbarrier_arrive(barrier_at(0));  // mistake: used_before_init
    y[threadIdx.x] = 0.0f;
}

extern "C" __global__ void initialised_twice(float* y, const float* x, int n, int broken) {
    start();
    if (broken && threadIdx.x == 0) mbarrier_init(barrier_at(0), 1);  // mistake: initialised_twice
    y[threadIdx.x] = 0.0f;
}

extern "C" __global__ void left_in_a_phase(float* y, const float* x, int n, int broken) {
    start();
    if (threadIdx.x == 0) mbarrier_arrive_expect(barrier_at(0), broken ? 16 : 0);
    y[threadIdx.x] = 0.0f;
}

// The waiter sleeps through two phases.
extern "C" __global__ void parity_alias(float* y, const float* x, int n, int broken) {
    start();
    if (threadIdx.x == 0)
        for (int i = 0; i < (broken ? 3 : 1); ++i) mbarrier_arrive(barrier_at(0));
    __syncthreads();
    mbarrier_wait(barrier_at(0), 0);  // mistake: parity_alias
    y[threadIdx.x] = 0.0f;
}

// The next copy goes into a slot that others still read.
extern "C" __global__ void slot_released_early(float* y, const float* x, int n, int broken) {
    start();
    load_values(x);
    mbarrier_wait(barrier_at(0), 0);
    if (broken && threadIdx.x == 0) mbarrier_arrive(barrier_at(1));
    y[threadIdx.x] = values()[threadIdx.x];
    fence_async();
    if (!broken) __syncthreads();
    if (!broken && threadIdx.x == 0) mbarrier_arrive(barrier_at(1));
    if (threadIdx.x == 127) {
        mbarrier_wait(barrier_at(1), 0);
        mbarrier_arrive_expect(barrier_at(0), 1024);
        bulk_load(shared_address(values()), x, 1024, barrier_at(0));
        mbarrier_wait(barrier_at(0), 1);
    }
}

extern "C" __global__ void copy_over_reads(float* y, const float* x, int n, int broken) {
    start();
    load_values(x);
    mbarrier_wait(barrier_at(0), 0);
    y[threadIdx.x] = values()[threadIdx.x];
    fence_async();
    if (!broken) __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier_at(0), 1024);
        bulk_load(shared_address(values()), x, 1024, barrier_at(0));  // mistake: copy_over_reads
    }
    mbarrier_wait(barrier_at(0), 1);
}

// A barrier orders what threads read with other threads, not with the copy that comes next: that takes a fence of each of
// them, before its warp lets go of the slot.
__device__ void read_slot(float* y, const float* x) {
    if (threadIdx.x == 0) {
        mbarrier_init(barrier_at(0), 1);
        mbarrier_init(barrier_at(1), blockDim.x / 32);
        fence_mbarrier_init();
    }
    __syncthreads();
    load_values(x);
    mbarrier_wait(barrier_at(0), 0);
    y[threadIdx.x] = values()[threadIdx.x];
}

__device__ bool is_first_lane() { return threadIdx.x % 32 == 0; }

// Whether this is the thread that fills the slot again; every warp has let go of it then.
__device__ bool fills_again() {
    if (threadIdx.x != 127) return false;
    mbarrier_wait(barrier_at(1), 0);
    mbarrier_arrive_expect(barrier_at(0), 1024);
    return true;
}

extern "C" __global__ void slot_read_not_fenced(float* y, const float* x, int n, int broken) {
    read_slot(y, x);
    if (!broken) fence_async();
    __syncwarp();
    if (is_first_lane()) mbarrier_arrive(barrier_at(1));
    if (fills_again()) bulk_load(shared_address(values()), x, 1024, barrier_at(0));  // mistake: slot_read_not_fenced
    mbarrier_wait(barrier_at(0), 1);
}

extern "C" __global__ void slot_fenced_too_late(float* y, const float* x, int n, int broken) {
    read_slot(y, x);
    if (!broken) fence_async();
    __syncwarp();
    if (is_first_lane()) mbarrier_arrive(barrier_at(1));
    if (broken) fence_async();
    if (fills_again()) bulk_load(shared_address(values()), x, 1024, barrier_at(0));  // mistake: slot_fenced_too_late
    mbarrier_wait(barrier_at(0), 1);
}

// Only the lane that arrives fences, for the whole warp.
extern "C" __global__ void slot_fenced_by_one_lane(float* y, const float* x, int n, int broken) {
    read_slot(y, x);
    if (!broken) fence_async();
    __syncwarp();
    if (is_first_lane()) fence_async();
    if (is_first_lane()) mbarrier_arrive(barrier_at(1));
    if (fills_again()) bulk_load(shared_address(values()), x, 1024, barrier_at(0));  // mistake: slot_fenced_by_one_lane
    mbarrier_wait(barrier_at(0), 1);
}

// What threads wrote themselves and a copy overwrites is no different.
extern "C" __global__ void copy_over_writes_not_fenced(float* y, const float* x, int n, int broken) {
    start();
    values()[threadIdx.x] = 0.0f;
    if (!broken) fence_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier_at(0), 1024);
        bulk_load(shared_address(values()), x, 1024, barrier_at(0));  // mistake: copy_over_writes_not_fenced
    }
    mbarrier_wait(barrier_at(0), 0);
    y[threadIdx.x] = values()[threadIdx.x];
}

extern "C" __global__ void copy_to_odd_place(float* y, const float* x, int n, int broken) {
    start();
    if (threadIdx.x == 0) {
        mbarrier_arrive_expect(barrier_at(0), 512);
        bulk_load(shared_address(values()) + (broken ? 8 : 0), x, 512, barrier_at(0));  // mistake: copy_to_odd_place
    }
    mbarrier_wait(barrier_at(0), 0);
    y[threadIdx.x] = values()[threadIdx.x];
}

__device__ void store_values(float* y, bool fence, bool wait) {
    values()[threadIdx.x] = 1.0f;
    values()[threadIdx.x + 128] = 2.0f;
    if (fence) fence_async();
    __syncthreads();
    if (threadIdx.x == 0) {
        bulk_store(y, shared_address(values()), 1024);
        bulk_commit();
        if (wait) bulk_wait_read<0>();
    }
}

extern "C" __global__ void store_not_fenced(float* y, const float* x, int n, int broken) {
    store_values(y, !broken, true);
}

extern "C" __global__ void store_not_waited_for(float* y, const float* x, int n, int broken) {
    store_values(y, true, !broken);
}

extern "C" __global__ void store_overwritten(float* y, const float* x, int n, int broken) {
    store_values(y, true, !broken);
    __syncthreads();
    values()[threadIdx.x] = 3.0f;  // mistake: store_overwritten
    if (threadIdx.x == 0) bulk_wait_read<0>();
}

// Two tiles of 64 x 64 zeros, written by threads, for units.
__device__ void tiles(bool fence) {
    Pack16* chunk = reinterpret_cast<Pack16*>(shared_memory<char>() + 2048);
    for (int i = threadIdx.x; i < 1024; i += 128) store16(chunk + i, Pack16{});
    if (fence) fence_async();
    __syncthreads();
}

__device__ unsigned long long tile_matrix(int i) {
    return matrix_along_k(shared_address(shared_memory<char>() + 2048 + 8192 * i));
}

extern "C" __global__ void operand_not_fenced(float* y, const float* x, int n, int broken) {
    tiles(!broken);
    float d[32];
    wgmma_fence();
    wgmma<false, false>(d, tile_matrix(0), tile_matrix(1), 0);  // mistake: operand_not_fenced
    wgmma_commit();
    wgmma_wait<0>();
    y[threadIdx.x] = d[0];
}

extern "C" __global__ void product_not_fenced(float* y, const float* x, int n, int broken) {
    tiles(true);
    float d[32];
    if (!broken) wgmma_fence();
    wgmma<false, false>(d, tile_matrix(0), tile_matrix(1), 0);  // mistake: product_not_fenced
    wgmma_commit();
    wgmma_wait<0>();
    y[threadIdx.x] = d[0];
}

extern "C" __global__ void accumulator_in_flight(float* y, const float* x, int n, int broken) {
    tiles(true);
    float d[32];
    wgmma_fence();
    wgmma<false, false>(d, tile_matrix(0), tile_matrix(1), 0);
    wgmma_commit();
    if (!broken) wgmma_wait<0>();
    y[threadIdx.x] = d[0];  // mistake: accumulator_in_flight
    wgmma_wait<0>();
}

extern "C" __global__ void fragment_in_flight(float* y, const float* x, int n, int broken) {
    tiles(true);
    float d[32];
    unsigned a[4] = {0, 0, 0, 0};
    wgmma_fence();
    wgmma<false>(d, a, tile_matrix(1), 0);
    wgmma_commit();
    if (!broken) wgmma_wait<0>();
    a[n % 4] = 1;  // mistake: fragment_in_flight
    wgmma_wait<0>();
    y[threadIdx.x] = d[0] + a[1];
}

extern "C" __global__ void operand_overwritten(float* y, const float* x, int n, int broken) {
    tiles(true);
    float d[32];
    wgmma_fence();
    wgmma<false, false>(d, tile_matrix(0), tile_matrix(1), 0);
    wgmma_commit();
    if (!broken) wgmma_wait<0>();
    __syncthreads();
    shared_memory<float>()[512 + threadIdx.x] = 1.0f;  // mistake: operand_overwritten
    wgmma_wait<0>();
    y[threadIdx.x] = d[0];
}

extern "C" __global__ void wait_without_commit(float* y, const float* x, int n, int broken) {
    tiles(true);
    float d[32];
    wgmma_fence();
    wgmma<false, false>(d, tile_matrix(0), tile_matrix(1), 0);
    if (!broken) wgmma_commit();
    wgmma_wait<0>();  // mistake: wait_without_commit
    y[threadIdx.x] = d[0];
}

extern "C" __global__ void product_left_behind(float* y, const float* x, int n, int broken) {
    tiles(true);
    float d[32];
    wgmma_fence();
    wgmma<false, false>(d, tile_matrix(0), tile_matrix(1), 0);
    wgmma_commit();
    if (!broken) wgmma_wait<0>();
}

// One more row of eight than there is.
extern "C" __global__ void wrong_stride(float* y, const float* x, int n, int broken) {
    tiles(true);
    float d[32];
    wgmma_fence();
    const unsigned long long more = broken ? 1ull << 32 : 0;
    wgmma<false, false>(d, tile_matrix(0) + more, tile_matrix(1), 0);  // mistake: wrong_stride
    wgmma_commit();
    wgmma_wait<0>();
    y[threadIdx.x] = d[0];
}

extern "C" __global__ void off_the_pattern(float* y, const float* x, int n, int broken) {
    tiles(true);
    float d[32];
    wgmma_fence();
    wgmma<false, false>(d, tile_matrix(0) + (broken ? 8 : 0), tile_matrix(1), 0);  // mistake: off_the_pattern
    wgmma_commit();
    wgmma_wait<0>();
    y[threadIdx.x] = d[0];
}

extern "C" __global__ void half_a_group(float* y, const float* x, int n, int broken) {
    tiles(true);
    float d[32];
    wgmma_fence();
    if (broken && threadIdx.x >= 64) return;
    wgmma<false, false>(d, tile_matrix(0), tile_matrix(1), 0);  // mistake: half_a_group
    wgmma_commit();
    wgmma_wait<0>();
    y[threadIdx.x] = d[0];
}

extern "C" __global__ void more_registers_than_there_are(float* y, const float* x, int n, int broken) {
    if (!broken) give_registers<40>();
    if (broken) take_registers<256>();  // mistake: more_registers_than_there_are
    y[threadIdx.x] = 0.0f;
}

extern "C" __global__ void odd_registers(float* y, const float* x, int n, int broken) {
    if (broken)
        give_registers<44>();  // mistake: odd_registers
    else
        give_registers<48>();
    y[threadIdx.x] = 0.0f;
}

// Clusters of two CTAs.

extern "C" __global__ void __cluster_dims__(2, 1, 1) arrives_at_unfenced(float* y, const float* x, int n, int broken) {
    start(!broken);
    cluster_sync();
    if (cluster_rank() == 1 && threadIdx.x == 0)
        mbarrier_arrive_cluster(map_to_rank(barrier_at(0), 0));  // mistake: arrives_at_unfenced
    if (cluster_rank() == 0) mbarrier_wait(barrier_at(0), 0);
    y[threadIdx.x] = 0.0f;
    cluster_sync();
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) reads_peer_early(float* y, const float* x, int n, int broken) {
    values()[threadIdx.x] = 1.0f;
    if (!broken) cluster_sync();
    const unsigned own = shared_address(values() + threadIdx.x);
    y[threadIdx.x] = load_cluster(map_to_rank(own, 1 - cluster_rank()));  // mistake: reads_peer_early
    cluster_sync();
}

// Every thread of the peer arrives as the last thing it does.
extern "C" __global__ void __cluster_dims__(2, 1, 1) reads_peer_gone(float* y, const float* x, int n, int broken) {
    values()[threadIdx.x] = 1.0f;
    if (threadIdx.x == 0) {
        mbarrier_init(barrier_at(0), blockDim.x);
        fence_mbarrier_init();
    }
    cluster_sync();
    if (cluster_rank() == 1) {
        y[blockDim.x + threadIdx.x] = 0.0f;
        mbarrier_arrive_cluster(map_to_rank(barrier_at(0), 0));
    } else {
        mbarrier_wait(barrier_at(0), 0);
        y[threadIdx.x] = load_cluster(map_to_rank(shared_address(values() + threadIdx.x), 1));  // mistake: reads_peer_gone
    }
    if (!broken) cluster_sync();
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) waits_without_arriving(float* y, const float* x, int n,
                                                                            int broken) {
    if (!broken) cluster_arrive();
    cluster_wait();  // mistake: waits_without_arriving
    y[threadIdx.x] = 0.0f;
}
