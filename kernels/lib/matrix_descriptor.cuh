// Descriptors of operands of wgmma in shared memory (PTX ISA, matrix descriptors; sm_90a): panels of 64 elements by so many
// rows, 128 bytes a row, the 128-byte swizzle, each panel at a multiple of 1024 bytes.
#pragma once
#include <cuda_runtime.h>

// The reduction is the contiguous index: rows of 64 along k, eight rows a pattern. For the next 16 of k add 2; for the
// next 64 rows 512.
__device__ __forceinline__ unsigned long long matrix_along_k(unsigned shared) {
    return 0x4000004000010000ull | (shared & 0x3ffff) >> 4;
}

// The other index is contiguous: panels of 64 of it by `rows` of k. For the next 16 of k add 128.
__device__ __forceinline__ unsigned long long matrix_across_k(unsigned shared, int rows) {
    return 0x4000004000000000ull | (unsigned long long)(rows * 128 >> 4) << 16 | (shared & 0x3ffff) >> 4;
}
