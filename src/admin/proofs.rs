//! Certificates compared with what is so: the audit log, the keyring, the records.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;

use super::{AuditLog, KeyAdmin};
use crate::audit::{
    AuditEntry, AuditEvent, Certificate, CertificateCheck, CertificateKind,
    CertificateMismatch as Mismatch, CertificateReport, FoundInstead, Logged, LostCertificate,
    SuiteTaken, Superseded, SupersededBy,
};
use crate::engine::Vouched;
use crate::error::{Error, Result};
use crate::id::{CertificateHash, KeyState, OrgId};
use crate::keyring::{Erasure, Keyring};
use crate::observe::Census;
use crate::rotation::HeaderCount;
use crate::storage::{Space, prefix_range};

impl KeyAdmin {
    /// Compares a certificate with this store: whether it is authentic, whether all of it is so
    /// now, and whether it is superseded.
    ///
    /// It is true if this store made it and keeps exactly it, the audit log, which is read as a whole,
    /// holds its hash, and the keyring agrees with it: a retired key is retired, with the same
    /// fingerprint; a retired suite is not in use; an erased org is erased. For an erased key and an
    /// erased org the headers of the org's records are counted as well.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # use byokv::{KeyMaterial, OrgPolicy, RootKey, Store};
    /// # let store = Store::open(dir.path().join("data"), RootKey::from_material(KeyMaterial::generate()?))?;
    /// store.create_org("acme", OrgPolicy::byok())?;
    /// let certificate = store.keys().provision("acme", KeyMaterial::generate()?)?.wait()?;
    /// let check = store.keys().verify_certificate(&certificate)?;
    /// assert!(check.is_authentic() && check.is_true() && !check.is_superseded());
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// Disk errors of the machine. That a certificate is not true is no error.
    pub fn verify_certificate(&self, certificate: &Certificate) -> Result<CertificateCheck> {
        Ok(Comparison::begin(self)?.check(certificate, certificate.sha256()))
    }

    /// Compares several certificates with this store, and reads the audit log once.
    ///
    /// # Errors
    /// Those of [`verify_certificate`](Self::verify_certificate).
    pub fn verify_each_certificate(&self, given: &[Certificate]) -> Result<Vec<CertificateCheck>> {
        let mut comparison = Comparison::begin(self)?;
        Ok(given.iter().map(|given| comparison.check(given, given.sha256())).collect())
    }

    /// Compares every certificate that the store keeps with the store, and finds those that it no
    /// longer keeps although the audit log proves that they were made.
    ///
    /// # Errors
    /// Those of [`verify_certificate`](Self::verify_certificate).
    pub fn verify_certificates(&self) -> Result<CertificateReport> {
        let mut comparison = Comparison::begin(self)?;
        let kept: Vec<_> = comparison.kept.values().flatten().cloned().collect();
        let check = |(certificate, hash)| comparison.check(&certificate, hash);
        let checks = kept.into_iter().map(check).collect();
        let (lost, unreadable) = comparison.lost();
        Ok(CertificateReport { checks, lost, unreadable })
    }

    /// Finds the certificates that the store no longer keeps although the audit log proves that
    /// they were made. Reads no record.
    ///
    /// # Errors
    /// Disk errors of the machine.
    pub fn lost_certificates(&self) -> Result<Vec<LostCertificate>> {
        Ok(Comparison::begin(self)?.lost().0)
    }
}

impl KeyAdmin {
    /// Reads the audit log for the certificates that it vouches for.
    pub(super) fn vouched_certificates(&self) -> Result<Vouched> {
        let mut vouched = Vouched::default();
        for entry in self.audit() {
            match entry {
                Ok(_) | Err(Error::AuditBroken { .. }) => vouched.read(entry.as_ref()),
                Err(error) => return Err(error),
            }
        }
        Ok(vouched)
    }
}

/// The certificates that the database holds, by their keys there; `None` for one that does not open.
type Kept = BTreeMap<Vec<u8>, Option<(Certificate, CertificateHash)>>;

/// What certificates are compared with.
struct Comparison<'a> {
    keys: &'a KeyAdmin,
    /// Entries of the audit log up to which every certificate was in the database already when
    /// `kept` was read.
    settled: u64,
    kept: Kept,
    logged: HashMap<CertificateHash, Logged>,
    /// By the org: its certificates in the log, and the suites that it took.
    of_org: HashMap<OrgId, (Vec<CertificateHash>, Vec<SuiteTaken>)>,
    /// The certificates of earlier secrets of the store that count.
    vouched: Vouched,
    broken: Option<(u64, String)>,
    counted: HashMap<OrgId, Result<Census, String>>,
}

impl<'a> Comparison<'a> {
    /// 1. where the log ends now: the certificates of all entries before are in the database;
    /// 2. the certificates in the database: the log's end of after that has an entry for each;
    /// 3. the log, to its end of now.
    fn begin(keys: &'a KeyAdmin) -> Result<Self> {
        let engine = &keys.engine;
        engine.check_open()?;
        let settled = keys.audit_head().number;
        let mut kept = Kept::new();
        for pair in engine.storage.scan(Space::System, prefix_range(Certificate::PREFIX)) {
            let (key, stored) = pair?;
            let opened = engine.open_certificate(&key, &stored)?;
            kept.insert(key.to_vec(), opened);
        }
        let mut this = Self {
            keys,
            settled,
            kept,
            logged: HashMap::new(),
            of_org: HashMap::new(),
            vouched: Vouched::default(),
            broken: None,
            counted: HashMap::new(),
        };
        this.read_log(keys.audit())?;
        Ok(this)
    }

    fn read_log(&mut self, log: AuditLog) -> Result<()> {
        for entry in log {
            self.vouched.read(entry.as_ref());
            let entry = match entry {
                Ok(entry) => entry,
                Err(Error::AuditBroken { entry, why }) => {
                    self.broken.get_or_insert((entry, why.to_owned()));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let AuditEntry { number: entry, at_unix_ms, event, org, version, .. } = entry;
            let Some(org) = org else { continue };
            if let AuditEvent::SuiteChanged { to: suite, .. } = event {
                let taken = SuiteTaken { entry, at_unix_ms, suite };
                self.of_org.entry(org.id).or_default().1.push(taken);
            } else if let (Some((kind, hash)), Some(version)) = (event.certificate(), version) {
                self.of_org.entry(org.id).or_default().0.push(hash);
                self.logged.insert(hash, Logged { entry, at_unix_ms, org, version, kind });
            }
        }
        Ok(())
    }

    /// Returns the certificates that the log proves and that are not kept as they were made, in the
    /// order of the log, and how many more there are in the database that do not open.
    fn lost(&self) -> (Vec<LostCertificate>, u64) {
        let (mut lost, mut explained) = (Vec::new(), HashSet::new());
        let kept: HashSet<_> = self.kept.values().flatten().map(|(_, hash)| *hash).collect();
        for (&sha256, logged) in &self.logged {
            if kept.contains(&sha256) || logged.entry > self.settled {
                continue;
            }
            let Logged { entry: audit_entry, org, version, kind, .. } = logged.clone();
            let prefix = Certificate::key_of(org.id, version, kind);
            let mut found = FoundInstead::Nothing;
            let behind =
                self.kept.range::<[u8], _>((Bound::Included(&prefix[..]), Bound::Unbounded));
            for (key, kept) in behind.take_while(|(key, _)| key.starts_with(&prefix)) {
                match kept {
                    None => {
                        explained.insert(key);
                        found = FoundInstead::Damaged;
                    }
                    Some((_, hash)) if !self.logged.contains_key(hash) => {
                        found = FoundInstead::Another;
                    }
                    Some(_) => {}
                }
            }
            lost.push(LostCertificate { org, version, kind, audit_entry, sha256, found });
        }
        lost.sort_by_key(|lost| lost.audit_entry);
        let unreadable =
            self.kept.iter().filter(|(key, kept)| kept.is_none() && !explained.contains(key));
        let unreadable = unreadable.count() as u64;
        (lost, unreadable)
    }

    fn check(&mut self, certificate: &Certificate, sha256: CertificateHash) -> CertificateCheck {
        let logged = self.logged.get(&sha256).map(|logged| logged.entry);
        let mut mismatches = Vec::new();
        let verified = self.keys.engine.authenticate(certificate, || Ok(&self.vouched));
        if let Err(error) = verified {
            let why = match error {
                Error::CertificateInvalid { why } => why.to_owned(),
                error => error.to_string(),
            };
            mismatches.push(Mismatch::NotAuthentic { why });
        }
        let authentic = mismatches.is_empty();
        let mut superseded_by = Vec::new();
        if authentic {
            superseded_by = logged.map(|entry| self.since(certificate, entry)).unwrap_or_default();
            match &self.broken {
                Some((entry, why)) => {
                    let (entry, why) = (*entry, why.clone());
                    mismatches.push(Mismatch::AuditLogBroken { entry, why });
                }
                None if logged.is_none() => mismatches.push(Mismatch::NotInAuditLog),
                None => {}
            }
            match self.kept.get(&certificate.key()) {
                Some(Some((_, kept))) if *kept == sha256 => {}
                Some(Some((_, kept))) => mismatches.push(Mismatch::AnotherKept { sha256: *kept }),
                Some(None) | None => mismatches.push(Mismatch::NotKept),
            }
            let taken_again =
                superseded_by.iter().any(|since| since.by == SupersededBy::SuiteTakenAgain);
            self.keys.engine.with_keyring(|keyring| {
                compare(certificate, keyring, taken_again, &mut mismatches);
            });
            if matches!(certificate.kind, CertificateKind::KeyErased | CertificateKind::OrgErased) {
                self.count(certificate, &mut mismatches);
            }
        } else {
            // Where the log has to vouch, it may be what is wrong.
            if let Some((entry, why)) = self.broken.clone() {
                mismatches.push(Mismatch::AuditLogBroken { entry, why });
            }
            let store = self.keys.engine.with_keyring(|keyring| keyring.store);
            if store != certificate.store {
                mismatches.push(Mismatch::OtherStore { store });
            }
        }
        let overtaken = superseded_by.iter().any(|since| since.by == SupersededBy::SuiteTakenAgain);
        CertificateCheck {
            certificate: certificate.clone(),
            sha256,
            authentic,
            true_now: mismatches.is_empty() && !overtaken,
            audit_entry: logged,
            mismatches,
            superseded_by,
        }
    }

    /// Returns what the log notes after `entry` that supersedes the certificate.
    fn since(&self, certificate: &Certificate, entry: u64) -> Vec<Superseded> {
        let Some((certified, taken)) = self.of_org.get(&certificate.org_id) else {
            return Vec::new();
        };
        let certified = certified.iter().filter_map(|hash| self.logged.get(hash));
        let certified = certified.filter(|later| later.entry > entry).filter_map(|later| {
            let by = later.supersedes(certificate)?;
            Some(Superseded { by, audit_entry: later.entry, at_unix_ms: later.at_unix_ms })
        });
        let taken = taken.iter().filter(|taken| {
            let suite = CertificateKind::SuiteRetired { suite: taken.suite };
            taken.entry > entry && suite == certificate.kind
        });
        let taken = taken.map(|taken| Superseded {
            by: SupersededBy::SuiteTakenAgain,
            audit_entry: taken.entry,
            at_unix_ms: taken.at_unix_ms,
        });
        let mut since: Vec<_> = certified.chain(taken).collect();
        since.sort_by_key(|since| since.audit_entry);
        since
    }

    /// Looks whether a record is there of which the certificate says that none is left.
    fn count(&mut self, certificate: &Certificate, mismatches: &mut Vec<Mismatch>) {
        let engine = &self.keys.engine;
        let Some(org) = engine.org_of(certificate.org_id) else { return };
        let counted = self
            .counted
            .entry(org.id)
            .or_insert_with(|| HeaderCount::run(engine, &org).map_err(|error| error.to_string()));
        let census = match counted {
            Ok(census) => census,
            Err(why) => return mismatches.push(Mismatch::NotCounted { why: why.clone() }),
        };
        let version = &certificate.version;
        let of = |counts: &BTreeMap<_, u64>| counts.get(version).copied().unwrap_or_default();
        let records = match certificate.kind {
            CertificateKind::OrgErased => census.total().saturating_sub(census.malformed),
            _ => of(&census.by_version).max(of(&census.by_name_version)),
        };
        if records > 0 {
            mismatches.push(Mismatch::RecordsFound { records });
        }
        if census.malformed > 0 {
            mismatches.push(Mismatch::RecordsUnreadable { records: census.malformed });
        }
    }
}

/// Compares what the certificate says with what the keyring says.
fn compare(
    certificate: &Certificate,
    keyring: &Keyring,
    suite_taken_again: bool,
    mismatches: &mut Vec<Mismatch>,
) {
    if certificate.keyring_generation > keyring.generation {
        let keyring_generation = keyring.generation;
        mismatches.push(Mismatch::FromTheFuture { keyring_generation });
    }
    let Some(org) = keyring.entry(certificate.org_id) else {
        return mismatches.push(Mismatch::OrgUnknown);
    };
    let Some(version) = org.version(certificate.version) else {
        return mismatches.push(Mismatch::VersionUnknown);
    };
    if version.fingerprint != certificate.fingerprint {
        mismatches.push(Mismatch::OtherKey { fingerprint: version.fingerprint });
    }
    let not_retired = || Mismatch::KeyNotRetired { state: version.state };
    let is_retired = version.state == KeyState::Retired && version.material.is_none();
    match certificate.kind {
        CertificateKind::KeyRetired => mismatches.extend((!is_retired).then(not_retired)),
        CertificateKind::KeyErased => {
            mismatches.extend((!is_retired).then(not_retired));
            if is_retired && !version.residue_erased {
                mismatches.push(Mismatch::ResidueNotErased);
            }
        }
        CertificateKind::SuiteRetired { suite } => {
            let is_used = org.suite == suite || org.suite_before == Some(suite);
            if org.erasure.is_none() && is_used && !suite_taken_again {
                mismatches.push(Mismatch::SuiteInUse);
            }
        }
        CertificateKind::OrgErased => {
            let is_alive = org.versions.iter().any(|version| version.state != KeyState::Retired);
            if org.erasure != Some(Erasure::RecordsDeleted) || is_alive {
                mismatches.push(Mismatch::OrgNotErased);
            }
        }
    }
}
