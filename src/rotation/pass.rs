//! One pass over an org's records: scan → open → seal → compare-and-swap, in chunks that the
//! worker's threads walk, each in a span of its own.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::job::{Amount, Chunk, Done, Job, Kind};
use super::spans::{self, Spans, Walk};
use super::thread::let_others_go_first;
use crate::engine::{Engine, Moved, OrgKeys, OrgState, Slot};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::gate::Drained;
use crate::id::{KeyState, KeyVersion, OrgId, Suite};
use crate::storage::{Key, Range, Space, Stored, prefix_range};
use crate::text::printable;

/// Bytes of envelopes that end a chunk.
const CHUNK_BYTES: usize = 1 << 20;

/// Records that are rewritten before others may go first.
const IN_A_ROW: usize = 8;

/// Records re-encrypted, by what they were sealed under.
pub(super) type Rewritten = BTreeMap<(KeyVersion, Suite), u64>;

/// What became of the records of a chunk, or of a pass.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Opened under the active version already.
    pub(super) current: u64,
    pub(super) rewritten: Rewritten,
    /// Deleted since they were scanned.
    pub(super) gone: u64,
    pub(super) unreadable: u64,
    /// Name and fault.
    pub(super) first_unreadable: Option<String>,
    pub(super) bytes: u64,
}

impl Tally {
    pub(super) fn scanned(&self) -> u64 {
        self.current + self.rewritten.values().sum::<u64>() + self.gone + self.unreadable
    }

    /// What so many records more may come to.
    pub(super) fn expected(&self, records: usize) -> Amount {
        let records = records as u64;
        let most = CHUNK_BYTES as u64;
        let each = self.bytes.checked_div(self.scanned());
        Amount { records, bytes: each.map_or(most, |each| each.saturating_mul(records).min(most)) }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.current += other.current;
        self.gone += other.gone;
        self.unreadable += other.unreadable;
        self.bytes += other.bytes;
        self.first_unreadable = self.first_unreadable.take().or(other.first_unreadable);
        for (under, count) in other.rewritten {
            *self.rewritten.entry(under).or_default() += count;
        }
    }
}

/// Takes the pairs of a walk.
pub(super) type Each<'a> = dyn FnMut(Key, Stored) -> bool + 'a;

/// A walk over an org's records, chunk by chunk, each with a scan of its own.
pub(super) struct Cursor {
    range: Range,
    /// What comes when that is walked.
    next: Option<Range>,
    pub(super) exhausted: bool,
}

impl Cursor {
    pub(super) fn new(org: OrgId) -> Self {
        Self::over(prefix_range(org.as_bytes()))
    }

    pub(super) fn over(range: Range) -> Self {
        Self { range, next: None, exhausted: false }
    }

    /// What it has not come to, of a range without another one behind it.
    pub(super) fn rest(self) -> Option<Range> {
        (!self.exhausted).then_some(self.range)
    }

    /// For who walks while records move.
    pub(super) fn against_moves(org: &OrgState, active: KeyVersion) -> Self {
        let (range, next) = spans::against_moves(org, active);
        Self { range, next, exhausted: false }
    }

    /// The next records, at most `most` and about `CHUNK_BYTES`; empty at the end.
    pub(super) fn chunk(&mut self, engine: &Engine, most: usize) -> Result<Vec<(Key, Stored)>> {
        let mut chunk = Vec::with_capacity(most);
        let mut bytes = 0;
        self.step(engine, most, |key, stored| {
            bytes += stored.len();
            chunk.push((key.clone(), stored));
            bytes < CHUNK_BYTES
        })?;
        Ok(chunk)
    }

    /// Gives the next records to `each`, at most `most` (at least one), until it says `false`;
    /// none at the end.
    pub(super) fn step(
        &mut self,
        engine: &Engine,
        most: usize,
        each: impl FnMut(&Key, Stored) -> bool,
    ) -> Result<()> {
        let walk = |range, each: &mut Each<'_>| engine.storage.walk(Space::Records, range, each);
        self.step_by(walk, most, each)
    }

    /// Likewise, of what `walk` gives.
    pub(super) fn step_by(
        &mut self,
        walk: impl Fn(Range, &mut Each<'_>) -> Result<bool>,
        most: usize,
        mut each: impl FnMut(&Key, Stored) -> bool,
    ) -> Result<()> {
        while !self.exhausted {
            let (mut last, mut left) = (None, most);
            let range = self.range.clone();
            let ended = walk(range, &mut |key, stored| {
                left = left.saturating_sub(1);
                let more = each(&key, stored);
                last = Some(key);
                more && left > 0
            })?;
            match &last {
                Some(key) if !ended => self.range.0 = Bound::Excluded(key.to_vec()),
                _ => match self.next.take() {
                    Some(next) => self.range = next,
                    None => self.exhausted = true,
                },
            }
            if last.is_some() {
                break;
            }
        }
        Ok(())
    }
}

/// A pass that is under way.
pub(super) struct Pass {
    walk: Walk,
    pub(super) tally: Tally,
    leaving: Leaving,
}

/// What had stopped sealing when the writers had drained. Holds no key: a pass may rest for
/// long, and a key that is suspended or retired meanwhile must leave memory.
pub(super) struct Leaving {
    pub(super) active: KeyVersion,
    pub(super) suite: Suite,
    pub(super) versions: Vec<KeyVersion>,
}

impl Leaving {
    fn when(drained: &Drained<OrgKeys>) -> Self {
        let keys = drained.snapshot();
        let leaving =
            |slot: &&Slot| slot.version != keys.active && slot.state == KeyState::DecryptOnly;
        let versions = keys.slots.iter().filter(leaving).map(|slot| slot.version).collect();
        Self { active: keys.active, suite: keys.suite, versions }
    }
}

/// Proof that every record of the org was opened, one by one, after the writers had drained.
pub(super) struct CleanPass {
    pub(super) leaving: Leaving,
    pub(super) records: u64,
}

impl Pass {
    pub(super) fn new(org: &OrgState) -> Self {
        let leaving = Leaving::when(&org.gate.drained());
        let walk = Walk::new(Spans::against_moves(org, leaving.active));
        Self { walk, tally: Tally::default(), leaving }
    }

    /// See [`Walk::job`].
    pub(super) fn job(
        &mut self,
        engine: &Engine,
        org: &Arc<OrgState>,
        chunk: Chunk,
        inside: tracing::Span,
    ) -> Result<Option<Job>> {
        let expected = self.tally.expected(chunk.records);
        let kind = Kind::Rewrite { most: chunk.records, expected };
        self.walk.job(engine, org, (kind, chunk.at_once), inside)
    }

    /// A chunk came back. One of another pass says nothing here.
    pub(super) fn done(&mut self, mut done: Done) {
        if self.walk.back(&mut done) {
            self.tally.add(done.tally);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.walk.is_over()
    }

    /// Unreadable blocks retirement (invariant 7): gives the proof only for a clean pass.
    pub(super) fn finish(self) -> Result<CleanPass, Tally> {
        debug_assert!(self.is_over());
        if self.tally.unreadable > 0 {
            return Err(self.tally);
        }
        let records = self.tally.scanned() - self.tally.gone;
        Ok(CleanPass { leaving: self.leaving, records })
    }
}

/// Rewrites the next records, at most `most` and about `CHUNK_BYTES`.
pub(super) fn rewrite_next(
    engine: &Engine,
    org: &OrgState,
    cursor: &mut Cursor,
    most: usize,
    tally: &mut Tally,
) -> Result<()> {
    for (i, (key, stored)) in cursor.chunk(engine, most)?.into_iter().enumerate() {
        if i % IN_A_ROW == 0 {
            let_others_go_first();
        }
        tally.bytes += stored.len() as u64;
        rewrite(engine, org, &key, stored, tally)?;
    }
    Ok(())
}

/// Brings one record under the active key by compare-and-swap on the exact old envelope. A lost
/// swap means that somebody newer was there: the record is read again. So no write is lost and
/// no delete undone (invariant 5). A blinded name is brought there with it.
fn rewrite(
    engine: &Engine,
    org: &OrgState,
    key: &Key,
    mut stored: Stored,
    tally: &mut Tally,
) -> Result<()> {
    loop {
        // Inside the gate like any writer: what is sealed here is in the tree before the
        // version it was sealed under can be replaced.
        let keys = org.gate.enter();
        let name = keys.name(org, key);
        let header = keys.header(&stored);
        let is_current = header.is_ok_and(|header| keys.is_current(&header));
        let resealed = match &name {
            Err(error) => Err(error.clone()),
            Ok(name) if is_current && keys.is_newest_place(org, key) => {
                keys.open(name, &stored).map(|_| None)
            }
            Ok(name) => keys.reseal(name, &stored)?.map(Some),
        };
        match (&name, resealed, header) {
            (_, Ok(None), _) => {
                tally.current += 1;
                return Ok(());
            }
            (Ok(name), Ok(Some(envelope)), Ok(header)) => {
                failpoint::reach("rewrite.sealed", &org.name);
                match engine.move_record(org, &keys, (name, key), &stored, envelope)? {
                    Moved::Yes => {
                        failpoint::reach("rewrite.swapped", &org.name);
                        engine.written();
                        *tally.rewritten.entry((header.version, header.suite)).or_default() += 1;
                        return Ok(());
                    }
                    Moved::Superseded => {
                        engine.written();
                        tally.gone += 1;
                        return Ok(());
                    }
                    Moved::Lost => {}
                }
            }
            (_, Err(error @ Error::KeySuspended { .. }), _) => return Err(error),
            (name, Err(error), _) => {
                let now = engine.storage.get_found(Space::Records, key)?;
                if now.as_ref() == Some(&stored) {
                    tracing::error!(org = %org.name, %error, "a record does not open");
                    let described = || match name {
                        Ok(name) => format!("\"{}\" ({error})", printable(name)),
                        Err(_) => error.to_string(),
                    };
                    tally.first_unreadable.get_or_insert_with(described);
                    tally.unreadable += 1;
                    return Ok(());
                }
            }
            (_, Ok(Some(_)), _) => debug_assert!(false, "opened without a header or a name"),
        }
        drop(keys);
        match engine.storage.get_found(Space::Records, key)? {
            Some(newer) => stored = newer,
            None => {
                tally.gone += 1;
                return Ok(());
            }
        }
    }
}
