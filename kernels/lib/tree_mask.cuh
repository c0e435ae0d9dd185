// The attention mask of a packed forest: visible(i, j) = j <= i and i < subtree_end[j] and, with a window,
// position[i] - position[j] < window. Positions count along a path, so siblings after a prompt have the same ones and
// differences of token indices would not do.
#pragma once
#include <lanes.cuh>
#include <types.cuh>

constexpr int kTileTokens = 64;
constexpr float kLog2E = 1.4426950408889634f;

// One row of the packed queries, keys and values: heads, then key heads, then value heads.
struct Heads {
    int heads, kv_heads, head_dim;
    __device__ __forceinline__ int group() const { return heads / kv_heads; }
    __device__ __forceinline__ long long pitch() const { return (long long)(heads + 2 * kv_heads) * head_dim; }
    __device__ __forceinline__ int query(int head) const { return head * head_dim; }
    __device__ __forceinline__ int key(int kv_head) const { return (heads + kv_head) * head_dim; }
    __device__ __forceinline__ int value(int kv_head) const { return (heads + kv_heads + kv_head) * head_dim; }
};

struct Mask {
    const int *subtree_end, *tile_bounds, *position;
    // 0: none.
    int window;
    int tokens;

    // For a key on the path of query i.
    __device__ __forceinline__ bool in_window(int i, int j) const {
        return window == 0 || position[i] - position[j] < window;
    }
};

// Bit r: query i sees key j0 + r. Keys after i are neither visible nor read.
__device__ __forceinline__ unsigned visible_lanes(const Mask& mask, int i, int j0) {
    const int* subtree_end = mask.subtree_end;
    const int last = i - j0;
    unsigned visible = 0;
    if (last >= kLanes - 1) {
#pragma unroll
        for (int r = 0; r < kLanes; ++r) visible |= unsigned(subtree_end[j0 + r] > i) << r;
    } else {
        for (int r = 0; r <= last; ++r) visible |= unsigned(subtree_end[j0 + r] > i) << r;
    }
    if (mask.window == 0) return visible;
    for (int r = 0; r < kLanes && r <= last; ++r)
        if (!mask.in_window(i, j0 + r)) visible &= ~(1u << r);
    return visible;
}

// Bit r: query i0 + r sees key j, the first of `count` >= 1 queries on whose path it lies.
__device__ __forceinline__ unsigned seeing_lanes(const Mask& mask, int i0, int j, int count) {
    unsigned visible = count >= kLanes ? 0xffu : (1u << count) - 1;
    if (mask.window == 0) return visible;
    for (int r = 0; r < kLanes && r < count; ++r)
        if (!mask.in_window(i0 + r, j)) visible &= ~(1u << r);
    return visible;
}

// Dot products to scores in base 2: log2(e) scale x, or with a soft cap log2(e) softcap tanh(scale x / softcap).
struct Scores {
    float scale;
    // 0: none.
    float softcap;

    __device__ __forceinline__ bool capped() const { return softcap > 0.0f; }
    __device__ __forceinline__ float factor() const { return scale * kLog2E; }
    __device__ __forceinline__ float cap(float x) const { return softcap * kLog2E * tanhf(x * (scale / softcap)); }
    // What the cap multiplies gradients by, 1 - tanh^2, from the score it made.
    __device__ __forceinline__ float slope(float score) const {
        const float t = score * (1.0f / (softcap * kLog2E));
        return 1.0f - t * t;
    }
    // The same from a weight p = exp2(score - lse): no register need keep the score. A weight of 0 passes no gradient.
    __device__ __forceinline__ float slope(float p, float lse) const { return p > 0.0f ? slope(log2f(p) + lse) : 0.0f; }
};

__device__ __forceinline__ Lanes score_lanes(const Scores& scores, Lanes x) {
    if (!scores.capped()) return x * all_lanes(scores.factor());
    for (int r = 0; r < kLanes; ++r) x.v[r] = scores.cap(x.v[r]);
    return x;
}

__device__ __forceinline__ Lanes slope_lanes(const Scores& scores, Lanes score) {
    for (int r = 0; r < kLanes; ++r) score.v[r] = scores.slope(score.v[r]);
    return score;
}

// The eight rows from j0 on. In place of what query i does not see stands its own row, so that nothing else is read.
__device__ __forceinline__ void gather_rows(const float* (&rows)[kLanes], const float* base, long long pitch,
                                            unsigned visible, int i, int j0) {
#pragma unroll
    for (int r = 0; r < kLanes; ++r) rows[r] = base + (visible >> r & 1 ? j0 + r : i) * pitch;
}

__device__ __forceinline__ void hide(Lanes& x, unsigned visible, float by) {
    if (visible == 0xffu) return;
#pragma unroll
    for (int r = 0; r < kLanes; ++r) x.v[r] = visible >> r & 1 ? x.v[r] : by;
}

// Lane r: the dot product of x and rows[r], eight partial sums each.
template <int kHeadDim>
__device__ __forceinline__ Lanes dot_each(const float* x, const float* const (&rows)[kLanes]) {
    Lanes sum[kLanes];
#pragma unroll
    for (int r = 0; r < kLanes; ++r) sum[r] = all_lanes(0.0f);
    // Unrolling further costs registers that spill.
#pragma unroll 1
    for (int d = 0; d < kHeadDim; d += kLanes) {
        const Lanes own = load_lanes(x + d);
#pragma unroll
        for (int r = 0; r < kLanes; ++r) sum[r] = sum[r] + own * load_lanes(rows[r] + d);
    }
    return sum_each(sum);
}

// row += sum over r of weight[r] * rows[r], in the order of r. `row` may lie at any float's address.
template <int kHeadDim>
__device__ __forceinline__ void add_each(float* row, Lanes weight, const float* const (&rows)[kLanes]) {
#pragma unroll 1
    for (int d = 0; d < kHeadDim; d += kLanes) {
        Lanes sum = load_lanes_unaligned(row + d);
#pragma unroll
        for (int r = 0; r < kLanes; ++r) sum = sum + all_lanes(weight.v[r]) * load_lanes(rows[r] + d);
        store_lanes_unaligned(row + d, sum);
    }
}

template <int kHeadDim>
__device__ __forceinline__ void scale_row(float* row, float by) {
    for (int d = 0; d < kHeadDim; d += kLanes)
        store_lanes_unaligned(row + d, load_lanes_unaligned(row + d) * all_lanes(by));
}

// to = by * row.
template <int kHeadDim>
__device__ __forceinline__ void write_row(float* to, const float* row, float by) {
    for (int d = 0; d < kHeadDim; d += kLanes)
        store_lanes_unaligned(to + d, load_lanes_unaligned(row + d) * all_lanes(by));
}
