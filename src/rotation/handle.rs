//! The handle of one rotation.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::progress::Progress;
use super::{Report, Rotations};
use crate::audit::{Certificate, CertificateKind};
use crate::engine::{Engine, OrgState};
use crate::error::{Error, Result};
use crate::id::{KeyState, KeyVersion, Suite};
use crate::keyring;
use crate::storage::{Space, prefix_range};

/// A rotation that was asked for. Dropping the handle does not stop it; nothing does.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
/// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
/// let acme = store.create_org("acme", OrgPolicy::byok())?;
/// acme.put("token", "s3cret")?;
/// let rotation = store.keys().provision("acme", KeyMaterial::generate()?)?;
/// println!("{}", rotation.progress());
/// let certificate = rotation.wait()?;
/// assert_eq!(certificate.records_left, 0);
/// # Ok::<(), byokv::Error>(())
/// ```
#[derive(Clone)]
pub struct Rotation {
    rotations: Arc<Rotations>,
    org: Arc<OrgState>,
    target: Target,
    leaving: Leaving,
}

/// What is on its way out of an org.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leaving {
    versions: Vec<KeyVersion>,
    suite: Option<Suite>,
}

impl Leaving {
    /// Must be asked before the change that begins a rotation: behind it, some may be gone already.
    pub(crate) fn of(engine: &Engine, org: &OrgState) -> Self {
        engine.with_keyring(|keyring| {
            let entry = keyring.entry(org.id).filter(|entry| entry.erasure.is_none());
            entry.map_or_else(Self::default, |entry| Self {
                versions: entry.leaving(),
                suite: entry.suite_before,
            })
        })
    }
}

/// What is gone when the rotation has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Version(KeyVersion),
    Suite(Suite),
    /// Every record of an erased org.
    Org,
}

impl Rotation {
    pub(crate) fn new(
        rotations: Arc<Rotations>,
        org: Arc<OrgState>,
        target: Target,
        leaving: Leaving,
    ) -> Self {
        Self { rotations, org, target, leaving }
    }

    /// Name of the org.
    #[must_use]
    pub fn org(&self) -> &str {
        &self.org.name
    }

    /// The version that will be retired; `None` if the suite is changed and no key.
    #[must_use]
    pub fn replaces(&self) -> Option<KeyVersion> {
        match self.target {
            Target::Version(version) => Some(version),
            Target::Suite(_) | Target::Org => None,
        }
    }

    /// How far it has got.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let queued = || Progress::queued(&self.org.name);
        self.rotations.progress(&self.org).unwrap_or_else(queued)
    }

    /// Stops after the chunks in hand, until [`resume`](Self::resume), also over a restart; later
    /// rotations of the org wait for that too.
    ///
    /// # Errors
    /// [`Error::OrgErased`]; disk errors of the machine: it pauses, but not over a restart.
    pub fn pause(&self) -> Result<()> {
        self.rotations.pause(&self.org, true)
    }

    /// Goes on after a pause, or tries again after records that did not open were mended.
    ///
    /// # Errors
    /// Disk errors of the machine: it goes on, but not over a restart.
    pub fn resume(&self) -> Result<()> {
        let resumed = self.rotations.pause(&self.org, false);
        self.rotations.wake(&self.org);
        resumed
    }

    /// Waits for the end: what it replaced is retired, and it gives the certificate of that. A newer
    /// rotation that was asked for meanwhile may end at the same time, or later.
    ///
    /// # Errors
    /// [`Error::RotationBlocked`] if records do not open, [`Error::RolledBack`] if records are missing
    /// or older than they were (the old key is kept), [`Error::RetirementAwaited`] if the
    /// policy retires only by hand, [`Error::OrgErased`], [`Error::Closed`] if the store is
    /// closed first (the rotation then goes on at the next open), [`Error::Bug`].
    pub fn wait(&self) -> Result<Certificate> {
        loop {
            if let Some(certificate) = self.wait_timeout(Duration::MAX)? {
                return Ok(certificate);
            }
        }
    }

    /// Waits at most `timeout` for the end; `None` if it has not come.
    ///
    /// # Errors
    /// Those of [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<Certificate>> {
        let until = Instant::now().checked_add(timeout);
        let mut board = self.rotations.board();
        loop {
            if self.is_over() {
                let certificate = self.certificate();
                // Erasing the org destroys its keys too, and certifies that alone.
                return match (&certificate, &self.target) {
                    (Err(_), Target::Version(_) | Target::Suite(_)) => {
                        self.org.check_exists().and(certificate)
                    }
                    _ => certificate,
                };
            }
            if let Some(Report { blocked: Some(why), .. }) = board.reports.get(&self.org.id) {
                return Err(why.clone());
            }
            if self.target != Target::Org {
                self.org.check_exists()?;
            }
            if self.rotations.engine.is_closed() {
                return Err(Error::Closed);
            }
            // A time beyond what the clock can name is never over.
            let left = until
                .map_or(Some(Duration::MAX), |until| until.checked_duration_since(Instant::now()));
            let Some(left) = left else { return Ok(None) };
            let left = left.min(Duration::from_secs(3600));
            let waited = self.rotations.changed.wait_timeout(board, left);
            board = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn is_over(&self) -> bool {
        match self.target {
            Target::Version(version) => {
                let keys = self.org.gate.snapshot();
                keys.slot(version).is_some_and(|slot| slot.state == KeyState::Retired)
            }
            Target::Suite(suite) => self.rotations.engine.with_keyring(|keyring| {
                let entry = keyring.entry(self.org.id);
                entry.is_some_and(|entry| entry.suite_before != Some(suite))
            }),
            Target::Org => self.rotations.engine.with_keyring(|keyring| {
                let entry = keyring.entry(self.org.id);
                entry.is_some_and(|entry| entry.erasure == Some(keyring::Erasure::RecordsDeleted))
            }),
        }
    }

    /// Returns the certificates of what was on its way out when this rotation was asked for and is
    /// gone now: of every version that was retired, not only of [`replaces`](Self::replaces), and of the
    /// suite if that was changed. In the order in which they were made; none before the end.
    ///
    /// ```no_run
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{Error, KeyMaterial, OrgPolicy, RetirePolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// let policy = OrgPolicy::byok().with_retire(RetirePolicy::Manual); // so none ends too early
    /// store.create_org("acme", policy)?;
    /// store.keys().rotate_platform_key("acme")?; // v1 leaves
    /// let rotation = store.keys().rotate_platform_key("acme")?; // v2 leaves too
    /// while let Err(Error::RetirementAwaited { .. }) = rotation.wait() {
    ///     store.keys().retire("acme").ok(); // lets those go that are held by now
    /// }
    /// assert_eq!(rotation.certificates()?.len(), 2);
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// Disk errors of the machine.
    pub fn certificates(&self) -> Result<Vec<Certificate>> {
        let left = self.rotations.engine.with_keyring(|keyring| {
            let now = keyring.entry(self.org.id).and_then(|entry| entry.suite_before);
            self.leaving.suite.filter(|_| now != self.leaving.suite)
        });
        let mut found = self.find(|certificate| match certificate.kind {
            CertificateKind::KeyRetired => {
                self.leaving.versions.contains(&certificate.version)
                    || self.is_of_target(certificate)
            }
            CertificateKind::SuiteRetired { suite } => left == Some(suite),
            CertificateKind::OrgErased => self.target == Target::Org,
            CertificateKind::KeyErased => false,
        })?;
        // An org may have left the same suite before.
        let newest = found.iter().rev().find(|c| is_of_suite(c)).map(|c| c.keyring_generation);
        found.retain(|c| !is_of_suite(c) || newest == Some(c.keyring_generation));
        Ok(found)
    }

    fn certificate(&self) -> Result<Option<Certificate>> {
        let mut found = self.find(|certificate| self.is_of_target(certificate))?;
        let missing = Error::CertificateInvalid { why: "it is missing from the database" };
        found.pop().ok_or(missing).map(Some)
    }

    fn is_of_target(&self, certificate: &Certificate) -> bool {
        match (self.target, certificate.kind) {
            (Target::Version(version), CertificateKind::KeyRetired) => {
                certificate.version == version
            }
            (Target::Suite(ours), CertificateKind::SuiteRetired { suite }) => ours == suite,
            (Target::Org, CertificateKind::OrgErased) => true,
            _ => false,
        }
    }

    /// Returns the org's certificates that fit, in the order in which they were made.
    fn find(&self, fits: impl Fn(&Certificate) -> bool) -> Result<Vec<Certificate>> {
        let engine = &self.rotations.engine;
        let prefix = [Certificate::PREFIX, self.org.id.as_bytes()].concat();
        let mut found = Vec::new();
        for pair in engine.storage.scan(Space::System, prefix_range(&prefix)) {
            let (key, stored) = pair?;
            let opened =
                engine.open_certificate(&key, &stored)?.map(|(certificate, _)| certificate);
            found.extend(opened.filter(&fits));
        }
        found.sort_by_key(|certificate| (certificate.keyring_generation, certificate.version));
        Ok(found)
    }
}

fn is_of_suite(certificate: &Certificate) -> bool {
    matches!(certificate.kind, CertificateKind::SuiteRetired { .. })
}

/// The erasure of an org. Dropping the handle does not stop it; nothing does.
#[derive(Clone, Debug)]
pub struct Erasure(Rotation);

impl Erasure {
    pub(crate) fn new(rotations: Arc<Rotations>, org: Arc<OrgState>) -> Self {
        Self(Rotation::new(rotations, org, Target::Org, Leaving::default()))
    }

    /// Name that the org had.
    #[must_use]
    pub fn org(&self) -> &str {
        self.0.org()
    }

    /// How far it has got.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.0.progress()
    }

    /// Waits for the end: no record is left, durably.
    ///
    /// # Errors
    /// [`Error::RolledBack`] if a record vanished that was not deleted; [`Error::Closed`] if the store is closed first; the erasure then goes on at the next
    /// open.
    pub fn wait(&self) -> Result<Certificate> {
        self.0.wait()
    }

    /// Waits at most `timeout` for the end; `None` if it has not come.
    ///
    /// # Errors
    /// Those of [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<Certificate>> {
        self.0.wait_timeout(timeout)
    }
}

impl fmt::Debug for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rotation")
            .field("org", &self.org.name)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}
