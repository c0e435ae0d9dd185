//! What this program was built from: what its bits may depend on beside its settings.

/// A hash of the kernels' sources, of how they are compiled and of the compilers.
pub const KERNELS: &str = env!("KERNELS_HASH");

/// The release of a crate this program was built with; empty if the build knew of none.
pub fn of_crate(name: &str) -> &'static str {
    let locked = include_str!("../Cargo.lock");
    let entry = locked.split_once(&format!("name = \"{name}\"\nversion = \"")).map(|(_, rest)| rest);
    entry.and_then(|rest| rest.split_once('"')).map_or("", |(version, _)| version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_crates_are_read() {
        for name in ["tokenizers", "fancy-regex", "gemm-f32"] {
            let version = of_crate(name);
            assert!(version.starts_with(|first: char| first.is_ascii_digit()), "{name}: `{version}`");
        }
        assert_eq!(of_crate("no-such-crate"), "");
        assert_eq!(KERNELS.len(), 16);
    }
}
