//! Free space on a disk. sled answers nothing any more, reads included, once it could not write: it is kept from
//! trying where there is next to no room. Knows no store.

use std::path::Path;

use model::{Error, Kind, Result};

/// What is left free for what sled has not handed to the system yet, bytes.
pub(crate) const RESERVE: u64 = 16 << 20;

/// Free bytes of the disk that a path is on; `None` where that cannot be told.
pub(crate) fn free(path: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(path).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// That there is room.
///
/// Errors: `Unavailable`.
pub(crate) fn check(path: &Path) -> Result<()> {
    match free(path) {
        Some(free) if free < RESERVE => Err(Error::new(
            Kind::Unavailable,
            format!(
                "the disk of {} is full ({free} bytes are free, and {RESERVE} are needed): what is there is served, and \
                 nothing is written until there is room",
                path.display()
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_told_is_no_full_disk() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(free(directory.path()).is_some());
        assert_eq!(free(&directory.path().join("nothing")), None);
        assert!(check(&directory.path().join("nothing")).is_ok());
    }
}
