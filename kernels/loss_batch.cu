// Losses that couple all groups of a step: one CTA. Means are taken by one thread's walk over all items in their order,
// sorts by counting: O(items^2) work of a few instructions, no atomics, the same bits on every run. Roof: latency.
//
// To add such a loss, add a case to `loss_batch` here and a row to src/loss/batch.rs.

#include <loss.cuh>

// ---- device code

constexpr int kBatchThreads = 256;

enum Parameter { kBeta, kDesirable, kUndesirable, kDelta, kRunning, kSmoothing, kParameters };

// Cases below; the launchers have them by these names.
enum Function { kKto, kBcoUnpaired, kAot, kAotUnpaired, kMaxMin };

// Columns of `state`, which goes on from step to step: sum and number of the rewards seen so far (kBcoUnpaired), and what
// the step took as its reference point.
enum State { kRewardSum, kRewardCount, kReferencePoint };

// The place of item i if x were sorted, the earlier first among equals.
template <class Items>
__device__ int place(int i, int items, Items x) {
    const double own = x(i);
    int place = 0;
    for (int j = 0; j < items; ++j) place += x(j) < own || (x(j) == own && j < i) ? 1 : 0;
    return place;
}

// KTO's reference point: the mean log-ratio of completions to prompts they do not belong to, at least 0.
__device__ double mismatched_mean(const Groups& all, int groups) {
    double sum = 0.0;
    for (int group = 0; group < groups; ++group) sum += all.of(all.first(group) + 1)[kRho];
    return fmax(sum / groups, 0.0);
}

// BCO's reference point: the mean reward of everything seen up to this step, its own items included.
__device__ double running_mean(double* state, const Groups& all, int groups, double beta) {
    double sum = 0.0;
    for (int group = 0; group < groups; ++group) sum += beta * all.of(all.first(group))[kRho];
    // A step whose rewards are not finite is skipped by the optimizer; it must not spoil those that follow.
    if (sum - sum == 0.0) {
        state[kRewardSum] += sum;
        state[kRewardCount] += groups;
    }
    return state[kRewardSum] / fmax(state[kRewardCount], 1.0);
}

__device__ Value unpaired(int function, double rho, bool desirable, double point, const double* p) {
    const double beta = p[kBeta];
    if (function == kKto) {
        const double v = beta * (rho - point), weight = desirable ? p[kDesirable] : p[kUndesirable];
        return {weight * sigmoid(desirable ? -v : v), (desirable ? -weight : weight) * beta * sigmoid_slope(v)};
    }
    const double sign = desirable ? 1.0 : -1.0, v = sign * (beta * rho - point);
    const double weight = desirable ? p[kDesirable] : p[kUndesirable];
    return {weight * softplus(-v), -weight * sign * beta * sigmoid(-v)};
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kBatchThreads) loss_batch(
    double* slopes,            // (slots, 3) added to, see Slope
    double* losses,            // (groups) each group's loss
    double* state,             // (3) see State
    double* sorted,            // (2, groups) scratch
    const double* sums,        // (sequences, 10) see Sum
    const int* slot_sequence,  // (slots)
    const int* group_slots,    // (groups + 1)
    const double* values,      // (slots, 2)
    const double* parameters,  // (8) see Parameter
    int function, double scale, int groups) {
    const Groups all = {sums, slot_sequence, group_slots, values};
    const double *p = parameters, beta = p[kBeta];
    if (function == kKto || function == kBcoUnpaired) {
        if (threadIdx.x == 0)
            state[kReferencePoint] = function == kKto      ? mismatched_mean(all, groups)
                                     : p[kRunning] > 0.0 ? running_mean(state, all, groups, beta)
                                                         : p[kDelta];
        __syncthreads();
        const double point = state[kReferencePoint];
        for (int group = threadIdx.x; group < groups; group += kBatchThreads) {
            const int slot = all.first(group);
            const Value at = unpaired(function, all.of(slot)[kRho], all.value(slot) > 0.0, point, p);
            losses[group] = at.loss;
            slopes[slot * kSlopes + kLogpsSlope] += scale * at.slope;
        }
        return;
    }
    const auto chosen = [&](int group) { return all.of(all.first(group)); };
    const auto rejected = [&](int group) { return all.of(all.first(group) + 1); };
    if (function == kMaxMin) {
        // A group's mean is the mean over the pairs with its label; every pair of it computes the same bits.
        const auto pair = [&](int i) { return beta * (chosen(i)[kRho] - rejected(i)[kRho]); };
        const auto label = [&](int i) { return all.value(all.first(i)); };
        double* means = sorted;
        double* members = sorted + groups;
        for (int group = threadIdx.x; group < groups; group += kBatchThreads) {
            double sum = 0.0, count = 0.0;
            for (int j = 0; j < groups; ++j)
                if (label(j) == label(group)) sum += softplus(-pair(j)), count += 1.0;
            means[group] = sum / count;
            members[group] = count;
        }
        __syncthreads();
        double worst = means[0], of = label(0);
        for (int j = 1; j < groups; ++j)
            if (means[j] > worst || (means[j] == worst && label(j) < of)) worst = means[j], of = label(j);
        for (int group = threadIdx.x; group < groups; group += kBatchThreads) {
            const bool counts = label(group) == of;
            const double share = counts ? 1.0 / members[group] : 0.0, u = pair(group);
            losses[group] = share * softplus(-u);
            const double slope = -scale * share * beta * sigmoid(-u);
            slopes[all.first(group) * kSlopes + kLogpsSlope] += slope;
            slopes[(all.first(group) + 1) * kSlopes + kLogpsSlope] -= slope;
        }
        return;
    }
    // Sorts of chosen against rejected log-ratios, or of the policy's margins against the reference's.
    const auto a = [&](int i) {
        return function == kAot ? chosen(i)[kLogps] - rejected(i)[kLogps] : chosen(i)[kRho];
    };
    const auto b = [&](int i) {
        const double reference = (chosen(i)[kLogps] - chosen(i)[kRho]) - (rejected(i)[kLogps] - rejected(i)[kRho]);
        return function == kAot ? reference : rejected(i)[kRho];
    };
    for (int group = threadIdx.x; group < groups; group += kBatchThreads) {
        sorted[place(group, groups, a)] = a(group);
        sorted[groups + place(group, groups, b)] = b(group);
    }
    __syncthreads();
    const auto at = [&](int k) { return cross_entropy(beta * (sorted[k] - sorted[groups + k]), 1.0 - p[kSmoothing]); };
    for (int group = threadIdx.x; group < groups; group += kBatchThreads) {
        // Losses stand in sorted order: the k-th is that of the k-th smallest.
        losses[group] = at(group).loss;
        const double up = scale * beta * at(place(group, groups, a)).slope;
        const double down = function == kAot ? up : scale * beta * at(place(group, groups, b)).slope;
        slopes[all.first(group) * kSlopes + kLogpsSlope] += up;
        slopes[(all.first(group) + 1) * kSlopes + kLogpsSlope] -= down;
    }
}
