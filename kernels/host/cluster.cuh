// Twin of ptx/cluster.cuh. The CTAs of a cluster run side by side; registers are only counted.
#pragma once
#include <cuda_runtime.h>
#include <ldst.cuh>

constexpr int kGroupThreads = 128;

inline unsigned cluster_rank() { return simt_thread()->cluster_rank; }
inline unsigned map_to_rank(unsigned shared, unsigned rank) { return (shared & 0xffffffu) | rank << 24; }

SIMT_UNSEEN inline float load_cluster(unsigned shared, SIMT_PLACE) {
    float x;
    simt_cluster_access(shared, &x, 0, file, line);
    return x;
}
SIMT_UNSEEN inline void store_cluster(unsigned shared, float x, SIMT_PLACE) {
    simt_cluster_access(shared, &x, 1, file, line);
}

inline void cluster_arrive(SIMT_PLACE) { simt_cluster_barrier(0, file, line); }
inline void cluster_wait(SIMT_PLACE) { simt_cluster_barrier(1, file, line); }
inline void cluster_sync(SIMT_PLACE) {
    simt_cluster_barrier(0, file, line);
    simt_cluster_barrier(1, file, line);
}

inline bool elect_one(SIMT_PLACE) { return simt_elect(file, line) != 0; }

template <int kRegisters>
inline void give_registers(SIMT_PLACE) {
    simt_registers(kRegisters, 0, file, line);
}
template <int kRegisters>
inline void take_registers(SIMT_PLACE) {
    simt_registers(kRegisters, 1, file, line);
}
