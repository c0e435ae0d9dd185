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

// Sixteen random bits for each of eight elements that begin at a multiple of eight: low half first, words in order.
__device__ __forceinline__ void random_halves(unsigned (&h)[kHalves], const Draw& draw, long long element) {
    const unsigned long long chunk = (unsigned long long)element / kHalves;
    unsigned words[4] = {(unsigned)chunk, (unsigned)(chunk >> 32), draw.number, draw.stream};
    philox4x32_10(words, (unsigned)draw.seed, (unsigned)(draw.seed >> 32));
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
