//! Whether a database that was closed is still as it was left, found out before sled sees it.
//!
//! sled's recovery passes over what is damaged in the part of the log that it reads anew, and what
//! it writes then makes that lasting: what comes back later, as from a cable that was loose, comes
//! too late. So when a database is closed we note where its log ends and which segments it has, and
//! look at exactly what recovery will read before it does.
//!
//! After a kill there is no such note: segments that were being used again may be half written,
//! and look the same as damaged ones. There the digest tells, behind recovery.

use std::fs::File;
use std::io;
use std::path::Path;

use super::log::{self, End};
use super::sums;
use super::tail::{self, Durable, Noted};

/// What a database looks like that nobody has open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    /// The place in the log behind the last message.
    pub(super) end: i64,
    /// crc32 of each segment's place in the log and in the file.
    pub(super) segments: u32,
}

/// `None` for a log that holds nothing, or ends in what was refused.
pub(super) fn look(log: &File, size: usize) -> io::Result<Option<Left>> {
    let segments = log::segments(log, size)?;
    let Some((&last, &offset)) = segments.last_key_value() else { return Ok(None) };
    let end = match walk(log, size, (last, offset), 0, |_| Ok(true))? {
        End::Full => size,
        End::Torn(end) => end,
        End::NoBlob(_) | End::FailedBatch(_) => return Ok(None),
    };
    let mut hasher = crc32fast::Hasher::new();
    for (place, offset) in &segments {
        hasher.update(&place.to_be_bytes());
        hasher.update(&offset.to_be_bytes());
    }
    let end = last.saturating_add(i64::try_from(end).unwrap_or(i64::MAX));
    Ok(Some(Left { end, segments: hasher.finalize() }))
}

/// Whether the log is written, from the segment of `from` on, as far as its last segment: sled
/// closes without a word where it could not write what it had.
pub(super) fn is_written(log: &File, size: usize, from: i64) -> io::Result<bool> {
    let segments = log::segments(log, size)?;
    let Some((&last, _)) = segments.last_key_value() else { return Ok(true) };
    let mut next = from;
    for (&place, &offset) in segments.range(from..) {
        if place != next {
            return Ok(false);
        }
        if place < last && walk(log, size, (place, offset), 0, |_| Ok(true))? != End::Full {
            return Ok(false);
        }
        next = place.saturating_add(i64::try_from(size).unwrap_or(i64::MAX));
    }
    Ok(true)
}

fn walk(
    log: &File,
    size: usize,
    (place, offset): (i64, u64),
    first: usize,
    is_there: impl FnMut(i64) -> io::Result<bool>,
) -> io::Result<End> {
    let bytes = log::read_segment(log, offset, size)?;
    let number = u64::try_from(place).unwrap_or_default() / size as u64;
    log::walk(&bytes, first, size, number, is_there)
}

/// What is wrong with a database that was closed. Changes nothing; reads of the log what sled will.
pub(super) fn damage(dir: &Path, size: usize) -> io::Result<Option<String>> {
    let Noted::Closed(left) = Durable::read(dir)? else { return Ok(None) };
    let path = dir.join("db");
    let log = match File::open(&path) {
        Ok(log) => log,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(format!("{} is missing", path.display())));
        }
        Err(e) => return Err(e),
    };
    let at = |offset: u64| format!("{} is damaged at byte {offset} or behind it", path.display());
    let segments = log::segments(&log, size)?;
    let found = look(&log, size)?;
    if found.is_none_or(|found| found.segments != left.segments) {
        return Ok(Some(format!("{} has lost or gained a piece", path.display())));
    }
    if found != Some(left) {
        return Ok(Some(at(segments.last_key_value().map_or(0, |(_, &offset)| offset))));
    }
    let snapshot = tail::newest_snapshot(dir)?;
    let blobs = dir.join("blobs");
    for (&place, &offset) in &segments {
        let behind = place.saturating_add(i64::try_from(size).unwrap_or(i64::MAX));
        if behind <= snapshot {
            continue;
        }
        let first = usize::try_from(snapshot - place).unwrap_or(0);
        // What took the place of a large page may have removed it.
        let mut damaged = None;
        let end = walk(&log, size, (place, offset), first, |blob| {
            let blob = blobs.join(blob.to_string());
            if blob.exists() && !log::is_whole(&blob)? {
                damaged.get_or_insert(blob);
            }
            Ok(true)
        })?;
        if let Some(blob) = damaged {
            return Ok(Some(format!("{} is damaged", blob.display())));
        }
        if end != End::Full && behind <= left.end {
            return Ok(Some(at(offset)));
        }
    }
    let missing = sums::missing(dir)?;
    Ok(missing.map(|blob| format!("{} is missing", blob.display())))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::time::Duration;

    use super::super::{SledOptions, SledStorage, Storage};
    use super::*;
    use crate::error::Result;
    use crate::material::KeyMaterial;
    use crate::storage::Space;

    const SIZE: usize = 64 << 10;

    fn open(dir: &Path, accepts: bool) -> Result<SledStorage> {
        let options = SledOptions {
            cache_bytes: 16 << 20,
            segment_bytes: SIZE,
            flush_interval: Duration::from_millis(500),
        };
        SledStorage::open(dir, &options, &KeyMaterial::take(&mut [1; 32]), accepts)
    }

    fn write(storage: &SledStorage, round: u8) {
        for i in 0..200u8 {
            let value = (i % 7 != round).then(|| vec![i ^ round; 1000]);
            storage.put(Space::Records, &[i], value).unwrap();
        }
        storage.put(Space::Records, b"large", Some(vec![round; 2 * SIZE])).unwrap();
    }

    /// Of two sessions that were closed: the first lies before sled's snapshot.
    fn closed(dir: &Path) -> PathBuf {
        let path = dir.join("db");
        for round in 0..2 {
            let storage = open(&path, false).unwrap();
            storage.begin().unwrap();
            write(&storage, round);
            storage.put_position(vec![round]).unwrap();
            storage.end().unwrap();
        }
        assert!(matches!(Durable::read(&path).unwrap(), Noted::Closed(_)));
        path
    }

    fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let files = walkdir::WalkDir::new(dir).sort_by_file_name().into_iter().map(|e| e.unwrap());
        let files = files.filter(|entry| entry.file_type().is_file());
        files.map(|entry| (entry.path().to_owned(), fs::read(entry.path()).unwrap())).collect()
    }

    /// Nothing is changed, so what is put right again is as it was.
    fn is_refused(path: &Path) -> bool {
        let before = files(path);
        match open(path, false) {
            Err(error) => {
                assert!(error.is_rollback(), "{error}");
                assert!(files(path) == before, "{error}");
                true
            }
            Ok(_) => false,
        }
    }

    #[test]
    fn a_byte_that_recovery_reads_and_is_another_keeps_it_shut() {
        let dir = tempfile::tempdir().unwrap();
        let path = closed(dir.path());
        let log = path.join("db");
        let whole = fs::read(&log).unwrap();
        let segments = log::segments(&File::open(&log).unwrap(), SIZE).unwrap();
        let snapshot = tail::newest_snapshot(&path).unwrap();
        let Noted::Closed(left) = Durable::read(&path).unwrap() else { panic!() };
        let step = i64::try_from(SIZE).unwrap();
        let read: Vec<_> = segments.iter().filter(|(place, _)| **place + step > snapshot).collect();
        assert!(read.len() > 3 && read.len() < segments.len(), "{read:?} of {}", segments.len());
        let mut places = Vec::new();
        for (&place, &offset) in read {
            let from = usize::try_from(snapshot - place).unwrap_or(0);
            let to = usize::try_from((left.end - place).min(step)).unwrap();
            let in_header = [1, 9].into_iter().filter(|_| from == 0);
            let places_of = [from.max(20), from.midpoint(to), from + (to - from) / 4 * 3];
            places.extend(in_header.chain(places_of).map(|at| (offset, at)));
        }
        for (offset, at) in places {
            let mut damaged = whole.clone();
            damaged[usize::try_from(offset).unwrap() + at] ^= 1;
            fs::write(&log, damaged).unwrap();
            assert!(is_refused(&path), "{offset} + {at}");
        }
        fs::write(&log, &whole[..whole.len() - SIZE / 2]).unwrap();
        assert!(is_refused(&path));
        fs::remove_file(&log).unwrap();
        assert!(is_refused(&path));
        fs::write(&log, whole).unwrap();
        assert!(open(&path, true).unwrap().was_whole());
    }

    #[test]
    fn a_log_with_a_gap_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = closed(dir.path()).join("db");
        let log = || File::open(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        let segments = log::segments(&log(), SIZE).unwrap();
        let (&last, _) = segments.last_key_value().unwrap();
        let step = i64::try_from(SIZE).unwrap();
        let from = last - 2 * step;
        assert!(is_written(&log(), SIZE, from).unwrap());
        assert!(is_written(&log(), SIZE, last + step).unwrap(), "nothing was written since");
        let offset = usize::try_from(segments[&(last - step)]).unwrap();
        for at in [1, SIZE / 2] {
            let mut unwritten = whole.clone();
            unwritten[offset + at..offset + SIZE].fill(0);
            fs::write(&path, unwritten).unwrap();
            assert!(!is_written(&log(), SIZE, from).unwrap(), "{at}");
            assert!(is_written(&log(), SIZE, last).unwrap(), "{at}");
        }
    }

    #[test]
    fn a_large_page_that_is_damaged_or_missing_keeps_it_shut() {
        let dir = tempfile::tempdir().unwrap();
        let path = closed(dir.path());
        let snapshot = tail::newest_snapshot(&path).unwrap();
        let (mut read, mut others) = (0, 0);
        for blob in fs::read_dir(path.join("blobs")).unwrap() {
            let blob = blob.unwrap().path();
            let place: i64 = blob.file_name().unwrap().to_str().unwrap().parse().unwrap();
            let whole = fs::read(&blob).unwrap();
            fs::remove_file(&blob).unwrap();
            assert!(is_refused(&path), "{place}");
            let mut damaged = whole.clone();
            for at in [1, whole.len() / 2] {
                damaged[at] ^= 1;
                fs::write(&blob, &damaged).unwrap();
                // What sled does not read at opening it only meets later, and says so.
                if at == 1 || place >= snapshot {
                    assert!(is_refused(&path), "{place} {at}");
                }
                damaged[at] ^= 1;
            }
            *if place >= snapshot { &mut read } else { &mut others } += 1;
            fs::write(&blob, whole).unwrap();
        }
        assert!(read > 0 && others > 0, "{read} {others}");
        assert!(open(&path, true).unwrap().was_whole());
    }

    /// Though every value is there: what is damaged is to be copied into a fresh database.
    #[test]
    fn damage_that_is_accepted_does_not_pass_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = closed(dir.path());
        let mut durable = Durable::open(&path).unwrap();
        let Noted::Closed(left) = Durable::read(&path).unwrap() else { panic!() };
        durable.note(Noted::Closed(Left { end: left.end + 1, ..left })).unwrap();
        assert!(is_refused(&path));
        assert!(!open(&path, true).unwrap().was_whole());
    }

    #[test]
    fn what_was_closed_is_found_as_it_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let mut was_closed = 0;
        for round in 0..20u8 {
            was_closed += u8::from(matches!(Durable::read(&path).unwrap(), Noted::Closed(_)));
            let storage = open(&path, false).unwrap();
            assert!(storage.was_whole(), "round {round}");
            storage.begin().unwrap();
            write(&storage, round % 7);
            storage.put_position(vec![round]).unwrap();
            if round % 4 > 0 {
                storage.end().unwrap();
            }
        }
        assert_eq!(was_closed, 19);
    }
}
