//! Walking over records, both ways.

use std::fmt;
use std::sync::Arc;

use super::Org;
use crate::engine::{Engine, OrgState};
use crate::envelope::Value;
use crate::error::Result;
use crate::id::OrgId;
use crate::storage::{Pairs, Range, Space, Stored};

/// A name and its opened value.
#[derive(Clone, Debug)]
pub struct Record {
    /// The record's name.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Value,
}

/// Records in name order, opened one by one as they are taken. A record that does not open is
/// an error in its place; the scan goes on behind it.
pub struct Scan {
    engine: Arc<Engine>,
    org: Arc<OrgState>,
    pairs: Pairs,
}

/// Names in order; nothing is opened.
pub struct Names {
    engine: Arc<Engine>,
    pairs: Pairs,
}

impl Scan {
    pub(super) fn new(org: &Org, range: Range) -> Self {
        let pairs = org.engine.storage.scan(Space::Records, range);
        Self { engine: Arc::clone(&org.engine), org: Arc::clone(&org.state), pairs }
    }

    /// The names only, without opening anything.
    #[must_use]
    pub fn names(self) -> Names {
        Names { engine: self.engine, pairs: self.pairs }
    }

    /// `None` if the record was deleted since the storage handed it out.
    fn open(&self, pair: Result<(Vec<u8>, Stored)>) -> Option<Result<Record>> {
        let usable = self.engine.check_open().and(self.org.check_exists());
        let opened = usable.and(pair).and_then(|(key, stored)| {
            let name = key[OrgId::LEN..].to_vec();
            let value = self.engine.open_or_reread(&self.org, &name, &stored)?;
            Ok(value.map(|value| Record { name, value }))
        });
        opened.transpose()
    }
}

impl Iterator for Scan {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let pair = self.pairs.next()?;
            if let Some(record) = self.open(pair) {
                return Some(record);
            }
        }
    }
}

impl DoubleEndedIterator for Scan {
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            let pair = self.pairs.next_back()?;
            if let Some(record) = self.open(pair) {
                return Some(record);
            }
        }
    }
}

impl Names {
    fn name(&self, pair: Result<(Vec<u8>, Stored)>) -> Result<Vec<u8>> {
        self.engine.check_open().and(pair).map(|(key, _)| key[OrgId::LEN..].to_vec())
    }
}

impl Iterator for Names {
    type Item = Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        let pair = self.pairs.next()?;
        Some(self.name(pair))
    }
}

impl DoubleEndedIterator for Names {
    fn next_back(&mut self) -> Option<Self::Item> {
        let pair = self.pairs.next_back()?;
        Some(self.name(pair))
    }
}

impl fmt::Debug for Scan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("org", &self.org.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}
