// Exponentials by their precision.
#pragma once
#include <cuda_runtime.h>

// 2^x, relative error 2^-22; 2^-inf = 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// e^x, relative error 2^-22; infinite or 0 where the result leaves the range of f32.
__device__ __forceinline__ float exp_f32(float x) { return expf(x); }
