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

/// One of the two builds. Each lives in a namespace of its own, because templates and inline functions of the same
/// name would otherwise be merged by the linker.
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

pub fn build(modules: &[Module], out: &Path) -> Result<(), String> {
    let folder = out.join("host");
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let mut jobs = Vec::new();
    let mut objects = Vec::new();
    for module in modules {
        for flavour in &FLAVOURS {
            let job = job(module, flavour, &folder)?;
            objects.push(job.output.clone());
            jobs.push(job);
        }
    }
    compile::run_all(jobs)?;
    let mut archive = cc::Build::new();
    archive.cpp(true).cpp_link_stdlib(None).cargo_metadata(true);
    objects.iter().for_each(|object| {
        archive.object(object);
    });
    archive.try_compile("warpo_kernels").map_err(|e| format!("host kernels: {e}"))
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
        // Separate roundings, as in the oracles: contraction would depend on the compiler's mood.
        .args(["-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function"])
        .args(["-Ikernels/host", "-Ikernels/lib", "-Ikernels", "-MD", "-MF"])
        .arg(Job::depfile(&output))
        .arg("-c")
        .arg(&source)
        .arg("-o")
        .arg(&output);
    Ok(Job {
        what: format!("kernels/{}.cu for the {} device", module.stem, flavour.suffix),
        command,
        output,
        judge: |_| Vec::new(),
    })
}

fn compiler() -> Command {
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
    let source = PathBuf::from(format!("kernels/{}.cu", module.stem));
    let source = fs::canonicalize(&source).unwrap_or(source);
    let _ = writeln!(text, "namespace simt_{suffix} {{\n#include {source:?}\n}}");
    for entry in &module.entries {
        text += &trampoline(entry, suffix);
    }
    text
}

fn trampoline(entry: &Entry, suffix: &str) -> String {
    let argument = |(i, p): (usize, &crate::signatures::Param)| {
        let ty = match p.ty.cuda() {
            "bf16" => format!("simt_{suffix}::bf16"),
            ty => ty.to_string(),
        };
        let star = if p.pointer { "*" } else { "" };
        format!("*static_cast<{ty}{star}*>(args[{i}])")
    };
    let arguments: Vec<String> = entry.params.iter().enumerate().map(argument).collect();
    format!(
        "extern \"C\" void {0}__{suffix}(void** args) {{ (void)args; simt_{suffix}::{0}({1}); }}\n",
        entry.name,
        arguments.join(", ")
    )
}
