//! The rotation of one org, one bounded step at a time.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Report;
use super::count::{HeaderCount, LOOKS};
use super::erase::Deletion;
use super::hold;
use super::job::{Chunk, Done, Job};
use super::pass::{CleanPass, Cursor, Pass, Rewritten};
use super::progress::{Phase, Progress};
use super::retire::{self, CountedZero};
use super::throttle::Meter;
use crate::engine::{Engine, OrgState};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::id::{KeyState, KeyVersion, OrgId, Suite};
use crate::storage::Space;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

pub(super) struct Task {
    pub(super) org: Arc<OrgState>,
    pub(super) paused: bool,
    pub(super) is_erasure: bool,
    /// The last waking that it has seen.
    pub(super) woken: u64,
    stage: Stage,
    retry_delay: Duration,
    /// `None` until it is read from the database.
    rewritten: Option<Rewritten>,
    survey: Survey,
    meter: Meter,
    /// Around everything that is done for this rotation, on whatever thread.
    span: tracing::Span,
}

enum Stage {
    Rewriting(Pass),
    Verifying {
        pass: CleanPass,
        count: HeaderCount,
    },
    Retiring {
        zero: CountedZero,
        records: u64,
    },
    /// Until a time on the store's observed clock, milliseconds; and what goes only by hand.
    Held {
        until: Option<u64>,
        by_hand: Option<KeyVersion>,
    },
    Erasing(Deletion),
    Waiting {
        until: Instant,
        why: Error,
    },
    Blocked {
        why: Error,
        unreadable: u64,
    },
    Done {
        records: u64,
    },
}

/// What a step led to.
pub(super) enum Step {
    /// A chunk for a thread.
    Job(Job),
    /// Something was done; there is more.
    Went,
    /// Nothing to do before a chunk comes back, the time given, or a command.
    Idle(Option<Instant>),
    Finished,
}

/// Counts an org's records while the threads are busy, for the time left.
struct Survey {
    cursor: Cursor,
    records: u64,
}

impl Survey {
    fn new(org: &OrgState) -> Self {
        Self { cursor: Cursor::against_moves(org, org.gate.snapshot().active), records: 0 }
    }
}

impl Task {
    pub(super) fn new(org: Arc<OrgState>) -> Self {
        Self {
            stage: Stage::Rewriting(Pass::new(&org)),
            paused: false,
            is_erasure: false,
            woken: 0,
            retry_delay: FIRST_RETRY,
            rewritten: None,
            survey: Survey::new(&org),
            meter: Meter::new(Instant::now()),
            span: tracing::info_span!("rotation", org = %org.name),
            org,
        }
    }

    /// The task of an org whose keys are destroyed.
    pub(super) fn erasing(org: Arc<OrgState>, woken: u64) -> Self {
        let stage = Stage::Erasing(Deletion::new(&org));
        Self { is_erasure: true, woken, stage, ..Self::new(org) }
    }

    /// The keyring changed, or somebody asked to try again.
    pub(super) fn wake(&mut self, woken: u64, rotating: bool) {
        use Stage::{Blocked, Done, Held, Waiting};
        self.woken = woken;
        match self.stage {
            Waiting { .. } | Blocked { .. } | Held { .. } => self.start_pass(),
            Done { .. } if rotating => self.start_pass(),
            _ => {}
        }
    }

    pub(super) fn step(&mut self, engine: &Engine, now: Instant, chunk: Chunk) -> Step {
        if self.paused {
            return Step::Idle(None);
        }
        let span = self.span.clone();
        let _inside = span.enter();
        // Whatever happens here stops this org's rotation, not the others'.
        let step = catch_unwind(AssertUnwindSafe(|| self.try_step(engine, now, chunk)));
        match step.unwrap_or_else(|_| Err(Error::Bug { org: self.org.name.to_string() })) {
            Ok(step) => step,
            Err(error) => {
                self.wait(now, error);
                Step::Went
            }
        }
    }

    fn try_step(&mut self, engine: &Engine, now: Instant, chunk: Chunk) -> Result<Step> {
        if self.rewritten.is_none() {
            self.rewritten = Some(load_rewritten(engine, &self.org)?);
        }
        match &mut self.stage {
            Stage::Done { .. } => Ok(Step::Finished),
            Stage::Blocked { .. } => Ok(Step::Idle(None)),
            Stage::Held { until: None, .. } => Ok(Step::Idle(None)),
            Stage::Held { until: Some(until), .. } => {
                let left = until.saturating_sub(engine.clock.observed());
                let left = Duration::from_millis(left);
                if !left.is_zero() {
                    // Looks again now and then: what waits here does not count sleep.
                    return Ok(Step::Idle(Some(now + left.min(LONGEST_RETRY))));
                }
                self.start_pass();
                Ok(Step::Went)
            }
            Stage::Erasing(deletion) => {
                if !deletion.step(engine, &self.org)? {
                    self.stage = Stage::Done { records: deletion.deleted() };
                }
                Ok(Step::Went)
            }
            Stage::Waiting { until, .. } if *until > now => Ok(Step::Idle(Some(*until))),
            Stage::Waiting { .. } => {
                self.start_pass();
                Ok(Step::Went)
            }
            Stage::Rewriting(pass) => {
                if pass.is_over() {
                    self.finish_pass(engine);
                    return Ok(Step::Went);
                }
                let job = pass.job(engine, &self.org, chunk, self.span.clone())?;
                Ok(job.map_or(Step::Idle(None), Step::Job))
            }
            Stage::Verifying { count, .. } => {
                if count.is_over() {
                    self.judge(engine)?;
                    return Ok(Step::Went);
                }
                let job = count.job(engine, &self.org, chunk, self.span.clone())?;
                Ok(job.map_or(Step::Idle(None), Step::Job))
            }
            Stage::Retiring { .. } => self.retire(engine).map(|()| Step::Went),
        }
    }

    /// A chunk came back.
    pub(super) fn done(&mut self, engine: &Engine, now: Instant, done: Done) {
        self.meter.add(now, done.tally.scanned() + done.census.total());
        if !done.tally.rewritten.is_empty() {
            let rewritten = self.rewritten.get_or_insert_default();
            for (&under, count) in &done.tally.rewritten {
                *rewritten.entry(under).or_default() += count;
            }
            // Only a figure for the certificate hangs on it.
            if let Err(error) = save_rewritten(engine, &self.org, rewritten) {
                tracing::warn!(org = %self.org.name, %error, "progress not noted");
            }
        }
        match &mut self.stage {
            Stage::Rewriting(pass) => pass.done(done),
            Stage::Verifying { count, .. } => count.done(done),
            _ => {}
        }
    }

    /// Counts on a little for the time left, if that is not done yet.
    pub(super) fn survey(&mut self, engine: &Engine) -> bool {
        const STEP: usize = 4096;
        if self.survey.cursor.exhausted || self.paused || self.is_erasure {
            return false;
        }
        let Survey { cursor, records } = &mut self.survey;
        let counted = cursor.step(engine, STEP, |_, _| {
            *records += 1;
            true
        });
        cursor.exhausted |= counted.is_err();
        true
    }

    /// Records that its pass has not reached, and what the count of headers after it takes, in
    /// records that could be rewritten meanwhile; `None` while they are not counted.
    pub(super) fn left(&self) -> Option<u64> {
        let counted = self.survey.cursor.exhausted.then_some(self.survey.records);
        match &self.stage {
            _ if self.paused => Some(0),
            Stage::Rewriting(pass) => {
                let counted = counted?;
                // More were written since, nobody knows how many.
                let grown = counted <= pass.tally.scanned() && !pass.is_over();
                let left = counted.saturating_sub(pass.tally.scanned());
                (!grown).then_some(left + counted / u64::from(LOOKS))
            }
            Stage::Verifying { count, .. } => {
                let left = counted.unwrap_or_default().saturating_sub(count.total());
                Some(left / u64::from(LOOKS))
            }
            _ => Some(0),
        }
    }

    /// How fast that is done of late, per second.
    pub(super) fn rate(&self) -> Option<f64> {
        match self.stage {
            Stage::Rewriting(_) => self.meter.rate(),
            Stage::Verifying { .. } => self.meter.rate().map(|rate| rate / f64::from(LOOKS)),
            _ => None,
        }
    }

    fn start_pass(&mut self) {
        self.survey = Survey::new(&self.org);
        self.meter = Meter::new(Instant::now());
        self.stage = if self.is_erasure {
            Stage::Erasing(Deletion::new(&self.org))
        } else {
            Stage::Rewriting(Pass::new(&self.org))
        };
    }

    fn finish_pass(&mut self, engine: &Engine) {
        let fresh = Stage::Rewriting(Pass::new(&self.org));
        let Stage::Rewriting(pass) = std::mem::replace(&mut self.stage, fresh) else {
            return;
        };
        let org = self.org.name.to_string();
        match pass.finish() {
            Ok(pass) => {
                failpoint::reach("rewrite.passed", &org);
                let count = HeaderCount::after(&pass, engine, &self.org);
                self.stage = Stage::Verifying { pass, count };
                // Headers are counted far faster than records are rewritten.
                self.meter = Meter::new(Instant::now());
            }
            Err(tally) => {
                let first = tally.first_unreadable.unwrap_or_default();
                let unreadable = tally.unreadable;
                tracing::error!(%org, unreadable, first, "rotation blocked");
                self.stage = Stage::Blocked {
                    why: Error::RotationBlocked { org, unreadable, first },
                    unreadable,
                };
            }
        }
    }

    /// The count is complete: what it clears is retired next, or held.
    fn judge(&mut self, engine: &Engine) -> Result<()> {
        failpoint::reach("verify.counted", &self.org.name);
        let fresh = Stage::Rewriting(Pass::new(&self.org));
        let Stage::Verifying { pass, count } = std::mem::replace(&mut self.stage, fresh) else {
            return Ok(());
        };
        let Some(counted) = count.finish(engine, &self.org)? else { return Ok(()) };
        let records = counted.census().total();
        let (rotating, suite_before) = self.under_way(engine);
        if !rotating {
            return self.finish(engine, records);
        }
        let Some(zero) = CountedZero::new(pass, &counted, suite_before) else {
            // Nothing is cleared: a newer key came during the pass, or a leaving one is
            // suspended. The next pass finds out.
            return self.still_suspended(engine).map_or(Ok(()), Err);
        };
        let verdict = hold::hold(engine, &self.org, zero.versions())?;
        self.stage = match zero.only(&verdict.go) {
            Some(zero) => Stage::Retiring { zero, records },
            None => {
                self.retry_delay = FIRST_RETRY;
                Stage::Held { until: verdict.next(), by_hand: verdict.by_hand() }
            }
        };
        Ok(())
    }

    fn retire(&mut self, engine: &Engine) -> Result<()> {
        let fresh = Stage::Rewriting(Pass::new(&self.org));
        let Stage::Retiring { zero, records } = std::mem::replace(&mut self.stage, fresh) else {
            return Ok(());
        };
        let rewritten = self.rewritten.get_or_insert_default();
        retire::retire(engine, &self.org, zero.sync(engine)?, rewritten)?;
        self.retry_delay = FIRST_RETRY;
        if self.under_way(engine).0 {
            // The pass that was made before does not know that these are retired.
            self.start_pass();
            return Ok(());
        }
        self.finish(engine, records)
    }

    fn finish(&mut self, engine: &Engine, records: u64) -> Result<()> {
        self.retry_delay = FIRST_RETRY;
        self.stage = Stage::Done { records };
        engine.storage.put(Space::System, &rewritten_key(self.org.id), None)?;
        engine.written();
        Ok(())
    }

    fn under_way(&self, engine: &Engine) -> (bool, Option<Suite>) {
        engine.with_keyring(|keyring| match keyring.entry(self.org.id) {
            Some(entry) => (entry.is_rotating(), entry.suite_before),
            None => (false, None),
        })
    }

    fn still_suspended(&self, engine: &Engine) -> Option<Error> {
        use KeyState::Suspended;
        let version = engine.with_keyring(|keyring| {
            let entry = keyring.entry(self.org.id)?;
            entry.versions.iter().find(|v| v.state == Suspended).map(|v| v.version)
        })?;
        Some(Error::KeySuspended { org: self.org.name.to_string(), version })
    }

    fn wait(&mut self, now: Instant, why: Error) {
        // Neither is mended by trying again.
        if matches!(why, Error::Bug { .. } | Error::RolledBack { .. }) {
            tracing::error!(org = %self.org.name, error = %why, "rotation blocked");
            self.stage = Stage::Blocked { why, unreadable: 0 };
            return;
        }
        tracing::warn!(org = %self.org.name, error = %why, "rotation waits");
        self.stage = Stage::Waiting { until: now + self.retry_delay, why };
        self.retry_delay = (self.retry_delay * 2).min(LONGEST_RETRY);
    }

    /// Whether it does something, or could without a command.
    pub(super) fn works(&self) -> bool {
        use Stage::{Erasing, Retiring, Rewriting, Verifying};
        let at_it =
            matches!(self.stage, Rewriting(_) | Verifying { .. } | Retiring { .. } | Erasing(_));
        at_it && !self.paused
    }

    pub(super) fn report(&self) -> Report {
        let surveyed = self.survey.cursor.exhausted.then_some(self.survey.records);
        let mut progress = Progress {
            // What is done cannot be paused; a later rotation of the org is a task of its own.
            paused: self.paused && !matches!(self.stage, Stage::Done { .. }),
            rewritten: self.rewritten.iter().flat_map(BTreeMap::values).sum(),
            rate: self.meter.rate(),
            total: surveyed,
            ..Progress::queued(&self.org.name)
        };
        let (mut blocked, mut held_until) = (None, None);
        match &self.stage {
            Stage::Rewriting(pass) => {
                progress.phase = Phase::Rewriting;
                progress.scanned = pass.tally.scanned();
                progress.unreadable = pass.tally.unreadable;
                progress.time_left = time_left(&progress);
            }
            Stage::Verifying { count, .. } => {
                progress.phase = Phase::Verifying;
                progress.scanned = count.total();
                progress.time_left = time_left(&progress);
            }
            Stage::Retiring { records, .. } => {
                progress.phase = Phase::Retiring;
                progress.scanned = *records;
            }
            Stage::Held { until, by_hand } => {
                progress.phase = Phase::Held;
                let org = || self.org.name.to_string();
                match (until, by_hand) {
                    (None, &Some(version)) => {
                        let why = Error::RetirementAwaited { org: org(), version };
                        progress.reason = Some(why.to_string());
                        blocked = Some(why);
                    }
                    (until, _) => held_until = *until,
                }
            }
            Stage::Erasing(deletion) => {
                progress.phase = Phase::Erasing;
                progress.scanned = deletion.deleted();
            }
            Stage::Waiting { why, .. } => {
                progress.phase = Phase::Waiting;
                progress.reason = Some(why.to_string());
            }
            Stage::Blocked { why, unreadable } => {
                progress.phase = Phase::Blocked;
                progress.unreadable = *unreadable;
                progress.reason = Some(why.to_string());
                blocked = Some(why.clone());
            }
            Stage::Done { records } => {
                progress.phase = Phase::Done;
                progress.scanned = *records;
            }
        }
        Report { progress, blocked, held_until, woken: self.woken }
    }
}

#[allow(clippy::cast_precision_loss)]
fn time_left(progress: &Progress) -> Option<Duration> {
    let left = progress.total?.saturating_sub(progress.scanned) as f64;
    let rate = progress.rate.filter(|rate| *rate > 0.0)?;
    Duration::try_from_secs_f64(left / rate).ok()
}

fn rewritten_key(org: OrgId) -> Vec<u8> {
    [b"rotation/", &org.as_bytes()[..]].concat()
}

/// Counts of earlier runs of this rotation. What is retired has its certificate already.
fn load_rewritten(engine: &Engine, org: &OrgState) -> Result<Rewritten> {
    let key = rewritten_key(org.id);
    let counts: Option<Vec<((KeyVersion, Suite), u64)>> = engine.kept(&key)?;
    let keys = org.gate.snapshot();
    let lives = |version| keys.slot(version).is_some_and(|slot| slot.state != KeyState::Retired);
    Ok(counts.into_iter().flatten().filter(|((version, _), _)| lives(*version)).collect())
}

fn save_rewritten(engine: &Engine, org: &OrgState, rewritten: &Rewritten) -> Result<()> {
    let key = rewritten_key(org.id);
    let counts: Vec<_> = rewritten.iter().map(|(&under, &count)| (under, count)).collect();
    engine.keep(&key, &counts)
}

#[cfg(test)]
mod tests;
