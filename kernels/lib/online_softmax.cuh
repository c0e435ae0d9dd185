// The softmax over tiles of keys that come one after the other, with a running maximum.
#pragma once
#include <math.cuh>
#include <types.cuh>

// Two rows of a thread's scores, in accumulators of which 4 f and 4 f + 1 are of the first row, 4 f + 2 and 4 f + 3 of the
// second; four lanes share a row. The weight of a score x is exp2(factor x).
struct Softmax {
    float factor;
    float top[2] = {-INFINITY, -INFINITY};
    // This lane's columns only.
    float total[2] = {0.0f, 0.0f};

    // Scores become weights; `shrink` is what everything summed so far must be multiplied by.
    template <int kCount>
    __device__ __forceinline__ void step(float (&s)[kCount], float (&shrink)[2]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float highest = top[half];
#pragma unroll
            for (int f = 0; f < kCount / 4; ++f)
                highest = fmaxf(highest, fmaxf(s[4 * f + 2 * half], s[4 * f + 2 * half + 1]));
            highest = fmaxf(highest, __shfl_xor_sync(kFullMask, highest, 1));
            highest = fmaxf(highest, __shfl_xor_sync(kFullMask, highest, 2));
            // A row that has seen nothing yet: its weights are exp2(-inf) = 0.
            const float base = highest == -INFINITY ? 0.0f : highest * factor;
            shrink[half] = exp2_approx(top[half] * factor - base);
            top[half] = highest;
            float sum = 0.0f;
#pragma unroll
            for (int f = 0; f < kCount / 4; ++f) {
#pragma unroll
                for (int c = 4 * f + 2 * half; c < 4 * f + 2 * half + 2; ++c) {
                    s[c] = exp2_approx(s[c] * factor - base);
                    sum += s[c];
                }
            }
            total[half] = total[half] * shrink[half] + sum;
        }
    }

    __device__ __forceinline__ void finish() {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            total[half] += __shfl_xor_sync(kFullMask, total[half], 1);
            total[half] += __shfl_xor_sync(kFullMask, total[half], 2);
        }
    }
};
