//! Writing: one key at a time is read and written, so that the digest knows what was replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::database::Database;
use super::digest::{self, Digest, group_of};
use super::keys::escape;
use super::{Group, Shared, Space, Stored, Write};
use crate::error::{Error, Result};

/// What is written while a copy is made.
struct Notes {
    copying: bool,
    keys: Vec<(Space, Vec<u8>)>,
}

impl Notes {
    fn add(&mut self, space: Space, key: &[u8]) {
        if self.copying {
            self.keys.push((space, key.to_vec()));
        }
    }
}

impl Shared {
    /// Writes, and notes what was written for a copy that is under way: after the write, so
    /// that who reads the note reads the new value. Whether there is a copy is asked once writes
    /// are let in: a copy that is begun later waits for this write before it looks at any key.
    fn write<T>(&self, write: impl FnOnce(&Database, &mut Notes) -> Result<T>) -> Result<T> {
        let _allowed = self.writes.read().unwrap_or_else(PoisonError::into_inner);
        if self.ended.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let database = self.current();
        database.check_writable()?;
        let copying = self.copying.load(Ordering::Acquire);
        let mut notes = Notes { copying, keys: Vec::new() };
        let outcome = write(&database, &mut notes);
        if copying {
            self.written.lock().unwrap_or_else(PoisonError::into_inner).extend(notes.keys);
        }
        outcome
    }

    /// Writes one key, if it has the value that is expected, where one is.
    pub(super) fn replace(
        &self,
        space: Space,
        key: &[u8],
        new: Option<Vec<u8>>,
        expected: Option<Option<&Stored>>,
    ) -> Result<bool> {
        self.replace_raw(space, &escape(key), new, expected)
    }

    /// The same for a key as sled has it.
    pub(super) fn replace_raw(
        &self,
        space: Space,
        key: &[u8],
        new: Option<Vec<u8>>,
        expected: Option<Option<&Stored>>,
    ) -> Result<bool> {
        let bytes = key.len() + new.as_ref().map_or(0, Vec::len);
        let needed = space == Space::System || new.is_none();
        self.write(|database, notes| {
            database.admit(bytes, needed)?;
            let digest = database.digest();
            let number = Digest::lock_of(space, key);
            let _locked = digest.lock(number);
            let place = || digest.place(space, key);
            let sum;
            let mut deletion = None;
            // What to look for where a write fails, which may have been made all the same, and
            // how the sum changes then.
            let (written, sought, prints) = match (new, expected) {
                (Some(new), None) => {
                    let new = digest.dress_when_written(new);
                    let merge = || database.merge_raw(space, key, &new);
                    let (written, prints) = digest::merging(merge);
                    // Where it did not even look for what it replaces, it made nothing.
                    let Some(prints) = prints else { return written.map(|()| true) };
                    (written.map(|()| true), Some(new), prints)
                }
                (Some(new), Some(expected)) => {
                    let (place, old) = (place(), expected.map(Stored::raw));
                    let new = digest.dress(place, new, old);
                    let prints = (digest.now(place, old), digest.now(place, Some(&new)));
                    let swapped = database.swap_raw(space, key, old, &new);
                    (swapped, Some(new), prints)
                }
                (None, expected) => {
                    let old = database.get_raw(space, key)?;
                    let old = old.as_deref();
                    if expected.is_some_and(|expected| expected.map(Stored::raw) != old) {
                        return Ok(false);
                    }
                    let Some(old) = old else { return Ok(true) };
                    let place = place();
                    let group = group_of(space, key);
                    sum = digest.sum(group);
                    let deletion = deletion.insert(sum.delete(group));
                    notes.add(Space::System, deletion.key());
                    let deleted = digest
                        .note_deletion(database, deletion, &[(place, old)])
                        .and_then(|()| database.remove_raw(space, key));
                    (deleted.map(|()| true), None, (digest.now(place, Some(old)), 0))
                }
            };
            let is_made = match &written {
                Ok(made) => *made,
                // Where it cannot be read, sled got no further than that.
                Err(_) => holds(database, space, key, sought.as_deref()).unwrap_or(false),
            };
            if is_made {
                digest.changed((space, key), prints.0, prints.1);
                if let Some(deletion) = &mut deletion {
                    deletion.made();
                }
            }
            notes.add(space, key);
            written
        })
    }

    /// Removes one record that the digest has never counted, if it has just this value.
    pub(super) fn remove_uncounted(&self, key: &[u8], stored: &Stored) -> Result<bool> {
        let space = Space::Records;
        self.write(|database, notes| {
            let digest = database.digest();
            let _locked = digest.lock(Digest::lock_of(space, key));
            if database.get_raw(space, key)?.as_deref() != Some(stored.raw()) {
                return Ok(false);
            }
            database.remove_raw(space, key)?;
            digest.uncounted_is_gone((space, key), stored.raw());
            notes.add(space, key);
            Ok(true)
        })
    }

    /// All writes or none. Of two to one key the later counts.
    pub(super) fn replace_all(&self, space: Space, writes: Vec<Write>) -> Result<()> {
        let writes: BTreeMap<Vec<u8>, _> =
            writes.into_iter().map(|w| (escape(&w.key).into_owned(), w.value)).collect();
        let length = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
        let bytes = writes.iter().map(|(key, value)| key.len() + length(value)).sum();
        let only_deletes = writes.values().all(Option::is_none);
        self.write(|database, notes| {
            let needed = space == Space::System || only_deletes;
            let _one_at_a_time = database.admit_batch(bytes, needed)?;
            let digest = database.digest();
            // In ascending order, so that two batches never wait for each other.
            let numbers: BTreeSet<usize> =
                writes.keys().map(|key| Digest::lock_of(space, key)).collect();
            let _locked: Vec<_> = numbers.iter().map(|&number| digest.lock(number)).collect();
            let mut batch = sled::Batch::default();
            let mut changes = Vec::new();
            // By groups, in order, so that two batches never wait for each other here either.
            let mut deleted: BTreeMap<Group, Vec<_>> = BTreeMap::new();
            for (key, new) in writes {
                let old = database.get_raw(space, &key)?;
                let place = digest.place(space, &key);
                let new = new.map(|new| digest.dress(place, new, old.as_deref()));
                match (&new, &old) {
                    (None, None) => continue,
                    (Some(new), _) => batch.insert(key.as_slice(), new.as_slice()),
                    (None, Some(old)) => {
                        batch.remove(key.as_slice());
                        let group = group_of(space, &key);
                        deleted.entry(group).or_default().push((place, old.clone()));
                    }
                }
                changes.push((key, old, new));
            }
            let in_batch = database.begin_batch()?;
            let mut written = Ok(());
            let deleted: Vec<_> =
                deleted.into_iter().map(|(group, olds)| (group, digest.sum(group), olds)).collect();
            let mut deletions = Vec::new();
            for (group, sum, olds) in &deleted {
                let mut deletion = sum.delete(*group);
                notes.add(Space::System, deletion.key());
                let olds: Vec<_> = olds.iter().map(|(place, old)| (*place, old.as_ref())).collect();
                written = digest.note_deletion(database, &mut deletion, &olds);
                deletions.push(deletion);
                if written.is_err() {
                    break;
                }
            }
            let written = written.and_then(|()| database.apply_raw(space, batch, &in_batch));
            if written.is_ok() || are_made(database, space, &changes) {
                for (key, old, new) in &changes {
                    let place = digest.place(space, key);
                    let prints = [old.as_deref(), new.as_deref()].map(|v| digest.now(place, v));
                    digest.changed((space, key), prints[0], prints[1]);
                }
                deletions.iter_mut().for_each(digest::Deletion::made);
            } else {
                undo(database, space, &changes);
            }
            for (key, ..) in &changes {
                notes.add(space, key);
            }
            written
        })
    }

    /// Removes the notes of deletions in a group that say nothing any more.
    pub(super) fn forget_deletions(&self, group: Group) -> Result<()> {
        self.write(|database, notes| {
            let forgotten = database.digest().forget_deletions(database, group)?;
            forgotten.iter().for_each(|key| notes.add(Space::System, key));
            Ok(())
        })
    }

    /// Writes the position with the digest; none for the last time. No write is under way then.
    pub(super) fn seal(&self, position: Option<Vec<u8>>) -> Result<()> {
        let _all = self.writes.write().unwrap_or_else(PoisonError::into_inner);
        if self.ended.load(Ordering::Acquire) {
            return if position.is_some() { Err(Error::Closed) } else { Ok(()) };
        }
        let ends = position.is_none();
        let database = self.current();
        let mut keys = Vec::new();
        let sealed = database.digest().seal(&database, position, &mut keys);
        // What failed may be there.
        if self.copying.load(Ordering::Acquire) {
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            written.extend(keys.into_iter().map(|key| (Space::System, key)));
        }
        sealed?;
        if ends {
            self.ended.store(true, Ordering::Release);
            database.sync()?;
        }
        Ok(())
    }
}

/// Whether `value` is there, for who has locked its key.
fn holds(database: &Database, space: Space, key: &[u8], value: Option<&[u8]>) -> Result<bool> {
    let held = database.get_raw(space, key)?;
    Ok(held.as_deref().map(digest::plain) == value.map(digest::plain))
}

/// A key, what it had, and what it gets.
type Change = (Vec<u8>, Option<sled::IVec>, Option<Vec<u8>>);

/// Whether all of a batch is there that failed: sled may have ended it in its log, where it would be
/// there by half if it were taken back.
fn are_made(database: &Database, space: Space, changes: &[Change]) -> bool {
    changes.iter().all(|(key, _, new)| holds(database, space, key, new.as_deref()).unwrap_or(false))
}

/// Takes back what sled has made of a batch before it met an error: it makes the writes of one
/// after the other, and leaves those that it made. Where that fails no more writes are taken, and the
/// key is not read. It is for who reads now: the next opening cuts the log off before the batch.
fn undo(database: &Database, space: Space, changes: &[Change]) {
    for (key, old, new) in changes {
        let undone = match holds(database, space, key, new.as_deref()) {
            Ok(true) => database.put_back(space, key, old.as_ref()),
            held => held.map(drop),
        };
        // The others are taken back all the same.
        if let Err(error) = undone {
            database.files().note_unknown(space, key);
            database.stop_writing(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::super::database::FAILS_BEHIND;
    use super::super::{SledOptions, SledStorage, Storage};
    use super::*;
    use crate::material::KeyMaterial;
    use crate::storage::prefix_range;

    fn open(dir: &Path) -> SledStorage {
        let options = SledOptions {
            cache_bytes: 16 << 20,
            segment_bytes: 512 << 10,
            flush_interval: Duration::from_millis(500),
        };
        let key = KeyMaterial::take(&mut [1; 32]);
        SledStorage::open(&dir.join("db"), &options, &key, false).unwrap()
    }

    /// Whoever reads what it replaces must find that there when it writes.
    #[test]
    fn the_sum_is_right_whoever_writes_the_same_keys_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path());
        storage.begin().unwrap();
        let value = |i: u32| (!i.is_multiple_of(3)).then(|| i.to_be_bytes().repeat(8));
        let (one, batches) = (b"one", [b"two", b"six"]);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let storage = &storage;
                scope.spawn(move || {
                    for i in (0..4000).map(|i| 2 * i + thread) {
                        storage.put(Space::Records, one, value(i)).unwrap();
                    }
                });
                scope.spawn(move || {
                    for i in (0..1500).map(|i| 2 * i + thread) {
                        let write = |key: &[u8; 3]| Write { key: key.to_vec(), value: value(i) };
                        storage.apply(Space::Records, Vec::from(batches.map(write))).unwrap();
                    }
                });
            }
        });
        assert_eq!(storage.broken().unwrap(), []);
    }

    /// sled has no place for a large page, and fails in the middle of what it was to write.
    fn fail(storage: &SledStorage, writes: Vec<Write>) {
        let blobs = storage.dir().join("blobs");
        let away = storage.dir().join("away");
        std::fs::rename(&blobs, &away).unwrap();
        assert!(storage.apply(Space::Records, writes).is_err());
        std::fs::rename(away, blobs).unwrap();
    }

    /// As a process would that comes after this one, which never lets go of its own.
    fn copied(storage: &SledStorage, to: &Path) -> SledStorage {
        std::fs::create_dir_all(to.join("db/blobs")).unwrap();
        for file in ["conf", "db", "durable", "blobs"].map(|file| storage.dir().join(file)) {
            let files = match std::fs::read_dir(&file) {
                Ok(files) => files.map(|file| file.unwrap().path()).collect(),
                Err(_) => Vec::from_iter(file.exists().then_some(file)),
            };
            for file in files {
                let to = to.join("db").join(file.strip_prefix(storage.dir()).unwrap());
                std::fs::copy(file, to).unwrap();
            }
        }
        open(to)
    }

    /// sled has taken back what it wrote before the batch, and the disk may hold that and a part of
    /// the batch, and never what takes the part back.
    #[test]
    fn of_a_batch_that_failed_nothing_is_found_later() {
        const VALUES: u32 = 40;

        let get = |storage: &SledStorage, i: u32| {
            let value = storage.get(Space::Records, &i.to_be_bytes()).unwrap();
            value.map(|value| value[0])
        };
        let round = || {
            let dir = tempfile::tempdir().unwrap();
            let storage = open(dir.path());
            storage.begin().unwrap();
            let write = |i: u32, value| Write { key: i.to_be_bytes().to_vec(), value: Some(value) };
            for i in 0..VALUES {
                let value = vec![1; 60 << 10];
                storage.put(Space::Records, &i.to_be_bytes(), Some(value)).unwrap();
            }
            storage.put_position(b"p".to_vec()).unwrap();
            storage.sync().unwrap();
            let mut batch: Vec<_> = (0..VALUES).map(|i| write(i, vec![2; 60 << 10])).collect();
            batch.push(write(200, vec![3; 1 << 20]));
            fail(&storage, batch);
            // sled's threads write what is full.
            let log = || std::fs::metadata(storage.dir().join("db")).unwrap().modified().unwrap();
            loop {
                let before = log();
                std::thread::park_timeout(Duration::from_millis(100));
                if log() == before {
                    break;
                }
            }
            let later = copied(&storage, &dir.path().join("copied"));
            let found: Vec<_> = (0..VALUES).filter(|i| get(&later, *i) != Some(1)).collect();
            assert_eq!((found, get(&later, 200)), (vec![], None));
            assert!(later.was_whole());
        };
        // sled writes a batch in no particular order.
        std::thread::scope(|scope| (0..6).for_each(|_| drop(scope.spawn(round))));
    }

    /// No batch is there by half, no other waits for ever, and what was lost before does not pass
    /// for what may have been lost now.
    #[test]
    fn after_a_write_that_failed_all_is_as_before_and_nothing_that_is_missing_passes() {
        let key = |i: u32| i.to_be_bytes();
        for loses in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let storage = open(dir.path());
            storage.begin().unwrap();
            for i in 0..50 {
                storage.put(Space::Records, &key(i), Some(vec![1; 20])).unwrap();
            }
            if loses {
                storage.0.current().remove_raw(Space::Records, &key(45)).unwrap();
            }
            storage.put_position(b"p".to_vec()).unwrap();
            storage.sync().unwrap();
            let write = |i: u32, value| Write { key: key(i).to_vec(), value };
            let mut batch: Vec<_> = (0..40).map(|i| write(i, None)).collect();
            batch.extend((60..100).map(|i| write(i, Some(vec![2; 20]))));
            batch.push(write(200, Some(vec![3; 1 << 20])));
            fail(&storage, batch);
            for i in (0..100).filter(|i| *i != 45) {
                let value = storage.get(Space::Records, &key(i)).unwrap();
                assert_eq!(value.is_some_and(|value| value[..] == [1; 20]), i < 50, "{i}");
            }
            let refused = storage.apply(Space::Records, vec![write(1, None)]);
            assert!(matches!(refused, Err(Error::WriteFailed { .. })), "{refused:?}");
            assert_eq!(storage.broken().is_ok_and(|broken| broken.is_empty()), !loses);
            assert_eq!(copied(&storage, &dir.path().join("copied")).was_whole(), !loses);
        }
    }

    /// As where sled has met an error in writing its log, and writes nothing more.
    #[test]
    fn what_cannot_be_taken_back_is_not_taken_for_deleted() {
        let key = |i: u32| [&[9; 16][..], &i.to_be_bytes()].concat();
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let storage = open(dir.path());
            storage.begin().unwrap();
            for i in 0..40 {
                storage.put(Space::Records, &key(i), Some(vec![1; 20])).unwrap();
            }
            let write = |i: u32, value| Write { key: key(i), value };
            let mut batch: Vec<_> = (0..40).map(|i| write(i, None)).collect();
            batch.push(write(200, Some(vec![3; 1 << 20])));
            let before = storage.scan(Space::Records, prefix_range(b""));
            // After the note and the batch: the first that is taken back.
            FAILS_BEHIND.set(3);
            fail(&storage, batch);
            if FAILS_BEHIND.replace(0) > 0 {
                // sled began with the one that fails.
                continue;
            }
            let found = (0..40).map(|i| storage.get(Space::Records, &key(i)));
            let refused: Vec<_> =
                found.filter_map(|found| found.map(Option::unwrap).err()).collect();
            assert!(matches!(refused[..], [Error::WriteFailed { .. }]), "{refused:?}");
            let all = prefix_range(b"");
            assert!(storage.walk(Space::Records, all.clone(), &mut |_, _| true).is_err());
            for mut pairs in [before, storage.scan(Space::Records, all)] {
                assert!(pairs.any(|pair| pair.is_err()));
            }
            return;
        }
        panic!("no batch failed in the middle");
    }

    /// sled tells of what it met behind the write, as where it cannot split the page. A deletion is
    /// the second write, after its note.
    #[test]
    fn a_write_that_failed_and_is_there_counts() {
        type Fails = fn(&SledStorage) -> Result<()>;
        const KEY: &[u8] = b"k";
        let value = |i| Some(vec![i; 20]);
        fn swap(storage: &SledStorage, new: Option<Vec<u8>>) -> Result<()> {
            let old = storage.get(Space::Records, KEY)?;
            storage.compare_and_swap(Space::Records, KEY, old.as_ref(), new).map(drop)
        }
        fn batch(storage: &SledStorage, new: Option<Vec<u8>>) -> Result<()> {
            let write = |key: &[u8], value| Write { key: key.to_vec(), value };
            storage.apply(Space::Records, vec![write(KEY, new), write(b"l", Some(vec![1]))])
        }
        let fails: [(u32, Fails, Option<Vec<u8>>); 10] = [
            (1, |s| s.put(Space::Records, KEY, Some(vec![2; 20])), value(2)),
            (1, |s| s.put(Space::Records, KEY, None), value(1)),
            (2, |s| s.put(Space::Records, KEY, None), None),
            (1, |s| swap(s, None), value(1)),
            (2, |s| swap(s, None), None),
            (1, |s| swap(s, Some(vec![2; 20])), value(2)),
            (1, |s| s.put_position(b"later".to_vec()), value(1)),
            (1, |s| batch(s, Some(vec![2; 20])), value(2)),
            (1, |s| batch(s, None), value(1)),
            (2, |s| batch(s, None), None),
        ];
        for (i, (nth, fails, found)) in fails.into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            let storage = open(dir.path());
            storage.begin().unwrap();
            storage.put(Space::Records, KEY, value(1)).unwrap();
            storage.put_position(b"p".to_vec()).unwrap();
            FAILS_BEHIND.set(nth);
            assert!(fails(&storage).is_err(), "{i}");
            assert_eq!(FAILS_BEHIND.get(), 0, "{i}");
            let held = storage.get(Space::Records, KEY).unwrap();
            assert_eq!(held.map(|held| held.to_vec()), found, "{i}");
            assert_eq!(storage.broken().unwrap(), [], "{i}");
            drop(storage);
            assert!(open(dir.path()).was_whole(), "{i}");
        }
    }

    /// Refused, as for want of space, once it was noted: the stripe's next note must not say that
    /// it was made.
    #[test]
    fn a_deletion_that_is_noted_and_not_made_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path());
        storage.begin().unwrap();
        let [first, second] = [b"sixteen bytes, one", b"sixteen bytes, two"];
        for key in [first, second] {
            storage.put(Space::Records, key, Some(key.repeat(10))).unwrap();
        }
        storage.put_position(b"p".to_vec()).unwrap();
        let database = storage.0.current();
        let (digest, group) = (database.digest(), group_of(Space::Records, first));
        let old = database.get_raw(Space::Records, first).unwrap().unwrap();
        let sum = digest.sum(group);
        let mut deletion = sum.delete(group);
        let place = digest.place(Space::Records, first);
        digest.note_deletion(&database, &mut deletion, &[(place, &*old)]).unwrap();
        drop((deletion, database));
        storage.put(Space::Records, second, None).unwrap();
        storage.sync().unwrap();
        drop(storage);
        assert!(open(dir.path()).was_whole());
    }
}
