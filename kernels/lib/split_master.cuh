// The f32 master of a bf16 weight, kept as the weight and 16 more bits:
//     high = (bits + 0x8000) >> 16    the weight: to nearest, ties away from zero
//     low  = bits & 0xffff
//     bits = ((high - (low >> 15)) << 16) | low    exact for every finite master
// Ties cannot go to even: the rest would then have 65537 values. Of what is not finite the low bits are 0. `Float::split` in
// src/device/buffer.rs is the same for the host. f32 weights are their own master and have no low bits.
#pragma once
#include <chunk.cuh>

__device__ __forceinline__ bool is_special(unsigned bits) { return (bits & 0x7f800000u) == 0x7f800000u; }

// The weight's bits, in the low half of the word.
__device__ __forceinline__ unsigned high_bits(unsigned bits) {
    if (is_special(bits)) return bits >> 16 | ((bits & 0x7fffffu) != 0u ? 0x40u : 0u);
    return (bits + 0x8000u) >> 16;
}

__device__ __forceinline__ unsigned low_bits(unsigned bits) { return is_special(bits) ? 0u : bits & 0xffffu; }

__device__ __forceinline__ float join_master(unsigned high, unsigned low) {
    return __uint_as_float((high - (low >> 15)) << 16 | low);
}

// Reads min(count, 8) masters; the rest of `x` becomes 0.
__device__ __forceinline__ void load_master(float (&x)[kChunk], const float* weights, const unsigned short*, long long count) {
    load_chunk(x, weights, count);
}

__device__ __forceinline__ void load_master(float (&x)[kChunk], const bf16* weights, const unsigned short* low,
                                            long long count) {
    if (is_whole(weights, count) && is_whole(low, count)) {
        const Pack16 high = load16(weights), rest = load16(low);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[2 * i] = join_master(high.word[i] & 0xffffu, rest.word[i] & 0xffffu);
            x[2 * i + 1] = join_master(high.word[i] >> 16, rest.word[i] >> 16);
        }
        return;
    }
    const auto* high = reinterpret_cast<const unsigned short*>(weights);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) x[i] = i < count ? join_master(high[i], low[i]) : 0.0f;
}

// Writes min(count, 8) weights without their low bits.
__device__ __forceinline__ void store_weights(float* weights, const float (&x)[kChunk], long long count) {
    store_chunk(weights, x, count);
}

__device__ __forceinline__ void store_weights(bf16* weights, const float (&x)[kChunk], long long count) {
    if (is_whole(weights, count)) {
        Pack16 high;
#pragma unroll
        for (int i = 0; i < 4; ++i)
            high.word[i] = high_bits(__float_as_uint(x[2 * i])) | high_bits(__float_as_uint(x[2 * i + 1])) << 16;
        return store16(weights, high);
    }
    auto* high = reinterpret_cast<unsigned short*>(weights);
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
        if (i < count) high[i] = (unsigned short)high_bits(__float_as_uint(x[i]));
}

// Writes min(count, 8) masters.
__device__ __forceinline__ void store_master(float* weights, unsigned short*, const float (&x)[kChunk], long long count) {
    store_chunk(weights, x, count);
}

__device__ __forceinline__ void store_master(bf16* weights, unsigned short* low, const float (&x)[kChunk], long long count) {
    store_weights(weights, x, count);
    if (is_whole(low, count)) {
        Pack16 rest;
#pragma unroll
        for (int i = 0; i < 4; ++i)
            rest.word[i] = low_bits(__float_as_uint(x[2 * i])) | low_bits(__float_as_uint(x[2 * i + 1])) << 16;
        return store16(low, rest);
    }
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
        if (i < count) low[i] = (unsigned short)low_bits(__float_as_uint(x[i]));
}
