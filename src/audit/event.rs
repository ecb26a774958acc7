//! What the audit log tells of.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{CertificateKind, KeyRefusal, OrgRef};
use crate::id::{BackupId, CertificateHash, Due, Suite, TokenId};
use crate::policy::PolicyChange;
use crate::time::{plain, rfc3339};

/// What happened to a key.
///
/// In JSON an object whose first field is `kind`, followed by the fields of the variant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
#[non_exhaustive]
pub enum AuditEvent {
    /// The store was made.
    StoreCreated,
    /// An org was created under its first platform key.
    OrgCreated,
    /// An org's policy was changed.
    PolicyChanged {
        /// Each setting that was changed, before and after.
        changes: Vec<PolicyChange>,
    },
    /// A customer's key was installed and made active.
    KeyProvisioned,
    /// A platform key was generated, installed and made active.
    PlatformKeyRotated,
    /// The suite for new values was changed.
    SuiteChanged {
        /// The suite before.
        from: Suite,
        /// The suite now.
        to: Suite,
    },
    /// A version was retired: nothing is left under it and its material is destroyed.
    KeyRetired {
        /// SHA-256 of the certificate of that.
        certificate: CertificateHash,
    },
    /// Nothing is left under a suite that was replaced.
    SuiteRetired {
        /// The suite before.
        suite: Suite,
        /// SHA-256 of the certificate of that.
        certificate: CertificateHash,
    },
    /// A version under which no record is left is held before its retirement.
    KeyHeld,
    /// Records needed a held key; they were served, and the hold starts anew.
    HoldBroken {
        /// How often.
        times: u64,
    },
    /// An operator let a held version go.
    KeyReleased,
    /// A key was destroyed because its org is erased.
    KeyErased,
    /// Every record of an erased org is deleted.
    OrgErased {
        /// SHA-256 of the certificate of that.
        certificate: CertificateHash,
    },
    /// What lives was moved to a fresh database.
    DatabaseRewritten,
    /// Nothing sealed under a retired key is left in the database's files.
    ResidueErased {
        /// SHA-256 of the certificate of that.
        certificate: CertificateHash,
    },
    /// A key is due to be rotated by its org's policy.
    RotationDue {
        /// Why.
        why: Due,
    },
    /// A key's material was withheld.
    KeySuspended,
    /// A suspended key's material was given back.
    KeyResumed,
    /// A key was offered and refused.
    KeyRefused {
        /// Why.
        why: KeyRefusal,
    },
    /// The keyring was wrapped under a new root key.
    RootKeyChanged {
        /// Whether the one before may have leaked, so that the store was given a new secret.
        compromised: bool,
        /// Generation of the store's secret before.
        secret_before: u32,
        /// Generation of the store's secret now.
        secret: u32,
    },
    /// An operator accepted that the store went back in time.
    RollbackAccepted {
        /// What was behind.
        what: String,
    },
    /// A backup was made. The fingerprint is its key's.
    BackupMade {
        /// The backup.
        backup: BackupId,
        /// Whether all orgs were asked for.
        whole_store: bool,
        /// Name and id of each org in it.
        orgs: Vec<OrgRef>,
        /// Orgs that were suspended and so are not in it. `None` in what one org sees of the log.
        left_out: Option<u64>,
        /// Records of the others that did not open and so are not in it. `None` in what one org
        /// sees of the log.
        unreadable: Option<u64>,
    },
    /// An org is being restored from a backup, under a new key, seen by nobody.
    RestoreBegun {
        /// The backup.
        backup: BackupId,
    },
    /// An org was restored, whole.
    OrgRestored {
        /// The backup.
        backup: BackupId,
    },
    /// Records of a backup were written into an org that was there.
    RecordsRestored {
        /// The backup.
        backup: BackupId,
        /// How many.
        records: u64,
    },
    /// A restore failed or was cut off: what it had written cannot be read and is deleted.
    RestoreDiscarded,
    /// An import token was made: a key may come in under it.
    ImportTokenMade {
        /// The token.
        token: TokenId,
        /// When it expires, milliseconds since 1970-01-01 UTC.
        expires_unix_ms: u64,
    },
    /// A sealed key was opened under an import token, and the token's private half destroyed.
    ImportTokenUsed {
        /// The token.
        token: TokenId,
    },
    /// An import token expired unused, and its private half was destroyed.
    ImportTokenExpired {
        /// The token.
        token: TokenId,
    },
    /// An import token was ended unused, and its private half destroyed, because a copy of the store
    /// that leaked has it.
    ImportTokenWithdrawn {
        /// The token.
        token: TokenId,
    },
    /// A sealed key was refused.
    SealedKeyRefused {
        /// The token that it names.
        token: TokenId,
        /// Why.
        why: KeyRefusal,
    },
    /// Records of the org that had no name which anybody could ask for were deleted.
    NamelessRemoved {
        /// How many.
        records: u64,
    },
    /// A backup failed or was cut off. What was written of it may hold records. The fingerprint is
    /// its key's.
    BackupNotFinished {
        /// The backup.
        backup: BackupId,
    },
    /// What came with a backup that was restored here, fingerprints of other stores' keys, was
    /// dropped: the orgs that came with it may have those keys.
    ForeignKeysDropped {
        /// The backup.
        backup: BackupId,
        /// How many fingerprints.
        keys: u64,
    },
    /// A backup was begun: from now on there may be one. The fingerprint is its key's.
    BackupBegun {
        /// The backup.
        backup: BackupId,
        /// The orgs that were asked for; none if it is of all.
        only: Vec<OrgRef>,
    },
    /// This machine's clock jumped: it was set, or nobody had the store open for more than a day.
    /// Milliseconds since 1970-01-01 UTC.
    ClockJumped {
        /// What it would have shown; where that is not known, what the store last saw.
        from_unix_ms: u64,
        /// What it showed.
        to_unix_ms: u64,
    },
    /// An operator confirmed that time had passed which the store had not observed: it counts.
    ClockConfirmed {
        /// How much, milliseconds.
        counted_ms: u64,
    },
    /// Records that belonged to no org were deleted.
    OwnerlessRemoved {
        /// How many.
        records: u64,
    },
}
crate::json::tagged!(AuditEvent);

impl AuditEvent {
    /// Returns the event of the change of the keyring that made a certificate.
    pub(crate) fn of_certificate(kind: CertificateKind, certificate: CertificateHash) -> Self {
        match kind {
            CertificateKind::KeyRetired => Self::KeyRetired { certificate },
            CertificateKind::SuiteRetired { suite } => Self::SuiteRetired { suite, certificate },
            CertificateKind::KeyErased => Self::ResidueErased { certificate },
            CertificateKind::OrgErased => Self::OrgErased { certificate },
        }
    }

    /// Returns what [`of_certificate`](Self::of_certificate) was given, for such an event.
    pub(crate) fn certificate(&self) -> Option<(CertificateKind, CertificateHash)> {
        match *self {
            Self::KeyRetired { certificate } => Some((CertificateKind::KeyRetired, certificate)),
            Self::SuiteRetired { suite, certificate } => {
                Some((CertificateKind::SuiteRetired { suite }, certificate))
            }
            Self::ResidueErased { certificate } => Some((CertificateKind::KeyErased, certificate)),
            Self::OrgErased { certificate } => Some((CertificateKind::OrgErased, certificate)),
            _ => None,
        }
    }
}

/// As a part of a sentence, such as `key retired`.
impl fmt::Display for AuditEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StoreCreated => f.write_str("store created"),
            Self::OrgCreated => f.write_str("org created"),
            Self::PolicyChanged { changes } => {
                f.write_str("policy changed")?;
                for (i, change) in changes.iter().enumerate() {
                    write!(f, "{}{change}", if i == 0 { " (" } else { ", " })?;
                }
                if changes.is_empty() { Ok(()) } else { f.write_str(")") }
            }
            Self::KeyProvisioned => f.write_str("customer key provisioned"),
            Self::PlatformKeyRotated => f.write_str("platform key installed"),
            Self::SuiteChanged { from, to } => write!(f, "suite changed: {from} to {to}"),
            Self::KeyRetired { .. } => f.write_str("key retired"),
            Self::SuiteRetired { suite, .. } => write!(f, "suite {suite} retired"),
            Self::KeyHeld => f.write_str("key held before its retirement"),
            Self::HoldBroken { times } => write!(f, "hold broken {times} times"),
            Self::KeyReleased => f.write_str("key released for retirement"),
            Self::KeyErased => f.write_str("key destroyed with its org"),
            Self::OrgErased { .. } => f.write_str("org erased, no record left"),
            Self::DatabaseRewritten => f.write_str("database rewritten"),
            Self::ResidueErased { .. } => f.write_str("residue erased"),
            Self::RotationDue { why } => write!(f, "key due for rotation by {why}"),
            Self::KeySuspended => f.write_str("key suspended"),
            Self::KeyResumed => f.write_str("key resumed"),
            Self::KeyRefused { why } => write!(f, "key refused ({why})"),
            Self::RootKeyChanged { compromised: false, .. } => f.write_str("root key changed"),
            Self::RootKeyChanged { secret_before, secret, .. } => write!(
                f,
                "root key changed as compromised, store secret {secret_before} replaced by {secret}"
            ),
            Self::RollbackAccepted { what } => write!(f, "rollback accepted ({what})"),
            Self::BackupMade { backup, whole_store, orgs, left_out, unreadable } => {
                write!(f, "backup {backup} made, ")?;
                match (orgs.as_slice(), whole_store, left_out) {
                    ([org], false, _) => write!(f, "of org {}", org.name)?,
                    (orgs, false, _) => write!(f, "of {} orgs", orgs.len())?,
                    (orgs, true, Some(_)) => write!(f, "of all orgs, {}", orgs.len())?,
                    (_, true, None) => f.write_str("of all orgs")?,
                }
                match (left_out.unwrap_or(0), unreadable.unwrap_or(0)) {
                    (0, 0) => Ok(()),
                    (orgs, records) => write!(f, ", without {orgs} orgs and {records} records"),
                }
            }
            Self::BackupBegun { backup, only } => {
                write!(f, "backup {backup} begun, ")?;
                match only.as_slice() {
                    [] => f.write_str("of all orgs"),
                    [org] => write!(f, "of org {}", org.name),
                    orgs => write!(f, "of {} orgs", orgs.len()),
                }
            }
            Self::BackupNotFinished { backup } => write!(f, "backup {backup} not finished"),
            Self::ForeignKeysDropped { backup, keys } => {
                write!(f, "{keys} foreign keys dropped, which came with backup {backup}")
            }
            Self::RestoreBegun { backup } => write!(f, "restore from backup {backup} begun"),
            Self::OrgRestored { backup } => write!(f, "org restored from backup {backup}"),
            Self::RecordsRestored { backup, records } => {
                write!(f, "{records} records restored from backup {backup}")
            }
            Self::RestoreDiscarded => f.write_str("unfinished restore discarded"),
            Self::ImportTokenMade { token, expires_unix_ms } => {
                write!(f, "import token {token} made, until {}", rfc3339(*expires_unix_ms))
            }
            Self::ImportTokenUsed { token } => write!(f, "import token {token} used"),
            Self::ImportTokenExpired { token } => write!(f, "import token {token} expired"),
            Self::ImportTokenWithdrawn { token } => write!(f, "import token {token} withdrawn"),
            Self::SealedKeyRefused { token, why } => {
                write!(f, "sealed key under token {token} refused ({why})")
            }
            Self::ClockJumped { from_unix_ms, to_unix_ms } => {
                let (from, to) = (rfc3339(*from_unix_ms), rfc3339(*to_unix_ms));
                write!(f, "clock jumped from {from} to {to}")
            }
            Self::ClockConfirmed { counted_ms } => {
                write!(f, "clock confirmed, {} more count", plain(*counted_ms))
            }
            Self::NamelessRemoved { records } => {
                write!(f, "records without a name removed: {records}")
            }
            Self::OwnerlessRemoved { records } => {
                write!(f, "records of no org removed: {records}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A certificate without an entry that leads back to it would be missed by nobody.
    #[test]
    fn every_kind_of_certificate_has_its_event() {
        let hash = CertificateHash::from_bytes([7; 32]);
        for kind in [
            CertificateKind::KeyRetired,
            CertificateKind::SuiteRetired { suite: Suite::XChaCha20Poly1305 },
            CertificateKind::KeyErased,
            CertificateKind::OrgErased,
        ] {
            let event = AuditEvent::of_certificate(kind, hash);
            assert_eq!(event.certificate(), Some((kind, hash)));
        }
        assert_eq!(AuditEvent::KeyErased.certificate(), None);
    }
}
