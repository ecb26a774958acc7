//! Key material: 32 secret bytes. Parsed strictly, filled in place, wiped on drop.

mod form;

use std::fmt;
use std::str::FromStr;

use base64ct::{Base64, Encoding};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use rand::{TryRng, rngs::SysRng};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::{Error, KeyMaterialError, Result};
use crate::id::{BackupId, Fingerprint};

/// 32 secret bytes: an org's key, or the root key.
///
/// There is no `Clone`, no `PartialEq`, no `Display`; `Debug` prints only the
/// [`Fingerprint`]. The bytes live in one heap allocation that is wiped on drop.
///
/// ```
/// use byokv::KeyMaterial;
///
/// // What `openssl rand -base64 32` printed, with its newline:
/// let key = KeyMaterial::from_base64("+Ds/5rQMkhX9fvEE7vq8Oe5Y5zNk9XUfLWzxQXBy2b0=\n")?;
/// assert_eq!(format!("{key:?}"), format!("KeyMaterial({})", key.fingerprint()));
/// # Ok::<(), byokv::Error>(())
/// ```
///
/// The bytes come out by [`expose_bytes`](Self::expose_bytes) alone, and every way in checks them:
/// there is no serde in either direction.
///
/// ```compile_fail,E0277
/// fn written_out<T: serde::Serialize>() {}
/// written_out::<byokv::KeyMaterial>();
/// ```
///
/// ```compile_fail,E0277
/// fn made_unchecked<T: serde::de::DeserializeOwned>() {}
/// made_unchecked::<byokv::KeyMaterial>();
/// ```
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct KeyMaterial(Box<[u8; 32]>);

impl KeyMaterial {
    /// Length of key material, bytes.
    pub const LEN: usize = 32;

    /// Takes 32 fresh bytes from the operating system's random source.
    ///
    /// # Errors
    /// [`Error::RandomUnavailable`] if there is none, or if it gives bytes that are plainly not
    /// random.
    pub fn generate() -> Result<Self> {
        Self::generate_by(random)
    }

    /// A good source gives implausible bytes less than once in 10¹² draws, so a second draw in a
    /// row that is implausible shows that the source is broken.
    fn generate_by(mut draw: impl FnMut(&mut [u8]) -> Result<()>) -> Result<Self> {
        let mut draws = 0;
        loop {
            let mut material = Self::zeroed();
            draw(material.0.as_mut_slice())?;
            draws += 1;
            match implausible(&material.0) {
                None => return Ok(material),
                Some(why) if draws == 2 => {
                    let why = format!("what it gave is plainly not random: {why}");
                    return Err(Error::RandomUnavailable { why });
                }
                Some(_) => {}
            }
        }
    }

    /// Reads exactly what `openssl rand -base64 32` prints: 43 symbols of the standard
    /// alphabet (RFC 4648, section 4) and one `=`, with or without one newline. A valid
    /// key is decoded in constant time; only a refused one is looked at symbol by symbol.
    ///
    /// # Errors
    /// [`Error::KeyMaterial`] tells what is wrong, and never any of the symbols.
    pub fn from_base64(text: &str) -> Result<Self> {
        Self::from_base64_bytes(text.as_bytes())
    }

    /// Like [`from_base64`](Self::from_base64), for what was read from a file or a pipe and may be
    /// no text at all.
    ///
    /// ```
    /// use byokv::{Error, KeyMaterial, KeyMaterialError};
    ///
    /// let refused = KeyMaterial::from_base64_bytes(b"\xff\xfe+\0D\0s\0").unwrap_err();
    /// assert!(matches!(refused, Error::KeyMaterial(KeyMaterialError::Utf16)));
    /// ```
    ///
    /// # Errors
    /// [`Error::KeyMaterial`] tells what it looks like, and never any of the symbols.
    pub fn from_base64_bytes(text: &[u8]) -> Result<Self> {
        let line = text.strip_suffix(b"\n").unwrap_or(text);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut material = Self::zeroed();
        let decoded = Base64::decode(line, material.0.as_mut_slice()).map(<[u8]>::len);
        match decoded {
            Ok(Self::LEN) => material.plausible(),
            _ => Err(form::diagnose(text).into()),
        }
    }

    /// Takes the 32 bytes of `bytes` and wipes them there.
    ///
    /// # Errors
    /// [`Error::KeyMaterial`] if they are plainly not random.
    pub fn from_bytes(bytes: &mut [u8; 32]) -> Result<Self> {
        let material = Self::take(bytes);
        material.plausible()
    }

    /// Like [`from_bytes`](Self::from_bytes), for bytes of our own making.
    pub(crate) fn take(bytes: &mut [u8; 32]) -> Self {
        let mut material = Self::zeroed();
        material.0.copy_from_slice(bytes);
        bytes.zeroize();
        material
    }

    /// The check value that may be shown: the first 16 bytes of HMAC-SHA-256 under the key. With
    /// Python, for a key in `key.b64`, which is read from stdin and so is in no process's arguments:
    ///
    /// ```text
    /// python3 -c 'import base64, hmac, sys; print(hmac.digest(base64.b64decode(sys.stdin.read()),
    ///   b"byokv fingerprint v1", "sha256")[:16].hex())' < key.b64
    /// ```
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mac = self.mac(b"byokv fingerprint v1", &[]);
        let mut first = [0; Fingerprint::LEN];
        first.copy_from_slice(&mac[..Fingerprint::LEN]);
        Fingerprint::from_bytes(first)
    }

    /// Key for one purpose: HKDF-Expand (RFC 5869, section 2.3) with SHA-256. The extract
    /// step is left out, as section 3.3 allows for material that is uniformly random.
    pub(crate) fn derive(&self, info: &[&[u8]]) -> Self {
        let mut derived = Self::zeroed();
        #[allow(clippy::expect_used)]
        Hkdf::<Sha256>::from_prk(self.0.as_slice())
            .expect("32 bytes are long enough for SHA-256")
            .expand_multi_info(info, derived.0.as_mut_slice())
            .expect("32 bytes are one block; the limit is 255");
        derived
    }

    /// Like [`derive`](Self::derive), 64 bytes.
    pub(crate) fn derive_pair(&self, info: &[&[u8]]) -> Box<Zeroizing<[u8; 64]>> {
        let mut derived = Box::new(Zeroizing::new([0u8; 64]));
        #[allow(clippy::expect_used)]
        Hkdf::<Sha256>::from_prk(self.0.as_slice())
            .expect("32 bytes are long enough for SHA-256")
            .expand_multi_info(info, derived.as_mut_slice())
            .expect("64 bytes are two blocks; the limit is 255");
        derived
    }

    /// HMAC-SHA-256 (RFC 2104) over `label` and `message`.
    pub(crate) fn mac(&self, label: &[u8], message: &[u8]) -> [u8; 32] {
        #[allow(clippy::expect_used)]
        let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(self.0.as_slice())
            .expect("HMAC takes keys of any length");
        mac.update(label);
        mac.update(message);
        mac.finalize().into_bytes().into()
    }

    /// Whether `tag` is the [`mac`](Self::mac), in constant time.
    pub(crate) fn mac_is(&self, label: &[u8], message: &[u8], tag: &[u8]) -> bool {
        self.mac(label, message).ct_eq(tag).into()
    }

    /// Copies 32 bytes of our own making; `None` for another length.
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        let mut material = Self::zeroed();
        if bytes.len() != Self::LEN {
            return None;
        }
        material.0.copy_from_slice(bytes);
        Some(material)
    }

    /// Lends the 32 secret bytes. Meant for a [`RootKeyProvider`](crate::RootKeyProvider), which
    /// has to hand the keyring's single-use key to whatever wraps it. Copies that the caller makes
    /// are the caller's to wipe.
    ///
    /// ```
    /// # use byokv::KeyMaterial;
    /// let key = KeyMaterial::generate()?;
    /// let mut copy = *key.expose_bytes();
    /// let back = KeyMaterial::from_bytes(&mut copy)?; // checked, and wiped in `copy`
    /// assert_eq!((back.fingerprint(), copy), (key.fingerprint(), [0; 32]));
    /// # Ok::<(), byokv::Error>(())
    /// ```
    #[must_use]
    pub fn expose_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn duplicate(&self) -> Self {
        let mut copy = Self::zeroed();
        copy.0.copy_from_slice(self.0.as_slice());
        copy
    }

    fn zeroed() -> Self {
        Self(Box::new([0; Self::LEN]))
    }

    fn plausible(self) -> Result<Self> {
        match implausible(&self.0) {
            Some(why) => Err(why.into()),
            None => Ok(self),
        }
    }
}

impl FromStr for Fingerprint {
    type Err = Error;

    /// # Errors
    /// [`Error::InvalidOption`] for anything but 32 hex digits.
    fn from_str(text: &str) -> Result<Self> {
        let mut bytes = [0; Self::LEN];
        let decoded = base16ct::mixed::decode(text, &mut bytes).map(<[u8]>::len);
        match decoded {
            Ok(Self::LEN) => Ok(Self::from_bytes(bytes)),
            _ => Err(Error::InvalidOption { option: "fingerprint", why: "it has 32 hex digits" }),
        }
    }
}

impl FromStr for BackupId {
    type Err = Error;

    /// # Errors
    /// [`Error::InvalidOption`] for anything but 32 hex digits.
    fn from_str(text: &str) -> Result<Self> {
        let mut bytes = [0; Self::LEN];
        let decoded = base16ct::mixed::decode(text, &mut bytes).map(<[u8]>::len);
        match decoded {
            Ok(Self::LEN) => Ok(Self::from_bytes(bytes)),
            _ => Err(Error::InvalidOption { option: "backup", why: "its id has 32 hex digits" }),
        }
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyMaterial({})", self.fingerprint())
    }
}

/// Fills `bytes` from the operating system's random source.
pub(crate) fn random(bytes: &mut [u8]) -> Result<()> {
    SysRng
        .try_fill_bytes(bytes)
        .map_err(|error| Error::RandomUnavailable { why: error.to_string() })
}

/// What shows that `bytes` did not come from a random generator. Of truly random keys
/// fewer than one in 10¹² is refused.
fn implausible(bytes: &[u8; 32]) -> Option<KeyMaterialError> {
    const FEWEST_DISTINCT: usize = 16;

    let repeats = |period: usize| bytes.iter().zip(&bytes[period..]).all(|(a, b)| a == b);
    if repeats(1) {
        return Some(KeyMaterialError::AllAlike);
    }
    if let Some(period) = (2..=bytes.len() / 2).find(|&period| repeats(period)) {
        return Some(KeyMaterialError::Repeats { period });
    }
    let step = bytes[1].wrapping_sub(bytes[0]);
    if bytes.windows(2).all(|pair| pair[1].wrapping_sub(pair[0]) == step) {
        return Some(KeyMaterialError::Sequence);
    }
    if bytes.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
        return Some(KeyMaterialError::Text);
    }
    let mut seen = Zeroizing::new([false; 256]);
    bytes.iter().for_each(|&b| seen[usize::from(b)] = true);
    let distinct = seen.iter().filter(|&&s| s).count();
    (distinct < FEWEST_DISTINCT).then_some(KeyMaterialError::FewDistinct { distinct })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "+Ds/5rQMkhX9fvEE7vq8Oe5Y5zNk9XUfLWzxQXBy2b0=";

    fn refused(text: &str) -> KeyMaterialError {
        match KeyMaterial::from_base64(text) {
            Err(Error::KeyMaterial(why)) => why,
            other => panic!("{text:?} gave {other:?}"),
        }
    }

    #[test]
    fn takes_what_openssl_prints() {
        for end in ["", "\n", "\r\n"] {
            let key = KeyMaterial::from_base64(&format!("{GOOD}{end}")).unwrap();
            assert_eq!(Base64::encode_string(key.expose_bytes()), GOOD);
        }
    }

    #[test]
    fn says_what_is_wrong_with_a_text() {
        use KeyMaterialError::*;
        let cases: &[(&str, KeyMaterialError)] = &[
            ("", Empty),
            ("=", WrongLength { bytes: 0 }),
            ("AAAA", WrongLength { bytes: 3 }),
            (&GOOD[4..], WrongLength { bytes: 29 }),
            ("q83vASNFZ4k=", WrongLength { bytes: 8 }),
            (&GOOD[..43], Padding),
            (&format!("{GOOD}="), Padding),
            (&GOOD.replacen('D', "=", 1), Padding),
            (&GOOD.replacen('+', "-", 1), UrlSafe { position: 1 }),
            (&GOOD.replacen('/', "_", 1), UrlSafe { position: 4 }),
            (&GOOD.replacen('5', "!", 1), Alphabet { position: 5 }),
            (&format!(" {GOOD}"), Whitespace { position: 1 }),
            (&format!("{GOOD} "), Whitespace { position: 45 }),
            (&format!("{GOOD}\n\n"), Whitespace { position: 45 }),
            (&GOOD.replacen('5', "é", 1), Alphabet { position: 5 }),
            (&GOOD.replace("0=", "1="), TrailingBits),
        ];
        for (text, expected) in cases {
            assert_eq!(refused(text), *expected, "{text:?}");
        }
    }

    #[test]
    fn refuses_what_is_plainly_not_random() {
        use KeyMaterialError::*;
        let given = |f: &dyn Fn(usize) -> u8| {
            let mut bytes = std::array::from_fn(f);
            match KeyMaterial::from_bytes(&mut bytes) {
                Err(Error::KeyMaterial(why)) => why,
                other => panic!("{other:?}"),
            }
        };
        let byte = |i: usize| u8::try_from(i).unwrap();
        assert_eq!(given(&|_| 0), AllAlike);
        assert_eq!(given(&|_| 0xff), AllAlike);
        assert_eq!(given(&|i| byte(i % 2)), Repeats { period: 2 });
        assert_eq!(given(&|i| byte(i % 16 * 13 % 16)), Repeats { period: 16 });
        assert_eq!(given(&byte), Sequence);
        assert_eq!(given(&|i| 200 - 3 * byte(i)), Sequence);
        assert_eq!(given(&|i| 250u8.wrapping_add(byte(i))), Sequence);
        assert_eq!(given(&|i| b"correct horse battery staple 123"[i]), Text);
        assert_eq!(given(&|i| byte(i * i / 3 % 15)), FewDistinct { distinct: 10 });
    }

    #[test]
    fn taking_bytes_wipes_them() {
        let mut bytes = *b"\x00\x11correct horse battery staple 1";
        KeyMaterial::from_bytes(&mut bytes).unwrap();
        assert_eq!(bytes, [0; 32]);
    }

    #[test]
    fn generated_keys_differ_and_are_plausible() {
        for _ in 0..1000 {
            let (a, b) = (KeyMaterial::generate().unwrap(), KeyMaterial::generate().unwrap());
            assert_ne!(a.expose_bytes(), b.expose_bytes());
            assert_eq!(implausible(a.expose_bytes()), None);
        }
    }

    #[test]
    fn a_broken_random_source_is_noticed() {
        let mut draws = 0;
        let broken = KeyMaterial::generate_by(|bytes| {
            draws += 1;
            bytes.fill(0);
            Ok(())
        });
        let refused = broken.unwrap_err();
        assert!(matches!(&refused, Error::RandomUnavailable { why } if why.contains("not random")));
        assert_eq!(draws, 2);
        let mut unlucky = true;
        let key = KeyMaterial::generate_by(|bytes| match std::mem::take(&mut unlucky) {
            true => {
                bytes.fill(0);
                Ok(())
            }
            false => random(bytes),
        });
        assert_eq!(implausible(key.unwrap().expose_bytes()), None);
    }

    /// RFC 5869, test case 1, the expand step.
    #[test]
    fn derivation_is_hkdf_expand() {
        let prk = "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5";
        let mut prk: [u8; 32] = base16ct::lower::decode_vec(prk).unwrap().try_into().unwrap();
        let info: Vec<u8> = (0xf0..=0xf9).collect();
        let okm = KeyMaterial::take(&mut prk).derive(&[&info[..4], &info[4..]]);
        assert_eq!(
            base16ct::lower::encode_string(okm.expose_bytes()),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
        );
    }

    /// The value that the line in the docs of `fingerprint` prints for `GOOD`.
    #[test]
    fn fingerprint_is_what_others_compute() {
        let key = KeyMaterial::from_base64(GOOD).unwrap();
        let text = "0846f66a2cc1aa4c2ccfbf83104049a4";
        assert_eq!(key.fingerprint().to_string(), text);
        assert_eq!(text.to_uppercase().parse::<Fingerprint>().unwrap(), key.fingerprint());
        for bad in ["", "08", &text[1..], &format!("{text}00"), &text.replace('f', "g")] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn debug_prints_only_the_fingerprint() {
        let key = KeyMaterial::from_base64(GOOD).unwrap();
        assert_eq!(format!("{key:?}"), format!("KeyMaterial({})", key.fingerprint()));
    }

    #[test]
    fn material_is_wiped_on_drop() {
        fn wiped<T: ZeroizeOnDrop>() {}
        wiped::<KeyMaterial>();
    }
}
