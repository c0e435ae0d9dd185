// What an AdamW step does to eight elements, whatever its moments are kept as: see adamw.cu for the formula.
#pragma once
#include <chunk.cuh>
#include <split_master.cuh>

constexpr int kThreads = 128;

// Places in what is kept from update to update: powers of the betas, t, and what follows from them for update t.
enum Progress { kBeta1Power, kBeta2Power, kUpdates, kStepSize, kCorrection };

struct Step {
    float beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay;
};

// What update t needs of the device's own numbers.
struct Update {
    float scale, step_size, correction;

    __device__ __forceinline__ Update(const float* stats, const double* progress)
        : scale(stats[1]), step_size((float)progress[kStepSize]), correction((float)progress[kCorrection]) {}
};

// The first element of this thread's chunk.
__device__ __forceinline__ long long own_chunk() { return ((long long)blockIdx.x * kThreads + threadIdx.x) * kChunk; }

// Of a chunk, the elements that are decayed.
__device__ __forceinline__ int decayed_of(long long i, long long decay_elements) {
    return i < decay_elements ? (int)min(decay_elements - i, (long long)kChunk) : 0;
}

__device__ __forceinline__ void adamw_update(float (&w)[kChunk], float (&mean)[kChunk], float (&square)[kChunk],
                                             const float (&g)[kChunk], const Update& update, const Step& step, int decayed) {
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
        const float clipped = update.scale * g[k];
        mean[k] = step.beta1 * mean[k] + step.one_minus_beta1 * clipped;
        square[k] = step.beta2 * square[k] + step.one_minus_beta2 * clipped * clipped;
        const float change = update.step_size * mean[k] / (sqrtf(square[k]) * update.correction + step.eps);
        w[k] -= change + (k < decayed ? step.decay : 0.0f) * w[k];
    }
}
