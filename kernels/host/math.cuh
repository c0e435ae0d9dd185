// Twin of ptx/math.cuh, with the exact functions.
#pragma once
#include <cuda_runtime.h>

inline float exp2_approx(float x) { return exp2f(x); }
