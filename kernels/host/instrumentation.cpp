// What the compiler's thread-sanitizer pass calls before every load and store of the strict build. Here and not in
// Rust because only C can ask where it was called from.

extern "C" {
void simt_instrumented(unsigned long long address, unsigned long long bytes, unsigned alignment, unsigned write,
                       unsigned long long code);

#define CODE (unsigned long long)__builtin_return_address(0)
#define ACCESS(name, bytes, alignment, write) \
    void __tsan_##name##bytes(void* address) { \
        simt_instrumented((unsigned long long)address, bytes, alignment, write, CODE); \
    }

ACCESS(read, 1, 1, 0)
ACCESS(read, 2, 2, 0)
ACCESS(read, 4, 4, 0)
ACCESS(read, 8, 8, 0)
ACCESS(read, 16, 16, 0)
ACCESS(write, 1, 1, 1)
ACCESS(write, 2, 2, 1)
ACCESS(write, 4, 4, 1)
ACCESS(write, 8, 8, 1)
ACCESS(write, 16, 16, 1)
// The compiler knows of no alignment here and makes no wide access of it.
ACCESS(unaligned_read, 2, 1, 0)
ACCESS(unaligned_read, 4, 1, 0)
ACCESS(unaligned_read, 8, 1, 0)
ACCESS(unaligned_read, 16, 1, 0)
ACCESS(unaligned_write, 2, 1, 1)
ACCESS(unaligned_write, 4, 1, 1)
ACCESS(unaligned_write, 8, 1, 1)
ACCESS(unaligned_write, 16, 1, 1)

void __tsan_read_range(void* address, unsigned long bytes) {
    simt_instrumented((unsigned long long)address, bytes, 1, 0, CODE);
}
void __tsan_write_range(void* address, unsigned long bytes) {
    simt_instrumented((unsigned long long)address, bytes, 1, 1, CODE);
}
void __tsan_init(void) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void) {}
}
