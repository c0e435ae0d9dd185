// Losses of one margin between a chosen and a rejected sequence:
//     loss = weight * phi(u),   u = beta * (x_chosen - x_rejected) - gamma
// where x is a sequence's log-ratio to the reference (or its log-probability), perhaps per token, perhaps through a map,
// perhaps with its token divergence added. One thread per pair. Roof: latency.
//
// To add a loss of one margin, add a row to `phi` here and one to src/loss/difference.rs.

#include <loss.cuh>

// ---- device code

// What the parameters hold: the margin's own, then those of phi.
enum Parameter { kBeta, kGamma, kMapAlpha, kDivergenceFactor, kWeightPenalty, kDivergenceWeightPenalty, kP0, kP1, kParameters };

// Rows of the table; the launchers have them by these names.
enum Phi { kSigmoid, kSmoothed, kRobust, kHinge, kSquare, kExo, kDiscopop, kSoftLabel, kWinRates, kVisits, kSpa, kUpo, kScir };

// How x is made of a sequence's sums; the first four are the choices of f_divergence_type.
enum Map { kIdentity, kJensenShannon, kForwardKl, kAlphaDivergence, kAlphaReward, kLogOdds };

enum Flag { kNoReference = 1, kPerToken = 2, kPolicyWeighted = 4, kWithDivergence = 8, kChosenDivergenceFixed = 16 };

// The table: phi and its slope at u. `chosen` and `rejected` are the values that came with the two sequences.
__device__ Value phi(int function, double u, const double* p, double chosen, double rejected) {
    const double a = p[kP0], b = p[kP1];
    switch (function) {
        case kSigmoid: return {softplus(-u), -sigmoid(-u)};
        case kSmoothed: return cross_entropy(u, 1.0 - a);
        case kRobust: {
            const double scale = 1.0 / (1.0 - 2.0 * a);
            return {scale * ((1.0 - a) * softplus(-u) - a * softplus(u)),
                    -scale * ((1.0 - a) * sigmoid(-u) + a * sigmoid(u))};
        }
        case kHinge: return {fmax(0.0, a - u), u < a ? -1.0 : 0.0};
        case kSquare: return {(u - a) * (u - a), 2.0 * (u - a)};
        case kExo: {
            const double q = sigmoid(u), opposite = sigmoid(-u);
            return {q * (-softplus(-u) - log1p(-a)) + opposite * (-softplus(u) - log(a)),
                    sigmoid_slope(u) * (u - (log1p(-a) - log(a)))};
        }
        case kDiscopop: {
            // exp(-u) alone overflows; with log sigmoid(u / a) the exponent is at most 0 for a <= 1.
            const double x = u / a, exponential = exp(-u - softplus(-x));
            return {softplus(-u) * sigmoid(-x) + exponential,
                    -sigmoid(-u) * sigmoid(-x) - exponential * (1.0 - sigmoid(-x) / a) - softplus(-u) * sigmoid_slope(x) / a};
        }
        case kSoftLabel: return cross_entropy(u, chosen);
        case kWinRates: return cross_entropy(u, sigmoid(chosen - rejected));
        case kVisits: return cross_entropy(u, 1.0 - fmin(1.0 - 1.0 / (1.0 + rejected / fmax(1.0, chosen)), 0.5));
        case kSpa: return cross_entropy(u, chosen <= b ? 1.0 - a : 1.0);
        case kUpo: return cross_entropy(u, 1.0 - 1.0 / (1.0 + chosen));
        default: {
            // kScir: agree with a judge's logit on a shared verdict.
            const double verdict = sigmoid(u) + sigmoid(chosen) > 1.0 ? 1.0 : 0.0;
            const Value own = cross_entropy(u, verdict);
            return {0.5 * (own.loss + cross_entropy(chosen, verdict).loss), 0.5 * own.slope};
        }
    }
}

__device__ Value mapped(int map, double x, double alpha) {
    constexpr double kLargestExponent = 80.0;
    switch (map) {
        case kJensenShannon: return {-softplus(-x), sigmoid(-x)};
        case kForwardKl: return {-exp(fmin(-x, kLargestExponent)), -x < kLargestExponent ? exp(-x) : 0.0};
        case kAlphaDivergence: {
            const double exponent = (alpha - 1.0) * x, e = exp(fmin(exponent, kLargestExponent));
            return {e / (alpha - 1.0), exponent < kLargestExponent ? e : 0.0};
        }
        case kAlphaReward: return {-expm1(-alpha * x) / alpha, exp(-alpha * x)};
        case kLogOdds: {
            const Value complement = log_complement(x);
            return {x - complement.loss, 1.0 - complement.slope};
        }
        default: return {x, 1.0};
    }
}

struct Side {
    double x, slope;  // x, and its slope in the sum of log-probabilities
};

__device__ Side side(const double* sums, int map, int flags, const double* p) {
    const double norm = flags & kPerToken ? fmax(sums[kRows], 1.0) : 1.0;
    double x = sums[flags & kNoReference ? kLogps : kRho] / norm;
    if (flags & kWithDivergence) x += p[kDivergenceFactor] * sums[kDivergence];
    const Value value = mapped(map, x, p[kMapAlpha]);
    return {value.loss, value.slope / norm};
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kHeadThreads) loss_difference(
    double* slopes,            // (slots, 3) added to, see Slope
    double* losses,            // (groups) each pair's loss
    const double* sums,        // (sequences, 10) see Sum
    const int* slot_sequence,  // (slots)
    const int* group_slots,    // (groups + 1)
    const double* values,      // (slots, 2)
    const double* parameters,  // (8) see Parameter
    int function, int map, int flags, double scale, int first_group, int groups) {
    const int group = first_group + blockIdx.x * kHeadThreads + threadIdx.x;
    if (group >= first_group + groups) return;
    const Groups all = {sums, slot_sequence, group_slots, values};
    const int chosen = all.first(group), rejected = chosen + 1;
    const double *w = all.of(chosen), *l = all.of(rejected), *p = parameters;
    const Side x = side(w, map, flags, p), y = side(l, map, flags, p);
    const double u = p[kBeta] * (x.x - y.x) - p[kGamma];
    const Value at = phi(function, u, p, all.value(chosen), all.value(rejected));
    double weight = 1.0;
    // WPO, arXiv 2406.11827: how likely the policy itself is to say this, taken as a constant.
    if (flags & kPolicyWeighted)
        weight = exp(w[kSurprise] / fmax(w[kRows], 1.0) + l[kSurprise] / fmax(l[kRows], 1.0));
    losses[group] = weight * at.loss + p[kWeightPenalty] * (w[kWeights] + l[kWeights]) +
                    p[kDivergenceWeightPenalty] * (w[kDivergenceWeights] + l[kDivergenceWeights]);
    const double slope = scale * p[kBeta] * at.slope * weight;
    slopes[chosen * kSlopes + kLogpsSlope] += slope * x.slope;
    slopes[rejected * kSlopes + kLogpsSlope] -= slope * y.slope;
    if (flags & kWithDivergence) {
        const double factor = slope * p[kDivergenceFactor];
        if (!(flags & kChosenDivergenceFixed)) slopes[chosen * kSlopes + kDivergenceSlope] += factor * x.slope;
        slopes[rejected * kSlopes + kDivergenceSlope] -= factor * y.slope;
    }
}
