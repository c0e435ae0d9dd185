// AdamW as in adamw.cu, its moments kept as bf16: m to nearest, ties to even, v up or down with the probability of what is cut
// off, because a v to nearest that decays by a thousandth a step would stand still. m too where beta1 is so near to 1
// (random_m). The update takes the moments before they are rounded. Random bits are those of lib/philox.cuh for the step
// `number` and an element's place in the arena, where these elements begin at `first`, a multiple of eight.
// One thread per eight elements, arithmetic in f32. A narrow step is one whose gradients are bf16. Roof: memory.

#include <adamw.cuh>
#include <philox.cuh>
#include <types.cuh>

// ---- device code

// min(count, 8) f32 as bf16 by chance.
__device__ __forceinline__ void store_by_chance(bf16* to, const float (&x)[kChunk], const unsigned (&half)[kHalves],
                                                long long count) {
    float rounded[kChunk];
#pragma unroll
    for (int k = 0; k < kChunk; ++k) rounded[k] = round_by_chance(x[k], half[k]);
    store_chunk(to, rounded, count);
}

template <class T, class G>
__device__ void adamw_bf16_step(T* params, unsigned short* low, bf16* m, bf16* v, const G* grads, const float* stats,
                                const double* progress, const Step& step, long long decay_elements, long long elements,
                                Draw draw, long long first, int random_m) {
    const long long i = own_chunk(), count = elements - i;
    if (count <= 0 || stats[2] == 0.0f) return;
    float w[kChunk], mean[kChunk], square[kChunk], g[kChunk];
    load_master(w, params + i, low + i, count);
    load_chunk(mean, m + i, count);
    load_chunk(square, v + i, count);
    load_chunk(g, grads + i, count);
    adamw_update(w, mean, square, g, Update(stats, progress), step, decayed_of(i, decay_elements));
    store_master(params + i, low + i, w, count);
    unsigned half[kHalves];
    random_halves(half, draw, first + i);
    store_by_chance(v + i, square, half, count);
    if (!random_m) return store_chunk(m + i, mean, count);
    draw.stream |= 1u << 8;
    random_halves(half, draw, first + i);
    store_by_chance(m + i, mean, half, count);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kThreads) adamw_bf16_step_f32(
    float* params,           // (elements)
    unsigned short* low,     // none: the weights are their own master
    bf16* m,                 // (elements)
    bf16* v,                 // (elements)
    const float* grads,      // (elements)
    const float* stats,      // (3) norm, clip factor, 1 if finite
    const double* progress,  // (5) what adamw_advance left
    float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float decay, long long decay_elements,
    long long elements,
    unsigned long long seed, unsigned number, long long first, int random_m) {
    const Step step{beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay};
    adamw_bf16_step(params, low, m, v, grads, stats,
                    progress, step, decay_elements, elements, {seed, number, kMoments}, first, random_m);
}

extern "C" __global__ void __launch_bounds__(kThreads) adamw_bf16_step_bf16(
    bf16* params,            // (elements)
    unsigned short* low,     // (elements) the rest of the master
    bf16* m,                 // (elements)
    bf16* v,                 // (elements)
    const float* grads,      // (elements)
    const float* stats,      // (3) norm, clip factor, 1 if finite
    const double* progress,  // (5) what adamw_advance left
    float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float decay, long long decay_elements,
    long long elements,
    unsigned long long seed, unsigned number, long long first, int random_m) {
    const Step step{beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay};
    adamw_bf16_step(params, low, m, v, grads, stats,
                    progress, step, decay_elements, elements, {seed, number, kMoments}, first, random_m);
}

extern "C" __global__ void __launch_bounds__(kThreads) adamw_bf16_step_narrow_f32(
    float* params,           // (elements)
    unsigned short* low,     // none: the weights are their own master
    bf16* m,                 // (elements)
    bf16* v,                 // (elements)
    const bf16* grads,       // (elements)
    const float* stats,      // (3) norm, clip factor, 1 if finite
    const double* progress,  // (5) what adamw_advance left
    float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float decay, long long decay_elements,
    long long elements,
    unsigned long long seed, unsigned number, long long first, int random_m) {
    const Step step{beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay};
    adamw_bf16_step(params, low, m, v, grads, stats,
                    progress, step, decay_elements, elements, {seed, number, kMoments}, first, random_m);
}

extern "C" __global__ void __launch_bounds__(kThreads) adamw_bf16_step_narrow_bf16(
    bf16* params,            // (elements)
    unsigned short* low,     // (elements) the rest of the master
    bf16* m,                 // (elements)
    bf16* v,                 // (elements)
    const bf16* grads,       // (elements)
    const float* stats,      // (3) norm, clip factor, 1 if finite
    const double* progress,  // (5) what adamw_advance left
    float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float decay, long long decay_elements,
    long long elements,
    unsigned long long seed, unsigned number, long long first, int random_m) {
    const Step step{beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay};
    adamw_bf16_step(params, low, m, v, grads, stats,
                    progress, step, decay_elements, elements, {seed, number, kMoments}, first, random_m);
}
