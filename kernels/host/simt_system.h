// System headers and the runtime's C interface, outside the namespaces the kernels are compiled in.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct SimtIndex {
    unsigned x, y, z;
};

// One CUDA thread, as its kernel sees it. Mirrored by src/device/host/simt.
struct SimtThread {
    SimtIndex thread, block, block_dim, grid_dim;
    unsigned linear, cluster_rank, cluster_size;
    void* shared;
};

// The 128 bytes of a tensor map: opaque to kernels. Mirrored by src/device/tensor_map.rs.
struct alignas(64) CUtensorMap {
    unsigned long long opaque[16];
};

extern "C" {
// The running thread; the same pointer for the whole life of one CUDA thread, hence `const`.
SimtThread* simt_thread(void) __attribute__((const));
// Waits until `threads` threads (0: the whole CTA) have come to barrier `id`; `wait` 0 counts without waiting.
void simt_barrier(unsigned id, unsigned threads, unsigned wait, const char* file, unsigned line);
// Waits until every lane of `mask` is here; the last one runs `operation` on all lanes' payloads.
void simt_collective(unsigned mask, void* payload, void (*operation)(void** lanes, unsigned mask), const char* file,
                     unsigned line);
// 1 in one lane of the warp, whose lanes are all here.
unsigned simt_elect(const char* file, unsigned line);
// Strict mode only: asynchronous copies, and accesses that the instrumentation cannot see.
void simt_cp_async(void* shared, const void* global, unsigned copied, unsigned filled, const char* file, unsigned line);
void simt_cp_async_commit(void);
void simt_cp_async_wait(unsigned pending, const char* file, unsigned line);
void simt_access(const void* address, unsigned bytes, unsigned alignment, unsigned write, const char* file,
                 unsigned line);
// Ends the launch with an error; without a file, at the place of the running thread's collective.
void simt_fail(const char* message, const char* file, unsigned line);

// Hopper. Addresses in shared memory are 32 bits: the CTA's rank in its cluster in the highest byte, then the offset.
void simt_mbarrier_init(unsigned barrier, unsigned count, const char* file, unsigned line);
// `bytes` more are expected in this phase, then `arrivals` threads have arrived.
void simt_mbarrier_arrive(unsigned barrier, unsigned bytes, unsigned arrivals, const char* file, unsigned line);
// Waits until the phase with this parity is complete.
void simt_mbarrier_wait(unsigned barrier, unsigned parity, const char* file, unsigned line);
// Makes the thread's writes so far visible to asynchronous units (`barriers` 0), or initialised mbarriers to the cluster.
void simt_fence(unsigned barriers);
// Arrives at the cluster's barrier (`wait` 0), or waits until all have.
void simt_cluster_barrier(unsigned wait, const char* file, unsigned line);
// Reads or writes four bytes of any CTA of the cluster.
void simt_cluster_access(unsigned shared, float* value, unsigned write, const char* file, unsigned line);
// Registers of the warp group: `grow` 1 takes from the CTA's pool, 0 gives back.
void simt_registers(unsigned count, unsigned grow, const char* file, unsigned line);
// Copies a box between a tensor in global memory and shared memory. A load completes on an mbarrier, in each CTA of the
// mask (0: the running one); a store belongs to the thread's bulk group. `kind`: 0 load, 1 store, 2 add.
void simt_bulk_tensor(unsigned kind, const CUtensorMap* map, unsigned shared, unsigned barrier, const int* at,
                      unsigned rank, unsigned ctas, const char* file, unsigned line);
// The same for contiguous bytes.
void simt_bulk(unsigned kind, void* global, unsigned shared, unsigned barrier, unsigned bytes, const char* file,
               unsigned line);
void simt_bulk_commit(void);
void simt_bulk_wait(unsigned pending, const char* file, unsigned line);
// One product of a warp group: d (64, n) = a (64, 16) b (n, 16) (+ d). `a` in registers, or null for `a_matrix`.
void simt_wgmma(float* d, unsigned n, const unsigned* a, unsigned long long a_matrix, unsigned long long b_matrix,
                unsigned flags, const char* file, unsigned line);
void simt_wgmma_fence(void);
void simt_wgmma_commit(const char* file, unsigned line);
void simt_wgmma_wait(unsigned pending, const char* file, unsigned line);
}
