//! The register of backups: which were made of the store, and which hold an org.

use std::collections::BTreeMap;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::KeyAdmin;
use crate::audit::{BackupCopy, BackupState, OrgRef, Registered};
use crate::error::Result;
use crate::id::{BackupId, Fingerprint, OrgId};
use crate::time::rfc3339;

/// A backup of this store, from when it was begun on. From [`KeyAdmin::backups`].
///
/// In JSON an object with the fields in their order, and `at`, the time as RFC 3339, before
/// `at_unix_ms`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegisteredBackup {
    /// The backup.
    pub backup: BackupId,
    /// Fingerprint of the key that it is sealed under.
    pub key: Fingerprint,
    /// The moment that it shows, or when it was begun if it was not finished. Milliseconds since
    /// 1970-01-01 UTC.
    pub at_unix_ms: u64,
    /// How far it got.
    pub state: BackupState,
    /// Whether all orgs were asked for.
    pub whole_store: bool,
    /// The orgs that were asked for; empty if all were.
    pub orgs: Vec<OrgRef>,
}

impl Serialize for RegisteredBackup {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { backup, key, at_unix_ms, state, whole_store, orgs } = self;
        let mut entry = serializer.serialize_struct("RegisteredBackup", 7)?;
        entry.serialize_field("backup", backup)?;
        entry.serialize_field("key", key)?;
        entry.serialize_field("at", &rfc3339(*at_unix_ms))?;
        entry.serialize_field("at_unix_ms", at_unix_ms)?;
        entry.serialize_field("state", state)?;
        entry.serialize_field("whole_store", whole_store)?;
        entry.serialize_field("orgs", orgs)?;
        entry.end()
    }
}

/// The register of backups. From [`KeyAdmin::backups`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BackupRegister {
    /// In the order in which they were begun.
    pub backups: Vec<RegisteredBackup>,
    /// Entries that are missing or do not open, so that nobody can say which backups those were.
    pub missing: u64,
}

/// The backups that hold an org. From [`KeyAdmin::backups_of`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BackupCopies {
    /// In the order of their times.
    pub backups: Vec<BackupCopy>,
    /// Entries of the register that are missing or do not open: the list may not be whole.
    pub missing: u64,
}

impl KeyAdmin {
    /// Every backup that was begun of this store, also those that were not finished. Which of
    /// them still exist nobody but the operator knows.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{BackupState, KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// store.create_org("acme", OrgPolicy::byok())?;
    /// # #[cfg(feature = "backup")] {
    /// let made = store.backup(&KeyMaterial::generate()?).write_to(std::io::sink())?;
    /// let known = store.keys().backups()?.backups;
    /// assert_eq!((known[0].backup, known[0].state), (made.id, BackupState::Made));
    /// # }
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// Disk errors of the machine.
    pub fn backups(&self) -> Result<BackupRegister> {
        let (mut missing, names) = self.engine.with_keyring(|keyring| {
            let names = keyring.orgs.iter().map(|org| (org.id, org.name.clone()));
            let names: BTreeMap<OrgId, String> = names.collect();
            let of_orgs: u64 = keyring.orgs.iter().map(|org| org.registered).sum();
            (keyring.backups.whole + of_orgs, names)
        });
        let mut found: BTreeMap<(u64, BackupId), RegisteredBackup> = BTreeMap::new();
        self.engine.read_register(Registered::PREFIX, &mut |place, entry| {
            missing = missing.saturating_sub(1);
            let org = Registered::org_of(place);
            let backup = found.entry((entry.begun, entry.backup));
            let backup = backup.or_insert_with(|| RegisteredBackup {
                backup: entry.backup,
                key: entry.key,
                at_unix_ms: entry.at(),
                state: entry.state(),
                whole_store: org.is_none(),
                orgs: Vec::new(),
            });
            backup.orgs.extend(
                org.map(|id| OrgRef { name: names.get(&id).cloned().unwrap_or_default(), id }),
            );
        })?;
        Ok(BackupRegister { backups: found.into_values().collect(), missing })
    }

    /// The backups that hold an org, or may hold records of it, and the one that it was restored
    /// from: what erasing the org does not reach. Those of orgs that it was before it was restored
    /// are among them, as far as this store made them.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// store.create_org("acme", OrgPolicy::byok())?;
    /// # #[cfg(feature = "backup")] {
    /// let made = store.backup(&KeyMaterial::generate()?).write_to(std::io::sink())?;
    /// assert_eq!(store.keys().backups_of("acme")?.backups[0].backup, made.id);
    /// # }
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OrgUnknown`](crate::Error::OrgUnknown); disk errors of the machine.
    pub fn backups_of(&self, org: &str) -> Result<BackupCopies> {
        let copies = self.engine.copies_of(self.engine.org(org)?.id)?;
        Ok(BackupCopies { backups: copies.known, missing: copies.missing })
    }
}
