// Twin of ptx/tma.cuh: a copy happens when it is issued or, with late completion, when somebody waits for it.
#pragma once
#include <cuda.h>
#include <cuda_runtime.h>
#include <ldst.cuh>

inline void fence_async() { simt_fence(0); }
inline void prefetch_map(const CUtensorMap*) {}

constexpr unsigned long long kEvictNormal = 0x1000000000000000ull;
constexpr unsigned long long kEvictFirst = 0x12f0000000000000ull;
constexpr unsigned long long kEvictLast = 0x14f0000000000000ull;

SIMT_UNSEEN inline void tma_load(unsigned to, const CUtensorMap* map, int x, int y, unsigned barrier,
                                 unsigned long long = kEvictNormal, SIMT_PLACE) {
    const int at[2] = {x, y};
    simt_bulk_tensor(0, map, to, barrier, at, 2, 0, file, line);
}
SIMT_UNSEEN inline void tma_load(unsigned to, const CUtensorMap* map, int x, int y, int z, unsigned barrier,
                                 unsigned long long = kEvictNormal, SIMT_PLACE) {
    const int at[3] = {x, y, z};
    simt_bulk_tensor(0, map, to, barrier, at, 3, 0, file, line);
}
SIMT_UNSEEN inline void tma_load_multicast(unsigned to, const CUtensorMap* map, int x, int y, unsigned barrier,
                                           unsigned short ctas, unsigned long long = kEvictNormal, SIMT_PLACE) {
    const int at[2] = {x, y};
    simt_bulk_tensor(0, map, to, barrier, at, 2, ctas, file, line);
}
SIMT_UNSEEN inline void tma_store(const CUtensorMap* map, unsigned from, int x, int y, SIMT_PLACE) {
    const int at[2] = {x, y};
    simt_bulk_tensor(1, map, from, 0, at, 2, 0, file, line);
}
SIMT_UNSEEN inline void tma_store(const CUtensorMap* map, unsigned from, int x, int y, int z, SIMT_PLACE) {
    const int at[3] = {x, y, z};
    simt_bulk_tensor(1, map, from, 0, at, 3, 0, file, line);
}
SIMT_UNSEEN inline void tma_add(const CUtensorMap* map, unsigned from, int x, int y, SIMT_PLACE) {
    const int at[2] = {x, y};
    simt_bulk_tensor(2, map, from, 0, at, 2, 0, file, line);
}

inline void bulk_load(unsigned to, const void* from, unsigned bytes, unsigned barrier, SIMT_PLACE) {
    simt_bulk(0, const_cast<void*>(from), to, barrier, bytes, file, line);
}
inline void bulk_store(void* to, unsigned from, unsigned bytes, SIMT_PLACE) {
    simt_bulk(1, to, from, 0, bytes, file, line);
}

inline void bulk_commit() { simt_bulk_commit(); }
template <int kPending>
inline void bulk_wait_read(SIMT_PLACE) {
    simt_bulk_wait(kPending, file, line);
}
template <int kPending>
inline void bulk_wait(SIMT_PLACE) {
    simt_bulk_wait(kPending, file, line);
}
