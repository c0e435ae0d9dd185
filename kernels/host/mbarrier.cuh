// Twin of ptx/mbarrier.cuh. A waiter sleeps; the runtime keeps the phase number beside the parity.
#pragma once
#include <cuda_runtime.h>
#include <ldst.cuh>

inline void mbarrier_init(unsigned barrier, unsigned count, SIMT_PLACE) {
    simt_mbarrier_init(barrier, count, file, line);
}
inline void fence_mbarrier_init() { simt_fence(1); }
inline void mbarrier_arrive(unsigned barrier, SIMT_PLACE) { simt_mbarrier_arrive(barrier, 0, 1, file, line); }
inline void mbarrier_arrive_cluster(unsigned barrier, SIMT_PLACE) { simt_mbarrier_arrive(barrier, 0, 1, file, line); }
inline void mbarrier_arrive_expect(unsigned barrier, unsigned bytes, SIMT_PLACE) {
    simt_mbarrier_arrive(barrier, bytes, 1, file, line);
}
inline void mbarrier_wait(unsigned barrier, unsigned parity, SIMT_PLACE) {
    simt_mbarrier_wait(barrier, parity, file, line);
}
