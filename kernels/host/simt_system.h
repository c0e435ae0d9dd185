// System headers and the runtime's C interface, outside the namespaces the kernels are compiled in.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct SimtIndex {
    unsigned x, y, z;
};

// One CUDA thread, as its kernel sees it. Mirrored by src/device/host/simt.rs.
struct SimtThread {
    SimtIndex thread, block, block_dim, grid_dim;
    unsigned linear;
    void* shared;
};

extern "C" {
// The running thread; the same pointer for the whole life of one CUDA thread, hence `const`.
SimtThread* simt_thread(void) __attribute__((const));
// Waits until `threads` threads (0: the whole CTA) have come to barrier `id`; `wait` 0 counts without waiting.
void simt_barrier(unsigned id, unsigned threads, unsigned wait, const char* file, unsigned line);
// Waits until every lane of `mask` is here; the last one runs `operation` on all lanes' payloads.
void simt_collective(unsigned mask, void* payload, void (*operation)(void** lanes, unsigned mask), const char* file,
                     unsigned line);
// Strict mode only: asynchronous copies, and accesses that the instrumentation cannot see.
void simt_cp_async(void* shared, const void* global, unsigned copied, unsigned filled, const char* file, unsigned line);
void simt_cp_async_commit(void);
void simt_cp_async_wait(unsigned pending, const char* file, unsigned line);
void simt_access(const void* address, unsigned bytes, unsigned alignment, unsigned write, const char* file,
                 unsigned line);
// Ends the launch with an error; without a file, at the place of the running thread's collective.
void simt_fail(const char* message, const char* file, unsigned line);
}
