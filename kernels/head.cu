// Language-model head over prediction rows. With z the logits of a row and y its target:
//   lse = log sum exp(z),  logp = z[y] - lse,  dz[v] = c * ([v = y] - exp(z[v] - lse))
//   entropy = lse - sum p z with p = exp(z - lse),  top1 = [z[y] >= max z]
// A soft cap puts softcap tanh(z / softcap) in place of z, and dz is multiplied by its slope, 1 - tanh^2.
// The products with the weight are GEMMs and the rows' hidden states an embedding lookup; these kernels are the rest.
//
// head_logps reads each logit once, one warp per row: every lane keeps a running maximum and sums relative to it, fed
// by groups of eight logits that are added as a tree, and the lanes meet in one maximum and one of each sum. logp and the
// entropy subtract the maximum first, so that their error is relative to the distance from the maximum and not to the logits.
// head_dlogits reads each logit once and writes each gradient once, eight columns a thread, zeros in the padding.
// head_finish and head_dlogits_exponentials are the second half of head_sm90.cu, which leaves exponentials and statistics
// in place of logits: one CTA of 32 rows by 8 slices of the vocabulary merges statistics in a fixed order; gradients replace
// the exponentials. The target's own gradient, c (1 - p), comes from its f32 logit, because 1 - p of a rounded p would be
// rounding alone where the model is sure.
// head_scatter adds the gradients of the rows that read a token in row order, to what another head left there or to 0, eight
// columns a thread.
// f32 arithmetic; fixed order, no atomics. Roof: memory.

#include <chunk.cuh>
#include <cta.cuh>
#include <logit_statistics.cuh>
#include <types.cuh>

// ---- device code

constexpr int kRowThreads = 128;
constexpr int kElementThreads = 128;
constexpr int kFinishSlices = 8;
constexpr int kFinishThreads = kFinishSlices * kWarpThreads;

// t exp(t), 0 where the exponential is: there t may be -inf.
__device__ __forceinline__ float weighted_exponential(float e, float t) { return e == 0.0f ? 0.0f : e * t; }

__device__ __forceinline__ float tree_sum(const float (&x)[kChunk]) {
    return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

// Statistics of the logits so far.
struct Exponentials {
    LogitStatistics all = {-INFINITY, 0.0f, 0.0f};

    // Takes in a group of logits, the first of which exists; -inf stands for those that do not.
    __device__ __forceinline__ void add(const float (&z)[kChunk]) {
        float group = z[0];
#pragma unroll
        for (int i = 1; i < kChunk; ++i) group = fmaxf(group, z[i]);
        if (group > all.top) all = all.sum > 0.0f ? relative_to(all, group) : LogitStatistics{group, all.sum, 0.0f};
        float e[kChunk], weighted[kChunk];
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            const float t = z[i] - all.top;
            e[i] = expf(t);
            weighted[i] = weighted_exponential(e[i], t);
        }
        all.sum += tree_sum(e);
        all.weighted += tree_sum(weighted);
    }

    // The same of the whole warp.
    __device__ __forceinline__ LogitStatistics of_warp() const {
        const float top = warp_max(all.top);
        const LogitStatistics own = all.sum > 0.0f ? relative_to(all, top) : LogitStatistics{top, 0.0f, 0.0f};
        return {top, warp_sum(own.sum), warp_sum(own.weighted)};
    }
};

// 0: no cap.
__device__ __forceinline__ float capped(float z, float softcap) {
    return softcap > 0.0f ? softcap * tanhf(z / softcap) : z;
}

// Caps logits and returns the slopes there.
__device__ __forceinline__ void cap_chunk(float (&z)[kChunk], float (&slope)[kChunk], float softcap) {
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
        const float t = tanhf(z[i] / softcap);
        z[i] = softcap * t;
        slope[i] = 1.0f - t * t;
    }
}

template <class T>
__device__ void head_dlogits(T* dlogits, const float* logits, const float* lse, const float* coefficients,
                             const int* targets, float softcap, int rows, int vocab, int ld) {
    const int chunks = ld / kChunk;
    const int item = blockIdx.x * kElementThreads + threadIdx.x;
    const int row = item / chunks, v0 = item % chunks * kChunk;
    if (row >= rows) return;
    const float own_lse = lse[row], c = coefficients[row];
    const int target = targets[row] - v0;
    const long long at = (long long)row * ld + v0;
    float z[kChunk];
    load_chunk(z, logits + at, vocab - v0);
    float slope[kChunk] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
    if (softcap > 0.0f) cap_chunk(z, slope, softcap);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
        const float onehot = i == target ? 1.0f : 0.0f;
        z[i] = v0 + i < vocab ? c * (onehot - expf(z[i] - own_lse)) * slope[i] : 0.0f;
    }
    store_chunk(dlogits + at, z);
}

// What a row's statistics and its target's logit say.
__device__ __forceinline__ void finish(float* logps, float* lse, float* entropies, float* top1, int row,
                                       LogitStatistics all, float target_logit) {
    const float log_sum = logf(all.sum);
    lse[row] = all.top + log_sum;
    logps[row] = (target_logit - all.top) - log_sum;
    entropies[row] = log_sum - all.weighted / all.sum;
    top1[row] = target_logit >= all.top ? 1.0f : 0.0f;
}

// In place: exponentials relative to their tile's largest logit become gradients.
__device__ void head_dlogits_exponentials(bf16* dlogits, const LogitStatistics* statistics, const float* target_logits,
                                          const float* lse, const float* coefficients, const int* targets, float softcap,
                                          int rows, int vocab, int ld) {
    const int chunks = ld / kChunk;
    const int item = blockIdx.x * kElementThreads + threadIdx.x;
    const int row = item / chunks, v0 = item % chunks * kChunk;
    if (row >= rows) return;
    const float own_lse = lse[row], c = coefficients[row];
    const float top = statistics[(long long)(v0 / kStatisticsColumns) * rows + row].top;
    const float share = expf(top - own_lse);
    const int target = targets[row] - v0;
    float x[kChunk];
    load_chunk(x, dlogits + (long long)row * ld + v0, vocab - v0);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) {
        const bool is_target = i == target;
        float gradient = is_target ? -expm1f(target_logits[row] - own_lse) : -(x[i] * share);
        // A probability that was rounded to 0 passes no gradient, and its logit is lost.
        if (softcap > 0.0f && (is_target || x[i] > 0.0f)) {
            const float t = (is_target ? target_logits[row] : top + logf(x[i])) / softcap;
            gradient *= 1.0f - t * t;
        }
        x[i] = v0 + i < vocab ? c * gradient : 0.0f;
    }
    store_chunk(dlogits + (long long)row * ld + v0, x);
}

template <class T>
__device__ void head_scatter(T* dhidden, const T* dx_rows, const int* token_row_offsets, const int* token_rows, int add,
                             int tokens, int hidden) {
    const int chunks = (hidden + kChunk - 1) / kChunk;
    const int item = blockIdx.x * kElementThreads + threadIdx.x;
    const int token = item / chunks, c = item % chunks * kChunk;
    if (token >= tokens) return;
    float sum[kChunk] = {};
    if (add) load_chunk(sum, dhidden + (long long)token * hidden + c, hidden - c);
    const int last = token_row_offsets[token + 1];
    for (int i = token_row_offsets[token]; i < last; ++i) {
        float x[kChunk];
        load_chunk(x, dx_rows + (long long)token_rows[i] * hidden + c, hidden - c);
#pragma unroll
        for (int k = 0; k < kChunk; ++k) sum[k] += x[k];
    }
    store_chunk(dhidden + (long long)token * hidden + c, sum, hidden - c);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kRowThreads) head_logps(
    float* logps,         // (rows)
    float* lse,           // (rows), kept for the backward pass
    float* entropies,     // (rows)
    float* top1,          // (rows) 1 where no logit is larger than the target's, else 0
    const float* logits,  // (rows, ld), columns from vocab on are not read
    const int* targets,   // (rows), each in 0..vocab
    float softcap, int rows, int vocab, int ld) {
    const int lane = threadIdx.x % kWarpThreads;
    const int row = blockIdx.x * (kRowThreads / kWarpThreads) + threadIdx.x / kWarpThreads;
    if (row >= rows) return;
    const float* z = logits + (long long)row * ld;
    Exponentials own;
    for (int v0 = lane; v0 < vocab; v0 += kChunk * kWarpThreads) {
        float group[kChunk];
#pragma unroll
        for (int i = 0; i < kChunk; ++i) {
            const int v = v0 + i * kWarpThreads;
            group[i] = v < vocab ? z[v] : -INFINITY;
        }
        if (softcap > 0.0f) {
#pragma unroll
            for (int i = 0; i < kChunk; ++i)
                if (v0 + i * kWarpThreads < vocab) group[i] = capped(group[i], softcap);
        }
        own.add(group);
    }
    const LogitStatistics all = own.of_warp();
    if (lane == 0) finish(logps, lse, entropies, top1, row, all, capped(z[targets[row]], softcap));
}

extern "C" __global__ void __launch_bounds__(kElementThreads) head_dlogits_f32(
    float* dlogits,             // (rows, ld), columns from vocab on become 0; may be logits
    const float* logits,        // (rows, ld)
    const float* lse,           // (rows)
    const float* coefficients,  // (rows), dLoss / dlogp
    const int* targets,         // (rows)
    float softcap, int rows, int vocab, int ld) {
    head_dlogits<float>(dlogits, logits, lse, coefficients, targets, softcap, rows, vocab, ld);
}

extern "C" __global__ void __launch_bounds__(kElementThreads) head_dlogits_bf16(
    bf16* dlogits,              // (rows, ld), columns from vocab on become 0
    const float* logits,        // (rows, ld)
    const float* lse,           // (rows)
    const float* coefficients,  // (rows), dLoss / dlogp
    const int* targets,         // (rows)
    float softcap, int rows, int vocab, int ld) {
    head_dlogits<bf16>(dlogits, logits, lse, coefficients, targets, softcap, rows, vocab, ld);
}

extern "C" __global__ void __launch_bounds__(kFinishThreads) head_finish(
    float* logps,                // (rows)
    float* lse,                  // (rows), kept for the backward pass
    float* entropies,            // (rows)
    float* top1,                 // (rows) 1 where no logit is larger than the target's, else 0
    const float* statistics,     // (tiles, rows, 3) top, sum, weighted
    const float* target_logits,  // (rows)
    int rows, int tiles) {
    const int lane = threadIdx.x % kWarpThreads, slice = threadIdx.x / kWarpThreads;
    const int row = blockIdx.x * kWarpThreads + lane;
    const LogitStatistics* own = reinterpret_cast<const LogitStatistics*>(statistics) + row;
    LogitStatistics* slices = shared_memory<LogitStatistics>();
    LogitStatistics all = {-INFINITY, 0.0f, 0.0f};
    for (int tile = slice; tile < tiles && row < rows; tile += kFinishSlices)
        all = merge(all, own[(long long)tile * rows]);
    slices[slice * kWarpThreads + lane] = all;
    __syncthreads();
    if (slice > 0 || row >= rows) return;
    for (int s = 1; s < kFinishSlices; ++s) all = merge(all, slices[s * kWarpThreads + lane]);
    finish(logps, lse, entropies, top1, row, all, target_logits[row]);
}

extern "C" __global__ void __launch_bounds__(kElementThreads) head_dlogits_exponentials_bf16(
    bf16* dlogits,               // (rows, ld), in place of exponentials; columns from vocab on become 0
    const float* statistics,     // (ceil(vocab / 256), rows, 3) top, sum, weighted
    const float* target_logits,  // (rows)
    const float* lse,            // (rows)
    const float* coefficients,   // (rows), dLoss / dlogp
    const int* targets,          // (rows)
    float softcap, int rows, int vocab, int ld) {
    head_dlogits_exponentials(dlogits, reinterpret_cast<const LogitStatistics*>(statistics), target_logits, lse,
                              coefficients, targets, softcap, rows, vocab, ld);
}

extern "C" __global__ void __launch_bounds__(kElementThreads) head_scatter_f32(
    float* dhidden,                // (tokens, hidden), added to if add
    const float* dx_rows,          // (rows, hidden)
    const int* token_row_offsets,  // (tokens + 1)
    const int* token_rows,         // (rows)
    int add, int tokens, int hidden) {
    head_scatter<float>(dhidden, dx_rows, token_row_offsets, token_rows, add, tokens, hidden);
}

extern "C" __global__ void __launch_bounds__(kElementThreads) head_scatter_bf16(
    bf16* dhidden,                 // (tokens, hidden), added to if add
    const bf16* dx_rows,           // (rows, hidden)
    const int* token_row_offsets,  // (tokens + 1)
    const int* token_rows,         // (rows)
    int add, int tokens, int hidden) {
    head_scatter<bf16>(dhidden, dx_rows, token_row_offsets, token_rows, add, tokens, hidden);
}
