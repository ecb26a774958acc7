//! An independent look at an org's records: headers only, nothing is opened.

use super::pass::Cursor;
use crate::engine::{Engine, OrgState};
use crate::envelope::Header;
use crate::error::Result;
use crate::observe::Census;

/// A count of headers that is under way.
pub(crate) struct HeaderCount {
    cursor: Cursor,
    census: Census,
}

impl HeaderCount {
    /// Records looked at in one step, so that no org keeps the others waiting.
    const STEP: usize = 4096;

    pub(crate) fn new(org: &OrgState) -> Self {
        Self { cursor: Cursor::new(org.id), census: Census::default() }
    }

    /// Looks at the next records; `false` at the end.
    pub(crate) fn step(&mut self, engine: &Engine, org: &OrgState) -> Result<bool> {
        for (_, stored) in self.cursor.chunk(engine, Self::STEP)? {
            match Header::decode(&stored) {
                Ok(header) if header.org == org.id => {
                    *self.census.by_version.entry(header.version).or_default() += 1;
                    *self.census.by_suite.entry(header.suite).or_default() += 1;
                }
                _ => self.census.malformed += 1,
            }
        }
        Ok(!self.cursor.exhausted)
    }

    pub(crate) fn census(&self) -> &Census {
        &self.census
    }

    pub(crate) fn run(engine: &Engine, org: &OrgState) -> Result<Census> {
        let mut count = Self::new(org);
        while count.step(engine, org)? {}
        Ok(count.census)
    }
}
