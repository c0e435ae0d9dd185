// Blocks of 256 moments in eight bits an element and one exponent: the format that the head of adamw_8bit.cu describes.
#pragma once
#include <chunk.cuh>
#include <cta.cuh>
#include <philox.cuh>
#include <types.cuh>

constexpr int kBlock = 256;
constexpr int kCut = 20;  // bits of an f32 below a code's
constexpr int kLowestM = 120, kLowestV = 248;
static_assert(kBlock == kWarpThreads * kChunk, "a warp has a block");

// Eight codes of a lane, as they lie.
struct Codes {
    unsigned char code[kChunk];

    __device__ __forceinline__ void load(const unsigned char* from, long long count) {
#pragma unroll
        for (int k = 0; k < kChunk; ++k) code[k] = 0;
        if (is_pair(from, count)) {
            const Pair pair = *reinterpret_cast<const Pair*>(from);
#pragma unroll
            for (int k = 0; k < kChunk; ++k) code[k] = (unsigned char)(pair.word[k / 4] >> 8 * (k % 4));
            return;
        }
#pragma unroll
        for (int k = 0; k < kChunk; ++k)
            if (k < count) code[k] = from[k];
    }

    __device__ __forceinline__ void store(unsigned char* to, long long count) const {
        if (is_pair(to, count)) {
            Pair pair = {};
#pragma unroll
            for (int k = 0; k < kChunk; ++k) pair.word[k / 4] |= (unsigned)code[k] << 8 * (k % 4);
            *reinterpret_cast<Pair*>(to) = pair;
            return;
        }
#pragma unroll
        for (int k = 0; k < kChunk; ++k)
            if (k < count) to[k] = code[k];
    }

private:
    struct alignas(8) Pair {
        unsigned word[2];
    };
    static __device__ __forceinline__ bool is_pair(const void* p, long long count) {
        return count >= kChunk && ((unsigned long long)p & 7) == 0;
    }
};

__device__ __forceinline__ float decoded(int code, int base) { return __uint_as_float((unsigned)max(code + base, 0) << kCut); }

__device__ __forceinline__ void decode_m(float (&x)[kChunk], const Codes& codes, int exponent) {
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
        const int code = codes.code[k] & 127;
        const float size = code > 0 ? decoded(code, 8 * exponent - kLowestM) : 0.0f;
        x[k] = codes.code[k] >> 7 ? -size : size;
    }
}

__device__ __forceinline__ void decode_v(float (&x)[kChunk], const Codes& codes, int exponent) {
#pragma unroll
    for (int k = 0; k < kChunk; ++k) x[k] = codes.code[k] > 0 ? decoded(codes.code[k], 8 * exponent - kLowestV) : 0.0f;
}

__device__ __forceinline__ int nearest(unsigned bits) {
    return (int)((bits + (1u << (kCut - 1)) - 1u + (bits >> kCut & 1u)) >> kCut);
}

__device__ __forceinline__ int by_chance(unsigned bits, unsigned half) { return (int)((bits + (half << 4 | 8u)) >> kCut); }

// The largest of the block, as an exponent. q has 11 bits, which f32 holds.
__device__ __forceinline__ int exponent_of(const int (&q)[kChunk]) {
    int most = q[0];
#pragma unroll
    for (int k = 1; k < kChunk; ++k) most = max(most, q[k]);
    return (int)warp_max((float)most) >> 3;
}

// By the whole warp; elements that are not there are 0.
__device__ __forceinline__ int encode_m(Codes& codes, const float (&x)[kChunk], const unsigned (&half)[kHalves], bool random) {
    int q[kChunk];
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
        const unsigned bits = __float_as_uint(x[k]) & 0x7fffffffu;
        q[k] = random ? by_chance(bits, half[k]) : nearest(bits);
    }
    const int exponent = exponent_of(q);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
        const int code = q[k] - (8 * exponent - kLowestM);
        codes.code[k] = code > 0 ? (unsigned char)(code | (x[k] < 0.0f ? 128 : 0)) : (unsigned char)0;
    }
    return exponent;
}

__device__ __forceinline__ int encode_v(Codes& codes, const float (&x)[kChunk], const unsigned (&half)[kHalves]) {
    int q[kChunk];
#pragma unroll
    for (int k = 0; k < kChunk; ++k) q[k] = by_chance(__float_as_uint(x[k]), half[k]);
    const int exponent = exponent_of(q);
#pragma unroll
    for (int k = 0; k < kChunk; ++k)
        codes.code[k] = x[k] > 0.0f ? (unsigned char)max(q[k] - (8 * exponent - kLowestV), 1) : (unsigned char)0;
    return exponent;
}
