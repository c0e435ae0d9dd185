// Losses that look at the log-ratios of a chosen and a rejected sequence one by one:
//     loss = L(x, y),   x = rho_chosen, y = rho_rejected
// One thread per pair. Roof: latency.
//
// To add such a loss, add a row to `table` here and one to src/loss/separate.rs.

#include <loss.cuh>

// ---- device code

enum Parameter { kBeta, kDelta, kParameters };

// Rows of the table; the launchers have them by these names.
enum Function { kSppoHard, kSppoSoft, kSppoSingle, kGpo, kNca, kBco, kApoZero, kApoDown };

struct Value2 {
    double loss, slope_x, slope_y;
};

__device__ __forceinline__ Value2 squares(double dx, double dy, double share) {
    return {share * (dx * dx + dy * dy), 2.0 * share * dx, 2.0 * share * dy};
}

// `chosen` and `rejected` are the values that came with the two sequences.
__device__ Value2 table(int function, double x, double y, const double* p, double chosen, double rejected) {
    const double beta = p[kBeta], u = beta * x, v = beta * y;
    switch (function) {
        case kSppoHard: return squares(x - 0.5 / beta, y + 0.5 / beta, 1.0);
        case kSppoSoft: return squares(x - (chosen - 0.5) / beta, y - (rejected - 0.5) / beta, 0.5);
        case kSppoSingle: return squares(x - (chosen - 0.5) / beta, y + (chosen - 0.5) / beta, 0.5);
        case kGpo: return squares(x - chosen / beta, y - rejected / beta, 0.5);
        case kNca:
            return {softplus(-u) + softplus(u) / 2.0 + softplus(v) / 2.0, beta * (sigmoid(u) / 2.0 - sigmoid(-u)),
                    beta * (sigmoid(v) / 2.0)};
        case kBco: {
            const double delta = p[kDelta];
            return {softplus(-(u - delta)) + softplus(v - delta), -beta * sigmoid(delta - u), beta * sigmoid(v - delta)};
        }
        case kApoZero: return {sigmoid(-u) + sigmoid(v), -beta * sigmoid_slope(u), beta * sigmoid_slope(v)};
        default: {
            // kApoDown
            const double margin = beta * (x - y), slope = sigmoid_slope(margin);
            return {sigmoid(u) + sigmoid(-margin), beta * (sigmoid_slope(u) - slope), beta * slope};
        }
    }
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kHeadThreads) loss_separate(
    double* slopes,            // (slots, 3) added to, see Slope
    double* losses,            // (groups) each pair's loss
    const double* sums,        // (sequences, 10) see Sum
    const int* slot_sequence,  // (slots)
    const int* group_slots,    // (groups + 1)
    const double* values,      // (slots, 2)
    const double* parameters,  // (8) see Parameter
    int function, double scale, int first_group, int groups) {
    const int group = first_group + blockIdx.x * kHeadThreads + threadIdx.x;
    if (group >= first_group + groups) return;
    const Groups all = {sums, slot_sequence, group_slots, values};
    const int chosen = all.first(group), rejected = chosen + 1;
    const Value2 at = table(function, all.of(chosen)[kRho], all.of(rejected)[kRho], parameters, all.value(chosen),
                            all.value(rejected));
    losses[group] = at.loss;
    slopes[chosen * kSlopes + kLogpsSlope] += scale * at.slope_x;
    slopes[rejected * kSlopes + kLogpsSlope] += scale * at.slope_y;
}
