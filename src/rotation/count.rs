//! An independent look at an org's records: headers, and which version a blinded name is under;
//! nothing is opened. Threads share it as they share a pass, and cut it alike, so it does not
//! believe that what was cut is all: it counts only once what was walked, by its two ends, joins to
//! all keys of the org.

use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use super::job::{Done, Job, Kind};
use super::pass::Cursor;
use super::spans::{Spans, Walk};
use super::thread::let_others_go_first;
use crate::engine::{Engine, OrgState, place_version};
use crate::envelope::Header;
use crate::error::{Error, Result};
use crate::id::KeyVersion;
use crate::observe::Census;
use crate::storage::{Range, prefix_range};

/// Records looked at in one chunk: about a millisecond's.
const CHUNK: usize = 2048;

/// Records looked at before others may go first.
const IN_A_ROW: usize = 64;

/// A count of headers that is under way.
pub(crate) struct HeaderCount {
    walk: Walk,
    all: Range,
    walked: Stretches,
    census: Census,
}

/// Proof that all records of the org were counted.
pub(super) struct Counted(Census);

impl Counted {
    pub(super) fn census(&self) -> &Census {
        &self.0
    }
}

impl HeaderCount {
    pub(super) fn new(org: &OrgState) -> Self {
        let all = prefix_range(org.id.as_bytes());
        Self {
            walk: Walk::new(Spans::over(all.clone())),
            all,
            walked: Stretches::default(),
            census: Census::default(),
        }
    }

    /// A chunk for a thread; `None` if there is none before one comes back. Fails as
    /// [`Walk::take`] does.
    pub(super) fn job(
        &mut self,
        engine: &Engine,
        org: &Arc<OrgState>,
        at_once: usize,
        inside: tracing::Span,
    ) -> Result<Option<Job>> {
        let Some(span) = self.walk.take(engine, at_once)? else { return Ok(None) };
        let (org, walk) = (Arc::clone(org), self.walk.number());
        Ok(Some(Job { inside, org, span, kind: Kind::Count, charged: Duration::ZERO, walk }))
    }

    /// A chunk came back. One of another count says nothing here.
    pub(super) fn done(&mut self, mut done: Done) {
        let is_whole = done.error.is_none();
        if !self.walk.back(&mut done) || !is_whole {
            return;
        }
        self.census.add(done.census);
        let (from, to) = edges(done.span);
        self.walked.add(from, done.rest.map_or(to, |rest| edges(rest).0));
    }

    pub(super) fn is_over(&self) -> bool {
        self.walk.is_over()
    }

    /// Records counted so far.
    pub(super) fn total(&self) -> u64 {
        self.census.total()
    }

    /// # Errors
    /// [`Error::Bug`]: not all of the org was walked.
    pub(super) fn finish(self, org: &OrgState) -> Result<Counted> {
        if !self.walked.are(self.all) {
            tracing::error!(org = %org.name, "a count lost a part of the org: it clears nothing");
            return Err(Error::Bug { org: org.name.to_string() });
        }
        Ok(Counted(self.census))
    }

    /// All on the calling thread.
    pub(crate) fn run(engine: &Engine, org: &OrgState) -> Result<Census> {
        let mut cursor = Cursor::new(org.id);
        let mut census = Census::default();
        while !cursor.exhausted {
            count_next(engine, org, &mut cursor, &mut census)?;
        }
        Ok(census)
    }
}

/// Counts the next records.
pub(super) fn count_next(
    engine: &Engine,
    org: &OrgState,
    cursor: &mut Cursor,
    census: &mut Census,
) -> Result<()> {
    let mut seen = 0_usize;
    cursor.step(engine, CHUNK, |key, stored| {
        if seen.is_multiple_of(IN_A_ROW) {
            let_others_go_first();
        }
        seen += 1;
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
    })
}

/// The version that a record's name is under, `None` if names are clear; nothing if it cannot be
/// read.
fn place(org: &OrgState, key: &[u8]) -> Option<Option<KeyVersion>> {
    if org.is_blinded() { place_version(key).map(Some) } else { Some(None) }
}

/// Where one stretch ends and the next begins.
#[derive(Debug, PartialEq, Eq)]
enum Edge {
    Before(Vec<u8>),
    After(Vec<u8>),
    First,
    Last,
}

fn edges((from, to): Range) -> (Edge, Edge) {
    let from = match from {
        Bound::Included(key) => Edge::Before(key),
        Bound::Excluded(key) => Edge::After(key),
        Bound::Unbounded => Edge::First,
    };
    let to = match to {
        Bound::Included(key) => Edge::After(key),
        Bound::Excluded(key) => Edge::Before(key),
        Bound::Unbounded => Edge::Last,
    };
    (from, to)
}

/// Stretches of keys, joined where one begins as another ends.
#[derive(Default)]
struct Stretches(Vec<(Edge, Edge)>);

impl Stretches {
    fn add(&mut self, mut from: Edge, mut to: Edge) {
        if let Some(before) = self.0.iter().position(|(_, end)| *end == from) {
            from = self.0.swap_remove(before).0;
        }
        if let Some(behind) = self.0.iter().position(|(begin, _)| *begin == to) {
            to = self.0.swap_remove(behind).1;
        }
        self.0.push((from, to));
    }

    /// Whether they have come to exactly this one.
    fn are(&self, range: Range) -> bool {
        self.0 == [edges(range)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::tests::engine;
    use crate::keyring::OrgPolicy;

    fn all() -> Range {
        (Bound::Included(vec![5]), Bound::Excluded(vec![6]))
    }

    proptest! {
        /// Cut anywhere, and given back in any order.
        #[test]
        fn stretches_are_all_where_none_is_missing(
            keys in prop::collection::btree_set(prop::collection::vec(any::<u8>(), 1..4), 1..20),
            afters in prop::collection::vec(any::<bool>(), 20),
            order in any::<prop::sample::Index>(),
            missing in any::<prop::sample::Index>(),
        ) {
            let cuts = keys.into_iter().map(|key| [&[5], &key[..]].concat()).zip(afters);
            let mut pieces = vec![all()];
            for (key, after) in cuts {
                let (from, to) = pieces.pop().unwrap();
                let (end, begin) = match after {
                    true => (Bound::Included(key.clone()), Bound::Excluded(key)),
                    false => (Bound::Excluded(key.clone()), Bound::Included(key)),
                };
                pieces.extend([(from, end), (begin, to)]);
            }
            let (first, step) = (order.index(pieces.len()), missing.index(pieces.len()));
            pieces.rotate_left(first);
            pieces.swap(0, step);
            let joined = |pieces: &[Range]| {
                let mut stretches = Stretches::default();
                for (from, to) in pieces.iter().cloned().map(edges) {
                    stretches.add(from, to);
                }
                stretches.are(all())
            };
            prop_assert!(joined(&pieces));
            pieces.remove(step);
            prop_assert!(!joined(&pieces));
        }
    }

    /// Invariant 8: whatever loses a part of the org to the threads, nothing is cleared by what is
    /// left.
    #[test]
    fn a_count_that_lost_a_part_counts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let org = engine.create_org("acme", OrgPolicy::byok()).unwrap();
        for i in 0..CHUNK * 2 {
            engine.write(&org, format!("n{i:05}").as_bytes(), Some(b"v")).unwrap();
        }
        let count = |lose: bool| {
            let mut count = HeaderCount::new(&org);
            let mut jobs = 0;
            while let Some(job) = count.job(&engine, &org, 4, tracing::Span::none()).unwrap() {
                count.done(job.run(&engine));
                jobs += 1;
                if lose && jobs == 2 {
                    count.walk.lose_a_span();
                }
            }
            assert!(count.is_over());
            count.finish(&org).map(|counted| counted.census().total())
        };
        assert_eq!(count(false).unwrap(), CHUNK as u64 * 2);
        assert!(matches!(count(true), Err(Error::Bug { .. })));
    }
}
