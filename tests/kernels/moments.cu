// Moments in eight bits as the kernels cut and read them.

#include <moments_8bit.cuh>

// ---- entry points

// One block of 256 elements.
extern "C" __global__ void moments_encode(
    unsigned char* m_codes,  // (256)
    unsigned char* v_codes,  // (256)
    int* exponents,          // (2) of m and of v
    const float* m,          // (256)
    const float* v,          // (256)
    unsigned long long seed, unsigned number, int random_m) {
    const int i = threadIdx.x * kChunk;
    float x[kChunk];
    unsigned half[kHalves];
    Codes codes;
    random_halves(half, {seed, number, kMoments}, i);
    load_chunk(x, m + i);
    exponents[0] = encode_m(codes, x, half, random_m != 0);
    codes.store(m_codes + i, kChunk);
    load_chunk(x, v + i);
    exponents[1] = encode_v(codes, x, half);
    codes.store(v_codes + i, kChunk);
}

extern "C" __global__ void moments_decode(
    float* m,                      // (256)
    float* v,                      // (256)
    const unsigned char* m_codes,  // (256)
    const unsigned char* v_codes,  // (256)
    int m_exponent, int v_exponent) {
    const int i = threadIdx.x * kChunk;
    float x[kChunk];
    Codes codes;
    codes.load(m_codes + i, kChunk);
    decode_m(x, codes, m_exponent);
    store_chunk(m + i, x);
    codes.load(v_codes + i, kChunk);
    decode_v(x, codes, v_exponent);
    store_chunk(v + i, x);
}
