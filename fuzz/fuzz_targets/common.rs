//! A target's life in the fuzzer.

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind, set_hook},
    path::Path,
    process::abort,
    sync::{Mutex, OnceLock},
};

use tempfile::TempDir;
use warpo_fuzz::Target;

/// The panic that came last: the library catches those of the Parquet reader, and they are no finding.
static LAST: Mutex<String> = Mutex::new(String::new());

/// The target and its folder, made at the first input.
pub struct Life<T>(OnceLock<(TempDir, T)>);

impl<T: Target> Life<T> {
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// Before the first input. Writes the seeds into the folder that `SEEDS` names.
    pub fn begin(&self) {
        set_hook(Box::new(|info| {
            *LAST.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = info.to_string();
        }));
        let Some(folder) = env::var_os("SEEDS") else { return };
        for (i, seed) in T::seeds().into_iter().enumerate() {
            fs::write(Path::new(&folder).join(format!("seed-{i:02}")), seed).expect("SEEDS can be written");
        }
    }

    pub fn run(&self, bytes: &[u8]) {
        let (_, target) = self.0.get_or_init(|| {
            let folder = tempfile::tempdir().expect("a temporary folder can be made");
            let target = T::new(folder.path());
            (folder, target)
        });
        if catch_unwind(AssertUnwindSafe(|| target.run(bytes))).is_err() {
            eprintln!("{}", LAST.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
            abort();
        }
    }
}
