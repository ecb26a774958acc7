//! The envelope: header ‖ nonce ‖ ciphertext ‖ tag, as sled stores a value; and blinded names.
//!
//! Given a key, this floor never chooses one. The byte layout is the table in
//! `docs/design.md`, pinned by a golden envelope in the tests below.

pub(crate) mod name;
mod nonce;
pub(crate) mod suite;
mod value;

use std::fmt;

pub use value::Value;
use zeroize::{Zeroize, Zeroizing};

use crate::error::Result;
use crate::id::{KeyVersion, OrgId, Suite};
use crate::material::KeyMaterial;
use suite::{NONCE_LEN, Nonce, SuiteKey, TAG_LEN};

pub(crate) const FORMAT: u8 = 1;
pub(crate) const HEADER_LEN: usize = 22;
/// Where an envelope's ciphertext begins.
const VALUE_AT: usize = HEADER_LEN + NONCE_LEN;
/// What an envelope adds to a value, bytes.
pub(crate) const OVERHEAD: usize = VALUE_AT + TAG_LEN;

/// What the storage adds behind an envelope, so that it need not copy it for that.
const STORAGE_ROOM: usize = 16;

const AD_LABEL: &[u8] = b"byokv record v1";
const KEY_LABEL: &[u8] = b"byokv seal v1";

/// The first 22 bytes of an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) suite: Suite,
    pub(crate) org: OrgId,
    pub(crate) version: KeyVersion,
}

/// Why bytes are no envelope, or do not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    TooShort(usize),
    Format(u8),
    Suite(u8),
    Version,
    Org,
    Tag,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort(len) => write!(f, "{len} bytes are fewer than an empty envelope has"),
            Self::Format(byte) => write!(f, "its header names the unknown format {byte}"),
            Self::Suite(byte) => write!(f, "its header names the unknown suite {byte}"),
            Self::Version => f.write_str("its header names the key version 0"),
            // Not which: the message is for the org whose record it was to be.
            Self::Org => f.write_str("its header names another org"),
            Self::Tag => f.write_str(
                "its tag does not fit the key version that its header names: bytes were changed, \
                 or it was moved from another name",
            ),
        }
    }
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = FORMAT;
        bytes[1] = self.suite.byte();
        bytes[2..18].copy_from_slice(self.org.as_bytes());
        bytes[18..22].copy_from_slice(&self.version.get().to_be_bytes());
        bytes
    }

    /// Reads the header of an envelope; the rest is not looked at, but must be there.
    pub(crate) fn decode(envelope: &[u8]) -> Result<Self, Fault> {
        if envelope.len() < OVERHEAD {
            return Err(Fault::TooShort(envelope.len()));
        }
        Self::parse(envelope)
    }

    /// The header that 22 bytes are, if they are one.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        Self::parse(bytes.get(..HEADER_LEN)?).ok()
    }

    fn parse(envelope: &[u8]) -> Result<Self, Fault> {
        if envelope[0] != FORMAT {
            return Err(Fault::Format(envelope[0]));
        }
        let suite = Suite::from_byte(envelope[1]).ok_or(Fault::Suite(envelope[1]))?;
        let mut org = [0; OrgId::LEN];
        org.copy_from_slice(&envelope[2..18]);
        let mut version = [0; 4];
        version.copy_from_slice(&envelope[18..22]);
        let version = KeyVersion::new(u32::from_be_bytes(version)).ok_or(Fault::Version)?;
        Ok(Self { suite, org: OrgId::from_bytes(org), version })
    }

    /// The key that seals under this header: HKDF-Expand of the material with
    /// `"byokv seal v1"` ‖ header. So one material never serves two algorithms, orgs or
    /// versions, nor both sealing and its fingerprint. Returns `None` if this build does not have
    /// the suite.
    pub(crate) fn key(&self, material: &KeyMaterial) -> Option<SuiteKey> {
        SuiteKey::new(self.suite, &material.derive(&[KEY_LABEL, &self.encode()]))
    }
}

/// Seals `value` for `name`.
pub(crate) fn seal(key: &SuiteKey, header: &Header, name: &[u8], value: &[u8]) -> Result<Vec<u8>> {
    let header = header.encode();
    let mut envelope = Vec::with_capacity(OVERHEAD + value.len() + STORAGE_ROOM);
    envelope.extend_from_slice(&header);
    envelope.extend_from_slice(&[0; NONCE_LEN]);
    envelope.extend_from_slice(value);
    let nonce = Nonce::draw().inspect_err(|_| envelope.zeroize())?;
    with_associated_data(&header, name, |ad| {
        key.seal_in_place(nonce, ad, &mut envelope[VALUE_AT..])
    })
    .complete(&mut envelope, HEADER_LEN);
    Ok(envelope)
}

/// Opens an envelope whose header was decoded to find `key`.
pub(crate) fn open(key: &SuiteKey, name: &[u8], envelope: &[u8]) -> Result<Value, Fault> {
    let parts = Parts::of(envelope)?;
    let mut value = Value::from(parts.ciphertext.to_vec());
    parts.open(key, name, value.as_mut())?;
    Ok(value)
}

/// Seals what an envelope holds anew: opened with `from`, sealed with `to` under `header`, in one
/// buffer that holds the value only in between.
pub(crate) fn reseal(
    (from, envelope): (&SuiteKey, &[u8]),
    (to, header): (&SuiteKey, &Header),
    name: &[u8],
) -> Result<Result<Vec<u8>, Fault>> {
    let parts = match Parts::of(envelope) {
        Ok(parts) => parts,
        Err(fault) => return Ok(Err(fault)),
    };
    let header = header.encode();
    let mut resealed = Zeroizing::new(Vec::with_capacity(envelope.len() + STORAGE_ROOM));
    resealed.extend_from_slice(&header);
    resealed.extend_from_slice(&[0; NONCE_LEN]);
    resealed.extend_from_slice(parts.ciphertext);
    let buffer = &mut resealed[VALUE_AT..];
    if let Err(fault) = parts.open(from, name, buffer) {
        return Ok(Err(fault));
    }
    let nonce = Nonce::draw()?;
    with_associated_data(&header, name, |ad| to.seal_in_place(nonce, ad, buffer))
        .complete(&mut resealed, HEADER_LEN);
    Ok(Ok(std::mem::take(&mut *resealed)))
}

/// An envelope taken apart.
struct Parts<'a> {
    header: &'a [u8; HEADER_LEN],
    nonce: &'a [u8; NONCE_LEN],
    ciphertext: &'a [u8],
    tag: &'a [u8; TAG_LEN],
}

impl<'a> Parts<'a> {
    fn of(envelope: &'a [u8]) -> Result<Self, Fault> {
        let short = Fault::TooShort(envelope.len());
        let (header, rest) = envelope.split_first_chunk().ok_or(short)?;
        let (nonce, rest) = rest.split_first_chunk().ok_or(short)?;
        let (ciphertext, tag) = rest.split_last_chunk().ok_or(short)?;
        Ok(Self { header, nonce, ciphertext, tag })
    }

    /// Opens `buffer`, a copy of the ciphertext, in place.
    fn open(&self, key: &SuiteKey, name: &[u8], buffer: &mut [u8]) -> Result<(), Fault> {
        with_associated_data(self.header, name, |ad| {
            key.open_in_place(self.nonce, ad, buffer, self.tag)
        })
        .map_err(|_| Fault::Tag)
    }
}

/// Associated data = label ‖ header ‖ length of name (4 bytes) ‖ name, without an allocation
/// for names up to 215 bytes.
fn with_associated_data<T>(
    header: &[u8; HEADER_LEN],
    name: &[u8],
    with: impl FnOnce(&[u8]) -> T,
) -> T {
    const PREFIX: usize = AD_LABEL.len() + HEADER_LEN + 4;
    let mut prefix = [0; PREFIX];
    let (label, rest) = prefix.split_at_mut(AD_LABEL.len());
    label.copy_from_slice(AD_LABEL);
    rest[..HEADER_LEN].copy_from_slice(header);
    let len = u32::try_from(name.len()).unwrap_or(u32::MAX);
    rest[HEADER_LEN..].copy_from_slice(&len.to_be_bytes());

    let mut stack = [0; 256];
    let len = PREFIX + name.len();
    if len <= stack.len() {
        stack[..PREFIX].copy_from_slice(&prefix);
        stack[PREFIX..len].copy_from_slice(name);
        with(&stack[..len])
    } else {
        with(&[&prefix[..], name].concat())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(suite: Suite) -> Header {
        Header { suite, org: OrgId::from_bytes([9; 16]), version: KeyVersion::FIRST }
    }

    fn material() -> KeyMaterial {
        KeyMaterial::take(&mut [5; 32])
    }

    fn available() -> Vec<Suite> {
        Suite::ALL.into_iter().filter(|suite| suite.is_available()).collect()
    }

    #[test]
    fn header_bytes_are_the_table_in_the_design() {
        let bytes = header(Suite::Xaes256Gcm).encode();
        assert_eq!(bytes[0], 1);
        assert_eq!(bytes[1], 1);
        assert_eq!(bytes[2..18], [9; 16]);
        assert_eq!(bytes[18..22], [0, 0, 0, 1]);
    }

    /// The envelope whose hexdump stands in `docs/design.md`.
    const GOLDEN: &str = concat!(
        "010109090909090909090909090909090909000000014176d00f0544a7d3132faf82",
        "68ed59ca55729fec2aab54d13ac33a4f1554cb2fd1e976f5d19ef902fa231ecafc2c"
    );

    /// Pins format 1: an envelope of a store written today opens for ever.
    #[test]
    fn the_golden_envelope_opens_and_its_damaged_twin_does_not() {
        let mut envelope = base16ct::lower::decode_vec(GOLDEN).unwrap();
        let header = Header::decode(&envelope).unwrap();
        assert_eq!(header, self::header(Suite::Xaes256Gcm));
        let key = header.key(&material()).unwrap();
        assert!(open(&key, b"clusters/prod/token", &envelope).unwrap() == b"s3cret"[..]);
        envelope[46] ^= 1;
        assert_eq!(open(&key, b"clusters/prod/token", &envelope).err(), Some(Fault::Tag));
    }

    #[test]
    fn each_fault_is_told_apart() {
        let header = header(Suite::Xaes256Gcm);
        let good = seal(&header.key(&material()).unwrap(), &header, b"n", b"").unwrap();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Header::decode(&bytes).err()
        };
        assert_eq!(Header::decode(&good[..61]), Err(Fault::TooShort(61)));
        assert_eq!(with(0, 2), Some(Fault::Format(2)));
        assert_eq!(with(1, 0), Some(Fault::Suite(0)));
        assert_eq!(with(21, 0), Some(Fault::Version));
        assert_eq!(with(21, 1), None);
    }

    #[test]
    fn every_bit_of_an_envelope_and_its_name_is_authenticated() {
        for suite in available() {
            let header = header(suite);
            let key = header.key(&material()).unwrap();
            let envelope = seal(&key, &header, b"name", b"value").unwrap();
            assert_eq!(&*open(&key, b"name", &envelope).unwrap(), b"value");
            for bit in 0..envelope.len() * 8 {
                let mut flipped = envelope.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(open(&key, b"name", &flipped).err(), Some(Fault::Tag), "bit {bit}");
            }
            assert_eq!(open(&key, b"Name", &envelope).err(), Some(Fault::Tag));
            assert_eq!(open(&key, b"names", &envelope).err(), Some(Fault::Tag));
        }
    }

    #[test]
    fn keys_differ_by_suite_org_and_version() {
        let mut other = header(Suite::Xaes256Gcm);
        let envelope = seal(&other.key(&material()).unwrap(), &other, b"n", b"v").unwrap();
        other.version = KeyVersion::new(2).unwrap();
        assert_eq!(open(&other.key(&material()).unwrap(), b"n", &envelope).err(), Some(Fault::Tag));
        let mut foreign = header(Suite::Xaes256Gcm);
        foreign.org = OrgId::from_bytes([8; 16]);
        assert_eq!(
            open(&foreign.key(&material()).unwrap(), b"n", &envelope).err(),
            Some(Fault::Tag)
        );
    }

    #[test]
    fn resealing_opens_under_the_new_key_alone() {
        let both = |old| available().into_iter().map(move |new| (old, new));
        for (old, new) in available().into_iter().flat_map(both) {
            let (old, mut new) = (header(old), header(new));
            new.version = KeyVersion::new(2).unwrap();
            let (from, to) = (old.key(&material()).unwrap(), new.key(&material()).unwrap());
            let mut envelope = seal(&from, &old, b"n", b"value").unwrap();
            let resealed = reseal((&from, &envelope), (&to, &new), b"n").unwrap().unwrap();
            assert_eq!(Header::decode(&resealed), Ok(new));
            assert!(open(&to, b"n", &resealed).unwrap() == b"value"[..]);
            assert_eq!(open(&from, b"n", &resealed).err(), Some(Fault::Tag));
            assert_ne!(resealed[HEADER_LEN..46], envelope[HEADER_LEN..46], "a nonce of its own");
            envelope[50] ^= 1;
            let damaged = reseal((&from, &envelope), (&to, &new), b"n").unwrap();
            assert_eq!(damaged, Err(Fault::Tag));
        }
    }

    proptest! {
        #[test]
        fn sealing_round_trips(
            name in prop::collection::vec(any::<u8>(), 0..600),
            value in prop::collection::vec(any::<u8>(), 0..2000),
            suite in prop::sample::select(available()),
        ) {
            let header = header(suite);
            let key = header.key(&material()).unwrap();
            let envelope = seal(&key, &header, &name, &value).unwrap();
            prop_assert_eq!(envelope.len(), OVERHEAD + value.len());
            prop_assert_eq!(Header::decode(&envelope), Ok(header));
            let opened = open(&key, &name, &envelope).unwrap();
            prop_assert_eq!(&*opened, &value[..]);
        }

        #[test]
        fn arbitrary_bytes_never_open(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let key = header(Suite::Xaes256Gcm).key(&material()).unwrap();
            let _ = Header::decode(&bytes);
            prop_assert!(open(&key, b"n", &bytes).is_err());
        }
    }
}
