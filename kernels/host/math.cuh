// Twin of ptx/math.cuh.
#pragma once
#include <cuda_runtime.h>

inline float exp2_approx(float x) { return exp2f(x); }

// A polynomial after x = n ln 2 + r (Cephes), because the compiler turns it into vector code and the library's function
// not; as a tree, because the chain of a nested form is longer than what a processor can look ahead. Results below 2^-126
// become 0, results above 2^127.5 infinite.
inline float exp_f32(float x) {
    x = x < -88.0f ? -88.0f : x;
    x = x > 89.0f ? 89.0f : x;
    const float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
    const float n = __builtin_fmaf(x, 1.44269504f, kRound) - kRound;
    const float r = __builtin_fmaf(n, 2.12194440e-4f, __builtin_fmaf(n, -0.693359375f, x)), square = r * r;
    const float low = __builtin_fmaf(1.6666665459e-1f, r, 5.0000001201e-1f);
    const float middle = __builtin_fmaf(8.3334519073e-3f, r, 4.1665795894e-2f);
    const float high = __builtin_fmaf(1.9875691500e-4f, r, 1.3981999507e-3f);
    const float p = __builtin_fmaf(__builtin_fmaf(high, square, middle), square, low);
    return __builtin_fmaf(p, square, r + 1.0f) * __uint_as_float(unsigned((int)n + 127) << 23);
}
