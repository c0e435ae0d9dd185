// AdamW (arXiv 1711.05101) with PyTorch's semantics, on the clipped gradient g = stats[1] * grads:
//     m = beta1 * m + (1 - beta1) * g,   v = beta2 * v + (1 - beta2) * g^2
//     w = w - step_size * m / (sqrt(v) * correction + eps) - decay * w
// with step_size = lr / (1 - beta1^t), correction = 1 / sqrt(1 - beta2^t), both in f64, and decay = lr * weight_decay for the
// first decay_elements elements, 0 for the rest. The decay is part of the one subtraction, because a factor
// 1 - lr * weight_decay of its own is exactly 1 in f32 below 6e-8.
// stats[2] == 0 (a gradient that is not finite) leaves everything as it is, t too: so t is counted here, and the host need not
// know whether an update was applied to launch the next. adamw_advance: one thread. adamw_step reads and writes w, m, v once
// and reads grads once; a bf16 weight and its low bits are the f32 w (lib/split_master.cuh). One thread per eight elements,
// arithmetic in f32. Roof: memory.

#include <chunk.cuh>
#include <split_master.cuh>
#include <types.cuh>

// ---- device code

constexpr int kThreads = 128;

// Places in what is kept from update to update: powers of the betas, t, and what follows from them for update t.
enum Progress { kBeta1Power, kBeta2Power, kUpdates, kStepSize, kCorrection };

struct Step {
    float beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay;
};

template <class T>
__device__ void adamw_step(T* params, unsigned short* low, float* m, float* v, const float* grads, const float* stats,
                           const double* progress, Step step, long long decay_elements, long long elements) {
    const long long i = ((long long)blockIdx.x * kThreads + threadIdx.x) * kChunk, count = elements - i;
    if (count <= 0 || stats[2] == 0.0f) return;
    const float scale = stats[1], step_size = (float)progress[kStepSize], correction = (float)progress[kCorrection];
    const int decayed = i < decay_elements ? (int)min(decay_elements - i, (long long)kChunk) : 0;
    float w[kChunk], mean[kChunk], square[kChunk], g[kChunk];
    load_master(w, params + i, low + i, count);
    load_chunk(mean, m + i, count);
    load_chunk(square, v + i, count);
    load_chunk(g, grads + i, count);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
        const float clipped = scale * g[k];
        mean[k] = step.beta1 * mean[k] + step.one_minus_beta1 * clipped;
        square[k] = step.beta2 * square[k] + step.one_minus_beta2 * clipped * clipped;
        const float change = step_size * mean[k] / (sqrtf(square[k]) * correction + step.eps);
        w[k] -= change + (k < decayed ? step.decay : 0.0f) * w[k];
    }
    store_chunk(m + i, mean, count);
    store_chunk(v + i, square, count);
    store_master(params + i, low + i, w, count);
}

// ---- entry points

extern "C" __global__ void adamw_advance(
    double* progress,    // (5)
    const float* stats,  // (3) norm, clip factor, 1 if finite
    double lr, double beta1, double beta2) {
    if (threadIdx.x != 0 || stats[2] == 0.0f) return;
    progress[kBeta1Power] *= beta1;
    progress[kBeta2Power] *= beta2;
    progress[kUpdates] += 1.0;
    progress[kStepSize] = lr / (1.0 - progress[kBeta1Power]);
    progress[kCorrection] = 1.0 / sqrt(1.0 - progress[kBeta2Power]);
}

extern "C" __global__ void __launch_bounds__(kThreads) adamw_step_f32(
    float* params,           // (elements)
    unsigned short* low,     // none: the weights are their own master
    float* m,                // (elements)
    float* v,                // (elements)
    const float* grads,      // (elements)
    const float* stats,      // (3) norm, clip factor, 1 if finite
    const double* progress,  // (5) what adamw_advance left
    float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float decay, long long decay_elements,
    long long elements) {
    const Step step{beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay};
    adamw_step<float>(params, low, m, v, grads, stats, progress, step, decay_elements, elements);
}

extern "C" __global__ void __launch_bounds__(kThreads) adamw_step_bf16(
    bf16* params,            // (elements)
    unsigned short* low,     // (elements) the rest of the master
    float* m,                // (elements)
    float* v,                // (elements)
    const float* grads,      // (elements)
    const float* stats,      // (3) norm, clip factor, 1 if finite
    const double* progress,  // (5) what adamw_advance left
    float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float decay, long long decay_elements,
    long long elements) {
    const Step step{beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay};
    adamw_step<bf16>(params, low, m, v, grads, stats, progress, step, decay_elements, elements);
}
