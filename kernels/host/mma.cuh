// Twin of ptx/mma.cuh: the 32 lanes' fragments are gathered, multiplied in f32 and handed back. Products of bf16 are
// exact in f32; the order of the additions is not the hardware's.
#pragma once
#include <cuda_bf16.h>

struct SimtFragments {
    float* d;
    const unsigned *a, *b;
};

SIMT_UNSEEN inline float simt_bf16_half(unsigned packed, int high) {
    return __uint_as_float(high ? packed & 0xffff0000u : packed << 16);
}

SIMT_UNSEEN inline void simt_mma(void** lanes, unsigned) {
    float a[16][16], b[16][8], d[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        auto* own = static_cast<SimtFragments*>(lanes[lane]);
        const int g = lane / 4, q = 2 * (lane % 4);
        for (int i = 0; i < 2; ++i) {
            for (int half = 0; half < 4; ++half)
                a[g + 8 * (half % 2)][q + 8 * (half / 2) + i] = simt_bf16_half(own->a[half], i);
            for (int half = 0; half < 2; ++half) b[q + 8 * half + i][g] = simt_bf16_half(own->b[half], i);
            d[g][q + i] = own->d[i];
            d[g + 8][q + i] = own->d[2 + i];
        }
    }
    for (int m = 0; m < 16; ++m)
        for (int k = 0; k < 16; ++k)
            for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
    for (int lane = 0; lane < 32; ++lane) {
        auto* own = static_cast<SimtFragments*>(lanes[lane]);
        const int g = lane / 4, q = 2 * (lane % 4);
        for (int i = 0; i < 2; ++i) {
            own->d[i] = d[g][q + i];
            own->d[2 + i] = d[g + 8][q + i];
        }
    }
}

SIMT_UNSEEN inline void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], SIMT_PLACE) {
    SimtFragments payload{d, a, b};
    simt_collective(0xffffffffu, &payload, simt_mma, file, line);
}

inline unsigned pack_bf16x2(float low, float high) {
    return __float2bfloat16_rn(low).bits | unsigned(__float2bfloat16_rn(high).bits) << 16;
}
