// GELU in its tanh form: gelu(x) = x/2 (1 + tanh(u)) = x sig(2u),  u = sqrt(2/pi) (x + 0.044715 x^3).
#pragma once
#include <math.cuh>
#include <types.cuh>

constexpr float kGeluSlope = 1.5957691216057308f;  // 2 sqrt(2/pi)
constexpr float kGeluCubic = 0.044715f;

// sig(2u): exp overflows to infinity far below 0, and the quotient is then the right 0.
__device__ __forceinline__ float gelu_gate(float x) {
    return 1.0f / (1.0f + exp_f32(-kGeluSlope * (x + kGeluCubic * x * x * x)));
}

__device__ __forceinline__ float gelu(float x) { return x * gelu_gate(x); }

// d gelu / dx for s = gelu_gate(x). Where s is exactly 0 or 1 the second term is 0 and x^3 cannot make it more.
__device__ __forceinline__ float gelu_slope(float x, float s) {
    const float rest = s * (1.0f - s);
    return rest == 0.0f ? s : s + x * rest * kGeluSlope * (1.0f + 3.0f * kGeluCubic * x * x);
}
