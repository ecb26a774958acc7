//! The lock of a store's directory: one process has it open.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::disk::access;
use crate::error::{Error, Result};

/// Held as long as the store is open; sled's own lock on its file comes later and names no
/// process.
pub(super) struct DirLock {
    file: File,
    process: u32,
}

impl DirLock {
    pub(super) fn take(dir: &Path) -> Result<Self> {
        let path = dir.join("LOCK");
        let during = |e| Error::io(format!("locking {}", path.display()), e);
        let mut file = access::private(&path).map_err(during)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { file, process: std::process::id() }),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let read = file.read_to_string(&mut holder);
                let pid = read.ok().and_then(|_| holder.trim().parse().ok());
                Err(Error::StoreLocked { path: dir.to_owned(), pid })
            }
            Err(TryLockError::Error(e)) => Err(during(e)),
        }
    }

    /// Writes down who has it, for those who are refused.
    pub(super) fn note_process(&mut self) -> Result<()> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .and_then(|()| writeln!(self.file, "{}", self.process))
            .map_err(|e| Error::io("writing LOCK", e))
    }
}

impl Drop for DirLock {
    /// Closing the file would not do: a process that another thread of ours is just starting has
    /// the file too, from `fork` to `exec`, and with it the lock. For the same reason a copy of
    /// ours that never calls `exec` must not let go of what is not its own.
    fn drop(&mut self) {
        if self.process == std::process::id() {
            // What cannot be unlocked is as it closes.
            let _ = self.file.unlock();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_let_go_is_not_left_locked_to_a_child() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        // What a child has between `fork` and `exec`: the same open file.
        let _of_a_child = lock.file.try_clone().unwrap();
        drop(lock);
        assert!(DirLock::take(dir.path()).is_ok());
    }

    #[test]
    fn a_copy_of_the_process_does_not_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let lock = DirLock::take(dir.path()).unwrap();
        let of_a_child = lock.file.try_clone().unwrap();
        drop(DirLock { file: of_a_child, process: lock.process + 1 });
        assert!(DirLock::take(dir.path()).is_err());
    }

    #[test]
    fn who_is_refused_is_told_by_whom() {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = DirLock::take(dir.path()).unwrap();
        lock.note_process().unwrap();
        match DirLock::take(dir.path()) {
            Err(Error::StoreLocked { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{:?}", other.err()),
        }
    }
}
