// The logistic function.
#pragma once
#include <cuda_runtime.h>
#include <math.cuh>

// exp overflows to infinity for x < -88, and the quotient is then the right 0.
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exp_f32(-x)); }
