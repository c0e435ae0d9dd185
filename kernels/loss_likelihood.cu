// Losses of one sequence: its likelihood, alone or beside a preference, or its log-ratio by a label. One thread per group, on one of its slots.
// Roof: latency.
//
// To add such a loss, add a row to `table` here and one to src/loss/likelihood.rs.

#include <loss.cuh>

// ---- device code

enum Parameter { kP0, kP1, kParameters };

// Rows of the table; the launchers have them by these names.
enum Function { kSum, kMean, kByScore, kLogSigmoid, kWeighted, kUnlikelihood, kOnline, kApoZero };

// Loss and slope by the sum of log-probabilities; for kUnlikelihood by the sum of log(1 - exp(logp)).
__device__ Value table(int function, const double* sums, const double* p, double score, double second) {
    const double a = sums[kLogps], rows = fmax(sums[kRows], 1.0);
    switch (function) {
        case kSum: return {-a, -1.0};
        case kMean: return {-a / rows, -1.0 / rows};
        case kByScore: return {-a / fabs(second), -1.0 / fabs(second)};
        case kLogSigmoid: return {softplus(-p[kP0] * a), -p[kP0] * sigmoid(-p[kP0] * a)};
        case kWeighted: {
            const double weight = fmin(exp(score / p[kP0]), p[kP1]) / rows;
            return {-weight * a, -weight};
        }
        case kUnlikelihood: return {-sums[kComplement] / rows, -1.0 / rows};
        case kOnline: return {sums[kRho] * a, sums[kRho]};  // the log-ratio is a constant
        default: {
            // kApoZero: anchored at the reference, by a label
            const double u = p[kP0] * sums[kRho], slope = p[kP0] * sigmoid_slope(u);
            return score > 0.0 ? Value{sigmoid(-u), -slope} : Value{sigmoid(u), slope};
        }
    }
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kHeadThreads) loss_likelihood(
    double* slopes,            // (slots, 3) added to, see Slope
    double* losses,            // (groups) each group's loss
    const double* sums,        // (sequences, 10) see Sum
    const int* slot_sequence,  // (slots)
    const int* group_slots,    // (groups + 1)
    const double* values,      // (slots, 2)
    const double* parameters,  // (8) see Parameter
    int function, int place, double scale, int first_group, int groups) {  // place: the slot in its group, -1 for all
    const int group = first_group + blockIdx.x * kHeadThreads + threadIdx.x;
    if (group >= first_group + groups) return;
    const Groups all = {sums, slot_sequence, group_slots, values};
    const int start = all.first(group), begin = place < 0 ? 0 : place, end = place < 0 ? all.size(group) : place + 1;
    double loss = 0.0;
    for (int slot = start + begin; slot < start + end; ++slot) {
        const Value at = table(function, all.of(slot), parameters, all.value(slot), all.value(slot, 1));
        loss += at.loss;
        slopes[slot * kSlopes + (function == kUnlikelihood ? kComplementSlope : kLogpsSlope)] += scale * at.slope;
    }
    losses[group] = loss;
}
