//! The one place that makes certificates.

use super::Engine;
use crate::audit::{Certificate, CertificateKind};
use crate::error::Result;
use crate::id::{KeyVersion, OrgId};
use crate::keyring::{Keyring, Owed};
use crate::time::now_unix_ms;

/// What a certificate says beside what the keyring knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) kind: CertificateKind,
    pub(crate) org: OrgId,
    pub(crate) version: KeyVersion,
    pub(crate) successor: KeyVersion,
    pub(crate) records_rewritten: u64,
    pub(crate) records_verified: u64,
    pub(crate) records_deleted: u64,
}

impl Claim {
    pub(crate) fn new(
        kind: CertificateKind,
        org: OrgId,
        version: KeyVersion,
        successor: KeyVersion,
    ) -> Self {
        Self {
            kind,
            org,
            version,
            successor,
            records_rewritten: 0,
            records_verified: 0,
            records_deleted: 0,
        }
    }
}

impl Engine {
    /// Makes the certificate of `claim`, authenticated, and has the keyring that is being changed
    /// owe it to the database. Returns `None` if the keyring does not know the org or the version.
    pub(crate) fn certify(
        &self,
        keyring: &mut Keyring,
        claim: Claim,
    ) -> Result<Option<Certificate>> {
        let Some(entry) = keyring.entry(claim.org) else { return Ok(None) };
        let Some(version) = entry.version(claim.version) else { return Ok(None) };
        let notary = self.notary();
        let certificate = notary.certify(Certificate {
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
            at_unix_ms: now_unix_ms(),
            keyring_generation: keyring.generation,
            secret_generation: 0,
            authenticator: Vec::new(),
        });
        let key = certificate.key();
        let value = notary.seal(&key, &certificate)?;
        keyring.outbox.push(Owed { key, value });
        Ok(Some(certificate))
    }
}
