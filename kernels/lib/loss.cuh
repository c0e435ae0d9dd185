// What the heads of all losses share: sums of a sequence's rows, groups of sequences, and functions that stay exact in
// saturated tails. Everything is f64: a head is O(sequences), and a margin is a small difference of large sums.
#pragma once
#include <cta.cuh>
#include <types.cuh>

// Columns of `sums` (sequences, kSums).
enum Sum {
    kLogps,              // sum of weight * logp
    kRho,                // sum of weight * (logp - ref_logp); as kLogps without a reference
    kRows,               // rows
    kDivergence,         // sum of divergence weight * KL(reference || policy)
    kComplement,         // sum of log(1 - exp(logp))
    kSurprise,           // sum of logp - log(sum of squared probabilities)
    kWeights,            // sum of the weights
    kDivergenceWeights,  // sum of the divergence weights
    kEntropy,            // sum of the entropies
    kTop1,               // rows whose target no other token is more likely than
    kSums
};

// Columns of `slopes` (slots, kSlopes): the step's loss by the columns kLogps (or kRho), kDivergence and kComplement.
enum Slope { kLogpsSlope, kDivergenceSlope, kComplementSlope, kSlopes };

// Columns of `values` (slots, kValues): numbers that came with the data.
constexpr int kValues = 2;

constexpr int kHeadThreads = 128;

// The groups of a step: pairs (chosen first, perhaps a third sequence), lists, single sequences.
struct Groups {
    const double* sums;          // (sequences, kSums)
    const int* slot_sequence;    // (slots)
    const int* group_slots;      // (groups + 1)
    const double* values;        // (slots, kValues)

    __device__ __forceinline__ int first(int group) const { return group_slots[group]; }
    __device__ __forceinline__ int size(int group) const { return group_slots[group + 1] - group_slots[group]; }
    __device__ __forceinline__ const double* of(int slot) const { return sums + (long long)slot_sequence[slot] * kSums; }
    __device__ __forceinline__ double value(int slot, int column = 0) const { return values[slot * kValues + column]; }
};

// A function's value and its slope there.
struct Value {
    double loss, slope;
};

// log(1 + exp(x))
__device__ __forceinline__ double softplus(double x) { return fmax(x, 0.0) + log1p(exp(-fabs(x))); }

__device__ __forceinline__ double sigmoid(double x) {
    const double e = exp(-fabs(x));
    return (x >= 0.0 ? 1.0 : e) / (1.0 + e);
}

// sigmoid(x) * sigmoid(-x): s * (1 - s) loses its digits at x = 30 already.
__device__ __forceinline__ double sigmoid_slope(double x) {
    const double e = exp(-fabs(x));
    return e / ((1.0 + e) * (1.0 + e));
}

// Against an outcome that happens with probability p: p log-losses at u, 1 - p at -u.
__device__ __forceinline__ Value cross_entropy(double u, double p) {
    return {p * softplus(-u) + (1.0 - p) * softplus(u), (1.0 - p) * sigmoid(u) - p * sigmoid(-u)};
}

// Log-probabilities this close to 0 count as this: log(1 - exp(x)) has a pole there. Slopes are those at this point, so
// that a token that is all but certain still moves.
constexpr double kNearlyCertain = -1e-6;

// log(1 - exp(x)) for x < 0, and its slope.
__device__ __forceinline__ Value log_complement(double x) {
    x = fmin(x, kNearlyCertain);
    return {x < -0.6931471805599453 ? log1p(-exp(x)) : log(-expm1(x)), -1.0 / expm1(-x)};
}
