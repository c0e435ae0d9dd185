// Twin of ptx/cta.cuh.
#pragma once
#include <cuda_runtime.h>

template <class T>
inline T* shared_memory() {
    return static_cast<T*>(simt_thread()->shared);
}

// The butterfly of the PTX twin in one meeting of the lanes: the same additions in the same order.
template <class T, class Combine>
SIMT_UNSEEN void simt_butterfly(void** lanes, unsigned) {
    T x[32], y[32];
    for (int lane = 0; lane < 32; ++lane) x[lane] = *static_cast<T*>(lanes[lane]);
    for (int offset = 16; offset > 0; offset /= 2) {
        for (int lane = 0; lane < 32; ++lane) y[lane] = Combine::of(x[lane], x[lane ^ offset]);
        for (int lane = 0; lane < 32; ++lane) x[lane] = y[lane];
    }
    for (int lane = 0; lane < 32; ++lane) *static_cast<T*>(lanes[lane]) = x[lane];
}

struct SimtAdd {
    template <class T>
    SIMT_UNSEEN static T of(T a, T b) { return a + b; }
};
struct SimtMax {
    SIMT_UNSEEN static float of(float a, float b) { return a > b || b != b ? a : b; }
};

SIMT_UNSEEN inline float warp_sum(float x, SIMT_PLACE) {
    simt_collective(0xffffffffu, &x, simt_butterfly<float, SimtAdd>, file, line);
    return x;
}
SIMT_UNSEEN inline double warp_sum(double x, SIMT_PLACE) {
    simt_collective(0xffffffffu, &x, simt_butterfly<double, SimtAdd>, file, line);
    return x;
}
SIMT_UNSEEN inline float warp_max(float x, SIMT_PLACE) {
    simt_collective(0xffffffffu, &x, simt_butterfly<float, SimtMax>, file, line);
    return x;
}

template <int kCount>
SIMT_UNSEEN void simt_sum_each(void** lanes, unsigned mask) {
    void* own[32];
    for (int i = 0; i < kCount; ++i) {
        for (int lane = 0; lane < 32; ++lane) own[lane] = static_cast<float*>(lanes[lane]) + i;
        simt_butterfly<float, SimtAdd>(own, mask);
    }
}
template <int kCount>
SIMT_UNSEEN inline void warp_sum_each(float (&x)[kCount], SIMT_PLACE) {
    simt_collective(0xffffffffu, x, simt_sum_each<kCount>, file, line);
}

template <int kId>
inline void named_barrier_sync(int threads, SIMT_PLACE) {
    static_assert(kId >= 1 && kId <= 15, "barrier 0 belongs to __syncthreads");
    simt_barrier(kId, threads, 1, file, line);
}
template <int kId>
inline void named_barrier_arrive(int threads, SIMT_PLACE) {
    static_assert(kId >= 1 && kId <= 15, "barrier 0 belongs to __syncthreads");
    simt_barrier(kId, threads, 0, file, line);
}
