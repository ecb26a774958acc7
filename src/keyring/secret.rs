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
/// anew, and its certificates count because the audit log has them. Which entry a generation begins
/// with is said by the log.
#[derive(Serialize, Deserialize)]
pub(crate) struct StoreSecret {
    /// From 1.
    generation: u32,
    #[serde(with = "encoding::material")]
    material: KeyMaterial,
}

impl StoreSecret {
    pub(crate) fn generate() -> Result<Self> {
        Ok(Self { generation: 1, material: KeyMaterial::generate()? })
    }

    /// Draws the next generation, which takes the place of this one in the keyring.
    pub(crate) fn draw_next(&self) -> Result<Self> {
        let generation = self.generation.saturating_add(1);
        Ok(Self { generation, material: KeyMaterial::generate()? })
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// The key for one purpose.
    pub(crate) fn derive(&self, purpose: &[u8]) -> KeyMaterial {
        self.material.derive(&[purpose])
    }

    pub(crate) fn duplicate(&self) -> Self {
        Self { material: self.material.duplicate(), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_generation_has_other_keys() {
        let first = StoreSecret::generate().unwrap();
        let second = first.draw_next().unwrap();
        assert_eq!((first.generation(), second.generation()), (1, 2));
        let print = |secret: &StoreSecret, purpose| secret.derive(purpose).fingerprint();
        assert_ne!(print(&first, b"x"), print(&second, b"x"));
        assert_ne!(print(&first, b"x"), print(&first, b"y"));
        assert_eq!(print(&second, b"x"), print(&second.duplicate(), b"x"));
    }
}
