//! The store: opening, closing, and the threads that work behind it.

#[cfg(feature = "backup")]
mod backup;
mod options;
#[cfg(feature = "backup")]
mod restore;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};

use crate::admin::{KeyAdmin, OrgStatus, moment, status};
use crate::engine::{Engine, Inspection, Residue, ResidueErased, SecretReplaced};
use crate::error::{Error, Result};
use crate::id::{OrgId, StorePosition};
use crate::keyring::OrgPolicy;
use crate::keyring::root::RootKey;
use crate::observe::{Metrics, OrgMetrics, VersionMetrics};
use crate::org::Org;
use crate::rotation::{Phase, Rotations, WorkerThread};

#[cfg(feature = "backup")]
pub use backup::Backup;
pub use options::Options;
#[cfg(feature = "backup")]
pub use restore::{RecordSelection, Restore, Restored, RestoredOrg, RestoredRecords};

/// One data directory, opened by one process. Share it in an `Arc`, or hand out [`Org`]s.
///
/// Dropping it closes it like [`close`](Self::close), with errors only logged. The directory
/// stays locked until the last handle from it is dropped too.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let data = dir.path().join("data");
/// use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
///
/// let store = Store::open(data, RootKey::from_material(KeyMaterial::generate()?))?;
/// let acme = store.create_org("acme", OrgPolicy::byok())?;
/// acme.put("clusters/prod/token", "s3cret")?;
/// store.close()?;
/// # Ok::<(), byokv::Error>(())
/// ```
pub struct Store {
    engine: Arc<Engine>,
    rotations: Arc<Rotations>,
    worker: WorkerThread,
    syncer: Syncer,
}

impl Store {
    /// Opens the store in `dir`, or makes it, with default [`Options`].
    ///
    /// # Errors
    /// Those of [`Options::open`].
    pub fn open(dir: impl AsRef<Path>, root: RootKey) -> Result<Self> {
        Options::new().open(dir, root)
    }

    /// Makes an org under a platform key of its own.
    ///
    /// Its name is 1 to 128 bytes of text that people can read and tell apart: letters and digits
    /// that Unicode recommends for names (TR39), the punctuation of ASCII and single spaces inside,
    /// in normalization form C, no word of several scripts. It must not look like the name of
    /// another org by the skeletons of TR39, as `acme1` looks like `acmel`.
    ///
    /// # Errors
    /// [`Error::OrgExists`], [`Error::OrgLooksAlike`], [`Error::InvalidOrgName`],
    /// [`Error::InvalidOption`], [`Error::RandomUnavailable`]; [`Error::SuiteNotBuilt`]; in FIPS mode
    /// [`Error::SuiteNotApproved`]; disk
    /// errors of the machine.
    pub fn create_org(&self, name: &str, policy: OrgPolicy) -> Result<Org> {
        let state = self.engine.create_org(name, policy)?;
        Ok(Org::new(Arc::clone(&self.engine), state))
    }

    /// Makes many orgs at once, or none of them. Each change writes the whole keyring anew, so
    /// 10,000 orgs one by one write some gigabytes, and at once some megabytes.
    ///
    /// # Errors
    /// Those of [`create_org`](Self::create_org), for the first name that has one.
    pub fn create_orgs(&self, orgs: &[(&str, OrgPolicy)]) -> Result<Vec<Org>> {
        let made = self.engine.create_orgs(orgs)?;
        Ok(made.into_iter().map(|state| Org::new(Arc::clone(&self.engine), state)).collect())
    }

    /// The org of this name.
    ///
    /// # Errors
    /// [`Error::OrgUnknown`].
    pub fn org(&self, name: &str) -> Result<Org> {
        Ok(Org::new(Arc::clone(&self.engine), self.engine.org(name)?))
    }

    /// Every org with its keys, by name.
    #[must_use]
    pub fn orgs(&self) -> Vec<OrgStatus> {
        let now = moment(&self.engine);
        let mut orgs: Vec<_> = self.engine.with_keyring(|keyring| {
            let seen = keyring.orgs.iter().filter(|org| org.is_seen());
            seen.map(|entry| status(entry, keyring, now)).collect()
        });
        orgs.sort_by(|a: &OrgStatus, b| a.name.cmp(&b.name));
        orgs
    }

    /// Keys, rotations, certificates and the audit log.
    #[must_use]
    pub fn keys(&self) -> KeyAdmin {
        KeyAdmin::new(Arc::clone(&self.engine), Arc::clone(&self.rotations))
    }

    /// Returns when everything that was written before would survive a power cut.
    ///
    /// # Errors
    /// Disk errors of the machine.
    pub fn sync(&self) -> Result<()> {
        self.engine.sync()
    }

    /// Checks that every record is there and none is older than it was, by a digest of all that the
    /// store has written: what opening each record cannot tell, and sled's recovery may have got
    /// wrong after a kill if its files were damaged. Reads everything, and holds up no write. Opening
    /// a store that was not closed does the same.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// store.create_org("acme", OrgPolicy::byok())?.put("token", "s3cret")?;
    /// store.verify()?;
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::RolledBack`], which names every org that is not whole; disk errors of the machine.
    pub fn verify(&self) -> Result<()> {
        self.engine.verify()
    }

    /// Checks by the digest that no record of one org is missing or older than it was, as
    /// [`verify`](Self::verify) does of all of them. Reads the org's records, and holds up no write.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// store.create_org("acme", OrgPolicy::byok())?.put("token", "s3cret")?;
    /// store.verify_org("acme")?;
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OrgUnknown`], [`Error::RolledBack`]; disk errors of the machine.
    pub fn verify_org(&self, org: &str) -> Result<()> {
        self.engine.verify_org(&*self.engine.org(org)?).map(drop)
    }

    /// Accepts that records of an org are missing or older than they were: what it holds now is taken
    /// for all that it should hold, and what waited for the rest goes on, a rotation as well as an
    /// erasure. Audited. Keep a copy of the data directory first: this destroys the evidence, and lets
    /// keys be destroyed that a record may need which comes back. Returns false if nothing is missing.
    ///
    /// Reads the org's records. [`Options::danger_accept_rollback`] accepts all that is missing of a
    /// store, also of one that does not open otherwise.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// store.create_org("acme", OrgPolicy::byok())?.put("token", "s3cret")?;
    /// assert!(!store.danger_accept_loss("acme")?);
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OrgUnknown`] for an org that there is not, and that is not being erased; disk errors of
    /// the machine.
    pub fn danger_accept_loss(&self, org: &str) -> Result<bool> {
        let erased = self.engine.half_erased().into_iter().rfind(|erased| &*erased.name == org);
        let (state, is_erased) = match (self.engine.org(org), erased) {
            (Ok(state), _) => (state, false),
            (Err(_), Some(erased)) => (erased, true),
            (Err(unknown), None) => return Err(unknown),
        };
        let accepted = self.engine.accept_loss(&state)?;
        if accepted && is_erased {
            self.rotations.erase(&state);
        } else if accepted {
            self.rotations.wake(&state);
        }
        Ok(accepted)
    }

    /// Wraps the keyring under another root key, in one atomic step. The old root key no longer
    /// opens the store; copies of the keyring that were made before still open with it.
    ///
    /// This is for a key that nobody else has. The store's secret stays, so whoever has the old root
    /// key and a copy of the keyring can forge certificates, audit entries, marks and digests that
    /// this store takes for its own. Where that may be so, use
    /// [`change_compromised_root_key`](Self::change_compromised_root_key).
    ///
    /// # Errors
    /// [`Error::KeyReused`] for material that any org, backup or root key has or had, here or in a
    /// store whose backup was restored here; [`Error::RootKeyUnavailable`] if the new key cannot
    /// wrap; disk errors of the machine.
    pub fn change_root_key(&self, root: RootKey) -> Result<()> {
        self.engine.change_root_key(root)
    }

    /// Wraps the keyring under another root key because the one before may have leaked, and gives the
    /// store a new secret, from which the keys of its mark, digest, audit log and certificates are
    /// made. From then on everything that is made with the old secret is refused. What was made
    /// before stays checkable: the audit log goes on, and a certificate counts if the log has it.
    /// Import tokens are withdrawn.
    ///
    /// Copies what lives to a fresh database, as [`erase_residue`](Self::erase_residue) does, and
    /// needs as much free space as that takes. Reads go on; writes are held up for the switch alone.
    /// May be killed at any moment: the next open finds the store as it was, or changed, and the
    /// root key that opens it says which.
    ///
    /// It cannot take anything back that a copy of the directory holds: values, names, and the keys
    /// of all orgs of that time. [`SecretReplaced::compromised`] lists those that are still in use.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let root = || KeyMaterial::generate().map(RootKey::from_material);
    /// let store = Store::open(dir.path().join("data"), root()?)?;
    /// store.create_org("acme", OrgPolicy::byok())?.put("token", "s3cret")?;
    /// let replaced = store.change_compromised_root_key(root()?)?;
    /// assert_eq!((replaced.generation_before, replaced.generation), (1, 2));
    /// // The copy has acme's key: it is to be replaced.
    /// assert_eq!(replaced.compromised.len(), 1);
    /// for rotation in store.keys().rotate_compromised_keys()? {
    ///     rotation.wait()?;
    /// }
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`change_root_key`](Self::change_root_key); [`Error::RolledBack`] if records are
    /// missing or older than they were, because the new digest would hide that; [`Error::DiskFull`].
    /// Nothing is changed then.
    pub fn change_compromised_root_key(&self, root: RootKey) -> Result<SecretReplaced> {
        self.engine.change_compromised_root_key(root)
    }

    /// Looks at a data directory from outside, without a root key and without changing anything: which
    /// links and mount points keep the store in it from opening, which of its files have names
    /// elsewhere, and what no erasure in it reaches. Works also while the store is open.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, RootKey, Store};
    /// # let root = RootKey::from_material(KeyMaterial::generate()?);
    /// let store = Store::open(dir.path().join("data"), root)?;
    /// let inspection = Store::inspect(dir.path().join("data"))?;
    /// assert!(inspection.outside.is_empty() && inspection.linked.is_empty());
    /// inspection.limits.iter().for_each(|limit| println!("not reached: {limit}"));
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// Disk errors of the machine, also if there is no such directory.
    pub fn inspect(dir: impl AsRef<Path>) -> Result<Inspection> {
        Inspection::of(dir.as_ref())
    }

    /// Envelopes of retired keys that can still be found in the database's files: sled appends,
    /// so old ciphertext stays until its space is used again. Nobody has their keys; who kept a
    /// copy of one could open them. Reads every file of the database, and every other file in the data
    /// directory but the keyring and the mark.
    ///
    /// # Errors
    /// [`Error::OutsideStore`] if a link or a mount point lies in the database; disk errors of the
    /// machine.
    pub fn residue(&self) -> Result<Vec<Residue>> {
        self.engine.residue()
    }

    /// Removes the residue of every retired key: copies what lives to a fresh database, goes on
    /// with that, overwrites and removes the old files, searches the new ones, and upgrades each
    /// certificate from *retired* to *erased*, with a list of what that does not reach
    /// ([`Certificate::scope`](crate::Certificate::scope)). Needs as much free space as the live data takes.
    /// Reads go on; writes are held up for the switch alone
    /// ([`ResidueErased::writes_paused`]). May be killed at any moment: the next open goes on
    /// with the old or the new database, and removes the other. What was copied must be what the
    /// digest says, or the old database goes on and nothing is certified.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// let acme = store.create_org("acme", OrgPolicy::byok())?;
    /// acme.put("token", "s3cret")?;
    /// store.keys().provision("acme", KeyMaterial::generate()?)?.wait()?;
    /// let erased = store.erase_residue()?;
    /// assert_eq!(erased.certificates.len(), 1);
    /// assert!(store.residue()?.is_empty());
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ResidueBusy`]; [`Error::RolledBack`] if a record is missing or older than it was;
    /// [`Error::OutsideStore`] if a link or a mount point lies where the store keeps files;
    /// [`Error::DiskFull`]; disk errors of the machine. Nothing is lost.
    pub fn erase_residue(&self) -> Result<ResidueErased> {
        self.engine.erase_residue()
    }

    /// Identity of the store, as its certificates name it.
    #[must_use]
    pub fn id(&self) -> OrgId {
        self.engine.with_keyring(|keyring| keyring.store)
    }

    /// How far the store has got, durably. Kept elsewhere, it shows an older copy of the whole
    /// directory: see [`Options::minimum_position`].
    #[must_use]
    pub fn position(&self) -> StorePosition {
        self.engine.position()
    }

    /// Figures for monitoring.
    ///
    /// # Errors
    /// Disk errors of the machine.
    pub fn metrics(&self) -> Result<Metrics> {
        let orgs = self.engine.orgs().into_iter().map(|org| {
            let keys = org.gate.snapshot();
            let versions = keys.slots.iter().map(|slot| {
                let (sealed, opened, failed) = slot.counters.read();
                let (state, origin) = (slot.state, slot.origin);
                let (sealed_in_all, sealed_bytes_in_all) = slot.counters.usage.read();
                let metrics = VersionMetrics {
                    state,
                    origin,
                    sealed,
                    opened,
                    failed,
                    sealed_in_all,
                    sealed_bytes_in_all,
                };
                (slot.version, metrics)
            });
            let progress = self.rotations.progress(&org);
            let rotating = self.rotations.is_rotating(&org);
            let stale = match (&progress, rotating) {
                (_, false) => Some(0),
                (Some(p), true) if p.phase == Phase::Rewriting => {
                    p.total.map(|total| total.saturating_sub(p.scanned))
                }
                (_, true) => None,
            };
            let rotation = progress.filter(|_| rotating).map(|p| p.phase.to_string());
            let metrics = OrgMetrics { versions: versions.collect(), stale, rotation };
            (org.name.to_string(), metrics)
        });
        Ok(Metrics {
            orgs: orgs.collect(),
            syncs: self.engine.syncs(),
            keyring_generation: self.engine.with_keyring(|keyring| keyring.generation),
            bytes_on_disk: self.engine.storage.bytes_on_disk()?,
            clock: self.engine.clock_status(),
        })
    }

    /// Stops the background work, refuses further calls through handles, and makes everything
    /// durable. An unfinished rotation goes on at the next open.
    ///
    /// # Errors
    /// Disk errors of the machine; what was acknowledged as durable is safe all the same.
    pub fn close(mut self) -> Result<()> {
        self.shut()
    }

    fn shut(&mut self) -> Result<()> {
        let closed = self.engine.close();
        self.worker.stop(&self.rotations);
        self.syncer.stop();
        // The worker's last chunk may have come after the first sync.
        closed.and(self.engine.sync_if_dirty())?;
        self.engine.end()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = self.shut() {
            tracing::error!(%error, "closing the store failed");
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("id", &self.id()).finish_non_exhaustive()
    }
}

/// The thread that makes buffered writes durable, looks for keys that are due and at the clock, and
/// ends import tokens whose time is up.
struct Syncer {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Between two looks at the clock and for expired tokens.
    const LOOK: Duration = Duration::from_secs(20);

    fn start(rotations: Arc<Rotations>, interval: Duration) -> Result<Self> {
        let (stop, stopped) = channel::bounded(0);
        let thread = std::thread::Builder::new()
            .name("byokv-sync".to_owned())
            .spawn(move || Self::run(&rotations, interval / 2, Self::LOOK, &stopped))
            .map_err(|e| Error::io("starting the syncing thread", e))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    fn run(rotations: &Rotations, interval: Duration, look: Duration, stopped: &Receiver<()>) {
        let engine = &rotations.engine;
        let (mut synced, mut looked) = (Instant::now(), Instant::now());
        let left = |since: Instant, every: Duration| every.saturating_sub(since.elapsed());
        loop {
            let wait = left(synced, interval).min(left(looked, look));
            if stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            if synced.elapsed() >= interval {
                if let Err(error) = engine.sync_if_dirty() {
                    tracing::warn!(%error, "background sync failed, trying again");
                }
                if let Err(error) = rotations.rotate_due() {
                    tracing::warn!(%error, "what is due could not be rotated, trying again");
                }
                synced = Instant::now();
            }
            if looked.elapsed() >= look {
                if let Err(error) = engine.look_at_clock() {
                    tracing::warn!(%error, "what the clock shows is not noted, trying again");
                }
                if let Err(error) = engine.expire_tokens() {
                    tracing::warn!(%error, "expired import tokens are still there, trying again");
                }
                looked = Instant::now();
            }
        }
    }

    fn stop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the syncing thread had panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failpoint::Clock;
    #[cfg(feature = "import")]
    use crate::keyring::Keyring;
    use crate::material::KeyMaterial;

    /// Runs the syncing thread with short steps until `done`.
    fn run_until(store: &Store, done: impl Fn() -> bool) {
        let tick = Duration::from_millis(5);
        let (stop, stopped) = channel::bounded(0);
        std::thread::scope(|scope| {
            scope
                .spawn(|| Syncer::run(&store.rotations, Duration::from_secs(3600), tick, &stopped));
            let (_never, wait) = channel::bounded::<()>(0);
            for _ in 0..2000 {
                if done() {
                    break;
                }
                let _ = wait.recv_timeout(tick);
            }
            drop(stop);
        });
        assert!(done());
    }

    #[test]
    fn the_syncing_thread_notes_jumps_of_the_clock() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::from_material(KeyMaterial::generate().unwrap());
        let data = dir.path().join("data");
        let clock = Clock::set_for(&data);
        let store = Store::open(data, root).unwrap();
        clock.set(clock.wall() + 3_600_000);
        run_until(&store, || store.keys().clock().jumps == 1);
        assert_eq!(store.keys().audit().count(), 2);
    }

    #[cfg(feature = "import")]
    #[test]
    fn the_syncing_thread_ends_expired_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let root = RootKey::from_material(KeyMaterial::generate().unwrap());
        let data = dir.path().join("data");
        let clock = Clock::set_for(&data);
        let store = Store::open(data, root).unwrap();
        store.create_org("acme", OrgPolicy::byok()).unwrap();
        let org = store.engine.org("acme").unwrap();
        let minute = Duration::from_secs(60);
        store.engine.import_token(&org, minute).unwrap();
        clock.pass(minute);
        let now = store.engine.clock.look().unwrap().seen;
        let has_expired = |keyring: &Keyring| keyring.has_expired_tokens(&now);
        assert!(store.engine.with_keyring(has_expired));
        run_until(&store, || !store.engine.with_keyring(has_expired));
    }
}
