//! A customer's key on its way in: sealed under a public token (HPKE, RFC 9180), so that it
//! never travels in plain. Pure: bytes and text, no clock, no store. Layout: `docs/design.md`.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hpke::aead::{AeadTag, ChaCha20Poly1305};
use hpke::kdf::HkdfSha256;
use hpke::kem::{Kem as _, X25519HkdfSha256 as Kem};
use hpke::{Deserializable, OpModeR, OpModeS, Serializable};
use rand::{TryCryptoRng, TryRng};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::error::{Error, ImportError, Result};
use crate::id::{OrgId, TokenId};
use crate::material::{self, KeyMaterial};
use crate::text::is_visible;

/// The format of both texts.
const FORMAT: u8 = 1;
const LABEL: &[u8] = b"byokv import v1";
const SUM_LEN: usize = 4;
const TAG_LEN: usize = 16;

/// What a customer's key is sealed under: public, for one key of one org, for a limited time.
/// From [`KeyAdmin::import_token`](crate::KeyAdmin::import_token); as text, one line.
///
/// Nothing in it is secret. But whoever swaps it for a token of his own can read the key that
/// is sealed under that: compare its [`id`](Self::id) by another channel.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let root = byokv::RootKey::from_material(byokv::KeyMaterial::generate()?);
/// # let store = byokv::Store::open(dir.path().join("data"), root)?;
/// # store.create_org("acme", byokv::OrgPolicy::byok())?;
/// # let customers_key = byokv::KeyMaterial::generate()?;
/// use std::time::Duration;
///
/// use byokv::{ImportToken, SealedKey};
///
/// // The operator makes a token and sends it to the customer:
/// let line = store.keys().import_token("acme", Duration::from_secs(86_400))?.to_string();
///
/// // The customer, anywhere, without a store:
/// let token: ImportToken = line.parse()?;
/// assert_eq!(token.org_name(), "acme");
/// let sealed = token.seal(&customers_key)?.to_string();
/// let fingerprint = customers_key.fingerprint(); // told by another channel
///
/// // The operator again:
/// let sealed: SealedKey = sealed.parse()?;
/// store.keys().provision_sealed("acme", &sealed, Some(fingerprint))?.wait()?;
/// # Ok::<(), byokv::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ImportToken {
    store: OrgId,
    org: OrgId,
    expires: u64,
    public: [u8; 32],
    name: String,
}

impl ImportToken {
    const PREFIX: &str = "byokv-import-1.";
    const WHAT: &str = "import token";
    /// Format, store id, org id, expiry, public key; the org's name is the rest.
    const FIXED_LEN: usize = 1 + OrgId::LEN + OrgId::LEN + 8 + 32;
    const NAME_LIMIT: usize = 128;

    /// The public half of `private`.
    pub(crate) fn new(
        store: OrgId,
        (name, org): (&str, OrgId),
        expires: u64,
        private: &KeyMaterial,
    ) -> Result<Self> {
        let mut public = [0; 32];
        Kem::sk_to_pk(&private_key(private)?).write_exact(&mut public);
        Ok(Self { store, org, expires, public, name: name.to_owned() })
    }

    /// Public name of the token: says all that the token says, in 32 hex digits.
    #[must_use]
    pub fn id(&self) -> TokenId {
        let mut id = [0; TokenId::LEN];
        id.copy_from_slice(&digest(b"token", &self.encode())[..TokenId::LEN]);
        TokenId::from_bytes(id)
    }

    /// Name of the org whose key it takes.
    #[must_use]
    pub fn org_name(&self) -> &str {
        &self.name
    }

    /// Id of that org.
    #[must_use]
    pub fn org_id(&self) -> OrgId {
        self.org
    }

    /// Id of the store that made it.
    #[must_use]
    pub fn store_id(&self) -> OrgId {
        self.store
    }

    /// From when on it is of no use, milliseconds since 1970-01-01 UTC by the store's clock.
    #[must_use]
    pub fn expires_unix_ms(&self) -> u64 {
        self.expires
    }

    /// Returns true if the token has expired by the clock of this machine. The store that made it
    /// goes by its own.
    ///
    /// # Errors
    /// [`Error::ClockBefore1970`].
    pub fn has_expired(&self) -> Result<bool> {
        Ok(crate::time::machine_wall()? >= self.expires)
    }

    /// Seals `material`: only the store that made this token can open it, for this org, once,
    /// until the token expires. Needs no store and looks at no clock.
    ///
    /// # Errors
    /// [`Error::RandomUnavailable`]; [`ImportError::Malformed`] if the token's public key is
    /// none.
    pub fn seal(&self, material: &KeyMaterial) -> Result<SealedKey> {
        let mut random = Random::default();
        let sealed = self.seal_with(material, &mut random);
        match random.failure {
            Some(why) => Err(Error::RandomUnavailable { why }),
            None => sealed,
        }
    }

    fn seal_with(&self, material: &KeyMaterial, random: &mut Random) -> Result<SealedKey> {
        let invalid = |_| malformed(Self::WHAT, "its public key is not valid");
        let public = <Kem as hpke::Kem>::PublicKey::from_bytes(&self.public).map_err(invalid)?;
        let mut sealed = SealedKey {
            store: self.store,
            token: self.id(),
            encapsulated: [0; 32],
            ciphertext: [0; KeyMaterial::LEN],
            tag: [0; TAG_LEN],
        };
        let mut buffer = Zeroizing::new(*material.expose_bytes());
        let (encapsulated, tag) =
            hpke::single_shot_seal_inout_detached_with_rng::<ChaCha20Poly1305, HkdfSha256, Kem>(
                &OpModeS::Base,
                &public,
                &self.info(),
                buffer.as_mut_slice().into(),
                &sealed.associated(),
                random,
            )
            .map_err(invalid)?;
        sealed.ciphertext = *buffer;
        encapsulated.write_exact(&mut sealed.encapsulated);
        tag.write_exact(&mut sealed.tag);
        Ok(sealed)
    }

    /// HPKE's `info`: a label and the whole token.
    fn info(&self) -> Vec<u8> {
        [LABEL, &self.encode()].concat()
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::FIXED_LEN + self.name.len());
        bytes.push(FORMAT);
        bytes.extend_from_slice(self.store.as_bytes());
        bytes.extend_from_slice(self.org.as_bytes());
        bytes.extend_from_slice(&self.expires.to_be_bytes());
        bytes.extend_from_slice(&self.public);
        bytes.extend_from_slice(self.name.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (store, rest) = body(bytes)?.split_first_chunk().ok_or(CUT)?;
        let (org, rest) = rest.split_first_chunk().ok_or(CUT)?;
        let (expires, rest) = rest.split_first_chunk().ok_or(CUT)?;
        let (public, name) = rest.split_first_chunk().ok_or(CUT)?;
        let name = str::from_utf8(name).map_err(|_| "the name of its org is not text")?;
        let visible = name.chars().all(is_visible);
        if name.is_empty() || name.len() > Self::NAME_LIMIT || !visible {
            return Err("the name of its org is none");
        }
        Ok(Self {
            store: OrgId::from_bytes(*store),
            org: OrgId::from_bytes(*org),
            expires: u64::from_be_bytes(*expires),
            public: *public,
            name: name.to_owned(),
        })
    }
}

/// A customer's key, sealed under an [`ImportToken`]. Safe to send by any channel; as text, one
/// line.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedKey {
    store: OrgId,
    token: TokenId,
    encapsulated: [u8; 32],
    ciphertext: [u8; KeyMaterial::LEN],
    tag: [u8; TAG_LEN],
}

impl SealedKey {
    const PREFIX: &str = "byokv-sealed-1.";
    const WHAT: &str = "sealed key";

    /// The token that it says it was sealed under.
    #[must_use]
    pub fn token_id(&self) -> TokenId {
        self.token
    }

    /// The store that it says it was sealed for.
    #[must_use]
    pub fn store_id(&self) -> OrgId {
        self.store
    }

    /// Opens it with the private half of `token`.
    pub(crate) fn open(&self, token: &ImportToken, private: &KeyMaterial) -> Result<KeyMaterial> {
        let altered = |_| Error::Import(ImportError::Altered { token: token.id() });
        let mut opened = Zeroizing::new(self.ciphertext);
        let encapsulated = <Kem as hpke::Kem>::EncappedKey::from_bytes(&self.encapsulated);
        hpke::single_shot_open_inout_detached::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeR::Base,
            &private_key(private)?,
            &encapsulated.map_err(altered)?,
            &token.info(),
            opened.as_mut_slice().into(),
            &self.associated(),
            &AeadTag::from_bytes(&self.tag).map_err(altered)?,
        )
        .map_err(altered)?;
        KeyMaterial::from_bytes(&mut opened)
    }

    /// HPKE's `aad`: a label and what stands before the encapsulated key.
    fn associated(&self) -> Vec<u8> {
        [LABEL, &self.head()].concat()
    }

    fn head(&self) -> Vec<u8> {
        [&[FORMAT][..], self.store.as_bytes(), self.token.as_bytes()].concat()
    }

    fn encode(&self) -> Vec<u8> {
        [&self.head()[..], &self.encapsulated, &self.ciphertext, &self.tag].concat()
    }

    fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (store, rest) = body(bytes)?.split_first_chunk().ok_or(CUT)?;
        let (token, rest) = rest.split_first_chunk().ok_or(CUT)?;
        let (encapsulated, rest) = rest.split_first_chunk().ok_or(CUT)?;
        let (ciphertext, rest) = rest.split_first_chunk().ok_or(CUT)?;
        Ok(Self {
            store: OrgId::from_bytes(*store),
            token: TokenId::from_bytes(*token),
            encapsulated: *encapsulated,
            ciphertext: *ciphertext,
            tag: rest.try_into().map_err(|_| "it has the wrong length")?,
        })
    }
}

const CUT: &str = "it is cut short";

/// What follows the format's byte.
fn body(bytes: &[u8]) -> Result<&[u8], &'static str> {
    match bytes.split_first() {
        Some((&FORMAT, rest)) => Ok(rest),
        Some(_) => Err("it is of a format that this version does not know"),
        None => Err(CUT),
    }
}

/// Told apart by `what`: the digest of a token is its id, both texts end with a part of one.
fn digest(what: &[u8], bytes: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(LABEL)
        .chain_update(b" ")
        .chain_update(what)
        .chain_update(bytes)
        .finalize()
        .into()
}

/// The text of `bytes`: prefix, then base64url of the bytes and the start of their digest, which
/// tells what was mistyped from what was altered.
fn text(prefix: &str, what: &str, bytes: &[u8]) -> String {
    let sum = &digest(what.as_bytes(), bytes)[..SUM_LEN];
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode([bytes, sum].concat()))
}

/// The bytes of a text. White space is passed over: mail programs break lines.
fn bytes(prefix: &str, what: &'static str, text: &str) -> Result<Vec<u8>> {
    const LIMIT: usize = 4096;
    if text.len() > LIMIT {
        return Err(malformed(what, "it is too long"));
    }
    let line: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let Some(encoded) = line.strip_prefix(prefix) else {
        let why = if line.starts_with(ImportToken::PREFIX) {
            "it is an import token"
        } else if line.starts_with(SealedKey::PREFIX) {
            "it is a sealed key"
        } else {
            "it does not begin as one does"
        };
        return Err(malformed(what, why));
    };
    let bytes = URL_SAFE_NO_PAD.decode(encoded);
    let mut bytes = bytes.map_err(|_| malformed(what, "it was mistyped or cut short"))?;
    let sum = bytes.split_off(bytes.len().saturating_sub(SUM_LEN));
    if digest(what.as_bytes(), &bytes)[..SUM_LEN] != sum[..] {
        let why = "it was mistyped or cut short, its checksum does not fit";
        return Err(malformed(what, why));
    }
    Ok(bytes)
}

fn malformed(what: &'static str, why: &'static str) -> Error {
    Error::Import(ImportError::Malformed { what, why })
}

/// X25519 takes any 32 bytes, and clamps them itself (RFC 7748, section 5).
fn private_key(material: &KeyMaterial) -> Result<<Kem as hpke::Kem>::PrivateKey> {
    <Kem as hpke::Kem>::PrivateKey::from_bytes(material.expose_bytes())
        .map_err(|_| malformed(ImportToken::WHAT, "its private key is not valid"))
}

macro_rules! lines {
    ($($name:ident: $id:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&text(Self::PREFIX, Self::WHAT, &self.encode()))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.$id())
            }
        }
        impl FromStr for $name {
            type Err = Error;

            /// # Errors
            /// [`ImportError::Malformed`]. White space is passed over.
            fn from_str(text: &str) -> Result<Self> {
                let bytes = bytes(Self::PREFIX, Self::WHAT, text)?;
                Self::decode(&bytes).map_err(|why| malformed(Self::WHAT, why))
            }
        }
    )*};
}
lines!(ImportToken: id, SealedKey: token_id);

/// The operating system's random source. HPKE takes none that may fail, so a failure is kept,
/// and what was made of it thrown away.
#[derive(Default)]
struct Random {
    failure: Option<String>,
    #[cfg(test)]
    fixed: Option<[u8; 32]>,
}

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes).map(|()| u32::from_ne_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes).map(|()| u64::from_ne_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        #[cfg(test)]
        if let Some(fixed) = self.fixed.take() {
            bytes.copy_from_slice(&fixed);
            return Ok(());
        }
        match material::random(bytes) {
            Ok(()) => {}
            Err(Error::RandomUnavailable { why }) => self.failure = Some(why),
            Err(other) => self.failure = Some(other.to_string()),
        }
        Ok(())
    }
}

impl TryCryptoRng for Random {}

/// For `fuzzing`: `data` as the texts, as what the checksum lies around, and as a sealed key.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(data: &[u8]) {
    let private = KeyMaterial::take(&mut [7; 32]);
    let (store, org) = (OrgId::from_bytes([1; 16]), OrgId::from_bytes([2; 16]));
    let Ok(token) = ImportToken::new(store, ("acme", org), 9, &private) else { return };
    if let Ok(line) = str::from_utf8(data) {
        let one_line: String = line.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        if let Ok(token) = line.parse::<ImportToken>() {
            assert_eq!(token.to_string(), one_line);
        }
        if let Ok(sealed) = line.parse::<SealedKey>() {
            assert_eq!(sealed.to_string(), one_line);
            assert!(sealed.open(&token, &private).is_err());
        }
    }
    if let Ok(token) = ImportToken::decode(data) {
        assert_eq!(token.encode(), data);
        assert!(token.to_string().parse::<ImportToken>().is_ok_and(|parsed| parsed == token));
        let _ = token.seal(&private);
    }
    if let Ok(sealed) = SealedKey::decode(data) {
        assert_eq!(sealed.encode(), data);
        assert!(sealed.to_string().parse::<SealedKey>().is_ok_and(|parsed| parsed == sealed));
        assert!(sealed.open(&token, &private).is_err());
    }
    let Some((key, altered)) = data.split_first_chunk::<32>() else { return };
    let Ok(sealed) = token.seal(&KeyMaterial::take(&mut key.clone())) else { return };
    let opened = sealed.open(&token, &private);
    assert!(
        opened.map_or_else(|e| matches!(e, Error::KeyMaterial(_)), |o| o.expose_bytes() == key)
    );
    let mut bytes = sealed.encode();
    for (byte, with) in bytes.iter_mut().zip(altered) {
        *byte ^= with;
    }
    if let Ok(other) = SealedKey::decode(&bytes)
        && other != sealed
    {
        // The top bit of an X25519 point is not looked at; the derived keys are.
        assert!(other.open(&token, &private).is_err());
    }
}

#[cfg(test)]
mod tests;
