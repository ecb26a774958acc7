//! The algorithms, and their keys ready for use.

#[cfg(feature = "aegis")]
mod aegis;
#[cfg(feature = "aws-lc")]
mod aws;
#[cfg(any(test, not(feature = "aws-lc")))]
mod rust;

use std::sync::Arc;

pub(crate) use super::nonce::{NONCE_LEN, Nonce};
use crate::id::Suite;
use crate::material::KeyMaterial;
#[cfg(feature = "aegis")]
use aegis::Aegis256;
#[cfg(feature = "aws-lc")]
use aws::{XChaCha20Poly1305, Xaes256Gcm};
#[cfg(not(feature = "aws-lc"))]
use rust::{XChaCha20Poly1305, Xaes256Gcm};

pub(crate) const TAG_LEN: usize = 16;

/// A key expanded for one suite. Clones share it; the last one wipes it, by the ciphers.
#[derive(Clone)]
pub(crate) enum SuiteKey {
    Xaes256Gcm(Arc<Xaes256Gcm>),
    XChaCha20Poly1305(Arc<XChaCha20Poly1305>),
    #[cfg(feature = "aegis")]
    Aegis256(Arc<Aegis256>),
}

/// The tag does not fit: the key, nonce, associated data or ciphertext is another.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TagMismatch;

/// What a cipher did not do: it does not say why.
struct Refused;

/// What sealing gives beside the ciphertext.
pub(crate) struct Sealed {
    nonce: [u8; NONCE_LEN],
    tag: [u8; TAG_LEN],
}

impl Sealed {
    /// Writes the nonce to its place `at` in the message, and the tag behind it.
    pub(crate) fn complete(&self, message: &mut Vec<u8>, at: usize) {
        message[at..at + NONCE_LEN].copy_from_slice(&self.nonce);
        message.extend_from_slice(&self.tag);
    }
}

impl SuiteKey {
    /// Returns `None` if this build does not have the suite.
    pub(crate) fn new(suite: Suite, key: &KeyMaterial) -> Option<Self> {
        match suite {
            Suite::Xaes256Gcm => Some(Self::xaes(key)),
            Suite::XChaCha20Poly1305 => {
                let key = XChaCha20Poly1305::new(key.expose_bytes());
                Some(Self::XChaCha20Poly1305(Arc::new(key)))
            }
            #[cfg(feature = "aegis")]
            Suite::Aegis256 => Some(Self::Aegis256(Arc::new(Aegis256::new(key.expose_bytes())))),
            #[cfg(not(feature = "aegis"))]
            Suite::Aegis256 => None,
        }
    }

    /// A key of the suite that every build has, which seals what the store keeps of itself.
    pub(crate) fn xaes(key: &KeyMaterial) -> Self {
        Self::Xaes256Gcm(Arc::new(Xaes256Gcm::new(key.expose_bytes())))
    }

    /// Encrypts `buffer`. The nonce is consumed: one nonce, one message. With the feature `fips`
    /// XAES takes its second half from the module instead.
    pub(crate) fn seal_in_place(&self, nonce: Nonce, ad: &[u8], buffer: &mut [u8]) -> Sealed {
        let mut nonce = nonce.0;
        let sealed = match self {
            Self::Xaes256Gcm(key) => key.seal(&mut nonce, ad, buffer),
            Self::XChaCha20Poly1305(key) => key.seal(&mut nonce, ad, buffer),
            #[cfg(feature = "aegis")]
            Self::Aegis256(key) => key.seal(&mut nonce, ad, buffer),
        };
        // The ciphers refuse only messages beyond 64 GiB; values end at 64 MiB. aws-lc also
        // where it gets no memory, as Rust's own allocator would.
        #[allow(clippy::panic)]
        let tag =
            sealed.unwrap_or_else(|Refused| panic!("a cipher refused to seal: out of memory"));
        Sealed { nonce, tag }
    }

    /// Checks the tag, and decrypts `buffer`; on a mismatch no plaintext is in it.
    pub(crate) fn open_in_place(
        &self,
        nonce: &[u8; NONCE_LEN],
        ad: &[u8],
        buffer: &mut [u8],
        tag: &[u8; TAG_LEN],
    ) -> Result<(), TagMismatch> {
        match self {
            Self::Xaes256Gcm(key) => key.open(nonce, ad, buffer, tag),
            Self::XChaCha20Poly1305(key) => key.open(nonce, ad, buffer, tag),
            #[cfg(feature = "aegis")]
            Self::Aegis256(key) => key.open(nonce, ad, buffer, tag),
        }
        .map_err(|Refused| TagMismatch)
    }
}

#[cfg(test)]
mod tests {
    use shake::{ExtendableOutput, Shake128, Update, XofReader};
    use zeroize::ZeroizeOnDrop;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        base16ct::lower::decode_vec(text).unwrap()
    }

    fn key(suite: Suite, bytes: [u8; 32]) -> SuiteKey {
        SuiteKey::new(suite, &KeyMaterial::take(&mut { bytes })).unwrap()
    }

    /// Seals with a given nonce, opens, and returns ciphertext ‖ tag.
    fn seal(
        (suite, material): (Suite, [u8; 32]),
        mut nonce: [u8; 24],
        ad: &[u8],
        plaintext: &[u8],
    ) -> Vec<u8> {
        let key = key(suite, material);
        let mut buffer = plaintext.to_vec();
        // With `aws-lc` the name alone is that of the other.
        #[allow(unused_qualifications)]
        let tag = if cfg!(feature = "fips") && suite == Suite::Xaes256Gcm {
            // No nonce can be given to the module.
            rust::Xaes256Gcm::new(&material).seal(&mut nonce, ad, &mut buffer).ok().unwrap()
        } else {
            let sealed = key.seal_in_place(Nonce(nonce), ad, &mut buffer);
            assert_eq!(sealed.nonce, nonce);
            sealed.tag
        };
        let sealed = [&buffer[..], &tag].concat();
        key.open_in_place(&nonce, ad, &mut buffer, &tag).unwrap();
        assert_eq!(buffer, plaintext);
        sealed
    }

    /// <https://c2sp.org/XAES-256-GCM>, test vectors.
    #[test]
    fn xaes_fixed_vectors() {
        let nonce = *b"ABCDEFGHIJKLMNOPQRSTUVWX";
        let cases = [
            (1, &b""[..], "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
            (
                3,
                b"c2sp.org/XAES-256-GCM",
                "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d",
            ),
        ];
        for (byte, ad, expected) in cases {
            let key = (Suite::Xaes256Gcm, [byte; 32]);
            assert_eq!(seal(key, nonce, ad, b"XAES-256-GCM"), hex(expected));
        }
    }

    fn accumulated(rounds: u32) -> String {
        let mut source = Shake128::default().finalize_xof();
        let mut sums = Shake128::default();
        let mut take = |len: usize| {
            let mut bytes = vec![0; len];
            source.read(&mut bytes);
            bytes
        };
        for _ in 0..rounds {
            let material: [u8; 32] = take(32).try_into().unwrap();
            let nonce: [u8; 24] = take(24).try_into().unwrap();
            let len = take(1)[0];
            let plaintext = take(len.into());
            let len = take(1)[0];
            let ad = take(len.into());
            sums.update(&seal((Suite::Xaes256Gcm, material), nonce, &ad, &plaintext));
        }
        let mut sum = [0; 32];
        sums.finalize_xof().read(&mut sum);
        base16ct::lower::encode_string(&sum)
    }

    /// The accumulated vectors of <https://c2sp.org/XAES-256-GCM>. The million is run with
    /// `BYOKV_TORTURE=1`.
    #[test]
    fn xaes_accumulated_vectors() {
        assert_eq!(
            accumulated(10_000),
            "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"
        );
        if std::env::var_os("BYOKV_TORTURE").is_some() {
            assert_eq!(
                accumulated(1_000_000),
                "2163ae1445985a30b60585ee67daa55674df06901b890593e824b8a7c885ab15"
            );
        }
    }

    /// draft-irtf-cfrg-xchacha-03, appendix A.3.1.
    #[test]
    fn xchacha_draft_vector() {
        let material: [u8; 32] = std::array::from_fn(|i| 0x80 + u8::try_from(i).unwrap());
        let nonce: [u8; 24] = std::array::from_fn(|i| 0x40 + u8::try_from(i).unwrap());
        let ad = hex("50515253c0c1c2c3c4c5c6c7");
        let plaintext = b"Ladies and Gentlemen of the class of '99: If I could offer you only \
            one tip for the future, sunscreen would be it.";
        assert_eq!(
            seal((Suite::XChaCha20Poly1305, material), nonce, &ad, plaintext),
            hex(concat!(
                "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb",
                "731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b452",
                "2f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9",
                "21f9664c97637da9768812f615c68b13b52e",
                "c0875924c1c7987947deafd8780acf49"
            ))
        );
    }

    /// RFC 10032, appendix A.3, with the tags of 128 bits. The vectors' nonces end in zeros, as ours.
    #[cfg(feature = "aegis")]
    #[test]
    fn aegis_vectors() {
        let (mut material, mut nonce) = ([0; 32], [0; 24]);
        material[..2].copy_from_slice(&[0x10, 0x01]);
        nonce[..3].copy_from_slice(&[0x10, 0x00, 0x02]);
        let count = |len: u8| (0..len).collect::<Vec<_>>();
        for (ad, plaintext, expected) in [
            (
                vec![],
                vec![0; 16],
                "754fc3d8c973246dcc6d741412a4b2363fe91994768b332ed7f570a19ec5896e",
            ),
            (vec![], vec![], "e3def978a0f054afd1e761d7553afba3"),
            (
                count(8),
                count(32),
                concat!(
                    "f373079ed84b2709faee373584585d60accd191db310ef5d8b11833df9dec711",
                    "8d86f91ee606e9ff26a01b64ccbdd91d"
                ),
            ),
            (count(8), count(14), "f373079ed84b2709faee37358458c60b9c2d33ceb058f96e6dd03c215652"),
        ] {
            let key = (Suite::Aegis256, material);
            assert_eq!(seal(key, nonce, &ad, &plaintext), hex(expected));
        }
    }

    #[test]
    fn every_byte_of_the_nonce_counts() {
        for suite in Suite::ALL.into_iter().filter(|suite| suite.is_available()) {
            let key = key(suite, [7; 32]);
            let mut buffer = *b"a value";
            let sealed = key.seal_in_place(Nonce::draw().unwrap(), b"ad", &mut buffer);
            for byte in 0..NONCE_LEN {
                let mut nonce = sealed.nonce;
                nonce[byte] ^= 1;
                let opened = key.open_in_place(&nonce, b"ad", &mut { buffer }, &sealed.tag);
                assert_eq!(opened, Err(TagMismatch), "{suite}, byte {byte}");
            }
        }
    }

    #[test]
    fn a_mismatch_leaves_no_plaintext() {
        for suite in Suite::ALL.into_iter().filter(|suite| suite.is_available()) {
            let key = key(suite, [7; 32]);
            let mut buffer = *b"a value";
            let Sealed { nonce, tag } =
                key.seal_in_place(Nonce::draw().unwrap(), b"ad", &mut buffer);
            let sealed = buffer;
            assert_eq!(key.open_in_place(&nonce, b"AD", &mut buffer, &tag), Err(TagMismatch));
            // RustCrypto keeps the ciphertext, aws-lc writes zeros over it.
            assert!(buffer == sealed || buffer == [0; 7]);
        }
    }

    #[cfg(feature = "aws-lc")]
    mod both {
        use proptest::prelude::*;

        use super::super::{aws, rust};

        macro_rules! agree {
            ($test:ident, $suite:ident) => {
                proptest! {
                    /// Each opens what the other sealed, and neither what was changed.
                    #[test]
                    fn $test(
                        key: [u8; 32],
                        nonce: [u8; 24],
                        ad in prop::collection::vec(any::<u8>(), 0..300),
                        plain in prop::collection::vec(any::<u8>(), 0..3000),
                        bit in any::<prop::sample::Index>(),
                    ) {
                        let (a, b) = (aws::$suite::new(&key), rust::$suite::new(&key));
                        let (mut of_a, mut of_b) = (plain.clone(), plain.clone());
                        let mut used = nonce;
                        let tag_a = a.seal(&mut used, &ad, &mut of_a).ok().unwrap();
                        // With `fips` the module drew a part of it.
                        prop_assert_eq!(&used[..12], &nonce[..12]);
                        prop_assert!(used == nonce || cfg!(feature = "fips"));
                        let mut nonce = used;
                        let tag_b = b.seal(&mut nonce, &ad, &mut of_b).ok().unwrap();
                        prop_assert_eq!((&of_a, tag_a), (&of_b, tag_b));
                        let mut changed = [&of_a[..], &tag_a].concat();
                        prop_assert!(a.open(&nonce, &ad, &mut of_b, &tag_b).is_ok());
                        prop_assert!(b.open(&nonce, &ad, &mut of_a, &tag_a).is_ok());
                        prop_assert_eq!((&of_a, &of_b), (&plain, &plain));
                        let bit = bit.index(changed.len() * 8);
                        changed[bit / 8] ^= 1 << (bit % 8);
                        let (buffer, tag) = changed.split_last_chunk_mut::<16>().unwrap();
                        let mut same = buffer.to_vec();
                        prop_assert!(a.open(&nonce, &ad, buffer, tag).is_err());
                        prop_assert!(b.open(&nonce, &ad, &mut same, tag).is_err());
                    }
                }
            };
        }

        agree!(xaes, Xaes256Gcm);
        agree!(xchacha, XChaCha20Poly1305);
    }

    #[test]
    fn keys_are_wiped_on_drop() {
        fn wiped<T: ZeroizeOnDrop>() {}
        wiped::<Xaes256Gcm>();
        wiped::<XChaCha20Poly1305>();
        #[cfg(feature = "aegis")]
        wiped::<Aegis256>();
    }
}
