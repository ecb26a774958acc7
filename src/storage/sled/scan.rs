//! Walking over keys, also across a replacement of the database.

use std::ops::Bound;
use std::sync::Arc;

use super::database::{Database, RawPair, RawRange};
use super::keys::{escape, unescape};
use super::{Range, Shared, Space, Stored};
use crate::error::Result;

pub(super) struct Scan {
    shared: Arc<Shared>,
    space: Space,
    /// What is left to walk.
    range: RawRange,
    /// The database that the iterator is of.
    at: Option<(Arc<Database>, sled::Iter)>,
    ended: bool,
}

impl Scan {
    pub(super) fn new(shared: Arc<Shared>, space: Space, (from, to): Range) -> Self {
        let bound = |bound: Bound<Vec<u8>>| bound.map(|key| escape(&key).into_owned());
        Self { shared, space, range: (bound(from), bound(to)), at: None, ended: false }
    }

    /// One step on the current database; if it was replaced since the last step, on a new
    /// iterator over what is left.
    fn step(
        &mut self,
        step: impl FnOnce(&mut sled::Iter) -> Option<sled::Result<RawPair>>,
        rest: impl FnOnce(&mut RawRange, Vec<u8>),
    ) -> Option<Result<(Vec<u8>, Stored)>> {
        if self.ended {
            return None;
        }
        let shared = Arc::clone(&self.shared);
        // Held for the step, so that what it walks over is not taken away.
        let current = shared.current();
        let next = self.iter(&current).and_then(|iter| current.step(|| step(iter)));
        match next {
            Ok(Some((key, value))) => {
                rest(&mut self.range, key.to_vec());
                Some(Ok((unescape(&key), Stored(value))))
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

    fn iter(&mut self, current: &Arc<Database>) -> Result<&mut sled::Iter> {
        let is_current = |(database, _): &(Arc<Database>, _)| Arc::ptr_eq(database, current);
        let at = match self.at.take().filter(is_current) {
            Some(at) => at,
            None => (Arc::clone(current), current.range(self.space, self.range.clone())?),
        };
        Ok(&mut self.at.insert(at).1)
    }
}

impl Iterator for Scan {
    type Item = Result<(Vec<u8>, Stored)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(Iterator::next, |range, key| range.0 = Bound::Excluded(key))
    }
}

impl DoubleEndedIterator for Scan {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(DoubleEndedIterator::next_back, |range, key| range.1 = Bound::Excluded(key))
    }
}
