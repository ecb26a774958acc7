//! Small sealed things: bincode with limits inside, an AEAD outside, files replaced atomically.

pub(crate) mod file;

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::{Zeroize, Zeroizing};

use crate::envelope::suite::{NONCE_LEN, Nonce, SuiteKey, TAG_LEN};
use crate::error::Result;

/// bincode 1.3.3 with fixed-width integers, a size limit, and trailing bytes refused. All
/// versions of bincode carry RUSTSEC-2025-0141 (unmaintained): it is reached only here, and
/// decodes only what an AEAD has opened.
fn options(limit: u64) -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_big_endian()
        .with_limit(limit)
        .reject_trailing_bytes()
}

/// Encodes into one allocation of the exact size, wiped on drop.
pub(crate) fn encode<T: Serialize>(thing: &T) -> Zeroizing<Vec<u8>> {
    let size = options(u64::MAX).serialized_size(thing).unwrap_or(0);
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(size).unwrap_or(0)));
    let encoded = options(u64::MAX).serialize_into(&mut *bytes, thing);
    // Writing to memory does not fail, and the types of this crate all have a length.
    debug_assert!(encoded.is_ok());
    bytes
}

/// `None` for bytes that are not exactly one `T`.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    options(bytes.len() as u64).deserialize(bytes).ok()
}

/// nonce ‖ ciphertext ‖ tag of an encoded thing.
pub(crate) fn seal<T: Serialize>(key: &SuiteKey, ad: &[u8], thing: &T) -> Result<Vec<u8>> {
    seal_bytes(key, ad, &encode(thing))
}

/// `None` if the bytes were not sealed with this key and associated data, as a `T`.
pub(crate) fn open<T: DeserializeOwned>(key: &SuiteKey, ad: &[u8], sealed: &[u8]) -> Option<T> {
    decode(&open_bytes(key, ad, sealed)?)
}

pub(crate) fn seal_bytes(key: &SuiteKey, ad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>> {
    let mut sealed = Vec::with_capacity(NONCE_LEN + plaintext.len() + TAG_LEN);
    sealed.extend_from_slice(&[0; NONCE_LEN]);
    sealed.extend_from_slice(plaintext);
    let nonce = Nonce::draw().inspect_err(|_| sealed.zeroize())?;
    key.seal_in_place(nonce, ad, &mut sealed[NONCE_LEN..]).complete(&mut sealed, 0);
    Ok(sealed)
}

pub(crate) fn open_bytes(key: &SuiteKey, ad: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let (ciphertext, tag) = rest.split_last_chunk::<TAG_LEN>()?;
    let mut plaintext = Zeroizing::new(ciphertext.to_vec());
    key.open_in_place(nonce, ad, &mut plaintext, tag).ok()?;
    Some(plaintext)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::material::KeyMaterial;

    #[test]
    fn decoding_refuses_trailing_bytes_and_hostile_lengths() {
        let bytes = encode(&(7u32, "text".to_owned()));
        assert_eq!(decode::<(u32, String)>(&bytes), Some((7, "text".to_owned())));
        assert_eq!(decode::<(u32, String)>(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(decode::<(u32, String)>(&bytes[..bytes.len() - 1]), None);
        assert_eq!(decode::<Vec<u8>>(&u64::MAX.to_be_bytes()), None);
    }

    #[test]
    fn sealed_things_open_only_with_their_key_and_label() {
        let key = SuiteKey::xaes(&KeyMaterial::take(&mut [1; 32]));
        let other = SuiteKey::xaes(&KeyMaterial::take(&mut [2; 32]));
        let sealed = seal(&key, b"label", &7u32).unwrap();
        assert_eq!(open::<u32>(&key, b"label", &sealed), Some(7));
        assert_eq!(open::<u32>(&key, b"Label", &sealed), None);
        assert_eq!(open::<u32>(&other, b"label", &sealed), None);
        assert_eq!(open::<u32>(&key, b"label", &sealed[1..]), None);
    }
}
