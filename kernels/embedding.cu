// Forward: y[t] = scale * table[ids[t]]. Reads the named rows once, writes y once; one thread per chunk of eight columns.
// Backward: dtable[id] += scale * sum of dy[t] over the tokens t that carry id. One CTA per distinct id and 512 columns, one
// thread per chunk of eight columns; the tokens of an id are added in ascending order in f32, so the result does not
// depend on the launch. Ids that do not occur are not touched. A bf16 dtable (narrow) is added to in f32 and rounded by chance:
// lib/philox.cuh, by an element's place in the arena, where the table begins at `first`.
// Roof: memory. An id that occurs n times is a chain of n additions: a frequent id sets the time of the whole launch.

#include <chunk.cuh>
#include <philox.cuh>
#include <types.cuh>

// ---- device code

constexpr int kRowThreads = 128;
constexpr int kSumThreads = 64;
constexpr int kInFlight = 4;

template <class T>
__device__ void embedding_fwd(T* y, const int* ids, const T* table, float scale, int tokens, int hidden) {
    const int chunks = (hidden + kChunk - 1) / kChunk;
    const int item = blockIdx.x * kRowThreads + threadIdx.x;
    const int token = item / chunks, c = item % chunks * kChunk;
    if (token >= tokens) return;
    float x[kChunk];
    load_chunk(x, table + (long long)ids[token] * hidden + c, hidden - c);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) x[k] *= scale;
    store_chunk(y + (long long)token * hidden + c, x, hidden - c);
}

// Nothing is done to a sum in f32.
struct Exact {
    __device__ __forceinline__ void operator()(float (&)[kChunk], long long) const {}
};

struct ByChance {
    Draw draw;
    long long first;

    __device__ __forceinline__ void operator()(float (&x)[kChunk], long long at) const { round_chunk(x, draw, first + at); }
};

template <class T, class D, class Round>
__device__ void embedding_bwd(D* dtable, const T* dy, const int* distinct_ids, const int* distinct_offsets,
                              const int* distinct_tokens, float scale, int hidden, const Round& round) {
    const int c = (blockIdx.y * kSumThreads + threadIdx.x) * kChunk;
    if (c >= hidden) return;
    const int last = distinct_offsets[blockIdx.x + 1];
    const T* from = dy + c;
    float sum[kChunk] = {};
    int i = distinct_offsets[blockIdx.x];
    // Several rows on their way at once: a frequent id would otherwise wait for memory once per token.
    while (is_whole(from, hidden - c) && hidden % kChunk == 0 && i + kInFlight <= last) {
        float x[kInFlight][kChunk];
#pragma unroll
        for (int j = 0; j < kInFlight; ++j) load_whole(x[j], from + (long long)distinct_tokens[i + j] * hidden);
#pragma unroll
        for (int j = 0; j < kInFlight; ++j)
#pragma unroll
            for (int k = 0; k < kChunk; ++k) sum[k] += x[j][k];
        i += kInFlight;
    }
    for (; i < last; ++i) {
        float x[kChunk];
        load_chunk(x, from + (long long)distinct_tokens[i] * hidden, hidden - c);
#pragma unroll
        for (int k = 0; k < kChunk; ++k) sum[k] += x[k];
    }
    const long long at = (long long)distinct_ids[blockIdx.x] * hidden + c;
    float total[kChunk];
    load_chunk(total, dtable + at, hidden - c);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) total[k] += scale * sum[k];
    round(total, at);
    store_chunk(dtable + at, total, hidden - c);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kRowThreads) embedding_fwd_f32(
    float* y,            // (tokens, hidden)
    const int* ids,      // (tokens), each in 0..vocab
    const float* table,  // (vocab, hidden)
    float scale, int tokens, int hidden) {
    embedding_fwd<float>(y, ids, table, scale, tokens, hidden);
}

extern "C" __global__ void __launch_bounds__(kRowThreads) embedding_fwd_bf16(
    bf16* y,            // (tokens, hidden)
    const int* ids,     // (tokens), each in 0..vocab
    const bf16* table,  // (vocab, hidden)
    float scale, int tokens, int hidden) {
    embedding_fwd<bf16>(y, ids, table, scale, tokens, hidden);
}

extern "C" __global__ void __launch_bounds__(kSumThreads) embedding_bwd_f32(
    float* dtable,                // (vocab, hidden), added to
    const float* dy,              // (tokens, hidden)
    const int* distinct_ids,      // (distinct), each in 0..vocab, no two alike
    const int* distinct_offsets,  // (distinct + 1)
    const int* distinct_tokens,   // (tokens)
    float scale, int hidden) {
    embedding_bwd(dtable, dy, distinct_ids, distinct_offsets, distinct_tokens, scale, hidden, Exact());
}

extern "C" __global__ void __launch_bounds__(kSumThreads) embedding_bwd_bf16(
    float* dtable,                // (vocab, hidden), added to
    const bf16* dy,               // (tokens, hidden)
    const int* distinct_ids,      // (distinct), each in 0..vocab, no two alike
    const int* distinct_offsets,  // (distinct + 1)
    const int* distinct_tokens,   // (tokens)
    float scale, int hidden) {
    embedding_bwd(dtable, dy, distinct_ids, distinct_offsets, distinct_tokens, scale, hidden, Exact());
}

extern "C" __global__ void __launch_bounds__(kSumThreads) embedding_bwd_narrow_f32(
    bf16* dtable,                 // (vocab, hidden), added to
    const float* dy,              // (tokens, hidden)
    const int* distinct_ids,      // (distinct), each in 0..vocab, no two alike
    const int* distinct_offsets,  // (distinct + 1)
    const int* distinct_tokens,   // (tokens)
    float scale, int hidden, unsigned long long seed, unsigned number, unsigned part, long long first) {
    const ByChance round{{seed, number, kGradients | part << 8}, first};
    embedding_bwd(dtable, dy, distinct_ids, distinct_offsets, distinct_tokens, scale, hidden, round);
}

extern "C" __global__ void __launch_bounds__(kSumThreads) embedding_bwd_narrow_bf16(
    bf16* dtable,                 // (vocab, hidden), added to
    const bf16* dy,               // (tokens, hidden)
    const int* distinct_ids,      // (distinct), each in 0..vocab, no two alike
    const int* distinct_offsets,  // (distinct + 1)
    const int* distinct_tokens,   // (tokens)
    float scale, int hidden, unsigned long long seed, unsigned number, unsigned part, long long first) {
    const ByChance round{{seed, number, kGradients | part << 8}, first};
    embedding_bwd(dtable, dy, distinct_ids, distinct_offsets, distinct_tokens, scale, hidden, round);
}
