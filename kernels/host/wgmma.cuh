// Twin of ptx/wgmma.cuh. The runtime reads descriptors bit for bit; a product is done when it is issued or, with late
// completion, when it is waited for.
#pragma once
#include <cuda_runtime.h>
#include <matrix_descriptor.cuh>

inline void wgmma_fence() { simt_wgmma_fence(); }
inline void wgmma_commit(SIMT_PLACE) { simt_wgmma_commit(file, line); }
template <int kPending>
inline void wgmma_wait(SIMT_PLACE) {
    simt_wgmma_wait(kPending, file, line);
}

template <int kCount>
inline void hold_registers(float (&)[kCount]) {}

template <bool kAAcross, bool kBAcross, int kCount>
inline void wgmma(float (&d)[kCount], unsigned long long a, unsigned long long b, int add, SIMT_PLACE) {
    simt_wgmma(d, 2 * kCount, nullptr, a, b, kAAcross | kBAcross << 1 | (add != 0) << 2, file, line);
}

template <bool kBAcross, int kCount>
inline void wgmma(float (&d)[kCount], const unsigned (&a)[4], unsigned long long b, int add, SIMT_PLACE) {
    simt_wgmma(d, 2 * kCount, a, 0, b, kBAcross << 1 | (add != 0) << 2, file, line);
}
