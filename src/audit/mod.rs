//! The audit log: one sealed, hash-chained entry for each change of a key.

mod certificate;
mod check;
mod copies;
mod event;
mod refusal;
mod scope;
mod view;

use std::fmt;

use serde::de::DeserializeOwned;
use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};

pub use certificate::{Certificate, CertificateKind};
pub use check::{
    CertificateCheck, CertificateMismatch, CertificateReport, FoundInstead, LostCertificate,
    Superseded, SupersededBy,
};
pub(crate) use check::{Logged, SuiteTaken};
pub use copies::{BackupCopy, BackupState};
pub(crate) use copies::{Ended, Registered};
pub use event::AuditEvent;
pub use refusal::KeyRefusal;
pub use scope::ErasureLimit;
pub use view::OrgAuditEntry;

use crate::envelope::suite::SuiteKey;
use crate::error::{Error, Result};
use crate::id::{CertificateHash, Fingerprint, KeyVersion, OrgId, hex_array};
use crate::material::KeyMaterial;
use crate::sealed;
use crate::time::rfc3339;

/// An org as the audit log names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OrgRef {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: OrgId,
}

/// One entry of the audit log.
///
/// In JSON an object with the fields in their order, and the times as RFC 3339 too: `at` before
/// `at_unix_ms`, `clock` before `clock_unix_ms`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
#[non_exhaustive]
pub struct AuditEntry {
    /// Number, from 1 without gaps.
    pub number: u64,
    /// Milliseconds since 1970-01-01 UTC, by this machine's clock; never less than the entry
    /// before has.
    pub at_unix_ms: u64,
    /// What the clock really showed, if that was less than the entry before has.
    pub clock_unix_ms: Option<u64>,
    /// What happened.
    pub event: AuditEvent,
    /// The org that it is about, if it is about one.
    pub org: Option<OrgRef>,
    /// The key version, if it is about one.
    pub version: Option<KeyVersion>,
    /// The key's fingerprint (for [`AuditEvent::RootKeyChanged`] the new root key's).
    pub fingerprint: Option<Fingerprint>,
    /// SHA-256 of the entry before, as encoded; zeros for the first.
    #[serde(with = "hex_array")]
    pub previous: [u8; 32],
}

impl Serialize for AuditEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return Self::serialize(self, serializer);
        }
        let Self { number, at_unix_ms, clock_unix_ms, event, org, version, fingerprint, previous } =
            self;
        let mut entry = serializer.serialize_struct("AuditEntry", 10)?;
        entry.serialize_field("number", number)?;
        entry.serialize_field("at", &rfc3339(*at_unix_ms))?;
        entry.serialize_field("at_unix_ms", at_unix_ms)?;
        entry.serialize_field("clock", &clock_unix_ms.map(rfc3339))?;
        entry.serialize_field("clock_unix_ms", clock_unix_ms)?;
        entry.serialize_field("event", event)?;
        entry.serialize_field("org", org)?;
        entry.serialize_field("version", version)?;
        entry.serialize_field("fingerprint", fingerprint)?;
        entry.serialize_field("previous", &hex(previous))?;
        entry.end()
    }
}

impl<'de> Deserialize<'de> for AuditEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::deserialize(deserializer)
    }
}

/// The end of the audit log: every entry before it is fixed by its hash.
///
/// An operator who writes it down notices later whether the log up to there was made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct AuditHead {
    /// Number of the last entry.
    pub number: u64,
    /// SHA-256 of the last entry as it is encoded, in JSON as hex.
    #[serde(with = "hex_array")]
    pub sha256: [u8; 32],
}

/// Such as `entry 5, SHA-256 3f2a…`.
impl fmt::Display for AuditHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {}, SHA-256 {}", self.number, hex(&self.sha256))
    }
}

fn hex(bytes: &[u8; 32]) -> String {
    base16ct::lower::encode_string(bytes)
}

impl fmt::Display for AuditEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_entry(
            f,
            (self.number, self.at_unix_ms, self.clock_unix_ms),
            &self.event,
            (self.org.as_ref(), self.version, self.fingerprint),
        )
    }
}

/// Writes an entry for people: its number, its time and what the clock showed; what happened; what it
/// is about.
fn write_entry(
    f: &mut fmt::Formatter<'_>,
    (number, at_unix_ms, clock_unix_ms): (u64, u64, Option<u64>),
    event: &AuditEvent,
    (org, version, fingerprint): (Option<&OrgRef>, Option<KeyVersion>, Option<Fingerprint>),
) -> fmt::Result {
    write!(f, "{number:>4}  {}  ", rfc3339(at_unix_ms))?;
    if let Some(clock) = clock_unix_ms {
        write!(f, "(the clock showed {}) ", rfc3339(clock))?;
    }
    write!(f, "{event}")?;
    if let Some(org) = org {
        write!(f, "  org {}", org.name)?;
    }
    if let Some(version) = version {
        write!(f, "  {version}")?;
    }
    if let Some(fingerprint) = fingerprint {
        write!(f, "  fingerprint {fingerprint}")?;
    }
    Ok(())
}

/// An entry before it has its place in the chain.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) event: AuditEvent,
    pub(crate) org: Option<OrgRef>,
    pub(crate) version: Option<KeyVersion>,
    pub(crate) fingerprint: Option<Fingerprint>,
}

impl Draft {
    pub(crate) fn new(event: AuditEvent) -> Self {
        Self { event, org: None, version: None, fingerprint: None }
    }

    pub(crate) fn org(mut self, name: &str, id: OrgId) -> Self {
        self.org = Some(OrgRef { name: name.to_owned(), id });
        self
    }

    pub(crate) fn key(mut self, version: KeyVersion, fingerprint: Fingerprint) -> Self {
        self.version = Some(version);
        self.fingerprint = Some(fingerprint);
        self
    }
}

/// A certificate that was just made.
pub(crate) struct Certified {
    pub(crate) certificate: Certificate,
    /// Where the database keeps it, and what it keeps there.
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
    pub(crate) hash: CertificateHash,
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

    /// Key and value of the next entry in the database, and the new end of the chain. The entry
    /// gets the time of `clock`, but none before `last`, the time of the entry before.
    pub(crate) fn append(
        &self,
        (entries, previous): Head,
        draft: Draft,
        (last, clock): (u64, u64),
    ) -> Result<(Vec<u8>, Vec<u8>, Head)> {
        let number = entries + 1;
        let Draft { event, org, version, fingerprint } = draft;
        let at_unix_ms = clock.max(last);
        let clock_unix_ms = (clock < at_unix_ms).then_some(clock);
        let entry = AuditEntry {
            number,
            at_unix_ms,
            clock_unix_ms,
            event,
            org,
            version,
            fingerprint,
            previous,
        };
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

    /// The generation of the store's secret that it works with.
    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// Seals anew for `to` what this notary had sealed under `key`. Anything else is left as it is.
    pub(crate) fn reseal(&self, to: &Self, key: &[u8], stored: &[u8]) -> Result<Vec<u8>> {
        match sealed::open_bytes(&self.entries, key, stored) {
            Some(opened) => sealed::seal_bytes(&to.entries, key, &opened),
            None => Ok(stored.to_vec()),
        }
    }

    /// Adds the authenticator to a certificate, and gives back also what the database keeps of it
    /// and the hash of exactly those bytes, before they are sealed.
    pub(crate) fn certify(&self, certificate: Certificate) -> Result<Certified> {
        let secret_generation = self.generation;
        let certificate = Certificate { secret_generation, ..certificate };
        let certificate = certificate.authenticate(&self.certificates);
        let (key, bytes) = (certificate.key(), sealed::encode(&certificate));
        let value = sealed::seal_bytes(&self.entries, &key, &bytes)?;
        let hash = CertificateHash::from_bytes(Sha256::digest(&bytes[..]).into());
        Ok(Certified { certificate, key, value, hash })
    }

    /// Opens a certificate that stands under `key` in the database, and hashes the stored bytes.
    /// `None` if they were not sealed by this store for this key.
    pub(crate) fn open_certificate(
        &self,
        key: &[u8],
        stored: &[u8],
    ) -> Option<(Certificate, CertificateHash)> {
        let bytes = sealed::open_bytes(&self.entries, key, stored)?;
        let hash = CertificateHash::from_bytes(Sha256::digest(&bytes[..]).into());
        Some((sealed::decode(&bytes)?, hash))
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
        for event in [AuditEvent::StoreCreated, AuditEvent::OrgCreated, AuditEvent::KeyHeld] {
            let (_, sealed, next) = notary.append(head, Draft::new(event), (0, 0)).unwrap();
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
            notary.append((1, [9; 32]), Draft::new(AuditEvent::OrgCreated), (0, 0)).unwrap();
        let replaced = [stored[0].clone(), other];
        assert!(matches!(walk(&replaced), Err(Error::AuditBroken { entry: 2, .. })));
        assert!(matches!(
            notary.read((head.0, None), None),
            Err(Error::AuditBroken { entry: 4, .. })
        ));
    }
}
