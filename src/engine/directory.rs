//! The directory of a store: made or found free, and used by nobody but its owner.

use std::fs;
use std::io;
use std::path::Path;

use super::files;
use crate::disk::access::{self, Shared};
use crate::error::{Error, Result};
use crate::mark::Mark;
use crate::sealed::file;

/// Makes the directory where there is none. Refuses one that a store must not be in or be made in,
/// before a lock is put there.
///
/// Where there is no store, a directory of ours that others may use is made private before it is
/// looked whether it is empty, so that nobody puts something there afterwards.
pub(super) fn prepare(dir: &Path, keyring: &Path) -> Result<()> {
    make(dir)?;
    if keyring.exists() {
        return check_private(dir);
    }
    check_free(dir)?;
    let looking = |e| Error::io(format!("looking at {}", dir.display()), e);
    if let Some((mode, why)) = access::refuses_store(dir).map_err(looking)? {
        let why = format!("{why}; name a directory inside it that does not exist yet");
        return Err(Error::NotPrivate { path: dir.to_owned(), mode, why });
    }
    make_private(dir)?;
    check_free(dir)
}

/// Makes the directory and those above it that are missing, each durably.
fn make(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(above) = dir.parent().filter(|above| !above.as_os_str().is_empty()) {
        make(above)?;
    }
    access::make_dir(dir).map_err(|e| Error::io(format!("creating {}", dir.display()), e))?;
    file::sync_dir(dir)
}

/// Refuses a store that others than its owner may have changed: the certificates and checks of this
/// store rest on what lies in its files.
fn check_private(dir: &Path) -> Result<()> {
    let looking = |e| Error::io(format!("looking at {}", dir.display()), e);
    match access::look(dir).map_err(looking)? {
        Shared::No | Shared::Read => Ok(()),
        Shared::Write(path, mode) => {
            let why = format!(
                "so they may have changed the store; see who did, run `chmod -R go-rwx` on {}, and \
                 have `Store::verify` look at every record",
                dir.display()
            );
            Err(Error::NotPrivate { path, mode, why })
        }
    }
}

/// Takes from others what they may do with the directory and the files right inside it.
pub(super) fn make_private(dir: &Path) -> Result<()> {
    match access::tighten(dir) {
        // Nobody changes modes there, and nobody else's will be written.
        Err(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => return Ok(()),
        done => done.map_err(|e| Error::io(format!("making {} private", dir.display()), e))?,
    }
    for name in ["keyring", "keyring.new", "mark", "LOCK"] {
        match access::tighten(&dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(error = %e, name, "others may read a file of the store");
            }
            _ => {}
        }
    }
    match access::look(dir) {
        // A file system without modes of its own.
        Ok(Shared::Write(path, mode)) => {
            let why =
                "and that cannot be changed there; put the store on a file system with modes, \
                       or mount that one for its owner alone"
                    .to_owned();
            Err(Error::NotPrivate { path, mode, why })
        }
        _ => Ok(()),
    }
}

/// Refuses to make a store where another one, or something else, lies.
pub(super) fn check_free(dir: &Path) -> Result<()> {
    if files::any_database(dir) || Mark::path(dir).exists() {
        let why = "the keyring is missing, but there is data that needs it; nothing was changed; \
                   put back the newest copy of the whole data directory";
        return Err(Error::damaged(&dir.join("keyring"), why));
    }
    let occupied = fs::read_dir(dir)
        .map_err(|e| Error::io(format!("listing {}", dir.display()), e))?
        .filter_map(Result::ok)
        .any(|entry| !["LOCK", "keyring.new"].iter().any(|ours| entry.file_name() == *ours));
    if occupied {
        return Err(Error::damaged(
            dir,
            "the directory holds files that are not of a store; nothing was changed; give an \
             empty directory or one that does not exist",
        ));
    }
    Ok(())
}
