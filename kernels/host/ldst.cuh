// Twin of ptx/ldst.cuh. Without strict mode an asynchronous copy lands when it is issued.
#pragma once
#include <cuda_runtime.h>

struct alignas(16) Pack16 {
    unsigned word[4];
};

// A vector type keeps the access whole, so that strict mode sees 16 bytes and their alignment.
typedef unsigned SimtVector16 __attribute__((vector_size(16)));

inline Pack16 load16(const void* from) {
    const SimtVector16 v = *static_cast<const SimtVector16*>(from);
    return {{v[0], v[1], v[2], v[3]}};
}

inline void store16(void* to, Pack16 value) {
    *static_cast<SimtVector16*>(to) = SimtVector16{value.word[0], value.word[1], value.word[2], value.word[3]};
}

// Outside strict mode in one piece: reading eight floats right after they were written as two halves makes the processor
// wait for both stores.
typedef float SimtVector32 __attribute__((vector_size(32), aligned(4)));

__forceinline__ void load_f32x8(float (&x)[8], const float* from) {
    if (SIMT_STRICT) {
        const Pack16 low = load16(from), high = load16(from + 4);
        for (int i = 0; i < 4; ++i) x[i] = __uint_as_float(low.word[i]), x[4 + i] = __uint_as_float(high.word[i]);
        return;
    }
    *reinterpret_cast<SimtVector32*>(x) = *reinterpret_cast<const SimtVector32*>(from);
}

__forceinline__ void store_f32x8(float* to, const float (&x)[8]) {
    if (SIMT_STRICT) {
        Pack16 half[2];
        for (int i = 0; i < 8; ++i) half[i / 4].word[i % 4] = __float_as_uint(x[i]);
        store16(to, half[0]);
        store16(to + 4, half[1]);
        return;
    }
    *reinterpret_cast<SimtVector32*>(to) = *reinterpret_cast<const SimtVector32*>(x);
}

SIMT_UNSEEN inline void cp_async16(void* shared, const void* global, int bytes, SIMT_PLACE) {
    if (SIMT_STRICT) return simt_cp_async(shared, global, bytes, 16, file, line);
    memcpy(shared, global, bytes);
    memset(static_cast<char*>(shared) + bytes, 0, 16 - bytes);
}
inline void cp_async_commit() {
    if (SIMT_STRICT) simt_cp_async_commit();
}
template <int kPending>
inline void cp_async_wait(SIMT_PLACE) {
    if (SIMT_STRICT) simt_cp_async_wait(kPending, file, line);
}

struct SimtMatrixRow {
    const unsigned short* row;
    unsigned* result;
};

// A function and not a lambda: a lambda would not inherit the exemption from the instrumentation.
SIMT_UNSEEN inline unsigned simt_matrix_element(void** lanes, int matrix, int row, int column) {
    return static_cast<SimtMatrixRow*>(lanes[8 * matrix + row])->row[column];
}

template <bool kTrans>
SIMT_UNSEEN void simt_ldmatrix(void** lanes, unsigned) {
    for (int lane = 0; lane < 32; ++lane) {
        auto* own = static_cast<SimtMatrixRow*>(lanes[lane]);
        const int a = lane / 4, b = 2 * (lane % 4);
        for (int i = 0; i < 4; ++i) {
            const unsigned low = simt_matrix_element(lanes, i, kTrans ? b : a, kTrans ? a : b);
            const unsigned high = simt_matrix_element(lanes, i, kTrans ? b + 1 : a, kTrans ? a : b + 1);
            own->result[i] = low | high << 16;
        }
    }
}

SIMT_UNSEEN inline void ldmatrix_x4(unsigned (&r)[4], const void* row, SIMT_PLACE) {
    if (SIMT_STRICT) simt_access(row, 16, 16, 0, file, line);
    SimtMatrixRow payload{static_cast<const unsigned short*>(row), r};
    simt_collective(0xffffffffu, &payload, simt_ldmatrix<false>, file, line);
}
SIMT_UNSEEN inline void ldmatrix_x4_trans(unsigned (&r)[4], const void* row, SIMT_PLACE) {
    if (SIMT_STRICT) simt_access(row, 16, 16, 0, file, line);
    SimtMatrixRow payload{static_cast<const unsigned short*>(row), r};
    simt_collective(0xffffffffu, &payload, simt_ldmatrix<true>, file, line);
}

template <bool kTrans>
SIMT_UNSEEN void simt_stmatrix(void** lanes, unsigned) {
    for (int lane = 0; lane < 32; ++lane) {
        const auto* own = static_cast<SimtMatrixRow*>(lanes[lane]);
        const int a = lane / 4, b = 2 * (lane % 4);
        for (int i = 0; i < 4; ++i)
            for (int half = 0; half < 2; ++half) {
                const int row = kTrans ? b + half : a, column = kTrans ? a : b + half;
                auto* to = const_cast<unsigned short*>(static_cast<SimtMatrixRow*>(lanes[8 * i + row])->row);
                to[column] = (unsigned short)(own->result[i] >> 16 * half);
            }
    }
}

SIMT_UNSEEN inline void stmatrix_x4(void* row, const unsigned (&r)[4], SIMT_PLACE) {
    if (SIMT_STRICT) simt_access(row, 16, 16, 1, file, line);
    SimtMatrixRow payload{static_cast<unsigned short*>(row), const_cast<unsigned*>(r)};
    simt_collective(0xffffffffu, &payload, simt_stmatrix<false>, file, line);
}
SIMT_UNSEEN inline void stmatrix_x4_trans(void* row, const unsigned (&r)[4], SIMT_PLACE) {
    if (SIMT_STRICT) simt_access(row, 16, 16, 1, file, line);
    SimtMatrixRow payload{static_cast<unsigned short*>(row), const_cast<unsigned*>(r)};
    simt_collective(0xffffffffu, &payload, simt_stmatrix<true>, file, line);
}

// The 32-bit address of a byte of the CTA's shared memory: its rank in the cluster, then the offset.
inline unsigned shared_address(const void* pointer) {
    const auto* own = simt_thread();
    return own->cluster_rank << 24 | unsigned(static_cast<const char*>(pointer) - static_cast<const char*>(own->shared));
}
