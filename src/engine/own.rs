//! What the store keeps of itself in the database, sealed by its notary.
//!
//! A change of a compromised root key replaces the notary and the database at one moment. So the
//! notary is locked from before a value is sealed until it is written, and from before it is read
//! until it is opened: no value that the old notary sealed comes into the new database.

use std::sync::{PoisonError, RwLockReadGuard};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Engine;
use crate::audit::{Certificate, Notary};
use crate::error::Result;
use crate::failpoint;
use crate::id::CertificateHash;
use crate::keyring::StoreSecret;
use crate::storage::Space;

/// The notary of the secret that is in force.
pub(super) fn notary_of(secret: &StoreSecret) -> Notary {
    Notary::new(secret.generation(), |purpose| secret.derive(purpose))
}

impl Engine {
    /// Lends the notary that is in force. A thread must not ask for it twice at a time, nor wait
    /// for the keyring or for a sync while it has it.
    pub(crate) fn notary(&self) -> RwLockReadGuard<'_, Notary> {
        self.notary.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seals `thing` and writes it under `key`.
    pub(crate) fn keep<T: Serialize>(&self, key: &[u8], thing: &T) -> Result<()> {
        let notary = self.notary();
        let sealed = notary.seal(key, thing)?;
        failpoint::reach("own.sealed", "");
        self.storage.put(Space::System, key, Some(sealed))
    }

    /// Reads what [`keep`](Self::keep) wrote under `key`. Returns `None` if there is nothing, or
    /// something that this store did not seal for this key.
    pub(crate) fn kept<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>> {
        let notary = self.notary();
        let stored = self.storage.get(Space::System, key)?;
        Ok(stored.and_then(|stored| notary.open(key, &stored)))
    }

    /// Opens what a scan found under `key`. What does not open is read once more, because the scan
    /// may have met it before the notary was replaced.
    pub(crate) fn open_kept<T: DeserializeOwned>(
        &self,
        key: &[u8],
        stored: &[u8],
    ) -> Result<Option<T>> {
        let opened = self.notary().open(key, stored);
        opened.map_or_else(|| self.kept(key), |thing| Ok(Some(thing)))
    }

    /// Opens a certificate that a scan found under `key`, and hashes its stored bytes. What does not
    /// open is read once more, because the scan may have met it before the notary was replaced.
    pub(crate) fn open_certificate(
        &self,
        key: &[u8],
        stored: &[u8],
    ) -> Result<Option<(Certificate, CertificateHash)>> {
        let notary = self.notary();
        if let Some(opened) = notary.open_certificate(key, stored) {
            return Ok(Some(opened));
        }
        let stored = self.storage.get(Space::System, key)?;
        Ok(stored.and_then(|stored| notary.open_certificate(key, &stored)))
    }
}
