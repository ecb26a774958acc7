//! Walking over keys, also across a replacement of the database.

use std::borrow::Cow;
use std::ops::{Bound, Deref};
use std::sync::Arc;

use super::database::{Database, RawPair, RawRange};
use super::digest::group_of;
use super::keys::{escape, unescape};
use super::{Group, Range, Shared, Space, Stored};
use crate::error::Result;

/// A key as a walk hands it out: shared with sled unless it is written otherwise there.
#[derive(Clone)]
pub(crate) struct Key(Spelling);

#[derive(Clone)]
enum Spelling {
    Same(sled::IVec),
    Unescaped(Vec<u8>),
    /// What [`escape`] never writes.
    Foreign(sled::IVec),
}

impl Key {
    fn new(key: sled::IVec) -> Self {
        Self(match unescape(&key) {
            Some(Cow::Borrowed(_)) => Spelling::Same(key),
            Some(Cow::Owned(plain)) => Spelling::Unescaped(plain),
            None => Spelling::Foreign(key),
        })
    }

    /// Returns true for a key that no write of ours makes. Its bytes are as sled has them: no other
    /// call finds it by them than those that take a key that was walked over, and no range can begin
    /// or end at it.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.0, Spelling::Foreign(_))
    }

    /// What the digest counts it with: for records, by the id that it begins with.
    pub(crate) fn group(&self, space: Space) -> Group {
        group_of(space, &self.raw())
    }

    /// As sled has it.
    pub(super) fn raw(&self) -> Cow<'_, [u8]> {
        match &self.0 {
            Spelling::Same(key) | Spelling::Foreign(key) => Cow::Borrowed(key),
            Spelling::Unescaped(key) => escape(key),
        }
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Spelling::Same(key) | Spelling::Foreign(key) => key,
            Spelling::Unescaped(key) => key,
        }
    }
}

pub(super) fn raw((from, to): Range) -> RawRange {
    let bound = |bound: Bound<Vec<u8>>| bound.map(|key| sled::IVec::from(&*escape(&key)));
    (bound(from), bound(to))
}

/// Gives pairs to `each` until that says `false`; whether it came to the end.
pub(super) fn walk(
    database: &Database,
    space: Space,
    range: Range,
    each: &mut dyn FnMut(Key, Stored) -> bool,
) -> Result<bool> {
    walk_raw(database, space, raw(range), &mut |key, stored| Ok(each_pair(key, stored, each)))
}

/// Hands a pair of sled's to `each`. A walk never ends at a foreign key, because none can go on there.
pub(super) fn each_pair(
    key: &sled::IVec,
    stored: &sled::IVec,
    each: &mut dyn FnMut(Key, Stored) -> bool,
) -> bool {
    let key = Key::new(key.clone());
    let is_foreign = key.is_foreign();
    each(key, Stored(stored.clone())) || is_foreign
}

/// Likewise, of keys and values as sled has them.
pub(super) fn walk_raw(
    database: &Database,
    space: Space,
    range: RawRange,
    each: &mut dyn FnMut(&sled::IVec, &sled::IVec) -> Result<bool>,
) -> Result<bool> {
    /// Pairs that are read in one go, and bytes that end it: values may be large.
    const PAIRS: usize = 64;
    const BYTES: usize = 256 << 10;

    let mut pairs = database.range(space, range)?;
    let mut some = Vec::with_capacity(PAIRS);
    loop {
        let mut bytes = 0;
        let ended = database.walking(|| {
            while some.len() < PAIRS && bytes < BYTES {
                let Some(pair) = pairs.next() else { return Ok(true) };
                let (key, value) = pair?;
                bytes += value.len();
                some.push((key, value));
            }
            Ok(false)
        })?;
        for (key, value) in some.drain(..) {
            if !each(&key, &value)? {
                return Ok(false);
            }
        }
        if ended {
            return Ok(true);
        }
    }
}

pub(super) struct Scan {
    shared: Arc<Shared>,
    space: Space,
    /// What is left to walk.
    range: RawRange,
    /// The iterator, and the database that it is of, which must be let go after it.
    at: Option<(sled::Iter, Arc<Database>)>,
    ended: bool,
}

impl Scan {
    pub(super) fn new(shared: Arc<Shared>, space: Space, range: Range) -> Self {
        Self { shared, space, range: raw(range), at: None, ended: false }
    }

    /// One step on the current database; if it was replaced since the last step, on a new
    /// iterator over what is left.
    fn step(
        &mut self,
        step: impl FnOnce(&mut sled::Iter) -> Option<sled::Result<RawPair>>,
        rest: impl FnOnce(&mut RawRange, sled::IVec),
    ) -> Option<Result<(Key, Stored)>> {
        if self.ended {
            return None;
        }
        match self.iter().and_then(|(database, iter)| database.step(|| step(iter))) {
            Ok(Some((key, value))) => {
                rest(&mut self.range, key.clone());
                Some(Ok((Key::new(key), Stored(value))))
            }
            Ok(None) => {
                self.ended = true;
                None
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }

    fn iter(&mut self) -> Result<(&Database, &mut sled::Iter)> {
        let current = self.shared.current();
        if !self.at.as_ref().is_some_and(|(_, database)| Arc::ptr_eq(database, &current)) {
            self.at = None;
        }
        let (iter, database) = match &mut self.at {
            Some(at) => at,
            none => {
                let iter = current.range(self.space, self.range.clone())?;
                none.insert((iter, Arc::clone(&current)))
            }
        };
        Ok((database, iter))
    }
}

impl Iterator for Scan {
    type Item = Result<(Key, Stored)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(Iterator::next, |range, key| range.0 = Bound::Excluded(key))
    }
}

impl DoubleEndedIterator for Scan {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(DoubleEndedIterator::next_back, |range, key| range.1 = Bound::Excluded(key))
    }
}
