// AdamW (arXiv 1711.05101) with PyTorch's semantics, on the clipped gradient g = stats[1] * grads:
//     m = beta1 * m + (1 - beta1) * g,   v = beta2 * v + (1 - beta2) * g^2
//     w = w - step_size * m / (sqrt(v) * correction + eps) - decay * w
// with step_size = lr / (1 - beta1^t), correction = 1 / sqrt(1 - beta2^t), both in f64, and decay = lr * weight_decay for the
// first decay_elements elements, 0 for the rest. The decay is part of the one subtraction, because a factor
// 1 - lr * weight_decay of its own is exactly 1 in f32 below 6e-8.
// stats[2] == 0 (a gradient that is not finite) leaves everything as it is, t too: so t is counted here, and the host need not
// know whether an update was applied to launch the next. adamw_advance: one thread. adamw_step reads and writes w, m, v once
// and reads grads once; a bf16 weight and its low bits are the f32 w (lib/split_master.cuh). One thread per eight elements,
// arithmetic in f32. A narrow step is one whose gradients are bf16. Roof: memory.

#include <adamw.cuh>
#include <types.cuh>

// ---- device code

template <class T, class G>
__device__ void adamw_step(T* params, unsigned short* low, float* m, float* v, const G* grads, const float* stats,
                           const double* progress, const Step& step, long long decay_elements, long long elements) {
    const long long i = own_chunk(), count = elements - i;
    if (count <= 0 || stats[2] == 0.0f) return;
    float w[kChunk], mean[kChunk], square[kChunk], g[kChunk];
    load_master(w, params + i, low + i, count);
    load_chunk(mean, m + i, count);
    load_chunk(square, v + i, count);
    load_chunk(g, grads + i, count);
    adamw_update(w, mean, square, g, Update(stats, progress), step, decayed_of(i, decay_elements));
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
    adamw_step(params, low, m, v, grads, stats, progress, step, decay_elements, elements);
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
    adamw_step(params, low, m, v, grads, stats, progress, step, decay_elements, elements);
}

extern "C" __global__ void __launch_bounds__(kThreads) adamw_step_narrow_f32(
    float* params,           // (elements)
    unsigned short* low,     // none: the weights are their own master
    float* m,                // (elements)
    float* v,                // (elements)
    const bf16* grads,       // (elements)
    const float* stats,      // (3) norm, clip factor, 1 if finite
    const double* progress,  // (5) what adamw_advance left
    float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float decay, long long decay_elements,
    long long elements) {
    const Step step{beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay};
    adamw_step(params, low, m, v, grads, stats, progress, step, decay_elements, elements);
}

extern "C" __global__ void __launch_bounds__(kThreads) adamw_step_narrow_bf16(
    bf16* params,            // (elements)
    unsigned short* low,     // (elements) the rest of the master
    float* m,                // (elements)
    float* v,                // (elements)
    const bf16* grads,       // (elements)
    const float* stats,      // (3) norm, clip factor, 1 if finite
    const double* progress,  // (5) what adamw_advance left
    float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float decay, long long decay_elements,
    long long elements) {
    const Step step{beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay};
    adamw_step(params, low, m, v, grads, stats, progress, step, decay_elements, elements);
}
