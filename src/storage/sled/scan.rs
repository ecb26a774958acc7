//! Walking over keys, also across a replacement of the database.

use std::borrow::Cow;
use std::ops::{Bound, Deref};
use std::sync::Arc;

use super::database::{Database, RawPair, RawRange};
use super::keys::{escape, unescape};
use super::{Range, Shared, Space, Stored};
use crate::error::{Error, Result};

/// A key as a walk hands it out: shared with sled unless it is written otherwise there.
pub(crate) struct Key(Spelling);

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
    pub(super) fn new(shared: Arc<Shared>, space: Space, (from, to): Range) -> Self {
        let bound = |bound: Bound<Vec<u8>>| bound.map(|key| sled::IVec::from(&*escape(&key)));
        Self { shared, space, range: (bound(from), bound(to)), at: None, ended: false }
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
                let Some(key) = Key::new(key) else {
                    let why = "there is a key that byokv never writes".to_owned();
                    let path = self.shared.current().dir().to_owned();
                    return Some(Err(Error::StorageDamaged { path, why }));
                };
                Some(Ok((key, Stored(value))))
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
        let is_current = |(_, database): &(_, Arc<Database>)| Arc::ptr_eq(database, &current);
        let at = match self.at.take().filter(is_current) {
            Some(at) => at,
            None => (current.range(self.space, self.range.clone())?, Arc::clone(&current)),
        };
        let (iter, database) = self.at.insert(at);
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
