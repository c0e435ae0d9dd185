// Rotary positions applied to accumulators of wgmma: rope.cu's formula. Columns d and d + head_dim / 2 of a head are in the
// same thread.
#pragma once
#include <product_pipeline.cuh>

struct Rotary {
    // (positions, head_dim / 2)
    const float *cos, *sin;
    // (rows)
    const int* position;

    // The thread's two rows from `row` on, of accumulators whose columns begin at a head; heads that begin at column `last`
    // or behind stay. `direction` is 1, or -1 to turn back.
    template <int kHeadDim, int kCount>
    __device__ __forceinline__ void turn(float (&x)[kCount], int row, int rows, int column0, int last,
                                         float direction) const {
        constexpr int kHeads = 2 * kCount / kHeadDim, kHalf = kHeadDim / 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int own = row + 8 * half;
            const long long angle = own < rows ? (long long)position[own] * kHalf : 0;
#pragma unroll
            for (int j = 0; j < kHalf / 8; ++j) {
                const int d = 8 * j + fragment_column();
                const FloatPair c = *reinterpret_cast<const FloatPair*>(cos + angle + d);
                const FloatPair s = *reinterpret_cast<const FloatPair*>(sin + angle + d);
#pragma unroll
                for (int head = 0; head < kHeads; ++head) {
                    if (column0 + head * kHeadDim >= last) continue;
                    float* low = x + 4 * (head * kHeadDim / 8 + j) + 2 * half;
                    pair(low[0], low[kHeadDim / 4], c.x, direction * s.x);
                    pair(low[1], low[kHeadDim / 4 + 1], c.y, direction * s.y);
                }
            }
        }
    }

    static __device__ __forceinline__ void pair(float& low, float& high, float c, float s) {
        const float x = low, y = high;
        low = x * c - y * s;
        high = y * c + x * s;
    }
};
