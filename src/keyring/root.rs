//! The root key, where it comes from, and the keyring file that it wraps.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{KeyFile, Keyring};
use crate::envelope::suite::SuiteKey;
use crate::error::{Error, KeyMaterialError, Result};
use crate::id::Fingerprint;
use crate::material::{self, KeyMaterial};
use crate::sealed;
use crate::text;

const MAGIC: &[u8; 8] = b"byokvKR1";
const WRAP_LABEL: &[u8] = b"byokv keyring key v1";
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;
const SUM_LEN: usize = 32;

/// Wraps 32-byte keys, wherever the wrapping key lives: in this process, an HSM, a cloud KMS.
///
/// [`KeyMaterial::expose_bytes`] gives the bytes to wrap, [`KeyMaterial::from_bytes`] takes back
/// what was unwrapped.
pub trait RootKeyProvider: Send + Sync {
    /// Public identity of the wrapping key; another key has another one.
    fn fingerprint(&self) -> Fingerprint;

    /// Wraps `key`.
    ///
    /// # Errors
    /// [`Error::RootKeyUnavailable`].
    fn wrap(&self, key: &KeyMaterial) -> Result<Vec<u8>>;

    /// Unwraps what [`wrap`](Self::wrap) gave; `None` if the bytes were changed.
    ///
    /// # Errors
    /// [`Error::RootKeyUnavailable`].
    fn unwrap(&self, wrapped: &[u8]) -> Result<Option<KeyMaterial>>;
}

/// The key that wraps the keyring at rest.
///
/// ```
/// use byokv::{KeyMaterial, RootKey};
///
/// let root = RootKey::from_material(KeyMaterial::generate()?);
/// println!("the store's root key is {}", root.fingerprint());
/// # Ok::<(), byokv::Error>(())
/// ```
pub struct RootKey(Box<dyn RootKeyProvider>);

impl RootKey {
    /// Reads base64 key material from the environment variable `name`. Prefer a file: an
    /// environment is inherited by child processes and shown to the same user in `/proc`.
    ///
    /// # Errors
    /// [`Error::RootKeyUnavailable`] if it is not set, is empty or is no key material.
    pub fn from_env(name: &str) -> Result<Self> {
        let text = std::env::var_os(name).unwrap_or_default().into_encoded_bytes();
        let text = Zeroizing::new(text);
        if text.is_empty() {
            return Err(unavailable(format!(
                "the environment variable {name} is not set; put the output of \
                 `openssl rand -base64 32` there, and keep a copy where you will find it"
            )));
        }
        Self::from_text(&text, &format!("the environment variable {name}"))
    }

    /// Reads base64 key material from a file that its owner alone may use, or that was delivered
    /// as [`KeyFile`] tells, or from a pipe. Is [`from_key_file`](Self::from_key_file) with a
    /// [`KeyFile`] on which nothing is set.
    ///
    /// # Errors
    /// Those of [`from_key_file`](Self::from_key_file).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_key_file(&KeyFile::new(path.as_ref()))
    }

    /// Reads base64 key material from a file or a pipe.
    ///
    /// ```no_run
    /// use byokv::{KeyFile, RootKey};
    ///
    /// let file = KeyFile::new("/run/secrets/root.key").allow_group_read();
    /// println!("the root key is {}", RootKey::from_key_file(&file)?.fingerprint());
    /// # Ok::<(), byokv::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::RootKeyUnavailable`] if it cannot be read, others may use it, it comes too late, or
    /// it holds no key material.
    pub fn from_key_file(file: &KeyFile) -> Result<Self> {
        let source = text::path(file.path());
        let bytes = file.bytes().map_err(|why| unavailable(format!("{source}: {why}")))?;
        Self::from_text(&bytes, &source)
    }

    /// Takes the key from memory.
    #[must_use]
    pub fn from_material(material: KeyMaterial) -> Self {
        Self::from_provider(InMemory { material })
    }

    /// Takes a key that lives elsewhere.
    #[must_use]
    pub fn from_provider(provider: impl RootKeyProvider + 'static) -> Self {
        Self(Box::new(provider))
    }

    /// The public identity of the key.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.0.fingerprint()
    }

    fn from_text(text: &[u8], source: &str) -> Result<Self> {
        match KeyMaterial::from_base64_bytes(text) {
            Ok(material) => Ok(Self::from_material(material)),
            Err(Error::KeyMaterial(why)) => {
                // Not the advice to make one.
                let why = match why {
                    KeyMaterialError::WrongLength { bytes } => {
                        format!("32 bytes are needed, {bytes} came")
                    }
                    why => why.to_string(),
                };
                Err(unavailable(format!(
                    "{source}: {why}; a store that is there opens with the key that it was made \
                     with, never with a new one"
                )))
            }
            Err(error) => Err(error),
        }
    }
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootKey({})", self.fingerprint())
    }
}

fn unavailable(why: String) -> Error {
    Error::RootKeyUnavailable { why }
}

struct InMemory {
    material: KeyMaterial,
}

impl InMemory {
    fn key(&self) -> SuiteKey {
        SuiteKey::xaes(&self.material.derive(&[b"byokv root wrap v1"]))
    }
}

impl RootKeyProvider for InMemory {
    fn fingerprint(&self) -> Fingerprint {
        self.material.fingerprint()
    }

    fn wrap(&self, key: &KeyMaterial) -> Result<Vec<u8>> {
        sealed::seal_bytes(&self.key(), WRAP_LABEL, key.expose_bytes())
    }

    fn unwrap(&self, wrapped: &[u8]) -> Result<Option<KeyMaterial>> {
        let key = sealed::open_bytes(&self.key(), WRAP_LABEL, wrapped);
        Ok(key.and_then(|bytes| KeyMaterial::from_slice(&bytes)))
    }
}

/// The keyring's place on disk. Layout of the file: `docs/design.md`.
pub(crate) struct KeyringFile {
    path: PathBuf,
}

impl KeyringFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the keyring without touching anything; `None` if there is no file.
    pub(crate) fn load(&self, root: &RootKey) -> Result<Option<Keyring>> {
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(format!("reading {}", self.path.display()), e)),
        };
        decode(&bytes, root)
            .map_err(|fault| match fault {
                Fault::Damaged(why) => Error::damaged(
                    &self.path,
                    format!(
                        "{why}; nothing was changed; put back the newest copy of the whole data \
                         directory"
                    ),
                ),
                Fault::Other(error) => error,
            })
            .map(Some)
    }

    /// Replaces the file. A fresh single-use key seals each generation.
    pub(crate) fn save(&self, root: &RootKey, keyring: &Keyring) -> Result<()> {
        sealed::file::replace(&self.path, &encode(root, keyring)?)
    }

    pub(crate) fn discard_leftovers(&self) -> Result<()> {
        sealed::file::discard(&self.path)
    }
}

enum Fault {
    Damaged(&'static str),
    Other(Error),
}

fn encode(root: &RootKey, keyring: &Keyring) -> Result<Vec<u8>> {
    let key = KeyMaterial::generate()?;
    let wrapped = root.0.wrap(&key)?;
    let wrapped_len = u16::try_from(wrapped.len())
        .map_err(|_| unavailable("its provider wraps to more than 65,535 bytes".to_owned()))?;
    let mut file = Vec::new();
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(root.fingerprint().as_bytes());
    file.extend_from_slice(&wrapped_len.to_be_bytes());
    file.extend_from_slice(&wrapped);
    let mut nonce = [0; NONCE_LEN];
    material::random(&mut nonce)?;
    let mut body = sealed::encode(keyring);
    #[allow(clippy::expect_used)]
    let tag = Aes256Gcm::new(key.expose_bytes().into())
        .encrypt_inout_detached((&nonce).into(), &file, body.as_mut_slice().into())
        .expect("no keyring is near the cipher's limit of 64 GiB");
    file.extend_from_slice(&nonce);
    file.extend_from_slice(&body);
    file.extend_from_slice(&tag);
    let sum = Sha256::digest(&file);
    file.extend_from_slice(&sum);
    Ok(file)
}

fn decode(file: &[u8], root: &RootKey) -> Result<Keyring, Fault> {
    const CUT: Fault = Fault::Damaged("the keyring is cut short");

    // The sum finds damage, so that a wrong root key can be told from it. It proves nothing:
    // that is the tags' work.
    let (content, sum) = file.split_last_chunk::<SUM_LEN>().ok_or(CUT)?;
    if Sha256::digest(content)[..] != sum[..] {
        return Err(Fault::Damaged("the keyring is damaged: its checksum does not fit"));
    }
    let (magic, rest) = content.split_first_chunk::<8>().ok_or(CUT)?;
    if magic != MAGIC {
        return Err(Fault::Damaged("this is no keyring of a format that this version knows"));
    }
    let (expected, rest) = rest.split_first_chunk::<16>().ok_or(CUT)?;
    let expected = Fingerprint::from_bytes(*expected);
    let given = root.fingerprint();
    if expected != given {
        return Err(Fault::Other(Error::RootKeyWrong { expected, given }));
    }
    let (len, rest) = rest.split_first_chunk::<2>().ok_or(CUT)?;
    let (wrapped, rest) = rest.split_at_checked(u16::from_be_bytes(*len).into()).ok_or(CUT)?;
    let ad = &content[..content.len() - rest.len()];
    let (nonce, rest) = rest.split_first_chunk::<NONCE_LEN>().ok_or(CUT)?;
    let (body, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(CUT)?;
    let forged = || Fault::Damaged("the keyring is not authentic: its tag does not fit");
    let key = root.0.unwrap(wrapped).map_err(Fault::Other)?.ok_or_else(forged)?;
    let mut body = Zeroizing::new(body.to_vec());
    Aes256Gcm::new(key.expose_bytes().into())
        .decrypt_inout_detached(nonce.into(), ad, body.as_mut_slice().into(), tag.into())
        .map_err(|_| forged())?;
    sealed::decode(&body).ok_or(Fault::Damaged(
        "the keyring is authentic, but not of a layout that this version of byokv knows",
    ))
}

/// For `fuzzing`: `file` as a keyring file, then as what lies behind its tag.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(root: &RootKey, file: &[u8]) {
    let _ = decode(file, root);
    if let Some(keyring) = sealed::decode::<Keyring>(file)
        && let Ok(encoded) = encode(root, &keyring)
    {
        assert!(decode(&encoded, root).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> RootKey {
        RootKey::from_material(KeyMaterial::generate().unwrap())
    }

    #[test]
    fn round_trips_and_seals_each_generation_anew() {
        let root = root();
        let ring = Keyring::new(root.fingerprint()).unwrap();
        let (one, two) = (encode(&root, &ring).unwrap(), encode(&root, &ring).unwrap());
        assert_ne!(one, two);
        for file in [one, two] {
            let back = decode(&file, &root).ok().unwrap();
            assert_eq!(back.store, ring.store);
        }
    }

    #[test]
    fn a_wrong_root_key_is_told_from_damage() {
        let (right, wrong) = (root(), root());
        let file = encode(&right, &Keyring::new(right.fingerprint()).unwrap()).unwrap();
        assert!(matches!(
            decode(&file, &wrong),
            Err(Fault::Other(Error::RootKeyWrong { expected, given }))
                if expected == right.fingerprint() && given == wrong.fingerprint()
        ));
        for at in (0..file.len()).step_by(7) {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert!(matches!(decode(&damaged, &right), Err(Fault::Damaged(_))), "byte {at}");
            assert!(matches!(decode(&file[..at], &right), Err(Fault::Damaged(_))), "cut at {at}");
        }
    }

    #[test]
    fn a_forger_who_mends_the_checksum_is_refused() {
        let root = root();
        let file = encode(&root, &Keyring::new(root.fingerprint()).unwrap()).unwrap();
        let content = file.len() - SUM_LEN;
        for at in (0..content).filter(|at| !(8..24).contains(at)) {
            let mut forged = file[..content].to_vec();
            forged[at] ^= 0x80;
            forged.extend_from_slice(&Sha256::digest(&forged));
            assert!(matches!(decode(&forged, &root), Err(Fault::Damaged(_))), "byte {at}");
        }
    }
}
