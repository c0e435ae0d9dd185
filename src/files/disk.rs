//! Room on the disk: how much there is, and how an error says that there is none.

use std::{
    io::{self, ErrorKind},
    path::Path,
};

use rustix::fs::statvfs;

/// Whether this failed because a disk is full or a quota used up.
pub fn is_full(why: &anyhow::Error) -> bool {
    why.chain().any(|cause| cause.downcast_ref().is_some_and(is_full_error))
}

/// The same of one error of the system.
pub fn is_full_error(why: &io::Error) -> bool {
    matches!(why.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Bytes that this user may still write where `path` is or will be; `None` where the file system does not say.
pub fn free(path: &Path) -> Option<u64> {
    let there = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    let sizes = statvfs(if there.as_os_str().is_empty() { Path::new(".") } else { there }).ok()?;
    (sizes.f_blocks > 0).then(|| sizes.f_bavail.saturating_mul(sizes.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_yet_has_its_parents_room() {
        let place = tempfile::tempdir().unwrap();
        assert!(free(&place.path().join("a/b/c")).is_some_and(|bytes| bytes > 0));
        assert_eq!(free(Path::new("/proc")), None);
    }
}
