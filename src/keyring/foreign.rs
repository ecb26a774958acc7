//! Keys of other stores, as backups that were restored here tell of them. Whoever wrote such a
//! backup chose them, so they keep only the orgs that came with it, and orgs that descend from
//! those, from a key: never another org, and never the store itself.

#[cfg(feature = "backup")]
use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Keyring, OrgEntry};
use crate::error::{Error, Result};
use crate::id::{BackupId, Fingerprint, OrgId};

/// Who is to have a key.
#[derive(Clone, Copy)]
pub(crate) enum KeyOf<'a> {
    /// An org, with the orgs that it was before it was restored.
    Org { id: OrgId, ancestors: &'a [OrgId] },
    /// The store: a root key, or a key that seals backups.
    Store,
}

/// Fingerprints that came with one backup.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ForeignKeys {
    pub(crate) backup: BackupId,
    /// When it was restored, milliseconds since 1970.
    pub(crate) restored: u64,
    /// The orgs that came with it, sorted.
    pub(crate) orgs: Vec<OrgId>,
    /// Sorted. Shared by the copies of a keyring.
    #[serde(with = "packed")]
    pub(crate) keys: Arc<[Fingerprint]>,
}

impl ForeignKeys {
    #[cfg(feature = "backup")]
    pub(crate) fn new(
        backup: BackupId,
        restored: u64,
        mut orgs: Vec<OrgId>,
        keys: Arc<[Fingerprint]>,
    ) -> Self {
        orgs.sort_unstable();
        Self { backup, restored, orgs, keys }
    }

    /// Returns true if they came with this org, or with one that it goes back to. The other
    /// direction does not count: a backup may name any org as its org's ancestor.
    pub(crate) fn concern(&self, id: OrgId, ancestors: &[OrgId]) -> bool {
        let came = |id: &OrgId| self.orgs.binary_search(id).is_ok();
        came(&id) || ancestors.iter().any(came)
    }

    pub(crate) fn hold(&self, key: Fingerprint) -> bool {
        self.keys.binary_search(&key).is_ok()
    }
}

/// Sorts fingerprints and drops those that come twice, before any lock is taken.
#[cfg(feature = "backup")]
pub(crate) fn sorted(mut keys: Vec<Fingerprint>) -> Arc<[Fingerprint]> {
    keys.sort_unstable();
    keys.dedup();
    keys.into()
}

impl Keyring {
    /// Fingerprints of material that this store itself has or had, with the uses that it serves
    /// or served: those of its orgs, its root keys, the keys of backups.
    pub(crate) fn own_keys(&self) -> impl Iterator<Item = Fingerprint> + '_ {
        let versions = self.orgs.iter().flat_map(|org| &org.versions);
        let own = versions.filter(|version| !version.inherited).map(|version| version.fingerprint);
        own.chain(self.roots.iter().chain(&self.backup_keys).copied()).inspect(|_| looked())
    }

    /// Insert-only: no material that this store ever had, whoever had it here; for an org neither
    /// what it had elsewhere, nor what the backup that it came from says was used elsewhere.
    /// Reads every key once: where many are to be asked about, [`Known`] is asked.
    pub(crate) fn refuse_reuse(&self, fingerprint: Fingerprint, of: KeyOf<'_>) -> Result<()> {
        let taken = self.own_keys().any(|own| own == fingerprint);
        let elsewhere = || match of {
            KeyOf::Org { id, ancestors } => {
                let inherits = |org: &OrgEntry| {
                    org.versions.iter().any(|version| version.fingerprint == fingerprint)
                };
                self.entry(id).is_some_and(inherits)
                    || holds(&self.foreign, fingerprint, id, ancestors)
            }
            KeyOf::Store => false,
        };
        if taken || elsewhere() {
            return Err(Error::KeyReused { fingerprint });
        }
        Ok(())
    }

    /// Forgets what came with a backup. How many fingerprints that were; `None` if nothing did.
    pub(crate) fn drop_foreign(&mut self, backup: BackupId) -> Option<u64> {
        let before = self.foreign.len();
        let mut dropped = 0;
        self.foreign.retain(|foreign| {
            let goes = foreign.backup == backup;
            dropped += if goes { foreign.keys.len() as u64 } else { 0 };
            !goes
        });
        (self.foreign.len() < before).then_some(dropped)
    }
}

fn holds(all: &[ForeignKeys], key: Fingerprint, id: OrgId, ancestors: &[OrgId]) -> bool {
    all.iter().any(|foreign| foreign.concern(id, ancestors) && foreign.hold(key))
}

/// What the store has, for questions about many keys and orgs: built in one walk.
#[cfg(feature = "backup")]
pub(super) struct Known {
    keys: HashSet<Fingerprint>,
    ids: HashSet<OrgId>,
    /// The highest version of any org that is this one or goes back to it.
    newest: std::collections::HashMap<OrgId, crate::id::KeyVersion>,
}

#[cfg(feature = "backup")]
impl Known {
    pub(super) fn of(keyring: &Keyring) -> Self {
        let mut known = Self {
            keys: keyring.own_keys().collect(),
            ids: HashSet::new(),
            newest: std::collections::HashMap::new(),
        };
        keyring.orgs.iter().for_each(|org| known.note(org));
        known
    }

    /// An org that is there from now on.
    pub(super) fn note(&mut self, org: &OrgEntry) {
        self.ids.insert(org.id);
        let newest = org.newest();
        self.keys.insert(newest.fingerprint);
        for id in org.ancestors.iter().chain([&org.id]) {
            looked();
            let highest = self.newest.entry(*id).or_insert(newest.version);
            *highest = (*highest).max(newest.version);
        }
    }

    pub(super) fn has_id(&self, id: OrgId) -> bool {
        self.ids.contains(&id)
    }

    /// The highest version that these orgs, or any that goes back to one of them, have here.
    pub(super) fn newest(&self, ids: &[OrgId]) -> Option<crate::id::KeyVersion> {
        ids.iter().inspect(|_| looked()).filter_map(|id| self.newest.get(id)).max().copied()
    }

    /// Like [`Keyring::refuse_reuse`], for an org that is not there yet.
    pub(super) fn refuse_reuse(
        &self,
        key: Fingerprint,
        (id, ancestors): (OrgId, &[OrgId]),
        foreign: [&[ForeignKeys]; 2],
    ) -> Result<()> {
        let elsewhere = foreign.into_iter().any(|all| holds(all, key, id, ancestors));
        if self.keys.contains(&key) || elsewhere {
            return Err(Error::KeyReused { fingerprint: key });
        }
        Ok(())
    }
}

/// One after the other, without a length for each.
mod packed {
    use std::fmt;
    use std::sync::Arc;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    use crate::id::Fingerprint;

    pub(super) fn serialize<S: Serializer>(
        keys: &Arc<[Fingerprint]>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::with_capacity(keys.len() * Fingerprint::LEN);
        keys.iter().for_each(|key| bytes.extend_from_slice(key.as_bytes()));
        serializer.serialize_bytes(&bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<[Fingerprint]>, D::Error> {
        deserializer.deserialize_bytes(Packed)
    }

    struct Packed;

    impl Visitor<'_> for Packed {
        type Value = Arc<[Fingerprint]>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("whole fingerprints, sorted")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
            let (keys, rest) = bytes.as_chunks::<{ Fingerprint::LEN }>();
            if !rest.is_empty() || !keys.is_sorted() {
                return Err(E::invalid_length(bytes.len(), &self));
            }
            Ok(keys.iter().copied().map(Fingerprint::from_bytes).collect())
        }
    }
}

/// Counts the steps that grow with what is known, for the tests of how many there are.
#[cfg(not(test))]
#[inline(always)]
fn looked() {}

#[cfg(test)]
use counting::looked;
#[cfg(test)]
pub(super) use counting::looked_so_far;

#[cfg(test)]
mod counting {
    use std::cell::Cell;

    thread_local! {
        static LOOKED: Cell<u64> = const { Cell::new(0) };
    }

    pub(super) fn looked() {
        LOOKED.set(LOOKED.get() + 1);
    }

    pub(in crate::keyring) fn looked_so_far() -> u64 {
        LOOKED.get()
    }
}
