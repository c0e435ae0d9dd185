// DPO over pairs of sequences (arXiv 2305.18290), with label smoothing e (cDPO) and a likelihood term on the chosen one:
//     rho = sum over rows of (logp - ref_logp),   u = beta * (rho_chosen - rho_rejected)
//     loss = dpo_scale * [(1 - e) * sp(-u) + e * sp(u)] + sft_scale * (-logps_chosen)
// sp is softplus. The scales hold the normalisation of the whole step, so the slopes are those of the step's loss.
// preference_loss_pairs: one warp per pair; logp - ref_logp is formed per row and summed in f64, because u is a small
// difference of large sums; u is never clamped. preference_loss_rows: one warp per sequence adds the slopes of the pairs
// the sequence stands in and writes them to its rows, 0 if there are none. No atomics; fixed order. Roof: latency.

#include <cta.cuh>
#include <types.cuh>

// ---- device code

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpThreads;

// Columns of `stats`.
enum Stat { kLoss, kNll, kRewardChosen, kRewardRejected, kLogpsChosen, kLogpsRejected, kSlopeChosen, kSlopeRejected, kStats };

struct Sums {
    double logps, rho;
};

__device__ __forceinline__ Sums sum_rows(const float* logps, const float* ref_logps, int first, int last, int lane) {
    double own = 0.0, rho = 0.0;
    for (int row = first + lane; row < last; row += kWarpThreads) {
        own += logps[row];
        rho += (double)logps[row] - ref_logps[row];
    }
    return {warp_sum(own), warp_sum(rho)};
}

__device__ __forceinline__ double softplus(double x) { return fmax(x, 0.0) + log1p(exp(-fabs(x))); }

__device__ __forceinline__ double sigmoid(double x) {
    const double e = exp(-fabs(x));
    return (x >= 0.0 ? 1.0 : e) / (1.0 + e);
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kThreads) preference_loss_pairs(
    float* stats,              // (pairs, 8) see Stat
    const float* logps,        // (rows)
    const float* ref_logps,    // (rows)
    const int* sequence_rows,  // (sequences + 1)
    const int* pair_table,     // (pairs, 2) chosen and rejected sequence
    float beta, float label_smoothing, float dpo_scale, float sft_scale, int pairs) {
    const int lane = threadIdx.x % kWarpThreads;
    const int pair = blockIdx.x * kWarps + threadIdx.x / kWarpThreads;
    if (pair >= pairs) return;
    const int chosen = pair_table[2 * pair], rejected = pair_table[2 * pair + 1];
    const Sums c = sum_rows(logps, ref_logps, sequence_rows[chosen], sequence_rows[chosen + 1], lane);
    const Sums r = sum_rows(logps, ref_logps, sequence_rows[rejected], sequence_rows[rejected + 1], lane);
    if (lane != 0) return;
    const double e = label_smoothing, u = beta * (c.rho - r.rho);
    const double slope = dpo_scale * beta * (e * sigmoid(u) - (1.0 - e) * sigmoid(-u));
    float* out = stats + (long long)pair * kStats;
    out[kLoss] = (float)((1.0 - e) * softplus(-u) + e * softplus(u));
    out[kNll] = (float)-c.logps;
    out[kRewardChosen] = (float)(beta * c.rho);
    out[kRewardRejected] = (float)(beta * r.rho);
    out[kLogpsChosen] = (float)c.logps;
    out[kLogpsRejected] = (float)r.logps;
    out[kSlopeChosen] = (float)(slope - sft_scale);
    out[kSlopeRejected] = (float)-slope;
}

extern "C" __global__ void __launch_bounds__(kThreads) preference_loss_rows(
    float* coefficients,       // (rows)
    const float* stats,        // (pairs, 8) see Stat
    const int* sequence_rows,  // (sequences + 1)
    const int* pair_table,     // (pairs, 2) chosen and rejected sequence
    int pairs, int sequences) {
    const int lane = threadIdx.x % kWarpThreads;
    const int sequence = blockIdx.x * kWarps + threadIdx.x / kWarpThreads;
    if (sequence >= sequences) return;
    float slope = 0.0f;
    for (int pair = lane; pair < pairs; pair += kWarpThreads) {
        const float* from = stats + (long long)pair * kStats;
        if (pair_table[2 * pair] == sequence) slope += from[kSlopeChosen];
        if (pair_table[2 * pair + 1] == sequence) slope += from[kSlopeRejected];
    }
    slope = warp_sum(slope);
    const int last = sequence_rows[sequence + 1];
    for (int row = sequence_rows[sequence] + lane; row < last; row += kWarpThreads) coefficients[row] = slope;
}
