// Losses over a list of up to 32 responses with rewards s_i = beta * rho_i and label scores v_i: one warp per list, one
// response a lane. Rewards only enter as differences formed from the log-ratios, so that a list of two gives the bits of
// the pair loss it equals. Roof: latency.
//
// To add such a loss, add a row to `table` here and one to src/loss/list.rs.

#include <loss.cuh>

// ---- device code

constexpr int kWarps = kHeadThreads / kWarpThreads;

enum Parameter { kBeta, kTemperature, kParameters };

// Rows of the table; the launchers have them by these names.
enum Function { kTpo, kInfoNca, kNca, kExo };

// What a response's lane works out once for all.
struct Response {
    double rho, label;
    double share, cost;              // of the policy: softmax(s)_i and its -log
    double label_share, label_cost;  // of the labels: y_i and its -log
    int rank;                        // 1 for the largest reward; the earlier response first among equals
};

// -log softmax(x)_i from the differences d(j) = x_j - x_i, by their largest; for two responses exactly softplus(d).
template <class Differences>
__device__ double minus_log_share(int i, int size, Differences d) {
    double top = 0.0, rest = 0.0;
#pragma unroll 1
    for (int j = 0; j < size; ++j) top = fmax(top, d(j));
    // The largest term is 1 and stays out of the sum, once.
    bool counted = false;
#pragma unroll 1
    for (int j = 0; j < size; ++j) {
        const double own = j == i ? 0.0 : d(j);
        if (!counted && own == top) counted = true;
        else rest += exp(own - top);
    }
    return top + log1p(rest);
}

// softmax(x)_i, for two responses exactly a sigmoid.
template <class Differences>
__device__ double share(int i, int size, Differences d) {
    double top = 0.0, sum = 0.0;
#pragma unroll 1
    for (int j = 0; j < size; ++j) top = fmax(top, d(j));
#pragma unroll 1
    for (int j = 0; j < size; ++j) sum += exp((j == i ? 0.0 : d(j)) - top);
    return exp(-top) / sum;
}

__device__ void work_out(Response* list, int i, int size, double beta, double temperature) {
    Response& own = list[i];
    const auto margin = [&](int j) { return beta * (list[j].rho - own.rho); };
    own.share = share(i, size, margin);
    own.cost = minus_log_share(i, size, margin);
    int rank = 1;
    double sum = 0.0;
#pragma unroll 1
    for (int j = 0; j < size; ++j) {
        rank += list[j].rho > own.rho || (list[j].rho == own.rho && j < i) ? 1 : 0;
        sum += list[j].label;
    }
    own.rank = rank;
    if (temperature > 0.0) {
        own.label_cost = minus_log_share(i, size, [&](int j) { return (list[j].label - own.label) / temperature; });
        own.label_share = exp(-own.label_cost);
    } else {
        // Hard labels, 0 or 1: the desirable ones share alike. Nothing asks for their logarithm.
        own.label_cost = 0.0;
        own.label_share = sum > 0.0 ? own.label / sum : 0.0;
    }
}

// LambdaRank's weight of a pair: how much the ranking's gain changes if the two change places.
__device__ __forceinline__ double lambda_weight(const Response& a, const Response& b) {
    return fabs(exp2(a.label) - exp2(b.label)) * fabs(1.0 / log(1.0 + a.rank) - 1.0 / log(1.0 + b.rank));
}

__device__ Value tpo(const Response* list, int i, int size, double beta) {
    const Response& own = list[i];
    Value at = {0.0, 0.0};
#pragma unroll 1
    for (int j = 0; j < size; ++j) {
        if (own.label == list[j].label) continue;
        const double weight = lambda_weight(own, list[j]), margin = beta * (own.rho - list[j].rho);
        const bool better = own.label > list[j].label;
        if (better) at.loss += weight * softplus(-margin);
        at.slope += better ? -weight * sigmoid(-margin) : weight * sigmoid(margin);
    }
    return at;
}

// The response's share of the list's loss, and the slope by its reward.
__device__ Value table(int function, const Response* list, int i, int size, double beta) {
    const Response& own = list[i];
    const double y = own.label_share;
    switch (function) {
        case kTpo: return tpo(list, i, size, beta);
        case kInfoNca: {
            double others = 0.0;
#pragma unroll 1
            for (int j = 0; j < size; ++j) others += j == i ? 0.0 : list[j].share;
            return {y == 0.0 ? 0.0 : y * own.cost, (1.0 - y) * own.share - y * others};
        }
        case kNca: {
            const double s = beta * own.rho;
            return {y * softplus(-s) + softplus(s) / size, sigmoid(s) / size - y * sigmoid(-s)};
        }
        default: {
            // kExo: KL(policy || labels) over the list
            double loss = 0.0;
#pragma unroll 1
            for (int j = 0; j < size; ++j) loss += list[j].share * (list[j].label_cost - list[j].cost);
            const double ratio = own.label_cost - own.cost;
            return {own.share * ratio, own.share * (ratio - loss)};
        }
    }
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kHeadThreads) loss_list(
    double* slopes,            // (slots, 3) added to, see Slope
    double* losses,            // (groups) each list's loss
    const double* sums,        // (sequences, 10) see Sum
    const int* slot_sequence,  // (slots)
    const int* group_slots,    // (groups + 1) at most 32 slots each
    const double* values,      // (slots, 2)
    const double* parameters,  // (8) see Parameter
    int function, double scale, int first_group, int groups) {
    const int lane = threadIdx.x % kWarpThreads;
    const int group = first_group + blockIdx.x * kWarps + threadIdx.x / kWarpThreads;
    if (group >= first_group + groups) return;
    const Groups all = {sums, slot_sequence, group_slots, values};
    const int start = all.first(group), size = all.size(group);
    const double beta = parameters[kBeta];
    Response* list = shared_memory<Response>() + threadIdx.x / kWarpThreads * kWarpThreads;
    if (lane < size) {
        list[lane].rho = all.of(start + lane)[kRho];
        list[lane].label = all.value(start + lane);
    }
    __syncwarp();
    // A second value that is not 0 says that the labels are hard.
    const double temperature = all.value(start, 1) != 0.0 ? 0.0 : parameters[kTemperature];
    if (lane < size) work_out(list, lane, size, beta, temperature);
    __syncwarp();
    Value at = {0.0, 0.0};
    if (lane < size) at = table(function, list, lane, size, beta);
    const double loss = warp_sum(at.loss);
    if (lane == 0) losses[group] = loss;
    if (lane < size) slopes[(start + lane) * kSlopes + kLogpsSlope] += scale * beta * at.slope;
}
