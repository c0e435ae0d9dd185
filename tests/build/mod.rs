//! The build script's own rules: what it reads from a kernel, and what it refuses.

mod catalogue;
mod house;
mod machine_code;
#[allow(dead_code)]
#[path = "../../build/ptxas.rs"]
mod ptxas;
mod resources;
#[allow(dead_code)]
#[path = "../../build/signatures.rs"]
mod signatures;

use std::sync::Mutex;

use signatures::{Type, read_enums, read_text};

/// Held by the tests that write into kernels/README.md.
static README: Mutex<()> = Mutex::new(());

const GOOD: &str = r#"// A kernel may be named in a comment: extern "C" __global__ void not_this(int x) {}
#include <types.cuh>

template <class T>
__device__ void add(T* y, const T* x, int n) {}

extern "C" __global__ void __launch_bounds__(128) add_f32(
    float* y,        // (n), added to
    const float* x,  // (n)
    double scale, unsigned long long seed, int n) {
    add<float>(y, x, n);
}

extern "C" __global__ void __launch_bounds__(kThreads, 2) __cluster_dims__(2, 1, 1) pair(
    const bf16* __restrict__ x, /* (rows) */ unsigned char const* mask,  // (rows)
    unsigned rows) {}

extern "C" __global__ void nothing() {}
"#;

#[test]
fn signatures_are_read() {
    let entries = read_text("kernels/add.cu", GOOD).unwrap();
    let names: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.place.as_str(), e.bounds.as_str())).collect();
    let want = [("add_f32", "kernels/add.cu:7", "128"), ("pair", "kernels/add.cu:14", "kThreads, 2")];
    assert_eq!(names[..2], want);
    assert_eq!(names[2], ("nothing", "kernels/add.cu:18", ""));

    let params = |i: usize| -> Vec<_> {
        entries[i].params.iter().map(|p| (p.name.as_str(), p.ty, p.pointer, p.comment.as_str())).collect()
    };
    let want = [
        ("y", Type::Float, true, "(n), added to"),
        ("x", Type::Float, true, "(n)"),
        ("scale", Type::Double, false, ""),
        ("seed", Type::UnsignedLongLong, false, ""),
        ("n", Type::Int, false, ""),
    ];
    assert_eq!(params(0), want);
    let want = [
        ("x", Type::Bf16, true, ""),
        ("mask", Type::UnsignedChar, true, "(rows)"),
        ("rows", Type::Unsigned, false, ""),
    ];
    assert_eq!(params(1), want);
    assert!(params(2).is_empty());
}

/// Each of these stands in line 3 of its file.
#[test]
fn a_signature_that_cannot_be_read_is_an_error_with_file_and_line() {
    let bad = [
        ("extern \"C\" __global__ void k(half* x) {}", "parameter `half* x`: expected `[const] TYPE [*] name`"),
        ("extern \"C\" __global__ void k(float** x) {}", "parameter `float** x`"),
        ("extern \"C\" __global__ void k(float& x) {}", "parameter `float& x`"),
        ("extern \"C\" __global__ void k(int) {}", "parameter `int`"),
        ("extern \"C\" __global__ void k(struct Dims dims) {}", "parameter `struct Dims dims`"),
        ("extern \"C\" __global__ int k(int x) {}", "a kernel returns void"),
        ("extern \"C\" __global__ void k;", "no parameter list"),
        ("extern \"C\" __global__ void k(int x", "the parameter list does not end"),
        ("extern \"C\" __global__ void __launch_bounds__ k", "attribute without parentheses"),
        ("extern \"C\" __global__ void k<float>(int x) {}", "kernel name `k<float>`"),
        ("__global__ void k(int x) {}", "write a kernel as `extern \"C\" __global__ void"),
        ("template <class T> __global__ void k(T* x) {}", "write a kernel as"),
        ("extern \"C\" void __global__ k(int x) {}", "write a kernel as"),
    ];
    for (line, why) in bad {
        let text = format!("// head\n#include <types.cuh>\n{line}\n");
        let error = read_text("kernels/bad.cu", &text).expect_err(line);
        assert!(error.starts_with("kernels/bad.cu:3: ") && error.contains(why), "{line}\n{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

/// Printed by ptxas 13.0.88 for kernels made to earn it.
const PTXAS: &str = "\
ptxas info    : (C7517) warpgroup.wait is injected in around line 61 by compiler to allow use of registers defined by GMMA in function 'serialised'
ptxas info    : (C7511) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient register resources for the wgmma pipeline in the function 'serialised'
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'fine' for 'sm_90a'
ptxas info    : Function properties for fine
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers
ptxas info    : Compile time = 28.552 ms
ptxas info    : Compiling entry function 'spills' for 'sm_90a'
ptxas info    : Function properties for spills
    10352 bytes stack frame, 26080 bytes spill stores, 47420 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 10352 bytes cumulative stack size
ptxas info    : Compiling entry function 'stack' for 'sm_90a'
ptxas info    : Function properties for stack
    32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 31 registers, used 0 barriers, 32 bytes cumulative stack size
";

#[test]
fn spills_stack_and_serialisation_fail_the_build_by_name() {
    let found = ptxas::judge(PTXAS);
    let starts = [
        "kernel `serialised`: ptxas info    : (C7517) warpgroup.wait is injected",
        "kernel `serialised`: ptxas info    : (C7511) Potential Performance Loss",
        "kernel `spills`: 10352 bytes stack frame, 26080 bytes spill stores",
        "kernel `stack`: 32 bytes stack frame, 0 bytes spill stores",
    ];
    assert_eq!(found.len(), starts.len(), "{found:#?}");
    for (line, start) in found.iter().zip(starts) {
        assert!(line.starts_with(start), "{line}");
    }
    assert!(ptxas::judge(PTXAS.split("Compiling entry function 'spills'").next().unwrap()).len() == 2);
}

#[test]
fn enumerations_have_their_values() {
    let text = "#include <x>\n// enum Not { kThis };\nenum Phi { kOne, kTwo,  // a comment\n    kFour = 4, kFive };\nenum Flag { kA = 1, kB = 2 };\n";
    let enums = read_enums(text).unwrap();
    let values = |i: usize| enums[i].values.iter().map(|(name, value)| (name.as_str(), *value)).collect::<Vec<_>>();
    assert_eq!(
        (enums[0].name.as_str(), values(0)),
        ("Phi", vec![("kOne", 0), ("kTwo", 1), ("kFour", 4), ("kFive", 5)])
    );
    assert_eq!((enums[1].name.as_str(), values(1)), ("Flag", vec![("kA", 1), ("kB", 2)]));
    assert!(read_enums("\nenum Bad { kA = x };").is_err());
}
