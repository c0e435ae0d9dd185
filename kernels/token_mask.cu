// Token masks from a model's activations, one value a row (SparsePO, arXiv 2410.05102).
// Fixed mask: the mean of a layer's activations at the row's token, stretched to 0..1 over its sequence, averaged over
// layers. Learned mask, with H_l the stream behind layer l:
//     mask = relu(sum_l gamma_l relu(pre_l)),   pre_l = w_l . LN(H_l) + b_l
// Forward kernels: one warp per row. Backward: one thread per column walks the rows in their order. No atomics.
// Roof: latency; a layer's rows are read once forward and once back.

#include <cta.cuh>
#include <types.cuh>

// ---- device code

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr float kEps = 1e-5f;


template <class T>
__device__ void token_mask_means(float* means, const T* x, const int* row_source, int rows, int width) {
    const int lane = threadIdx.x % kWarpThreads;
    const int row = blockIdx.x * kWarps + threadIdx.x / kWarpThreads;
    if (row >= rows) return;
    const T* own = x + (long long)row_source[row] * width;
    float sum = 0.0f;
    for (int c = lane; c < width; c += kWarpThreads) sum += to_f32(own[c]);
    sum = warp_sum(sum);
    if (lane == 0) means[row] = sum / width;
}

template <class T>
__device__ void token_mask_layer(float* pre, float* stats, const T* x, const int* row_source, const float* norm_weight,
                                 const float* norm_bias, const float* w, const float* b, int rows, int width) {
    const int lane = threadIdx.x % kWarpThreads;
    const int row = blockIdx.x * kWarps + threadIdx.x / kWarpThreads;
    if (row >= rows) return;
    const T* own = x + (long long)row_source[row] * width;
    float sum = 0.0f;
    for (int c = lane; c < width; c += kWarpThreads) sum += to_f32(own[c]);
    const float mean = warp_sum(sum) / width;
    float squares = 0.0f;
    for (int c = lane; c < width; c += kWarpThreads) {
        const float d = to_f32(own[c]) - mean;
        squares += d * d;
    }
    const float rstd = 1.0f / sqrtf(warp_sum(squares) / width + kEps);
    float dot = 0.0f;
    for (int c = lane; c < width; c += kWarpThreads)
        dot += w[c] * ((to_f32(own[c]) - mean) * rstd * norm_weight[c] + norm_bias[c]);
    dot = warp_sum(dot);
    if (lane > 0) return;
    pre[row] = dot + b[0];
    stats[2 * row] = mean;
    stats[2 * row + 1] = rstd;
}

template <class T>
__device__ void token_mask_layer_bwd(float* dnorm_weight, float* dnorm_bias, float* dw, float* db, const float* dpre,
                                     const float* stats, const T* x, const int* row_source, const float* norm_weight,
                                     const float* norm_bias, const float* w, int rows, int width) {
    const int c = blockIdx.x * kThreads + threadIdx.x;
    if (c >= width) return;
    float by_w = 0.0f, by_norm = 0.0f, sum = 0.0f;
    for (int row = 0; row < rows; ++row) {
        const float slope = dpre[row];
        if (slope == 0.0f) continue;
        const float normed = (to_f32(x[(long long)row_source[row] * width + c]) - stats[2 * row]) * stats[2 * row + 1];
        by_w += slope * (normed * norm_weight[c] + norm_bias[c]);
        by_norm += slope * normed;
        sum += slope;
    }
    dw[c] += by_w;
    dnorm_weight[c] += w[c] * by_norm;
    dnorm_bias[c] += w[c] * sum;
    if (c == 0) db[0] += sum;
}

// ---- entry points

extern "C" __global__ void __launch_bounds__(kThreads) token_mask_means_f32(
    float* means,           // (rows)
    const float* x,         // (tokens, width)
    const int* row_source,  // (rows)
    int rows, int width) {
    token_mask_means<float>(means, x, row_source, rows, width);
}

extern "C" __global__ void __launch_bounds__(kThreads) token_mask_means_bf16(
    float* means,           // (rows)
    const bf16* x,          // (tokens, width)
    const int* row_source,  // (rows)
    int rows, int width) {
    token_mask_means<bf16>(means, x, row_source, rows, width);
}

extern "C" __global__ void __launch_bounds__(kThreads) token_mask_stretch(
    float* mask,               // (rows) added to
    const float* means,        // (rows)
    const int* sequence_rows,  // (sequences + 1)
    float share, int sequences) {
    const int lane = threadIdx.x % kWarpThreads;
    const int sequence = blockIdx.x * kWarps + threadIdx.x / kWarpThreads;
    if (sequence >= sequences) return;
    const int first = sequence_rows[sequence], last = sequence_rows[sequence + 1];
    float top = -INFINITY, bottom = -INFINITY;
    for (int row = first + lane; row < last; row += kWarpThreads) {
        top = fmaxf(top, means[row]);
        bottom = fmaxf(bottom, -means[row]);
    }
    top = warp_max(top);
    bottom = -warp_max(bottom);
    // Where all tokens are alike, as in a response of one, none is masked.
    for (int row = first + lane; row < last; row += kWarpThreads)
        mask[row] += share * (top > bottom ? (means[row] - bottom) / (top - bottom) : 1.0f);
}

extern "C" __global__ void __launch_bounds__(kThreads) token_mask_layer_f32(
    float* pre,                // (rows)
    float* stats,              // (rows, 2) mean and 1 / deviation, kept for the backward pass
    const float* x,            // (tokens, width)
    const int* row_source,     // (rows)
    const float* norm_weight,  // (width)
    const float* norm_bias,    // (width)
    const float* w,            // (width)
    const float* b,            // (1)
    int rows, int width) {
    token_mask_layer<float>(pre, stats, x, row_source, norm_weight, norm_bias, w, b, rows, width);
}

extern "C" __global__ void __launch_bounds__(kThreads) token_mask_layer_bf16(
    float* pre,                // (rows)
    float* stats,              // (rows, 2) mean and 1 / deviation, kept for the backward pass
    const bf16* x,             // (tokens, width)
    const int* row_source,     // (rows)
    const float* norm_weight,  // (width)
    const float* norm_bias,    // (width)
    const float* w,            // (width)
    const float* b,            // (1)
    int rows, int width) {
    token_mask_layer<bf16>(pre, stats, x, row_source, norm_weight, norm_bias, w, b, rows, width);
}

extern "C" __global__ void __launch_bounds__(kThreads) token_mask_mix(
    float* mask,         // (rows)
    const float* pre,    // (layers, rows)
    const float* gamma,  // (layers)
    int rows, int layers) {
    const int row = blockIdx.x * kThreads + threadIdx.x;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int layer = 0; layer < layers; ++layer) sum += gamma[layer] * fmaxf(pre[(long long)layer * rows + row], 0.0f);
    mask[row] = fmaxf(sum, 0.0f);
}

extern "C" __global__ void __launch_bounds__(kThreads) token_mask_mix_bwd(
    float* dpre,         // (layers, rows)
    float* dgamma,       // (layers) added to
    const float* dmask,  // (rows)
    const float* mask,   // (rows)
    const float* pre,    // (layers, rows)
    const float* gamma,  // (layers)
    int rows) {
    // One CTA per layer.
    const int layer = blockIdx.x, lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads;
    float* partial = shared_memory<float>();
    float own = 0.0f;
    for (int row = threadIdx.x; row < rows; row += kThreads) {
        const long long at = (long long)layer * rows + row;
        const float slope = mask[row] > 0.0f && pre[at] > 0.0f ? dmask[row] : 0.0f;
        dpre[at] = slope * gamma[layer];
        own += slope * pre[at];
    }
    own = warp_sum(own);
    if (lane == 0) partial[warp] = own;
    __syncthreads();
    if (threadIdx.x > 0) return;
    float sum = 0.0f;
    for (int i = 0; i < kWarps; ++i) sum += partial[i];
    dgamma[layer] += sum;
}

extern "C" __global__ void __launch_bounds__(kThreads) token_mask_layer_bwd_f32(
    float* dnorm_weight,       // (width) added to
    float* dnorm_bias,         // (width) added to
    float* dw,                 // (width) added to
    float* db,                 // (1) added to
    const float* dpre,         // (rows)
    const float* stats,        // (rows, 2)
    const float* x,            // (tokens, width)
    const int* row_source,     // (rows)
    const float* norm_weight,  // (width)
    const float* norm_bias,    // (width)
    const float* w,            // (width)
    int rows, int width) {
    token_mask_layer_bwd<float>(dnorm_weight, dnorm_bias, dw, db, dpre, stats, x, row_source, norm_weight, norm_bias, w,
                                rows, width);
}

extern "C" __global__ void __launch_bounds__(kThreads) token_mask_layer_bwd_bf16(
    float* dnorm_weight,       // (width) added to
    float* dnorm_bias,         // (width) added to
    float* dw,                 // (width) added to
    float* db,                 // (1) added to
    const float* dpre,         // (rows)
    const float* stats,        // (rows, 2)
    const bf16* x,             // (tokens, width)
    const int* row_source,     // (rows)
    const float* norm_weight,  // (width)
    const float* norm_bias,    // (width)
    const float* w,            // (width)
    int rows, int width) {
    token_mask_layer_bwd<bf16>(dnorm_weight, dnorm_bias, dw, db, dpre, stats, x, row_source, norm_weight, norm_bias, w,
                               rows, width);
}
