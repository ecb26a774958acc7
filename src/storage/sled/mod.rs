//! sled 0.34 behind [`Storage`], in a database that can be replaced by a fresh copy of what
//! lives while the store works.

mod backlog;
mod border;
mod closed;
mod copy;
mod database;
mod digest;
mod files;
mod flush;
mod keeper;
mod keys;
mod links;
mod log;
mod pins;
mod scan;
mod settings;
mod strays;
mod sums;
mod tail;
mod verify;
mod write;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use arc_swap::{ArcSwap, Guard};
use crossbeam::sync::ShardedLock;

use super::{CopyPlan, Count, Group, Pairs, Range, Space, Storage, Successor, Whole, Write};
use crate::error::{Error, Result};
use crate::material::KeyMaterial;
use database::Database;
pub(crate) use database::{SledOptions, Stored};
use digest::{Digest, Found};
pub(crate) use scan::Key;

pub(crate) struct SledStorage(Arc<Shared>);

struct Shared {
    options: SledOptions,
    found: Found,
    /// Nothing is written any more.
    ended: AtomicBool,
    /// Replaced while nobody writes. Who reads from the one before, which lives as long, reads
    /// what it held at that moment.
    current: ArcSwap<Database>,
    /// Held shared by each write, exclusively while there must be none.
    writes: ShardedLock<()>,
    /// While a copy is made, the keys that were written meanwhile.
    copying: AtomicBool,
    written: Mutex<HashSet<(Space, Vec<u8>)>>,
}

impl SledStorage {
    /// Whether `dir` holds a database, found out without opening it.
    pub(crate) fn exists(dir: &Path) -> bool {
        Database::exists(dir)
    }

    /// Returns true if large pages of the database in `dir`, or of one that it is a copy of, may have
    /// been removed without being overwritten.
    pub(crate) fn lost_pages(dir: &Path) -> bool {
        links::lost_pages(dir)
    }

    /// Opens or makes the database in `dir`, with the key of its digest. Reads all of it if it
    /// was not closed, or if `thorough`. Nothing is written before [`begin`](Storage::begin).
    pub(crate) fn open(
        dir: &Path,
        options: &SledOptions,
        key: &KeyMaterial,
        thorough: bool,
    ) -> Result<Self> {
        let digest = Arc::new(Digest::new(key));
        let (database, is_as_left) = Database::open(dir, options, digest, thorough)?;
        let database = Arc::new(database);
        let mut found = database.digest().find(&database, thorough)?;
        found.is_whole &= is_as_left;
        Ok(Self(Arc::new(Shared {
            options: options.clone(),
            found,
            ended: AtomicBool::new(false),
            current: ArcSwap::new(database),
            writes: ShardedLock::new(()),
            copying: AtomicBool::new(false),
            written: Mutex::default(),
        })))
    }

    /// Bytes of the pieces that a file of a database consists of, over whose ends no value lies;
    /// `None` for a file that is one piece.
    pub(crate) fn piece_of(file: &Path) -> Option<u64> {
        let dir = file.parent().filter(|_| file.file_name().is_some_and(|name| name == "db"))?;
        settings::noted_size(dir).ok()?.map(|size| size as u64)
    }

    /// Whether what was found at opening is what was left.
    pub(crate) fn was_whole(&self) -> bool {
        self.0.found.is_whole
    }

    /// The groups in which it is not, where that can be told.
    pub(crate) fn was_broken(&self) -> &[Group] {
        &self.0.found.broken
    }
}

impl Shared {
    fn current(&self) -> Guard<Arc<Database>> {
        self.current.load()
    }
}

impl Storage for SledStorage {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Stored>> {
        let database = self.0.current();
        match database.get(space, key) {
            // Its files are overwritten some seconds after it was replaced.
            Err(_) if !Arc::ptr_eq(&database, &self.0.current()) => self.get(space, key),
            found => found,
        }
    }

    fn get_found(&self, space: Space, key: &Key) -> Result<Option<Stored>> {
        let database = self.0.current();
        match database.get_raw(space, &key.raw()) {
            Err(_) if !Arc::ptr_eq(&database, &self.0.current()) => self.get_found(space, key),
            found => Ok(found?.map(Stored)),
        }
    }

    fn remove_strays(&self, strays: &[(Key, Stored)]) -> Result<u64> {
        self.0.remove_strays(strays)
    }

    fn put(&self, space: Space, key: &[u8], value: Option<Vec<u8>>) -> Result<()> {
        self.0.replace(space, key, value, None).map(drop)
    }

    fn compare_and_swap(
        &self,
        space: Space,
        key: &[u8],
        old: Option<&Stored>,
        new: Option<Vec<u8>>,
    ) -> Result<bool> {
        self.0.replace(space, key, new, Some(old))
    }

    fn apply(&self, space: Space, writes: Vec<Write>) -> Result<()> {
        self.0.replace_all(space, writes)
    }

    fn walk(
        &self,
        space: Space,
        range: Range,
        each: &mut dyn FnMut(Key, Stored) -> bool,
    ) -> Result<bool> {
        scan::walk(&self.0.current(), space, range, each)
    }

    fn scan(&self, space: Space, range: Range) -> Pairs {
        Box::new(scan::Scan::new(Arc::clone(&self.0), space, range))
    }

    fn put_position(&self, position: Vec<u8>) -> Result<()> {
        self.0.seal(Some(position))
    }

    fn position(&self) -> Result<Option<Stored>> {
        self.0.current().get(Space::System, digest::POSITION_KEY)
    }

    fn begin(&self) -> Result<()> {
        let database = self.0.current();
        database.digest().begin(&database, &self.0.found)?;
        database.files().begin_wiping();
        Ok(())
    }

    fn end(&self) -> Result<()> {
        self.0.seal(None)
    }

    fn verify(&self, group: Group) -> Result<Option<Whole>> {
        self.0.verify(group)
    }

    fn broken(&self) -> Result<Vec<Group>> {
        self.0.broken()
    }

    fn accept(&self, group: Group) -> Result<()> {
        self.0.accept(group)
    }

    fn count(&self, group: Group) -> Arc<dyn Count> {
        Arc::new(verify::Counting::begin(Arc::clone(&self.0), group))
    }

    fn forget(&self, group: Group) -> Result<()> {
        self.0.forget_deletions(group)
    }

    fn sync(&self) -> Result<()> {
        let database = Arc::clone(&self.0.current());
        database.sync()
    }

    fn check_writable(&self) -> Result<()> {
        self.0.current().check_writable()
    }

    fn stop_writing(&self, error: Error) -> Error {
        self.0.current().stop_writing(error)
    }

    fn bytes_on_disk(&self) -> Result<u64> {
        self.0.current().bytes_on_disk()
    }

    fn dir(&self) -> PathBuf {
        self.0.current().dir().to_owned()
    }

    fn copy_to(&self, dir: &Path, plan: &CopyPlan<'_>) -> Result<Box<dyn Successor + '_>> {
        let copy = copy::Copy::start(&self.0, dir, plan)?;
        // The blocks are there still.
        if links::lost_pages(&self.dir()) {
            let during = || format!("noting in {} what is not erased", dir.display());
            links::note_lost(dir).map_err(|e| Error::io(during(), e))?;
        }
        Ok(Box::new(copy))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::io::ErrorKind;
    use std::ops::Bound;
    use std::sync::atomic::AtomicU32;
    use std::time::Duration;

    use std::sync::atomic::Ordering;

    use super::border::{guarded, refusal_note};
    use super::*;

    fn options() -> SledOptions {
        SledOptions {
            cache_bytes: 16 << 20,
            segment_bytes: 512 << 10,
            flush_interval: Duration::from_millis(500),
        }
    }

    fn open(dir: &Path) -> Result<SledStorage> {
        let key = KeyMaterial::take(&mut [1; 32]);
        let storage = SledStorage::open(dir, &options(), &key, false)?;
        assert!(storage.was_whole());
        storage.begin()?;
        Ok(storage)
    }

    #[test]
    fn after_a_panic_or_a_refused_sync_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let storage = open(&path).unwrap();
        storage.put(Space::Records, b"a", Some(vec![1])).unwrap();
        storage.sync().unwrap();
        let refused = storage.0.current().files().refused(&path, &ErrorKind::Other.into());
        assert!(matches!(refused, Error::SyncFailed { .. }));
        assert!(storage.put(Space::Records, b"b", Some(vec![1])).is_err());
        assert!(storage.compare_and_swap(Space::Records, b"a", None, None).is_err());
        assert!(storage.apply(Space::Records, Vec::new()).is_err());
        assert!(storage.sync().is_err());
        assert!(storage.get(Space::Records, b"a").unwrap().is_some(), "reading goes on");
        assert!(refusal_note(&path).exists());
        drop(storage);
        let storage = open(&path).unwrap();
        assert!(!refusal_note(&path).exists());
        assert!(storage.get(Space::Records, b"a").unwrap().is_some());
        let panicked = storage.0.current().step(|| panic!("on purpose"));
        assert!(panicked.is_err());
        assert!(matches!(storage.sync(), Err(Error::StorageDamaged { .. })));
    }

    /// sled writes blobs in place: one that was looked at half-written is looked at again.
    #[test]
    fn a_blob_that_grew_is_synced_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let storage = open(&path).unwrap();
        let blob = path.join("blobs/1");
        let known = |storage: &SledStorage| {
            storage.sync().unwrap();
            storage.0.current().files().known_blob(blob.file_name().unwrap())
        };
        fs::write(&blob, [1; 100]).unwrap();
        assert_eq!(known(&storage), (Some(100), false, 1));
        assert_eq!(known(&storage), (Some(100), false, 1));
        fs::write(&blob, [1; 300]).unwrap();
        assert_eq!(known(&storage), (Some(300), false, 2), "still young");
    }

    /// sled would follow a link, and what is erased would not.
    #[test]
    fn a_large_page_that_is_a_link_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(&dir.path().join("db")).unwrap();
        let blob = dir.path().join("db/blobs/1");
        std::os::unix::fs::symlink(dir.path(), &blob).unwrap();
        assert!(matches!(storage.sync(), Err(Error::OutsideStore { path, .. }) if path == blob));
        fs::remove_file(blob).unwrap();
        storage.sync().unwrap();
    }

    /// Found by the fuzzer: sled holds its lock a little longer than its handles live.
    #[test]
    fn a_database_that_was_just_dropped_opens_again() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..100u8 {
            let storage = open(&dir.path().join("db")).unwrap();
            storage.put(Space::Records, &[i], Some(vec![i; 100])).unwrap();
        }
    }

    #[test]
    fn scans_both_ways_over_keys_that_break_sleds_reverse_iterator() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(&dir.path().join("db")).unwrap();
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
        assert!(all().map(|pair| pair.unwrap().0.to_vec()).eq(keys.iter().cloned()));
        assert!(all().rev().map(|pair| pair.unwrap().0.to_vec()).eq(keys.iter().rev().cloned()));
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
        let storage = open(&dir.path().join("db")).unwrap();
        let write = |key: &str, value: Option<&str>| Write {
            key: key.into(),
            value: value.map(Into::into),
        };
        storage.apply(Space::Records, vec![write("a", Some("1")), write("b", Some("2"))]).unwrap();
        storage.apply(Space::Records, vec![write("a", None)]).unwrap();
        assert!(storage.get(Space::Records, b"a").unwrap().is_none());
        assert!(storage.get(Space::System, b"b").unwrap().is_none());
        let swap = |old: Option<&Stored>, new: Option<&str>| {
            let new = new.map(|new| new.as_bytes().to_vec());
            storage.compare_and_swap(Space::Records, b"b", old, new).unwrap()
        };
        let now = || storage.get(Space::Records, b"b").unwrap();
        assert!(!swap(None, Some("3")));
        let two = now();
        assert!(swap(two.as_ref(), Some("3")));
        assert!(!swap(two.as_ref(), Some("2")));
        assert!(!swap(two.as_ref(), None));
        assert!(swap(now().as_ref(), None));
        assert!(!swap(two.as_ref(), Some("2")));
        assert!(swap(None, Some("4")));
        assert_eq!(storage.get(Space::Records, b"b").unwrap().unwrap().to_vec(), b"4");
    }

    /// A batch that is on its way when a copy begins is copied, or noted.
    #[test]
    fn a_batch_that_meets_the_start_of_a_copy_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(&dir.path().join("db")).unwrap();
        for _ in 0..20 {
            let held = storage.0.writes.write().unwrap();
            let on_its_way = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let write = Write { key: b"k".to_vec(), value: Some(vec![1]) };
                    on_its_way.store(true, Ordering::Release);
                    storage.apply(Space::Records, vec![write]).unwrap();
                });
                while !on_its_way.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
                (0..500).for_each(|_| std::thread::yield_now());
                storage.0.copying.store(true, Ordering::Release);
                drop(held);
            });
            storage.0.copying.store(false, Ordering::Release);
            let noted = std::mem::take(&mut *storage.0.written.lock().unwrap());
            assert_eq!(noted.len(), 1);
        }
    }

    /// What blinded names that move hang on: never at neither key for who looks at the one, the
    /// other, and the one again, nor for a scan that meets the new key after the old.
    #[test]
    fn a_batch_that_moves_a_value_is_seen_whole() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(&dir.path().join("db")).unwrap();
        let key = |place: u32| place.to_be_bytes();
        let write = |place, value| Write { key: key(place).to_vec(), value };
        storage.put(Space::Records, &key(0), Some(vec![7])).unwrap();
        let (at, stop) = (AtomicU32::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let get = |place| storage.get(Space::Records, &key(place)).unwrap().is_some();
                    while !stop.load(Ordering::SeqCst) {
                        let old = at.load(Ordering::SeqCst);
                        let found = get(old + 1) || get(old) || get(old + 1);
                        assert!(found || at.load(Ordering::SeqCst) > old, "lost at {old}");
                        let all = (Bound::Unbounded, Bound::Unbounded);
                        assert!(storage.scan(Space::Records, all).next().is_some(), "lost");
                    }
                });
            }
            for old in 0..2000 {
                let moved = vec![write(old + 1, Some(vec![7])), write(old, None)];
                storage.apply(Space::Records, moved).unwrap();
                at.store(old + 1, Ordering::SeqCst);
            }
            stop.store(true, Ordering::SeqCst);
        });
    }

    /// Writers and scans go on while everything moves into another database, and nothing is
    /// lost, resurrected or out of order.
    #[test]
    fn a_copy_takes_over_under_writers_and_scans() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(&dir.path().join("db")).unwrap();
        let key = |i: u32| i.to_be_bytes();
        for i in 0..5000 {
            storage.put(Space::Records, &key(i), Some(vec![0; 50])).unwrap();
        }
        storage.put(Space::System, b"s", Some(vec![1])).unwrap();
        let all = || (Bound::Unbounded, Bound::Unbounded);
        let mut scan = storage.scan(Space::Records, all());
        let mut backwards = storage.scan(Space::Records, all()).rev();
        assert_eq!(scan.next().unwrap().unwrap().0[..], key(0));
        assert_eq!(backwards.next().unwrap().unwrap().0[..], key(4999));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2u32)
                .map(|thread| {
                    let (storage, stop) = (&storage, &stop);
                    scope.spawn(move || {
                        let mut rounds = 0u8;
                        while !stop.load(Ordering::Relaxed) && rounds < 250 {
                            rounds += 1;
                            for i in (0..5000).filter(|i| i % 10 == thread) {
                                let value = (!rounds.is_multiple_of(3)).then(|| vec![rounds; 50]);
                                storage.put(Space::Records, &key(i), value).unwrap();
                            }
                        }
                        rounds
                    })
                })
                .collect();
            let mut copy = storage.copy_to(&dir.path().join("db.1"), &CopyPlan::Checked).unwrap();
            copy.catch_up().unwrap();
            storage.put(Space::Records, &key(9), Some(vec![1])).unwrap();
            let pause = copy.freeze(None).unwrap().frozen().switch();
            assert_eq!(storage.get(Space::Records, &key(9)).unwrap().unwrap().to_vec(), [1]);
            storage.put(Space::Records, &key(9), Some(vec![0; 50])).unwrap();
            assert!(pause < Duration::from_secs(5), "{pause:?}");
            assert_eq!(storage.dir(), dir.path().join("db.1"));
            stop.store(true, Ordering::Relaxed);
            let rounds: Vec<u8> = writers.into_iter().map(|w| w.join().unwrap()).collect();
            for i in 0..5000u32 {
                let expected = match rounds.get((i % 10) as usize) {
                    Some(rounds) => (!rounds.is_multiple_of(3)).then(|| vec![*rounds; 50]),
                    None => Some(vec![0; 50]),
                };
                let found = storage.get(Space::Records, &key(i)).unwrap();
                assert_eq!(found.map(|value| value.to_vec()), expected, "key {i}");
            }
            let ascending: Vec<_> = scan.map(|pair| pair.unwrap().0.to_vec()).collect();
            assert!(ascending.is_sorted() && ascending.len() >= 3999);
            assert!(backwards.map(|pair| pair.unwrap().0.to_vec()).is_sorted_by(|a, b| a > b));
            assert!(copy.close_old(Duration::from_secs(10)), "the old one is closed");
        });
        drop(storage);
        let storage = open(&dir.path().join("db.1")).unwrap();
        assert!(storage.get(Space::System, b"s").unwrap().is_some());
        assert!(storage.get(Space::Records, &key(7)).unwrap().is_some());
    }
}
