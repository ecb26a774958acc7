//! Counters and the figures that `Store::metrics` gives. Never a secret.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crossbeam::utils::CachePadded;
use serde::Serialize;

use crate::id::{KeyState, KeyVersion, Origin, Suite};

/// Operations under one key version since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct VersionCounters {
    sealed: AtomicU64,
    opened: Spread,
    failed: AtomicU64,
    would_have_failed: AtomicU64,
    pub(crate) usage: Usage,
}

impl VersionCounters {
    pub(crate) fn sealed(&self) {
        self.sealed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn opened(&self) {
        self.opened.add_one();
    }

    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Opened although the version is held.
    pub(crate) fn would_have_failed(&self) {
        self.would_have_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Puts back what was taken.
    pub(crate) fn would_have_failed_again(&self, times: u64) {
        self.would_have_failed.fetch_add(times, Ordering::Relaxed);
    }

    /// Gives the count and starts it anew.
    pub(crate) fn take_would_have_failed(&self) -> u64 {
        self.would_have_failed.swap(0, Ordering::Relaxed)
    }

    pub(crate) fn read(&self) -> (u64, u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.sealed), self.opened.read(), read(&self.failed))
    }
}

/// A count that threads which read at the same time do not wait for each other to raise.
#[derive(Debug, Default)]
struct Spread([CachePadded<AtomicU64>; 4]);

impl Spread {
    fn add_one(&self) {
        thread_local! {
            static PLACE: usize = {
                static NEXT: AtomicUsize = AtomicUsize::new(0);
                NEXT.fetch_add(1, Ordering::Relaxed) % 4
            };
        }
        PLACE.with(|place| self.0[*place].fetch_add(1, Ordering::Relaxed));
    }

    fn read(&self) -> u64 {
        self.0.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// Values and bytes that writes sealed under one key version in its whole life. What is on disk
/// runs ahead of what is counted here, so that a crash never counts too few.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    records: AtomicU64,
    bytes: AtomicU64,
    reserved_records: AtomicU64,
    reserved_bytes: AtomicU64,
    reserving: Mutex<()>,
}

impl Usage {
    const RECORDS_AHEAD: u64 = 4096;
    const BYTES_AHEAD: u64 = 16 << 20;

    /// Goes on from what was reserved before.
    pub(crate) fn start_at(&self, records: u64, bytes: u64) {
        self.records.store(records, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.reserved_records.store(records, Ordering::Relaxed);
        self.reserved_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Records and bytes.
    pub(crate) fn read(&self) -> (u64, u64) {
        (self.records.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }

    /// Counts one value of `bytes`. If that goes beyond what is reserved, `reserve` writes a
    /// new reservation before this returns.
    pub(crate) fn add<E>(
        &self,
        bytes: u64,
        reserve: impl FnOnce(u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        let records = self.records.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let is_covered = || {
            records <= self.reserved_records.load(Ordering::Acquire)
                && bytes <= self.reserved_bytes.load(Ordering::Acquire)
        };
        if is_covered() {
            return Ok(());
        }
        let _one_at_a_time = self.reserving.lock().unwrap_or_else(PoisonError::into_inner);
        if is_covered() {
            return Ok(());
        }
        let (records, bytes) = self.read();
        let (records, bytes) = (records + Self::RECORDS_AHEAD, bytes + Self::BYTES_AHEAD);
        reserve(records, bytes)?;
        self.reserved_records.store(records, Ordering::Release);
        self.reserved_bytes.store(bytes, Ordering::Release);
        Ok(())
    }
}

/// Figures of a whole store at one moment. Counters start at 0 when the store is opened.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Metrics {
    /// By org name.
    pub orgs: BTreeMap<String, OrgMetrics>,
    /// Durable syncs in the whole life of the store.
    pub syncs: u64,
    /// Generation of the keyring: how often it was replaced.
    pub keyring_generation: u64,
    /// Bytes of sled's files.
    pub bytes_on_disk: u64,
    /// What the store makes of this machine's clock.
    pub clock: ClockStatus,
}

/// What the store makes of this machine's clock. Milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ClockStatus {
    /// What the wall clock shows, since 1970-01-01 UTC; `None` if that is before 1970.
    pub unix_ms: Option<u64>,
    /// The observed clock, by which holds, the age of keys and the end of import tokens are
    /// counted: time in which the store was open, and of each gap between two openings a day at
    /// most. It begins with the store and only rises.
    pub observed_ms: u64,
    /// Time that passed by the wall clock alone. It counts once
    /// [`KeyAdmin::confirm_clock`](crate::KeyAdmin::confirm_clock) is called, and is no more once
    /// the wall clock is set back.
    pub uncounted_ms: u64,
    /// By how much the newest entry of the audit log is ahead of the wall clock. New entries get
    /// that one's time until the clock has caught up.
    pub behind_log_ms: u64,
    /// Jumps of the wall clock that were noted since the store was opened.
    pub jumps: u64,
}

/// Figures of one org.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OrgMetrics {
    /// By key version.
    pub versions: BTreeMap<KeyVersion, VersionMetrics>,
    /// Records that may be sealed under another version or suite than the active one: 0 when no
    /// rotation is under way; during a rewrite the records that the pass has not reached; `None`
    /// while that is not known. `KeyAdmin::census` counts exactly.
    pub stale: Option<u64>,
    /// Phase of the rotation that is under way, if one is.
    pub rotation: Option<String>,
}

/// Figures of one key version.
#[derive(Clone, Debug, Serialize)]
pub struct VersionMetrics {
    /// Its state now.
    pub state: KeyState,
    /// Who made the key.
    pub origin: Origin,
    /// Values sealed, rewrites included.
    pub sealed: u64,
    /// Values opened, rewrites included.
    pub opened: u64,
    /// Values that did not open.
    pub failed: u64,
    /// Values that writes sealed in the key's whole life: at least, and at most some thousands
    /// more for each time that the store was opened.
    pub sealed_in_all: u64,
    /// Bytes of those values.
    pub sealed_bytes_in_all: u64,
}

/// How many records of an org stand under which version and suite, by their headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Census {
    /// Records by key version.
    pub by_version: BTreeMap<KeyVersion, u64>,
    /// Records by suite.
    pub by_suite: BTreeMap<Suite, u64>,
    /// Records by the key version that their name is blinded under; empty if names are clear.
    pub by_name_version: BTreeMap<KeyVersion, u64>,
    /// Records whose header, or the beginning of whose blinded name, cannot be read or names
    /// another org.
    pub malformed: u64,
    /// Of all these, records whose storage key is no name that anybody could ask for. Where names
    /// are blinded, those are among the malformed, as far as they can be told without opening names.
    pub nameless: u64,
}

impl Census {
    /// Whether any envelope or blinded name is under this version.
    #[must_use]
    pub fn names_version(&self, version: KeyVersion) -> bool {
        self.by_version.contains_key(&version) || self.by_name_version.contains_key(&version)
    }

    pub(crate) fn add(&mut self, other: Self) {
        fn add<K: Ord>(to: &mut BTreeMap<K, u64>, other: BTreeMap<K, u64>) {
            for (key, count) in other {
                *to.entry(key).or_default() += count;
            }
        }

        add(&mut self.by_version, other.by_version);
        add(&mut self.by_suite, other.by_suite);
        add(&mut self.by_name_version, other.by_name_version);
        self.malformed += other.malformed;
        self.nameless += other.nameless;
    }

    /// All records seen.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_version.values().sum::<u64>() + self.malformed
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_reserved_is_never_less_than_what_is_counted() {
        let on_disk = Cell::new((0, 0));
        let usage = Usage::default();
        let mut reservations = 0;
        for i in 1..=10_000u64 {
            let reserve = |records, bytes| {
                reservations += 1;
                on_disk.set((records, bytes));
                Ok::<_, ()>(())
            };
            usage.add(5000, reserve).unwrap();
            assert!(on_disk.get().0 >= i && on_disk.get().1 >= i * 5000);
        }
        assert!(reservations < 10, "{reservations}");
        let after_a_crash = Usage::default();
        after_a_crash.start_at(on_disk.get().0, on_disk.get().1);
        assert!(after_a_crash.read().0 >= 10_000);
        let refused = after_a_crash.add(1, |_, _| Err("disk full"));
        assert_eq!(refused, Err("disk full"));
    }
}
