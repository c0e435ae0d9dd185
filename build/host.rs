//! The host device's library: every `.cu` compiled by the C++ compiler, once for speed and once with thread-sanitizer
//! instrumentation for strict mode.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    compile::{self, Job},
    signatures::{Entry, Module},
};

/// One of the two builds, of which the second is for the feature `strict`. Each file lives in a namespace of its own in each, because templates and inline functions of
/// the same name would otherwise be merged by the linker.
struct Flavour {
    suffix: &'static str,
    flags: &'static [&'static str],
}

const FLAVOURS: [Flavour; 2] = [
    Flavour { suffix: "host", flags: &["-DSIMT_STRICT=0", "-O3"] },
    Flavour {
        suffix: "strict",
        flags: &["-DSIMT_STRICT=1", "-O1", "-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"],
    },
];

/// The kernels of the library.
pub fn build(modules: &[Module], strict: bool, out: &Path) -> Result<(), String> {
    let folder = out.join("host");
    let mut jobs = jobs(modules, if strict { &FLAVOURS } else { &FLAVOURS[..1] }, &folder)?;
    jobs.extend(strict.then(|| instrumentation(&folder)));
    archive(jobs, cc::Build::new().cargo_metadata(true), "warpo_kernels")
}

/// Kernels for tests of the host device itself: linked into the test binaries and nowhere else.
pub fn build_for_tests(modules: &[Module], out: &Path) -> Result<(), String> {
    let jobs = jobs(modules, &FLAVOURS, &out.join("host_tests"))?;
    let name = "warpo_test_kernels";
    archive(jobs, cc::Build::new().cargo_metadata(false), name)?;
    println!("cargo::rustc-link-arg-tests={}", out.join(format!("lib{name}.a")).display());
    Ok(())
}

fn archive(jobs: Vec<Job>, archive: &mut cc::Build, name: &str) -> Result<(), String> {
    jobs.iter().for_each(|job| {
        archive.object(&job.output);
    });
    compile::run_all(jobs)?;
    archive.cpp(true).cpp_link_stdlib(None);
    archive.try_compile(name).map_err(|e| format!("host kernels: {e}"))
}

fn jobs(modules: &[Module], flavours: &[Flavour], folder: &Path) -> Result<Vec<Job>, String> {
    fs::create_dir_all(folder).map_err(|e| e.to_string())?;
    let flavours = |module| flavours.iter().map(move |flavour| job(module, flavour, folder));
    modules.iter().flat_map(flavours).collect()
}

fn job(module: &Module, flavour: &Flavour, folder: &Path) -> Result<Job, String> {
    let name = format!("{}_{}", module.stem, flavour.suffix);
    let source = folder.join(format!("{name}.cpp"));
    crate::write(&source, &wrapper(module, flavour))?;
    let output = folder.join(format!("{name}.o"));
    let mut command = compiler();
    command
        .args(flavour.flags)
        .args(["-std=c++17", "-g1", "-fno-exceptions", "-fno-rtti", "-fno-strict-aliasing", "-fPIC"])
        // Separate roundings, as in the oracles: contraction would depend on the compiler's mood. That no operation
        // traps changes no result, but without it a comparison keeps a loop from being vectorised.
        .args(["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"])
        // Jump threading splits clamps into branches before they could become vector minima.
        .arg("-fno-thread-jumps")
        .args(["-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function"])
        .args(["-Ikernels/host", "-Ikernels/lib", "-Ikernels", "-MD", "-MF"])
        .arg(Job::depfile(&output))
        .arg("-c")
        .arg(&source)
        .arg("-o")
        .arg(&output);
    Ok(Job {
        what: format!("{}/{}.cu for the {} device", module.folder, module.stem, flavour.suffix),
        command,
        output,
        judge: |_| Vec::new(),
    })
}

/// The callbacks of the instrumented build.
fn instrumentation(folder: &Path) -> Job {
    let output = folder.join("instrumentation.o");
    let mut command = compiler();
    command.args(["-O2", "-std=c++17", "-fno-exceptions", "-fPIC", "-Wall", "-MD", "-MF"]).arg(Job::depfile(&output));
    command.args(["-c", "kernels/host/instrumentation.cpp", "-o"]).arg(&output);
    Job { what: "kernels/host/instrumentation.cpp".into(), command, output, judge: |_| Vec::new() }
}

pub fn compiler() -> Command {
    let mut build = cc::Build::new();
    build.cpp(true).no_default_flags(true).warnings(false);
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        build.flag("-march=x86-64-v3");
    }
    build.get_compiler().to_command()
}

/// The kernels inside a namespace, their entry points renamed, and one trampoline each that unpacks the arguments.
fn wrapper(module: &Module, flavour: &Flavour) -> String {
    let suffix = flavour.suffix;
    let mut text = String::from("#include <simt_system.h>\n");
    for entry in &module.entries {
        let _ = writeln!(text, "#define {0} {0}__{suffix}_kernel", entry.name);
    }
    let namespace = format!("simt_{suffix}_{}", module.stem);
    let source = PathBuf::from(format!("{}/{}.cu", module.folder, module.stem));
    let source = fs::canonicalize(&source).unwrap_or(source);
    let _ = writeln!(text, "namespace {namespace} {{\n#include {source:?}\n}}");
    for entry in &module.entries {
        text += &trampoline(entry, suffix, &namespace);
    }
    text
}

fn trampoline(entry: &Entry, suffix: &str, namespace: &str) -> String {
    let argument = |(i, p): (usize, &crate::signatures::Param)| {
        let ty = match p.ty.cuda() {
            "bf16" => format!("{namespace}::bf16"),
            ty => ty.to_string(),
        };
        let star = if p.pointer { "*" } else { "" };
        format!("*static_cast<{ty}{star}*>(args[{i}])")
    };
    let arguments: Vec<String> = entry.params.iter().enumerate().map(argument).collect();
    format!(
        "extern \"C\" SIMT_UNSEEN void {0}__{suffix}(void** args) {{ (void)args; {namespace}::{0}({1}); }}\n",
        entry.name,
        arguments.join(", ")
    )
}
