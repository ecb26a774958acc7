//! What comparing a certificate with a store has found.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Certificate, CertificateKind, OrgRef};
use crate::id::{CertificateHash, Fingerprint, KeyState, KeyVersion, OrgId, Suite};
use crate::time::rfc3339;

/// What comparing a certificate with a store has found. From
/// [`KeyAdmin::verify_certificate`](crate::KeyAdmin::verify_certificate).
///
/// It answers three things apart: whether the certificate is *authentic* (this store made it, and
/// nobody altered it), whether it is *true of this store now*, and whether it is *superseded*. A copy
/// of a store has the same secret: what the copy certifies is authentic, and not true of the
/// original. After a
/// [change of a compromised root key](crate::Store::change_compromised_root_key) it is not authentic
/// either, and what this store certified before is, as far as its audit log vouches for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[must_use = "it says whether the certificate is true"]
pub struct CertificateCheck {
    /// The certificate.
    pub certificate: Certificate,
    /// SHA-256 of the certificate as the store encodes it.
    pub sha256: CertificateHash,
    /// Whether this store, or a copy of it, made the certificate, and nobody altered it.
    pub authentic: bool,
    /// Whether everything that the certificate claims is so in this store now.
    pub true_now: bool,
    /// Number of the entry of the audit log that holds its hash.
    pub audit_entry: Option<u64>,
    /// Where the certificate and the store differ; none if it is true, or was until the store went
    /// on.
    pub mismatches: Vec<CertificateMismatch>,
    /// What this store noted later that says more, or something else.
    pub superseded_by: Vec<Superseded>,
}

impl CertificateCheck {
    /// Returns true if this store, or a copy of it, made the certificate, and nobody altered it.
    #[must_use]
    pub fn is_authentic(&self) -> bool {
        self.authentic
    }

    /// Returns true if the certificate is authentic, the audit log holds its hash, the store keeps
    /// it, and everything that it claims is so in this store now.
    #[must_use]
    pub fn is_true(&self) -> bool {
        self.true_now
    }

    /// Returns true if this store noted something later that says more about the same key, such as
    /// its erasure after its retirement, or that the store went on, such as back to a retired suite.
    #[must_use]
    pub fn is_superseded(&self) -> bool {
        !self.superseded_by.is_empty()
    }

    /// Returns true if nothing is wrong: the certificate is true now, or was true until this store
    /// went on, as its audit log says.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.authentic && self.mismatches.is_empty()
    }
}

/// Such as `true, superseded: org acme, platform key v1 retired`, then a line for each reason.
impl fmt::Display for CertificateCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (self.authentic, self.true_now, self.is_superseded()) {
            (false, ..) => "not authentic",
            (true, true, false) => "true",
            (true, true, true) => "true, superseded",
            (true, false, _) if self.is_sound() => "authentic, superseded, no longer true",
            (true, false, _) => "authentic, NOT TRUE of this store",
        };
        write!(f, "{verdict}: org {}, {}", self.certificate.org, self.certificate.about())?;
        for mismatch in &self.mismatches {
            write!(f, "\n  {mismatch}")?;
        }
        for superseded in &self.superseded_by {
            write!(f, "\n  {superseded}")?;
        }
        Ok(())
    }
}

/// Where a certificate and the store that it is compared with differ.
///
/// In JSON an object with `kind`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
#[non_exhaustive]
pub enum CertificateMismatch {
    /// It was altered, or no store with this store's secret made it.
    NotAuthentic {
        /// What does not fit.
        why: String,
    },
    /// It names another store.
    OtherStore {
        /// This store.
        store: OrgId,
    },
    /// No entry of the audit log holds its hash.
    NotInAuditLog,
    /// The audit log is broken, so it proves nothing.
    AuditLogBroken {
        /// Number of the first entry that does not fit.
        entry: u64,
        /// What does not fit.
        why: String,
    },
    /// The store does not keep this certificate.
    NotKept,
    /// The store keeps another certificate of the same thing.
    AnotherKept {
        /// SHA-256 of the one that is kept.
        sha256: CertificateHash,
    },
    /// The store never had an org with this id.
    OrgUnknown,
    /// The org never had this key version.
    VersionUnknown,
    /// The key is not retired.
    KeyNotRetired {
        /// The state that it is in.
        state: KeyState,
    },
    /// The key of this version is another one.
    OtherKey {
        /// Fingerprint of the key that the store knows.
        fingerprint: Fingerprint,
    },
    /// The org is not erased.
    OrgNotErased,
    /// New values are sealed with this suite, or records may be left under it.
    SuiteInUse,
    /// The store does not know that the key's old ciphertext was erased.
    ResidueNotErased,
    /// It was made by a later state of the store than this one.
    FromTheFuture {
        /// Generation of this store's keyring.
        keyring_generation: u64,
    },
    /// Records are there of which it says that none is left.
    RecordsFound {
        /// How many.
        records: u64,
    },
    /// Records whose header does not tell what they are under may be such records.
    RecordsUnreadable {
        /// How many.
        records: u64,
    },
    /// The records could not be counted.
    NotCounted {
        /// Why.
        why: String,
    },
}
crate::json::tagged!(CertificateMismatch);

/// A whole sentence, without its full stop.
impl fmt::Display for CertificateMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAuthentic { why } => f.write_str(why),
            Self::OtherStore { store } => write!(f, "it names another store; this one is {store}"),
            Self::NotInAuditLog => f.write_str(
                "no entry of this store's audit log holds its hash: a copy of this store made it, or \
                 this store went back to before it",
            ),
            Self::AuditLogBroken { entry, why } => {
                write!(f, "the audit log proves nothing, it is broken at entry {entry}: {why}")
            }
            Self::NotKept => f.write_str("this store does not keep it"),
            Self::AnotherKept { sha256 } => {
                write!(f, "this store keeps another certificate of the same, SHA-256 {sha256}")
            }
            Self::OrgUnknown => f.write_str("this store never had an org with this id"),
            Self::VersionUnknown => f.write_str("the org never had this key version here"),
            Self::KeyNotRetired { state } => write!(f, "the key is {state} here, not retired"),
            Self::OtherKey { fingerprint } => {
                write!(f, "the key of this version has the fingerprint {fingerprint} here")
            }
            Self::OrgNotErased => f.write_str("the org is not erased here"),
            Self::SuiteInUse => f.write_str("the suite is in use here"),
            Self::ResidueNotErased => {
                f.write_str("this store does not know that the key's old ciphertext was erased")
            }
            Self::FromTheFuture { keyring_generation } => write!(
                f,
                "it names a later generation of the keyring than {keyring_generation}, which is this \
                 store's"
            ),
            Self::RecordsFound { records } => {
                write!(f, "{records} records are there of which it says that none is left")
            }
            Self::RecordsUnreadable { records } => write!(
                f,
                "{records} records do not say which key they are under, so nobody can tell that none \
                 is left"
            ),
            Self::NotCounted { why } => write!(f, "the records could not be counted: {why}"),
        }
    }
}

/// What a store noted after a certificate that says more, or that something else is so now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Superseded {
    /// What was noted.
    pub by: SupersededBy,
    /// Number of the entry of the audit log.
    pub audit_entry: u64,
    /// Milliseconds since 1970-01-01 UTC, by this machine's clock.
    pub at_unix_ms: u64,
}

/// See [`Superseded`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SupersededBy {
    /// A certificate that the retired key's old ciphertext was erased too.
    KeyErased,
    /// A certificate that the org was erased.
    OrgErased,
    /// The org went back to the suite.
    SuiteTakenAgain,
}

impl fmt::Display for Superseded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.by {
            SupersededBy::KeyErased => "the key's old ciphertext was erased too",
            SupersededBy::OrgErased => "the whole org was erased",
            SupersededBy::SuiteTakenAgain => "the org went back to the suite",
        };
        let (at, entry) = (rfc3339(self.at_unix_ms), self.audit_entry);
        write!(f, "superseded: {what}, at {at}, audit entry {entry}")
    }
}

/// A certificate that the audit log proves, and that the store no longer keeps as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LostCertificate {
    /// The org.
    pub org: OrgRef,
    /// The key version that it is about.
    pub version: KeyVersion,
    /// What it is about.
    #[serde(flatten)]
    pub kind: CertificateKind,
    /// Number of the entry of the audit log that holds its hash.
    pub audit_entry: u64,
    /// SHA-256 of the certificate.
    pub sha256: CertificateHash,
    /// What is in its place.
    pub found: FoundInstead,
}

/// What is in the place of a certificate that is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FoundInstead {
    /// Nothing: it was deleted.
    Nothing,
    /// Bytes that do not open.
    Damaged,
    /// Another certificate of the same thing.
    Another,
}

impl fmt::Display for LostCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.found {
            FoundInstead::Nothing => "missing",
            FoundInstead::Damaged => "damaged",
            FoundInstead::Another => "replaced by another",
        };
        let Self { org, version, kind, audit_entry, .. } = self;
        let org = &org.name;
        write!(
            f,
            "the certificate \"{kind}\" of org {org}, {version}, is {what}: audit entry {audit_entry} \
             holds its hash"
        )
    }
}

/// All certificates of a store, compared with it. From
/// [`KeyAdmin::verify_certificates`](crate::KeyAdmin::verify_certificates).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[must_use = "it says whether the certificates are true"]
pub struct CertificateReport {
    /// Each certificate that the store keeps, by org id and version.
    pub checks: Vec<CertificateCheck>,
    /// Each that the audit log proves and that the store no longer keeps as it was made.
    pub lost: Vec<LostCertificate>,
    /// Certificates in the database that do not open, and of which the audit log says nothing.
    pub unreadable: u64,
}

impl CertificateReport {
    /// Returns true if nothing is lost and every certificate is true, or was until the store went
    /// on.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.lost.is_empty()
            && self.unreadable == 0
            && self.checks.iter().all(CertificateCheck::is_sound)
    }
}

/// What an entry of the audit log proves of one certificate.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    pub(crate) entry: u64,
    pub(crate) at_unix_ms: u64,
    pub(crate) org: OrgRef,
    pub(crate) version: KeyVersion,
    pub(crate) kind: CertificateKind,
}

impl Logged {
    /// Returns what supersedes an earlier certificate of the same org, if this one does.
    pub(crate) fn supersedes(&self, earlier: &Certificate) -> Option<SupersededBy> {
        use CertificateKind::{KeyErased, KeyRetired, OrgErased, SuiteRetired};
        match (earlier.kind, self.kind) {
            (KeyRetired, KeyErased) if self.version == earlier.version => {
                Some(SupersededBy::KeyErased)
            }
            (KeyRetired | SuiteRetired { .. }, OrgErased) => Some(SupersededBy::OrgErased),
            _ => None,
        }
    }
}

/// The org went over to a suite.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SuiteTaken {
    pub(crate) entry: u64,
    pub(crate) at_unix_ms: u64,
    pub(crate) suite: Suite,
}
