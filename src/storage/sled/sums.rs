//! Which bytes belong under which name of a large page's file.
//!
//! sled puts a page above a quarter of a segment into a file of its own, `blobs/PLACE`, whose
//! checksum covers what it holds and not where it belongs: of two files that were exchanged each
//! is whole, and sled, which finds a page where another belongs, looks for a key for ever. So we
//! note the checksum of each file that was synced, and look at the files before sled does.
//!
//! A note is place (8, big-endian) ‖ the file's first four bytes, its checksum (4) ‖ crc32 of
//! these (4, big-endian), appended to the file `blob-sums`. Nothing depends on a note: what is
//! torn, or was lost with the power, is no note. Wrong ones there must never be: sled gives a place
//! out once in its life, but its recovery takes back those that it finds nothing for, so before
//! that all notes are durably gone.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::log;
use crate::disk::access;

const NOTE: usize = 16;
pub(super) const HEAD: usize = 4;

/// The first bytes of a blob, once they are written.
pub(super) type Head = [u8; HEAD];

pub(super) fn head(blob: &File) -> Option<Head> {
    let mut head = [0; HEAD];
    blob.read_exact_at(&mut head, 0).ok().map(|()| head)
}

pub(super) fn path(dir: &Path) -> PathBuf {
    dir.join("blob-sums")
}

fn noted_in(dir: &Path) -> io::Result<HashMap<i64, Head>> {
    match fs::read(path(dir)) {
        Ok(bytes) => Ok(bytes.chunks_exact(NOTE).filter_map(read).collect()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(HashMap::new()),
        Err(e) => Err(e),
    }
}

/// A noted blob that is not there any more, or begins with other bytes.
pub(super) fn missing(dir: &Path) -> io::Result<Option<PathBuf>> {
    changed(dir, |_| Ok(true))
}

/// A whole blob that is not the one that was written there. What is not whole, or gone, is left to
/// sled, which notices.
pub(super) fn misplaced(dir: &Path) -> io::Result<Option<PathBuf>> {
    changed(dir, log::is_whole)
}

fn changed(dir: &Path, counts: impl Fn(&Path) -> io::Result<bool>) -> io::Result<Option<PathBuf>> {
    for (place, noted) in noted_in(dir)? {
        let blob = dir.join("blobs").join(place.to_string());
        let found = match File::open(&blob) {
            Ok(file) => head(&file),
            Err(e) if e.kind() == ErrorKind::NotFound => None,
            Err(e) => return Err(e),
        };
        if found != Some(noted) && counts(&blob)? {
            return Ok(Some(blob));
        }
    }
    Ok(None)
}

/// Durably, before sled recovers.
pub(super) fn forget(dir: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).open(path(dir)) {
        Ok(file) => file.set_len(0).and_then(|()| file.sync_all()),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn note(place: i64, head: Head) -> [u8; NOTE] {
    let mut note = [0; NOTE];
    note[..8].copy_from_slice(&place.to_be_bytes());
    note[8..12].copy_from_slice(&head);
    let crc = crc32fast::hash(&note[..12]);
    note[12..].copy_from_slice(&crc.to_be_bytes());
    note
}

fn read(bytes: &[u8]) -> Option<(i64, Head)> {
    let (place, rest) = bytes.split_first_chunk()?;
    let place = i64::from_be_bytes(*place);
    let head = *rest.first_chunk()?;
    (bytes == note(place, head)).then_some((place, head))
}

/// The notes of an open database.
#[derive(Default)]
pub(super) struct Sums {
    file: Option<File>,
    count: usize,
}

impl Sums {
    /// Notes `new` blobs; `present` are all that are there.
    pub(super) fn note(
        &mut self,
        dir: &Path,
        new: &[(i64, Head)],
        present: impl ExactSizeIterator<Item = (i64, Head)>,
    ) -> io::Result<()> {
        /// Notes of blobs that are gone are left until they are so many more than the others.
        const MANY: usize = 4096;

        let mut bytes = Vec::new();
        let mut add = |(place, head)| bytes.extend_from_slice(&note(place, head));
        if self.count > 2 * present.len() + MANY {
            return self.note_all(dir, present);
        }
        self.count += new.len();
        new.iter().copied().for_each(&mut add);
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                none.insert(access::private_options().append(true).create(true).open(path(dir))?)
            }
        };
        file.write_all(&bytes)
    }

    /// Notes those that are `present`, and no others.
    pub(super) fn note_all(
        &mut self,
        dir: &Path,
        present: impl ExactSizeIterator<Item = (i64, Head)>,
    ) -> io::Result<()> {
        self.file = None;
        self.count = present.len();
        let bytes: Vec<u8> = present.flat_map(|(place, head)| note(place, head)).collect();
        let mut options = access::private_options();
        let mut file = options.write(true).create(true).truncate(true).open(path(dir))?;
        file.write_all(&bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What to note of it.
    fn blob(dir: &Path, place: i64, page: &[u8]) -> (i64, Head) {
        let head = crc32fast::hash(page).to_le_bytes();
        fs::create_dir_all(dir.join("blobs")).unwrap();
        fs::write(dir.join("blobs").join(place.to_string()), [&head, page].concat()).unwrap();
        (place, head)
    }

    #[test]
    fn a_blob_under_anothers_name_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(misplaced(dir).unwrap(), None);
        let all: Vec<_> = (1..=3u8).map(|i| blob(dir, i64::from(i) * 1000, &[i; 9])).collect();
        let mut sums = Sums::default();
        for i in 0..all.len() {
            sums.note(dir, &all[i..=i], all[..=i].iter().copied()).unwrap();
        }
        assert_eq!(misplaced(dir).unwrap(), None);
        fs::remove_file(dir.join("blobs/1000")).unwrap();
        assert_eq!(misplaced(dir).unwrap(), None, "sled may have removed it");
        for torn in [&b"torn"[..], &[0; 4], &[0; 100]] {
            fs::write(dir.join("blobs/3000"), torn).unwrap();
            assert_eq!(misplaced(dir).unwrap(), None, "sled notices");
        }
        blob(dir, 2000, &[3; 9]);
        assert_eq!(misplaced(dir).unwrap(), Some(dir.join("blobs/2000")));
        forget(dir).unwrap();
        assert_eq!(misplaced(dir).unwrap(), None);
    }

    #[test]
    fn what_is_torn_or_lost_is_no_note() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        blob(dir, 7, b"page");
        Sums::default().note(dir, &[(7, [2; 4])], [].into_iter()).unwrap();
        assert!(misplaced(dir).unwrap().is_some());
        let whole = fs::read(path(dir)).unwrap();
        for i in 0..whole.len() {
            fs::write(path(dir), &whole[..i]).unwrap();
            assert_eq!(misplaced(dir).unwrap(), None);
            let mut torn = whole.clone();
            torn[i..].fill(0);
            fs::write(path(dir), torn).unwrap();
            assert_eq!(misplaced(dir).unwrap(), None, "{i}");
        }
    }

    #[test]
    fn notes_of_blobs_that_are_gone_do_not_pile_up() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let mut sums = Sums::default();
        for place in 0..20_000 {
            let new = [(place, [9; 4])];
            sums.note(dir, &new, new.into_iter()).unwrap();
        }
        assert!(fs::metadata(path(dir)).unwrap().len() < 2 * 4096 * 16);
        blob(dir, 19_999, b"page");
        assert!(misplaced(dir).unwrap().is_some(), "the newest is among them");
    }
}
