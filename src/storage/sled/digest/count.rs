//! Counts a group's values beside its writers, none of which is kept waiting.
//!
//! A chunk of the group's keys is *open* while it is read: what is written to it meanwhile is noted.
//! When it has been read, [`Digest::settle`] waits for the writes that were under way and might not
//! have noted anything yet. Then the chunk is *closed*: what was noted takes the place of what was
//! read, and from then on each write to it corrects the count by what it changes. So once all of the
//! group is closed, count and sum are of the same moment.
//!
//! That holds because each write has its key locked from before it reads what it replaces until it
//! has told the sum, and `settle` takes each of these locks once:
//!
//! - of a write that told the sum before the chunk was opened, the chunk reads the outcome;
//! - a write that tells it while the chunk is open is noted, whatever the chunk has read of it;
//! - a write that tells it later had its key locked only after `settle` had passed, so it replaced
//!   what the chunk counts for that key, and corrects it.

use std::collections::HashMap;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::super::Group;
use super::super::Shared;
use super::super::database::RawRange;
use super::super::scan;
use super::groups::Sum;
use super::{Digest, is_own};
use crate::error::Result;

/// The counts of one group that are under way.
#[derive(Default)]
pub(super) struct Counts {
    are_any: AtomicBool,
    counts: Mutex<Vec<Count>>,
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, Vec<Count>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn are_any(&self) -> bool {
        self.are_any.load(Ordering::Acquire)
    }

    /// Tells the sum, by `add`, and each count of a change. The key is locked.
    pub(super) fn change(&self, add: impl FnOnce() -> u64, key: &[u8], old: u64, new: u64) {
        if !self.are_any() {
            add();
            return;
        }
        // Under one lock, so that who compares them finds both before the change or both after.
        let mut counts = self.lock();
        add();
        for count in &mut *counts {
            count.change(key, old, new);
        }
    }
}

/// How far one count has got.
#[derive(Default)]
struct Count {
    number: u64,
    sum: u64,
    closed: Stretches,
    open: Vec<Open>,
}

/// A chunk that is being read.
struct Open {
    range: RawRange,
    /// What each key counts for that was written meanwhile.
    written: HashMap<Vec<u8>, u64>,
}

impl Count {
    fn change(&mut self, key: &[u8], old: u64, new: u64) {
        if let Some(open) = self.open.iter_mut().find(|open| is_in(&open.range, key)) {
            open.written.insert(key.to_vec(), new);
        } else if self.closed.hold(key) {
            self.sum = self.sum.wrapping_add(new.wrapping_sub(old));
        }
    }

    fn take(&mut self, range: &RawRange) -> Option<Open> {
        let at = self.open.iter().position(|open| open.range == *range)?;
        Some(self.open.swap_remove(at))
    }
}

fn is_in((from, to): &RawRange, key: &[u8]) -> bool {
    (bytes(from), bytes(to)).contains(key)
}

fn bytes(bound: &Bound<sled::IVec>) -> Bound<&[u8]> {
    bound.as_ref().map(|key| &**key)
}

/// Stretches of keys that do not overlap, joined where one begins as another ends.
#[derive(Default)]
struct Stretches(Vec<RawRange>);

impl Stretches {
    fn add(&mut self, (mut from, mut to): RawRange) {
        if let Some(before) = self.0.iter().position(|(_, end)| is_cut(end, &from)) {
            from = self.0.swap_remove(before).0;
        }
        if let Some(behind) = self.0.iter().position(|(begin, _)| is_cut(&to, begin)) {
            to = self.0.swap_remove(behind).1;
        }
        self.0.push((from, to));
    }

    fn hold(&self, key: &[u8]) -> bool {
        self.0.iter().any(|stretch| is_in(stretch, key))
    }
}

/// Whether one stretch ends just where another begins.
fn is_cut(end: &Bound<sled::IVec>, begin: &Bound<sled::IVec>) -> bool {
    match (end, begin) {
        (Bound::Included(end), Bound::Excluded(begin))
        | (Bound::Excluded(end), Bound::Included(begin)) => end == begin,
        _ => false,
    }
}

/// A count of one group that is under way. Nothing is told of it any more once it is dropped.
pub(in super::super) struct GroupCount {
    digest: Arc<Digest>,
    sum: Arc<Sum>,
    group: Group,
    number: u64,
}

/// A chunk that was opened. It is given up when it is dropped, and so is the count then: what was
/// written to it is noted nowhere.
#[must_use = "it counts once it is closed"]
pub(in super::super) struct Chunk<'a> {
    count: &'a GroupCount,
    range: RawRange,
    /// What each key counts for, in order.
    seen: Vec<(sled::IVec, u64)>,
    /// The last key that was read, if the range was not read to its end.
    last: Option<sled::IVec>,
}

impl GroupCount {
    /// Nothing is to be opened before [`Digest::settle`] was called. The caller keeps seals out.
    pub(in super::super) fn begin(digest: &Arc<Digest>, group: Group) -> Self {
        let sum = digest.groups.with(group, Arc::clone);
        let mut counts = sum.counts().lock();
        let number = counts.iter().map(|count| count.number + 1).max().unwrap_or(0);
        counts.push(Count { number, ..Count::default() });
        sum.counts().are_any.store(true, Ordering::Release);
        drop(counts);
        Self { digest: Arc::clone(digest), sum, group, number }
    }

    pub(in super::super) fn group(&self) -> Group {
        self.group
    }

    pub(in super::super) fn digest(&self) -> &Arc<Digest> {
        &self.digest
    }

    fn with<T>(&self, what: impl FnOnce(&mut Count) -> T) -> Option<T> {
        let mut counts = self.sum.counts().lock();
        counts.iter_mut().find(|count| count.number == self.number).map(what)
    }

    /// Opens a chunk and reads it, giving each pair to `each` as well, until that says `false` or
    /// the range has ended. No other chunk of this count overlaps it.
    pub(in super::super) fn read(
        &self,
        shared: &Shared,
        range: RawRange,
        each: &mut dyn FnMut(&sled::IVec, &sled::IVec) -> Result<bool>,
    ) -> Result<Chunk<'_>> {
        let open = Open { range: range.clone(), written: HashMap::new() };
        self.with(|count| count.open.push(open));
        let mut chunk = Chunk { count: self, range, seen: Vec::new(), last: None };
        // Only now: one that takes its place later has all that was written to it noted.
        let database = shared.current();
        let space = self.group.range().0;
        let mut last = None;
        let range = chunk.range.clone();
        let ended = scan::walk_raw(&database, space, range, &mut |key, stored| {
            if !is_own(space, key) {
                let print = self.digest.now(self.digest.place(space, key), Some(stored));
                chunk.seen.push((key.clone(), print));
            }
            let more = each(key, stored)?;
            if !more {
                last = Some(key.clone());
            }
            Ok(more)
        })?;
        chunk.last = last.filter(|_| !ended);
        Ok(chunk)
    }

    /// Makes the sum what the count has come to. All of the group is closed.
    pub(in super::super) fn accept(&self) {
        let accepted = self.with(|count| self.sum.accept(count.sum));
        if accepted.is_some() {
            self.digest.groups.has_changed(self.group);
        }
    }

    /// By how much the count has come to more than the sum. All of the group is closed.
    pub(in super::super) fn surplus(&self) -> u64 {
        self.with(|count| count.sum.wrapping_sub(self.sum.now())).unwrap_or(0)
    }

    /// Whether the count has come to the sum. All of the group is closed.
    pub(in super::super) fn is_right(&self) -> bool {
        self.with(|count| count.sum == self.sum.now()).unwrap_or(false)
    }
}

impl Chunk<'_> {
    /// Whether its range was read to its end.
    pub(in super::super) fn ended(&self) -> bool {
        self.last.is_none()
    }

    /// Where to go on, if it was not.
    pub(in super::super) fn rest(&self) -> Option<RawRange> {
        let last = self.last.clone()?;
        Some((Bound::Excluded(last), self.range.1.clone()))
    }

    /// Counts what was read. [`Digest::settle`] was called since.
    pub(in super::super) fn close(self) {
        let (from, to) = self.range.clone();
        let to = self.last.clone().map_or(to, Bound::Included);
        let closed = (from, to);
        self.count.with(|count| {
            let Some(open) = count.take(&self.range) else { return };
            let seen = self.seen.iter().map(|(_, print)| print);
            count.sum = seen.fold(count.sum, |sum, print| sum.wrapping_add(*print));
            for (key, print) in open.written.iter().filter(|(key, _)| is_in(&closed, key)) {
                let seen = self.seen.binary_search_by(|(seen, _)| (**seen).cmp(key));
                let seen = seen.map_or(0, |at| self.seen[at].1);
                count.sum = count.sum.wrapping_add(print.wrapping_sub(seen));
            }
            count.closed.add(closed);
        });
    }
}

impl Drop for Chunk<'_> {
    fn drop(&mut self) {
        self.count.with(|count| count.take(&self.range));
    }
}

impl Drop for GroupCount {
    fn drop(&mut self) {
        let mut counts = self.sum.counts().lock();
        counts.retain(|count| count.number != self.number);
        self.sum.counts().are_any.store(!counts.is_empty(), Ordering::Release);
    }
}
