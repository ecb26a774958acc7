//! AEGIS-256 (RFC 10032), by the crate `aegis`, which builds libaegis from C.

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{NONCE_LEN, Refused, TAG_LEN};

/// AEGIS-256 takes a nonce of 32 bytes. The envelope's 24 random bytes stand in front, and 8 zero
/// bytes behind them: 192 random bits, as the other suites have.
const NONCE_OF_CIPHER: usize = 32;

pub(crate) struct Aegis256([u8; 32]);

impl Aegis256 {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(*key)
    }

    fn cipher(&self, nonce: &[u8; NONCE_LEN]) -> aegis::aegis256::Aegis256<TAG_LEN> {
        let mut long = [0; NONCE_OF_CIPHER];
        long[..NONCE_LEN].copy_from_slice(nonce);
        aegis::aegis256::Aegis256::new(&self.0, &long)
    }

    /// Never refuses: the cipher's limit is 2⁶¹ - 1 bytes, and a value has 64 MiB at most.
    #[allow(clippy::unnecessary_wraps)]
    pub(super) fn seal(
        &self,
        nonce: &mut [u8; NONCE_LEN],
        ad: &[u8],
        buffer: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Refused> {
        Ok(self.cipher(nonce).encrypt_in_place(buffer, ad))
    }

    pub(super) fn open(
        &self,
        nonce: &[u8; NONCE_LEN],
        ad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), Refused> {
        self.cipher(nonce).decrypt_in_place(buffer, tag, ad).map_err(|_| Refused)
    }
}

impl Drop for Aegis256 {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for Aegis256 {}
