//! Changing the keyring: on disk first, then in memory, then told to the database.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::clock::Look;
use super::import::expire;
use super::{Engine, OrgKeys, OrgState};
use crate::audit::{AuditEvent, Draft, KeyRefusal, Notary};
use crate::error::{Error, Result};
use crate::failpoint;
use crate::id::{KeyState, KeyVersion, OrgId, Origin, Suite};
use crate::keyring::root::RootKey;
use crate::keyring::{Installed, KeyOf, Keyring, OrgEntry, OrgPolicy, Owed};
use crate::material::{self, KeyMaterial};
use crate::policy::PolicyChange;
use crate::storage::Space;

/// What a change of the keyring adds to the audit log.
pub(crate) type Drafts = Vec<Draft>;

impl Engine {
    /// Applies `change` to a copy of the keyring and makes the copy the store's keyring:
    ///
    /// 1. the file, with the audit entries and certificates that the change owes: the one
    ///    moment at which the change happens, also for a crash;
    /// 2. the copy in memory; must come after 1, or values are sealed under a version that a
    ///    crash forgets (invariant 3);
    /// 3. what is owed, into the database, then a sync; until that is known to be done, it
    ///    stays in the keyring and is done again at each open. The next change drops it.
    ///
    /// Import tokens whose time is up end with every change, and a jump of the wall clock is noted
    /// with it. The caller publishes the org's new keys. Nothing is changed if `change` refuses.
    pub(crate) fn change<T>(
        &self,
        root: Option<RootKey>,
        change: impl FnOnce(&mut Keyring, &mut Drafts) -> Result<T>,
    ) -> Result<T> {
        self.change_then(root, change, || {})
    }

    /// Like [`change`](Self::change), with something more to do between 1 and 2.
    pub(super) fn change_then<T>(
        &self,
        root: Option<RootKey>,
        change: impl FnOnce(&mut Keyring, &mut Drafts) -> Result<T>,
        then: impl FnOnce(),
    ) -> Result<T> {
        let _span = tracing::debug_span!("keyring_change").entered();
        self.storage.check_writable()?;
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = ring.keyring.duplicate();
        if self.is_settled(next.generation) {
            next.outbox.clear();
        }
        next.generation += 1;
        next.syncs = self.syncs();
        let look = self.clock.look()?;
        next.time = look.seen.clone();
        let mut drafts = look.drafts();
        expire(&mut next, &mut drafts);
        let outcome = change(&mut next, &mut drafts)?;
        next.note_treatments();
        if !drafts.is_empty() {
            Self::note(&mut next, &self.notary(), drafts)?;
        }
        match ring.file.save(root.as_ref().unwrap_or(&ring.root), &next) {
            // The file may be either one: no more writes before it is read again.
            Err(error @ Error::SyncFailed { .. }) => return Err(self.storage.stop_writing(error)),
            saved => saved?,
        }
        failpoint::reach("keyring.saved", "");
        self.clock.took(Look { seen: next.time.clone(), ..look });
        then();
        if let Some(root) = root {
            ring.root = root;
        }
        let generation = next.generation;
        ring.keyring = next;
        let owed = self.pay_outbox(&ring.keyring);
        drop(ring);
        failpoint::reach("outbox.written", "");
        // The change has happened. A failure here is one of the database, which the next
        // durable write will meet too; what is owed stays in the keyring meanwhile, and no position
        // may say that it was paid.
        let paid = owed.inspect(|()| self.note_generation(generation));
        if let Err(error) = paid.and_then(|()| self.sync()) {
            tracing::warn!(%error, generation, "keyring changed, sync failed");
        }
        Ok(outcome)
    }

    /// Makes audit entries of `drafts`, which the keyring owes to the database.
    pub(super) fn note(keyring: &mut Keyring, notary: &Notary, drafts: Drafts) -> Result<()> {
        for draft in drafts {
            let head = (keyring.audit_entries, keyring.audit_hash);
            let times = (keyring.audit_at, keyring.time.wall);
            let (key, value, head) = notary.append(head, draft, times)?;
            (keyring.audit_entries, keyring.audit_hash) = head;
            keyring.audit_at = times.0.max(times.1);
            keyring.outbox.push(Owed { key, value });
        }
        Ok(())
    }

    pub(super) fn pay_outbox(&self, keyring: &Keyring) -> Result<()> {
        for Owed { key, value } in &keyring.outbox {
            self.storage.put(Space::System, key, Some(value.clone()))?;
        }
        Ok(())
    }

    /// Rebuilds what the org's gate gives out from the newest keyring, and waits for the
    /// writers inside.
    pub(crate) fn publish(&self, org: &OrgState) {
        let renewed = org.gate.renew(|before| {
            self.with_keyring(|keyring| {
                let entry = keyring.entry(org.id)?;
                Some(OrgKeys::new(entry, Arc::clone(&org.name), Some(before)))
            })
        });
        if renewed {
            failpoint::reach("keyring.published", &org.name);
        }
    }

    pub(crate) fn create_org(&self, name: &str, policy: OrgPolicy) -> Result<Arc<OrgState>> {
        let made = self.create_orgs(&[(name, policy)])?.pop();
        made.ok_or_else(|| Error::OrgUnknown { org: name.to_owned() })
    }

    /// Makes all of them in one change of the keyring, or none.
    pub(crate) fn create_orgs(&self, orgs: &[(&str, OrgPolicy)]) -> Result<Vec<Arc<OrgState>>> {
        self.check_open()?;
        if orgs.is_empty() {
            return Ok(Vec::new());
        }
        let made = self.change(None, |keyring, drafts| {
            let now = keyring.time.wall;
            let make = |(name, policy): &(&str, OrgPolicy)| {
                let mut id = [0; OrgId::LEN];
                material::random(&mut id)?;
                let id = OrgId::from_bytes(id);
                let (policy, material) = (policy.clone(), KeyMaterial::generate()?);
                let fingerprint = keyring.create_org(id, name, policy, material, now)?;
                let draft = Draft::new(AuditEvent::OrgCreated);
                drafts.push(draft.org(name, id).key(KeyVersion::FIRST, fingerprint));
                Ok(Arc::new(OrgState::new(keyring.org(name)?)))
            };
            orgs.iter().map(make).collect::<Result<Vec<_>>>()
        })?;
        let mut orgs = self.orgs.write().unwrap_or_else(PoisonError::into_inner);
        for org in &made {
            orgs.insert(org.name.to_string(), Arc::clone(org));
            tracing::info!(org = %org.name, id = %org.id, "org created");
        }
        Ok(made)
    }

    /// Installs and activates a key. What is refused is audited too.
    pub(crate) fn install(
        &self,
        org: &OrgState,
        material: KeyMaterial,
        origin: Origin,
    ) -> Result<Installed> {
        self.install_if(org, material, origin, |_, _| Ok(()))
    }

    /// Likewise, if `allow` has nothing against it: asked in the same change of the keyring, so
    /// that nobody installs another key meanwhile.
    pub(crate) fn install_if(
        &self,
        org: &OrgState,
        material: KeyMaterial,
        origin: Origin,
        allow: impl FnOnce(&mut OrgEntry, &mut Drafts) -> Result<()>,
    ) -> Result<Installed> {
        self.check_open()?;
        let fingerprint = material.fingerprint();
        let _span =
            tracing::info_span!("install", org = %org.name, %origin, %fingerprint).entered();
        let event = match origin {
            Origin::Customer => AuditEvent::KeyProvisioned,
            Origin::Platform => AuditEvent::PlatformKeyRotated,
        };
        let installed = self.change(None, |keyring, drafts| {
            allow(keyring.org_mut(org.id, &org.name)?, drafts)?;
            let now = keyring.time.wall;
            let installed = keyring.install((org.id, &org.name), material, origin, now)?;
            let draft = Draft::new(event).org(&org.name, org.id);
            drafts.push(draft.key(installed.to, fingerprint));
            Ok(installed)
        });
        match installed {
            Ok(installed) => {
                self.publish(org);
                let Installed { from, to, .. } = installed;
                tracing::info!(org = %org.name, %from, %to, %origin, %fingerprint, "key activated");
                Ok(installed)
            }
            Err(refused) => Err(self.audit_refusal(org, fingerprint, refused)),
        }
    }

    /// Gives each org that seals under a compromised platform key a new one, in one change of the
    /// keyring.
    pub(crate) fn replace_compromised(&self) -> Result<Vec<(Arc<OrgState>, Installed)>> {
        self.check_open()?;
        let is_meant = |entry: &OrgEntry, keyring: &Keyring| {
            let newest = entry.newest();
            let is_ours = newest.origin == Origin::Platform && newest.state == KeyState::Active;
            entry.is_seen() && is_ours && newest.is_compromised(&keyring.secret)
        };
        let meant = |keyring: &Keyring| {
            let orgs = keyring.orgs.iter().filter(|entry| is_meant(entry, keyring));
            orgs.map(|entry| (entry.id, entry.name.clone())).collect::<Vec<_>>()
        };
        if self.with_keyring(meant).is_empty() {
            return Ok(Vec::new());
        }
        let installed = self.change(None, |keyring, drafts| {
            let (orgs, now) = (meant(keyring), keyring.time.wall);
            let install = |(id, name): (OrgId, String)| {
                let material = KeyMaterial::generate()?;
                let installed = keyring.install((id, &name), material, Origin::Platform, now)?;
                let draft = Draft::new(AuditEvent::PlatformKeyRotated).org(&name, id);
                drafts.push(draft.key(installed.to, installed.fingerprint));
                Ok((id, name, installed))
            };
            orgs.into_iter().map(install).collect::<Result<Vec<_>>>()
        })?;
        let publish = |(id, name, installed): (OrgId, String, Installed)| {
            // One that was erased meanwhile has no key that is to be published.
            let org = self.org(&name).ok().filter(|org| org.id == id)?;
            self.publish(&org);
            tracing::info!(org = name, from = %installed.from, to = %installed.to, "key activated");
            Some((org, installed))
        };
        Ok(installed.into_iter().filter_map(publish).collect())
    }

    /// Notes a refused key, and gives the refusal back.
    pub(crate) fn audit_refusal(
        &self,
        org: &OrgState,
        fingerprint: crate::id::Fingerprint,
        refused: Error,
    ) -> Error {
        let Some(why) = KeyRefusal::of(&refused).filter(|_| refused.is_refused_key()) else {
            return refused;
        };
        tracing::warn!(org = %org.name, %fingerprint, error = %refused, "key refused");
        let noted = self.change(None, |_, drafts| {
            let mut draft = Draft::new(AuditEvent::KeyRefused { why }).org(&org.name, org.id);
            draft.fingerprint = Some(fingerprint);
            drafts.push(draft);
            Ok(())
        });
        if let Err(error) = noted {
            tracing::warn!(%error, "a refusal could not be audited");
        }
        refused
    }

    pub(crate) fn change_suite(&self, org: &OrgState, suite: Suite) -> Result<Suite> {
        self.check_open()?;
        let from = self.change(None, |keyring, drafts| {
            keyring.check_suite(&org.name, suite)?;
            let from = keyring.org_mut(org.id, &org.name)?.change_suite(suite)?;
            let event = AuditEvent::SuiteChanged { from, to: suite };
            drafts.push(Draft::new(event).org(&org.name, org.id));
            Ok(from)
        })?;
        self.publish(org);
        Ok(from)
    }

    /// Returns what was changed; a policy that changes nothing is not noted either.
    pub(crate) fn set_policy(
        &self,
        org: &OrgState,
        policy: OrgPolicy,
    ) -> Result<Vec<PolicyChange>> {
        self.check_open()?;
        policy.check()?;
        let is_same =
            |keyring: &Keyring| keyring.entry(org.id).is_some_and(|entry| entry.policy == policy);
        if self.with_keyring(is_same) {
            return Ok(Vec::new());
        }
        self.change(None, |keyring, drafts| {
            let entry = keyring.org_mut(org.id, &org.name)?;
            if policy.suite() != entry.suite {
                return Err(
                    entry.conflict("a policy does not change the suite: `change_suite` does")
                );
            }
            if policy.names() != entry.policy.names() {
                return Err(entry.conflict(
                    "whether names are clear or blinded is chosen when an org is created; create \
                     another org and copy the records there",
                ));
            }
            let changes = entry.policy.changes(&policy);
            entry.set_policy(policy);
            let event = AuditEvent::PolicyChanged { changes: changes.clone() };
            drafts.push(Draft::new(event).org(&org.name, org.id));
            Ok(changes)
        })
    }

    pub(crate) fn suspend(&self, org: &OrgState) -> Result<Vec<KeyVersion>> {
        self.check_open()?;
        let _span = tracing::info_span!("suspend", org = %org.name).entered();
        let versions = self.change(None, |keyring, drafts| {
            let entry = keyring.org_mut(org.id, &org.name)?;
            let versions = entry.suspend()?;
            for &version in &versions {
                let draft = Draft::new(AuditEvent::KeySuspended).org(&org.name, org.id);
                let fingerprint = entry.version(version).map(|v| v.fingerprint);
                drafts.push(Draft { version: Some(version), fingerprint, ..draft });
            }
            Ok(versions)
        })?;
        self.publish(org);
        tracing::warn!(org = %org.name, ?versions, "key suspended");
        Ok(versions)
    }

    pub(crate) fn resume(&self, org: &OrgState, material: KeyMaterial) -> Result<KeyVersion> {
        self.check_open()?;
        let fingerprint = material.fingerprint();
        let _span = tracing::info_span!("resume", org = %org.name, %fingerprint).entered();
        let resumed = self.change(None, |keyring, drafts| {
            let version = keyring.org_mut(org.id, &org.name)?.resume(material)?;
            let draft = Draft::new(AuditEvent::KeyResumed).org(&org.name, org.id);
            drafts.push(draft.key(version, fingerprint));
            Ok(version)
        });
        match resumed {
            Ok(version) => {
                self.publish(org);
                tracing::info!(org = %org.name, %version, "key resumed");
                Ok(version)
            }
            Err(refused) => Err(self.audit_refusal(org, fingerprint, refused)),
        }
    }

    /// Destroys every key of the org, durably, and forgets its name, if no record of it is missing:
    /// one that came back later would be certified as deleted. Its records are left to the caller.
    pub(crate) fn erase_org(&self, name: &str) -> Result<Arc<OrgState>> {
        self.check_open()?;
        let org = self.org(name)?;
        let _span = tracing::info_span!("erase_org", org = name).entered();
        if self.storage.verify(org.group())?.is_none() {
            return Err(self.nothing_destroyed(&org));
        }
        self.change(None, |keyring, drafts| {
            for version in keyring.erase(org.id, name, keyring.time.wall)? {
                let draft = Draft::new(AuditEvent::KeyErased).org(name, org.id);
                let entry = keyring.entry(org.id).and_then(|entry| entry.version(version));
                let fingerprint = entry.map(|entry| entry.fingerprint);
                drafts.push(Draft { version: Some(version), fingerprint, ..draft });
            }
            Ok(())
        })?;
        failpoint::reach("erase.keys_gone", name);
        org.mark_erased();
        let mut orgs = self.orgs.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have taken the name again already.
        if orgs.get(name).is_some_and(|held| Arc::ptr_eq(held, &org)) {
            orgs.remove(name);
        }
        drop(orgs);
        self.publish(&org);
        org.watchers.close();
        tracing::warn!(org = name, "org erased: its keys are destroyed");
        Ok(org)
    }

    /// Wraps the keyring under another root key.
    pub(crate) fn change_root_key(&self, root: RootKey) -> Result<()> {
        self.check_open()?;
        let fingerprint = root.fingerprint();
        let _span = tracing::info_span!("change_root_key", %fingerprint).entered();
        self.change(Some(root), |keyring, drafts| {
            keyring.refuse_reuse(fingerprint, KeyOf::Store)?;
            keyring.roots.push(fingerprint);
            let secret = keyring.secret.generation();
            let event =
                AuditEvent::RootKeyChanged { compromised: false, secret_before: secret, secret };
            let mut draft = Draft::new(event);
            draft.fingerprint = Some(fingerprint);
            drafts.push(draft);
            Ok(())
        })?;
        tracing::info!(%fingerprint, "root key changed");
        Ok(())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}
