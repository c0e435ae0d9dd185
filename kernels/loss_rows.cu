// Between rows and the heads of losses. loss_rows_sum: one warp per sequence adds up what its rows give, each difference
// formed per row and summed in f64, because a margin is a small difference of large sums. loss_rows_spread: one warp per
// sequence adds the slopes of the slots it stands in and gives each of its rows its share; loss_rows_by_weights does so for the
// weights of rows, where they are learned. No atomics; fixed order.
// Roof: latency.

#include <loss.cuh>

// ---- device code

constexpr int kWarps = kHeadThreads / kWarpThreads;

// Which inputs there are: what is absent may point anywhere.
enum Input { kReference = 1, kRowWeights = 2, kDivergences = 4, kDivergenceRowWeights = 8, kCollisions = 16, kComplements = 32, kDescribed = 64 };

// ---- entry points

extern "C" __global__ void __launch_bounds__(kHeadThreads) loss_rows_sum(
    double* sums,                     // (sequences, 10) see Sum
    const float* logps,               // (rows)
    const float* ref_logps,           // (rows) read with kReference
    const float* weights,             // (rows) read with kRowWeights, else 1
    const float* divergences,         // (rows) KL(reference || policy), read with kDivergences
    const float* divergence_weights,  // (rows) read with kDivergenceRowWeights, else 1
    const float* collisions,          // (rows) log of the sum of squared probabilities, read with kCollisions
    const float* entropies,           // (rows) read with kDescribed
    const float* top1,                // (rows) 1 where no token is likelier than the target, else 0; read with kDescribed
    const int* sequence_rows,         // (sequences + 1)
    int inputs, int sequences) {
    const int lane = threadIdx.x % kWarpThreads;
    const int sequence = blockIdx.x * kWarps + threadIdx.x / kWarpThreads;
    if (sequence >= sequences) return;
    double own[kSums] = {};
    const int first = sequence_rows[sequence], last = sequence_rows[sequence + 1];
    for (int row = first + lane; row < last; row += kWarpThreads) {
        const double logp = logps[row];
        const double weight = inputs & kRowWeights ? weights[row] : 1.0;
        const double divergence_weight = inputs & kDivergenceRowWeights ? divergence_weights[row] : 1.0;
        own[kLogps] += weight * logp;
        own[kRho] += weight * (inputs & kReference ? logp - ref_logps[row] : logp);
        own[kWeights] += weight;
        own[kDivergenceWeights] += divergence_weight;
        if (inputs & kDivergences) own[kDivergence] += divergence_weight * divergences[row];
        if (inputs & kComplements) own[kComplement] += log_complement(logp).loss;
        if (inputs & kCollisions) own[kSurprise] += logp - collisions[row];
        if (inputs & kDescribed) {
            own[kEntropy] += entropies[row];
            own[kTop1] += top1[row];
        }
    }
    own[kRows] = 0.0;
    for (int column = 0; column < kSums; ++column) {
        const double sum = column == kRows ? last - first : warp_sum(own[column]);
        if (lane == 0) sums[(long long)sequence * kSums + column] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(kHeadThreads) loss_rows_spread(
    float* coefficients,              // (rows) d loss / d logp
    float* divergence_coefficients,   // (rows) d loss / d KL, written with kDivergences
    const double* slopes,             // (slots, 3) see Slope
    const float* logps,               // (rows)
    const float* weights,             // (rows) read with kRowWeights, else 1
    const float* divergence_weights,  // (rows) read with kDivergenceRowWeights, else 1
    const int* sequence_rows,         // (sequences + 1)
    const int* sequence_slot_ends,    // (sequences + 1) places in sequence_slots
    const int* sequence_slots,        // (slots) slots by sequence, ascending
    int inputs, int sequences) {
    const int lane = threadIdx.x % kWarpThreads;
    const int sequence = blockIdx.x * kWarps + threadIdx.x / kWarpThreads;
    if (sequence >= sequences) return;
    double own[kSlopes] = {};
    for (int i = sequence_slot_ends[sequence] + lane; i < sequence_slot_ends[sequence + 1]; i += kWarpThreads)
        for (int column = 0; column < kSlopes; ++column)
            own[column] += slopes[(long long)sequence_slots[i] * kSlopes + column];
    for (int column = 0; column < kSlopes; ++column) own[column] = warp_sum(own[column]);
    const int last = sequence_rows[sequence + 1];
    for (int row = sequence_rows[sequence] + lane; row < last; row += kWarpThreads) {
        double slope = own[kLogpsSlope] * (inputs & kRowWeights ? weights[row] : 1.0f);
        if (inputs & kComplements) slope += own[kComplementSlope] * log_complement(logps[row]).slope;
        coefficients[row] = (float)slope;
        if (inputs & kDivergences)
            divergence_coefficients[row] =
                (float)(own[kDivergenceSlope] * (inputs & kDivergenceRowWeights ? divergence_weights[row] : 1.0f));
    }
}

extern "C" __global__ void __launch_bounds__(kHeadThreads) loss_rows_by_weights(
    float* by_weights,             // (rows) d loss / d weight
    float* by_divergence_weights,  // (rows) d loss / d divergence weight
    const double* slopes,          // (slots, 3) see Slope
    const float* logps,            // (rows)
    const float* ref_logps,        // (rows)
    const float* divergences,      // (rows)
    const int* sequence_rows,      // (sequences + 1)
    const int* sequence_slot_ends, // (sequences + 1) places in sequence_slots
    const int* sequence_slots,     // (slots) slots by sequence, ascending
    double penalty, double divergence_penalty, int sequences) {
    const int lane = threadIdx.x % kWarpThreads;
    const int sequence = blockIdx.x * kWarps + threadIdx.x / kWarpThreads;
    if (sequence >= sequences) return;
    const int begin = sequence_slot_ends[sequence], end = sequence_slot_ends[sequence + 1];
    double by_logps = 0.0, by_divergence = 0.0;
    for (int i = begin + lane; i < end; i += kWarpThreads) {
        by_logps += slopes[(long long)sequence_slots[i] * kSlopes + kLogpsSlope];
        by_divergence += slopes[(long long)sequence_slots[i] * kSlopes + kDivergenceSlope];
    }
    by_logps = warp_sum(by_logps);
    by_divergence = warp_sum(by_divergence);
    const int last = sequence_rows[sequence + 1];
    for (int row = sequence_rows[sequence] + lane; row < last; row += kWarpThreads) {
        by_weights[row] = (float)(by_logps * ((double)logps[row] - ref_logps[row]) + (end - begin) * penalty);
        by_divergence_weights[row] = (float)(by_divergence * divergences[row] + (end - begin) * divergence_penalty);
    }
}
