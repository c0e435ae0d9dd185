// AdamW (arXiv 1711.05101) with PyTorch's semantics, on the clipped gradient g = stats[1] * grads:
//     m = beta1 * m + (1 - beta1) * g,   v = beta2 * v + (1 - beta2) * g^2
//     w = w - step_size * m / (sqrt(v) * correction + eps) - decay * w
// with step_size = lr / (1 - beta1^t), correction = 1 / sqrt(1 - beta2^t), and decay = lr * weight_decay for the first
// decay_elements elements, 0 for the rest: all computed in f64 by the host. The decay is part of the one subtraction,
// because a factor 1 - lr * weight_decay of its own is exactly 1 in f32 below 6e-8.
// stats[2] == 0 (a gradient that is not finite) leaves everything as it is. Reads and writes w, m, v once, reads grads
// once, writes params = w rounded. One thread per eight elements, arithmetic in f32. Roof: memory.

#include <chunk.cuh>
#include <types.cuh>

// ---- device code

constexpr int kThreads = 128;

struct Step {
    float step_size, correction, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay;
};

template <class T>
__device__ void adamw_step(T* params, float* master, float* m, float* v, const float* grads, const float* stats,
                           Step step, long long decay_elements, long long elements) {
    const long long i = ((long long)blockIdx.x * kThreads + threadIdx.x) * kChunk, count = elements - i;
    if (count <= 0 || stats[2] == 0.0f) return;
    const float scale = stats[1];
    const int decayed = i < decay_elements ? (int)min(decay_elements - i, (long long)kChunk) : 0;
    float w[kChunk], mean[kChunk], square[kChunk], g[kChunk];
    load_chunk(w, master + i, count);
    load_chunk(mean, m + i, count);
    load_chunk(square, v + i, count);
    load_chunk(g, grads + i, count);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
        const float clipped = scale * g[k];
        mean[k] = step.beta1 * mean[k] + step.one_minus_beta1 * clipped;
        square[k] = step.beta2 * square[k] + step.one_minus_beta2 * clipped * clipped;
        const float change = step.step_size * mean[k] / (sqrtf(square[k]) * step.correction + step.eps);
        w[k] -= change + (k < decayed ? step.decay : 0.0f) * w[k];
    }
    store_chunk(m + i, mean, count);
    store_chunk(v + i, square, count);
    store_chunk(master + i, w, count);
    store_chunk(params + i, w, count);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kThreads) adamw_step_f32(
    float* params,       // (elements), may be master
    float* master,       // (elements)
    float* m,            // (elements)
    float* v,            // (elements)
    const float* grads,  // (elements)
    const float* stats,  // (3) norm, clip factor, 1 if finite
    float step_size, float correction, float beta1, float one_minus_beta1, float beta2, float one_minus_beta2,
    float eps, float decay, long long decay_elements, long long elements) {
    const Step step{step_size, correction, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay};
    adamw_step<float>(params, master, m, v, grads, stats, step, decay_elements, elements);
}

extern "C" __global__ void __launch_bounds__(kThreads) adamw_step_bf16(
    bf16* params,        // (elements)
    float* master,       // (elements)
    float* m,            // (elements)
    float* v,            // (elements)
    const float* grads,  // (elements)
    const float* stats,  // (3) norm, clip factor, 1 if finite
    float step_size, float correction, float beta1, float one_minus_beta1, float beta2, float one_minus_beta2,
    float eps, float decay, long long decay_elements, long long elements) {
    const Step step{step_size, correction, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay};
    adamw_step<bf16>(params, master, m, v, grads, stats, step, decay_elements, elements);
}
