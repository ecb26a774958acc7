//! An org's records in spans that threads walk at the same time.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::job::{Done, Job, Kind};
use crate::engine::{Engine, OrgState, split_at_places_of};
use crate::error::{Error, Result};
use crate::id::KeyVersion;
use crate::storage::{Key, Range, Space, prefix_range};

/// A walk of the threads over an org's records, each in a span of its own.
pub(super) struct Walk {
    /// No other walk of this process has it.
    number: u64,
    spans: Spans,
    /// Why a span was not walked.
    fault: Option<Error>,
}

impl Walk {
    pub(super) fn new(spans: Spans) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);

        Self { number: NUMBER.fetch_add(1, Ordering::Relaxed), spans, fault: None }
    }

    /// A chunk for a thread; `None` if there is none before one comes back. Fails if any span was
    /// not walked, and once no thread has one: there is nothing more in this walk then.
    pub(super) fn job(
        &mut self,
        engine: &Engine,
        org: &Arc<OrgState>,
        (kind, at_once): (Kind, usize),
        inside: tracing::Span,
    ) -> Result<Option<Job>> {
        let span = self.take(engine, at_once)?;
        let (org, walk, charged) = (Arc::clone(org), self.number, Duration::ZERO);
        Ok(span.map(|span| Job { inside, org, span, kind, charged, walk }))
    }

    fn take(&mut self, engine: &Engine, wanted: usize) -> Result<Option<Range>> {
        if self.fault.is_none() {
            match self.spans.take(engine, wanted) {
                Ok(span) => return Ok(span),
                Err(error) => self.fault = Some(error),
            }
        }
        let waited = self.spans.out == 0;
        self.fault.take_if(|_| waited).map_or(Ok(None), Err)
    }

    /// A span is back, with what of it was not walked; `false` for one of another walk.
    pub(super) fn back(&mut self, done: &mut Done) -> bool {
        if done.walk != self.number {
            return false;
        }
        self.spans.give_back(done.rest.clone());
        self.fault = self.fault.take().or(done.error.take());
        true
    }

    /// As a bug would; `false` if there was none to lose.
    #[cfg(test)]
    pub(super) fn lose_a_span(&mut self) -> bool {
        self.spans.idle.pop_back().is_some()
    }

    /// Whether every span was walked.
    pub(super) fn is_over(&self) -> bool {
        self.fault.is_none() && self.spans.are_taken() && self.spans.out == 0
    }
}

/// What of an org's records is yet to be walked: every one of them lies in exactly one span,
/// or was walked.
pub(super) struct Spans {
    idle: VecDeque<Range>,
    /// Spans that are with threads.
    out: usize,
    /// What comes when all that is walked.
    next: Option<Range>,
    /// Small orgs are walked by one thread, in one go.
    is_large: bool,
}

impl Spans {
    pub(super) fn over(range: Range) -> Self {
        Self { idle: VecDeque::from([range]), out: 0, next: None, is_large: false }
    }

    pub(super) fn against_moves(org: &OrgState, active: KeyVersion) -> Self {
        let (first, next) = against_moves(org, active);
        Self { next, ..Self::over(first) }
    }

    /// A span for a thread, cut such that there are about as many as `wanted`; `None` if there is
    /// none before one comes back.
    fn take(&mut self, engine: &Engine, wanted: usize) -> Result<Option<Range>> {
        if self.idle.is_empty() && self.out == 0 {
            self.idle.extend(self.next.take());
            self.is_large = false;
        }
        if self.is_large {
            // A span is tried once for each that is taken: the last ones cannot be cut.
            for _ in 0..self.idle.len() {
                if self.idle.len() + self.out >= wanted {
                    break;
                }
                let Some(span) = self.idle.pop_front() else { break };
                match cut(engine, &span)? {
                    Some(at) => {
                        let (from, to) = span;
                        self.idle.push_back((from, Bound::Excluded(at.clone())));
                        self.idle.push_back((Bound::Included(at), to));
                    }
                    None => self.idle.push_back(span),
                }
            }
        }
        let span = self.idle.pop_front();
        self.out += usize::from(span.is_some());
        Ok(span)
    }

    /// A span is back, and what of it was not walked.
    fn give_back(&mut self, rest: Option<Range>) {
        self.out -= 1;
        self.is_large |= rest.is_some();
        self.idle.extend(rest);
    }

    /// Whether the threads have, or had, everything.
    fn are_taken(&self) -> bool {
        self.idle.is_empty() && self.next.is_none()
    }
}

/// An org's range, and what comes when that is walked: a blinded name moves to the place of the
/// active version, so that is walked first, and nothing is met twice.
pub(super) fn against_moves(org: &OrgState, active: KeyVersion) -> (Range, Option<Range>) {
    let (from, to) = prefix_range(org.id.as_bytes());
    if !org.is_blinded() {
        return ((from, to), None);
    }
    let (places, rest) = split_at_places_of(org.id, active);
    ((places, to), Some((from, rest)))
}

/// A key halfway between the first and the last one of the span, with records on both sides. How
/// many, nobody knows: what is left of a large half is cut again.
fn cut(engine: &Engine, span: &Range) -> Result<Option<Vec<u8>>> {
    // No span can begin at a foreign key.
    let is_cut = |pair: &Result<(Key, _)>| pair.as_ref().map_or(true, |(key, _)| !key.is_foreign());
    let mut records = engine.storage.scan(Space::Records, span.clone());
    let (Some(first), Some(last)) = (records.find(is_cut), records.rfind(is_cut)) else {
        return Ok(None);
    };
    Ok(middle(&first?.0, &last?.0))
}

/// A key between two, by the first 16 bytes behind what they share.
fn middle(low: &[u8], high: &[u8]) -> Option<Vec<u8>> {
    const LEN: usize = size_of::<u128>();

    let shared = low.iter().zip(high).take_while(|(a, b)| a == b).count();
    let number = |key: &[u8]| {
        let mut bytes = [0; LEN];
        let rest = &key[shared..key.len().min(shared + LEN)];
        bytes[..rest.len()].copy_from_slice(rest);
        u128::from_be_bytes(bytes)
    };
    let (from, to) = (number(low), number(high));
    let half = to.checked_sub(from)? / 2;
    (half > 0).then(|| [&low[..shared], &(from + half).to_be_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::tests::engine;
    use crate::id::OrgId;
    use crate::keyring::{NamePolicy, OrgPolicy};

    /// Whatever the names are like, and however the walks of the spans come in between.
    #[test]
    fn spans_hold_each_record_once() {
        const THREADS: usize = 5;

        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let org = engine.create_org("acme", OrgPolicy::byok()).unwrap();
        let mut names: Vec<Vec<u8>> = (0..700).map(|i| format!("a/b/{i:04}").into()).collect();
        names.extend((0..40).map(|i| vec![b'z'; 20 + i]));
        names.extend([vec![0], vec![0, 0], vec![255], vec![255; 40]]);
        for name in &names {
            engine.write(&org, name, Some(b"v")).unwrap();
        }
        names.sort();
        let mut spans = Spans::against_moves(&org, org.gate.snapshot().active);
        let (mut walked, mut out, mut most) = (Vec::new(), VecDeque::new(), 0);
        loop {
            let taken =
                if out.len() < THREADS { spans.take(&engine, THREADS).unwrap() } else { None };
            if let Some(span) = taken {
                out.push_back(span);
                most = most.max(out.len());
                continue;
            }
            let Some((from, to)) = out.pop_front() else { break };
            let mut keys = Vec::new();
            let all = engine.storage.walk(Space::Records, (from, to.clone()), &mut |key, _| {
                keys.push(key.to_vec());
                keys.len() < 9
            });
            let rest = keys.last().cloned().filter(|_| !all.unwrap());
            spans.give_back(rest.map(|last| (Bound::Excluded(last), to)));
            walked.extend(keys.into_iter().map(|key| key[OrgId::LEN..].to_vec()));
        }
        assert_eq!(most, THREADS);
        walked.sort();
        assert_eq!(walked, names);
        assert!(spans.are_taken() && spans.out == 0);
    }

    /// What lies at a place that records move to comes first, and alone.
    #[test]
    fn places_that_records_move_to_are_walked_before_the_others() {
        let dir = tempfile::tempdir().unwrap();
        let engine = engine(dir.path());
        let policy = OrgPolicy::byok().with_names(NamePolicy::Blinded);
        let org = engine.create_org("acme", policy).unwrap();
        let active = org.gate.snapshot().active;
        let mut spans = Spans::against_moves(&org, active);
        let (new, old) = split_at_places_of(org.id, active);
        assert_eq!(spans.take(&engine, 4).unwrap().map(|span| span.0), Some(new));
        assert_eq!(spans.take(&engine, 4).unwrap(), None);
        assert!(!spans.are_taken());
        spans.give_back(None);
        assert_eq!(spans.take(&engine, 4).unwrap().map(|span| span.1), Some(old));
        assert!(spans.are_taken() && spans.out == 1);
    }

    #[test]
    fn the_middle_is_found_where_there_is_one() {
        assert_eq!(middle(b"a", b"c"), Some([&b"b"[..], &[0; 15]].concat()));
        assert_eq!(middle(b"a", b"b").map(|key| key[..2].to_vec()), Some(b"a\x80".to_vec()));
        assert_eq!(middle(b"a", b"a"), None);
        assert_eq!(middle(b"a", b"a\0"), None);
        assert_eq!(middle(b"b", b"a"), None);
    }

    proptest! {
        #[test]
        fn the_middle_lies_between(
            low in prop::collection::vec(any::<u8>(), 0..40),
            high in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            if let Some(middle) = middle(&low, &high) {
                prop_assert!(low < middle && middle < high);
            }
        }
    }
}
