//! Checking groups by the digest while they are written to.

use std::collections::BTreeSet;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, PoisonError};

use super::super::{Count, Outcome, Range};
use super::database::RawRange;
use super::digest::{Chunk, GroupCount, group_of};
use super::scan::{self, raw};
use super::{Group, Key, Shared, Space, Stored, Whole};
use crate::error::Result;

/// Pairs that are read before they are counted.
pub(super) const PAIRS: usize = 2048;
/// Groups that are counted together, for what it costs to wait for the writes that are under way.
const TOGETHER: usize = 64;

impl Shared {
    /// Nothing of it is to be read before [`Digest::settle`](super::digest::Digest::settle).
    fn begin_count(&self, group: Group) -> GroupCount {
        // A sync forgets groups that have come to nothing and that nobody counts.
        let _no_sync = self.writes.read().unwrap_or_else(PoisonError::into_inner);
        GroupCount::begin(self.current().digest(), group)
    }

    /// Reads the next pairs of a group, at most `most`.
    fn count_some<'a>(
        &self,
        count: &'a GroupCount,
        range: RawRange,
        most: usize,
    ) -> Result<Chunk<'a>> {
        let mut left = most;
        count.read(self, range, &mut |_, _| {
            left -= 1;
            Ok(left > 0)
        })
    }

    /// What a count that has come to its end says.
    fn outcome(&self, count: &GroupCount) -> Result<Outcome> {
        if !Arc::ptr_eq(self.current().digest(), count.digest()) {
            return Ok(Outcome::Again);
        }
        if !count.is_right() {
            // Where a write was cut short, the sum is not known.
            self.current().check_writable()?;
            return Ok(Outcome::Broken);
        }
        Ok(Outcome::Whole(Whole::counted(count.group())))
    }

    /// See [`Storage::verify`](super::Storage::verify).
    pub(super) fn verify(&self, group: Group) -> Result<Option<Whole>> {
        self.verify_by(group, PAIRS)
    }

    /// See [`Storage::accept`](super::Storage::accept).
    pub(super) fn accept(&self, group: Group) -> Result<()> {
        loop {
            let count = self.count_all(group, PAIRS)?;
            self.current().check_writable()?;
            // Where the digest was replaced meanwhile, it is not this one that must be made right.
            if let Outcome::Whole(_) = self.outcome(&count)? {
                return Ok(());
            }
            // Nor does it change while it is sealed.
            let _no_sync = self.writes.read().unwrap_or_else(PoisonError::into_inner);
            count.accept();
        }
    }

    /// A count of all of a group, in chunks of at most so many pairs.
    pub(super) fn count_all(&self, group: Group, pairs: usize) -> Result<GroupCount> {
        let count = self.begin_count(group);
        count.digest().settle();
        let mut left = Some(raw(group.range().1));
        while let Some(range) = left {
            let chunk = self.count_some(&count, range, pairs)?;
            left = chunk.rest();
            count.digest().settle();
            chunk.close();
        }
        Ok(count)
    }

    fn verify_by(&self, group: Group, pairs: usize) -> Result<Option<Whole>> {
        loop {
            let count = self.count_all(group, pairs)?;
            match self.outcome(&count)? {
                Outcome::Whole(whole) => return Ok(Some(whole)),
                Outcome::Broken => return Ok(None),
                Outcome::Again => {}
            }
        }
    }

    /// See [`Storage::broken`](super::Storage::broken).
    pub(super) fn broken(&self) -> Result<Vec<Group>> {
        let mut broken = BTreeSet::new();
        let (groups, foreign) = self.groups()?;
        broken.extend(foreign);
        for groups in groups.chunks(TOGETHER) {
            broken.extend(self.broken_of(groups)?);
        }
        Ok(broken.into_iter().collect())
    }

    /// All groups of which there are values or a sum, and those with keys that are none of ours.
    fn groups(&self) -> Result<(Vec<Group>, Vec<Group>)> {
        let database = self.current();
        let mut groups: BTreeSet<Group> = database.digest().groups().into_iter().collect();
        let (mut from, mut foreign) = (Bound::Unbounded, Vec::new());
        loop {
            let mut pairs = database.range(Space::Records, (from, Bound::Unbounded))?;
            let Some((key, _)) = database.step(|| pairs.next())? else { break };
            let group = group_of(Space::Records, &key);
            let (begin, end) = raw(group.range().1);
            let range = (begin.as_ref().map(|key| &**key), end.as_ref().map(|key| &**key));
            if RangeBounds::<[u8]>::contains(&range, &*key) {
                groups.insert(group);
                match end {
                    Bound::Excluded(end) => from = Bound::Included(end),
                    _ => break,
                }
            } else {
                foreign.push(group);
                from = Bound::Excluded(key);
            }
        }
        Ok((groups.into_iter().collect(), foreign))
    }

    /// Which of some groups are not whole: small ones are counted together.
    fn broken_of(&self, groups: &[Group]) -> Result<Vec<Group>> {
        let counts: Vec<_> = groups.iter().map(|&group| self.begin_count(group)).collect();
        let Some(digest) = counts.first().map(|count| Arc::clone(count.digest())) else {
            return Ok(Vec::new());
        };
        digest.settle();
        // Those of many values, and those that were begun when the digest had just been replaced.
        let (mut chunks, mut alone) = (Vec::new(), Vec::new());
        for count in &counts {
            let chunk = self.count_some(count, raw(count.group().range().1), PAIRS)?;
            if chunk.ended() && Arc::ptr_eq(count.digest(), &digest) {
                chunks.push(chunk);
            } else {
                alone.push(count.group());
            }
        }
        digest.settle();
        chunks.into_iter().for_each(Chunk::close);
        let mut broken = Vec::new();
        for count in &counts {
            match self.outcome(count)? {
                _ if alone.contains(&count.group()) => {}
                Outcome::Whole(_) => {}
                Outcome::Broken => broken.push(count.group()),
                Outcome::Again => alone.push(count.group()),
            }
        }
        drop(counts);
        for group in alone {
            if self.verify(group)?.is_none() {
                broken.push(group);
            }
        }
        Ok(broken)
    }
}

/// A count that others walk.
pub(super) struct Counting {
    shared: Arc<Shared>,
    count: GroupCount,
}

impl Counting {
    pub(super) fn begin(shared: Arc<Shared>, group: Group) -> Self {
        let count = shared.begin_count(group);
        count.digest().settle();
        Self { shared, count }
    }
}

impl Count for Counting {
    fn walk(&self, range: Range, each: &mut dyn FnMut(Key, Stored) -> bool) -> Result<bool> {
        let chunk = self.count.read(&self.shared, raw(range), &mut |key, stored| {
            Ok(scan::each_pair(key, stored, each))
        })?;
        let ended = chunk.ended();
        self.count.digest().settle();
        chunk.close();
        Ok(ended)
    }

    fn outcome(&self) -> Result<Outcome> {
        self.shared.outcome(&self.count)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::Duration;

    use super::super::digest::{self, Digest};
    use super::super::{SledOptions, SledStorage, Storage, Write};
    use super::*;
    use crate::material::KeyMaterial;

    const ORG: [u8; 16] = [7; 16];

    fn key(i: u32) -> Vec<u8> {
        [&ORG[..], &i.to_be_bytes()].concat()
    }

    fn open(dir: &Path) -> SledStorage {
        let options = SledOptions {
            cache_bytes: 16 << 20,
            segment_bytes: 512 << 10,
            flush_interval: Duration::from_millis(500),
        };
        let material = KeyMaterial::take(&mut [1; 32]);
        let storage = SledStorage::open(&dir.join("db"), &options, &material, false).unwrap();
        storage.begin().unwrap();
        storage
    }

    /// Writers of all kinds, syncs, and counts in small chunks of one group at once: the count agrees
    /// every time, and takes nothing for whole that is not.
    #[test]
    fn a_count_agrees_whatever_is_written_meanwhile() {
        const KEYS: u32 = 500;
        const COUNTS: usize = 60;

        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path());
        (0..KEYS).for_each(|i| storage.put(Space::Records, &key(i), Some(vec![1; 30])).unwrap());
        let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for thread in 0..3u32 {
                let (storage, stop, written) = (&storage, &stop, &written);
                scope.spawn(move || {
                    let mut state = thread + 1;
                    let mut random = |below: u32| {
                        state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
                        (state >> 16) % below
                    };
                    while !stop.load(Ordering::Relaxed) {
                        // Some between those that are there already.
                        let name = key(random(KEYS + 20));
                        let value =
                            (random(3) > 0).then(|| random(1 << 16).to_be_bytes().repeat(8));
                        match random(4) {
                            0 => {
                                let old = storage.get(Space::Records, &name).unwrap();
                                let swap = |old| {
                                    storage.compare_and_swap(Space::Records, &name, old, value)
                                };
                                swap(old.as_ref()).unwrap();
                            }
                            1 => {
                                let other = Write { key: key(random(KEYS)), value: value.clone() };
                                let one = Write { key: name, value: None };
                                storage.apply(Space::Records, vec![one, other]).unwrap();
                            }
                            _ => storage.put(Space::Records, &name, value).unwrap(),
                        }
                        written.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    storage.put_position(b"p".to_vec()).unwrap();
                    std::thread::park_timeout(Duration::from_millis(1));
                }
            });
            let count = |pairs| {
                (0..COUNTS)
                    .all(|_| storage.0.verify_by(Group::Records(ORG), pairs).unwrap().is_some())
            };
            let other = scope.spawn(move || count(3));
            let agreed = count(40);
            let others = other.join().unwrap();
            let all = storage.broken();
            stop.store(true, Ordering::Relaxed);
            assert!(agreed && others);
            assert_eq!(all.unwrap(), []);
        });
        assert!(written.load(Ordering::Relaxed) > 1000);
        storage.0.current().remove_raw(Space::Records, &storage_key(&storage)).unwrap();
        assert!(storage.0.verify_by(Group::Records(ORG), 40).unwrap().is_none());
    }

    /// What it wrote was read already, and what it tells is to be noted before that is counted.
    #[test]
    fn a_write_that_is_under_way_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let storage = open(dir.path());
        (0..3).for_each(|i| storage.put(Space::Records, &key(i), Some(vec![1; 30])).unwrap());
        let database = storage.0.current();
        let digest = database.digest();
        let counting = storage.count(Group::Records(ORG));
        let locked = digest.lock(Digest::lock_of(Space::Records, &key(1)));
        let new = digest.dress_when_written(vec![2; 30]);
        let merge = || database.merge_raw(Space::Records, &key(1), &new);
        let (old, new) = digest::merging(merge).1.unwrap();
        let (seen, was_seen) = std::sync::mpsc::channel();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let range = Group::Records(ORG).range().1;
                let walked = counting.walk(range, &mut |_, _| seen.send(()).is_ok());
                done.send(walked).unwrap();
            });
            (0..3).for_each(|_| was_seen.recv().unwrap());
            assert!(is_done.recv_timeout(Duration::from_millis(50)).is_err());
            digest.changed((Space::Records, &key(1)), old, new);
            drop(locked);
            assert!(is_done.recv().unwrap().unwrap());
        });
        assert!(matches!(counting.outcome().unwrap(), Outcome::Whole(_)));
    }

    /// One that is there.
    fn storage_key(storage: &SledStorage) -> Vec<u8> {
        let (space, range) = Group::Records(ORG).range();
        storage.scan(space, range).next().unwrap().unwrap().0.to_vec()
    }
}
