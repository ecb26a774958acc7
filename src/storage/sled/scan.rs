//! Walking over keys, also across a replacement of the database.

use std::borrow::Cow;
use std::ops::{Bound, Deref};
use std::sync::Arc;

use super::database::{Database, RawPair, RawRange};
use super::keys::{escape, unescape};
use super::{Range, Shared, Space, Stored};
use crate::error::{Error, Result};

/// A key as a walk hands it out: shared with sled unless it is written otherwise there.
#[derive(Clone)]
pub(crate) struct Key(Spelling);

#[derive(Clone)]
enum Spelling {
    Same(sled::IVec),
    Unescaped(Vec<u8>),
}

impl Key {
    /// `None` for a key that byokv never writes.
    fn new(key: sled::IVec) -> Option<Self> {
        let unescaped = match unescape(&key)? {
            Cow::Borrowed(_) => None,
            Cow::Owned(plain) => Some(plain),
        };
        Some(Self(unescaped.map_or(Spelling::Same(key), Spelling::Unescaped)))
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Spelling::Same(key) => key,
            Spelling::Unescaped(key) => key,
        }
    }
}

pub(super) fn raw((from, to): Range) -> RawRange {
    let bound = |bound: Bound<Vec<u8>>| bound.map(|key| sled::IVec::from(&*escape(&key)));
    (bound(from), bound(to))
}

fn foreign(database: &Database) -> Error {
    let why = "there is a key that byokv never writes".to_owned();
    Error::StorageDamaged { path: database.dir().to_owned(), why }
}

/// Gives pairs to `each` until that says `false`; whether it came to the end.
pub(super) fn walk(
    database: &Database,
    space: Space,
    range: Range,
    each: &mut dyn FnMut(Key, Stored) -> bool,
) -> Result<bool> {
    walk_raw(database, space, raw(range), &mut |key, stored| each_pair(database, key, stored, each))
}

/// Hands a pair of sled's to `each`.
pub(super) fn each_pair(
    database: &Database,
    key: &sled::IVec,
    stored: &sled::IVec,
    each: &mut dyn FnMut(Key, Stored) -> bool,
) -> Result<bool> {
    let key = Key::new(key.clone()).ok_or_else(|| foreign(database))?;
    Ok(each(key, Stored(stored.clone())))
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
                let found = Key::new(key).ok_or_else(|| foreign(&self.shared.current()));
                Some(found.map(|key| (key, Stored(value))))
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
