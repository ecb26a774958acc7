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

const NOTE: usize = 16;
const HEAD: usize = 4;

/// The first bytes of a blob, once they are written.
pub(super) type Head = [u8; HEAD];

pub(super) fn head(blob: &File) -> io::Result<Option<Head>> {
    let mut head = [0; HEAD];
    match blob.read_exact_at(&mut head, 0) {
        Ok(()) => Ok(Some(head)),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("blob-sums")
}

/// A blob that holds what was written to another one.
pub(super) fn misplaced(dir: &Path) -> io::Result<Option<PathBuf>> {
    let bytes = match fs::read(path(dir)) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let notes: HashMap<i64, Head> = bytes.chunks_exact(NOTE).filter_map(read).collect();
    for (place, noted) in notes {
        let blob = dir.join("blobs").join(place.to_string());
        let found = match File::open(&blob) {
            Ok(file) => head(&file)?,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        if found != Some(noted) {
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
            self.file = None;
            self.count = present.len();
            present.for_each(&mut add);
            fs::write(path(dir), bytes)?;
            return Ok(());
        }
        self.count += new.len();
        new.iter().copied().for_each(&mut add);
        if self.file.is_none() {
            self.file = Some(OpenOptions::new().append(true).create(true).open(path(dir))?);
        }
        match &mut self.file {
            Some(file) => file.write_all(&bytes),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(dir: &Path, place: i64, head: Head) {
        fs::create_dir_all(dir.join("blobs")).unwrap();
        fs::write(dir.join("blobs").join(place.to_string()), [&head[..], b" page"].concat())
            .unwrap();
    }

    #[test]
    fn a_blob_under_anothers_name_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(misplaced(dir).unwrap(), None);
        let all: Vec<(i64, Head)> = (1..=3u8).map(|i| (i64::from(i) * 1000, [i; 4])).collect();
        let mut sums = Sums::default();
        for (i, (place, head)) in all.iter().enumerate() {
            blob(dir, *place, *head);
            sums.note(dir, &all[i..=i], all[..=i].iter().copied()).unwrap();
        }
        assert_eq!(misplaced(dir).unwrap(), None);
        fs::remove_file(dir.join("blobs/1000")).unwrap();
        assert_eq!(misplaced(dir).unwrap(), None, "sled may have removed it");
        fs::rename(dir.join("blobs/3000"), dir.join("blobs/2000")).unwrap();
        assert_eq!(misplaced(dir).unwrap(), Some(dir.join("blobs/2000")));
        forget(dir).unwrap();
        assert_eq!(misplaced(dir).unwrap(), None);
    }

    #[test]
    fn what_is_torn_or_lost_is_no_note() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        blob(dir, 7, [1; 4]);
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
        blob(dir, 19_999, [8; 4]);
        assert!(misplaced(dir).unwrap().is_some(), "the newest is among them");
    }
}
