//! What somebody in a hurry builds: one key, nonce ‖ ciphertext ‖ tag, no name in it.

use std::cell::RefCell;
use std::sync::LazyLock;

use rand::TryRng;
use rand::rngs::SysRng;

/// 12 random bytes, from a pool of each thread's.
fn nonce() -> [u8; 12] {
    thread_local! {
        static POOL: RefCell<(Vec<u8>, usize)> = const { RefCell::new((Vec::new(), 0)) };
    }
    POOL.with_borrow_mut(|(pool, left)| {
        if *left == 0 {
            pool.resize(4080, 0);
            SysRng.try_fill_bytes(pool).unwrap();
            *left = pool.len();
        }
        *left -= 12;
        *pool[*left..].first_chunk().unwrap()
    })
}

#[cfg(not(feature = "aws-lc"))]
mod cipher {
    use super::LazyLock;
    use aes_gcm::Aes256Gcm;
    use aes_gcm::aead::{AeadInOut, KeyInit};

    static KEY: LazyLock<Aes256Gcm> = LazyLock::new(|| Aes256Gcm::new(&[7; 32].into()));

    pub(super) fn seal(nonce: [u8; 12], buffer: &mut [u8]) -> [u8; 16] {
        KEY.encrypt_inout_detached(&nonce.into(), &[], buffer.into()).unwrap().into()
    }

    pub(super) fn open(nonce: [u8; 12], buffer: &mut [u8], tag: [u8; 16]) {
        let (nonce, tag) = (nonce.into(), tag.into());
        KEY.decrypt_inout_detached(&nonce, &[], buffer.into(), &tag).unwrap();
    }
}

#[cfg(feature = "aws-lc")]
mod cipher {
    use super::LazyLock;
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

    static KEY: LazyLock<LessSafeKey> =
        LazyLock::new(|| LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap()));

    pub(super) fn seal(nonce: [u8; 12], buffer: &mut [u8]) -> [u8; 16] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = KEY.seal_in_place_separate_tag(nonce, Aad::empty(), buffer).unwrap();
        *tag.as_ref().first_chunk().unwrap()
    }

    pub(super) fn open(nonce: [u8; 12], buffer: &mut [u8], tag: [u8; 16]) {
        let nonce = Nonce::assume_unique_for_key(nonce);
        KEY.open_in_place_separate_tag(nonce, Aad::empty(), &tag, buffer).unwrap();
    }
}

pub(super) fn seal(value: &[u8]) -> Vec<u8> {
    let nonce = nonce();
    let mut sealed = Vec::with_capacity(12 + value.len() + 16);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(value);
    let tag = cipher::seal(nonce, &mut sealed[12..]);
    sealed.extend_from_slice(&tag);
    sealed
}

pub(super) fn open(sealed: &[u8]) -> Vec<u8> {
    let (nonce, rest) = sealed.split_first_chunk().unwrap();
    let (ciphertext, tag) = rest.split_last_chunk().unwrap();
    let mut value = ciphertext.to_vec();
    cipher::open(*nonce, &mut value, *tag);
    value
}
