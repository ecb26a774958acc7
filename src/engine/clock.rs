//! The store's clocks: when something happened, how much time was observed, and jumps of the wall
//! clock that the audit log is told of.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::Engine;
use crate::audit::{AuditEvent, Draft, Notary};
use crate::error::Result;
use crate::observe::ClockStatus;
use crate::storage::{Space, Storage};
use crate::time::observed::{Jump, Seen};
use crate::time::{Before1970, Clocks, Reading};

/// Key in the system space of what was seen of time since the keyring was last replaced.
const SEEN_KEY: &[u8] = b"clock";

/// How much observed time may pass before it is noted durably.
const NOTED_EACH: u64 = 3600 * 1000;

pub(crate) struct Clock {
    clocks: Clocks,
    state: Mutex<State>,
    /// Jumps that were noted since the store was opened.
    jumps: AtomicU64,
}

struct State {
    seen: Seen,
    /// Found when the store was opened, and not in the audit log yet.
    pending: Option<Jump>,
    /// The observed clock when it was last noted durably.
    noted: u64,
}

/// What a look at the clocks has found.
pub(crate) struct Look {
    pub(crate) seen: Seen,
    pub(super) jumps: Vec<Jump>,
}

impl Look {
    /// The entries that the audit log owes.
    pub(super) fn drafts(&self) -> Vec<Draft> {
        let event = |jump: &Jump| {
            let Jump { from, to } = *jump;
            AuditEvent::ClockJumped { from_unix_ms: from, to_unix_ms: to }
        };
        self.jumps.iter().map(|jump| Draft::new(event(jump))).collect()
    }
}

impl Clock {
    /// Goes on from what the keyring or the database knows, whichever is newer.
    pub(super) fn open(
        (clocks, now): (Clocks, Reading),
        by_keyring: &Seen,
        storage: &dyn Storage,
        notary: &Notary,
    ) -> Result<Self> {
        let stored = storage.get(Space::System, SEEN_KEY)?;
        let noted = stored.and_then(|stored| notary.open::<Seen>(SEEN_KEY, &stored));
        let newer = noted.filter(|noted| noted.observed > by_keyring.observed);
        let last = newer.unwrap_or_else(|| by_keyring.clone());
        let noted = last.observed;
        let (seen, pending) = last.opened(now);
        let state = Mutex::new(State { seen, pending, noted });
        Ok(Self { clocks, state, jumps: AtomicU64::new(0) })
    }

    /// Returns the milliseconds since 1970-01-01 UTC by the wall clock. Nothing that destroys a
    /// key, or keeps one, may be decided by it.
    pub(crate) fn wall(&self) -> Result<u64> {
        Ok(self.clocks.wall()?)
    }

    /// Returns the milliseconds on the observed clock.
    pub(crate) fn observed(&self) -> u64 {
        let running = self.clocks.running();
        self.state().seen.observed_at(running)
    }

    /// Looks at the clocks. What was found counts once it is [`taken`](Self::took).
    pub(crate) fn look(&self) -> Result<Look, Before1970> {
        let now = self.clocks.read()?;
        let state = self.state();
        let (seen, jump) = state.seen.clone().watched(now);
        Ok(Look { seen, jumps: state.pending.into_iter().chain(jump).collect() })
    }

    /// What `look` found is durable, its jumps are in the audit log.
    pub(super) fn took(&self, look: Look) {
        let mut state = self.state();
        state.noted = look.seen.observed;
        state.seen = look.seen;
        state.pending = None;
        for Jump { from, to } in look.jumps {
            self.jumps.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(from, to, "this machine's clock jumped; holds do not count that");
        }
    }

    fn is_due(&self, look: &Look) -> bool {
        look.seen.observed.saturating_sub(self.state().noted) >= NOTED_EACH
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Notes a jump of the wall clock in the audit log, and each hour how much time was observed.
    /// Does not wait for a change of the keyring that is under way: that one does both.
    pub(crate) fn look_at_clock(&self) -> Result<()> {
        let ring = match self.ring.try_lock() {
            Ok(ring) => ring,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        let look = self.clock.look()?;
        if !look.jumps.is_empty() {
            drop(ring);
            return self.change(None, |_, _| Ok(()));
        }
        if self.clock.is_due(&look) {
            self.note_clock(look)?;
        }
        Ok(())
    }

    /// Notes how much time was observed, where something is synced anyway or an hour has passed.
    pub(super) fn note_clock_at_close(&self, is_dirty: bool) -> Result<()> {
        let look = self.clock.look()?;
        if look.jumps.is_empty() && (is_dirty || self.clock.is_due(&look)) {
            self.note_clock(look)?;
        }
        Ok(())
    }

    fn note_clock(&self, look: Look) -> Result<()> {
        self.keep(SEEN_KEY, &look.seen)?;
        self.written();
        self.clock.took(look);
        Ok(())
    }

    /// Counts the time that passed by the wall clock alone, on an operator's word. Returns how
    /// much, in milliseconds.
    pub(crate) fn confirm_clock(&self) -> Result<u64> {
        self.check_open()?;
        self.change(None, |keyring, drafts| {
            let counted = keyring.confirm_time();
            if counted > 0 {
                drafts.push(Draft::new(AuditEvent::ClockConfirmed { counted_ms: counted }));
            }
            Ok(counted)
        })
    }

    pub(crate) fn clock_status(&self) -> ClockStatus {
        let unix_ms = self.clock.wall().ok();
        let logged = self.with_keyring(|keyring| keyring.audit_at);
        ClockStatus {
            unix_ms,
            observed_ms: self.clock.observed(),
            uncounted_ms: self.clock.state().seen.uncounted(),
            behind_log_ms: logged.saturating_sub(unix_ms.unwrap_or_default()),
            jumps: self.clock.jumps.load(Ordering::Relaxed),
        }
    }
}

/// Reads the clocks before anything of a store in `dir` is touched.
pub(super) fn read_first(dir: &Path) -> Result<(Clocks, Reading)> {
    let clocks = Clocks::of(dir);
    let now = clocks.read()?;
    Ok((clocks, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::engine;
    use crate::failpoint::Clock as SetClock;

    /// Noted by the hour, not each time.
    #[test]
    fn what_was_observed_is_noted_in_the_database() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let clock = SetClock::set_for(&data);
        let engine = engine(&data);
        let kept = || engine.kept::<Seen>(SEEN_KEY).unwrap().map(|seen| seen.observed);
        let minutes = |minutes: u64| clock.pass(std::time::Duration::from_secs(60 * minutes));
        minutes(59);
        engine.look_at_clock().unwrap();
        assert_eq!(kept(), None);
        minutes(1);
        engine.look_at_clock().unwrap();
        assert_eq!(kept(), Some(3_600_000));
        minutes(59);
        engine.look_at_clock().unwrap();
        assert_eq!(kept(), Some(3_600_000));
        assert_eq!(engine.clock.observed(), 2 * 3_600_000 - 60_000);
    }
}
