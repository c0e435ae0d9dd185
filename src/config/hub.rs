//! Model folders by other names: `~` paths, ids of the Hugging Face hub, and repositories of its cache.
//!
//! The cache is looked up where Hugging Face's own libraries keep it, by the variables that they read: `HF_HUB_CACHE`,
//! `HUGGINGFACE_HUB_CACHE`, `HF_HOME` and `XDG_CACHE_HOME`, else `~/.cache/huggingface/hub`. Nothing is ever downloaded.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

/// The branch whose snapshot an id stands for.
const BRANCH: &str = "main";

/// A path whose `~` is the user's home; as it is where there is none.
pub(super) fn home(path: &str) -> PathBuf {
    let rest = if path == "~" { Some("") } else { path.strip_prefix("~/") };
    match (rest, env::var_os("HOME")) {
        (Some(rest), Some(home)) if !home.is_empty() => Path::new(&home).join(rest),
        _ => path.into(),
    }
}

/// The folder of a model. `path` is relative to `base`; one that is there wins over an id of the same name.
///
/// # Errors
/// An id, or a repository of the cache, without a snapshot here.
pub(super) fn model_folder(path: &str, base: &Path) -> Result<PathBuf> {
    let folder = base.join(home(path));
    if folder.exists() {
        return Ok(if is_repository(&folder) { snapshot(&folder)? } else { folder });
    }
    let Some(cache) = cache().filter(|_| is_id(path)) else { return Ok(folder) };
    let repository = cache.join(format!("models--{}", path.replace('/', "--")));
    if repository.is_dir() {
        return snapshot(&repository);
    }
    // One word is far more often a folder that is not there.
    ensure!(
        !path.contains('/'),
        "model `{path}`: there is no such folder in {}, and as an id of the Hugging Face hub it is not in the cache {}: \
         nothing is downloaded here, run `hf download {path}` first",
        base.display(),
        cache.display()
    );
    Ok(folder)
}

/// `name` or `owner/name`, of the characters that the hub allows.
fn is_id(path: &str) -> bool {
    let part = |part: &str| {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && part.chars().all(is_allowed) && !part.starts_with(['-', '.']) && !part.contains("--")
    };
    path.split('/').count() <= 2 && path.split('/').all(part)
}

fn cache() -> Option<PathBuf> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty()).map(|value| home(&value));
    let huggingface = || {
        let caches = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
        variable("HF_HOME").or_else(|| caches.map(|caches| caches.join("huggingface")))
    };
    let hub = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
    hub.or_else(|| huggingface().map(|folder| folder.join("hub")))
}

/// A repository of the cache has snapshots and no files of its own.
fn is_repository(folder: &Path) -> bool {
    folder.join("snapshots").is_dir() && !folder.join("config.json").exists()
}

/// The snapshot that the branch stands for.
fn snapshot(repository: &Path) -> Result<PathBuf> {
    let shown = repository.display();
    let reference = repository.join("refs").join(BRANCH);
    let commit = fs::read_to_string(&reference).with_context(|| {
        format!("{shown}: a repository of the Hugging Face cache without refs/{BRANCH}: name one of its snapshots")
    })?;
    let commit = commit.trim();
    let folder = repository.join("snapshots").join(commit);
    let is_plain = !commit.is_empty() && !commit.contains(['/', '.']);
    ensure!(
        is_plain && folder.is_dir(),
        "{shown}: refs/{BRANCH} names `{}`, and snapshots/ has no such folder: run `hf download` again",
        commit.escape_debug()
    );
    Ok(folder)
}
