//! sled 0.34 behind [`Storage`]: real durability, panics caught, keys that its reverse
//! iterator can walk.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::ops::{Bound, Deref};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::{Pairs, Range, Space, Storage, Write};
use crate::error::{Error, Result};

/// Settings that are passed on to sled.
#[derive(Clone, Debug)]
pub(crate) struct SledOptions {
    /// Page cache, bytes.
    pub(crate) cache_bytes: u64,
    /// How often sled's own thread writes and collects garbage.
    pub(crate) flush_interval: Duration,
}

/// A value as sled hands it out: shared, not copied.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Stored(sled::IVec);

impl Deref for Stored {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

pub(crate) struct SledStorage {
    db: sled::Db,
    records: sled::Tree,
    system: sled::Tree,
    dir: PathBuf,
    durability: Mutex<Durability>,
    /// The first panic of sled's, or the first sync that the disk refused.
    broken: OnceLock<Error>,
}

/// What `sync` knows of sled's files.
struct Durability {
    log: File,
    /// Blobs that were synced, with the length that they had before.
    blobs: HashMap<OsString, u64>,
    /// Time of the directory at a look that found every blob old and nothing new.
    blobs_settled: Option<SystemTime>,
}

impl SledStorage {
    /// Whether `dir` holds a database, found out without opening it.
    pub(crate) fn exists(dir: &Path) -> bool {
        dir.join("db").exists()
    }

    pub(crate) fn open(dir: &Path, options: &SledOptions) -> Result<Self> {
        let millis = u64::try_from(options.flush_interval.as_millis()).unwrap_or(u64::MAX);
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(options.cache_bytes)
            .segment_size(segment_size(dir))
            .flush_every_ms(Some(millis));
        await_release(dir)?;
        forget_cached(dir)?;
        let (db, records, system) = guarded(dir, "opening the database", None, || {
            let db = config.open()?;
            let records = db.open_tree("records")?;
            let system = db.open_tree("system")?;
            Ok((db, records, system))
        })?;
        let log = File::open(dir.join("db"))
            .map_err(|e| Error::io(format!("opening {}", dir.join("db").display()), e))?;
        let durability = Durability { log, blobs: HashMap::new(), blobs_settled: None };
        let storage = Self {
            db,
            records,
            system,
            dir: dir.to_owned(),
            durability: durability.into(),
            broken: OnceLock::new(),
        };
        storage.sync_names()?;
        Ok(storage)
    }

    fn tree(&self, space: Space) -> &sled::Tree {
        match space {
            Space::Records => &self.records,
            Space::System => &self.system,
        }
    }

    fn reading<T>(&self, f: impl FnOnce() -> sled::Result<T>) -> Result<T> {
        guarded(&self.dir, "reading", Some(&self.broken), f)
    }

    /// Refused once sled has panicked or a sync has failed: its accounts of what is free may be
    /// half changed, and what is written then may go over what is needed.
    fn writing<T>(&self, during: &'static str, f: impl FnOnce() -> sled::Result<T>) -> Result<T> {
        self.check_writable()?;
        guarded(&self.dir, during, Some(&self.broken), f)
    }

    /// An operating system forgets what it could not write, so a later sync that succeeds would
    /// prove nothing.
    fn refused(&self, path: &Path, error: &std::io::Error) -> Error {
        let why = format!("{}: {error}", path.display());
        note_refusal(&self.dir);
        tracing::error!(why, "a sync failed; no more writes are taken");
        self.broken.get_or_init(|| Error::SyncFailed { why }).clone()
    }

    /// sled creates `conf`, `db`, `blobs/` and snapshots and syncs no directory.
    fn sync_names(&self) -> Result<()> {
        let sync = |path: PathBuf| {
            File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|e| Error::io(format!("syncing {}", path.display()), e))
        };
        sync(self.dir.join("conf"))?;
        sync(self.dir.join("blobs"))?;
        sync(self.dir.clone())?;
        self.dir.parent().map_or(Ok(()), |parent| sync(parent.to_owned()))
    }

    /// sled writes pages above a quarter of a segment to files of their own and never syncs
    /// them. It writes them in place, so a file may have been looked at while it still grew: one
    /// that is longer than it was, or young, is synced again. While nothing is young, the
    /// directory's time tells whether there are new ones.
    fn sync_blobs(&self, known: &mut Durability) -> Result<()> {
        /// Far above the steps of a file system's clock, and what one write of a blob takes.
        const OLD: Duration = Duration::from_secs(10);

        let dir = self.dir.join("blobs");
        let during = |e| Error::io(format!("looking at {}", dir.display()), e);
        let changed = fs::metadata(&dir).and_then(|meta| meta.modified()).map_err(during)?;
        if known.blobs_settled == Some(changed) {
            return Ok(());
        }
        let is_old = |time: SystemTime| time.elapsed().is_ok_and(|age| age > OLD);
        let mut settled = is_old(changed);
        let mut present = HashMap::new();
        for entry in fs::read_dir(&dir).map_err(during)? {
            let name = entry.map_err(during)?.file_name();
            let path = dir.join(&name);
            let meta = match fs::metadata(&path) {
                Ok(meta) => meta,
                // Removed by sled since it was listed: nothing points to it any more.
                Err(e) if e.kind() == ErrorKind::NotFound => continue,
                Err(e) => return Err(during(e)),
            };
            settled &= is_old(meta.modified().map_err(during)?);
            if known.blobs.get(&name) != Some(&meta.len()) {
                settled = false;
                match File::open(&path) {
                    Ok(blob) => blob.sync_all().map_err(|e| self.refused(&path, &e))?,
                    Err(e) if e.kind() == ErrorKind::NotFound => continue,
                    Err(e) => return Err(during(e)),
                }
            }
            present.insert(name, meta.len());
        }
        if present.keys().any(|name| !known.blobs.contains_key(name)) {
            let opened = File::open(&dir).map_err(during)?;
            opened.sync_all().map_err(|e| self.refused(&dir, &e))?;
        }
        known.blobs_settled = settled.then_some(changed);
        known.blobs = present;
        Ok(())
    }
}

impl Storage for SledStorage {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Stored>> {
        let tree = self.tree(space);
        self.reading(|| Ok(tree.get(escape(key))?.map(Stored)))
    }

    fn put(&self, space: Space, key: &[u8], value: Option<Vec<u8>>) -> Result<()> {
        let tree = self.tree(space);
        self.writing("writing", || {
            match value {
                Some(value) => tree.insert(escape(key), value)?,
                None => tree.remove(escape(key))?,
            };
            Ok(())
        })
    }

    fn compare_and_swap(
        &self,
        space: Space,
        key: &[u8],
        old: Option<&[u8]>,
        new: Option<Vec<u8>>,
    ) -> Result<bool> {
        let tree = self.tree(space);
        self.writing("writing", || Ok(tree.compare_and_swap(escape(key), old, new)?.is_ok()))
    }

    fn apply(&self, space: Space, writes: Vec<Write>) -> Result<()> {
        let mut batch = sled::Batch::default();
        for Write { key, value } in writes {
            let key = escape(&key).into_owned();
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        let tree = self.tree(space);
        self.writing("writing a batch", || tree.apply_batch(batch))
    }

    fn scan(&self, space: Space, (from, to): Range) -> Pairs {
        let bound = |bound: Bound<Vec<u8>>| bound.map(|key| escape(&key).into_owned());
        let tree = self.tree(space);
        let (from, to) = (bound(from), bound(to));
        let dir = self.dir.clone();
        match guarded(&dir, "scanning", None, || Ok(tree.range((from, to)))) {
            Ok(iter) => Box::new(Scan { iter: Some(iter), dir }),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    /// `flush` ends in `sync_file_range`, which does not survive a power cut (sled 0.34.7,
    /// `pagecache/iobuf.rs`), so the log is synced here, after the files that it points to.
    fn sync(&self) -> Result<()> {
        self.writing("flushing", || self.db.flush())?;
        let mut known = self.durability.lock().unwrap_or_else(PoisonError::into_inner);
        self.sync_blobs(&mut known)?;
        known.log.sync_data().map_err(|e| self.refused(&self.dir.join("db"), &e))
    }

    fn check_writable(&self) -> Result<()> {
        self.broken.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    fn stop_writing(&self, error: Error) -> Error {
        self.broken.get_or_init(|| error).clone()
    }

    fn bytes_on_disk(&self) -> Result<u64> {
        self.reading(|| self.db.size_on_disk())
    }
}

struct Scan {
    iter: Option<sled::Iter>,
    dir: PathBuf,
}

impl Scan {
    fn step(
        &mut self,
        step: impl FnOnce(&mut sled::Iter) -> Option<sled::Result<(sled::IVec, sled::IVec)>>,
    ) -> Option<Result<(Vec<u8>, Stored)>> {
        let iter = self.iter.as_mut()?;
        let next = guarded(&self.dir, "scanning", None, || step(iter).transpose());
        if !matches!(next, Ok(Some(_))) {
            self.iter = None;
        }
        next.transpose().map(|pair| pair.map(|(key, value)| (unescape(&key), Stored(value))))
    }
}

impl Iterator for Scan {
    type Item = Result<(Vec<u8>, Stored)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(Iterator::next)
    }
}

impl DoubleEndedIterator for Scan {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(DoubleEndedIterator::next_back)
    }
}

/// sled's own threads may hold its lock for some milliseconds after a database was dropped. Who
/// opens a store has the store's lock already, so nobody of ours comes between.
fn await_release(dir: &Path) -> Result<()> {
    const LONGEST: Duration = Duration::from_secs(10);
    const STEP: Duration = Duration::from_millis(1);

    let path = dir.join("db");
    let log = match File::open(&path) {
        Ok(log) => log,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(format!("opening {}", path.display()), e)),
    };
    let start = Instant::now();
    loop {
        match log.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if start.elapsed() < LONGEST => {
                std::thread::park_timeout(STEP);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(Error::StoreLocked { path: dir.to_owned(), pid: None });
            }
            Err(TryLockError::Error(e)) => {
                return Err(Error::io(format!("locking {}", path.display()), e));
            }
        }
    }
}

/// Bytes of a log segment: what the database was made with, else the default. sled refuses any
/// other, and notes it as a line of text in `conf`.
fn segment_size(dir: &Path) -> usize {
    const DEFAULT: usize = 512 << 10;
    let conf = fs::read(dir.join("conf")).unwrap_or_default();
    let text = String::from_utf8_lossy(&conf);
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("segment_size: "));
    lines.next().and_then(|size| size.parse().ok()).unwrap_or(DEFAULT)
}

/// Where a refused sync is noted. Like the pages that the disk did not take, the note may live
/// only in the system's cache: as long as those would be believed, it is seen.
fn refusal_note(dir: &Path) -> PathBuf {
    dir.join("sync-failed")
}

fn note_refusal(dir: &Path) {
    // The disk is failing: where even this cannot be noted, nothing more can be done.
    let _ = File::create(refusal_note(dir));
}

/// After a refused sync, makes sled read what the disk really holds and not what the system
/// still has in its cache.
fn forget_cached(dir: &Path) -> Result<()> {
    let note = refusal_note(dir);
    if !note.exists() {
        return Ok(());
    }
    tracing::warn!(dir = %dir.display(), "the last sync failed; reading from the disk itself");
    let during =
        |e: std::io::Error| Error::io(format!("dropping the cache of {}", dir.display()), e);
    for folder in [dir.to_owned(), dir.join("blobs")] {
        for entry in fs::read_dir(folder).map_err(during)? {
            let path = entry.map_err(during)?.path();
            if path.is_file() {
                let file = File::open(path).map_err(during)?;
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
                    .map_err(|e| during(e.into()))?;
            }
        }
    }
    fs::remove_file(note).map_err(during)
}

/// Runs `f`; sled's errors and panics become ours. sled's locks do not poison, so reading may go
/// on after a panic; `broken` notes it for those who write.
fn guarded<T>(
    dir: &Path,
    during: &str,
    broken: Option<&OnceLock<Error>>,
    f: impl FnOnce() -> sled::Result<T>,
) -> Result<T> {
    let damaged = |why: String| Error::StorageDamaged { path: dir.to_owned(), why };
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(sled::Error::Io(error))) => Err(Error::io(during, error)),
        Ok(Err(error)) => Err(damaged(format!("{during}: {error}"))),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            let error = damaged(format!("{during}, sled panicked: {text}"));
            if let Some(broken) = broken {
                broken.get_or_init(|| error.clone());
            }
            Err(error)
        }
    }
}

/// Keys without the byte FF, in the same order: FE becomes FE 00, FF becomes FE 01.
///
/// sled 0.34.7's reverse iterator looks for the page before key `…x` at `…(x-1) FF FF FF FF`
/// and never finds it if keys with longer runs of FF lie between (`iter.rs`,
/// `possible_predecessor`): it panics after a million tries.
fn escape(key: &[u8]) -> Cow<'_, [u8]> {
    if key.iter().all(|&byte| byte < 0xfe) {
        return Cow::Borrowed(key);
    }
    let mut escaped = Vec::with_capacity(key.len() + 8);
    for &byte in key {
        match byte {
            0xfe | 0xff => escaped.extend_from_slice(&[0xfe, byte - 0xfe]),
            _ => escaped.push(byte),
        }
    }
    Cow::Owned(escaped)
}

fn unescape(key: &[u8]) -> Vec<u8> {
    if !key.contains(&0xfe) {
        return key.to_vec();
    }
    let mut plain = Vec::with_capacity(key.len());
    let mut bytes = key.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            0xfe => plain.push(0xfe + u8::from(bytes.next() == Some(&1))),
            _ => plain.push(byte),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn options() -> SledOptions {
        SledOptions { cache_bytes: 16 << 20, flush_interval: Duration::from_millis(500) }
    }

    proptest! {
        #[test]
        fn escaping_keeps_order_and_prefixes(
            a in prop::collection::vec(prop::sample::select(vec![0u8, 0xfd, 0xfe, 0xff]), 0..8),
            b in prop::collection::vec(prop::sample::select(vec![0u8, 0xfd, 0xfe, 0xff]), 0..8),
        ) {
            prop_assert_eq!(unescape(&escape(&a)), a.clone());
            prop_assert_eq!(escape(&a).cmp(&escape(&b)), a.cmp(&b));
            prop_assert_eq!(escape(&a).starts_with(&escape(&b)), a.starts_with(&b));
        }
    }

    #[test]
    fn after_a_panic_or_a_refused_sync_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let storage = SledStorage::open(&path, &options()).unwrap();
        storage.put(Space::Records, b"a", Some(vec![1])).unwrap();
        storage.sync().unwrap();
        let refused = storage.refused(&path, &ErrorKind::Other.into());
        assert!(matches!(refused, Error::SyncFailed { .. }));
        assert!(storage.put(Space::Records, b"b", Some(vec![1])).is_err());
        assert!(storage.compare_and_swap(Space::Records, b"a", None, None).is_err());
        assert!(storage.apply(Space::Records, Vec::new()).is_err());
        assert!(storage.sync().is_err());
        assert!(storage.get(Space::Records, b"a").unwrap().is_some(), "reading goes on");
        assert!(refusal_note(&path).exists());
        drop(storage);
        let storage = SledStorage::open(&path, &options()).unwrap();
        assert!(!refusal_note(&path).exists());
        assert!(storage.get(Space::Records, b"a").unwrap().is_some());
        let panicked: Result<()> = storage.reading(|| panic!("on purpose"));
        assert!(panicked.is_err());
        assert!(matches!(storage.sync(), Err(Error::StorageDamaged { .. })));
    }

    /// sled writes blobs in place: one that was looked at half-written is looked at again.
    #[test]
    fn a_blob_that_grew_is_synced_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let storage = SledStorage::open(&path, &options()).unwrap();
        let blob = path.join("blobs/1");
        let known = |storage: &SledStorage| {
            storage.sync().unwrap();
            let known = storage.durability.lock().unwrap();
            (known.blobs.get(blob.file_name().unwrap()).copied(), known.blobs_settled.is_some())
        };
        fs::write(&blob, [1; 100]).unwrap();
        assert_eq!(known(&storage), (Some(100), false));
        fs::write(&blob, [1; 300]).unwrap();
        assert_eq!(known(&storage), (Some(300), false), "still young");
    }

    /// Found by the fuzzer: sled holds its lock a little longer than its handles live.
    #[test]
    fn a_database_that_was_just_dropped_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..100u8 {
            let storage = SledStorage::open(&dir.path().join("db"), &options()).unwrap();
            storage.put(Space::Records, &[i], Some(vec![i; 100])).unwrap();
        }
    }

    #[test]
    fn scans_both_ways_over_keys_that_break_sleds_reverse_iterator() {
        let dir = tempfile::tempdir().unwrap();
        let storage = SledStorage::open(&dir.path().join("db"), &options()).unwrap();
        let mut keys = BTreeSet::new();
        let mut state = 88_172_645_463_325_252_u64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % below).unwrap()
        };
        for _ in 0..3000 {
            let len = 1 + random(14);
            let alphabet = [0x00, 0x60, 0x61, 0xff, 0xff, 0xff, 0xfe];
            let key: Vec<u8> = (0..len).map(|_| alphabet[random(7)]).collect();
            storage.put(Space::Records, &key, Some(vec![1; 20])).unwrap();
            keys.insert(key);
        }
        for key in keys.clone() {
            if random(3) == 0 {
                storage.put(Space::Records, &key, None).unwrap();
                keys.remove(&key);
            }
        }
        let all = || storage.scan(Space::Records, (Bound::Unbounded, Bound::Unbounded));
        assert!(all().map(|pair| pair.unwrap().0).eq(keys.iter().cloned()));
        assert!(all().rev().map(|pair| pair.unwrap().0).eq(keys.iter().rev().cloned()));
    }

    #[test]
    fn panics_and_errors_of_sled_become_errors() {
        let dir = Path::new("somewhere");
        let panicked = guarded::<()>(dir, "reading", None, || panic!("at segment {}", 7));
        assert!(panicked.unwrap_err().to_string().contains("sled panicked: at segment 7"));
        let full = std::io::Error::from(ErrorKind::StorageFull);
        let full = guarded::<()>(dir, "writing", None, || Err(sled::Error::Io(full)));
        assert!(matches!(full, Err(Error::DiskFull { .. })));
    }

    #[test]
    fn the_spaces_are_apart_and_batches_and_swaps_do_what_they_say() {
        let dir = tempfile::tempdir().unwrap();
        let storage = SledStorage::open(&dir.path().join("db"), &options()).unwrap();
        let write = |key: &str, value: Option<&str>| Write {
            key: key.into(),
            value: value.map(Into::into),
        };
        storage.apply(Space::Records, vec![write("a", Some("1")), write("b", Some("2"))]).unwrap();
        storage.apply(Space::Records, vec![write("a", None)]).unwrap();
        assert!(storage.get(Space::Records, b"a").unwrap().is_none());
        assert!(storage.get(Space::System, b"b").unwrap().is_none());
        let swap = |old: Option<&[u8]>, new: Option<&str>| {
            let new = new.map(|new| new.as_bytes().to_vec());
            storage.compare_and_swap(Space::Records, b"b", old, new).unwrap()
        };
        assert!(!swap(None, Some("3")));
        assert!(swap(Some(b"2"), Some("3")));
        assert!(swap(Some(b"3"), None));
        assert!(swap(None, Some("4")));
        assert_eq!(storage.get(Space::Records, b"b").unwrap().unwrap().to_vec(), b"4");
    }
}
