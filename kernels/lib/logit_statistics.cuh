// What the head's product on Hopper keeps of a row's logits in place of them, for each tile of the vocabulary.
#pragma once
#include <cuda_runtime.h>

constexpr int kStatisticsColumns = 256;

// The largest logit, and the sum of exponentials relative to it.
struct alignas(8) LogitStatistics {
    float top, sum;
};

// Of two sets of logits together; -inf and 0 stand for none.
__device__ __forceinline__ LogitStatistics merge(LogitStatistics a, LogitStatistics b) {
    const float top = fmaxf(a.top, b.top);
    if (top == -INFINITY) return a;
    return {top, a.sum * expf(a.top - top) + b.sum * expf(b.top - top)};
}
