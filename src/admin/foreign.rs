//! Keys of other stores that restored orgs may not have: looked at, and dropped.

use serde::Serialize;

use super::KeyAdmin;
use crate::error::Result;
use crate::id::{BackupId, Fingerprint, OrgId};

/// What a backup that was restored here says of keys that other stores had. The orgs that came
/// with it, and orgs that are restored from backups of those, may not have these keys; nobody else
/// is kept from them. From [`KeyAdmin::foreign_keys`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ForeignKeys {
    /// The backup.
    pub backup: BackupId,
    /// When it was restored here, milliseconds since 1970-01-01 UTC.
    pub restored_unix_ms: u64,
    /// The orgs that came with it, name and id; also those that were erased since.
    pub orgs: Vec<(String, OrgId)>,
    /// The keys, by their fingerprints, sorted.
    pub keys: Vec<Fingerprint>,
}

impl KeyAdmin {
    /// What backups that were restored here say of keys of other stores, in the order in which
    /// they were restored. A backup of a whole store knows of up to 500,000 keys.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let root = byokv::RootKey::from_material(byokv::KeyMaterial::generate()?);
    /// # let store = byokv::Store::open(dir.path().join("data"), root)?;
    /// for foreign in store.keys().foreign_keys() {
    ///     println!("{} keys came with backup {}", foreign.keys.len(), foreign.backup);
    /// }
    /// # Ok::<(), byokv::Error>(())
    /// ```
    #[must_use]
    pub fn foreign_keys(&self) -> Vec<ForeignKeys> {
        self.engine.with_keyring(|keyring| {
            let all = keyring.foreign.iter().map(|foreign| ForeignKeys {
                backup: foreign.backup,
                restored_unix_ms: foreign.restored,
                orgs: foreign
                    .orgs
                    .iter()
                    .filter_map(|id| keyring.entry(*id))
                    .map(|org| (org.name.clone(), org.id))
                    .collect(),
                keys: foreign.keys.to_vec(),
            });
            all.collect()
        })
    }

    /// Forgets what came with a backup, so that the orgs that were restored from it may have those
    /// keys; audited. What such an org itself had stays refused to it. How many fingerprints that
    /// were.
    ///
    /// # Errors
    /// [`BackupError::NothingForeign`](crate::BackupError::NothingForeign) if nothing came with that backup; disk errors of the
    /// machine.
    pub fn drop_foreign_keys(&self, backup: BackupId) -> Result<u64> {
        self.engine.drop_foreign_keys(backup)
    }
}
