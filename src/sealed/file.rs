//! Files that are replaced whole: never half-written, the old bytes overwritten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::failpoint;

/// Where the next content of `path` is prepared, and where the old content ends up.
fn beside(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Replaces `path` by `bytes`, atomically and durably:
///
/// 1. write `path.new`, fsync it;
/// 2. exchange the two names (Linux `renameat2(RENAME_EXCHANGE)`), or link where there is no
///    old file; must come after 1, or a crash leaves a torn file under the name;
/// 3. fsync the directory; must come after 2, or a power cut undoes it;
/// 4. overwrite what is now `path.new`, the old bytes, and remove it; must come after 3, or a
///    power cut may bring the overwritten file back under the name.
///
/// At each moment `path` is whole, and `path.new` is one that may be thrown away.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let new = beside(path);
    let during = |step: &str| format!("{step} {}", new.display());
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
    if path.exists() {
        exchange(&new, path).map_err(|e| Error::io(during("exchanging"), e))?;
    } else {
        fs::rename(&new, path).map_err(|e| Error::io(during("renaming"), e))?;
    }
    failpoint::reach("keyring.exchanged", "");
    if let Err(error) = dir.sync_all() {
        let path = path.display();
        let why = format!(
            "{path} was replaced, and after a power cut may be the old or the new one: {error}"
        );
        return Err(Error::SyncFailed { why });
    }
    failpoint::reach("keyring.dir_synced", "");
    if let Err(error) = discard_old(path) {
        tracing::warn!(%error, "the replaced file is overwritten at the next change or open");
    }
    Ok(())
}

/// Overwrites and removes what a replacement left behind, finished or not. A crash may have come
/// between its exchange and its fsync of the directory: that is made up for first, or a power
/// cut may bring the overwritten file back under the name.
///
/// The overwriting reaches the blocks of the old file on file systems that write in place. It
/// does not on copy-on-write and log-structured ones (btrfs, ZFS, F2FS), nor does it reach a
/// flash drive's spare blocks, journals or snapshots.
pub(crate) fn discard(path: &Path) -> Result<()> {
    if fs::symlink_metadata(beside(path)).is_ok() {
        sync_dir(path)?;
        failpoint::reach("keyring.leftover_synced", "");
    }
    discard_old(path)
}

/// Likewise, once the directory is synced.
fn discard_old(path: &Path) -> Result<()> {
    let old = beside(path);
    let during = |e| Error::io(format!("removing {}", old.display()), e);
    match fs::symlink_metadata(&old) {
        Ok(meta) if meta.is_file() => overwrite(&old)?,
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(during(e)),
    }
    failpoint::reach("keyring.overwritten", "");
    fs::remove_file(&old).map_err(during)
}

/// Overwrites a file with zeros, durably. Never what a symbolic link points to.
pub(crate) fn overwrite(path: &Path) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true);
    let overwritten = not_through_links(&mut options).open(path).and_then(|mut file| {
        let len = file.metadata()?.len();
        io::copy(&mut io::repeat(0).take(len), &mut file)?;
        file.sync_data()
    });
    overwritten.map_err(|e| Error::io(format!("overwriting {}", path.display()), e))
}

#[cfg(unix)]
fn not_through_links(options: &mut OpenOptions) -> &mut OpenOptions {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, flags)
}

#[cfg(not(unix))]
fn not_through_links(options: &mut OpenOptions) -> &mut OpenOptions {
    options
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

/// Creates or opens a file that only its owner may read.
pub(crate) fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(target_os = "linux")]
fn exchange(new: &Path, path: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};

    match renameat_with(CWD, new, CWD, path, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        // The file system cannot exchange.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => rename(new, path),
        Err(e) => Err(e.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(new: &Path, path: &Path) -> io::Result<()> {
    rename(new, path)
}

/// The old bytes go unoverwritten: nothing leads to them any more.
fn rename(new: &Path, path: &Path) -> io::Result<()> {
    fs::rename(new, path)?;
    tracing::warn!(
        path = %path.display(),
        "this file system cannot exchange two files: what the old one held, keys wrapped by the \
         root key, stays on the disk until its space is used again"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
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
