// Patterns of access to shared memory whose conflicts are known.

#include <cta.cuh>
#include <ldst.cuh>

// One warp: writes words `stride` apart, reads them back at another stride; wide loads of 16 bytes `stride16` apart.
extern "C" __global__ void __launch_bounds__(32) strided(
    float* y,  // (32)
    int write_stride, int read_stride, int stride16) {
    float* shared = shared_memory<float>();
    for (int i = threadIdx.x; i < 32 * 32; i += 32) shared[i] = 1.0f;  // fill
    __syncthreads();
    shared[threadIdx.x * write_stride % 1024] = 2.0f;  // write
    __syncthreads();
    float sum = shared[threadIdx.x * read_stride % 1024];  // read
    const Pack16 wide = load16(shared + threadIdx.x * 4 * stride16 % 1024);  // wide
    sum += wide.word[0] != 0 ? 1.0f : 0.0f;
    y[threadIdx.x] = sum;
}
