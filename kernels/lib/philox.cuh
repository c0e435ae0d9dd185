// Counter-based random numbers, Philox4x32-10 (Salmon et al. 2011): the twin of src/rng.rs, bit for bit. A number is a function
// of seed, purpose, number and index alone: no launch shape, no device, no order.
#pragma once
#include <cuda_runtime.h>

constexpr int kHalves = 8;

// As `Purpose` in src/rng.rs.
constexpr unsigned kMoments = 6, kGradients = 7;

__device__ __forceinline__ void philox4x32_10(unsigned (&counter)[4], unsigned key0, unsigned key1) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned long long a = 0xd2511f53ull * counter[0], b = 0xcd9e8d57ull * counter[2];
        counter[0] = (unsigned)(b >> 32) ^ counter[1] ^ key0;
        counter[2] = (unsigned)(a >> 32) ^ counter[3] ^ key1;
        counter[1] = (unsigned)b;
        counter[3] = (unsigned)a;
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
}

// Which numbers: `stream` is the purpose with what tells apart the uses of a step above its eight bits.
struct Draw {
    unsigned long long seed;
    unsigned number, stream;
};

// For a chunk of eight elements that begins at a multiple of eight: sixteen random bits for each, low half first, words in order.
__device__ __forceinline__ void random_words(unsigned (&words)[4], const Draw& draw, long long element) {
    const unsigned long long chunk = (unsigned long long)element / kHalves;
    words[0] = (unsigned)chunk;
    words[1] = (unsigned)(chunk >> 32);
    words[2] = draw.number;
    words[3] = draw.stream;
    philox4x32_10(words, (unsigned)draw.seed, (unsigned)(draw.seed >> 32));
}

__device__ __forceinline__ void random_halves(unsigned (&h)[kHalves], const Draw& draw, long long element) {
    unsigned words[4];
    random_words(words, draw, element);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        h[2 * i] = words[i] & 0xffffu;
        h[2 * i + 1] = words[i] >> 16;
    }
}

// f32 bits to bf16 bits, up with the probability of what is cut off. Infinities stay, NaN becomes quiet.
__device__ __forceinline__ unsigned bf16_by_chance(unsigned bits, unsigned half) {
    if ((bits & 0x7f800000u) == 0x7f800000u) return bits >> 16 | ((bits & 0x7fffffu) != 0u ? 0x40u : 0u);
    return (bits + half) >> 16;
}

// The same rounding, as the f32 that the bf16 stands for.
__device__ __forceinline__ float round_by_chance(float x, unsigned half) {
    return __uint_as_float(bf16_by_chance(__float_as_uint(x), half) << 16);
}

// Of one element, wherever it lies in its chunk.
__device__ __forceinline__ unsigned random_half(const Draw& draw, long long element) {
    unsigned half[kHalves], own = 0;
    const int at = (int)((unsigned long long)element % kHalves);
    random_halves(half, draw, element);
#pragma unroll
    for (int i = 0; i < kHalves; ++i) own = i == at ? half[i] : own;
    return own;
}

// Rounds two neighbours.
__device__ __forceinline__ void round_pair(float& x, float& y, const Draw& draw, long long element) {
    const int at = (int)((unsigned long long)element % kHalves);
    if (at % 2 == 0) {
        unsigned half[kHalves], low = 0, high = 0;
        random_halves(half, draw, element);
#pragma unroll
        for (int i = 0; i < kHalves; i += 2) {
            low = i == at ? half[i] : low;
            high = i == at ? half[i + 1] : high;
        }
        x = round_by_chance(x, low);
        y = round_by_chance(y, high);
    } else {
        x = round_by_chance(x, random_half(draw, element));
        y = round_by_chance(y, random_half(draw, element + 1));
    }
}

// Rounds eight neighbours; at once where they are a chunk of the arena.
__device__ __forceinline__ void round_chunk(float (&x)[kHalves], const Draw& draw, long long element) {
    unsigned half[kHalves] = {};
    if ((unsigned long long)element % kHalves == 0) {
        random_halves(half, draw, element);
    } else {
#pragma unroll 1
        for (int i = 0; i < kHalves; ++i) {
            const unsigned own = random_half(draw, element + i);
#pragma unroll
            for (int k = 0; k < kHalves; ++k) half[k] = k == i ? own : half[k];
        }
    }
#pragma unroll
    for (int i = 0; i < kHalves; ++i) x[i] = round_by_chance(x[i], half[i]);
}
