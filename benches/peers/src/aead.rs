//! What an application does by itself around an engine that does not encrypt: AES-256-GCM around
//! each value, with the number of the key in front of it.

use std::sync::atomic::{AtomicU8, Ordering};

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use rand::Rng;

use crate::engine::Result;

/// number of the key (1) ‖ nonce (12) ‖ ciphertext ‖ tag (16)
pub(crate) struct Sealer {
    keys: Vec<Aes256Gcm>,
    active: AtomicU8,
}

const KEYS: u8 = 32;
const HEADER: usize = 13;
const TAG: usize = 16;

impl Sealer {
    pub(crate) fn new() -> Self {
        let key = |_| {
            let mut key = [0; 32];
            rand::rng().fill_bytes(&mut key);
            Aes256Gcm::new(&key.into())
        };
        Self { keys: (0..KEYS).map(key).collect(), active: AtomicU8::new(0) }
    }

    pub(crate) fn rotate(&self) {
        let next = (self.active.load(Ordering::Relaxed) + 1) % KEYS;
        self.active.store(next, Ordering::Relaxed);
    }

    pub(crate) fn seal(&self, name: &[u8], value: &[u8]) -> Result<Vec<u8>> {
        let active = self.active.load(Ordering::Relaxed);
        let mut sealed = Vec::with_capacity(HEADER + value.len() + TAG);
        sealed.push(active);
        sealed.extend_from_slice(&rand::random::<[u8; 12]>());
        sealed.extend_from_slice(value);
        let (header, body) = sealed.split_at_mut(HEADER);
        let nonce: &Nonce<_> = (&*header)[1..].try_into()?;
        let cipher = &self.keys[usize::from(active)];
        let tag = cipher.encrypt_inout_detached(nonce, name, body.into())?;
        sealed.extend_from_slice(&tag);
        Ok(sealed)
    }

    pub(crate) fn open(&self, name: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        let (header, rest) = sealed.split_at_checked(HEADER).ok_or("too short")?;
        let (body, tag) = rest.split_last_chunk::<TAG>().ok_or("too short")?;
        let nonce: &Nonce<_> = header[1..].try_into()?;
        let cipher = self.keys.get(usize::from(header[0])).ok_or("no such key")?;
        let mut value = body.to_vec();
        cipher.decrypt_inout_detached(
            nonce,
            name,
            value.as_mut_slice().into(),
            &Tag::from(*tag),
        )?;
        Ok(value)
    }

    pub(crate) fn re_seal(&self, name: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
        self.seal(name, &self.open(name, sealed)?)
    }
}
