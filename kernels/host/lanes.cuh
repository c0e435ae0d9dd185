// Twin of ptx/lanes.cuh on the compiler's vectors: the same operations in the same order.
#pragma once
#include <cuda_runtime.h>

constexpr int kLanes = 8;

typedef float SimtFloat8 __attribute__((vector_size(32)));
typedef int SimtInt8 __attribute__((vector_size(32)));
// The same bytes at any float's address.
typedef float SimtFloat8Unaligned __attribute__((vector_size(32), aligned(4), may_alias));

struct Lanes {
    SimtFloat8 v;
};

inline Lanes all_lanes(float x) { return {SimtFloat8{x, x, x, x, x, x, x, x}}; }
inline Lanes load_lanes_unaligned(const float* from) {
    return {*reinterpret_cast<const SimtFloat8Unaligned*>(from)};
}
inline Lanes load_lanes(const float* from, SIMT_PLACE) {
    if (SIMT_STRICT) simt_access(from, 16, 16, 0, file, line);
    return load_lanes_unaligned(from);
}
inline void store_lanes_unaligned(float* to, Lanes x) { *reinterpret_cast<SimtFloat8Unaligned*>(to) = x.v; }

inline Lanes operator+(Lanes a, Lanes b) { return {a.v + b.v}; }
inline Lanes operator-(Lanes a, Lanes b) { return {a.v - b.v}; }
inline Lanes operator*(Lanes a, Lanes b) { return {a.v * b.v}; }

// 2^x = 2^n * 2^f with n the nearest integer: a polynomial for 2^f (relative error below 2^-22), and n added to the
// exponent. 0 from -127 down; the argument is cut at 127.5.
inline Lanes exp2_lanes(Lanes x) {
    const SimtFloat8 low = all_lanes(-127.0f).v, high = all_lanes(127.5f).v;
    // Adding 1.5 * 2^23 rounds to an integer.
    const SimtFloat8 round = all_lanes(12582912.0f).v;
    SimtFloat8 t = x.v < low ? low : x.v;
    t = t > high ? high : t;
    const SimtFloat8 n = (t + round) - round;
    const SimtFloat8 f = t - n;
    SimtFloat8 y = f * 1.5353362e-4f + 1.3398874e-3f;
    y = y * f + 9.6184370e-3f;
    y = y * f + 5.5503324e-2f;
    y = y * f + 2.4022648e-1f;
    y = y * f + 6.9314720e-1f;
    y = y * f + 1.0f;
    SimtInt8 bits;
    memcpy(&bits, &y, sizeof bits);
    bits += __builtin_convertvector(n, SimtInt8) << 23;
    memcpy(&y, &bits, sizeof bits);
    return {y};
}

inline float max_lane(Lanes x) {
    const SimtFloat8 four = __builtin_shuffle(x.v, SimtInt8{4, 5, 6, 7, 0, 1, 2, 3});
    const SimtFloat8 a = x.v > four ? x.v : four;
    const SimtFloat8 two = __builtin_shuffle(a, SimtInt8{2, 3, 0, 1, 4, 5, 6, 7});
    const SimtFloat8 b = a > two ? a : two;
    return b[0] > b[1] ? b[0] : b[1];
}

inline float sum_lanes(Lanes x) {
    const SimtFloat8 a = x.v + __builtin_shuffle(x.v, SimtInt8{4, 5, 6, 7, 0, 1, 2, 3});
    const SimtFloat8 b = a + __builtin_shuffle(a, SimtInt8{2, 3, 0, 1, 4, 5, 6, 7});
    return b[0] + b[1];
}

// The vector unit adds neighbours of two vectors at once, so four rows fold into one step by step.
inline Lanes sum_each(const Lanes (&x)[kLanes]) {
    SimtFloat8 a[4], b[2];
    // Lanes l and l + 4 of rows r and r + 4, side by side.
    for (int r = 0; r < 4; ++r) {
        const SimtFloat8 p = x[r].v, q = x[r + 4].v;
        a[r] = __builtin_shuffle(p, q, SimtInt8{0, 1, 2, 3, 8, 9, 10, 11}) +
               __builtin_shuffle(p, q, SimtInt8{4, 5, 6, 7, 12, 13, 14, 15});
    }
    // Lanes l and l + 2.
    for (int r = 0; r < 2; ++r) {
        const SimtFloat8 p = a[2 * r], q = a[2 * r + 1];
        b[r] = __builtin_shuffle(p, q, SimtInt8{0, 1, 8, 9, 4, 5, 12, 13}) +
               __builtin_shuffle(p, q, SimtInt8{2, 3, 10, 11, 6, 7, 14, 15});
    }
    return {__builtin_shuffle(b[0], b[1], SimtInt8{0, 2, 8, 10, 4, 6, 12, 14}) +
            __builtin_shuffle(b[0], b[1], SimtInt8{1, 3, 9, 11, 5, 7, 13, 15})};
}
