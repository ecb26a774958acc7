//! Blinded names: the storage key of a record whose name is sealed, segment by segment.
//!
//! Sealing is deterministic (AES-SIV, RFC 5297), so that a name is found again. A segment is
//! what stands between two `/`. The byte layout is the table in `docs/design.md`, pinned by a
//! golden key in the tests below.

use aes_siv::KeyInit;
use aes_siv::siv::Aes256Siv;
use zeroize::Zeroizing;

use crate::id::{KeyVersion, OrgId};
use crate::material::KeyMaterial;

/// Segments of a record's name (what stands between two `/`) in an org with blinded names: at most
/// 128.
pub const MAX_NAME_SEGMENTS: usize = 128;

const AD_LABEL: &[u8] = b"byokv name v1";
const KEY_LABEL: &[u8] = b"byokv names v1";
/// Org id ‖ key version.
const START_LEN: usize = OrgId::LEN + 4;
/// Length of the segment.
const LEN_LEN: usize = 2;
const TAG_LEN: usize = 16;

/// Seals names under one key version of one org.
pub(crate) struct NameKey {
    start: [u8; START_LEN],
    key: Box<Zeroizing<[u8; 64]>>,
}

/// How many segments a name has.
pub(crate) fn segments(name: &[u8]) -> usize {
    name.split(is_slash).count()
}

/// The first bytes of the storage key of every name that is blinded under this version.
pub(crate) fn start(org: OrgId, version: KeyVersion) -> [u8; START_LEN] {
    let mut start = [0; START_LEN];
    start[..OrgId::LEN].copy_from_slice(org.as_bytes());
    start[OrgId::LEN..].copy_from_slice(&version.get().to_be_bytes());
    start
}

/// The version that a blinded name is sealed under, as its storage key says.
pub(crate) fn version(key: &[u8]) -> Option<KeyVersion> {
    let number = key.get(OrgId::LEN..)?.first_chunk()?;
    KeyVersion::new(u32::from_be_bytes(*number))
}

impl NameKey {
    /// HKDF-Expand of the material with `"byokv names v1"` ‖ org ‖ version, 64 bytes.
    pub(crate) fn new(org: OrgId, version: KeyVersion, material: &KeyMaterial) -> Self {
        let start = start(org, version);
        Self { start, key: material.derive_pair(&[KEY_LABEL, &start]) }
    }

    /// The storage key of `name`, which has at most [`MAX_NAME_SEGMENTS`].
    pub(crate) fn seal(&self, name: &[u8]) -> Vec<u8> {
        self.seal_segments(name.len(), name.split(is_slash))
    }

    /// With what the storage key of every name begins that starts with `prefix`, as far as
    /// whole segments of it tell: a name that starts with `a/b/c` is found below `a/b`.
    pub(crate) fn seal_parent(&self, prefix: &[u8]) -> Vec<u8> {
        let whole = prefix.iter().rposition(is_slash);
        let parents = whole.map(|end| prefix[..end].split(is_slash).take(MAX_NAME_SEGMENTS));
        self.seal_segments(prefix.len(), parents.into_iter().flatten())
    }

    /// Label and everything before the segment are its associated data: equal segments under
    /// different parents do not look equal.
    fn seal_segments<'n>(&self, len: usize, segments: impl Iterator<Item = &'n [u8]>) -> Vec<u8> {
        let mut siv = self.siv();
        let mut key = Vec::with_capacity(START_LEN + len + 8 * (LEN_LEN + TAG_LEN));
        key.extend_from_slice(&self.start);
        for segment in segments {
            let at = key.len();
            let len = u16::try_from(segment.len()).unwrap_or(u16::MAX);
            key.extend_from_slice(&len.to_be_bytes());
            key.extend_from_slice(&[0; TAG_LEN]);
            key.extend_from_slice(segment);
            let (parent, sealed) = key.split_at_mut(at);
            let (tag, text) = sealed[LEN_LEN..].split_at_mut(TAG_LEN);
            #[allow(clippy::expect_used)]
            let made = siv
                .encrypt_inout_detached([AD_LABEL, parent], text.into())
                .expect("two pieces of associated data; the limit is 126");
            tag.copy_from_slice(&made);
        }
        key
    }

    /// The name that a storage key was made of; else what is wrong with it.
    pub(crate) fn open(&self, key: &[u8]) -> Result<Vec<u8>, &'static str> {
        const CUT: &str = "its blinded name is cut off";
        if !key.starts_with(&self.start) || key.len() == START_LEN {
            return Err(CUT);
        }
        let mut siv = self.siv();
        let mut name = Vec::with_capacity(key.len() - START_LEN);
        let mut at = START_LEN;
        while at < key.len() {
            let (parent, rest) = key.split_at(at);
            let (len, rest) = rest.split_first_chunk::<LEN_LEN>().ok_or(CUT)?;
            let (tag, rest) = rest.split_first_chunk::<TAG_LEN>().ok_or(CUT)?;
            let len = usize::from(u16::from_be_bytes(*len));
            let text = rest.get(..len).ok_or(CUT)?;
            if at > START_LEN {
                name.push(b'/');
            }
            let from = name.len();
            name.extend_from_slice(text);
            siv.decrypt_inout_detached(
                [AD_LABEL, parent],
                (&mut name[from..]).into(),
                &(*tag).into(),
            )
            .map_err(|_| "a tag in its blinded name does not fit: bytes were changed")?;
            at += LEN_LEN + TAG_LEN + len;
        }
        Ok(name)
    }

    fn siv(&self) -> Aes256Siv {
        Aes256Siv::new((&**self.key).into())
    }
}

fn is_slash(byte: &u8) -> bool {
    *byte == b'/'
}

#[cfg(test)]
mod tests {
    use aes_siv::siv::Aes128Siv;
    use proptest::prelude::*;

    use super::*;

    fn name_key(version: u32) -> NameKey {
        let version = KeyVersion::new(version).unwrap();
        NameKey::new(OrgId::from_bytes([9; 16]), version, &KeyMaterial::take(&mut [5; 32]))
    }

    fn bytes(hex: &str) -> Vec<u8> {
        base16ct::lower::decode_vec(hex.replace(' ', "")).unwrap()
    }

    /// RFC 5297, A.1 and A.2.
    #[test]
    fn the_crate_seals_as_the_rfc_says() {
        let sealed = |key: &str, ad: &[&str], text: &str| {
            let key: [u8; 32] = bytes(key).try_into().unwrap();
            let ad = ad.iter().map(|ad| bytes(ad));
            let mut text = bytes(text);
            let mut siv = Aes128Siv::new(&key.into());
            let tag = siv.encrypt_inout_detached(ad, (&mut text[..]).into()).unwrap();
            [&tag[..], &text[..]].concat()
        };
        let deterministic = sealed(
            "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0 f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
            &["101112131415161718191a1b1c1d1e1f2021222324252627"],
            "112233445566778899aabbccddee",
        );
        assert_eq!(
            deterministic,
            bytes("85632d07c6e8f37f950acd320a2ecc93 40c02b9690c4dc04daef7f6afe5c")
        );
        let with_nonce = sealed(
            "7f7e7d7c7b7a79787776757473727170 404142434445464748494a4b4c4d4e4f",
            &[
                "00112233445566778899aabbccddeeffdeaddadadeaddadaffeeddccbbaa9988 7766554433221100",
                "102030405060708090a0",
                "09f911029d74e35bd84156c5635688c0",
            ],
            "7468697320697320736f6d6520706c61696e7465787420746f20656e63727970 \
             74207573696e67205349562d414553",
        );
        assert_eq!(
            with_nonce,
            bytes(
                "7bdb6e3b432667eb06f4d14bff2fbd0f cb900f2fddbe404326601965c889bf17 \
                 dba77ceb094fa663b7a3f748ba8af829 ea64ad544a272e9c485b62a3fd5c0d"
            )
        );
    }

    /// The storage key whose bytes stand in `docs/design.md`, made by another implementation
    /// (`AESSIV` and `HKDFExpand` of Python's `cryptography`).
    const GOLDEN: &str = concat!(
        "09090909090909090909090909090909000000010008282eec137b671544ee431d1aeb8b03588e900cf9c7e8271b",
        "000438dc43a69239d650c4c606524d303cf3dc6197810005586a38ecdd984cdd179b28fabd91c6c77f2d616536"
    );

    /// Pins format 1: a name of a store written today is found for ever.
    #[test]
    fn the_golden_key_opens_and_its_damaged_twin_does_not() {
        let mut key = bytes(GOLDEN);
        assert_eq!(name_key(1).seal(b"clusters/prod/token"), key);
        assert_eq!(name_key(1).open(&key).unwrap(), b"clusters/prod/token");
        *key.last_mut().unwrap() ^= 1;
        assert!(name_key(1).open(&key).is_err());
    }

    #[test]
    fn every_bit_is_authenticated_and_every_cut_is_noticed() {
        let names = name_key(1);
        let key = names.seal(b"a/bc//");
        for bit in 0..key.len() * 8 {
            let mut flipped = key.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(names.open(&flipped).is_err(), "bit {bit}");
        }
        // What is cut between segments is the name of the parent, which has the same right.
        let whole: Vec<_> = (0..key.len()).filter_map(|end| names.open(&key[..end]).ok()).collect();
        assert_eq!(whole, [&b"a"[..], b"a/bc", b"a/bc/"]);
    }

    #[test]
    fn equal_segments_look_equal_only_under_one_parent_and_version() {
        let (one, two) = (name_key(1), name_key(2));
        let last = |key: &[u8]| key[key.len() - 20..].to_vec();
        assert_eq!(last(&one.seal(b"x/name")), last(&one.seal(b"x/name")));
        assert_ne!(last(&one.seal(b"x/name")), last(&one.seal(b"y/name")));
        assert_ne!(last(&one.seal(b"x/name")), last(&one.seal(b"x/x/name")));
        assert_ne!(last(&one.seal(b"x/name")), last(&two.seal(b"x/name")));
        assert_eq!(version(&two.seal(b"x")).unwrap().get(), 2);
        assert!(version(&[9; 19]).is_none() && version(&[0; 20]).is_none());
    }

    proptest! {
        #[test]
        fn names_round_trip_and_whole_segments_are_prefixes(
            name in prop::collection::vec(prop::sample::select(b"ab/\xff\0".to_vec()), 1..60),
            cut in 0usize..60,
        ) {
            let names = name_key(7);
            let key = names.seal(&name);
            prop_assert_eq!(names.open(&key).unwrap(), &name[..]);
            let prefix = &name[..cut.min(name.len())];
            prop_assert!(key.starts_with(&names.seal_parent(prefix)));
            let other = [prefix, b"/x"].concat();
            let under = key.starts_with(&names.seal_parent(&other));
            let is_below = name == prefix || name.starts_with(&[prefix, b"/"].concat());
            prop_assert_eq!(under, is_below);
        }
    }
}
