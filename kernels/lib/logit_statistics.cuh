// What the head's product on Hopper keeps of a row's logits in place of them, for each tile of the vocabulary.
#pragma once
#include <cuda_runtime.h>

constexpr int kStatisticsColumns = 256;

// With t = z - (largest logit): the largest logit, the sum of exp(t), and that of t exp(t), which is never positive. The
// entropy of the distribution is log(sum) - weighted / sum.
struct LogitStatistics {
    float top, sum, weighted;
};

// The same relative to another top, no lower than its own.
__device__ __forceinline__ LogitStatistics relative_to(LogitStatistics a, float top) {
    const float lower = a.top - top, factor = expf(lower);
    return {top, a.sum * factor, factor * (a.weighted + lower * a.sum)};
}

// Of two sets of logits together; a top of -inf stands for none.
__device__ __forceinline__ LogitStatistics merge(LogitStatistics a, LogitStatistics b) {
    if (a.top == -INFINITY) return b;
    if (b.top == -INFINITY) return a;
    const float top = fmaxf(a.top, b.top);
    a = relative_to(a, top);
    b = relative_to(b, top);
    return {top, a.sum + b.sum, a.weighted + b.weighted};
}
