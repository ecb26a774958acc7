//! Files that are replaced whole: never half-written, the old bytes overwritten.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::disk::access::private;
use crate::disk::{self, Boundary};
use crate::error::{Error, Result};
use crate::failpoint;

/// Where the next content of `path` is prepared, and where the old content ends up.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Replaces `path` by `bytes`, atomically and durably:
///
/// 1. write `path.new`, fsync it;
/// 2. exchange the two names (Linux `renameat2(RENAME_EXCHANGE)`), or rename where there is no
///    old file; must come after 1, or a crash leaves a torn file under the name;
/// 3. fsync the directory; must come after 2, or a power cut undoes it;
/// 4. overwrite what is now `path.new`, the old bytes, and remove it; must come after 3, or a
///    power cut may bring the overwritten file back under the name.
///
/// At each moment `path` is whole, and `path.new` is one that may be thrown away.
///
/// Where the file system cannot exchange names, the old file is kept open over a renaming, and
/// overwritten after 3 all the same; only a kill in between leaves its bytes on the disk.
///
/// Other names of the old file (hard links) show its new bytes, zeros: they are no copies.
///
/// # Errors
/// [`Error::OutsideStore`], before anything is changed, if `path` or `path.new` is a link or a mount
/// point: what a link points to would keep the old bytes.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = beside(path);
    let during = |step: &str| format!("{step} {}", new.display());
    let is_there = Boundary::of(folder(path))?.look(path)?.is_some();
    discard(path)?;
    let mut file = private(&new).map_err(|e| Error::io(during("creating"), e))?;
    failpoint::reach("keyring.begun", "");
    file.write_all(bytes).map_err(|e| Error::io(during("writing"), e))?;
    file.sync_all().map_err(|e| Error::io(during("syncing"), e))?;
    drop(file);
    // What can be refused for want of a descriptor is opened before the point of no return.
    let folder = folder(path);
    let dir = File::open(folder).map_err(|e| Error::io(during("opening the directory of"), e))?;
    failpoint::reach("keyring.written", "");
    let unnamed = if is_there {
        exchange(&new, path).map_err(|e| Error::io(during("exchanging"), e))?
    } else {
        fs::rename(&new, path).map_err(|e| Error::io(during("renaming"), e))?;
        None
    };
    failpoint::reach("keyring.exchanged", "");
    if let Err(error) = dir.sync_all() {
        let path = path.display();
        let why = format!(
            "{path} was replaced, and after a power cut may be the old or the new one: {error}"
        );
        return Err(Error::SyncFailed { why });
    }
    failpoint::reach("keyring.dir_synced", "");
    if let Some(mut old) = unnamed
        && let Err(error) = disk::overwrite_open(&mut old)
    {
        tracing::warn!(
            path = %path.display(), %error,
            "what the replaced file held, keys wrapped by the root key, stays on the disk until its \
             space is used again"
        );
    }
    if let Err(error) = discard_old(path) {
        tracing::warn!(%error, "the replaced file is overwritten at the next change or open");
    }
    Ok(())
}

/// Overwrites and removes what a replacement left behind, finished or not. A crash may have come
/// between its exchange and its fsync of the directory: that is made up for first, or a power
/// cut may bring the overwritten file back under the name.
pub(crate) fn discard(path: &Path) -> Result<()> {
    if fs::symlink_metadata(beside(path)).is_ok() {
        sync_dir(path)?;
        failpoint::reach("keyring.leftover_synced", "");
    }
    discard_old(path)
}

/// Does the same as [`discard`] once the directory is synced.
fn discard_old(path: &Path) -> Result<()> {
    let old = beside(path);
    let Some(found) = Boundary::of(folder(path))?.look(&old)? else { return Ok(()) };
    if !found.is_dir {
        disk::overwrite(&old)?;
    }
    failpoint::reach("keyring.overwritten", "");
    fs::remove_file(&old).map_err(|e| Error::io(format!("removing {}", old.display()), e))
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Makes the names in the directory of `path` durable.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    let dir = folder(path);
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Error::io(format!("syncing the directory {}", dir.display()), e))
}

/// Exchanges the names of two files. Where that cannot be done, `new` takes the place of the other,
/// which is given back, open for writing: no name leads to it any more.
fn exchange(new: &Path, path: &Path) -> io::Result<Option<File>> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;

        match renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE) {
            Ok(()) => return Ok(None),
            // The file system cannot exchange.
            Err(Errno::INVAL | Errno::NOSYS) => {}
            Err(e) => return Err(e.into()),
        }
    }
    rename_over(new, path).map(Some)
}

fn rename_over(new: &Path, path: &Path) -> io::Result<File> {
    let old = disk::to_overwrite(path)?;
    fs::rename(new, path)?;
    Ok(old)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn replaces_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keyring");
        for content in ["one", "two, longer", "3"] {
            replace(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn the_old_bytes_are_overwritten_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keyring");
        replace(&path, b"an old secret").unwrap();
        let mut old = File::open(&path).unwrap();
        replace(&path, b"a new secret").unwrap();
        let mut bytes = Vec::new();
        old.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [0; 13]);
    }

    #[test]
    fn a_file_system_that_cannot_exchange_names_keeps_no_old_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let (path, new) = (dir.path().join("keyring"), dir.path().join("keyring.new"));
        fs::write(&path, "an old secret").unwrap();
        fs::write(&new, "a new secret").unwrap();
        let mut seen = File::open(&path).unwrap();
        let mut old = rename_over(&new, &path).unwrap();
        disk::overwrite_open(&mut old).unwrap();
        let mut bytes = Vec::new();
        seen.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [0; 13]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "a new secret");
    }

    /// A link would become a file, and what it points to would keep the old bytes.
    #[test]
    fn a_link_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("keyring"), dir.path().join("elsewhere"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(matches!(replace(&path, b"new"), Err(Error::OutsideStore { .. })));
        assert_eq!(fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_half_written_successor_is_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keyring");
        replace(&path, b"whole").unwrap();
        fs::write(dir.path().join("keyring.new"), "hal").unwrap();
        discard(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        assert!(!dir.path().join("keyring.new").exists());
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keyring");
        replace(&path, b"x").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
