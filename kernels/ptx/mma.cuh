// Tensor-core products of one warp (sm_80).
#pragma once
#include <cuda_runtime.h>

// d(16x8) += a(16x16, row) * b(16x8, col); bf16 operands, f32 accumulators.
// lane: g = lane / 4, q = lane % 4. a[0] = (g, 2q), a[1] = (g+8, 2q), a[2] = (g, 2q+8), a[3] = (g+8, 2q+8), each with
// the next column in its high half. b[0] = (k 2q, n g), b[1] = (k 2q+8, n g). d[0,1] = (g, 2q), d[2,3] = (g+8, 2q).
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two floats as bf16, `low` in the low half.
__device__ __forceinline__ unsigned pack_bf16x2(float low, float high) {
    unsigned packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}
