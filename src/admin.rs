//! The operator's face: keys of orgs, rotations, certificates, the audit log.

mod backups;
mod foreign;
mod log;
mod nameless;
mod proofs;
mod status;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::audit::Certificate;
use crate::engine::{CompromisedKey, Engine, OrgState, compromised};
use crate::error::Result;
use crate::id::{Fingerprint, KeyVersion, Origin, Suite};
#[cfg(feature = "import")]
use crate::import::{ImportToken, SealedKey};
use crate::keyring::{Installed, OrgPolicy};
use crate::material::KeyMaterial;
use crate::observe::{Census, ClockStatus};
use crate::policy::PolicyChange;
use crate::rotation::{
    Erasure, HeaderCount, Leaving, Rotation, Rotations, Target, Throttle, release,
};
use crate::storage::{Space, prefix_range};

pub use backups::{BackupCopies, BackupRegister, RegisteredBackup};
pub use foreign::ForeignKeys;
pub use log::{AuditLog, OrgAuditLog};
pub use status::{KeyStatus, OrgStatus};
pub(crate) use status::{moment, status};

/// Keys of the store's orgs. From [`Store::keys`](crate::Store::keys).
#[derive(Clone)]
pub struct KeyAdmin {
    engine: Arc<Engine>,
    rotations: Arc<Rotations>,
}

impl KeyAdmin {
    pub(crate) fn new(engine: Arc<Engine>, rotations: Arc<Rotations>) -> Self {
        Self { engine, rotations }
    }

    /// Gives the org the key that it brought. When this returns, the key is on disk and every
    /// new write uses it; what was written before is re-encrypted in the background, and then
    /// the key before is retired.
    ///
    /// # Errors
    /// [`Error::NotEntitled`](crate::Error::NotEntitled),
    /// [`Error::KeyReused`](crate::Error::KeyReused),
    /// [`Error::OrgUnknown`](crate::Error::OrgUnknown),
    /// [`Error::KeyConflict`](crate::Error::KeyConflict) while its key is suspended.
    pub fn provision(&self, org: &str, material: KeyMaterial) -> Result<Rotation> {
        self.install(org, material, Origin::Customer)
    }

    /// Like [`provision`](Self::provision), for the key that the org announced: whoever
    /// brings the bytes and whoever tells the fingerprint must be one.
    ///
    /// # Errors
    /// [`Error::UnexpectedKey`](crate::Error::UnexpectedKey) for any other key, audited, before
    /// anything is changed; those of [`provision`](Self::provision).
    pub fn provision_expecting(
        &self,
        org: &str,
        material: KeyMaterial,
        expected: Fingerprint,
    ) -> Result<Rotation> {
        let given = material.fingerprint();
        if given != expected {
            self.engine.check_open()?;
            let state = self.engine.org(org)?;
            let refused = crate::Error::UnexpectedKey { expected, given };
            return Err(self.engine.audit_refusal(&state, given, refused));
        }
        self.provision(org, material)
    }

    /// Makes a token that the org can seal one key under, within `valid_for` (1 minute to 30
    /// days). It is public; its private half stays in the keyring, and is destroyed when the
    /// token is used or its time is up: by this machine's clock, or by time that the store has
    /// observed, whichever comes first. See [`ImportToken`] for the whole way of a key.
    ///
    /// # Errors
    /// [`Error::InvalidOption`](crate::Error::InvalidOption) for another time,
    /// [`Error::NotEntitled`](crate::Error::NotEntitled),
    /// [`Error::KeyConflict`](crate::Error::KeyConflict) if the org has 100 tokens that may
    /// still be used, [`Error::OrgUnknown`](crate::Error::OrgUnknown).
    #[cfg(feature = "import")]
    pub fn import_token(&self, org: &str, valid_for: Duration) -> Result<ImportToken> {
        let state = self.engine.org(org)?;
        self.engine.import_token(&state, valid_for)
    }

    /// Like [`provision`](Self::provision), for a key that travelled sealed. The token is used
    /// up in the same atomic step.
    ///
    /// Everybody who sees a token can seal a key under it: only the fingerprint, told by
    /// another channel, shows that the key is the org's. A key that differs from `expected` is
    /// refused, and the token can still be used.
    ///
    /// # Errors
    /// [`Error::Import`](crate::Error::Import) with an [`ImportError`](crate::ImportError) that
    /// tells what is wrong with the token or the sealed key;
    /// [`Error::UnexpectedKey`](crate::Error::UnexpectedKey), or
    /// [`Error::KeyMaterial`](crate::Error::KeyMaterial) where one is expected and this one is plainly
    /// not random; [`Error::NotEntitled`](crate::Error::NotEntitled),
    /// [`Error::KeyConflict`](crate::Error::KeyConflict) while the org's key is suspended. All
    /// are audited. The token is used up by a key that opens and is reused or, where none is
    /// expected, plainly not random; every other refusal leaves it usable.
    #[cfg(feature = "import")]
    pub fn provision_sealed(
        &self,
        org: &str,
        sealed: &SealedKey,
        expected: Option<Fingerprint>,
    ) -> Result<Rotation> {
        let state = self.engine.org(org)?;
        let leaving = Leaving::of(&self.engine, &state);
        let installed = self.engine.provision_sealed(&state, sealed, expected)?;
        Ok(self.begun(state, installed, leaving))
    }

    /// Replaces the org's platform key by a new one.
    ///
    /// # Errors
    /// [`Error::KeyConflict`](crate::Error::KeyConflict) if the org has a key of its own: use
    /// [`return_to_platform_key`](Self::return_to_platform_key), or ask it for a new key.
    pub fn rotate_platform_key(&self, org: &str) -> Result<Rotation> {
        self.new_platform_key(org, Origin::Platform)
    }

    /// Lists the keys in use that a leaked copy of the store has, by org name and version: those that
    /// were installed before the last
    /// [change of a compromised root key](crate::Store::change_compromised_root_key). A key leaves
    /// the list when it is retired.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let root = || KeyMaterial::generate().map(RootKey::from_material);
    /// # let store = Store::open(dir.path().join("data"), root()?)?;
    /// store.create_org("acme", OrgPolicy::byok())?;
    /// assert!(store.keys().compromised_keys().is_empty());
    /// store.change_compromised_root_key(root()?)?;
    /// assert_eq!(store.keys().compromised_keys()[0].org, "acme");
    /// for rotation in store.keys().rotate_compromised_keys()? {
    ///     rotation.wait()?;
    /// }
    /// assert!(store.keys().compromised_keys().is_empty());
    /// # Ok::<(), byokv::Error>(())
    /// ```
    #[must_use]
    pub fn compromised_keys(&self) -> Vec<CompromisedKey> {
        self.engine.with_keyring(compromised)
    }

    /// Gives each org that seals under a [compromised](Self::compromised_keys) platform key a new
    /// one, all in one change of the keyring. A customer's key is left: its owner has to bring
    /// another.
    ///
    /// # Errors
    /// [`Error::RandomUnavailable`](crate::Error::RandomUnavailable); disk errors of the machine.
    pub fn rotate_compromised_keys(&self) -> Result<Vec<Rotation>> {
        let orgs = self.compromised_keys().into_iter().filter(|key| key.seals);
        let orgs = orgs.filter_map(|key| self.engine.org(&key.org).ok());
        let mut leaving: HashMap<_, _> =
            orgs.map(|org| (org.id, Leaving::of(&self.engine, &org))).collect();
        let begun = self.engine.replace_compromised()?.into_iter().map(|(state, installed)| {
            let leaving = leaving.remove(&state.id).unwrap_or_default();
            self.begun(state, installed, leaving)
        });
        Ok(begun.collect())
    }

    /// Replaces the org's own key by a new platform key.
    ///
    /// # Errors
    /// [`Error::KeyConflict`](crate::Error::KeyConflict) if it has a platform key already.
    pub fn return_to_platform_key(&self, org: &str) -> Result<Rotation> {
        self.new_platform_key(org, Origin::Customer)
    }

    /// Changes the algorithm of the org's values; the key stays. Re-encrypts like any rotation,
    /// and certifies that nothing is left under the suite before.
    ///
    /// # Errors
    /// [`Error::KeyConflict`](crate::Error::KeyConflict) if it has this suite already.
    pub fn change_suite(&self, org: &str, suite: Suite) -> Result<Rotation> {
        let state = self.engine.org(org)?;
        let leaving = Leaving::of(&self.engine, &state);
        let before = self.engine.change_suite(&state, suite)?;
        self.rotations.wake(&state);
        Ok(Rotation::new(Arc::clone(&self.rotations), state, Target::Suite(before), leaving))
    }

    /// Withholds the keys that the org brought: their material leaves the keyring and memory.
    /// Reads and writes of this org that need them fail with
    /// [`Error::KeySuspended`](crate::Error::KeySuspended), its rotations wait, other orgs do
    /// not notice. Nothing is lost, nor can be deleted by name: [`resume`](Self::resume) takes the same key back.
    ///
    /// # Errors
    /// [`Error::KeyConflict`](crate::Error::KeyConflict) if it has no key of its own.
    pub fn suspend(&self, org: &str) -> Result<Vec<KeyVersion>> {
        self.engine.suspend(&*self.engine.org(org)?)
    }

    /// Takes the material of a suspended key back.
    ///
    /// # Errors
    /// [`Error::WrongKey`](crate::Error::WrongKey) for any other material.
    pub fn resume(&self, org: &str, material: KeyMaterial) -> Result<KeyVersion> {
        let state = self.engine.org(org)?;
        let version = self.engine.resume(&state, material)?;
        if self.rotations.is_rotating(&state) {
            self.rotations.wake(&state);
        }
        Ok(version)
    }

    /// Lets versions go that the org's policy holds before their retirement
    /// ([`RetirePolicy`](crate::RetirePolicy)). It is proven once more that no record is left
    /// under them; then they are retired.
    ///
    /// # Errors
    /// [`Error::KeyConflict`](crate::Error::KeyConflict) if none is held.
    pub fn retire(&self, org: &str) -> Result<Rotation> {
        let state = self.engine.org(org)?;
        let leaving = Leaving::of(&self.engine, &state);
        let versions = release(&self.engine, &state)?;
        self.rotations.wake(&state);
        let newest = versions.last().copied().map(Target::Version);
        let target = newest.ok_or(crate::Error::OrgUnknown { org: org.to_owned() })?;
        Ok(Rotation::new(Arc::clone(&self.rotations), state, target, leaving))
    }

    /// Erases an org: when this returns, every key that it had is destroyed, durably, and its
    /// name is free; with what the store has, nobody can read its records any more. They are then
    /// deleted in the background, across restarts, until a certificate says that none is left.
    /// There is no way back. Reads all records of the org first, to see that none is missing.
    ///
    /// # Errors
    /// [`Error::OrgUnknown`](crate::Error::OrgUnknown); [`Error::RolledBack`](crate::Error::RolledBack)
    /// if a record of the org is missing or older than it was, and no key was destroyed; disk errors
    /// of the machine.
    pub fn erase_org(&self, org: &str) -> Result<Erasure> {
        let state = self.engine.erase_org(org)?;
        self.rotations.erase(&state);
        Ok(Erasure::new(Arc::clone(&self.rotations), state))
    }

    /// Every erasure that has not ended: also one that was begun before the store was last
    /// opened. In the order in which the orgs were made.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed).
    pub fn erasures(&self) -> Result<Vec<Erasure>> {
        self.engine.check_open()?;
        let orgs = self.engine.half_erased().into_iter();
        Ok(orgs.map(|org| Erasure::new(Arc::clone(&self.rotations), org)).collect())
    }

    /// Changes what the org may do, and returns each setting that is another one now, as the audit
    /// log notes it. A key that it brought stays.
    ///
    /// A weakened policy destroys nothing by itself: a key that was replaced already is retired by the
    /// strictest policy that the org has had since ([`KeyStatus::retires`]), also if it is not held
    /// yet. [`retire`](Self::retire) lets a held key go before its time.
    ///
    /// # Errors
    /// [`Error::KeyConflict`](crate::Error::KeyConflict) if the policy names another suite or
    /// [`NamePolicy`](crate::NamePolicy) than the org has; [`Error::InvalidOption`](crate::Error::InvalidOption) for a limit that every
    /// key is beyond.
    pub fn set_policy(&self, org: &str, policy: OrgPolicy) -> Result<Vec<PolicyChange>> {
        let state = self.engine.org(org)?;
        let changes = self.engine.set_policy(&state, policy)?;
        // What is held may have to stay longer now.
        if self.rotations.is_rotating(&state) {
            self.rotations.wake(&state);
        }
        Ok(changes)
    }

    /// The rotation of `org` that is under way, if one is: also one that was begun before the
    /// store was last opened.
    ///
    /// # Errors
    /// [`Error::OrgUnknown`](crate::Error::OrgUnknown).
    pub fn rotation(&self, org: &str) -> Result<Option<Rotation>> {
        let state = self.engine.org(org)?;
        let leaving = Leaving::of(&self.engine, &state);
        let target = self.engine.with_keyring(|keyring| {
            let entry = keyring.org(org)?;
            let version = entry.leaving().into_iter().next_back().map(Target::Version);
            Ok::<_, crate::Error>(version.or(entry.suite_before.map(Target::Suite)))
        })?;
        Ok(target.map(|target| Rotation::new(Arc::clone(&self.rotations), state, target, leaving)))
    }

    /// Every rotation that is under way, by org name. Each ends with the newest version that is on
    /// its way out; an older one that was suspended until a moment ago may take another pass, and is
    /// given by the next call.
    ///
    /// # Errors
    /// Those of [`rotation`](Self::rotation).
    pub fn rotations(&self) -> Result<Vec<Rotation>> {
        let orgs = self.engine.orgs();
        orgs.iter().filter_map(|org| self.rotation(&org.name).transpose()).collect()
    }

    /// Limits what rotations use, from now on, also over a restart that does not set another
    /// limit in its [`Options`](crate::Options).
    ///
    /// # Errors
    /// Disk errors of the machine: it is limited, but not over a restart.
    pub fn set_throttle(&self, throttle: Throttle) -> Result<()> {
        self.rotations.set_throttle(throttle)
    }

    /// The limit of what rotations use.
    #[must_use]
    pub fn throttle(&self) -> Throttle {
        self.rotations.throttle()
    }

    /// The keys of one org.
    ///
    /// # Errors
    /// [`Error::OrgUnknown`](crate::Error::OrgUnknown).
    pub fn status(&self, org: &str) -> Result<OrgStatus> {
        let now = moment(&self.engine);
        self.engine.with_keyring(|keyring| Ok(status(keyring.org(org)?, keyring, now)))
    }

    /// Returns what the store makes of this machine's clock.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// let clock = store.keys().clock();
    /// assert_eq!((clock.uncounted_ms, clock.behind_log_ms, clock.jumps), (0, 0, 0));
    /// # Ok::<(), byokv::Error>(())
    /// ```
    #[must_use]
    pub fn clock(&self) -> ClockStatus {
        self.engine.clock_status()
    }

    /// Confirms that the time that passed by the wall clock alone
    /// ([`ClockStatus::uncounted_ms`]) has really passed, as when the machine was off for a month:
    /// it counts from now on for the holds, ages of keys and import tokens that had begun before.
    /// Returns how much, zero if there is none; audited. Keys whose hold is over by that are
    /// retired once it is proven anew that no record needs them.
    ///
    /// # Errors
    /// [`Error::ClockBefore1970`](crate::Error::ClockBefore1970); disk errors of the machine.
    pub fn confirm_clock(&self) -> Result<Duration> {
        let counted = self.engine.confirm_clock()?;
        for org in self.engine.rotating() {
            self.rotations.wake(&org);
        }
        Ok(Duration::from_millis(counted))
    }

    /// Counts the org's records by key version and suite, from their headers alone.
    ///
    /// # Errors
    /// Disk errors of the machine.
    pub fn census(&self, org: &str) -> Result<Census> {
        HeaderCount::run(&self.engine, &*self.engine.org(org)?)
    }

    /// Every certificate in the store, by org id and version. One that does not open, or is not
    /// authentic, is an error in its place. Reads the audit log if one of them was made before the last
    /// [change of a compromised root key](crate::Store::change_compromised_root_key).
    pub fn certificates(&self) -> impl Iterator<Item = Result<Certificate>> + use<> {
        self.certificates_below(Certificate::PREFIX)
    }

    fn certificates_below(
        &self,
        prefix: &[u8],
    ) -> impl Iterator<Item = Result<Certificate>> + use<> {
        let engine = Arc::clone(&self.engine);
        let all = engine.storage.scan(Space::System, prefix_range(prefix));
        let vouched = std::cell::OnceCell::new();
        let keys = self.clone();
        all.map(move |pair| {
            let (key, stored) = pair?;
            let why = "it is damaged in the database";
            let (certificate, _) = engine
                .open_certificate(&key, &stored)?
                .ok_or(crate::Error::CertificateInvalid { why })?;
            let vouched = || match vouched.get() {
                Some(vouched) => Ok(vouched),
                None => keys.vouched_certificates().map(|read| vouched.get_or_init(|| read)),
            };
            engine.authenticate(&certificate, vouched).map(|()| certificate)
        })
    }

    fn install(&self, org: &str, material: KeyMaterial, origin: Origin) -> Result<Rotation> {
        let state = self.engine.org(org)?;
        let leaving = Leaving::of(&self.engine, &state);
        let installed = self.engine.install(&state, material, origin)?;
        Ok(self.begun(state, installed, leaving))
    }

    fn begun(&self, state: Arc<OrgState>, installed: Installed, leaving: Leaving) -> Rotation {
        self.rotations.wake(&state);
        let target = Target::Version(installed.from);
        Rotation::new(Arc::clone(&self.rotations), state, target, leaving)
    }

    fn new_platform_key(&self, org: &str, replacing: Origin) -> Result<Rotation> {
        let state = self.engine.org(org)?;
        let material = KeyMaterial::generate()?;
        let leaving = Leaving::of(&self.engine, &state);
        let installed =
            self.engine.install_if(&state, material, Origin::Platform, |entry, _| {
                match (entry.newest().origin, replacing) {
                (Origin::Customer, Origin::Platform) => Err(entry.conflict(
                    "it has a key of its own; ask it for a new one, or return it to a platform key",
                )),
                (Origin::Platform, Origin::Customer) => {
                    Err(entry.conflict("it has a platform key already"))
                }
                _ => Ok(()),
            }
            })?;
        Ok(self.begun(state, installed, leaving))
    }
}

impl fmt::Debug for KeyAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyAdmin").finish_non_exhaustive()
    }
}
