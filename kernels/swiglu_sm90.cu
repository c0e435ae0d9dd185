// The gated half of a feed-forward layer in one kernel, on Hopper's own units:
//   gate_up (rows, 2 ffn) = x (rows, hidden) w (2 ffn, hidden)^T,  y (rows, ffn) = silu(gate) * up
// gate_up is kept for the backward pass; y is computed from its rounded values, so that the bits are those of the product
// and the activation one after the other.
//
// The main loop is lib/product_pipeline.cuh's with tiles of 128 x 256: 128 columns of the gate and the same of up, which one
// thread then holds side by side. Of the two CTAs of a cluster one fetches the gate's rows of w, the other those of up.
// Launch as gemm_sm90.cu. Roof: tensor cores.

#include <product_pipeline.cuh>
#include <sigmoid.cuh>

// ---- device code

constexpr int kTileM = 128;
constexpr int kTileN = 256;
constexpr int kColumns = kTileN / 2;

__device__ __forceinline__ float round_to_bf16(float x) { return to_f32(from_f32<bf16>(x)); }

// The first half of the accumulators is the gate, the second up; y replaces the gate.
__device__ __forceinline__ void activate(float (&sum)[kTileN / 2]) {
#pragma unroll
    for (int i = 0; i < kTileN / 4; ++i) {
        const float gate = round_to_bf16(sum[i]), up = round_to_bf16(sum[kTileN / 4 + i]);
        sum[i] = up * (gate * sigmoid(gate));
    }
}

// ---- entry points

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) swiglu_project_bf16(
    const __grid_constant__ CUtensorMap y_map,     // (rows, ffn), written
    const __grid_constant__ CUtensorMap gate_map,  // (rows, ffn), row pitch 2 * ffn, written
    const __grid_constant__ CUtensorMap up_map,    // (rows, ffn), row pitch 2 * ffn, written
    const __grid_constant__ CUtensorMap x_map,     // (rows, hidden)
    const __grid_constant__ CUtensorMap w_map,     // (2 * ffn, hidden), gate first
    int rows, int ffn, int hidden, int stages) {
    const Problem p{rows, ffn, hidden, stages};
    auto write = [&](Outbox& outbox, float (&sum)[kTileN / 2], int row0, int n0) {
        write_rows<0, kColumns>(outbox, &gate_map, sum, row0, n0, p);
        write_rows<kColumns, kColumns>(outbox, &up_map, sum, row0, n0, p);
        activate(sum);
        write_rows<0, kColumns>(outbox, &y_map, sum, row0, n0, p);
    };
    multiply_tiles<Nt, kTileM, kTileN>(&x_map, &w_map, stages, Walk<kTileM, kColumns>(p), write, ffn);
}
