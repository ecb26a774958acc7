//! Identifiers and the small closed vocabularies that every floor uses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Random, never reused identifier of an org: 128 bits, printed as hex.
///
/// The org's name is for people; the id is what key versions, envelopes and
/// certificates are bound to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OrgId(#[serde(with = "hex_array")] [u8; 16]);

impl OrgId {
    pub(crate) const LEN: usize = 16;

    pub(crate) const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes as they stand in an envelope's header.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl FromStr for OrgId {
    type Err = PositionError;

    /// Reads the 32 hex digits that it prints.
    fn from_str(text: &str) -> Result<Self, PositionError> {
        let mut bytes = [0; Self::LEN];
        match base16ct::mixed::decode(text, &mut bytes) {
            Ok(decoded) if decoded.len() == Self::LEN => Ok(Self(bytes)),
            _ => Err(PositionError),
        }
    }
}

/// How far a store has got: what it proves of itself can be no older than this. From
/// [`Store::position`](crate::Store::position); kept elsewhere, it shows an older copy of the whole
/// directory, which the store itself cannot notice
/// ([`Options::minimum_position`](crate::Options::minimum_position)).
///
/// Printed and read as `store:generation:syncs`.
///
/// ```
/// use byokv::StorePosition;
///
/// let position: StorePosition = "30313233343536373839616263646566:12:345".parse()?;
/// assert_eq!((position.keyring_generation, position.syncs), (12, 345));
/// assert_eq!(position.to_string(), "30313233343536373839616263646566:12:345");
/// # Ok::<(), byokv::PositionError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StorePosition {
    /// Id of the store.
    pub store: OrgId,
    /// How often its keyring was replaced.
    pub keyring_generation: u64,
    /// Durable syncs in its whole life.
    pub syncs: u64,
}

impl StorePosition {
    /// Whether a store that is here is the same one and no older.
    pub(crate) fn has_reached(self, minimum: Self) -> bool {
        self.store == minimum.store
            && self.keyring_generation >= minimum.keyring_generation
            && self.syncs >= minimum.syncs
    }
}

impl fmt::Display for StorePosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.store, self.keyring_generation, self.syncs)
    }
}

/// The text is neither the id of a store (32 hex digits) nor, where that is wanted, a position
/// (`store:generation:syncs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the id of a store has 32 hex digits, and a position is ID:GENERATION:SYNCS")]
pub struct PositionError;

impl FromStr for StorePosition {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let number = |text: &str| {
            let is_plain = text.bytes().all(|digit| digit.is_ascii_digit());
            text.parse().ok().filter(|_| is_plain).ok_or(PositionError)
        };
        let mut parts = text.split(':');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(store), Some(generation), Some(syncs), None) => Ok(Self {
                store: store.parse()?,
                keyring_generation: number(generation)?,
                syncs: number(syncs)?,
            }),
            _ => Err(PositionError),
        }
    }
}

/// Number of a key of one org: from 1, rising by one, never reissued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct KeyVersion(u32);

impl<'de> Deserialize<'de> for KeyVersion {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u32::deserialize(deserializer)?;
        Self::new(number).ok_or_else(|| serde::de::Error::custom("key versions begin at 1"))
    }
}

impl KeyVersion {
    pub(crate) const FIRST: Self = Self(1);

    /// `None` for 0, which no org ever had.
    pub(crate) fn new(number: u32) -> Option<Self> {
        (number > 0).then_some(Self(number))
    }

    pub(crate) fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }

    /// The number as it stands in an envelope's header.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for KeyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// Public check value of key material: the first 16 bytes of
/// HMAC-SHA-256(material, `"byokv fingerprint v1"`), printed as hex.
///
/// Safe to print and to compare by phone. The same material has the same
/// fingerprint in every org and every store, so reuse is seen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fingerprint(#[serde(with = "hex_array")] [u8; 16]);

impl Fingerprint {
    pub(crate) const LEN: usize = 16;

    pub(crate) const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// Public name of an import token, printed as hex: the first 16 bytes of SHA-256 over all that
/// the token says. Whoever compares it with the store's compares the whole token.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TokenId(#[serde(with = "hex_array")] [u8; 16]);

impl TokenId {
    #[cfg_attr(not(feature = "import"), allow(dead_code))]
    pub(crate) const LEN: usize = 16;

    #[cfg_attr(not(feature = "import"), allow(dead_code))]
    pub(crate) const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// Random identity of a backup: 128 bits, printed as hex.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BackupId(#[serde(with = "hex_array")] [u8; 16]);

impl BackupId {
    #[cfg_attr(not(feature = "backup"), allow(dead_code))]
    pub(crate) const LEN: usize = 16;

    #[cfg_attr(not(feature = "backup"), allow(dead_code))]
    pub(crate) const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// SHA-256 of a certificate as the store encodes it, printed as hex. The entry of the audit log that
/// belongs to the certificate holds it, so the log proves which certificates there are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CertificateHash(#[serde(with = "hex_array")] [u8; 32]);

impl CertificateHash {
    pub(crate) const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

macro_rules! hex_display {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&base16ct::lower::encode_string(&self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    )*};
}
hex_display!(OrgId, Fingerprint, TokenId, BackupId, CertificateHash);

/// Where key material came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Generated by the store.
    Platform,
    /// Brought by the org (BYOK).
    Customer,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Platform => "platform",
            Self::Customer => "customer",
        })
    }
}

/// State of a key version, with its counterpart in NIST SP 800-57 Part 1 Rev. 5, section 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// Seals and opens. NIST: active.
    Active,
    /// Opens only. NIST: deactivated.
    DecryptOnly,
    /// Material destroyed, metadata kept for ever. NIST: destroyed.
    Retired,
    /// Material withheld on purpose; the same material may be given back. NIST: suspended.
    Suspended,
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::DecryptOnly => "decrypt-only",
            Self::Retired => "retired",
            Self::Suspended => "suspended",
        })
    }
}

/// The algorithm of a sealed value. Each takes a 256-bit key and a nonce of 192 random bits, and
/// gives a 128-bit tag.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum Suite {
    /// XAES-256-GCM, <https://c2sp.org/XAES-256-GCM>. The default: AES instructions make it fast.
    #[default]
    #[serde(rename = "XAES-256-GCM")]
    Xaes256Gcm,
    /// XChaCha20-Poly1305, draft-irtf-cfrg-xchacha-03. For machines without AES instructions.
    #[serde(rename = "XChaCha20-Poly1305")]
    XChaCha20Poly1305,
    /// AEGIS-256, RFC 10032. The fastest on processors with AES instructions: it needs no key for
    /// each message. Available in builds with the feature `aegis`, and not approved by FIPS 140-3.
    #[serde(rename = "AEGIS-256")]
    Aegis256,
}

impl Suite {
    /// Every suite, in the order of their bytes, also those that this build does not have.
    pub const ALL: [Self; 3] = [Self::Xaes256Gcm, Self::XChaCha20Poly1305, Self::Aegis256];

    /// Returns true if this build can seal and open with the suite.
    #[must_use]
    pub fn is_available(self) -> bool {
        match self {
            Self::Xaes256Gcm | Self::XChaCha20Poly1305 => true,
            Self::Aegis256 => cfg!(feature = "aegis"),
        }
    }

    /// The suite's byte in an envelope's header.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::Xaes256Gcm => 1,
            Self::XChaCha20Poly1305 => 2,
            Self::Aegis256 => 3,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|suite| suite.byte() == byte)
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Xaes256Gcm => "XAES-256-GCM",
            Self::XChaCha20Poly1305 => "XChaCha20-Poly1305",
            Self::Aegis256 => "AEGIS-256",
        })
    }
}

/// Why a key is due to be rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Due {
    /// It is as old as the policy allows.
    Age,
    /// It has sealed as many records as the policy allows.
    Records,
    /// It has sealed as many bytes as the policy allows.
    Bytes,
}

impl fmt::Display for Due {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Age => "its age",
            Self::Records => "the number of records it has sealed",
            Self::Bytes => "the number of bytes it has sealed",
        })
    }
}

/// Serde for fixed-width bytes: hex where people read, plain bytes elsewhere.
pub(crate) mod hex_array {
    use std::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer, const N: usize>(
        bytes: &[u8; N],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            base16ct::lower::encode_string(bytes).serialize(serializer)
        } else {
            serializer.serialize_bytes(bytes)
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
        deserializer: D,
    ) -> Result<[u8; N], D::Error> {
        if !deserializer.is_human_readable() {
            return deserializer.deserialize_bytes(Plain);
        }
        let text = String::deserialize(deserializer)?;
        let bytes = base16ct::lower::decode_vec(&text)
            .map_err(|_| D::Error::custom("not lower-case hex"))?;
        <[u8; N]>::try_from(bytes).map_err(|b| D::Error::invalid_length(b.len(), &"a fixed length"))
    }

    /// Takes bytes as one piece: a list of a million fingerprints is read byte by byte otherwise.
    struct Plain<const N: usize>;

    impl<const N: usize> Visitor<'_> for Plain<N> {
        type Value = [u8; N];

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{N} bytes")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<[u8; N], E> {
            bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_start_at_one_and_end_without_wrapping() {
        assert_eq!(KeyVersion::new(0), None);
        assert_eq!(KeyVersion::new(1), Some(KeyVersion::FIRST));
        assert_eq!(KeyVersion::FIRST.next().map(KeyVersion::get), Some(2));
        assert_eq!(KeyVersion::new(u32::MAX).and_then(KeyVersion::next), None);
        assert_eq!(serde_json::to_string(&KeyVersion::FIRST).unwrap(), "1");
        assert_eq!(serde_json::from_str::<KeyVersion>("7").unwrap().get(), 7);
        assert!(serde_json::from_str::<KeyVersion>("0").is_err());
    }

    #[test]
    fn suite_bytes_are_distinct_and_zero_is_none() {
        for suite in Suite::ALL {
            assert_eq!(Suite::from_byte(suite.byte()), Some(suite));
        }
        assert_eq!(Suite::from_byte(0), None);
        assert_eq!(Suite::from_byte(4), None);
    }

    #[test]
    fn positions_are_read_as_they_are_printed() {
        let id = OrgId::from_bytes([0xab; 16]);
        let at = |keyring_generation, syncs| StorePosition { store: id, keyring_generation, syncs };
        let position = at(7, u64::MAX);
        assert_eq!(position.to_string().parse(), Ok(position));
        assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        let json = serde_json::to_string(&position).unwrap();
        assert_eq!(serde_json::from_str::<StorePosition>(&json).unwrap(), position);
        let hex = id.to_string();
        for wrong in ["", "1:2", ":1:2", "ab:1:2"] {
            assert_eq!(wrong.parse::<StorePosition>(), Err(PositionError), "{wrong}");
        }
        for wrong in [":1", ":1:2:3", ":-1:2", ":+1:2", ":1:", ":1:99999999999999999999"] {
            let wrong = format!("{hex}{wrong}");
            assert_eq!(wrong.parse::<StorePosition>(), Err(PositionError), "{wrong}");
        }
        assert!(at(7, 7).has_reached(at(7, 7)) && at(8, 8).has_reached(at(7, 7)));
        assert!(!at(6, 8).has_reached(at(7, 7)) && !at(8, 6).has_reached(at(7, 7)));
        let other = StorePosition { store: OrgId::from_bytes([1; 16]), ..at(1, 1) };
        assert!(!at(7, 7).has_reached(other));
    }

    #[test]
    fn ids_are_hex_for_people_and_bytes_for_bincode() {
        let id = OrgId::from_bytes(*b"0123456789abcdef");
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, "\"30313233343536373839616263646566\"");
        assert_eq!(serde_json::from_str::<OrgId>(&json).unwrap(), id);
        assert!(serde_json::from_str::<OrgId>("\"30\"").is_err());
        let binary = bincode::serialize(&id).unwrap();
        assert_eq!(bincode::deserialize::<OrgId>(&binary).unwrap(), id);
    }
}
