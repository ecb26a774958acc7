//! Old ciphertext that still lies in the database's files, and its removal: what lives is copied
//! to a fresh database, the store goes on with that, and the old files are overwritten.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::files::{self, Tallies, erase_database};
use super::whole::{self, not_whole};
use super::{Claim, Engine};
use crate::audit::{AuditEvent, Certificate, CertificateKind, Draft, ErasureLimit};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::id::{KeyState, KeyVersion, OrgId};
use crate::keyring::{Erasure, Keyring};
use crate::storage::{CopyPlan, Freeze, SledStorage};

/// Envelopes of a retired key version that can still be found in the database's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Residue {
    /// Name of the org.
    pub org: String,
    /// Its id.
    pub org_id: OrgId,
    /// The retired version.
    pub version: KeyVersion,
    /// Envelopes found, whole or not.
    pub envelopes: u64,
    /// Bytes from each of them to the next one, or to the end of the log's segment or of the large
    /// page's file that it lies in: at least as many as they have.
    pub bytes_at_most: u64,
    /// Files in the data directory that hold some of them and are not the store's, as a copy of the
    /// database under another name. They are never overwritten: remove them, and erase again.
    pub elsewhere: Vec<PathBuf>,
}

/// What [`Store::erase_residue`](crate::Store::erase_residue) did.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ResidueErased {
    /// What was found before.
    pub before: Vec<Residue>,
    /// What is found now: only in files that are not the store's ([`Residue::elsewhere`]), or of keys
    /// that were retired meanwhile.
    pub left: Vec<Residue>,
    /// Bytes of the database's files before.
    pub bytes_before: u64,
    /// And after.
    pub bytes_after: u64,
    /// How long no write was let in.
    pub writes_paused: Duration,
    /// One for each version of which residue was erased: the retired key's ciphertext is gone.
    pub certificates: Vec<Certificate>,
}

impl Engine {
    /// Reads every file in the directory for headers of retired versions.
    pub(crate) fn residue(&self) -> Result<Vec<Residue>> {
        Ok(self.of_retired(&self.count_envelopes()?))
    }

    fn of_retired(&self, found: &Tallies) -> Vec<Residue> {
        self.with_keyring(|keyring| {
            let of = |org: &crate::keyring::OrgEntry| {
                let retired = org.versions.iter().filter(|v| v.state == KeyState::Retired);
                let residue = retired.filter_map(|v| {
                    let found = found.get(&(org.id, v.version))?.clone();
                    Some(Residue {
                        org: org.name.clone(),
                        org_id: org.id,
                        version: v.version,
                        envelopes: found.envelopes,
                        bytes_at_most: found.bytes_at_most,
                        elsewhere: found.elsewhere,
                    })
                });
                residue.collect::<Vec<_>>()
            };
            keyring.orgs.iter().flat_map(of).collect()
        })
    }

    fn count_envelopes(&self) -> Result<Tallies> {
        let orgs = self.with_keyring(|keyring| {
            keyring.orgs.iter().map(|org| *org.id.as_bytes()).collect::<HashSet<_>>()
        });
        files::count(&self.dir, &orgs)
    }

    /// 1. a fresh database beside the old one, with everything that lives;
    /// 2. writes stand still, the rest is copied, what was copied is what the digest says, the copy
    ///    is durable; must come before 3, or a crash loses what was not copied, and what is missing
    ///    is certified as erased;
    /// 3. the keyring names the new database: the one moment of the switch, also for a crash;
    /// 4. the store goes on with it, writes are let in;
    /// 5. the old files are overwritten and removed; a crash leaves that to the next open;
    /// 6. the new files are searched, and what has gone is certified.
    pub(crate) fn erase_residue(&self) -> Result<ResidueErased> {
        self.rewrite_database(&CopyPlan::Checked)
    }

    /// The same, for a database that is not what it was: whatever is found in it is what is there
    /// from now on.
    pub(super) fn take_what_is_there(&self) -> Result<ResidueErased> {
        self.rewrite_database(&CopyPlan::Accepting)
    }

    fn rewrite_database(&self, plan: &CopyPlan<'_>) -> Result<ResidueErased> {
        let _one_at_a_time = self.moving.try_lock().map_err(|_| Error::ResidueBusy)?;
        let _span = tracing::info_span!("erase_residue").entered();
        self.check_writable()?;
        files::check(&self.dir)?;
        let before = self.residue()?;
        let retired = self.with_keyring(retired_versions);
        let bytes_before = self.storage.bytes_on_disk()?;
        let old = self.storage.dir();
        // What stays of an earlier removal would be certified as gone.
        Self::erase_leftovers(&self.dir, &old)?;
        let number = self.with_keyring(|keyring| keyring.database) + 1;
        let new = self.dir.join(Keyring::database_name(number));
        let moved = self.move_to(&new, number, plan);
        if let Err(error) = &moved
            && !matches!(error, Error::SyncFailed { .. })
            && let Err(left) = erase_database(&new)
        {
            tracing::warn!(%error, %left, "a half-made copy is removed at the next open");
        }
        let writes_paused = moved?;
        erase_database(&old)?;
        failpoint::reach("residue.removed", "");
        let (certificates, left) = self.certify_erased(&before, &retired)?;
        let bytes_after = self.storage.bytes_on_disk()?;
        tracing::info!(bytes_before, bytes_after, ?writes_paused, "residue erased");
        Ok(ResidueErased { before, left, bytes_before, bytes_after, writes_paused, certificates })
    }

    /// Steps 1 to 4. After an error that is no [`Error::SyncFailed`] the store is on the old
    /// database. How long writes stood still.
    fn move_to(&self, new: &Path, number: u32, plan: &CopyPlan<'_>) -> Result<Duration> {
        let mut successor = self.storage.copy_to(new, plan)?;
        failpoint::reach("residue.copied", "");
        successor.catch_up()?;
        let mut frozen = None;
        let mut writes_paused = Duration::ZERO;
        let frozen_here = std::cell::RefCell::new(&mut frozen);
        let dir = self.storage.dir();
        self.change_then(
            None,
            |keyring, drafts| {
                // Under the keyring's lock already: who changes the keyring writes after that,
                // so the locks are always taken in this order.
                match successor.freeze(None)? {
                    Freeze::Frozen(frozen) => **frozen_here.borrow_mut() = Some(frozen),
                    Freeze::Broken(groups) => {
                        let why = not_whole(&dir, keyring, &groups);
                        return Err(whole::with(why, "nothing was erased"));
                    }
                }
                failpoint::reach("residue.frozen", "");
                keyring.database = number;
                drafts.push(Draft::new(AuditEvent::DatabaseRewritten));
                Ok(())
            },
            || {
                if let Some(frozen) = frozen_here.borrow_mut().take() {
                    writes_paused = frozen.switch();
                }
            },
        )?;
        drop(frozen);
        failpoint::reach("residue.switched", "");
        if !successor.close_old(Duration::from_secs(5)) {
            // Somebody holds a scan that was begun before; it goes on with the new files.
            tracing::warn!("the old database is still open; its files are removed all the same");
        }
        Ok(writes_paused)
    }

    /// Upgrades the proof of each retired version of which nothing can be found any more, of those
    /// that were `retired` when the fresh database was begun: nothing of them came into it. What
    /// was retired later may have been written behind the search, and blinded names cannot be
    /// searched for: sled cuts off what keys have in common.
    fn certify_erased(
        &self,
        before: &[Residue],
        retired: &HashSet<(OrgId, KeyVersion)>,
    ) -> Result<(Vec<Certificate>, Vec<Residue>)> {
        let left = self.count_envelopes()?;
        failpoint::reach("residue.counted", "");
        let mut scope = vec![ErasureLimit::AbortedPages, ErasureLimit::ShortenedLog];
        if SledStorage::lost_pages(&self.storage.dir()) {
            scope.push(ErasureLimit::PagesNotKept);
        }
        scope.extend(self.limits());
        let certificates = self.change(None, |keyring, drafts| {
            let mut claims = Vec::new();
            for org in &mut keyring.orgs {
                let successor = org.erasure.is_none().then_some(org.newest().version);
                for v in org.versions.iter_mut().filter(|v| v.state == KeyState::Retired) {
                    if v.residue_erased || left.contains_key(&(org.id, v.version)) {
                        continue;
                    }
                    if !retired.contains(&(org.id, v.version)) {
                        continue;
                    }
                    v.residue_erased = true;
                    let found =
                        before.iter().find(|r| (r.org_id, r.version) == (org.id, v.version));
                    claims.push(Claim {
                        records_deleted: found.map_or(0, |residue| residue.envelopes),
                        scope: scope.clone(),
                        ..Claim::new(CertificateKind::KeyErased, org.id, v.version, successor)
                    });
                }
            }
            let certified = claims.into_iter().map(|claim| self.certify(keyring, drafts, claim));
            certified.filter_map(Result::transpose).collect::<Result<Vec<_>>>()
        })?;
        Ok((certificates, self.of_retired(&left)))
    }

    /// Finishes a removal that a crash cut off: databases that the keyring does not name.
    pub(super) fn erase_leftovers(dir: &Path, current: &Path) -> Result<()> {
        for path in files::databases(dir)? {
            if path != current {
                tracing::info!(path = %path.display(), "going on with the removal of old files");
                erase_database(&path)?;
            }
        }
        Ok(())
    }
}

fn retired_versions(keyring: &Keyring) -> HashSet<(OrgId, KeyVersion)> {
    let of = |org: &crate::keyring::OrgEntry| {
        let retired = org.versions.iter().filter(|v| v.state == KeyState::Retired);
        retired.map(|v| (org.id, v.version)).collect::<Vec<_>>()
    };
    // Who writes to an org that is being erased may still come with something under its key.
    let drained = keyring.orgs.iter().filter(|org| org.erasure != Some(Erasure::KeysDestroyed));
    drained.flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::OrgPolicy;
    use crate::material::KeyMaterial;

    #[test]
    fn what_an_erasure_may_still_see_written_is_not_certified() {
        let mut keyring = Keyring::new(KeyMaterial::take(&mut [1; 32]).fingerprint()).unwrap();
        let id = OrgId::from_bytes([7; 16]);
        let material = KeyMaterial::take(&mut [2; 32]);
        keyring.create_org(id, "acme", OrgPolicy::byok(), material, 5).unwrap();
        keyring.erase(id, "acme", 6).unwrap();
        assert!(retired_versions(&keyring).is_empty());
        keyring.orgs[0].erasure = Some(Erasure::RecordsDeleted);
        assert_eq!(retired_versions(&keyring), HashSet::from([(id, KeyVersion::FIRST)]));
    }
}
