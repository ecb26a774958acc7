//! An independent look at an org's records: headers, and which version a blinded name is under;
//! nothing is opened. Threads share it as they share a pass, and cut it alike, so it does not
//! believe that what was cut is all: it counts only once what was walked, by its two ends, joins to
//! all keys of the org. Nor does it believe the database that it holds all records: it counts only if
//! they come to what the digest says.

use std::ops::Bound;
use std::sync::Arc;

use super::job::{Chunk, Done, Job, Kind};
use super::pass::{CleanPass, Cursor, Each};
use super::spans::{Spans, Walk};
use super::thread::let_others_go_first;
use crate::engine::{Engine, OrgState, place_version};
use crate::envelope::Header;
use crate::error::{Error, Result};
use crate::id::KeyVersion;
use crate::observe::Census;
use crate::storage::{Count, Key, Outcome, Range, Space, Whole, prefix_range};

/// Bytes of envelopes that end a chunk: sled has read them whole.
const CHUNK_BYTES: usize = 4 << 20;

/// Records looked at in the time that rewriting one takes, about.
pub(super) const LOOKS: u16 = 16;

/// Records looked at before others may go first.
const IN_A_ROW: usize = 64;

/// A count of headers that is under way.
pub(crate) struct HeaderCount {
    walk: Walk,
    all: Range,
    walked: Stretches,
    census: Census,
    digest: Arc<dyn Count>,
}

/// Proof that all records of the org were counted, and that none was missing, or older than it had
/// been: nothing of an org is destroyed without it.
pub(super) struct Counted {
    census: Census,
    whole: Whole,
}

impl Counted {
    pub(super) fn census(&self) -> &Census {
        &self.census
    }

    pub(super) fn is_of(&self, org: &OrgState) -> bool {
        self.whole.group() == org.group()
    }
}

impl HeaderCount {
    /// Of an org whose pass has ended: earlier it would prove nothing.
    pub(super) fn after(_: &CleanPass, engine: &Engine, org: &OrgState) -> Self {
        Self::of(engine, org)
    }

    fn of(engine: &Engine, org: &OrgState) -> Self {
        let all = prefix_range(org.id.as_bytes());
        Self {
            walk: Walk::new(Spans::over(all.clone())),
            all,
            walked: Stretches::default(),
            census: Census::default(),
            digest: engine.storage.count(org.group()),
        }
    }

    /// See [`Walk::job`].
    pub(super) fn job(
        &mut self,
        engine: &Engine,
        org: &Arc<OrgState>,
        chunk: Chunk,
        inside: tracing::Span,
    ) -> Result<Option<Job>> {
        let most = chunk.records * usize::from(LOOKS);
        let kind = Kind::Count { most, digest: Arc::clone(&self.digest) };
        self.walk.job(engine, org, (kind, chunk.at_once), inside)
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

    /// `None` if the count says nothing, and all of it must be done again.
    ///
    /// # Errors
    /// [`Error::Bug`]: not all of the org was walked. [`Error::RolledBack`]: something is missing.
    pub(super) fn finish(self, engine: &Engine, org: &OrgState) -> Result<Option<Counted>> {
        if !self.walked.are(self.all) {
            tracing::error!(org = %org.name, "a count lost a part of the org: it clears nothing");
            return Err(Error::Bug { org: org.name.to_string() });
        }
        match self.digest.outcome()? {
            Outcome::Whole(whole) => Ok(Some(Counted { census: self.census, whole })),
            Outcome::Broken => Err(engine.nothing_destroyed(org)),
            Outcome::Again => Ok(None),
        }
    }

    /// All on the calling thread. Says nothing of what is missing.
    pub(crate) fn run(engine: &Engine, org: &OrgState) -> Result<Census> {
        let walk = |range, each: &mut Each<'_>| engine.storage.walk(Space::Records, range, each);
        count_all(walk, org)
    }

    /// All on the calling thread.
    pub(super) fn run_whole(engine: &Engine, org: &OrgState) -> Result<Counted> {
        loop {
            let count = Self::of(engine, org);
            let walk = |range, each: &mut Each<'_>| count.digest.walk(range, each);
            let census = count_all(walk, org)?;
            let mut walked = Stretches::default();
            let (from, to) = edges(count.all.clone());
            walked.add(from, to);
            if let Some(counted) = (Self { census, walked, ..count }).finish(engine, org)? {
                return Ok(counted);
            }
        }
    }
}

fn count_all(
    walk: impl Fn(Range, &mut Each<'_>) -> Result<bool>,
    org: &OrgState,
) -> Result<Census> {
    let mut cursor = Cursor::new(org.id);
    let mut census = Census::default();
    while !cursor.exhausted {
        count_next(&walk, org, &mut cursor, usize::MAX, &mut census)?;
    }
    Ok(census)
}

/// Counts the next records that `walk` gives, at most `most` and about `CHUNK_BYTES`.
pub(super) fn count_next(
    walk: impl Fn(Range, &mut Each<'_>) -> Result<bool>,
    org: &OrgState,
    cursor: &mut Cursor,
    most: usize,
    census: &mut Census,
) -> Result<()> {
    let (mut seen, mut bytes) = (0_usize, 0);
    cursor.step_by(walk, most, |key, stored| {
        if seen.is_multiple_of(IN_A_ROW) {
            let_others_go_first();
        }
        seen += 1;
        bytes += stored.len();
        let more = bytes < CHUNK_BYTES;
        if !org.is_blinded() && org.clear_name(key).is_err() {
            census.nameless += 1;
        }
        let header = Header::decode(&stored).ok().filter(|header| header.org == org.id);
        let (Some(header), Some(place)) = (header, place(org, key)) else {
            census.malformed += 1;
            return more;
        };
        *census.by_version.entry(header.version).or_default() += 1;
        *census.by_suite.entry(header.suite).or_default() += 1;
        if let Some(version) = place {
            *census.by_name_version.entry(version).or_default() += 1;
        }
        more
    })
}

/// The version that a record's name is under, `None` if names are clear; nothing if it cannot be
/// read.
fn place(org: &OrgState, key: &Key) -> Option<Option<KeyVersion>> {
    match (org.is_blinded(), key.is_foreign()) {
        (true, false) => place_version(key).map(Some),
        (true, true) => None,
        (false, _) => Some(None),
    }
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

    /// A record at a cut belongs to one of its sides, and nothing is walked twice.
    #[test]
    fn stretches_that_leave_a_key_out_or_overlap_are_not_all() {
        let (from, to) = all();
        let (key, other) = (vec![5, 1], vec![5, 2]);
        let are_all = |pieces: [Range; 2]| {
            let mut stretches = Stretches::default();
            for (from, to) in pieces.map(edges) {
                stretches.add(from, to);
            }
            stretches.are(all())
        };
        let cut = |end, begin| are_all([(from.clone(), end), (begin, to.clone())]);
        assert!(cut(Bound::Included(key.clone()), Bound::Excluded(key.clone())));
        assert!(cut(Bound::Excluded(key.clone()), Bound::Included(key.clone())));
        assert!(!cut(Bound::Excluded(key.clone()), Bound::Excluded(key.clone())));
        assert!(!cut(Bound::Included(key.clone()), Bound::Included(key.clone())));
        assert!(!cut(Bound::Included(key.clone()), Bound::Excluded(other.clone())));
        assert!(!cut(Bound::Included(other), Bound::Excluded(key)));
        assert!(!are_all([all(), all()]));
    }

    const CHUNK: Chunk = Chunk { records: 4, at_once: 4 };

    fn filled(engine: &Engine) -> Arc<OrgState> {
        let org = engine.create_org("acme", OrgPolicy::byok()).unwrap();
        for i in 0..CHUNK.records * usize::from(LOOKS) * 5 {
            engine.write(&org, format!("n{i:05}").as_bytes(), Some(b"v")).unwrap();
        }
        org
    }

    /// Chunks come back in any order; whatever is lost on the way, nothing is cleared by what is
    /// left (invariant 8).
    #[test]
    fn a_count_that_lost_a_part_counts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let org = filled(&engine);
        let count = |lose: bool| {
            let mut count = HeaderCount::of(&engine, &org);
            let (mut out, mut most, mut lose) = (Vec::new(), 0, lose);
            while !count.is_over() {
                let job = count.job(&engine, &org, CHUNK, tracing::Span::none()).unwrap();
                let none_left = job.is_none();
                out.extend(job);
                most = most.max(out.len());
                if none_left || out.len() == 3 {
                    // The one that was taken last first.
                    count.done(out.pop().unwrap().run(&engine));
                }
                if out.len() > 1 && lose {
                    lose = !count.walk.lose_a_span();
                }
            }
            assert_eq!((most, lose), (3, false));
            count.finish(&engine, &org).map(|counted| counted.unwrap().census().total())
        };
        assert_eq!(count(false).unwrap(), (CHUNK.records * usize::from(LOOKS) * 5) as u64);
        assert!(matches!(count(true), Err(Error::Bug { .. })));
    }

    /// What could not be read is told once no thread has a chunk any more, and ends the count.
    #[test]
    fn a_fault_is_told_once_all_chunks_are_back() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let org = filled(&engine);
        let mut count = HeaderCount::of(&engine, &org);
        let take = |count: &mut HeaderCount| count.job(&engine, &org, CHUNK, tracing::Span::none());
        let first = take(&mut count).unwrap().unwrap();
        count.done(first.run(&engine));
        let [one, other] = [(); 2].map(|()| take(&mut count).unwrap().unwrap());
        let before = count.total();
        count.done(Done { error: Some(Error::Closed), rest: None, ..one.run(&engine) });
        assert_eq!(count.total(), before, "what came of it is not counted");
        assert!(take(&mut count).unwrap().is_none() && !count.is_over());
        count.done(other.run(&engine));
        assert!(!count.is_over());
        assert!(matches!(take(&mut count), Err(Error::Closed)));
    }
}
