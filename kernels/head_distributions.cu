// The head where a loss looks at whole distributions: f32 logits of the policy, and of the reference beside them.
// head_divergence_rows: one warp per row; with p the policy's and q the reference's probabilities
//     logp = z[y] - lse,  ref_logp = zq[y] - ref_lse,  divergence = KL(q || p) = sum q (zq - z) - ref_lse + lse,
//     entropy = lse - sum p z,  top1 = [z[y] >= max z]
// head_dlogits_divergence: dz = c (onehot - p) + k (p - q), c by logp, k by the divergence.
// head_collisions: log of the sum of squared probabilities, log sum exp(2 z) - 2 lse.
// A soft cap is as in head.cu. Roof: HBM, two rows of logits.

#include <chunk.cuh>
#include <cta.cuh>
#include <types.cuh>

// ---- device code

constexpr int kRowThreads = 128;
constexpr int kElementThreads = 128;

// 0: no cap.
__device__ __forceinline__ float capped(float z, float softcap) {
    return softcap > 0.0f ? softcap * tanhf(z / softcap) : z;
}

// The largest logit of a row, and the sum of exp(factor (z - largest)): all lanes get both.
struct Normaliser {
    float top, sum;
};

__device__ Normaliser normaliser(const float* z, float factor, float softcap, int vocab, int lane) {
    float top = -INFINITY;
    for (int v = lane; v < vocab; v += kWarpThreads) top = fmaxf(top, z[v]);
    // The cap is monotonic.
    top = capped(warp_max(top), softcap);
    float sum = 0.0f;
    for (int v = lane; v < vocab; v += kWarpThreads) sum += expf(factor * (capped(z[v], softcap) - top));
    return {top, warp_sum(sum)};
}

template <class T>
__device__ void head_dlogits_divergence(T* dlogits, const float* logits, const float* ref_logits, const float* lse,
                                        const float* ref_lse, const float* coefficients,
                                        const float* divergence_coefficients, const int* targets, float softcap,
                                        int rows, int vocab, int ld) {
    const int chunks = ld / kChunk;
    const int item = blockIdx.x * kElementThreads + threadIdx.x;
    const int row = item / chunks, v0 = item % chunks * kChunk;
    if (row >= rows) return;
    const float own_lse = lse[row], other_lse = ref_lse[row], c = coefficients[row], k = divergence_coefficients[row];
    const int target = targets[row] - v0;
    const long long at = (long long)row * ld + v0;
    float z[kChunk], q[kChunk];
    load_chunk(z, logits + at, vocab - v0);
    load_chunk(q, ref_logits + at, vocab - v0);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
        const float t = softcap > 0.0f ? tanhf(z[i] / softcap) : 0.0f;
        const float own = softcap > 0.0f ? softcap * t : z[i];
        const float p = expf(own - own_lse), onehot = i == target ? 1.0f : 0.0f;
        const float slope = c * (onehot - p) + k * (p - expf(capped(q[i], softcap) - other_lse));
        z[i] = v0 + i < vocab ? slope * (1.0f - t * t) : 0.0f;
    }
    store_chunk(dlogits + at, z);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kRowThreads) head_divergence_rows(
    float* logps,             // (rows)
    float* lse,               // (rows), kept for the backward pass
    float* ref_logps,         // (rows)
    float* ref_lse,           // (rows), kept for the backward pass
    float* divergences,       // (rows) KL(reference || policy)
    float* entropies,         // (rows) of the policy
    float* top1,              // (rows) 1 where no logit of the policy is larger than the target's, else 0
    const float* logits,      // (rows, ld), columns from vocab on are not read
    const float* ref_logits,  // (rows, ld)
    const int* targets,       // (rows), each in 0..vocab
    float softcap, int rows, int vocab, int ld) {
    const int lane = threadIdx.x % kWarpThreads;
    const int row = blockIdx.x * (kRowThreads / kWarpThreads) + threadIdx.x / kWarpThreads;
    if (row >= rows) return;
    const float* z = logits + (long long)row * ld;
    const float* zq = ref_logits + (long long)row * ld;
    const Normaliser p = normaliser(z, 1.0f, softcap, vocab, lane), q = normaliser(zq, 1.0f, softcap, vocab, lane);
    // log p and log q of a token are small differences of large numbers if formed by whole normalisers: by tops first.
    const float p_log = logf(p.sum), q_log = logf(q.sum);
    float sum = 0.0f, entropy = 0.0f;
    for (int v = lane; v < vocab; v += kWarpThreads) {
        const float log_q = (capped(zq[v], softcap) - q.top) - q_log, log_p = (capped(z[v], softcap) - p.top) - p_log;
        const float share = expf(log_q);
        if (share > 0.0f) sum += share * (log_q - log_p);
        const float own_share = expf(log_p);
        if (own_share > 0.0f) entropy -= own_share * log_p;
    }
    sum = warp_sum(sum);
    entropy = warp_sum(entropy);
    if (lane > 0) return;
    lse[row] = p.top + p_log;
    ref_lse[row] = q.top + q_log;
    const float target_logit = capped(z[targets[row]], softcap);
    logps[row] = (target_logit - p.top) - p_log;
    top1[row] = target_logit >= p.top ? 1.0f : 0.0f;
    entropies[row] = entropy;
    ref_logps[row] = (capped(zq[targets[row]], softcap) - q.top) - q_log;
    divergences[row] = sum;
}

extern "C" __global__ void __launch_bounds__(kRowThreads) head_collisions(
    float* collisions,    // (rows) log of the sum of squared probabilities
    const float* logits,  // (rows, ld), columns from vocab on are not read
    float softcap, int rows, int vocab, int ld) {
    const int lane = threadIdx.x % kWarpThreads;
    const int row = blockIdx.x * (kRowThreads / kWarpThreads) + threadIdx.x / kWarpThreads;
    if (row >= rows) return;
    const float* z = logits + (long long)row * ld;
    const Normaliser once = normaliser(z, 1.0f, softcap, vocab, lane), twice = normaliser(z, 2.0f, softcap, vocab, lane);
    if (lane == 0) collisions[row] = logf(twice.sum) - 2.0f * logf(once.sum);
}

extern "C" __global__ void __launch_bounds__(kElementThreads) head_dlogits_divergence_f32(
    float* dlogits,                        // (rows, ld), columns from vocab on become 0; may be logits
    const float* logits,                   // (rows, ld)
    const float* ref_logits,               // (rows, ld)
    const float* lse,                      // (rows)
    const float* ref_lse,                  // (rows)
    const float* coefficients,             // (rows), dLoss / dlogp
    const float* divergence_coefficients,  // (rows), dLoss / dKL
    const int* targets,                    // (rows)
    float softcap, int rows, int vocab, int ld) {
    head_dlogits_divergence<float>(dlogits, logits, ref_logits, lse, ref_lse, coefficients, divergence_coefficients,
                                   targets, softcap, rows, vocab, ld);
}

extern "C" __global__ void __launch_bounds__(kElementThreads) head_dlogits_divergence_bf16(
    bf16* dlogits,                         // (rows, ld), columns from vocab on become 0
    const float* logits,                   // (rows, ld)
    const float* ref_logits,               // (rows, ld)
    const float* lse,                      // (rows)
    const float* ref_lse,                  // (rows)
    const float* coefficients,             // (rows), dLoss / dlogp
    const float* divergence_coefficients,  // (rows), dLoss / dKL
    const int* targets,                    // (rows)
    float softcap, int rows, int vocab, int ld) {
    head_dlogits_divergence<bf16>(dlogits, logits, ref_logits, lse, ref_lse, coefficients, divergence_coefficients,
                                  targets, softcap, rows, vocab, ld);
}
