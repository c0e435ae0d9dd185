// RMSprop (Tieleman & Hinton 2012) with PyTorch's semantics, neither centred nor with momentum, on the clipped gradient
// stats[1] * grads:
//     g = stats[1] * grads + decay * w,   s = alpha * s + (1 - alpha) * g^2,   w = w - lr * g / (sqrt(s) + eps)
// with decay = weight_decay for the first decay_elements elements, 0 for the rest. stats[2] == 0 (a gradient that is not
// finite) leaves everything as it is, the count of updates too. Reads and writes w and s once, reads grads once; a bf16
// weight and its low bits are the f32 w (lib/split_master.cuh). One thread per eight elements, arithmetic in f32; the first
// thread counts. Roof: memory.

#include <chunk.cuh>
#include <split_master.cuh>
#include <types.cuh>

// ---- device code

constexpr int kThreads = 128;

struct Step {
    float lr, alpha, one_minus_alpha, eps, decay;
};

template <class T>
__device__ void rmsprop_step(T* params, unsigned short* low, float* square_avg, double* updates, const float* grads,
                             const float* stats, Step step, long long decay_elements, long long elements) {
    const long long i = ((long long)blockIdx.x * kThreads + threadIdx.x) * kChunk, count = elements - i;
    if (count <= 0 || stats[2] == 0.0f) return;
    if (i == 0) updates[0] += 1.0;
    const float scale = stats[1];
    const int decayed = i < decay_elements ? (int)min(decay_elements - i, (long long)kChunk) : 0;
    float w[kChunk], square[kChunk], g[kChunk];
    load_master(w, params + i, low + i, count);
    load_chunk(square, square_avg + i, count);
    load_chunk(g, grads + i, count);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
        const float slope = scale * g[k] + (k < decayed ? step.decay : 0.0f) * w[k];
        square[k] = step.alpha * square[k] + step.one_minus_alpha * slope * slope;
        w[k] -= step.lr * slope / (sqrtf(square[k]) + step.eps);
    }
    store_chunk(square_avg + i, square, count);
    store_master(params + i, low + i, w, count);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kThreads) rmsprop_step_f32(
    float* params,        // (elements)
    unsigned short* low,  // none: the weights are their own master
    float* square_avg,    // (elements)
    double* updates,      // (1)
    const float* grads,   // (elements)
    const float* stats,   // (3) norm, clip factor, 1 if finite
    float lr, float alpha, float one_minus_alpha, float eps, float decay, long long decay_elements, long long elements) {
    const Step step{lr, alpha, one_minus_alpha, eps, decay};
    rmsprop_step<float>(params, low, square_avg, updates, grads, stats, step, decay_elements, elements);
}

extern "C" __global__ void __launch_bounds__(kThreads) rmsprop_step_bf16(
    bf16* params,         // (elements)
    unsigned short* low,  // (elements) the rest of the master
    float* square_avg,    // (elements)
    double* updates,      // (1)
    const float* grads,   // (elements)
    const float* stats,   // (3) norm, clip factor, 1 if finite
    float lr, float alpha, float one_minus_alpha, float eps, float decay, long long decay_elements, long long elements) {
    const Step step{lr, alpha, one_minus_alpha, eps, decay};
    rmsprop_step<bf16>(params, low, square_avg, updates, grads, stats, step, decay_elements, elements);
}
