//! Durable syncs: shared by the threads that wait at the same time, counted by the mark.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::Engine;
use crate::error::{Error, Result};
use crate::failpoint;
use crate::mark::{Mark, Position};

pub(super) struct Durability {
    rounds: GroupCommit,
    reached: Mutex<Reached>,
    /// Of the position, for those who must not wait for a round that runs.
    syncs: AtomicU64,
    /// Of the newest keyring whose outbox is in the database.
    generation: AtomicU64,
    /// Of the newest keyring whose outbox is known to be durable there.
    settled: AtomicU64,
    /// Writes so far, and how many of them a sync is known to have covered.
    written: AtomicU64,
    covered: AtomicU64,
}

/// How far the store has got. Locked throughout a sync.
pub(super) struct Reached {
    pub(super) mark: Mark,
    pub(super) position: Position,
}

impl Durability {
    /// Goes on from a position. `settled` is the generation of the newest keyring of which it is
    /// known that all it owes is durable.
    pub(super) fn new(mark: Mark, position: Position, settled: u64) -> Self {
        Self {
            settled: AtomicU64::new(settled),
            rounds: GroupCommit::default(),
            generation: AtomicU64::new(position.generation),
            syncs: AtomicU64::new(position.syncs),
            reached: Mutex::new(Reached { mark, position }),
            written: AtomicU64::new(0),
            covered: AtomicU64::new(0),
        }
    }

    /// Waits for a sync that is under way, and lets no other begin.
    pub(super) fn reached(&self) -> MutexGuard<'_, Reached> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Notes that the storage has something to sync.
    pub(crate) fn written(&self) {
        self.durability.written.fetch_add(1, Ordering::Release);
    }

    /// Returns when everything written before the call would survive a power cut.
    pub(crate) fn sync(&self) -> Result<()> {
        self.durability.rounds.run(|| self.sync_round())
    }

    /// Refuses a write that could never become durable.
    pub(crate) fn check_writable(&self) -> Result<()> {
        self.check_open()?;
        self.storage.check_writable()
    }

    pub(crate) fn sync_if_dirty(&self) -> Result<()> {
        if self.is_dirty() { self.sync() } else { Ok(()) }
    }

    /// Returns true if something was written that no sync is known to have covered.
    pub(super) fn is_dirty(&self) -> bool {
        let state = &self.durability;
        state.written.load(Ordering::Acquire) != state.covered.load(Ordering::Acquire)
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.durability.syncs.load(Ordering::Acquire)
    }

    /// Whether all that the keyring of this generation owes, and those before it did, is durable in
    /// the database.
    pub(super) fn is_settled(&self, generation: u64) -> bool {
        self.durability.settled.load(Ordering::Acquire) >= generation
    }

    /// Notes that the outbox of this generation's keyring was written into the database: a later
    /// position with this generation says so, and the sync that it belongs to makes it durable.
    pub(super) fn note_generation(&self, generation: u64) {
        // Changes may come here in another order than they happened.
        self.durability.generation.fetch_max(generation, Ordering::AcqRel);
        self.written();
    }

    /// 1. the database's own position, counted up;
    /// 2. the database durable; must come after 1, or the position proves nothing;
    /// 3. the mark; must come after 2, or a crash between them looks like a rollback.
    ///
    /// If a step fails the position is not taken over, so the next round counts to it again and
    /// the database is never more than one ahead of the mark. A sync that the disk refused is
    /// never tried again (see [`Error::SyncFailed`]).
    fn sync_round(&self) -> Result<()> {
        let state = &self.durability;
        let written = state.written.load(Ordering::Acquire);
        let mut reached = state.reached();
        let next = Position {
            syncs: reached.position.syncs + 1,
            generation: state.generation.load(Ordering::Acquire),
        };
        let encoded = reached.mark.encode(next).to_vec();
        self.storage.put_position(encoded)?;
        failpoint::reach("sync.counted", "");
        self.storage.sync()?;
        failpoint::reach("sync.flushed", "");
        if let Err(error) = reached.mark.advance(next) {
            return Err(self.storage.stop_writing(Error::SyncFailed { why: error.to_string() }));
        }
        failpoint::reach("sync.marked", "");
        reached.position = next;
        state.settled.fetch_max(next.generation, Ordering::AcqRel);
        state.syncs.store(next.syncs, Ordering::Release);
        state.covered.fetch_max(written, Ordering::AcqRel);
        Ok(())
    }
}

/// One thread works for all that wait: whoever comes while a round runs shares the next one.
#[derive(Default)]
struct GroupCommit {
    state: Mutex<Rounds>,
    ended: Condvar,
}

#[derive(Default)]
struct Rounds {
    started: u64,
    running: bool,
    /// The last round that ended well: it covers all that came before it.
    succeeded: u64,
    failed: Option<(u64, Error)>,
}

impl GroupCommit {
    /// Returns when a round that started after this call has ended.
    fn run(&self, work: impl Fn() -> Result<()>) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = state.started + 1;
        loop {
            if state.succeeded >= mine {
                return Ok(());
            }
            match &state.failed {
                Some((round, error)) if *round >= mine => return Err(error.clone()),
                _ => {}
            }
            if state.running {
                state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.running = true;
            state.started += 1;
            let round = state.started;
            drop(state);
            // A bug in a round must not keep all who wait for ever.
            let outcome = catch_unwind(AssertUnwindSafe(&work));
            let outcome = outcome.unwrap_or_else(|_| {
                Err(Error::SyncFailed { why: "a defect of byokv's: a sync panicked".to_owned() })
            });
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.running = false;
            match outcome {
                Ok(()) => state.succeeded = round,
                Err(error) => state.failed = Some((round, error)),
            }
            self.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn waiters_share_a_round_that_started_after_them() {
        const THREADS: usize = 8;
        const EACH: usize = 50;
        let commit = GroupCommit::default();
        let (written, rounds) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let durable = AtomicUsize::new(0);
        let start = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    for _ in 0..EACH {
                        let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                        commit
                            .run(|| {
                                let covered = written.load(Ordering::SeqCst);
                                std::thread::yield_now();
                                durable.fetch_max(covered, Ordering::SeqCst);
                                rounds.fetch_add(1, Ordering::SeqCst);
                                Ok(())
                            })
                            .unwrap();
                        assert!(durable.load(Ordering::SeqCst) >= mine);
                    }
                });
            }
        });
        assert!(rounds.load(Ordering::SeqCst) <= THREADS * EACH);
    }

    #[test]
    fn a_failed_round_fails_its_waiters_and_not_the_next() {
        let commit = GroupCommit::default();
        assert!(commit.run(|| Err(Error::Closed)).is_err());
        assert!(commit.run(|| Ok(())).is_ok());
        assert!(commit.run(|| panic!("on purpose")).is_err());
        assert!(commit.run(|| Ok(())).is_ok());
    }
}
