// Tensor-core products of a warp group (sm_90a): d (64, n) = a (64, 16) b (n, 16)^T (+ d), asynchronous.
//
// Operands lie in shared memory in rows of 128 bytes with the 128-byte swizzle, as copies with such a tensor map write
// them, or A in registers; matrix_descriptor.cuh describes them.
//
// Thread t of the group holds d[4j + 0, 1] = (16 w + g, 8 j + 2 q + 0, 1) and d[4j + 2, 3] = (16 w + g + 8, ..) with
// w = t / 32, g = t % 32 / 4, q = t % 4. Fragments of A are those of mma.cuh for rows 16 w to 16 w + 15.
//
// All four warps come to each of these together. `wgmma_fence` stands before the first product and wherever registers of
// a product were used; they are not touched again before the wait for its group.
#pragma once
#include <cuda_runtime.h>
#include <matrix_descriptor.cuh>

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `kPending` of the newest groups are unfinished.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of accumulators over a fence or a wait.
template <int kCount>
__device__ __forceinline__ void hold_registers(float (&d)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// The instruction takes every accumulator by name, so there is one function for each n (64, 128, 192, 256 columns).
// `kAAcross`, `kBAcross`: the operand's reduction is not its contiguous index. `add` 0 overwrites d.

#define REGISTERS_8(i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define REGISTERS_32(i) REGISTERS_8(i), REGISTERS_8(i + 8), REGISTERS_8(i + 16), REGISTERS_8(i + 24)
#define NAMES_0 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_32 \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_64 \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_96 \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// `p0` to `p6` are the names of the operands behind the accumulators.
#define DEFINE_WGMMA(n, names, registers, p0, p1, p2, p3, p4, p5, p6) \
    template <bool kAAcross, bool kBAcross> \
    __device__ __forceinline__ void wgmma(float (&d)[n / 2], unsigned long long a, unsigned long long b, int add) { \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p2 ", 0;\n" \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" names "}, " p0 ", " p1 \
                     ", p, 1, 1, " p3 ", " p4 ";\n}" \
                     : registers \
                     : "l"(a), "l"(b), "r"(add), "n"(kAAcross), "n"(kBAcross)); \
    } \
    template <bool kBAcross> \
    __device__ __forceinline__ void wgmma(float (&d)[n / 2], const unsigned (&a)[4], unsigned long long b, int add) { \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p5 ", 0;\n" \
                     "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" names "}, {" p0 ", " p1 ", " p2 \
                     ", " p3 "}, " p4 ", p, 1, 1, " p6 ";\n}" \
                     : registers \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(kBAcross)); \
    }

#define REGISTERS_64 REGISTERS_32(0), REGISTERS_32(32)
#define REGISTERS_96 REGISTERS_64, REGISTERS_32(64)
#define REGISTERS_128 REGISTERS_96, REGISTERS_32(96)

DEFINE_WGMMA(64, NAMES_0, REGISTERS_32(0), "%32", "%33", "%34", "%35", "%36", "%37", "%38")
DEFINE_WGMMA(128, NAMES_0 ", " NAMES_32, REGISTERS_64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
DEFINE_WGMMA(192, NAMES_0 ", " NAMES_32 ", " NAMES_64, REGISTERS_96, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
DEFINE_WGMMA(256, NAMES_0 ", " NAMES_32 ", " NAMES_64 ", " NAMES_96, REGISTERS_128, "%128", "%129", "%130", "%131", "%132", "%133", "%134")

#undef DEFINE_WGMMA
#undef REGISTERS_128
#undef REGISTERS_96
#undef REGISTERS_64
#undef REGISTERS_32
#undef REGISTERS_8
#undef NAMES_96
#undef NAMES_64
#undef NAMES_32
#undef NAMES_0
