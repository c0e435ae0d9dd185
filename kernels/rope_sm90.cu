// Queries, keys and values of a layer in one kernel on Hopper's own units:
//   qkv (tokens, heads + 2 kv_heads) = x (tokens, hidden) w^T + bias, then queries and keys are turned as in rope.cu,
// in f32 before they are rounded once. The bias may be absent.
//
// The main loop is lib/product_pipeline.cuh's with tiles of 128 x 256, which hold whole heads of 64 or 128. Launch as
// gemm_sm90.cu. Roof: tensor cores.

#include <product_pipeline.cuh>
#include <rotary.cuh>

// ---- device code

constexpr int kTileM = 128;
constexpr int kTileN = 256;

template <int kHeadDim>
__device__ __forceinline__ void rope_project(const CUtensorMap* qkv_map, const CUtensorMap* x_map, const CUtensorMap* w_map,
                                             const bf16* bias, int with_bias, const Rotary& rotary, int turned,
                                             const Problem& p) {
    auto write = [&](Outbox& outbox, float (&sum)[kTileN / 2], int row0, int n0) {
        if (with_bias) add_bias(sum, bias, n0, p);
        rotary.turn<kHeadDim>(sum, row0 + fragment_row(), p.m, n0, turned, 1.0f);
        write_rows<0, kTileN>(outbox, qkv_map, sum, row0, n0, p);
    };
    multiply_tiles<Nt, kTileM, kTileN>(x_map, w_map, p.stages, Walk<kTileM, kTileN>(p), write);
}

// ---- entry points

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) rope_project_hd64_bf16(
    const __grid_constant__ CUtensorMap qkv_map,  // (tokens, width), written
    const __grid_constant__ CUtensorMap x_map,    // (tokens, hidden)
    const __grid_constant__ CUtensorMap w_map,    // (width, hidden)
    const bf16* bias,                             // (width), if with_bias
    const int* position,                          // (tokens), each in 0..positions
    const float* cos,                             // (positions, 32)
    const float* sin,                             // (positions, 32)
    int with_bias, int turned, int tokens, int width, int hidden, int stages) {
    rope_project<64>(&qkv_map, &x_map, &w_map, bias, with_bias, {cos, sin, position}, turned,
        {tokens, width, hidden, stages});
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kPipelineThreads, 1) rope_project_hd128_bf16(
    const __grid_constant__ CUtensorMap qkv_map,  // (tokens, width), written
    const __grid_constant__ CUtensorMap x_map,    // (tokens, hidden)
    const __grid_constant__ CUtensorMap w_map,    // (width, hidden)
    const bf16* bias,                             // (width), if with_bias
    const int* position,                          // (tokens), each in 0..positions
    const float* cos,                             // (positions, 64)
    const float* sin,                             // (positions, 64)
    int with_bias, int turned, int tokens, int width, int hidden, int stages) {
    rope_project<128>(&qkv_map, &x_map, &w_map, bias, with_bias, {cos, sin, position}, turned,
        {tokens, width, hidden, stages});
}
