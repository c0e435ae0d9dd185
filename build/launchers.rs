//! Writes the typed Rust launchers and the kernel table.

use std::fmt::Write as _;

use crate::signatures::{Entry, Enum, Module, Param, Type};

/// The launchers of all kernels; `strict` if there is an instrumented build of them.
pub fn source(modules: &[Module], strict: bool) -> Result<String, String> {
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
            for suffix in if strict { &["host", "strict"][..] } else { &["host"] } {
                let _ = writeln!(text, "        fn {}__{suffix}(args: *mut *mut std::ffi::c_void);", entry.name);
            }
        }
        text += "    }\n";
        for constants in &module.enums {
            text += &constants_of(constants);
        }
        for entry in &module.entries {
            text += &kernel_static(stem, entry, strict);
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

fn kernel_static(stem: &str, entry: &Entry, strict: bool) -> String {
    let params: Vec<&str> = entry.params.iter().map(|p| p.name.as_str()).collect();
    let star = |p: &Param| if p.pointer { "*" } else { "" };
    let types: Vec<String> = entry.params.iter().map(|p| format!("{}{}", p.ty.cuda(), star(p))).collect();
    format!(
        "    /// {place}\n    pub static {upper}: Kernel = Kernel {{ name: {name:?}, module: {stem:?}, place: {place:?}, \
         cluster: {cluster}, params: &{params:?}, types: &{types:?}, host: {name}__host, strict: {strict} }};\n",
        place = entry.place,
        upper = entry.name.to_uppercase(),
        cluster = entry.cluster,
        strict = if strict { format!("Some({}__strict)", entry.name) } else { "None".into() },
        name = entry.name,
    )
}

/// Entries `x_f32` and `x_bf16` with matching parameters are one kernel `x<T>`.
struct Launched<'a> {
    name: String,
    entry: &'a Entry,
    /// Rust types of the parameters.
    types: Vec<String>,
    /// The expression of its table entry.
    kernel: String,
    generic: bool,
}

fn launched(module: &Module) -> Result<Vec<Launched<'_>>, String> {
    let mut all = Vec::new();
    for entry in &module.entries {
        let twin_of = |from: &str, to: &str| {
            let base = entry.name.strip_suffix(from)?;
            let twin = module.entries.iter().find(|e| e.name == format!("{base}{to}"))?;
            Some((base.to_string(), twin))
        };
        if let Some((base, bf16)) = twin_of("_f32", "_bf16") {
            all.push(generic(base, entry, bf16)?);
        } else if twin_of("_bf16", "_f32").is_none() {
            let types = entry.params.iter().map(|p| rust_type(p, p.ty)).collect();
            let kernel = format!("&{}", entry.name.to_uppercase());
            all.push(Launched { name: entry.name.clone(), entry, types, kernel, generic: false });
        }
    }
    Ok(all)
}

fn generic<'a>(name: String, f32_entry: &'a Entry, bf16_entry: &Entry) -> Result<Launched<'a>, String> {
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
            (Type::Float, Type::Bf16) if a.pointer => "&'a Buffer<T>".to_string(),
            (x, y) if x == y => rust_type(a, x),
            _ => return Err(differ(&format!("the type of `{}`", a.name))),
        });
    }
    let kernel = format!(
        "match T::DTYPE {{ DType::Bf16 => &{}, _ => &{} }}",
        bf16_entry.name.to_uppercase(),
        f32_entry.name.to_uppercase()
    );
    Ok(Launched { name, entry: f32_entry, types, kernel, generic: true })
}

fn rust_type(param: &Param, ty: Type) -> String {
    let scalar = match ty {
        Type::Float => "f32",
        Type::Bf16 => "bf16",
        Type::Double => "f64",
        Type::Int => "i32",
        Type::Unsigned => "u32",
        Type::UnsignedChar => "u8",
        Type::UnsignedShort => "u16",
        Type::LongLong => "i64",
        Type::UnsignedLongLong => "u64",
        Type::TensorMap => "&'a TensorMap",
    };
    if param.pointer { format!("&'a Buffer<{scalar}>") } else { scalar.to_string() }
}

/// Kernels that take the same parameters share a structure of arguments. One of its own has `launch`; of several each has a
/// function of its name.
fn launchers(module: &Module) -> Result<String, String> {
    let mut families: Vec<Vec<Launched>> = Vec::new();
    for kernel in launched(module)? {
        match families.iter_mut().find(|family| takes_the_same(&family[0], &kernel)) {
            Some(family) => family.push(kernel),
            None => families.push(vec![kernel]),
        }
    }
    let (mut text, mut names) = (String::new(), Vec::new());
    for family in &families {
        let name = family_name(family, &module.stem);
        if names.contains(&name) {
            return Err(format!("{}: the arguments of two kernels would be called `{name}`", family[0].entry.place));
        }
        text += &arguments(&name, family);
        text += &match family.as_slice() {
            [only] => method(&name, only),
            several => several.iter().map(|kernel| function(&name, kernel)).collect(),
        };
        names.push(name);
    }
    Ok(text)
}

fn takes_the_same(a: &Launched, b: &Launched) -> bool {
    let names = |x: &Launched| x.entry.params.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    a.generic == b.generic && a.types == b.types && names(a) == names(b)
}

/// What the names of all have in common at both ends, in `CamelCase`; the file's, if that is nothing.
fn family_name(family: &[Launched], stem: &str) -> String {
    let words: Vec<Vec<&str>> = family.iter().map(|kernel| kernel.name.split('_').collect()).collect();
    let shortest = words.iter().map(Vec::len).min().unwrap_or(0);
    let first = &words[0];
    let same_head = |at: usize| words.iter().all(|name| name[at] == first[at]);
    let head = (0..shortest).take_while(|&at| same_head(at)).count();
    let same_tail = |back: usize| words.iter().all(|name| name[name.len() - back] == first[first.len() - back]);
    let tail = (1..=shortest - head).take_while(|&back| same_tail(back)).count();
    let shared = first[..head].iter().chain(&first[first.len() - tail..]).copied();
    let name: String = shared.map(capitalised).collect();
    if name.is_empty() { stem.split('_').map(capitalised).collect() } else { name }
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}

/// Generic parameters of a structure of arguments: as it is declared, and as it is named.
fn generics(kernel: &Launched) -> [&'static str; 2] {
    let borrows = kernel.types.iter().any(|ty| ty.starts_with('&'));
    match (kernel.generic, borrows) {
        (true, _) => ["<'a, T: Float>", "<'_, T>"],
        (false, true) => ["<'a>", "<'_>"],
        (false, false) => ["", ""],
    }
}

fn arguments(name: &str, family: &[Launched]) -> String {
    let Launched { entry, types, .. } = &family[0];
    let names: Vec<String> = family.iter().map(|kernel| format!("`{}`", kernel.name)).collect();
    let mut text = format!("    /// Arguments of {}: {}.\n    #[derive(Clone, Copy)]\n", names.join(", "), entry.place);
    let _ = writeln!(text, "    pub struct {name}{} {{", generics(&family[0])[0]);
    for (param, ty) in entry.params.iter().zip(types) {
        let comment = param.comment.replace(['<', '>', '[', ']'], "`");
        let comment = if comment.is_empty() { format!("`{}`", param.name) } else { comment };
        let _ = writeln!(text, "        /// {comment}\n        pub {}: {ty},", param.name);
    }
    text + "    }\n"
}

/// The body that hands a structure's fields to the device, in the kernel's order.
fn body(name: &str, kernel: &Launched) -> String {
    let fields: Vec<&str> = kernel.entry.params.iter().map(|p| p.name.as_str()).collect();
    let args: Vec<String> = fields.iter().map(|field| format!("{field}.into()")).collect();
    format!(
        "let {name} {{ {} }} = args;\n        let kernel = {};\n        let args: &mut [Arg] = &mut [{}];\n        \
         // SAFETY: the arguments come from the kernel's own signature; the caller vouches for the lengths.\n        \
         unsafe {{ device.launch(kernel, launch, args) }}",
        fields.join(", "),
        kernel.kernel,
        args.join(", ")
    )
}

const CONTRACT: &str = "    ///\n    /// # Safety\n    /// Buffers are as long as the dimensions say.\n    ///\n    \
                        /// # Errors\n    /// As [`Device::launch`].\n";

fn method(name: &str, kernel: &Launched) -> String {
    let generics = if kernel.generic { "<T: Float> " } else { " " };
    format!(
        "    impl{generics}{name}{} {{\n    /// {}\n{CONTRACT}    \
         pub unsafe fn launch(self, device: &Device, launch: Launch) -> Result<()> {{\n        let args = self;\n        \
         {}\n    }}\n    }}\n",
        self::generics(kernel)[1],
        kernel.entry.place,
        body(name, kernel)
    )
}

fn function(name: &str, kernel: &Launched) -> String {
    let generics = if kernel.generic { "<T: Float>" } else { "" };
    format!(
        "    /// {}\n{CONTRACT}    \
         pub unsafe fn {}{generics}(device: &Device, launch: Launch, args: {name}{}) -> Result<()> {{\n        {}\n    }}\n",
        kernel.entry.place,
        kernel.name,
        self::generics(kernel)[1],
        body(name, kernel)
    )
}
