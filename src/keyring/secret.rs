//! The store's secret, in numbered generations. Only the newest generation's material is kept.

use serde::{Deserialize, Serialize};

use super::encoding;
use crate::error::Result;
use crate::material::KeyMaterial;

/// The source of the keys for the mark, the digest, the audit log, certificates and everything else
/// that the store keeps of itself.
///
/// A root key that leaked gives away the secret of that time. So a change of a compromised root key
/// makes a new generation. Nothing needs the old material afterwards: what it had sealed is sealed
/// anew, and its certificates count because the audit log names them.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoreSecret {
    #[serde(with = "encoding::material")]
    material: KeyMaterial,
    /// The number of the first audit entry of each generation, from generation 1 on. The last one
    /// is the generation of `material`.
    since: Vec<u64>,
}

impl StoreSecret {
    pub(crate) fn generate() -> Result<Self> {
        Ok(Self { material: KeyMaterial::generate()?, since: vec![1] })
    }

    /// The number of the generation that is in force, from 1.
    pub(crate) fn generation(&self) -> u32 {
        u32::try_from(self.since.len()).unwrap_or(u32::MAX)
    }

    /// The key for one purpose.
    pub(crate) fn derive(&self, purpose: &[u8]) -> KeyMaterial {
        self.material.derive(&[purpose])
    }

    pub(super) fn duplicate(&self) -> Self {
        Self { material: self.material.duplicate(), since: self.since.clone() }
    }
}
