//! Orgs that come in from a backup: unseen until they are whole, gone if that never happens.

use super::Engine;
use crate::audit::{AuditEvent, Draft};
use crate::error::Result;
use crate::failpoint;
use crate::id::OrgId;
use crate::time::now_unix_ms;

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

    fn discard_restore(&self, orgs: &[(OrgId, String)]) -> Result<()> {
        self.change(None, |keyring, drafts| {
            for (id, name) in orgs {
                keyring.end_restore(*id);
                keyring.erase(*id, name, now_unix_ms())?;
                drafts.push(Draft::new(AuditEvent::RestoreDiscarded).org(name, *id));
            }
            Ok(())
        })?;
        failpoint::reach("restore.discarded", "");
        Ok(())
    }
}

#[cfg(feature = "backup")]
mod begun {
    use std::sync::{Arc, PoisonError};

    use super::{AuditEvent, Draft, Engine, OrgId, Result, failpoint, now_unix_ms};
    use crate::audit::OrgRef;
    use crate::engine::OrgState;
    use crate::error::Error;
    use crate::id::{BackupId, Fingerprint, Origin};
    use crate::keyring::{Newcomer, OrgHistory};
    use crate::material::{self, KeyMaterial};

    /// What a restore brings besides the orgs themselves.
    pub(crate) struct Provenance<'a> {
        pub(crate) backup: BackupId,
        pub(crate) key: Fingerprint,
        /// Keys that the backup knows of and that are of none of the restored orgs.
        pub(crate) foreign: &'a [Fingerprint],
        pub(crate) backup_keys: &'a [Fingerprint],
    }

    impl Engine {
        /// Notes the key of a backup before anything is sealed under it, so that no org gets it.
        pub(crate) fn begin_backup(
            &self,
            backup: BackupId,
            key: Fingerprint,
            only: &[String],
        ) -> Result<()> {
            self.check_open()?;
            self.change(None, |keyring, drafts| {
                keyring.add_backup_key(key)?;
                let named = |name: &String| {
                    let id = keyring.org(name)?.id;
                    Ok(OrgRef { name: name.clone(), id })
                };
                let only = only.iter().map(named).collect::<Result<_>>()?;
                let event = AuditEvent::BackupBegun { backup, only };
                drafts.push(Draft { fingerprint: Some(key), ..Draft::new(event) });
                Ok(())
            })
        }

        /// Makes the orgs of `histories`, each under the key given for it or a new platform key,
        /// all in one change of the keyring. Nobody sees them yet.
        pub(crate) fn begin_restore(
            &self,
            from: &Provenance<'_>,
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
                Ok(Newcomer { history, id, material, origin })
            });
            let newcomers = newcomers.collect::<Result<Vec<_>>>()?;
            let states = self.change(None, |keyring, drafts| {
                keyring.add_backup_key(from.key)?;
                keyring.add_foreign(from.foreign.iter().copied());
                for &key in from.backup_keys {
                    if keyring.refuse_reuse(key).is_ok() {
                        keyring.add_backup_key(key)?;
                    }
                }
                let histories = newcomers.iter().flat_map(|n| n.history.fingerprints());
                let past: Vec<_> = histories.collect();
                let mut states = Vec::new();
                for newcomer in newcomers {
                    let fingerprint = newcomer.material.fingerprint();
                    if past.contains(&fingerprint) {
                        return Err(Error::KeyReused { fingerprint });
                    }
                    let (id, name) = (newcomer.id, &newcomer.history.name);
                    let version = keyring.begin_restore(newcomer, now_unix_ms())?;
                    let event = AuditEvent::RestoreBegun { backup: from.backup };
                    drafts.push(Draft::new(event).org(name, id).key(version, fingerprint));
                    states.extend(keyring.entry(id).map(|entry| Arc::new(OrgState::new(entry))));
                }
                Ok(states)
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
            self.change(None, |keyring, drafts| {
                for org in orgs {
                    keyring.end_restore(org.id);
                    let event = AuditEvent::OrgRestored { backup };
                    drafts.push(Draft::new(event).org(&org.name, org.id));
                }
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

        /// Notes that a backup was made.
        pub(crate) fn audit_backup(&self, event: AuditEvent, key: Fingerprint) -> Result<()> {
            self.change(None, |_, drafts| {
                let mut draft = Draft::new(event);
                draft.fingerprint = Some(key);
                drafts.push(draft);
                Ok(())
            })
        }
    }
}
#[cfg(feature = "backup")]
pub(crate) use begun::Provenance;
