//! The kernels embedded in the program, and which image a GPU takes.

use std::{collections::BTreeMap, sync::OnceLock};

/// Machine code and PTX are read in words: `include_bytes!` alone promises no alignment.
#[repr(C, align(64))]
pub struct Aligned<T: ?Sized>(pub T);

/// One image of one `kernels/*.cu`.
pub struct Cubin {
    /// Stem of the source.
    pub module: &'static str,
    /// `80` or `90a`: machine code. `compute_80`: PTX, ended by a zero byte, which the driver compiles.
    pub arch: &'static str,
    /// A cubin, or PTX that ends with a zero byte.
    pub image: &'static Aligned<[u8]>,
}

/// Everything the build embedded.
pub struct CubinTable {
    /// Compiler and release; empty if there was none.
    pub toolchain: &'static str,
    /// All of them; none if the build had no nvcc.
    pub cubins: &'static [Cubin],
}

/// Images of kernels that a program brings itself: the tests' of single instructions.
static ADDED: OnceLock<&'static [Cubin]> = OnceLock::new();

/// Adds images to those of this build, once in a program; a second time changes nothing.
pub fn add(cubins: &'static [Cubin]) {
    ADDED.get_or_init(|| cubins);
}

/// The best image of `module` for a GPU, embedded or added.
pub fn pick(module: &str, capability: (u32, u32)) -> Option<&'static Cubin> {
    let added = CubinTable { toolchain: "", cubins: ADDED.get().copied().unwrap_or_default() };
    EMBEDDED.pick(module, capability).or_else(|| added.pick(module, capability))
}

/// The images of this build.
pub static EMBEDDED: CubinTable = include!(concat!(env!("OUT_DIR"), "/cubins.rs"));

impl CubinTable {
    /// The best image of `module` for a GPU: machine code of its own kind, else of an older minor version, else PTX.
    pub fn pick(&self, module: &str, capability: (u32, u32)) -> Option<&'static Cubin> {
        self.cubins
            .iter()
            .filter(|cubin| cubin.module == module)
            .filter_map(|cubin| Some((rank(cubin.arch, capability)?, cubin)))
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, cubin)| cubin)
    }

    /// Modules and the architectures they are embedded for.
    pub fn by_module(&self) -> BTreeMap<&'static str, Vec<&'static str>> {
        let mut modules = BTreeMap::<_, Vec<_>>::new();
        self.cubins.iter().for_each(|cubin| modules.entry(cubin.module).or_default().push(cubin.arch));
        modules
    }

    /// Every architecture there is an image for.
    pub fn archs(&self) -> Vec<&'static str> {
        let mut archs: Vec<_> = self.cubins.iter().map(|cubin| cubin.arch).collect();
        archs.sort_unstable();
        archs.dedup();
        archs
    }
}

/// How well an image suits a GPU; `None` if it does not run there. Machine code runs on its own major version from its
/// minor version up, `a` variants on exactly their own version, PTX on everything from its version up.
fn rank(arch: &str, (major, minor): (u32, u32)) -> Option<(u8, u32)> {
    let device = major * 10 + minor;
    let number = |text: &str| text.parse::<u32>().ok();
    if let Some(virtual_arch) = arch.strip_prefix("compute_") {
        let version = number(virtual_arch)?;
        (version <= device).then_some((0, version))
    } else if let Some(exact) = arch.strip_suffix('a') {
        (number(exact)? == device).then_some((2, device))
    } else {
        let version = number(arch)?;
        (version / 10 == major && version <= device).then_some((1, version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn cubin(module: &'static str, arch: &'static str) -> Cubin {
        Cubin { module, arch, image: &Aligned([0]) }
    }

    #[test]
    fn the_best_image_wins() {
        static CUBINS: [Cubin; 5] = [
            cubin("gemm", "80"),
            cubin("gemm", "86"),
            cubin("gemm", "90a"),
            cubin("gemm", "compute_80"),
            cubin("gemm_sm90", "90a"),
        ];
        let table = CubinTable { toolchain: "nvcc", cubins: &CUBINS };
        let pick = |module, capability| table.pick(module, capability).map(|cubin| cubin.arch);
        let cases = [
            ("gemm", (8, 0), Some("80")),
            ("gemm", (8, 6), Some("86")),
            ("gemm", (8, 9), Some("86")),
            ("gemm", (9, 0), Some("90a")),
            ("gemm", (10, 0), Some("compute_80")),
            ("gemm", (12, 1), Some("compute_80")),
            ("gemm", (7, 5), None),
            ("gemm_sm90", (9, 0), Some("90a")),
            ("gemm_sm90", (8, 0), None),
            ("gemm_sm90", (10, 0), None),
            ("other", (9, 0), None),
        ];
        for (module, capability, want) in cases {
            assert_eq!(pick(module, capability), want, "{module} on {capability:?}");
        }
    }
}
