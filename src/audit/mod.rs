//! The audit log: one sealed, hash-chained entry for each change of a key.

mod certificate;

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use certificate::{Certificate, CertificateKind};

use crate::envelope::suite::SuiteKey;
use crate::error::{Error, Result};
use crate::id::{BackupId, Due, Fingerprint, KeyVersion, OrgId, Suite, TokenId, hex_array};
use crate::material::KeyMaterial;
use crate::sealed;
use crate::time::rfc3339;

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AuditEvent {
    /// The store was made.
    StoreCreated,
    /// An org was created under its first platform key.
    OrgCreated,
    /// An org's policy was changed.
    PolicyChanged,
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
    KeyRetired,
    /// Nothing is left under a suite that was replaced.
    SuiteRetired {
        /// The suite before.
        suite: Suite,
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
    OrgErased,
    /// What lives was moved to a fresh database.
    DatabaseRewritten,
    /// Nothing sealed under a retired key is left in the database's files.
    ResidueErased,
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
        /// Why, in the words of the error.
        why: String,
    },
    /// The keyring was wrapped under a new root key.
    RootKeyChanged,
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
        orgs: Vec<(String, OrgId)>,
        /// Orgs that were suspended and so are not in it.
        left_out: u64,
        /// Records of the others that did not open and so are not in it.
        unreadable: u64,
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
    /// A sealed key was refused.
    SealedKeyRefused {
        /// The token that it names.
        token: TokenId,
        /// Why, in the words of the error.
        why: String,
    },
    /// Records whose blinded name opened under no key of the org were deleted.
    NamelessRemoved {
        /// How many.
        records: u64,
    },
    /// A backup was begun: from now on there may be one. The fingerprint is its key's.
    BackupBegun {
        /// The backup.
        backup: BackupId,
        /// Names of the orgs that were asked for; none if it is of all.
        only: Vec<String>,
    },
}

/// One entry of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AuditEntry {
    /// Number, from 1 without gaps.
    pub number: u64,
    /// Milliseconds since 1970-01-01 UTC, by this machine's clock.
    pub at_unix_ms: u64,
    /// What happened.
    pub event: AuditEvent,
    /// The org's name and id, if it is about one.
    pub org: Option<(String, OrgId)>,
    /// The key version, if it is about one.
    pub version: Option<KeyVersion>,
    /// The key's fingerprint (for [`AuditEvent::RootKeyChanged`] the new root key's).
    pub fingerprint: Option<Fingerprint>,
    /// SHA-256 of the entry before, as encoded; zeros for the first.
    #[serde(with = "hex_array")]
    pub previous: [u8; 32],
}

impl fmt::Display for AuditEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>4}  {}  ", self.number, rfc3339(self.at_unix_ms))?;
        match &self.event {
            AuditEvent::StoreCreated => f.write_str("store created")?,
            AuditEvent::OrgCreated => f.write_str("org created")?,
            AuditEvent::PolicyChanged => f.write_str("policy changed")?,
            AuditEvent::KeyProvisioned => f.write_str("customer key provisioned")?,
            AuditEvent::PlatformKeyRotated => f.write_str("platform key installed")?,
            AuditEvent::SuiteChanged { from, to } => write!(f, "suite changed: {from} to {to}")?,
            AuditEvent::KeyRetired => f.write_str("key retired")?,
            AuditEvent::SuiteRetired { suite } => write!(f, "suite {suite} retired")?,
            AuditEvent::KeyHeld => f.write_str("key held before its retirement")?,
            AuditEvent::HoldBroken { times } => write!(f, "hold broken {times} times")?,
            AuditEvent::KeyReleased => f.write_str("key released for retirement")?,
            AuditEvent::KeyErased => f.write_str("key destroyed with its org")?,
            AuditEvent::OrgErased => f.write_str("org erased, no record left")?,
            AuditEvent::DatabaseRewritten => f.write_str("database rewritten")?,
            AuditEvent::ResidueErased => f.write_str("residue erased")?,
            AuditEvent::RotationDue { why } => write!(f, "key due for rotation by {why}")?,
            AuditEvent::KeySuspended => f.write_str("key suspended")?,
            AuditEvent::KeyResumed => f.write_str("key resumed")?,
            AuditEvent::KeyRefused { why } => write!(f, "key refused ({why})")?,
            AuditEvent::RootKeyChanged => f.write_str("root key changed")?,
            AuditEvent::RollbackAccepted { what } => write!(f, "rollback accepted ({what})")?,
            AuditEvent::BackupMade { backup, whole_store, orgs, left_out, unreadable } => {
                write!(f, "backup {backup} made, ")?;
                match (orgs.as_slice(), whole_store) {
                    ([(org, _)], false) => write!(f, "of org {org}")?,
                    (orgs, true) => write!(f, "of all orgs, {}", orgs.len())?,
                    (orgs, false) => write!(f, "of {} orgs", orgs.len())?,
                }
                if (*left_out, *unreadable) != (0, 0) {
                    write!(f, ", without {left_out} orgs and {unreadable} records")?;
                }
            }
            AuditEvent::BackupBegun { backup, only } => {
                write!(f, "backup {backup} begun, ")?;
                match only.as_slice() {
                    [] => f.write_str("of all orgs")?,
                    [org] => write!(f, "of org {org}")?,
                    orgs => write!(f, "of {} orgs", orgs.len())?,
                }
            }
            AuditEvent::RestoreBegun { backup } => write!(f, "restore from backup {backup} begun")?,
            AuditEvent::OrgRestored { backup } => write!(f, "org restored from backup {backup}")?,
            AuditEvent::RestoreDiscarded => f.write_str("unfinished restore discarded")?,
            AuditEvent::ImportTokenMade { token, expires_unix_ms } => {
                write!(f, "import token {token} made, until {}", rfc3339(*expires_unix_ms))?;
            }
            AuditEvent::ImportTokenUsed { token } => write!(f, "import token {token} used")?,
            AuditEvent::ImportTokenExpired { token } => write!(f, "import token {token} expired")?,
            AuditEvent::SealedKeyRefused { token, why } => {
                write!(f, "sealed key under token {token} refused ({why})")?;
            }
            AuditEvent::NamelessRemoved { records } => {
                write!(f, "{records} records whose name does not open removed")?;
            }
        }
        if let Some((name, _)) = &self.org {
            write!(f, "  org {name}")?;
        }
        if let Some(version) = self.version {
            write!(f, "  {version}")?;
        }
        if let Some(fingerprint) = self.fingerprint {
            write!(f, "  fingerprint {fingerprint}")?;
        }
        Ok(())
    }
}

/// An entry before it has its place in the chain.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) event: AuditEvent,
    pub(crate) org: Option<(String, OrgId)>,
    pub(crate) version: Option<KeyVersion>,
    pub(crate) fingerprint: Option<Fingerprint>,
}

impl Draft {
    pub(crate) fn new(event: AuditEvent) -> Self {
        Self { event, org: None, version: None, fingerprint: None }
    }

    pub(crate) fn org(mut self, name: &str, id: OrgId) -> Self {
        self.org = Some((name.to_owned(), id));
        self
    }

    pub(crate) fn key(mut self, version: KeyVersion, fingerprint: Fingerprint) -> Self {
        self.version = Some(version);
        self.fingerprint = Some(fingerprint);
        self
    }
}

/// Seals entries and certificates, and reads them back.
pub(crate) struct Notary {
    /// Of the store's secret.
    generation: u32,
    entries: SuiteKey,
    certificates: KeyMaterial,
}

/// The end of the chain: how many entries, and the hash of the last.
pub(crate) type Head = (u64, [u8; 32]);

/// How far the chain was read: how many entries, and the hash that the next one must name, if
/// the last one was there to tell.
pub(crate) type Link = (u64, Option<[u8; 32]>);

impl Notary {
    /// Makes the notary of one generation of the store's secret, from which `derive` makes the key
    /// for a purpose.
    pub(crate) fn new(generation: u32, derive: impl Fn(&[u8]) -> KeyMaterial) -> Self {
        Self {
            generation,
            entries: SuiteKey::xaes(&derive(b"byokv audit v1")),
            certificates: derive(b"byokv certificate v1"),
        }
    }

    /// Key and value of the next entry in the database, and the new end of the chain.
    pub(crate) fn append(
        &self,
        (entries, previous): Head,
        draft: Draft,
        at_unix_ms: u64,
    ) -> Result<(Vec<u8>, Vec<u8>, Head)> {
        let number = entries + 1;
        let Draft { event, org, version, fingerprint } = draft;
        let entry = AuditEntry { number, at_unix_ms, event, org, version, fingerprint, previous };
        let key = entry_key(number);
        let sealed = sealed::seal(&self.entries, &key, &entry)?;
        Ok((key, sealed, (number, hash(&entry))))
    }

    /// Opens the entry that stands under its number and checks its link to the one before.
    pub(crate) fn read(
        &self,
        (entries, previous): Link,
        stored: Option<&[u8]>,
    ) -> Result<(AuditEntry, Head)> {
        let number = entries + 1;
        let broken = |why| Error::AuditBroken { entry: number, why };
        let stored = stored.ok_or_else(|| broken("it is missing"))?;
        let entry: AuditEntry = sealed::open(&self.entries, &entry_key(number), stored)
            .ok_or_else(|| broken("it is damaged or was not written by this store"))?;
        if entry.number != number || previous.is_some_and(|previous| entry.previous != previous) {
            return Err(broken("it does not follow the entry before it"));
        }
        let head = (number, hash(&entry));
        Ok((entry, head))
    }

    pub(crate) fn certify(&self, certificate: Certificate) -> Certificate {
        let secret_generation = self.generation;
        Certificate { secret_generation, ..certificate }.authenticate(&self.certificates)
    }

    pub(crate) fn verify(&self, certificate: &Certificate) -> Result<()> {
        certificate.verify(&self.certificates)
    }

    /// Seals something else that the database keeps for the store, under its key there.
    pub(crate) fn seal<T: Serialize>(&self, key: &[u8], thing: &T) -> Result<Vec<u8>> {
        sealed::seal(&self.entries, key, thing)
    }

    /// `None` if the bytes were not sealed by this store for this key.
    pub(crate) fn open<T: DeserializeOwned>(&self, key: &[u8], stored: &[u8]) -> Option<T> {
        sealed::open(&self.entries, key, stored)
    }
}

pub(crate) fn entry_key(number: u64) -> Vec<u8> {
    [b"audit/", &number.to_be_bytes()[..]].concat()
}

fn hash(entry: &AuditEntry) -> [u8; 32] {
    Sha256::digest(&sealed::encode(entry)[..]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notary() -> Notary {
        Notary::new(1, |purpose| KeyMaterial::take(&mut [6; 32]).derive(&[purpose]))
    }

    #[test]
    fn a_chain_reads_back_and_breaks_where_it_was_touched() {
        let notary = notary();
        let mut head: Head = (0, [0; 32]);
        let mut stored = Vec::new();
        for event in [AuditEvent::StoreCreated, AuditEvent::OrgCreated, AuditEvent::KeyRetired] {
            let (_, sealed, next) = notary.append(head, Draft::new(event), 0).unwrap();
            stored.push(sealed);
            head = next;
        }
        let walk = |stored: &[Vec<u8>]| {
            let mut at: Head = (0, [0; 32]);
            for sealed in stored {
                at = notary.read((at.0, Some(at.1)), Some(sealed))?.1;
            }
            Ok::<_, Error>(at)
        };
        assert_eq!(walk(&stored).unwrap(), head);
        let swapped = [stored[1].clone(), stored[0].clone()];
        assert!(matches!(walk(&swapped), Err(Error::AuditBroken { entry: 1, .. })));
        let (_, other, _) =
            notary.append((1, [9; 32]), Draft::new(AuditEvent::OrgCreated), 0).unwrap();
        let replaced = [stored[0].clone(), other];
        assert!(matches!(walk(&replaced), Err(Error::AuditBroken { entry: 2, .. })));
        assert!(matches!(
            notary.read((head.0, None), None),
            Err(Error::AuditBroken { entry: 4, .. })
        ));
    }
}
