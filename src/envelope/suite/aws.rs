//! The suites, byte for byte the same, by aws-lc: its AES-256-GCM and ChaCha20-Poly1305 take
//! nonces of 96 bits, so each message gets a key of its own from the first part of the nonce, as
//! the two standards say. Wiping keys is aws-lc's: it clears what it frees.
//!
//! With the feature `fips` XAES seals with a `RandomizedNonceKey`: the FIPS module approves of
//! AES-256-GCM only where it draws the nonce itself. What it draws becomes the second half of
//! XAES's nonce, so the bytes are XAES's as before, and any build opens them.

#[cfg(feature = "fips")]
use aws_lc_rs::aead::RandomizedNonceKey;
use aws_lc_rs::aead::{AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, UnboundKey};
use aws_lc_rs::cipher::{AES_256, EncryptingKey, UnboundCipherKey};
use aws_lc_rs::error::Unspecified;
use chacha20::R20;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::{NONCE_LEN, Refused, TAG_LEN};

type MessageKey = Zeroizing<[u8; 32]>;
const BLOCK: usize = 16;
const REST: usize = 12;

/// <https://c2sp.org/XAES-256-GCM>.
pub(crate) struct Xaes256Gcm {
    aes: Option<EncryptingKey>,
    k1: Zeroizing<[u8; BLOCK]>,
}

impl Xaes256Gcm {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        let mut k1 = Zeroizing::new([0; BLOCK]);
        let aes = UnboundCipherKey::new(&AES_256, key).and_then(EncryptingKey::ecb).ok();
        // L = AES of zeros; K1 = L doubled in GF(2¹²⁸), as in CMAC.
        let aes = aes.filter(|aes| aes.encrypt(&mut *k1).is_ok());
        let top = k1[0] >> 7;
        for i in 0..BLOCK {
            let carry = k1.get(i + 1).map_or(0, |next| next >> 7);
            k1[i] = (k1[i] << 1) | carry;
        }
        k1[BLOCK - 1] ^= top * 0x87;
        Self { aes, k1 }
    }

    /// Two blocks of CMAC: AES(K1 ⊕ (0 ‖ i ‖ "X" ‖ 0 ‖ nonce's first 12 bytes)), i = 1, 2.
    fn message_key(&self, nonce: &[u8; NONCE_LEN]) -> Result<MessageKey, Unspecified> {
        let mut key = Zeroizing::new([0; 2 * BLOCK]);
        for (block, i) in key.chunks_exact_mut(BLOCK).zip(1..) {
            block[..4].copy_from_slice(&[0, i, b'X', 0]);
            block[4..].copy_from_slice(&nonce[..REST]);
            block.iter_mut().zip(&*self.k1).for_each(|(byte, k1)| *byte ^= k1);
        }
        self.aes.as_ref().ok_or(Unspecified)?.encrypt(&mut *key)?;
        Ok(key)
    }

    #[cfg(feature = "fips")]
    pub(super) fn seal(
        &self,
        nonce: &mut [u8; NONCE_LEN],
        ad: &[u8],
        buffer: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Refused> {
        let sealed = self.message_key(nonce).and_then(|key| {
            let key = RandomizedNonceKey::new(&AES_256_GCM, &*key)?;
            key.seal_in_place_separate_tag(Aad::from(ad), buffer)
        });
        let (drawn, tag) = sealed.map_err(|_| Refused)?;
        nonce[REST..].copy_from_slice(drawn.as_ref());
        tag.as_ref().try_into().map_err(|_| Refused)
    }
}

impl ZeroizeOnDrop for Xaes256Gcm {}

/// draft-irtf-cfrg-xchacha-03.
pub(crate) struct XChaCha20Poly1305([u8; 32]);

impl XChaCha20Poly1305 {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(*key)
    }

    #[allow(clippy::unnecessary_wraps)]
    fn message_key(&self, nonce: &[u8; NONCE_LEN]) -> Result<MessageKey, Unspecified> {
        let mut first = [0; BLOCK];
        first.copy_from_slice(&nonce[..BLOCK]);
        let key = chacha20::hchacha::<R20>((&self.0).into(), (&first).into());
        Ok(Zeroizing::new(key.into()))
    }
}

impl Drop for XChaCha20Poly1305 {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for XChaCha20Poly1305 {}

/// What is left of the nonce: its last bytes, after zeros where they are fewer than 12.
fn rest(nonce: &[u8; NONCE_LEN], used: usize) -> aws_lc_rs::aead::Nonce {
    let mut rest = [0; REST];
    let left = &nonce[used..];
    rest[REST - left.len()..].copy_from_slice(left);
    aws_lc_rs::aead::Nonce::assume_unique_for_key(rest)
}

macro_rules! opening {
    ($name:ident, $algorithm:expr, $used:expr) => {
        impl $name {
            fn key(&self, nonce: &[u8; NONCE_LEN]) -> Result<LessSafeKey, Unspecified> {
                let algorithm: &'static Algorithm = &$algorithm;
                let key = self.message_key(nonce)?;
                UnboundKey::new(algorithm, &*key).map(LessSafeKey::new)
            }

            pub(super) fn open(
                &self,
                nonce: &[u8; NONCE_LEN],
                ad: &[u8],
                buffer: &mut [u8],
                tag: &[u8; TAG_LEN],
            ) -> Result<(), Refused> {
                let opened = self.key(nonce).and_then(|key| {
                    let (nonce, ad) = (rest(nonce, $used), Aad::from(ad));
                    key.open_in_place_separate_tag(nonce, ad, tag, buffer).map(|_| ())
                });
                opened.map_err(|_| Refused)
            }
        }
    };
}

macro_rules! sealing {
    ($name:ident, $used:expr) => {
        impl $name {
            pub(super) fn seal(
                &self,
                nonce: &mut [u8; NONCE_LEN],
                ad: &[u8],
                buffer: &mut [u8],
            ) -> Result<[u8; TAG_LEN], Refused> {
                let sealed = self.key(nonce).and_then(|key| {
                    key.seal_in_place_separate_tag(rest(nonce, $used), Aad::from(ad), buffer)
                });
                sealed.ok().and_then(|tag| tag.as_ref().try_into().ok()).ok_or(Refused)
            }
        }
    };
}

opening!(Xaes256Gcm, AES_256_GCM, REST);
#[cfg(not(feature = "fips"))]
sealing!(Xaes256Gcm, REST);
opening!(XChaCha20Poly1305, CHACHA20_POLY1305, BLOCK);
sealing!(XChaCha20Poly1305, BLOCK);
