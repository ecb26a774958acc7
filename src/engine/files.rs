//! A store's files below its directory: which there are, what they hold of old envelopes, and how
//! they are overwritten and removed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::disk::{self, Boundary, Entry};
use crate::envelope::{FORMAT, HEADER_LEN, Header};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::id::{KeyVersion, OrgId, Suite};
use crate::sealed::file;
use crate::storage::SledStorage;

/// The store's own files in its directory, beside its databases.
const OWN: [&str; 4] = ["keyring", "keyring.new", "mark", "LOCK"];

/// Envelopes of one key version that were found in files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) envelopes: u64,
    pub(super) bytes_at_most: u64,
    /// Files that hold some of them and are not the store's.
    pub(super) elsewhere: Vec<PathBuf>,
}

pub(super) type Tallies = BTreeMap<(OrgId, KeyVersion), Tally>;

/// Returns true if any database lies in the directory.
pub(super) fn any_database(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|e| SledStorage::exists(&e.path())))
    })
}

/// Returns true for the name of a database; a plain file of that name is not the store's.
fn is_database(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name == "db" || name.strip_prefix("db.").is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
}

fn is_own(path: &Path) -> bool {
    OWN.iter().any(|own| path.file_name().is_some_and(|name| name == *own))
}

fn listed(dir: &Path) -> Result<Vec<PathBuf>> {
    let during = |e| Error::io(format!("listing {}", dir.display()), e);
    let entries = fs::read_dir(dir).map_err(during)?;
    let mut paths =
        entries.map(|entry| entry.map(|e| e.path()).map_err(during)).collect::<Result<Vec<_>>>()?;
    paths.sort_unstable();
    Ok(paths)
}

/// The databases in the directory: the current one and what a removal left.
pub(super) fn databases(dir: &Path) -> Result<Vec<PathBuf>> {
    let boundary = Boundary::of(dir)?;
    let mut found = Vec::new();
    for path in listed(dir)?.into_iter().filter(|path| is_database(path)) {
        found.extend(boundary.look(&path)?.filter(|entry| entry.is_dir).map(|entry| entry.path));
    }
    Ok(found)
}

/// Gives each file that the store made in `dir` to `each`, and what lies in the place of one and is
/// outside ([`Boundary`]) as an error.
pub(super) fn each_own(
    dir: &Path,
    each: &mut dyn FnMut(Result<Entry>) -> Result<()>,
) -> Result<()> {
    let boundary = Boundary::of(dir)?;
    for path in listed(dir)?.into_iter().filter(|path| is_own(path) || is_database(path)) {
        match boundary.look(&path) {
            Ok(Some(entry)) if is_database(&path) && entry.is_dir => boundary.walk(&path, each)?,
            Ok(Some(entry)) if is_own(&path) => each(Ok(entry))?,
            Ok(_) => {}
            Err(error @ Error::OutsideStore { .. }) => each(Err(error))?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Refuses a directory in which a link, a mount point or a special file lies where the store keeps
/// files of its own. Changes nothing.
pub(super) fn check(dir: &Path) -> Result<()> {
    each_own(dir, &mut |entry| entry.map(drop))
}

/// Counts headers of the given orgs in every file below `dir`: in those of all databases, and in files
/// that are not the store's, which are read and never changed.
pub(super) fn count(dir: &Path, orgs: &HashSet<[u8; 16]>) -> Result<Tallies> {
    let boundary = Boundary::of(dir)?;
    let mut tallies = Tallies::new();
    let databases = databases(dir)?;
    for path in listed(dir)?.into_iter().filter(|path| !is_own(path)) {
        let is_ours = databases.contains(&path);
        let found = match is_ours {
            true => boundary.files_below(&path)?,
            false => readable_below(&boundary, &path)?,
        };
        for names in by_inode(found) {
            let mut here = Tallies::new();
            // sled may have removed one name since, and the file have another.
            let Some(name) = first_of(&names, |name| {
                let piece = SledStorage::piece_of(name).filter(|_| is_ours).unwrap_or(u64::MAX);
                count_in(name, piece, orgs, &mut here)
            })?
            else {
                continue;
            };
            for (under, found) in here {
                let tally = tallies.entry(under).or_default();
                tally.envelopes += found.envelopes;
                tally.bytes_at_most += found.bytes_at_most;
                tally.elsewhere.extend((!is_ours).then(|| name.clone()));
            }
        }
    }
    Ok(tallies)
}

/// The files at a path that is not the store's: what leads elsewhere is not followed, and what may not
/// be read is somebody else's.
fn readable_below(boundary: &Boundary, path: &Path) -> Result<Vec<Entry>> {
    let found = match boundary.look(path) {
        Ok(Some(entry)) if entry.is_dir => {
            let mut files = Vec::new();
            let walked = boundary.walk(path, &mut |entry| {
                files.extend(entry.ok());
                Ok(())
            });
            walked.map(|()| files)
        }
        Err(Error::OutsideStore { .. }) => return Ok(Vec::new()),
        found => found.map(|entry| entry.into_iter().collect()),
    };
    match found {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            tracing::warn!(path = %path.display(), "not searched: it may not be read");
            Ok(Vec::new())
        }
        found => found,
    }
}

/// The names of each file.
fn by_inode(entries: Vec<Entry>) -> Vec<Vec<PathBuf>> {
    let mut files: Vec<Vec<PathBuf>> = Vec::new();
    let mut known = HashMap::new();
    for entry in entries {
        let at = *known.entry(entry.inode).or_insert(files.len());
        match files.get_mut(at) {
            Some(names) => names.push(entry.path),
            None => files.push(vec![entry.path]),
        }
    }
    files
}

/// Does `f` with the first of the names that is still there. `None` if none is.
fn first_of(names: &[PathBuf], mut f: impl FnMut(&Path) -> Result<()>) -> Result<Option<&PathBuf>> {
    for name in names {
        match f(name) {
            Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            done => return done.map(|()| Some(name)),
        }
    }
    Ok(None)
}

/// Overwrites every file of a database with zeros, durably, and removes it all. Where anything in it
/// leads elsewhere nothing is overwritten. See [`disk::overwrite`] for what that does not reach.
pub(super) fn erase_database(path: &Path) -> Result<()> {
    let Some(dir) = path.parent() else { return Ok(()) };
    let boundary = Boundary::of(dir)?;
    if boundary.look(path)?.is_none() {
        return Ok(());
    }
    for names in by_inode(boundary.files_below(path)?) {
        // sled tidies up on its own when it is closed; a large page has another name then.
        first_of(&names, disk::overwrite)?;
    }
    failpoint::reach("residue.overwritten", "");
    let during = |e| Error::io(format!("removing {}", path.display()), e);
    fs::remove_dir_all(path).map_err(during)?;
    file::sync_dir(path)
}

/// Counts headers of the orgs in one file, wherever they stand, of every suite that there is. No
/// envelope goes over the end of a `piece`.
fn count_in(
    path: &Path,
    piece: u64,
    orgs: &HashSet<[u8; 16]>,
    tallies: &mut Tallies,
) -> Result<()> {
    const WINDOW: usize = 512 << 10;

    let during = |e| Error::io(format!("reading {}", path.display()), e);
    let mut input = File::open(path).map_err(during)?;
    let mut window = vec![0; WINDOW + HEADER_LEN];
    let mut at = 0;
    let mut last: Option<((OrgId, KeyVersion), u64)> = None;
    let bytes = |since: u64, until: u64| {
        let end = (since / piece + 1).saturating_mul(piece);
        end.min(until).saturating_sub(since)
    };
    loop {
        input.seek(SeekFrom::Start(at)).map_err(during)?;
        let mut filled = 0;
        while filled < window.len() {
            match input.read(&mut window[filled..]).map_err(during)? {
                0 => break,
                read => filled += read,
            }
        }
        // A header may begin in this window and end in the next.
        let starts = filled.saturating_sub(HEADER_LEN - 1).min(WINDOW);
        for start in 0..starts {
            let header = &window[start..start + HEADER_LEN];
            if header[0] != FORMAT || Suite::from_byte(header[1]).is_none() {
                continue;
            }
            let known = header[2..18].first_chunk().is_some_and(|org| orgs.contains(org));
            if let Some(found) = known.then(|| Header::read(header)).flatten() {
                let here = at + start as u64;
                if let Some((under, since)) = last {
                    tallies.entry(under).or_default().bytes_at_most += bytes(since, here);
                }
                let under = (found.org, found.version);
                tallies.entry(under).or_default().envelopes += 1;
                last = Some((under, here));
            }
        }
        if filled < window.len() {
            if let Some((under, since)) = last {
                let end = at + filled as u64;
                tallies.entry(under).or_default().bytes_at_most += bytes(since, end);
            }
            return Ok(());
        }
        at += WINDOW as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORG: OrgId = OrgId::from_bytes([7; 16]);

    fn orgs() -> HashSet<[u8; 16]> {
        HashSet::from([*ORG.as_bytes()])
    }

    fn header(suite: Suite, org: OrgId) -> [u8; HEADER_LEN] {
        Header { suite, org, version: KeyVersion::FIRST }.encode()
    }

    #[test]
    fn headers_are_found_wherever_they_stand() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raw");
        let mut bytes = vec![1; 3 << 20];
        let window = 512 << 10;
        // At the start, over the edges of windows, at the very end.
        let places =
            [0, 100, window - 22, 2 * window - 1, 3 * window - 21, 4 * window, bytes.len() - 22];
        for at in places {
            bytes[at..at + 22].copy_from_slice(&header(Suite::Xaes256Gcm, ORG));
        }
        let other = OrgId::from_bytes([8; 16]);
        bytes[5000..5022].copy_from_slice(&header(Suite::Xaes256Gcm, other));
        fs::write(&path, &bytes).unwrap();
        let count = |piece| {
            let mut tallies = Tallies::new();
            count_in(&path, piece, &orgs(), &mut tallies).unwrap();
            assert_eq!(tallies.len(), 1);
            let tally = &tallies[&(ORG, KeyVersion::FIRST)];
            (tally.envelopes, tally.bytes_at_most)
        };
        let all = places.len() as u64;
        assert_eq!(count(u64::MAX), (all, 3 << 20), "all of one file");
        let (first, over_edges, later) = (window as u64, 1 + 21, window as u64 + 22);
        assert_eq!(count(window as u64), (all, first + over_edges + later));
    }

    /// A suite that is not searched for would make every certificate of erasure false.
    #[test]
    fn envelopes_of_every_suite_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("raw");
        for suite in Suite::ALL {
            // A suite that is new belongs into `Suite::ALL`, and is then searched for.
            match suite {
                Suite::Xaes256Gcm | Suite::XChaCha20Poly1305 | Suite::Aegis256 => {}
            }
        }
        for byte in 0..=u8::MAX {
            let mut bytes = header(Suite::Xaes256Gcm, ORG);
            bytes[1] = byte;
            fs::write(&path, bytes).unwrap();
            let mut tallies = Tallies::new();
            count_in(&path, u64::MAX, &orgs(), &mut tallies).unwrap();
            let is_suite = Suite::ALL.iter().any(|suite| suite.byte() == byte);
            assert_eq!(!tallies.is_empty(), is_suite, "{byte}");
        }
    }

    #[test]
    fn a_file_with_two_names_counts_once_and_by_either() {
        let dir = tempfile::tempdir().unwrap();
        let db = dir.path().join("db");
        fs::create_dir_all(db.join("blobs")).unwrap();
        fs::write(db.join("blobs/1"), header(Suite::Xaes256Gcm, ORG)).unwrap();
        fs::create_dir(db.join("links")).unwrap();
        fs::hard_link(db.join("blobs/1"), db.join("links/1")).unwrap();
        let found = || count(dir.path(), &orgs()).unwrap();
        assert_eq!(found()[&(ORG, KeyVersion::FIRST)].envelopes, 1);
        fs::remove_file(db.join("blobs/1")).unwrap();
        assert_eq!(found()[&(ORG, KeyVersion::FIRST)].envelopes, 1);
        let names = [db.join("blobs/1"), db.join("links/1")];
        assert_eq!(first_of(&names, disk::overwrite).unwrap(), Some(&names[1]));
        assert!(found().is_empty());
    }

    #[test]
    fn files_that_are_not_the_stores_are_searched_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("db.old/blobs/1");
        fs::create_dir_all(old.parent().unwrap()).unwrap();
        fs::write(&old, header(Suite::Xaes256Gcm, ORG)).unwrap();
        std::os::unix::fs::symlink("/proc", dir.path().join("elsewhere")).unwrap();
        let found = count(dir.path(), &orgs()).unwrap();
        assert_eq!(found[&(ORG, KeyVersion::FIRST)].elsewhere, [old]);
        check(dir.path()).unwrap();
    }
}
