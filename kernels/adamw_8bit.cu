// AdamW as in adamw.cu, its moments kept in eight bits an element and one exponent a block of 256. A code is a piece of the
// f32's own bits b: of the 8 exponent and 3 mantissa bits q = b >> 20, what is left of them relative to the largest of the block,
// E = max(q) >> 3.
//     m:  q to nearest, ties to even;  code = sign << 7 | (q - (8 E - 120)), 0 if that is not positive:  2^-15 to 1.875 of 2^(E - 127)
//     v:  q by chance, of 16 random bits;  code = max(1, q - (8 E - 248)), 0 for v = 0 alone:            2^-31 to 1.875
// No table, and a v above 0 never becomes 0, which would let an update explode. v to nearest would stand still, as it decays by
// a thousandth a step; m takes chance too where beta1 is so near to 1 (random_m). The update takes the moments before they are
// cut. Random bits are those of lib/philox.cuh for the step `number` and an element's place in the arena, where these elements
// begin at `first`, a multiple of 256. One warp a block, eight elements a lane, arithmetic in f32. A narrow step is one whose
// gradients are bf16. Roof: memory.

#include <adamw.cuh>
#include <moments_8bit.cuh>
#include <philox.cuh>
#include <types.cuh>

// ---- device code

struct Moments {
    unsigned char *m, *v, *m_exponents, *v_exponents;
};

template <class T, class G>
__device__ void adamw_8bit_step(T* params, unsigned short* low, const Moments& moments, const G* grads, const float* stats,
                                const double* progress, const Step& step, long long decay_elements, long long elements,
                                Draw draw, long long first, int random_m) {
    const long long i = own_chunk(), count = elements - i, block = i / kBlock;
    // The same for a whole warp.
    if (block * kBlock >= elements || stats[2] == 0.0f) return;
    float w[kChunk], mean[kChunk], square[kChunk], g[kChunk];
    Codes m, v;
    m.load(moments.m + i, count);
    v.load(moments.v + i, count);
    load_master(w, params + i, low + i, count);
    load_chunk(g, grads + i, count);
    decode_m(mean, m, moments.m_exponents[block]);
    decode_v(square, v, moments.v_exponents[block]);
    adamw_update(w, mean, square, g, Update(stats, progress), step, decayed_of(i, decay_elements));
    unsigned half[kHalves];
    random_halves(half, draw, first + i);
    const int v_exponent = encode_v(v, square, half);
    if (random_m) {
        draw.stream |= 1u << 8;
        random_halves(half, draw, first + i);
    }
    const int m_exponent = encode_m(m, mean, half, random_m != 0);
    if (count <= 0) return;
    store_master(params + i, low + i, w, count);
    m.store(moments.m + i, count);
    v.store(moments.v + i, count);
    if (threadIdx.x % kWarpThreads == 0) {
        moments.m_exponents[block] = (unsigned char)m_exponent;
        moments.v_exponents[block] = (unsigned char)v_exponent;
    }
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kThreads) adamw_8bit_step_f32(
    float* params,               // (elements)
    unsigned short* low,         // none: the weights are their own master
    unsigned char* m,            // (elements) codes
    unsigned char* v,            // (elements) codes
    unsigned char* m_exponents,  // (blocks)
    unsigned char* v_exponents,  // (blocks)
    const float* grads,          // (elements)
    const float* stats,          // (3) norm, clip factor, 1 if finite
    const double* progress,      // (5) what adamw_advance left
    float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float decay, long long decay_elements,
    long long elements,
    unsigned long long seed, unsigned number, long long first, int random_m) {
    const Step step{beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay};
    adamw_8bit_step(params, low, {m, v, m_exponents, v_exponents}, grads, stats,
                    progress, step, decay_elements, elements, {seed, number, kMoments}, first, random_m);
}

extern "C" __global__ void __launch_bounds__(kThreads) adamw_8bit_step_bf16(
    bf16* params,                // (elements)
    unsigned short* low,         // (elements) the rest of the master
    unsigned char* m,            // (elements) codes
    unsigned char* v,            // (elements) codes
    unsigned char* m_exponents,  // (blocks)
    unsigned char* v_exponents,  // (blocks)
    const float* grads,          // (elements)
    const float* stats,          // (3) norm, clip factor, 1 if finite
    const double* progress,      // (5) what adamw_advance left
    float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float decay, long long decay_elements,
    long long elements,
    unsigned long long seed, unsigned number, long long first, int random_m) {
    const Step step{beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay};
    adamw_8bit_step(params, low, {m, v, m_exponents, v_exponents}, grads, stats,
                    progress, step, decay_elements, elements, {seed, number, kMoments}, first, random_m);
}

extern "C" __global__ void __launch_bounds__(kThreads) adamw_8bit_step_narrow_f32(
    float* params,               // (elements)
    unsigned short* low,         // none: the weights are their own master
    unsigned char* m,            // (elements) codes
    unsigned char* v,            // (elements) codes
    unsigned char* m_exponents,  // (blocks)
    unsigned char* v_exponents,  // (blocks)
    const bf16* grads,           // (elements)
    const float* stats,          // (3) norm, clip factor, 1 if finite
    const double* progress,      // (5) what adamw_advance left
    float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float decay, long long decay_elements,
    long long elements,
    unsigned long long seed, unsigned number, long long first, int random_m) {
    const Step step{beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay};
    adamw_8bit_step(params, low, {m, v, m_exponents, v_exponents}, grads, stats,
                    progress, step, decay_elements, elements, {seed, number, kMoments}, first, random_m);
}

extern "C" __global__ void __launch_bounds__(kThreads) adamw_8bit_step_narrow_bf16(
    bf16* params,                // (elements)
    unsigned short* low,         // (elements) the rest of the master
    unsigned char* m,            // (elements) codes
    unsigned char* v,            // (elements) codes
    unsigned char* m_exponents,  // (blocks)
    unsigned char* v_exponents,  // (blocks)
    const bf16* grads,           // (elements)
    const float* stats,          // (3) norm, clip factor, 1 if finite
    const double* progress,      // (5) what adamw_advance left
    float beta1, float one_minus_beta1, float beta2, float one_minus_beta2, float eps, float decay, long long decay_elements,
    long long elements,
    unsigned long long seed, unsigned number, long long first, int random_m) {
    const Step step{beta1, one_minus_beta1, beta2, one_minus_beta2, eps, decay};
    adamw_8bit_step(params, low, {m, v, m_exponents, v_exponents}, grads, stats,
                    progress, step, decay_elements, elements, {seed, number, kMoments}, first, random_m);
}
