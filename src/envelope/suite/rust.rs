//! The suites in pure Rust, by RustCrypto.

use aes_gcm::aead::{AeadInOut, KeyInit};
use zeroize::ZeroizeOnDrop;

use super::{NONCE_LEN, Refused, TAG_LEN};

macro_rules! suite {
    ($name:ident, $cipher:ty) => {
        pub(crate) struct $name($cipher);

        impl $name {
            pub(super) fn new(key: &[u8; 32]) -> Self {
                Self(<$cipher>::new(key.into()))
            }

            pub(super) fn seal(
                &self,
                nonce: &mut [u8; NONCE_LEN],
                ad: &[u8],
                buffer: &mut [u8],
            ) -> Result<[u8; TAG_LEN], Refused> {
                let tag = self.0.encrypt_inout_detached((&*nonce).into(), ad, buffer.into());
                tag.map(Into::into).map_err(|_| Refused)
            }

            pub(super) fn open(
                &self,
                nonce: &[u8; NONCE_LEN],
                ad: &[u8],
                buffer: &mut [u8],
                tag: &[u8; TAG_LEN],
            ) -> Result<(), Refused> {
                let tag = tag.into();
                self.0
                    .decrypt_inout_detached(nonce.into(), ad, buffer.into(), tag)
                    .map_err(|_| Refused)
            }
        }

        impl ZeroizeOnDrop for $name where $cipher: ZeroizeOnDrop {}
    };
}

suite!(Xaes256Gcm, xaes_256_gcm::Xaes256Gcm);
suite!(XChaCha20Poly1305, chacha20poly1305::XChaCha20Poly1305);
