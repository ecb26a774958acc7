//! What a thread is given to do, and what it gives back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::count;
use super::pass::{self, Cursor, Each, Tally};
use super::thread::Work;
use crate::engine::{Engine, OrgState};
use crate::error::Error;
use crate::id::OrgId;
use crate::observe::Census;
use crate::storage::{Count, Range};

/// How an org's records are cut for the threads.
#[derive(Clone, Copy)]
pub(super) struct Chunk {
    /// Records that are rewritten in one, at most.
    pub(super) records: usize,
    /// Chunks that the threads may have.
    pub(super) at_once: usize,
}

/// Records and bytes of their envelopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

#[derive(Clone)]
pub(super) enum Kind {
    /// At most so many records, which may come to so much.
    Rewrite { most: usize, expected: Amount },
    /// At most so many headers are looked at, and the values counted for the digest. Writes nothing: no
    /// ceiling of records or bytes is for it.
    Count { most: usize, digest: Arc<dyn Count> },
}

/// A chunk for a thread: the first records of a span.
pub(super) struct Job {
    pub(super) inside: tracing::Span,
    pub(super) org: Arc<OrgState>,
    pub(super) span: Range,
    pub(super) kind: Kind,
    /// How long the next one had to wait for what it may come to.
    pub(super) charged: Duration,
    /// The number of the walk that it is a part of.
    pub(super) walk: u64,
}

/// What a thread made of it.
pub(super) struct Done {
    pub(super) org: OrgId,
    pub(super) tally: Tally,
    pub(super) census: Census,
    pub(super) span: Range,
    /// What of the span it did not come to.
    pub(super) rest: Option<Range>,
    pub(super) charged: Duration,
    pub(super) walk: u64,
    pub(super) busy: Duration,
    /// Why the chunk was not finished.
    pub(super) error: Option<Error>,
}

impl Job {
    pub(super) fn expected(&self) -> Amount {
        match self.kind {
            Kind::Rewrite { expected, .. } => expected,
            Kind::Count { .. } => Amount::default(),
        }
    }

    /// Never panics: a panic stops this org's rotation, not the store.
    pub(super) fn run(self, engine: &Engine) -> Done {
        let _inside = self.inside.enter();
        let work = Work::begin();
        let (mut tally, mut census) = (Tally::default(), Census::default());
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut cursor = Cursor::over(self.span.clone());
            match &self.kind {
                Kind::Rewrite { most, .. } => {
                    pass::rewrite_next(engine, &self.org, &mut cursor, *most, &mut tally)?;
                }
                Kind::Count { most, digest } => {
                    let walk = |range, each: &mut Each<'_>| digest.walk(range, each);
                    count::count_next(walk, &self.org, &mut cursor, *most, &mut census)?;
                }
            }
            Ok(cursor.rest())
        }));
        let (rest, error) = match outcome {
            Ok(Ok(rest)) => (rest, None),
            Ok(Err(error)) => (None, Some(error)),
            Err(_) => (None, Some(Error::Bug { org: self.org.name.to_string() })),
        };
        let Self { org, span, charged, walk, .. } = self;
        let busy = work.done();
        Done { org: org.id, tally, census, span, rest, charged, walk, busy, error }
    }
}
