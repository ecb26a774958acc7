//! The sums of all groups, in memory and as they lie in the database.
//!
//! Groups are kept in 256 buckets, by the first byte of their keys. A sync writes the buckets in
//! which a sum has changed since the last one, so that what it writes is bounded, whatever was
//! written.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;

use super::super::super::{Group, Space};
use super::count::Counts;
use super::deletions::{self, Stripe};
use super::number;

const BUCKETS: usize = 256;

/// The group of a key as sled has it.
pub(in super::super) fn group_of(space: Space, key: &[u8]) -> Group {
    if space == Space::System {
        return Group::System;
    }
    if let Some(first) = key.first_chunk()
        && !first.iter().any(|&byte| byte >= 0xfe)
    {
        return Group::Records(*first);
    }
    // What `escape` never writes stands for itself here.
    let mut start = [0; Group::LEN];
    let mut bytes = key.iter().copied().peekable();
    for place in &mut start {
        let Some(byte) = bytes.next() else { break };
        let escaped = bytes.next_if(|&next| byte == 0xfe && next <= 1).unwrap_or(0);
        *place = byte + escaped;
    }
    Group::Records(start)
}

/// The sum of the prints of a group's values.
pub(in super::super) struct Sum {
    now: AtomicU64,
    /// As it was last sealed. Changes only while nothing is written.
    sealed: AtomicU64,
    /// What of the group is being counted.
    counts: Counts,
    /// Made by the first deletion.
    stripes: OnceLock<Box<[Mutex<Stripe>; deletions::STRIPES]>>,
}

impl Sum {
    fn new(now: u64, sealed: u64) -> Arc<Self> {
        Arc::new(Self {
            now: AtomicU64::new(now),
            sealed: AtomicU64::new(sealed),
            counts: Counts::default(),
            stripes: OnceLock::new(),
        })
    }

    pub(super) fn now(&self) -> u64 {
        self.now.load(Ordering::Acquire)
    }

    pub(super) fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(super) fn stripes(&self) -> &[Mutex<Stripe>] {
        &self.stripes.get_or_init(Box::default)[..]
    }

    /// For who has the lock of the counts.
    pub(super) fn accept(&self, sum: u64) {
        self.now.store(sum, Ordering::Release);
    }

    /// Takes over that the value of a key counts for `new` instead of `old`. The key is locked.
    fn change(&self, key: &[u8], old: u64, new: u64) {
        let add = || self.now.fetch_add(new.wrapping_sub(old), Ordering::AcqRel);
        self.counts.change(add, key, old, new);
    }
}

type Start = [u8; Group::LEN];

#[derive(Default)]
struct Bucket {
    /// By the beginnings of the groups' keys, in order. Read by each write, and replaced when a
    /// group comes or goes.
    groups: ArcSwap<Vec<(Start, Arc<Sum>)>>,
    /// Held while they are replaced.
    replacing: Mutex<()>,
    /// Whether it must be written by the next sync.
    is_dirty: AtomicBool,
}

impl Bucket {
    fn add(&self, start: Start, sum: impl FnOnce() -> Arc<Sum>) -> Arc<Sum> {
        let _alone = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let groups = self.groups.load();
        match groups.binary_search_by(|(held, _)| held.cmp(&start)) {
            Ok(at) => Arc::clone(&groups[at].1),
            Err(at) => {
                let sum = sum();
                let mut groups = Vec::clone(&groups);
                groups.insert(at, (start, Arc::clone(&sum)));
                self.groups.store(Arc::new(groups));
                sum
            }
        }
    }
}

pub(super) struct Groups {
    buckets: Box<[Bucket]>,
    system: Arc<Sum>,
}

/// A bucket as it is written: its number, and what it holds; nothing if it is to go.
pub(super) struct Written {
    pub(super) bucket: usize,
    pub(super) entries: Option<Vec<u8>>,
}

impl Groups {
    pub(super) fn new() -> Self {
        let buckets = std::iter::repeat_with(Bucket::default).take(BUCKETS);
        Self { buckets: buckets.collect(), system: Sum::new(0, 0) }
    }

    /// Does `what` with the sum of a group, which is made if there is none.
    pub(super) fn with<T>(&self, group: Group, what: impl FnOnce(&Arc<Sum>) -> T) -> T {
        let Group::Records(start) = group else { return what(&self.system) };
        let bucket = &self.buckets[usize::from(start[0])];
        let groups = bucket.groups.load();
        match groups.binary_search_by(|(held, _)| held.cmp(&start)) {
            Ok(at) => what(&groups[at].1),
            Err(_) => what(&bucket.add(start, || Sum::new(0, 0))),
        }
    }

    /// What a group comes to.
    pub(super) fn now(&self, group: Group) -> u64 {
        let Group::Records(start) = group else { return self.system.now() };
        let groups = self.buckets[usize::from(start[0])].groups.load();
        let at = groups.binary_search_by(|(held, _)| held.cmp(&start));
        at.map_or(0, |at| groups[at].1.now())
    }

    /// See [`Sum::change`].
    pub(super) fn change(&self, group: Group, key: &[u8], old: u64, new: u64) {
        self.with(group, |sum| sum.change(key, old, new));
        self.has_changed(group);
    }

    /// Has the next sync write the bucket of a group.
    pub(super) fn has_changed(&self, group: Group) {
        if let Group::Records([first, ..]) = group {
            let is_dirty = &self.buckets[usize::from(first)].is_dirty;
            // Most writes find it so, and need not take its cache line from the others.
            if !is_dirty.load(Ordering::Relaxed) {
                is_dirty.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Sets a group to what was found. Nothing is written meanwhile.
    pub(super) fn set(&self, group: Group, now: u64, sealed: u64) {
        self.with(group, |sum| {
            sum.now.store(now, Ordering::Release);
            sum.sealed.store(sealed, Ordering::Release);
        });
        if now != sealed {
            self.has_changed(group);
        }
    }

    /// Has the next sync write a bucket.
    pub(super) fn write_bucket(&self, bucket: usize) {
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.is_dirty.store(true, Ordering::Release);
        }
    }

    /// The groups of which there are sums, in order, the store's own last.
    pub(super) fn all(&self) -> Vec<Group> {
        let starts = self.buckets.iter().flat_map(|bucket| {
            let groups = bucket.groups.load();
            groups.iter().map(|(start, _)| Group::Records(*start)).collect::<Vec<_>>()
        });
        starts.chain([Group::System]).collect()
    }

    /// The buckets that a sync has to write, and by how much all sums together have changed since
    /// the last one. Nothing is written meanwhile, until [`sealed`](Self::sealed).
    pub(super) fn to_seal(&self) -> (Vec<Written>, u64) {
        let since = |sum: &Sum| sum.now().wrapping_sub(sum.sealed.load(Ordering::Acquire));
        let mut change = since(&self.system);
        let mut written = Vec::new();
        for (number, bucket) in self.buckets.iter().enumerate() {
            if !bucket.is_dirty.load(Ordering::Acquire) {
                continue;
            }
            let mut entries = Vec::new();
            for (start, sum) in bucket.groups.load().iter() {
                change = change.wrapping_add(since(sum));
                let sums = [sum.now(), sum.sealed.load(Ordering::Acquire)];
                if sums != [0; 2] {
                    entries.extend_from_slice(start);
                    sums.iter().for_each(|sum| entries.extend_from_slice(&sum.to_be_bytes()));
                }
            }
            let entries = (!entries.is_empty()).then_some(entries);
            written.push(Written { bucket: number, entries });
        }
        (written, change)
    }

    /// Takes over that these were sealed. Groups without values are forgotten, and leave their
    /// buckets with the next sync.
    pub(super) fn sealed(&self, written: &[Written]) {
        let seal = |sum: &Sum| sum.sealed.store(sum.now(), Ordering::Release);
        seal(&self.system);
        for Written { bucket, entries } in written {
            let bucket = &self.buckets[*bucket];
            let _alone = bucket.replacing.lock().unwrap_or_else(PoisonError::into_inner);
            let groups = bucket.groups.load();
            groups.iter().for_each(|(_, sum)| seal(sum));
            let is_left = |sum: &Sum| sum.now() != 0 || sum.counts.are_any();
            let mut left = Vec::clone(&groups);
            left.retain(|(_, sum)| is_left(sum));
            let all_are_left = left.len() == groups.len();
            if !all_are_left {
                bucket.groups.store(Arc::new(left));
            }
            let is_gone = entries.as_ref().is_some_and(|entries| {
                entries.chunks_exact(ENTRY).any(|entry| number(entry, Group::LEN) == 0)
            });
            bucket.is_dirty.store(is_gone, Ordering::Release);
        }
    }
}

/// What a bucket holds of a group: the beginning of its keys ‖ its sum ‖ its sum at the sync before.
const ENTRY: usize = Group::LEN + 16;

/// The groups of a bucket with their sums, as of its own sync or the one before; `None` if that is
/// not what is written.
pub(super) fn entries(bucket: usize, bytes: &[u8], is_newest: bool) -> Option<Vec<(Group, u64)>> {
    let at = if is_newest { Group::LEN } else { Group::LEN + 8 };
    let entries = bytes.chunks(ENTRY).map(|entry| {
        let start = *entry.first_chunk::<{ Group::LEN }>()?;
        let fits = entry.len() == ENTRY && usize::from(start[0]) == bucket;
        fits.then(|| (Group::Records(start), number(entry, at)))
    });
    entries.collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::keys::escape;
    use super::*;

    #[test]
    fn a_key_is_in_the_group_of_its_first_bytes_however_sled_has_it() {
        for start in [[7; 16], [0xfe; 16], [0xff; 16], *b"\xfe\x00\xff\x01\xfd\xfe\xffabcdefghi"] {
            for rest in [&b""[..], b"\xff", b"name"] {
                let key = [&start[..], rest].concat();
                assert_eq!(group_of(Space::Records, &escape(&key)), Group::Records(start));
                assert_eq!(group_of(Space::System, &escape(&key)), Group::System);
            }
        }
        for key in [&b""[..], b"short", b"\xff", b"short\xfe"] {
            let mut start = [0; 16];
            start[..key.len()].copy_from_slice(key);
            assert_eq!(group_of(Space::Records, &escape(key)), Group::Records(start));
            assert_eq!(group_of(Space::Records, key), Group::Records(start), "as nobody writes it");
        }
    }

    const ONE: Group = Group::Records([1; 16]);

    #[test]
    fn a_bucket_is_written_when_it_changed_and_once_more_for_what_is_gone() {
        let groups = Groups::new();
        let seal = || {
            let (written, change) = groups.to_seal();
            groups.sealed(&written);
            let held = |w: &Written| (w.bucket, w.entries.as_ref().map_or(0, |e| e.len() / ENTRY));
            (written.iter().map(held).collect::<Vec<_>>(), change)
        };
        assert_eq!(seal(), (vec![], 0));
        groups.change(ONE, b"k", 0, 5);
        groups.change(Group::Records([2; 16]), b"k", 0, 7);
        groups.change(Group::System, b"k", 0, 9);
        assert_eq!(seal(), (vec![(1, 1), (2, 1)], 21));
        assert_eq!(seal(), (vec![], 0));
        groups.change(ONE, b"k", 5, 0);
        assert_eq!(groups.all().len(), 3);
        assert_eq!(seal(), (vec![(1, 1)], 0u64.wrapping_sub(5)));
        assert_eq!(groups.all().len(), 2);
        assert_eq!(seal(), (vec![(1, 0)], 0));
        assert_eq!(seal(), (vec![], 0));
    }

    #[test]
    fn a_bucket_is_read_as_of_its_own_sync_or_the_one_before() {
        let groups = Groups::new();
        groups.set(ONE, 5, 3);
        let (written, _) = groups.to_seal();
        let bytes = written[0].entries.as_ref().unwrap();
        assert_eq!(entries(1, bytes, true).unwrap(), [(ONE, 5)]);
        assert_eq!(entries(1, bytes, false).unwrap(), [(ONE, 3)]);
        assert!(entries(2, bytes, true).is_none() && entries(1, &bytes[1..], true).is_none());
    }
}
