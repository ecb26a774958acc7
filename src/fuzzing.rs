//! A hidden door to the decoders, for `fuzz/`: both sides of the tag; and to sealing alone, for
//! `benches/envelope.rs`.

#[cfg(feature = "backup")]
use crate::backup;
use crate::envelope::suite::SuiteKey;
use crate::envelope::{self, Header, Value};
use crate::error::Result;
use crate::id::{KeyVersion, OrgId, Suite};
use crate::keyring::root::{self, RootKey};
use crate::material::KeyMaterial;

/// Bytes as the header of an envelope; what decodes must encode to the same bytes.
pub fn header_decode(bytes: &[u8]) {
    if let Ok(header) = Header::decode(bytes) {
        assert_eq!(header.encode()[..], bytes[..envelope::HEADER_LEN]);
    }
}

/// Bytes as an envelope, then as a value and its name.
pub fn envelope_open(bytes: &[u8]) {
    let suite = Suite::ALL[bytes.first().map_or(0, |byte| usize::from(*byte) % Suite::ALL.len())];
    let header = Header { suite, org: OrgId::from_bytes([1; 16]), version: KeyVersion::FIRST };
    let Some(key) = header.key(&KeyMaterial::take(&mut [2; 32])) else { return };
    assert!(envelope::open(&key, b"name", bytes).is_err());
    let (name, value) = bytes.split_at(bytes.len() / 3);
    if let Ok(sealed) = envelope::seal(&key, &header, name, value) {
        assert_eq!(Header::decode(&sealed), Ok(header));
        assert!(envelope::open(&key, name, &sealed).is_ok_and(|opened| opened == *value));
    }
}

/// One key of one org, without a store.
#[allow(missing_debug_implementations)]
pub struct Sealer {
    header: Header,
    key: SuiteKey,
}

impl Sealer {
    /// Returns a key of an org's first version; `None` if this build does not have the suite.
    pub fn new(suite: Suite, material: &KeyMaterial) -> Option<Self> {
        let header = Header { suite, org: OrgId::from_bytes([1; 16]), version: KeyVersion::FIRST };
        header.key(material).map(|key| Self { key, header })
    }

    /// As `Org::put` does before it writes.
    pub fn seal(&self, name: &[u8], value: &[u8]) -> Result<Vec<u8>> {
        envelope::seal(&self.key, &self.header, name, value)
    }

    /// As `Org::get` does with what it has read.
    pub fn open(&self, name: &[u8], envelope: &[u8]) -> Option<Value> {
        let header = Header::decode(envelope).ok()?;
        assert_eq!(header, self.header);
        envelope::open(&self.key, name, envelope).ok()
    }

    /// As a rotation does: what `from` has sealed, sealed by this one.
    pub fn reseal(&self, from: &Self, name: &[u8], envelope: &[u8]) -> Result<Option<Vec<u8>>> {
        let resealed = envelope::reseal((&from.key, envelope), (&self.key, &self.header), name)?;
        Ok(resealed.ok())
    }
}

/// Bytes as a keyring file, then as what lies behind its tag.
pub fn keyring_decode(bytes: &[u8]) {
    let root = RootKey::from_material(KeyMaterial::take(&mut [3; 32]));
    root::fuzz(&root, bytes);
}

/// A backup under `key` around these bytes: as its whole inside, or as its entries.
#[cfg(feature = "backup")]
pub fn backup_seal(key: &KeyMaterial, bytes: &[u8]) -> Vec<u8> {
    backup::fuzz_seal(key, bytes).unwrap_or_default()
}

#[cfg(feature = "backup")]
pub use crate::backup::HostileBackup;

/// What somebody wrote who has the key of a backup.
#[cfg(feature = "backup")]
pub fn backup_hostile(key: &KeyMaterial, hostile: &HostileBackup<'_>) -> Vec<u8> {
    backup::hostile(key, hostile).unwrap_or_default()
}

/// Bytes as import tokens and sealed keys: as text, behind the checksum, behind the tag.
#[cfg(feature = "import")]
pub fn sealed_import(bytes: &[u8]) {
    crate::import::fuzz(bytes);
}
