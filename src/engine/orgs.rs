//! What is held in memory of one org: its keys, ready for use, behind its gate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Watchers;
use super::names::Stripes;
use crate::envelope::Header;
use crate::envelope::name::NameKey;
use crate::envelope::suite::SuiteKey;
use crate::error::{Error, Result};
use crate::gate::Gate;
use crate::id::{KeyState, KeyVersion, OrgId, Origin, Suite};
use crate::keyring::{NamePolicy, OrgEntry, VersionEntry};
use crate::material::KeyMaterial;
use crate::observe::VersionCounters;

/// One org, as long as the store is open.
pub(crate) struct OrgState {
    pub(crate) id: OrgId,
    pub(crate) name: Arc<str>,
    pub(crate) gate: Gate<OrgKeys>,
    pub(crate) watchers: Watchers,
    /// Where the names of its records are blinded.
    pub(super) stripes: Option<Stripes>,
    erased: AtomicBool,
}

/// The org's keys at one moment. Immutable.
pub(crate) struct OrgKeys {
    pub(crate) org: OrgId,
    pub(crate) name: Arc<str>,
    pub(crate) suite: Suite,
    pub(crate) active: KeyVersion,
    /// Ascending by version.
    pub(crate) slots: Vec<Slot>,
    /// The last of them, which nearly every operation needs: one place in memory less to go to.
    newest: Slot,
    /// Whether any of them is suspended.
    pub(super) any_suspended: bool,
}

/// One key, ready for each suite that this build has, in the order of [`Suite::ALL`].
type SuiteKeys = [Option<SuiteKey>; Suite::ALL.len()];

/// One key version. Cloned from snapshot to snapshot, so counters and keys are shared.
#[derive(Clone)]
pub(crate) struct Slot {
    pub(crate) version: KeyVersion,
    pub(crate) origin: Origin,
    pub(crate) state: KeyState,
    /// On its way out: nothing should need it any more.
    pub(crate) held: bool,
    pub(crate) counters: Arc<VersionCounters>,
    /// Wiped when the last snapshot that has them, and the last operation using it, are gone.
    keys: Option<SuiteKeys>,
    /// Likewise; none where names are clear.
    pub(super) name_key: Option<Arc<NameKey>>,
}

/// A slot with its keys.
#[derive(Clone, Copy)]
pub(crate) struct Usable<'a> {
    keys: &'a SuiteKeys,
    pub(crate) counters: &'a VersionCounters,
}

impl<'a> Usable<'a> {
    /// Returns `None` for a suite that this build does not have.
    fn key(self, suite: Suite) -> Option<&'a SuiteKey> {
        match suite {
            Suite::Xaes256Gcm => self.keys[0].as_ref(),
            Suite::XChaCha20Poly1305 => self.keys[1].as_ref(),
            Suite::Aegis256 => self.keys[2].as_ref(),
        }
    }
}

impl OrgState {
    pub(super) fn new(entry: &OrgEntry) -> Self {
        let name = Arc::from(entry.name.as_str());
        Self {
            id: entry.id,
            gate: Gate::new(OrgKeys::new(entry, Arc::clone(&name), None)),
            name,
            watchers: Watchers::default(),
            stripes: (entry.policy.names() == NamePolicy::Blinded).then(Stripes::default),
            erased: AtomicBool::new(entry.erasure.is_some()),
        }
    }

    pub(crate) fn check_exists(&self) -> Result<()> {
        if self.erased.load(Ordering::Relaxed) {
            return Err(Error::OrgErased { org: self.name.to_string() });
        }
        Ok(())
    }

    pub(super) fn mark_erased(&self) {
        self.erased.store(true, Ordering::Relaxed);
    }

    /// The storage key of a record with a clear name: org id ‖ name.
    pub(crate) fn key(&self, name: &[u8]) -> Vec<u8> {
        [self.id.as_bytes(), name].concat()
    }

    /// Does something with that, without an allocation for names up to 112 bytes.
    pub(super) fn with_key<T>(&self, name: &[u8], with: impl FnOnce(&[u8]) -> T) -> T {
        let mut stack = [0; 128];
        match stack.get_mut(..OrgId::LEN + name.len()) {
            Some(key) => {
                let (id, rest) = key.split_at_mut(OrgId::LEN);
                id.copy_from_slice(self.id.as_bytes());
                rest.copy_from_slice(name);
                with(key)
            }
            None => with(&self.key(name)),
        }
    }
}

impl OrgKeys {
    /// Keys that `before` has ready are taken over.
    pub(super) fn new(entry: &OrgEntry, name: Arc<str>, before: Option<&Self>) -> Self {
        let blinded = entry.policy.names() == NamePolicy::Blinded;
        let slot = |version: &VersionEntry| {
            let known = before.and_then(|before| before.slot(version.version));
            Slot {
                version: version.version,
                origin: version.origin,
                state: version.state,
                held: version.held.is_some(),
                counters: known.map(|slot| Arc::clone(&slot.counters)).unwrap_or_default(),
                keys: version.material.as_ref().map(|material| {
                    let ready = known.and_then(|slot| slot.keys.clone());
                    ready.unwrap_or_else(|| expand(entry.id, version.version, material))
                }),
                name_key: version.material.as_ref().filter(|_| blinded).map(|material| {
                    let ready = known.and_then(|slot| slot.name_key.clone());
                    let fresh = || NameKey::new(entry.id, version.version, material);
                    ready.unwrap_or_else(|| Arc::new(fresh()))
                }),
            }
        };
        let newest = slot(entry.newest());
        let shared = |version: &VersionEntry| match version.version == newest.version {
            true => newest.clone(),
            false => slot(version),
        };
        Self {
            org: entry.id,
            name,
            suite: entry.suite,
            active: newest.version,
            slots: entry.versions.iter().map(shared).collect(),
            newest,
            any_suspended: entry.versions.iter().any(|v| v.state == KeyState::Suspended),
        }
    }

    pub(crate) fn slot(&self, version: KeyVersion) -> Option<&Slot> {
        if version == self.newest.version {
            return Some(&self.newest);
        }
        let index = self.slots.binary_search_by_key(&version, |slot| slot.version).ok()?;
        Some(&self.slots[index])
    }

    /// The active version, if it may seal now.
    pub(super) fn sealing(&self) -> Result<Usable<'_>> {
        let slot = self.slot(self.active);
        slot.and_then(Slot::usable).ok_or_else(|| match slot.map(|slot| slot.state) {
            // Only with the whole org is an active key destroyed.
            Some(KeyState::Retired) => Error::OrgErased { org: self.name.to_string() },
            _ => self.suspended(self.active),
        })
    }

    /// The key that seals now, under the org's suite.
    pub(super) fn sealing_key(&self) -> Result<(&SuiteKey, &VersionCounters)> {
        let usable = self.sealing()?;
        let (org, suite) = (self.name.to_string(), self.suite);
        let key = usable.key(suite).ok_or(Error::SuiteNotBuilt { org, suite })?;
        Ok((key, usable.counters))
    }

    /// Refuses what writes while the key is suspended that seals; that goes for deletions too.
    pub(crate) fn check_sealing(&self) -> Result<()> {
        self.sealing().map(drop)
    }

    /// Exactly the version that the header names; other keys are never tried.
    pub(super) fn opening(
        &self,
        header: &Header,
        name: &[u8],
    ) -> Result<(&SuiteKey, &VersionCounters)> {
        let version = header.version;
        let Some(slot) = self.slot(version) else {
            let why = format!("its header names {version}, which this keyring never had");
            return Err(self.damaged(name, why));
        };
        match (slot.usable(), slot.state) {
            (Some(usable), _) => {
                if slot.held {
                    tracing::error!(org = %self.name, %version, "a record needs a held key");
                    usable.counters.would_have_failed();
                }
                let Some(key) = usable.key(header.suite) else {
                    let why = format!("its suite is {}, which this build lacks", header.suite);
                    return Err(self.damaged(name, why));
                };
                Ok((key, usable.counters))
            }
            (None, KeyState::Retired) => {
                Err(Error::KeyRetired { org: self.name.to_string(), version })
            }
            (None, _) => Err(self.suspended(version)),
        }
    }

    /// Why a version gives nothing away, if that is because it is suspended.
    pub(super) fn withheld(&self, version: KeyVersion) -> Option<Error> {
        let slot = self.slot(version)?;
        (slot.state == KeyState::Suspended).then(|| self.suspended(version))
    }

    pub(super) fn suspended(&self, version: KeyVersion) -> Error {
        Error::KeySuspended { org: self.name.to_string(), version }
    }
}

impl Slot {
    fn usable(&self) -> Option<Usable<'_>> {
        self.keys.as_ref().map(|keys| Usable { keys, counters: &self.counters })
    }
}

fn expand(org: OrgId, version: KeyVersion, material: &KeyMaterial) -> SuiteKeys {
    Suite::ALL.map(|suite| Header { suite, org, version }.key(material))
}
