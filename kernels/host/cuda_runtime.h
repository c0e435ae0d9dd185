// The part of CUDA C++ that the kernels use, for the host device.
#pragma once
#include <simt_system.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// The instrumentation must not see what stands in for registers and hardware.
#define SIMT_UNSEEN __attribute__((no_sanitize("thread")))
#define SIMT_PLACE const char *file = __builtin_FILE(), unsigned line = __builtin_LINE()

#define threadIdx (simt_thread()->thread)
#define blockIdx (simt_thread()->block)
#define blockDim (simt_thread()->block_dim)
#define gridDim (simt_thread()->grid_dim)

inline void __syncthreads(SIMT_PLACE) { simt_barrier(0, 0, 1, file, line); }

SIMT_UNSEEN inline void simt_nothing(void**, unsigned) {}
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_PLACE) {
    simt_collective(mask, nullptr, simt_nothing, file, line);
}

// What one lane brings to a shuffle and takes from it.
template <class T>
struct SimtShuffle {
    T value, result;
    int source;
};

template <class T>
SIMT_UNSEEN void simt_shuffle(void** lanes, unsigned mask) {
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        auto* own = static_cast<SimtShuffle<T>*>(lanes[lane]);
        if (!(mask >> own->source & 1)) {
            simt_fail("shuffle reads a lane that is not in the mask", nullptr, 0);
            return;
        }
        own->result = static_cast<SimtShuffle<T>*>(lanes[own->source])->value;
    }
}

template <class T>
SIMT_UNSEEN inline T simt_shuffle_from(unsigned mask, T value, int source, const char* file, unsigned line) {
    SimtShuffle<T> payload{value, value, source};
    simt_collective(mask, &payload, simt_shuffle<T>, file, line);
    return payload.result;
}

inline int simt_lane() { return simt_thread()->linear % 32; }

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_PLACE) {
    return simt_shuffle_from(mask, value, (simt_lane() & -width) + (source & (width - 1)), file, line);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int offset, int width = 32, SIMT_PLACE) {
    const int lane = simt_lane(), source = lane ^ offset;
    return simt_shuffle_from(mask, value, source / width > lane / width ? lane : source, file, line);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, int offset, int width = 32, SIMT_PLACE) {
    const int lane = simt_lane(), source = lane + offset;
    return simt_shuffle_from(mask, value, source / width != lane / width ? lane : source, file, line);
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, int offset, int width = 32, SIMT_PLACE) {
    const int lane = simt_lane(), source = lane - offset;
    return simt_shuffle_from(mask, value, source < (lane & -width) ? lane : source, file, line);
}

struct SimtVote {
    int predicate;
    unsigned ballot;
};

SIMT_UNSEEN inline void simt_vote(void** lanes, unsigned mask) {
    unsigned ballot = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) ballot |= unsigned(static_cast<SimtVote*>(lanes[lane])->predicate != 0) << lane;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) static_cast<SimtVote*>(lanes[lane])->ballot = ballot;
}

SIMT_UNSEEN inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_PLACE) {
    SimtVote payload{predicate, 0};
    simt_collective(mask, &payload, simt_vote, file, line);
    return payload.ballot;
}
inline int __any_sync(unsigned mask, int predicate, SIMT_PLACE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_PLACE) {
    return __ballot_sync(mask, predicate, file, line) == mask;
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline float __uint_as_float(unsigned x) {
    float y;
    memcpy(&y, &x, 4);
    return y;
}
inline unsigned __float_as_uint(float x) {
    unsigned y;
    memcpy(&y, &x, 4);
    return y;
}
