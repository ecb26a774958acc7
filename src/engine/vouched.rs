//! Certificates that were made with a secret of the store that is no longer in force. Whoever has a
//! copy of the store from then can make more of them, so only those count that the audit log has.

use std::collections::HashSet;

use super::Engine;
use crate::audit::{AuditEntry, Certificate};
use crate::error::{Error, Result};
use crate::id::CertificateHash;

/// The certificates that the audit log vouches for, as far as its own end vouches for it: where an
/// entry is missing or does not follow the one before, nothing does for those before it.
#[derive(Default)]
pub(crate) struct Vouched(HashSet<CertificateHash>);

impl Vouched {
    /// Takes over what the next entry of the log was read as.
    pub(crate) fn read(&mut self, entry: Result<&AuditEntry, &Error>) {
        match entry {
            Ok(entry) => self.0.extend(entry.event.certificate().map(|(_, hash)| hash)),
            Err(_) => self.0.clear(),
        }
    }
}

impl Engine {
    /// Checks that this store made the certificate, and that nobody altered it. The log is asked
    /// only about one that was made with a secret of before.
    pub(crate) fn authenticate<'a>(
        &self,
        certificate: &Certificate,
        vouched: impl FnOnce() -> Result<&'a Vouched>,
    ) -> Result<()> {
        let generation = certificate.secret_generation;
        let notary = self.notary();
        let newest = notary.generation();
        if generation == newest {
            return notary.verify(certificate);
        }
        drop(notary);
        let invalid = |why| Err(Error::CertificateInvalid { why });
        if generation == 0 || generation > newest {
            return invalid(
                "it names a secret that this store never had: it was altered, or another store made \
                 it",
            );
        }
        if !vouched()?.0.contains(&certificate.sha256()) {
            return invalid(
                "the secret that it was made with is no longer in force, and the audit log does not \
                 vouch for it: it was altered, or made with a copy of the store",
            );
        }
        certificate.check_claim()
    }
}
