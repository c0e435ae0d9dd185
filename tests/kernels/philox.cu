// The device's random numbers as they are.

#include <philox.cuh>

// ---- entry points

extern "C" __global__ void philox_words(
    unsigned* words,           // (cases, 4)
    const unsigned* counters,  // (cases, 4)
    const unsigned* keys,      // (cases, 2)
    int cases) {
    const int at = threadIdx.x;
    if (at >= cases) return;
    unsigned counter[4];
    for (int i = 0; i < 4; ++i) counter[i] = counters[4 * at + i];
    philox4x32_10(counter, keys[2 * at], keys[2 * at + 1]);
    for (int i = 0; i < 4; ++i) words[4 * at + i] = counter[i];
}

// Of as many chunks of eight elements as there are threads, the first of which begins at element `first`.
extern "C" __global__ void philox_halves(
    unsigned* halves,  // (threads, 8)
    unsigned long long seed, unsigned number, unsigned stream, long long first) {
    unsigned own[kHalves];
    random_halves(own, {seed, number, stream}, first + (long long)threadIdx.x * kHalves);
    for (int i = 0; i < kHalves; ++i) halves[threadIdx.x * kHalves + i] = own[i];
}

extern "C" __global__ void philox_bf16(
    unsigned* rounded,       // (elements)
    const unsigned* bits,    // (elements)
    const unsigned* halves,  // (elements)
    int elements) {
    if ((int)threadIdx.x < elements) rounded[threadIdx.x] = bf16_by_chance(bits[threadIdx.x], halves[threadIdx.x]);
}
