//! An independent look at an org's records: headers, and which version a blinded name is under;
//! nothing is opened.

use super::pass::Cursor;
use crate::engine::{Engine, OrgState, place_version};
use crate::envelope::Header;
use crate::error::Result;
use crate::id::KeyVersion;
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
        let census = &mut self.census;
        self.cursor.step(engine, Self::STEP, |key, stored| {
            let header = Header::decode(&stored).ok().filter(|header| header.org == org.id);
            let (Some(header), Some(place)) = (header, place(org, key)) else {
                census.malformed += 1;
                return true;
            };
            *census.by_version.entry(header.version).or_default() += 1;
            *census.by_suite.entry(header.suite).or_default() += 1;
            if let Some(version) = place {
                *census.by_name_version.entry(version).or_default() += 1;
            }
            true
        })?;
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

/// The version that a record's name is blinded under, `Some(None)` if it is clear.
fn place(org: &OrgState, key: &[u8]) -> Option<Option<KeyVersion>> {
    if org.is_blinded() { place_version(key).map(Some) } else { Some(None) }
}
