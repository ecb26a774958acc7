//! What is done when a root key has leaked: the store gets a new secret, so that nothing which a
//! copy of the store could forge is accepted from then on.
//!
//! What the store keeps of itself in the database is sealed anew while the database is copied, under
//! a digest with a new key. So the secret of before is needed by nothing, and is kept nowhere.

use std::cell::RefCell;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::own::notary_of;
use super::whole::not_whole;
use super::{Engine, files};
use crate::audit::{AuditEvent, Draft, Notary};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::id::{Fingerprint, KeyVersion, Origin, TokenId};
use crate::keyring::root::RootKey;
use crate::keyring::{KeyOf, Keyring, StoreSecret};
use crate::mark;
use crate::storage::{self, CopyPlan, Freeze, Reseal};

/// What [`Store::change_compromised_root_key`](crate::Store::change_compromised_root_key) did, and
/// what it left to do.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SecretReplaced {
    /// Generation of the store's secret before.
    pub generation_before: u32,
    /// Generation of the store's secret now.
    pub generation: u32,
    /// Import tokens that were withdrawn: the copy has their private halves.
    pub tokens_withdrawn: Vec<TokenId>,
    /// Keys of orgs that the copy has and that are still in use, by org name and version. Each has
    /// to be replaced.
    pub compromised: Vec<CompromisedKey>,
    /// How long no write was let in.
    pub writes_paused: Duration,
}

/// A key of an org that is in use though a leaked copy of the store has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CompromisedKey {
    /// Name of the org.
    pub org: String,
    /// The version.
    pub version: KeyVersion,
    /// Who had made it. A customer's key can only be replaced by one that the customer brings.
    pub origin: Origin,
    /// Public check value of its material.
    pub fingerprint: Fingerprint,
    /// Whether new values are sealed under it. If not, a rotation is on its way to retire it.
    pub seals: bool,
}

/// Keys in use that leaked copies have.
pub(crate) fn compromised(keyring: &Keyring) -> Vec<CompromisedKey> {
    let mut orgs: Vec<_> = keyring.orgs.iter().filter(|org| org.is_seen()).collect();
    orgs.sort_by(|a, b| a.name.cmp(&b.name));
    let of = |org: &crate::keyring::OrgEntry| {
        let newest = org.newest().version;
        let known = org.versions.iter().filter(|v| v.is_compromised(&keyring.secret));
        let known = known.map(|v| CompromisedKey {
            org: org.name.clone(),
            version: v.version,
            origin: v.origin,
            fingerprint: v.fingerprint,
            seals: v.version == newest,
        });
        known.collect::<Vec<_>>()
    };
    orgs.into_iter().flat_map(of).collect()
}

/// The change that is under way.
struct Succession {
    next: StoreSecret,
    /// Of the secret before.
    from: Arc<Notary>,
    number: u32,
}

impl Succession {
    fn notary(&self) -> Notary {
        notary_of(&self.next)
    }

    /// Seals anew what the store had sealed. What does not open is not the store's, and is left as
    /// it is: it does not open under the new secret either.
    fn reseal(&self) -> Reseal {
        let (from, to) = (Arc::clone(&self.from), self.notary());
        Arc::new(move |key, stored| from.reseal(&to, key, stored))
    }
}

impl Engine {
    /// 1. a fresh database beside the old one, with everything that lives, sealed anew, under a
    ///    digest with a new key;
    /// 2. no sync runs, nothing is sealed by the notary of before, writes stand still; the rest is
    ///    copied, what was copied is what the digest says, and the position is sealed under the new
    ///    keys; the copy is durable;
    /// 3. the mark's older slot is written under the new key, which nobody goes by yet; must come
    ///    before 4, or a crash leaves a store without a mark;
    /// 4. the keyring, wrapped by the new root key, has the new secret, names the new database, has
    ///    no import token, and owes the audit entries: the one moment of the change, also for a
    ///    crash;
    /// 5. the store goes on with the new database, notary and mark; must come after 4, or a crash
    ///    loses what was written meanwhile;
    /// 6. the old files are overwritten and removed; a crash leaves that to the next open.
    pub(crate) fn change_compromised_root_key(&self, root: RootKey) -> Result<SecretReplaced> {
        let _one_at_a_time = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        let fingerprint = root.fingerprint();
        let _span = tracing::info_span!("change_compromised_root_key", %fingerprint).entered();
        self.check_writable()?;
        files::check(&self.dir)?;
        let succession = self.with_keyring(|keyring| {
            // Also asked at the end; here it saves the copy.
            keyring.refuse_reuse(fingerprint, KeyOf::Store)?;
            let next = keyring.secret.draw_next()?;
            Ok::<_, Error>(Succession {
                next,
                from: Arc::new(notary_of(&keyring.secret)),
                number: keyring.database + 1,
            })
        })?;
        let old = self.storage.dir();
        Self::erase_leftovers(&self.dir, &old)?;
        let new = self.dir.join(Keyring::database_name(succession.number));
        let replaced = self.succeed(root, &succession, &new);
        if let Err(error) = &replaced
            && !matches!(error, Error::SyncFailed { .. })
            && let Err(left) = files::erase_database(&new)
        {
            tracing::warn!(%error, %left, "a half-made copy is removed at the next open");
        }
        let replaced = replaced?;
        if let Err(error) = files::erase_database(&old) {
            tracing::warn!(%error, "the old database is removed at the next open");
        }
        failpoint::reach("secret.removed", "");
        tracing::warn!(%fingerprint, generation = replaced.generation, "store secret replaced");
        Ok(replaced)
    }

    /// Steps 1 to 5. After an error that is no [`Error::SyncFailed`] nothing has changed.
    fn succeed(
        &self,
        root: RootKey,
        succession: &Succession,
        new: &Path,
    ) -> Result<SecretReplaced> {
        let fingerprint = root.fingerprint();
        let digest_key = succession.next.derive(storage::DIGEST_KEY);
        let mark_key = succession.next.derive(mark::KEY);
        let plan = CopyPlan::Under { key: &digest_key, reseal: succession.reseal() };
        let mut successor = self.storage.copy_to(new, &plan)?;
        failpoint::reach("secret.copied", "");
        successor.catch_up()?;
        let old = self.storage.dir();
        let mut writes_paused = Duration::ZERO;
        let standstill = RefCell::new(None);
        let mut replaced = self.change_then(
            Some(root),
            |keyring, drafts| {
                keyring.refuse_reuse(fingerprint, KeyOf::Store)?;
                // Under the keyring's lock already. A sync waits for writes, and whoever seals has
                // the notary until it is written: so in this order.
                let reached = self.durability.reached();
                let notary = self.notary.write().unwrap_or_else(PoisonError::into_inner);
                let position = reached.position.encode(keyring.store, &mark_key).to_vec();
                let frozen = match successor.freeze(Some(position))? {
                    Freeze::Frozen(frozen) => frozen,
                    Freeze::Broken(groups) => return Err(not_whole(&old, keyring, &groups)),
                };
                failpoint::reach("secret.frozen", "");
                reached.mark.prepare(&mark_key, reached.position)?;
                failpoint::reach("secret.marked", "");
                *standstill.borrow_mut() = Some((reached, notary, frozen));
                let replaced = succession.apply(keyring, drafts, fingerprint)?;
                Self::note(keyring, &succession.notary(), std::mem::take(drafts))?;
                Ok(replaced)
            },
            || {
                if let Some((mut reached, mut notary, frozen)) = standstill.borrow_mut().take() {
                    writes_paused = frozen.switch();
                    *notary = succession.notary();
                    reached.mark.rekey(mark_key.duplicate());
                }
            },
        )?;
        drop(standstill);
        failpoint::reach("secret.switched", "");
        if !successor.close_old(Duration::from_secs(5)) {
            // Somebody holds a scan that was begun before; it goes on with the new files.
            tracing::warn!("the old database is still open; its files are removed all the same");
        }
        replaced.writes_paused = writes_paused;
        Ok(replaced)
    }
}

impl Succession {
    /// What the keyring is to be.
    fn apply(
        &self,
        keyring: &mut Keyring,
        drafts: &mut Vec<Draft>,
        root: Fingerprint,
    ) -> Result<SecretReplaced> {
        let generation_before = keyring.secret.generation();
        keyring.secret = self.next.duplicate();
        keyring.roots.push(root);
        keyring.database = self.number;
        let reseal = self.reseal();
        for owed in &mut keyring.outbox {
            owed.value = reseal(&owed.key, &owed.value)?;
        }
        let generation = keyring.secret.generation();
        let mut draft = Draft::new(AuditEvent::RootKeyChanged {
            compromised: true,
            secret_before: generation_before,
            secret: generation,
        });
        draft.fingerprint = Some(root);
        drafts.push(draft);
        let tokens = keyring.withdraw_tokens(keyring.time.wall);
        for &(token, org) in &tokens {
            let draft = Draft::new(AuditEvent::ImportTokenWithdrawn { token });
            drafts.push(match keyring.entry(org) {
                Some(entry) => draft.org(&entry.name, org),
                None => draft,
            });
        }
        drafts.push(Draft::new(AuditEvent::DatabaseRewritten));
        Ok(SecretReplaced {
            generation_before,
            generation,
            tokens_withdrawn: tokens.into_iter().map(|(token, _)| token).collect(),
            compromised: compromised(keyring),
            writes_paused: Duration::ZERO,
        })
    }
}
