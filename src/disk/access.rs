//! Who may use the store's files: their owner alone. Directories have mode 0700 and files 0600,
//! whatever the process's umask is. The umask belongs to the whole process, so it is never changed:
//! what is made gets its mode when it is made, and what sled makes gets it afterwards.
//!
//! On systems other than Unix files have no modes, and nothing is done.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// Mode of each directory of a store.
const DIR_MODE: u32 = 0o700;
/// Mode of each file of a store.
const FILE_MODE: u32 = 0o600;
/// What others than the owner may do: anything, write, go through a directory.
const ANYTHING: u32 = 0o077;
const WRITE: u32 = 0o022;
const PASS: u32 = 0o011;
/// Set on directories that are meant to be shared, as `/tmp` is.
const STICKY: u32 = 0o1000;

/// Options that create a file with its mode.
pub(crate) fn private_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, FILE_MODE);
    options
}

/// Creates or opens a file that only its owner may use.
pub(crate) fn private(path: &Path) -> io::Result<File> {
    private_options().read(true).write(true).create(true).truncate(false).open(path)
}

/// Creates a directory that only its owner may use, if there is none, and those above it that
/// are missing.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, DIR_MODE);
    builder.recursive(true).create(dir)
}

/// Takes from others what a file or directory of the store lets them do. Not through a link.
pub(crate) fn tighten(path: &Path) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    match mode(&meta) {
        Some(mode) if mode & ANYTHING != 0 && !meta.is_symlink() => set_mode(path, &meta),
        _ => Ok(()),
    }
}

/// The same for a file that is open.
pub(crate) fn tighten_file(file: &File) -> io::Result<()> {
    let meta = file.metadata()?;
    match mode(&meta) {
        #[cfg(unix)]
        Some(mode) if mode & ANYTHING != 0 => {
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(FILE_MODE))
        }
        _ => Ok(()),
    }
}

/// The same for a directory and everything right inside it. What cannot be changed, because it
/// belongs to another user, keeps nothing else from it.
pub(crate) fn tighten_all(dir: &Path) -> io::Result<()> {
    let mut outcome = tighten(dir);
    for entry in fs::read_dir(dir)? {
        match tighten(&entry?.path()) {
            // sled removes files while they are listed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            done => outcome = outcome.and(done),
        }
    }
    outcome
}

/// What others than the owner may do with a store.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Shared {
    /// Nothing, or what systems without modes cannot tell.
    No,
    /// They may list the directory, or read files in it.
    Read,
    /// They may change this, which has this mode.
    Write(PathBuf, u32),
}

/// Looks what others may do with the store in `dir`. What lies in a directory that they cannot go
/// through is out of their reach.
pub(crate) fn look(dir: &Path) -> io::Result<Shared> {
    let Some(of_dir) = mode(&fs::metadata(dir)?) else { return Ok(Shared::No) };
    if of_dir & WRITE != 0 {
        return Ok(Shared::Write(dir.to_owned(), of_dir));
    }
    if of_dir & PASS != 0 {
        let mut within = vec![dir.to_owned()];
        while let Some(dir) = within.pop() {
            let entries = match fs::read_dir(&dir) {
                // Of another user: whoever is let in there is for that user to say.
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied => continue,
                entries => entries?,
            };
            for entry in entries {
                let entry = entry?;
                let meta = match entry.metadata() {
                    Ok(meta) if !meta.is_symlink() => meta,
                    Ok(_) => continue,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(e),
                };
                let of_entry = mode(&meta).unwrap_or_default();
                if of_entry & WRITE != 0 {
                    return Ok(Shared::Write(entry.path(), of_entry));
                }
                if meta.is_dir() && of_entry & PASS != 0 {
                    within.push(entry.path());
                }
            }
        }
    }
    Ok(if of_dir & ANYTHING == 0 { Shared::No } else { Shared::Read })
}

/// Why a directory without a store in it may not be made private for one.
pub(crate) fn refuses_store(dir: &Path) -> io::Result<Option<(u32, &'static str)>> {
    let meta = fs::metadata(dir)?;
    let Some(mode) = mode(&meta).filter(|mode| mode & ANYTHING != 0) else { return Ok(None) };
    Ok(if mode & STICKY != 0 {
        Some((mode, "it is meant to be shared (its sticky bit is set)"))
    } else if !is_own(&meta) {
        Some((mode, "it belongs to another user, so it cannot be made private"))
    } else {
        None
    })
}

#[cfg(unix)]
fn mode(meta: &fs::Metadata) -> Option<u32> {
    Some(std::os::unix::fs::MetadataExt::mode(meta) & 0o7777)
}

#[cfg(not(unix))]
fn mode(_: &fs::Metadata) -> Option<u32> {
    None
}

#[cfg(unix)]
fn is_own(meta: &fs::Metadata) -> bool {
    std::os::unix::fs::MetadataExt::uid(meta) == rustix::process::geteuid().as_raw()
}

#[cfg(not(unix))]
fn is_own(_: &fs::Metadata) -> bool {
    true
}

#[cfg(unix)]
fn set_mode(path: &Path, meta: &fs::Metadata) -> io::Result<()> {
    let mode = if meta.is_dir() { DIR_MODE } else { FILE_MODE };
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

#[cfg(not(unix))]
fn set_mode(_: &Path, _: &fs::Metadata) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_is_made_is_private_and_what_is_tightened_becomes_so() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("a/b");
        make_dir(&made).unwrap();
        drop(private(&made.join("file")).unwrap());
        assert_eq!([mode_of(&made), mode_of(&made.join("file"))], [0o700, 0o600]);
        fs::create_dir(made.join("blobs")).unwrap();
        std::os::unix::fs::symlink(dir.path(), made.join("link")).unwrap();
        set(dir.path(), 0o755);
        set(&made, 0o2777);
        set(&made.join("file"), 0o644);
        set(&made.join("blobs"), 0o755);
        tighten_all(&made).unwrap();
        let modes =
            [made.clone(), made.join("file"), made.join("blobs")].map(|path| mode_of(&path));
        assert_eq!(modes, [0o700, 0o600, 0o700]);
        assert_eq!(mode_of(dir.path()), 0o755, "not through a link");
        set(&made.join("file"), 0o644);
        tighten_file(&File::open(made.join("file")).unwrap()).unwrap();
        assert_eq!(mode_of(&made.join("file")), 0o600);
    }

    #[test]
    fn what_others_may_do_is_found_where_they_can_reach_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let blob = dir.join("db/blobs/1");
        make_dir(blob.parent().unwrap()).unwrap();
        drop(private(&blob).unwrap());
        set(dir, 0o700);
        set(&blob, 0o666);
        assert_eq!(look(dir).unwrap(), Shared::No);
        set(dir, 0o744);
        assert_eq!(look(dir).unwrap(), Shared::Read, "they cannot go through it");
        set(dir, 0o755);
        assert_eq!(look(dir).unwrap(), Shared::Read, "nor through db/");
        set(&dir.join("db"), 0o755);
        set(&dir.join("db/blobs"), 0o711);
        assert_eq!(look(dir).unwrap(), Shared::Write(blob.clone(), 0o666));
        set(&blob, 0o644);
        assert_eq!(look(dir).unwrap(), Shared::Read);
        set(dir, 0o720);
        assert_eq!(look(dir).unwrap(), Shared::Write(dir.to_owned(), 0o720));
    }

    #[test]
    fn a_directory_that_is_meant_to_be_shared_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        set(dir.path(), 0o777);
        assert_eq!(refuses_store(dir.path()).unwrap(), None);
        set(dir.path(), 0o1777);
        assert!(refuses_store(dir.path()).unwrap().is_some_and(|(mode, _)| mode == 0o1777));
        set(dir.path(), 0o1700);
        assert_eq!(refuses_store(dir.path()).unwrap(), None);
    }
}
