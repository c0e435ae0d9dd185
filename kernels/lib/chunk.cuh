// Eight contiguous elements as f32 in registers: 16-byte accesses where the chunk is whole and aligned, single elements
// otherwise, so that a ragged width needs no code of its own.
#pragma once
#include <ldst.cuh>
#include <mma.cuh>
#include <types.cuh>

constexpr int kChunk = 8;

__device__ __forceinline__ bool is_whole(const void* p, long long count) {
    return count >= kChunk && ((unsigned long long)p & 15) == 0;
}

__device__ __forceinline__ void load_whole(float (&x)[kChunk], const float* from) { load_f32x8(x, from); }

__device__ __forceinline__ void load_whole(float (&x)[kChunk], const bf16* from) {
    const Pack16 pack = load16(from);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        x[2 * i] = __uint_as_float(pack.word[i] << 16);
        x[2 * i + 1] = __uint_as_float(pack.word[i] & 0xffff0000u);
    }
}

__device__ __forceinline__ void store_whole(float* to, const float (&x)[kChunk]) { store_f32x8(to, x); }

__device__ __forceinline__ void store_whole(bf16* to, const float (&x)[kChunk]) {
    Pack16 pack;
#pragma unroll
    for (int i = 0; i < 4; ++i) pack.word[i] = pack_bf16x2(x[2 * i], x[2 * i + 1]);
    store16(to, pack);
}

// Reads min(count, 8) elements; the rest of `x` becomes 0.
template <class T>
__device__ __forceinline__ void load_chunk(float (&x)[kChunk], const T* from, long long count = kChunk) {
    if (is_whole(from, count)) return load_whole(x, from);
#pragma unroll
    for (int i = 0; i < kChunk; ++i) x[i] = i < count ? to_f32(from[i]) : 0.0f;
}

// Writes min(count, 8) elements.
template <class T>
__device__ __forceinline__ void store_chunk(T* to, const float (&x)[kChunk], long long count = kChunk) {
    if (is_whole(to, count)) return store_whole(to, x);
#pragma unroll
    for (int i = 0; i < kChunk; ++i)
        if (i < count) to[i] = from_f32<T>(x[i]);
}

// The same where the caller knows that every chunk is whole: no branch keeps several loads from being on their way at once.
template <bool kWhole, class T>
__device__ __forceinline__ void load_known(float (&x)[kChunk], const T* from, long long count) {
    if constexpr (kWhole) {
        load_whole(x, from);
    } else {
        load_chunk(x, from, count);
    }
}

template <bool kWhole, class T>
__device__ __forceinline__ void store_known(T* to, const float (&x)[kChunk], long long count) {
    if constexpr (kWhole) {
        store_whole(to, x);
    } else {
        store_chunk(to, x, count);
    }
}

__device__ __forceinline__ bool is_aligned(const void* p) { return ((unsigned long long)p & 15) == 0; }
