//! All orgs, their key versions and states: pure transitions, no I/O.

mod backups;
mod delivery;
mod encoding;
mod foreign;
mod names;
#[cfg(feature = "backup")]
mod restore;
pub(crate) mod root;
mod rules;
mod secret;
#[cfg(test)]
mod tests;
mod tokens;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::id::{Due, Fingerprint, KeyState, KeyVersion, OrgId, Origin, Suite};
use crate::material::KeyMaterial;
use crate::policy::RetirePolicy;
use crate::time::observed::Seen;

pub(crate) use backups::{Backups, RestoredFrom, Treatment, Treatments, UnderWay};
pub use delivery::KeyFile;
#[cfg(feature = "backup")]
pub(crate) use foreign::sorted;
pub(crate) use foreign::{ForeignKeys, KeyOf};
pub(crate) use names::Looks;
#[cfg(feature = "backup")]
pub(crate) use restore::{Newcomer, OrgHistory};
pub use rules::{NamePolicy, OrgPolicy};
pub(crate) use secret::StoreSecret;
#[cfg(feature = "import")]
pub(crate) use tokens::LiveToken;
use tokens::Tokens;

/// What the keyring file holds once it is opened.
#[derive(Serialize, Deserialize)]
pub(crate) struct Keyring {
    /// Random identity of the store: parts of two stores never fit together.
    pub(crate) store: OrgId,
    /// Only suites that FIPS 140-3 approves. Chosen at each opening, not stored.
    #[serde(skip)]
    pub(crate) fips_mode: bool,
    /// Source of the keys for what the store keeps of itself.
    pub(crate) secret: StoreSecret,
    /// Rises by one with each replacement of the file.
    pub(crate) generation: u64,
    /// Durable syncs of the store when this generation was written.
    pub(crate) syncs: u64,
    /// Audit entries written so far, and the hash of the last.
    pub(crate) audit_entries: u64,
    #[serde(with = "crate::id::hex_array")]
    pub(crate) audit_hash: [u8; 32],
    /// Time of the last audit entry, milliseconds since 1970: no later one has an earlier time.
    pub(crate) audit_at: u64,
    /// What was seen of time when this generation was written. While the keyring is being changed
    /// it is the present.
    pub(crate) time: Seen,
    /// Writes to the database that became true with this keyring: they are made again at each
    /// open until a later generation knows them to be durable.
    pub(crate) outbox: Vec<Owed>,
    /// Number of the database's directory.
    pub(crate) database: u32,
    /// Every root key that the store had, so that none becomes an org's.
    pub(crate) roots: Vec<Fingerprint>,
    pub(crate) orgs: Vec<OrgEntry>,
    /// Under which keys may come in sealed.
    pub(crate) tokens: Tokens,
    /// Keys that backups were sealed under, so that none becomes an org's.
    pub(crate) backup_keys: Vec<Fingerprint>,
    /// Keys that other stores knew when the backups were made that were restored here.
    pub(crate) foreign: Vec<ForeignKeys>,
    pub(crate) backups: Backups,
    /// What the orgs' names look like, once a change has asked for that.
    #[serde(skip)]
    pub(crate) looks: Option<Looks>,
}

/// A write to the database's system space that the keyring owes.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Owed {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct OrgEntry {
    pub(crate) id: OrgId,
    pub(crate) name: String,
    pub(crate) policy: OrgPolicy,
    /// The suite that new values are sealed with.
    pub(crate) suite: Suite,
    /// The suite before, while records may be left under it.
    pub(crate) suite_before: Option<Suite>,
    /// Milliseconds since 1970.
    pub(crate) created: u64,
    /// Ascending; the last one seals, unless it is suspended.
    pub(crate) versions: Vec<VersionEntry>,
    /// Erased orgs stay for ever, so that neither their id nor their keys come again; their
    /// name is free.
    pub(crate) erasure: Option<Erasure>,
    /// Restored orgs: which orgs it was before, each restored from a backup of the one before.
    pub(crate) ancestors: Vec<OrgId>,
    /// It comes from a backup and is not whole yet: nobody may see it.
    pub(crate) is_restoring: bool,
    pub(crate) restored_from: Option<RestoredFrom>,
    /// How backups of the whole store treat it, and treated it.
    pub(crate) treatments: Treatments,
    /// How many backups that were asked for it by name the register has.
    pub(crate) registered: u64,
}

/// How far the erasure of an org has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Erasure {
    /// Every key is destroyed; records may be left that nobody can open.
    KeysDestroyed,
    RecordsDeleted,
}

/// One key of one org. Stays for ever; only the material goes.
#[derive(Serialize, Deserialize)]
pub(crate) struct VersionEntry {
    pub(crate) version: KeyVersion,
    pub(crate) origin: Origin,
    pub(crate) state: KeyState,
    pub(crate) fingerprint: Fingerprint,
    #[serde(with = "encoding::optional_material")]
    pub(crate) material: Option<KeyMaterial>,
    /// Milliseconds since 1970.
    pub(crate) created: u64,
    /// The store's observed clock then, milliseconds: its age is counted from there.
    pub(crate) observed: u64,
    pub(crate) retired: Option<u64>,
    /// Whether it is held before its retirement.
    pub(crate) held: Option<Hold>,
    /// An operator said that it may go.
    pub(crate) released: bool,
    /// Of a version that was replaced: the strictest policy that the org has had since.
    pub(crate) retire_by: Option<RetirePolicy>,
    /// Nothing sealed under it was left in the database's files when they were last searched.
    pub(crate) residue_erased: bool,
    /// Since when it is known that it is due, milliseconds since 1970, and why.
    pub(crate) due: Option<(u64, Due)>,
    /// A backup says that the org had it elsewhere: it never had material here.
    pub(crate) inherited: bool,
    /// Generation of the store's secret when it was installed.
    pub(crate) secret_generation: u32,
}

/// Since when a version is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hold {
    /// Milliseconds since 1970, for people.
    pub(crate) since: u64,
    /// The store's observed clock then, milliseconds: the hold is counted from there.
    pub(crate) observed: u64,
}

/// What installing a key did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Installed {
    pub(crate) from: KeyVersion,
    pub(crate) to: KeyVersion,
    pub(crate) fingerprint: Fingerprint,
}

impl Keyring {
    pub(crate) fn new(root: Fingerprint) -> Result<Self> {
        let mut store = [0; OrgId::LEN];
        crate::material::random(&mut store)?;
        Ok(Self {
            store: OrgId::from_bytes(store),
            fips_mode: false,
            secret: StoreSecret::generate()?,
            generation: 0,
            syncs: 0,
            audit_entries: 0,
            audit_hash: [0; 32],
            audit_at: 0,
            time: Seen::default(),
            outbox: Vec::new(),
            database: 0,
            roots: vec![root],
            orgs: Vec::new(),
            tokens: Tokens::default(),
            backup_keys: Vec::new(),
            foreign: Vec::new(),
            backups: Backups::default(),
            looks: None,
        })
    }

    /// Name of the directory of the database of this number.
    pub(crate) fn database_name(number: u32) -> String {
        if number == 0 { "db".to_owned() } else { format!("db.{number}") }
    }

    /// A copy to change and save; it replaces this one once it is on disk.
    pub(crate) fn duplicate(&self) -> Self {
        let versions = |org: &OrgEntry| {
            let copy = |v: &VersionEntry| VersionEntry {
                material: v.material.as_ref().map(KeyMaterial::duplicate),
                ..*v
            };
            org.versions.iter().map(copy).collect()
        };
        let copy = |org: &OrgEntry| OrgEntry {
            name: org.name.clone(),
            policy: org.policy.clone(),
            versions: versions(org),
            ancestors: org.ancestors.clone(),
            treatments: org.treatments.clone(),
            ..*org
        };
        Self {
            secret: self.secret.duplicate(),
            time: self.time.clone(),
            outbox: self.outbox.clone(),
            roots: self.roots.clone(),
            orgs: self.orgs.iter().map(copy).collect(),
            tokens: self.tokens.duplicate(),
            backup_keys: self.backup_keys.clone(),
            foreign: self.foreign.clone(),
            backups: self.backups.clone(),
            looks: None,
            ..*self
        }
    }

    /// By name, as users know orgs; one that is erased or not whole yet is unknown.
    pub(crate) fn org(&self, name: &str) -> Result<&OrgEntry> {
        let unknown = || Error::OrgUnknown { org: name.to_owned() };
        let mut named = self.orgs.iter().filter(|org| org.is_seen());
        named.find(|org| org.name == name).ok_or_else(unknown)
    }

    /// By id, erased or not.
    pub(crate) fn entry(&self, id: OrgId) -> Option<&OrgEntry> {
        self.orgs.iter().find(|org| org.id == id)
    }

    /// Checks that this build, in its mode, may work with the suite.
    pub(crate) fn check_suite(&self, org: &str, suite: Suite) -> Result<()> {
        rules::check_suite(self.fips_mode, org, suite)
    }

    /// Checks that this build, in its mode, may work with every org's suite.
    pub(crate) fn check_suites(&self) -> Result<()> {
        let seen = self.orgs.iter().filter(|org| org.is_seen());
        let mut suites = seen.flat_map(|org| {
            std::iter::once(org.suite).chain(org.suite_before).map(|suite| (&org.name, suite))
        });
        suites.try_for_each(|(name, suite)| self.check_suite(name, suite))
    }

    /// The entry of a handle's org, to change it.
    pub(crate) fn org_mut(&mut self, id: OrgId, name: &str) -> Result<&mut OrgEntry> {
        match self.orgs.iter_mut().find(|org| org.id == id) {
            Some(org) if org.erasure.is_none() => Ok(org),
            Some(_) => Err(Error::OrgErased { org: name.to_owned() }),
            None => Err(Error::OrgUnknown { org: name.to_owned() }),
        }
    }

    /// Destroys every key of the org, in whatever state it is.
    pub(crate) fn erase(&mut self, id: OrgId, name: &str, now: u64) -> Result<Vec<KeyVersion>> {
        let destroyed = self.org_mut(id, name)?.destroy_keys(now);
        self.looks = None;
        self.end_tokens_of(id, now);
        Ok(destroyed)
    }

    /// Counts the time that passed by the wall clock alone, for what had begun before it. Returns
    /// how much, in milliseconds.
    pub(crate) fn confirm_time(&mut self) -> u64 {
        let confirmed = self.time.confirm();
        for version in self.orgs.iter_mut().flat_map(|org| &mut org.versions) {
            version.observed = confirmed.moved(version.observed);
            if let Some(hold) = &mut version.held {
                hold.observed = confirmed.moved(hold.observed);
            }
        }
        self.tokens.confirm(&confirmed);
        confirmed.total()
    }

    /// Adds an org under its first platform key.
    pub(crate) fn create_org(
        &mut self,
        id: OrgId,
        name: &str,
        policy: OrgPolicy,
        material: KeyMaterial,
        now: u64,
    ) -> Result<Fingerprint> {
        policy.check()?;
        let free = self.free_name(name)?;
        if self.entry(id).is_some() {
            return Err(Error::OrgExists { org: name.to_owned() });
        }
        let fingerprint = material.fingerprint();
        self.refuse_reuse(fingerprint, KeyOf::Org { id, ancestors: &[] })?;
        let suite = policy.suite();
        self.check_suite(name, suite)?;
        let version = KeyVersion::FIRST;
        let times = (now, self.time.observed);
        let generation = self.secret.generation();
        let first = VersionEntry::active((version, Origin::Platform), material, times, generation);
        self.orgs.push(OrgEntry {
            id,
            name: free.name.clone(),
            policy,
            suite,
            suite_before: None,
            created: now,
            versions: vec![first],
            erasure: None,
            ancestors: Vec::new(),
            is_restoring: false,
            restored_from: None,
            treatments: Treatments::default(),
            registered: 0,
        });
        self.note_taken(free);
        Ok(fingerprint)
    }

    /// Makes `material` the org's active key; the one before opens only.
    pub(crate) fn install(
        &mut self,
        (id, name): (OrgId, &str),
        material: KeyMaterial,
        origin: Origin,
        now: u64,
    ) -> Result<Installed> {
        let org = self.org_mut(id, name)?;
        if origin == Origin::Customer && !org.policy.may_bring_key() {
            return Err(Error::NotEntitled { org: name.to_owned() });
        }
        let ancestors = org.ancestors.clone();
        let fingerprint = material.fingerprint();
        self.refuse_reuse(fingerprint, KeyOf::Org { id, ancestors: &ancestors })?;
        let times = (now, self.time.observed);
        let generation = self.secret.generation();
        let org = self.org_mut(id, name)?;
        if org.newest().state != KeyState::Active {
            return Err(org.conflict("its key is suspended; resume it first"));
        }
        let from = org.newest().version;
        let to = from.next().ok_or_else(|| org.conflict("its version numbers are used up"))?;
        org.transition(from, KeyState::DecryptOnly)?;
        let policy = org.policy.retire();
        org.note(from, |replaced| replaced.retire_by = Some(policy))?;
        org.versions.push(VersionEntry::active((to, origin), material, times, generation));
        Ok(Installed { from, to, fingerprint })
    }
}

impl OrgEntry {
    /// The version that seals, or would if it were not suspended. Every org has one: it is
    /// created with the org and only ever followed by a newer one.
    #[allow(clippy::expect_used)]
    pub(crate) fn newest(&self) -> &VersionEntry {
        self.versions.last().expect("an org has at least its first version")
    }

    pub(crate) fn version(&self, version: KeyVersion) -> Option<&VersionEntry> {
        self.versions.iter().find(|entry| entry.version == version)
    }

    /// Whether it can be had by name.
    pub(crate) fn is_seen(&self) -> bool {
        self.erasure.is_none() && !self.is_restoring
    }

    /// Versions that still may have records and are not the newest.
    pub(crate) fn leaving(&self) -> Vec<KeyVersion> {
        let newest = self.newest().version;
        let leaving = |v: &&VersionEntry| v.version != newest && v.state != KeyState::Retired;
        self.versions.iter().filter(leaving).map(|v| v.version).collect()
    }

    /// Whether records may be left that the rotation has to rewrite.
    pub(crate) fn is_rotating(&self) -> bool {
        self.suite_before.is_some() || !self.leaving().is_empty()
    }

    /// Likewise, without those that are only held: none of their records is left.
    pub(crate) fn is_rewriting(&self) -> bool {
        let newest = self.newest().version;
        let rewritten = |v: &VersionEntry| v.state == KeyState::Retired || v.held.is_some();
        let mut older = self.versions.iter().filter(|v| v.version != newest);
        self.suite_before.is_some() || !older.all(rewritten)
    }

    /// Destroys the material of a version that has no record left. The caller proves that.
    pub(crate) fn retire(&mut self, version: KeyVersion, now: u64) -> Result<()> {
        self.transition(version, KeyState::Retired)?;
        let entry = self.entry_mut(version)?;
        entry.material = None;
        entry.retired = Some(now);
        Ok(())
    }

    /// Changes what is noted of a version besides its state.
    pub(crate) fn note(
        &mut self,
        version: KeyVersion,
        note: impl FnOnce(&mut VersionEntry),
    ) -> Result<()> {
        self.entry_mut(version).map(note)
    }

    /// Withholds the material of every version that the customer brought.
    pub(crate) fn suspend(&mut self) -> Result<Vec<KeyVersion>> {
        let held = |v: &&VersionEntry| v.origin == Origin::Customer && v.material.is_some();
        let versions: Vec<_> = self.versions.iter().filter(held).map(|v| v.version).collect();
        if versions.is_empty() {
            return Err(self.conflict("it has no key of its own that could be suspended"));
        }
        for &version in &versions {
            self.transition(version, KeyState::Suspended)?;
            let entry = self.entry_mut(version)?;
            entry.material = None;
            // A hold shows who still needs the key; while it is suspended nobody can.
            (entry.held, entry.released) = (None, false);
        }
        Ok(versions)
    }

    /// Gives a suspended version its material back.
    pub(crate) fn resume(&mut self, material: KeyMaterial) -> Result<KeyVersion> {
        let given = material.fingerprint();
        let suspended = || self.versions.iter().filter(|v| v.state == KeyState::Suspended);
        let Some(found) = suspended().find(|v| v.fingerprint == given) else {
            return Err(match suspended().next_back() {
                Some(last) => Error::WrongKey {
                    org: self.name.clone(),
                    version: last.version,
                    expected: last.fingerprint,
                    given,
                },
                None => self.conflict("none of its keys is suspended"),
            });
        };
        let version = found.version;
        let newest = version == self.newest().version;
        let state = if newest { KeyState::Active } else { KeyState::DecryptOnly };
        self.transition(version, state)?;
        self.entry_mut(version)?.material = Some(material);
        Ok(version)
    }

    fn transition(&mut self, version: KeyVersion, to: KeyState) -> Result<()> {
        let from = self.entry_mut(version)?.state;
        match rules::refusal(from, to) {
            None => {
                self.entry_mut(version)?.state = to;
                Ok(())
            }
            Some(why) => Err(self.conflict(why)),
        }
    }

    fn entry_mut(&mut self, version: KeyVersion) -> Result<&mut VersionEntry> {
        match self.versions.iter().position(|entry| entry.version == version) {
            Some(index) => Ok(&mut self.versions[index]),
            None => Err(self.conflict("it never had this key version")),
        }
    }

    pub(crate) fn conflict(&self, why: &'static str) -> Error {
        Error::KeyConflict { org: self.name.clone(), why }
    }
}

impl VersionEntry {
    fn active(
        (version, origin): (KeyVersion, Origin),
        material: KeyMaterial,
        (created, observed): (u64, u64),
        secret_generation: u32,
    ) -> Self {
        Self {
            version,
            origin,
            state: KeyState::Active,
            fingerprint: material.fingerprint(),
            material: Some(material),
            created,
            observed,
            retired: None,
            held: None,
            released: false,
            retire_by: None,
            residue_erased: false,
            due: None,
            inherited: false,
            secret_generation,
        }
    }

    /// Returns true if it is in use and a copy of the store holds it that a change of a compromised
    /// root key was made against.
    pub(crate) fn is_compromised(&self, secret: &StoreSecret) -> bool {
        self.state != KeyState::Retired && self.secret_generation < secret.generation()
    }
}
