//! Orgs that come in from a backup: unseen until they are whole, gone if that never happens.

use super::Engine;
use crate::audit::{AuditEvent, Draft};
use crate::error::{BackupError, Result};
use crate::failpoint;
use crate::id::{BackupId, OrgId};

impl Engine {
    /// At open: whatever was being restored when the store was last open is not whole, and the
    /// backup that could complete it is not at hand. Its keys are destroyed, so that nobody can
    /// read it; what is left is deleted like the records of any erased org.
    pub(super) fn discard_unfinished_restores(&self) -> Result<()> {
        let unfinished: Vec<_> = self.with_keyring(|keyring| {
            let unfinished = keyring.orgs.iter().filter(|org| org.is_restoring);
            unfinished.map(|org| (org.id, org.name.clone())).collect()
        });
        if unfinished.is_empty() {
            return Ok(());
        }
        tracing::warn!(orgs = unfinished.len(), "a restore was cut off; what it wrote is erased");
        self.discard_restore(&unfinished)
    }

    /// Forgets what came with a backup. How many fingerprints that were.
    pub(crate) fn drop_foreign_keys(&self, backup: BackupId) -> Result<u64> {
        self.check_open()?;
        self.change(None, |keyring, drafts| {
            let keys =
                keyring.drop_foreign(backup).ok_or(BackupError::NothingForeign { backup })?;
            drafts.push(Draft::new(AuditEvent::ForeignKeysDropped { backup, keys }));
            Ok(keys)
        })
    }

    fn discard_restore(&self, orgs: &[(OrgId, String)]) -> Result<()> {
        let ids = orgs.iter().map(|(id, _)| *id).collect();
        self.change(None, |keyring, drafts| {
            keyring.give_up_restore(&ids, keyring.time.wall);
            let draft = |(id, name): &(OrgId, String)| {
                Draft::new(AuditEvent::RestoreDiscarded).org(name, *id)
            };
            drafts.extend(orgs.iter().map(draft));
            Ok(())
        })?;
        failpoint::reach("restore.discarded", "");
        Ok(())
    }
}

#[cfg(feature = "backup")]
mod begun {
    use std::sync::{Arc, PoisonError};

    use super::{AuditEvent, Draft, Engine, OrgId, Result, failpoint};
    use crate::engine::OrgState;
    use crate::id::{BackupId, Fingerprint, Origin};
    use crate::keyring::{ForeignKeys, Newcomer, OrgHistory, RestoredFrom};
    use crate::material::{self, KeyMaterial};

    /// What a restore brings besides the orgs themselves.
    pub(crate) struct Provenance {
        pub(crate) backup: BackupId,
        pub(crate) key: Fingerprint,
        /// The store that made the backup, and the moment that it shows.
        pub(crate) source: (OrgId, u64),
        /// Every key that the backup knows of, sorted; and those that it knows of from backups
        /// before it, each with the orgs that they came with, by their place among those that are
        /// restored.
        pub(crate) keys: Arc<[Fingerprint]>,
        pub(crate) earlier: Vec<Earlier>,
    }

    /// Keys that came with a backup that the orgs were restored from before.
    pub(crate) struct Earlier {
        pub(crate) backup: BackupId,
        pub(crate) orgs: Vec<usize>,
        pub(crate) keys: Arc<[Fingerprint]>,
    }

    impl Engine {
        /// Makes the orgs of `histories`, each under the key given for it or a new platform key,
        /// all in one change of the keyring. Nobody sees them yet. Whatever grows with what the
        /// backup says is done before the keyring's lock is taken.
        pub(crate) fn begin_restore(
            &self,
            from: Provenance,
            orgs: Vec<(&OrgHistory, Option<KeyMaterial>)>,
        ) -> Result<Vec<Arc<OrgState>>> {
            self.check_writable()?;
            let newcomers = orgs.into_iter().map(|(history, material)| {
                let mut id = [0; OrgId::LEN];
                material::random(&mut id)?;
                let id = OrgId::from_bytes(id);
                let (material, origin) = match material {
                    Some(material) => (material, Origin::Customer),
                    None => (KeyMaterial::generate()?, Origin::Platform),
                };
                let (backup, key) = (from.backup, from.key);
                let (store, at) = from.source;
                let from = RestoredFrom { backup, key, store, org: history.id, at };
                Ok(Newcomer { history, id, material, origin, from })
            });
            let newcomers = newcomers.collect::<Result<Vec<_>>>()?;
            let ids: Vec<OrgId> = newcomers.iter().map(|newcomer| newcomer.id).collect();
            let Provenance { backup, key, keys, earlier, .. } = from;
            let now = self.clock.wall()?;
            let mut foreign = vec![ForeignKeys::new(backup, now, ids.clone(), keys)];
            foreign.extend(earlier.into_iter().map(|earlier| {
                let orgs = earlier.orgs.into_iter().filter_map(|place| ids.get(place).copied());
                ForeignKeys::new(earlier.backup, now, orgs.collect(), earlier.keys)
            }));
            foreign.retain(|foreign| !foreign.keys.is_empty() && !foreign.orgs.is_empty());
            let states = self.change(None, |keyring, drafts| {
                keyring.add_backup_key(key)?;
                let before = keyring.orgs.len();
                keyring.begin_restore(newcomers, foreign, now)?;
                let come = &keyring.orgs[before..];
                drafts.extend(come.iter().map(|org| {
                    let newest = org.newest();
                    let draft = Draft::new(AuditEvent::RestoreBegun { backup });
                    draft.org(&org.name, org.id).key(newest.version, newest.fingerprint)
                }));
                Ok(come.iter().map(|org| Arc::new(OrgState::new(org))).collect::<Vec<_>>())
            })?;
            failpoint::reach("restore.begun", "");
            Ok(states)
        }

        /// 1. what was written is durable; must come before 2, or a power cut leaves an org
        ///    without some of its records;
        /// 2. the keyring says that the orgs are whole: the one moment, for all of them;
        /// 3. they can be had by name.
        pub(crate) fn finish_restore(
            &self,
            backup: BackupId,
            orgs: &[Arc<OrgState>],
        ) -> Result<()> {
            self.sync()?;
            failpoint::reach("restore.synced", "");
            let ids = orgs.iter().map(|org| org.id).collect();
            self.change(None, |keyring, drafts| {
                keyring.end_restore(&ids);
                drafts.extend(orgs.iter().map(|org| {
                    Draft::new(AuditEvent::OrgRestored { backup }).org(&org.name, org.id)
                }));
                Ok(())
            })?;
            failpoint::reach("restore.finished", "");
            let mut map = self.orgs.write().unwrap_or_else(PoisonError::into_inner);
            map.extend(orgs.iter().map(|org| (org.name.to_string(), Arc::clone(org))));
            Ok(())
        }

        /// Destroys the keys of orgs that will not become whole. Their records are left to the
        /// caller.
        pub(crate) fn abandon_restore(&self, orgs: &[Arc<OrgState>]) -> Result<()> {
            let named: Vec<_> = orgs.iter().map(|org| (org.id, org.name.to_string())).collect();
            self.discard_restore(&named)?;
            for org in orgs {
                org.mark_erased();
                self.publish(org);
            }
            Ok(())
        }
    }
}
#[cfg(feature = "backup")]
pub(crate) use begun::{Earlier, Provenance};
