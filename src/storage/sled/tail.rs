//! What a power cut leaves of sled's files, made such that sled recovers from it.
//!
//! sled takes for durable what it handed to the system with `sync_file_range`. A power cut may
//! leave a later piece of its log and not an earlier one, or the log and not the file of a large
//! page that it points to; sled's recovery passes over both, and comes up with pages of
//! different ages. So we note how far the log is durable ([`Durable`]), and cut it off behind
//! that at the first piece that is missing, before sled sees it. Everything that was synced lies
//! before the cut.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::closed::Left;
use super::files::Files;
use super::log::{self, End, SEGMENT_HEADER};
use super::sums;
use crate::disk::access;
use crate::error::Result;

/// What the file `durable` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// The database is being opened, or was not closed wholly.
    Nothing,
    /// From this segment of the log on nothing is known to be durable, and no later one was given
    /// free.
    From(i64),
    /// The database was closed, and is as it was left then.
    Closed(Left),
}

/// In 16 bytes, big-endian: of `From` the segment's place (8) ‖ the same inverted; of `Closed` the
/// end (8) ‖ the segments' crc32 (4) ‖ crc32 of `closed` ‖ these 12; of `Nothing` zeros.
const NOTE: usize = 16;

fn encode(noted: Noted) -> [u8; NOTE] {
    let mut bytes = [0; NOTE];
    match noted {
        Noted::Nothing => {}
        Noted::From(place) => {
            bytes[..8].copy_from_slice(&place.to_be_bytes());
            bytes[8..].copy_from_slice(&(!place).to_be_bytes());
        }
        Noted::Closed(left) => {
            bytes[..8].copy_from_slice(&left.end.to_be_bytes());
            bytes[8..12].copy_from_slice(&left.segments.to_be_bytes());
            let check = crc32fast::hash(&[b"closed", &bytes[..12]].concat());
            bytes[12..].copy_from_slice(&check.to_be_bytes());
        }
    }
    bytes
}

fn decode(bytes: &[u8; NOTE]) -> Noted {
    let number = |at: usize| bytes[at..].first_chunk().map_or(0, |b| i64::from_be_bytes(*b));
    let segments = bytes[8..].first_chunk().map_or(0, |b| u32::from_be_bytes(*b));
    let from = Noted::From(number(0));
    let closed = Noted::Closed(Left { end: number(0), segments });
    let noted = [from, closed].into_iter().find(|noted| encode(*noted) == *bytes);
    noted.unwrap_or(Noted::Nothing)
}

/// The file that says what is known of the log.
pub(super) struct Durable {
    file: File,
    noted: Noted,
}

impl Durable {
    fn path(dir: &Path) -> PathBuf {
        dir.join("durable")
    }

    /// What is noted; nothing where there is no note.
    pub(super) fn read(dir: &Path) -> io::Result<Noted> {
        match File::open(Self::path(dir)) {
            Ok(file) => Self::read_from(&file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Noted::Nothing),
            Err(e) => Err(e),
        }
    }

    fn read_from(file: &File) -> io::Result<Noted> {
        let mut bytes = [0; NOTE];
        match file.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(decode(&bytes)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(Noted::Nothing),
            Err(e) => Err(e),
        }
    }

    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let file = access::private(&Self::path(dir))?;
        let noted = Self::read_from(&file)?;
        Ok(Self { file, noted })
    }

    pub(super) fn noted(&self) -> Noted {
        self.noted
    }

    /// Like [`note`](Self::note); a refusal ends all writing.
    pub(super) fn note_in(&mut self, files: &Files, noted: Noted) -> Result<()> {
        let written = self.note(noted);
        written.map_err(|e| files.refused(&Self::path(files.dir()), &e))
    }

    /// Durably. In one sector: it is the old note or the new one.
    pub(super) fn note(&mut self, noted: Noted) -> io::Result<()> {
        if self.noted == noted && self.file.metadata()?.len() == NOTE as u64 {
            return Ok(());
        }
        self.file.write_all_at(&encode(noted), 0)?;
        self.file.sync_data()?;
        self.noted = noted;
        Ok(())
    }
}

/// Before sled opens its files:
///
/// 1. everything durable that the system holds: what a killed process wrote; must come before
///    sled frees the segments that it replaces;
/// 2. the log cut off where it is not whole;
/// 3. nothing noted, of the log or its blobs, until sled has recovered: it frees segments meanwhile.
pub(super) fn prepare(dir: &Path, segment_size: usize) -> io::Result<()> {
    let log = dir.join("db");
    if !log.exists() {
        return Ok(());
    }
    sync_all(dir)?;
    sums::forget(dir)?;
    remove_half_made(dir)?;
    let mut durable = Durable::open(dir)?;
    if let Noted::From(from) = durable.noted {
        let log = OpenOptions::new().read(true).write(true).open(log)?;
        cut(&log, segment_size, from, dir)?;
    }
    durable.note(Noted::Nothing)?;
    File::open(dir)?.sync_all()
}

fn sync_all(dir: &Path) -> io::Result<()> {
    for folder in [dir.join("blobs"), dir.to_owned()] {
        if !folder.exists() {
            continue;
        }
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_file() {
                File::open(path)?.sync_all()?;
            }
        }
        File::open(&folder)?.sync_all()?;
    }
    Ok(())
}

/// sled would read a snapshot that was not finished, and refuse to open.
fn remove_half_made(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// The place in the log at which sled begins to read: the one of its newest snapshot.
pub(super) fn newest_snapshot(dir: &Path) -> io::Result<i64> {
    let mut newest = 0;
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let place = name.to_str().and_then(|name| name.strip_prefix("snap."));
        let place = place.and_then(|place| i64::from_str_radix(place, 16).ok());
        newest = newest.max(place.unwrap_or(0));
    }
    Ok(newest)
}

/// Cuts the log off at the first piece behind `from` that is not whole, if anything lies behind
/// it: then sled would go on there. And where a batch failed: what sled had made of it may be here,
/// and what took that back not. Nothing was acknowledged as durable since. What lies before sled's
/// newest snapshot was durable before that was made, and is not read on recovery: a gap there is
/// damage, and not of a power cut. sled refuses a log that is shorter.
fn cut(log: &File, size: usize, from: i64, dir: &Path) -> io::Result<()> {
    let blobs = &dir.join("blobs");
    let segments = log::segments(log, size)?;
    let step = i64::try_from(size).unwrap_or(i64::MAX);
    // At most in the segment of `from`: none was made since that was noted.
    let snapshot = newest_snapshot(dir)?;
    if !segments.contains_key(&from) {
        return Ok(());
    }
    let mut at = from;
    let (end, ends_in) = loop {
        let Some(&offset) = segments.get(&at) else { break (None, None) };
        let bytes = log::read_segment(log, offset, size)?;
        let number = u64::try_from(at / step).unwrap_or_default();
        let first = usize::try_from(snapshot - at).unwrap_or(0);
        let is_there = |blob: i64| log::is_whole(&blobs.join(blob.to_string()));
        match log::walk(&bytes, first, size, number, is_there)? {
            End::Full => at += step,
            end => break (Some(end), Some((offset, bytes.len()))),
        }
    };
    let behind: Vec<_> = segments.range(at + 1..).map(|(_, &offset)| offset).collect();
    if behind.is_empty() && !matches!(end, Some(End::NoBlob(_) | End::FailedBatch(_))) {
        return Ok(());
    }
    tracing::warn!(
        segment = at,
        behind = behind.len(),
        "the log is not whole behind what was synced; it is cut off there, nothing acknowledged \
         as durable is lost"
    );
    for offset in behind {
        log.write_all_at(&[0; SEGMENT_HEADER], offset)?;
    }
    if let (
        Some(End::Torn(start) | End::NoBlob(start) | End::FailedBatch(start)),
        Some((offset, filled)),
    ) = (end, ends_in)
        && start < filled
    {
        log.write_all_at(&vec![0; filled - start], offset + start as u64)?;
    }
    log.sync_all()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{SledOptions, SledStorage, Storage};
    use super::*;
    use crate::error::Error;
    use crate::material::KeyMaterial;
    use crate::storage::Space;

    const SIZE: usize = 64 << 10;

    fn open(dir: &Path) -> Result<SledStorage> {
        let options = SledOptions {
            cache_bytes: 16 << 20,
            segment_bytes: SIZE,
            flush_interval: Duration::from_millis(500),
        };
        SledStorage::open(dir, &options, &KeyMaterial::take(&mut [1; 32]), false)
    }

    /// A log of several segments.
    fn filled(dir: &Path) {
        let storage = open(dir).unwrap();
        storage.begin().unwrap();
        for i in 0..200u8 {
            storage.put(Space::Records, &[i], Some(vec![i; 1000])).unwrap();
        }
        storage.end().unwrap();
    }

    /// sled refuses a log that ends before its snapshot.
    #[test]
    fn the_log_is_not_cut_off_before_the_newest_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        filled(&path);
        let log = OpenOptions::new().read(true).write(true).open(path.join("db")).unwrap();
        let segments = log::segments(&log, SIZE).unwrap();
        assert!(segments.len() > 2);
        let (&from, &offset) = segments.first_key_value().unwrap();
        let mut whole = vec![0; SIZE];
        log.read_exact_at(&mut whole, offset).unwrap();
        let with = |changed: usize| {
            let mut bytes = whole.clone();
            bytes[changed] ^= 1;
            bytes
        };
        // Where the message begins that such a byte is of.
        let walked = log::walk(&with(1000), 0, SIZE, 0, |_| Ok(true)).unwrap();
        let End::Torn(begins) = walked else { panic!("{walked:?}") };
        assert!(begins > SEGMENT_HEADER + 1);
        log.write_all_at(&with(SEGMENT_HEADER + 1), offset).unwrap();
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap().path();
            if entry.file_name().unwrap().to_str().unwrap().starts_with("snap.") {
                fs::remove_file(entry).unwrap();
            }
        }
        let place = from + i64::try_from(begins).unwrap();
        let snapshot = path.join(format!("snap.{place:016X}"));
        File::create(&snapshot).unwrap();
        cut(&log, SIZE, from, &path).unwrap();
        assert_eq!(log::segments(&log, SIZE).unwrap(), segments, "behind it all is whole");
        fs::remove_file(snapshot).unwrap();
        cut(&log, SIZE, from, &path).unwrap();
        assert_eq!(log::segments(&log, SIZE).unwrap().len(), 1);
    }

    /// Where sled wrote on, that is gone with it: nothing of it was acknowledged as durable. What
    /// comes later stays.
    #[test]
    fn the_log_is_cut_off_where_a_batch_failed() {
        let value = |i| Some(vec![i; 100]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let storage = open(&path).unwrap();
        storage.begin().unwrap();
        storage.put(Space::Records, &[0], value(0)).unwrap();
        storage.put_position(Vec::new()).unwrap();
        storage.0.current().fail_batch();
        for i in 1..=200 {
            let filling = Some(vec![i; 1000]);
            storage.put(Space::Records, &[i], filling).unwrap();
        }
        storage.sync().unwrap();
        storage.stop_writing(Error::WriteFailed { why: "on purpose".to_owned() });
        drop(storage);
        for first in [true, false] {
            let storage = open(&path).unwrap();
            storage.begin().unwrap();
            let found = (0..=200u8).filter(|i| {
                let found = storage.get(Space::Records, &[*i]).unwrap();
                found.is_some()
            });
            assert_eq!(found.collect::<Vec<_>>(), if first { vec![0] } else { vec![0, 7] });
            storage.put(Space::Records, &[7], value(7)).unwrap();
            storage.sync().unwrap();
            // As after a kill: nothing says that it was closed.
            let noted = fs::read(path.join("durable")).unwrap();
            drop(storage);
            fs::write(path.join("durable"), noted).unwrap();
        }
    }

    /// Recovery may give the place of a blob to another one, and be killed then.
    #[test]
    fn before_recovery_nothing_is_noted_of_blobs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        filled(&path);
        let notes = path.join("blob-sums");
        fs::write(&notes, [1; 32]).unwrap();
        prepare(&path, SIZE).unwrap();
        assert!(fs::read(notes).unwrap().is_empty());
    }

    #[test]
    fn nothing_is_cut_off_by_settings_that_are_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        filled(&path);
        let whole = fs::read(path.join("conf")).unwrap();
        let before = fs::read(path.join("db")).unwrap();
        // As a kill leaves it: from there on the log would be looked through.
        Durable::open(&path).unwrap().note(Noted::From(0)).unwrap();
        for damaged in [Some("segment_size: 6"), None] {
            match damaged {
                Some(text) => fs::write(path.join("conf"), text).unwrap(),
                None => fs::remove_file(path.join("conf")).unwrap(),
            }
            assert!(matches!(open(&path), Err(Error::StorageDamaged { .. })));
            assert_eq!(fs::read_to_string(path.join("conf")).ok().as_deref(), damaged);
            assert!(fs::read(path.join("db")).unwrap() == before);
        }
        fs::write(path.join("conf"), whole).unwrap();
        drop(open(&path).unwrap());
    }
}
