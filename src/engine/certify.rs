//! The one place that makes certificates.

use std::path::Path;

use super::change::Drafts;
use super::{Copies, Engine};
use crate::audit::{AuditEvent, Certificate, CertificateKind, Certified, Draft, ErasureLimit};
use crate::disk::{Medium, Writes};
use crate::error::Result;
use crate::id::{KeyVersion, OrgId};
use crate::keyring::{Keyring, Owed};

/// What a certificate says beside what the keyring knows.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) kind: CertificateKind,
    pub(crate) org: OrgId,
    pub(crate) version: KeyVersion,
    /// The version that took its place, where one did.
    pub(crate) successor: Option<KeyVersion>,
    pub(crate) records_rewritten: u64,
    pub(crate) records_verified: u64,
    pub(crate) records_deleted: u64,
    /// What the claim does not reach, for a certificate of erasure.
    pub(crate) scope: Vec<ErasureLimit>,
    /// Which backups hold an erased org.
    pub(crate) copies: Copies,
}

impl Claim {
    pub(crate) fn new(
        kind: CertificateKind,
        org: OrgId,
        version: KeyVersion,
        successor: Option<KeyVersion>,
    ) -> Self {
        Self {
            kind,
            org,
            version,
            successor,
            records_rewritten: 0,
            records_verified: 0,
            records_deleted: 0,
            scope: Vec::new(),
            copies: Copies::default(),
        }
    }
}

/// Returns what no erasure in `dir` reaches, whatever it erases.
pub(super) fn limits(dir: &Path) -> Vec<ErasureLimit> {
    let Medium { name: file_system, writes } = Medium::of(dir);
    let of_medium = match writes {
        Writes::InPlace => None,
        Writes::Elsewhere => Some(ErasureLimit::NotInPlace { file_system }),
        Writes::Unknown => Some(ErasureLimit::UnknownFileSystem { file_system }),
    };
    of_medium.into_iter().chain([ErasureLimit::BesideFiles]).collect()
}

impl Engine {
    /// Returns what no erasure in this store's directory reaches, whatever it erases.
    pub(crate) fn limits(&self) -> Vec<ErasureLimit> {
        limits(&self.dir)
    }

    /// Makes the certificate of `claim` and its entry in the audit log, which holds the
    /// certificate's hash, and has the keyring that is being changed owe both to the database.
    /// Returns `None` if the keyring does not know the org or the version.
    pub(crate) fn certify(
        &self,
        keyring: &mut Keyring,
        drafts: &mut Drafts,
        claim: Claim,
    ) -> Result<Option<Certificate>> {
        let Some(entry) = keyring.entry(claim.org) else { return Ok(None) };
        let Some(version) = entry.version(claim.version) else { return Ok(None) };
        let certified = self.notary().certify(Certificate {
            kind: claim.kind,
            store: keyring.store,
            org: entry.name.clone(),
            org_id: claim.org,
            version: version.version,
            fingerprint: version.fingerprint,
            origin: version.origin,
            successor: claim.successor,
            records_rewritten: claim.records_rewritten,
            records_verified: claim.records_verified,
            records_deleted: claim.records_deleted,
            records_left: 0,
            at_unix_ms: keyring.time.wall,
            keyring_generation: keyring.generation,
            secret_generation: 0,
            scope: claim.scope,
            backups: claim.copies.known,
            backups_missing: claim.copies.missing,
            authenticator: Vec::new(),
        })?;
        let Certified { certificate, key, value, hash } = certified;
        let draft = Draft::new(AuditEvent::of_certificate(claim.kind, hash));
        let draft = draft.org(&entry.name, claim.org);
        drafts.push(draft.key(version.version, version.fingerprint));
        keyring.outbox.push(Owed { key, value });
        Ok(Some(certificate))
    }
}
