//! Counters and the figures that `Store::metrics` gives. Never a secret.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::id::{KeyState, KeyVersion, Origin, Suite};

/// Operations under one key version since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct VersionCounters {
    sealed: AtomicU64,
    opened: AtomicU64,
    failed: AtomicU64,
    would_have_failed: AtomicU64,
}

impl VersionCounters {
    pub(crate) fn sealed(&self) {
        self.sealed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Opened although the version is held.
    pub(crate) fn would_have_failed(&self) {
        self.would_have_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives the count and starts it anew.
    pub(crate) fn take_would_have_failed(&self) -> u64 {
        self.would_have_failed.swap(0, Ordering::Relaxed)
    }

    pub(crate) fn read(&self) -> (u64, u64, u64) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&self.sealed), read(&self.opened), read(&self.failed))
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
}

/// How many records of an org stand under which version and suite, by their headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Census {
    /// Records by key version.
    pub by_version: BTreeMap<KeyVersion, u64>,
    /// Records by suite.
    pub by_suite: BTreeMap<Suite, u64>,
    /// Records whose header cannot be read or names another org.
    pub malformed: u64,
}

impl Census {
    /// All records seen.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.by_version.values().sum::<u64>() + self.malformed
    }
}
