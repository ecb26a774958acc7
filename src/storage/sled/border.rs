//! The border to sled: its lock, its errors and panics, and what a refused sync leaves behind.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::disk::access;
use crate::error::{Error, Result};

/// sled's own threads may hold its lock for some milliseconds after a database was dropped. Who
/// opens a store has the store's lock already, so nobody of ours comes between.
pub(super) fn await_release(dir: &Path, longest: Duration) -> Result<()> {
    const STEP: Duration = Duration::from_millis(1);

    let path = dir.join("db");
    let log = match File::open(&path) {
        Ok(log) => log,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(format!("opening {}", path.display()), e)),
    };
    let start = Instant::now();
    loop {
        match try_lock(&log) {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if start.elapsed() < longest => {
                std::thread::park_timeout(STEP);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::StoreLocked { path: dir.to_owned(), pid: None });
            }
            Err(TryLockError::Error(e)) => {
                return Err(Error::io(format!("locking {}", path.display()), e));
            }
        }
    }
}

/// Whether it could be locked. The lock is let go by itself and not by closing the file: a child that
/// another thread is just starting has the file too, until it runs its program, and sled does not
/// wait for that.
fn try_lock(log: &File) -> Result<(), TryLockError> {
    log.try_lock()?;
    log.unlock().map_err(TryLockError::Error)
}

/// Where a refused sync is noted. Like the pages that the disk did not take, the note may live
/// only in the system's cache: as long as those would be believed, it is seen.
pub(super) fn refusal_note(dir: &Path) -> PathBuf {
    dir.join("sync-failed")
}

pub(super) fn note_refusal(dir: &Path) {
    // The disk is failing: where even this cannot be noted, nothing more can be done.
    let _ = access::private(&refusal_note(dir));
}

/// After a refused sync, makes sled read what the disk really holds and not what the system
/// still has in its cache.
pub(super) fn forget_cached(dir: &Path) -> Result<()> {
    let note = refusal_note(dir);
    if !note.exists() {
        return Ok(());
    }
    tracing::warn!(dir = %dir.display(), "the last sync failed; reading from the disk itself");
    let during =
        |e: std::io::Error| Error::io(format!("dropping the cache of {}", dir.display()), e);
    for folder in [dir.to_owned(), dir.join("blobs")] {
        for entry in fs::read_dir(folder).map_err(during)? {
            let path = entry.map_err(during)?.path();
            if path.is_file() {
                let file = File::open(path).map_err(during)?;
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
                    .map_err(|e| during(e.into()))?;
            }
        }
    }
    fs::remove_file(note).map_err(during)
}

/// Runs `f`; sled's errors and panics become ours. sled's locks do not poison, so reading may go
/// on after a panic; `broken` notes it for those who write.
pub(super) fn guarded<T>(
    dir: &Path,
    during: &str,
    broken: Option<&OnceLock<Error>>,
    f: impl FnOnce() -> sled::Result<T>,
) -> Result<T> {
    let damaged = |why: String| Error::StorageDamaged { path: dir.to_owned(), why };
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(sled::Error::Io(error))) => Err(Error::io(during, error)),
        Ok(Err(error)) => Err(damaged(format!("{during}: {error}"))),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            let error = damaged(format!("{during}, sled panicked: {text}"));
            if let Some(broken) = broken {
                broken.get_or_init(|| error.clone());
            }
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tried_is_not_left_locked_to_a_child() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let log = File::create_new(&path).unwrap();
        // As a child has it.
        let _inherited = log.try_clone().unwrap();
        assert!(try_lock(&log).is_ok());
        drop(log);
        assert!(File::open(&path).unwrap().try_lock().is_ok());
    }
}
