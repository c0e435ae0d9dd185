//! Writes the typed Rust launchers and the kernel table.

use std::fmt::Write as _;

use crate::signatures::{Entry, Enum, Module, Param, Type};

pub fn source(modules: &[Module]) -> Result<String, String> {
    let mut text = String::from(
        "#[allow(unused_imports)]\nuse super::{Arg, Buffer, DType, Device, Float, Kernel, Launch, TensorMap};\nuse anyhow::Result;\n\
         #[allow(unused_imports)]\nuse half::bf16;\n\n",
    );
    let mut all = Vec::new();
    for module in modules {
        let stem = &module.stem;
        let _ = writeln!(
            text,
            "/// `kernels/{stem}.cu`.\npub mod {stem} {{\n    #[allow(unused_imports)]\n    use super::*;\n"
        );
        text += "    unsafe extern \"C\" {\n";
        for entry in &module.entries {
            for suffix in ["host", "strict"] {
                let _ = writeln!(text, "        fn {}__{suffix}(args: *mut *mut std::ffi::c_void);", entry.name);
            }
        }
        text += "    }\n";
        for constants in &module.enums {
            text += &constants_of(constants);
        }
        for entry in &module.entries {
            text += &kernel_static(stem, entry);
            all.push(format!("&{stem}::{}", entry.name.to_uppercase()));
        }
        text += &launchers(module)?;
        text += "}\n\n";
    }
    let _ =
        writeln!(text, "/// Every kernel entry of the program.\npub static ALL: &[&Kernel] = &[{}];", all.join(", "));
    Ok(text)
}

/// `enum Phi { kSoftLabel }` as `phi::SOFT_LABEL`.
fn constants_of(constants: &Enum) -> String {
    let words = |name: &str| {
        let mut words = String::new();
        for (i, c) in name.chars().enumerate() {
            if c.is_ascii_uppercase() && i > 0 {
                words.push('_');
            }
            words.push(c);
        }
        words
    };
    let mut text = format!("    /// `enum {}`\n    #[allow(dead_code)]\n", constants.name);
    let _ = writeln!(text, "    pub mod {} {{", words(&constants.name).to_lowercase());
    for (name, value) in &constants.values {
        let name = words(name.strip_prefix('k').unwrap_or(name)).to_uppercase();
        let _ = writeln!(text, "        pub const {name}: i32 = {value};");
    }
    text + "    }\n"
}

fn kernel_static(stem: &str, entry: &Entry) -> String {
    let params: Vec<&str> = entry.params.iter().map(|p| p.name.as_str()).collect();
    let star = |p: &Param| if p.pointer { "*" } else { "" };
    let types: Vec<String> = entry.params.iter().map(|p| format!("{}{}", p.ty.cuda(), star(p))).collect();
    format!(
        "    /// {place}\n    pub static {upper}: Kernel = Kernel {{ name: {name:?}, module: {stem:?}, place: {place:?}, \
         cluster: {cluster}, params: &{params:?}, types: &{types:?}, host: {name}__host, strict: {name}__strict }};\n",
        place = entry.place,
        upper = entry.name.to_uppercase(),
        cluster = entry.cluster,
        name = entry.name,
    )
}

/// Entries `x_f32` and `x_bf16` with matching parameters share one launcher `x<T>`.
fn launchers(module: &Module) -> Result<String, String> {
    let mut text = String::new();
    for entry in &module.entries {
        let twin_of = |from: &str, to: &str| {
            let base = entry.name.strip_suffix(from)?;
            let twin = module.entries.iter().find(|e| e.name == format!("{base}{to}"))?;
            Some((base.to_string(), twin))
        };
        if let Some((base, bf16)) = twin_of("_f32", "_bf16") {
            text += &generic(&base, entry, bf16)?;
        } else if twin_of("_bf16", "_f32").is_none() {
            let types: Vec<String> = entry.params.iter().map(|p| rust_type(p, p.ty)).collect();
            text += &launcher(&entry.name, "", entry, &types, &format!("&{}", entry.name.to_uppercase()));
        }
    }
    Ok(text)
}

fn generic(base: &str, f32_entry: &Entry, bf16_entry: &Entry) -> Result<String, String> {
    let differ = |what: &str| {
        format!(
            "{}: `{}` and `{}` ({}) differ in {what}; a pair that shares a launcher takes the same parameters",
            f32_entry.place, f32_entry.name, bf16_entry.name, bf16_entry.place
        )
    };
    if f32_entry.params.len() != bf16_entry.params.len() {
        return Err(differ("their number of parameters"));
    }
    let mut types = Vec::new();
    for (a, b) in f32_entry.params.iter().zip(&bf16_entry.params) {
        if a.name != b.name || a.pointer != b.pointer {
            return Err(differ(&format!("parameter `{}`", a.name)));
        }
        types.push(match (a.ty, b.ty) {
            (Type::Float, Type::Bf16) if a.pointer => "&Buffer<T>".to_string(),
            (x, y) if x == y => rust_type(a, x),
            _ => return Err(differ(&format!("the type of `{}`", a.name))),
        });
    }
    let pick = format!(
        "match T::DTYPE {{ DType::Bf16 => &{}, _ => &{} }}",
        bf16_entry.name.to_uppercase(),
        f32_entry.name.to_uppercase()
    );
    Ok(launcher(base, "<T: Float>", f32_entry, &types, &pick))
}

fn rust_type(param: &Param, ty: Type) -> String {
    let scalar = match ty {
        Type::Float => "f32",
        Type::Bf16 => "bf16",
        Type::Double => "f64",
        Type::Int => "i32",
        Type::Unsigned => "u32",
        Type::UnsignedChar => "u8",
        Type::LongLong => "i64",
        Type::UnsignedLongLong => "u64",
        Type::TensorMap => "&TensorMap",
    };
    if param.pointer { format!("&Buffer<{scalar}>") } else { scalar.to_string() }
}

fn launcher(name: &str, generics: &str, entry: &Entry, types: &[String], kernel: &str) -> String {
    let mut text = format!("    /// {}\n    ///\n", entry.place);
    for param in entry.params.iter().filter(|p| !p.comment.is_empty()) {
        let _ = writeln!(text, "    /// * `{}`: {}", param.name, param.comment.replace(['<', '>', '[', ']'], "`"));
    }
    let params: Vec<String> = entry.params.iter().zip(types).map(|(p, ty)| format!("{}: {ty}", p.name)).collect();
    let args: Vec<String> = entry.params.iter().map(|p| format!("{}.into()", p.name)).collect();
    let _ = writeln!(
        text,
        "    ///\n    /// # Safety\n    /// Buffers are as long as these dimensions say.\n    \
         pub unsafe fn {name}{generics}(device: &Device, launch: Launch, {}) -> Result<()> {{\n        \
         let kernel = {kernel};\n        let args: &mut [Arg] = &mut [{}];\n        \
         // SAFETY: the arguments come from the kernel's own signature; the caller vouches for the lengths.\n        \
         unsafe {{ device.launch(kernel, launch, args) }}\n    }}\n",
        params.join(", "),
        args.join(", ")
    );
    text
}
