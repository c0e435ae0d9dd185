// Loads and stores wider than an element, and asynchronous copies into shared memory (sm_80).
#pragma once
#include <cuda_runtime.h>

// Sixteen bytes at a 16-byte aligned address.
struct alignas(16) Pack16 {
    unsigned word[4];
};

__device__ __forceinline__ Pack16 load16(const void* from) { return *static_cast<const Pack16*>(from); }

__device__ __forceinline__ void store16(void* to, Pack16 value) { *static_cast<Pack16*>(to) = value; }

// Eight floats at a 16-byte aligned address.
__device__ __forceinline__ void load_f32x8(float (&x)[8], const float* from) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const Pack16 pack = load16(from + 4 * half);
#pragma unroll
        for (int i = 0; i < 4; ++i) x[4 * half + i] = __uint_as_float(pack.word[i]);
    }
}

__device__ __forceinline__ void store_f32x8(float* to, const float (&x)[8]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        Pack16 pack;
#pragma unroll
        for (int i = 0; i < 4; ++i) pack.word[i] = __float_as_uint(x[4 * half + i]);
        store16(to + 4 * half, pack);
    }
}

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// Copies `bytes` (0 to 16) from global memory, zero-fills the rest of 16. Both addresses 16-byte aligned.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}

// Closes the group of the copies this thread issued since the last commit.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `kPending` of this thread's newest groups are unfinished.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane 8i + r gives the address of row r of matrix i.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same four matrices the other way (sm_90): lane 8i + r gives the address where row r of matrix i goes.
__device__ __forceinline__ void stmatrix_x4(void* row, const unsigned (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

__device__ __forceinline__ void stmatrix_x4_trans(void* row, const unsigned (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(shared_address(row)),
                 "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}
