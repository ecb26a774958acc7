//! The bytes of a backup: what opens, and what is refused with which words.

use proptest::prelude::*;

use super::stream::{CHUNK, CHUNK_HEAD_LEN, HEAD_LEN};
use super::*;
use super::{EarlierKeys, MOST_KEYS, MOST_UNREADABLE};
use crate::error::{BackupError, Error, Result};
use crate::id::{BackupId, OrgId};
use crate::material::KeyMaterial;

const SEALED: usize = CHUNK_HEAD_LEN + CHUNK + 16;

fn key(byte: u8) -> KeyMaterial {
    KeyMaterial::take(&mut [byte; 32])
}

fn head(id: u8) -> Head {
    Head { key: key(1).fingerprint(), id: BackupId::from_bytes([id; 16]) }
}

/// `plaintext` as a stream under key 1.
fn sealed(id: u8, plaintext: &[u8]) -> Vec<u8> {
    let mut sealer = Sealer::new(Vec::new(), &key(1), head(id)).unwrap();
    sealer.write(plaintext).unwrap();
    sealer.finish().unwrap()
}

fn opened(bytes: &[u8], with: &KeyMaterial) -> Result<Vec<u8>> {
    let mut opener = Opener::new(bytes, with)?;
    let (mut all, mut byte) = (Vec::new(), [0]);
    while opener.read(&mut byte)? {
        all.push(byte[0]);
    }
    Ok(all)
}

fn refusal(bytes: &[u8]) -> BackupError {
    match opened(bytes, &key(1)) {
        Err(Error::Backup(why)) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("opened"),
    }
}

/// Three whole chunks and a bit.
fn long(id: u8) -> Vec<u8> {
    sealed(id, &[id; 3 * CHUNK + 5])
}

#[test]
fn what_was_written_is_read_whatever_its_length() {
    for len in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7] {
        let plaintext: Vec<u8> = (0..=255).cycle().take(len).collect();
        let bytes = sealed(1, &plaintext);
        let chunks = len.div_ceil(CHUNK).max(1);
        assert_eq!(bytes.len(), HEAD_LEN + len + chunks * (CHUNK_HEAD_LEN + 16));
        assert!(opened(&bytes, &key(1)).unwrap() == plaintext, "{len}");
    }
}

/// Pins the outer layer: a backup that was made today opens for ever. These bytes were made by
/// another implementation (OpenSSL) from the table in `docs/design.md`.
#[test]
fn the_golden_stream_opens() {
    const GOLDEN: &str = concat!(
        "62796f6b76424b31b42ce67cb333a364627785d8828a37e7070707070707070707070707070707070707",
        "070707070707070707070707070700000000010000000757654cf41d1dee41a17e45dfffd5e05f297452",
        "cc332e38"
    );
    let bytes = base16ct::lower::decode_vec(GOLDEN).unwrap();
    assert_eq!(bytes, sealed(7, b"records"));
    assert_eq!(opened(&bytes, &key(1)).unwrap(), b"records");
}

#[test]
fn each_fault_has_its_own_words() {
    use BackupError::*;
    let good = long(1);
    let whole = |chunks: usize| HEAD_LEN + chunks * SEALED;
    for (cut, chunks) in [(0, None), (3, Some(0)), (HEAD_LEN, Some(0)), (whole(1), Some(1))] {
        let expected = chunks.map_or(NoBackup, |chunks| CutShort { chunks });
        assert_eq!(refusal(&good[..cut]), expected, "cut at {cut}");
    }
    for (cut, chunks) in [(whole(2) + 9, 2), (whole(3), 3), (good.len() - 1, 3)] {
        assert_eq!(refusal(&good[..cut]), CutShort { chunks }, "cut at {cut}");
    }
    assert_eq!(refusal(&[&good[..], b"x"].concat()), GoesOn);
    assert_eq!(refusal(b"some other file of a decent length, which is no backup"), NoBackup);
    let wrong = opened(&good, &key(2)).unwrap_err();
    let (expected, given) = (key(1).fingerprint(), key(2).fingerprint());
    assert!(
        matches!(wrong, Error::Backup(OtherKey { expected: e, given: g }) if (e, g) == (expected, given))
    );

    let mut swapped = good.clone();
    swapped[whole(1)..whole(2)].copy_from_slice(&good[whole(2)..whole(3)]);
    swapped[whole(2)..whole(3)].copy_from_slice(&good[whole(1)..whole(2)]);
    assert_eq!(refusal(&swapped), OutOfPlace { chunk: 1, found: 2 });
    let left_out = [&good[..whole(1)], &good[whole(2)..]].concat();
    assert_eq!(refusal(&left_out), OutOfPlace { chunk: 1, found: 2 });
    let twice = [&good[..whole(2)], &good[whole(1)..]].concat();
    assert_eq!(refusal(&twice), OutOfPlace { chunk: 2, found: 1 });

    let other = long(2);
    let spliced = [&good[..whole(2)], &other[whole(2)..]].concat();
    assert_eq!(refusal(&spliced), OtherBackup { chunk: 2 });
    let mut disguised = spliced;
    disguised[whole(2)..whole(2) + 16].copy_from_slice(&[1; 16]);
    assert_eq!(refusal(&disguised), Altered { chunk: 2 });
    let headless = [&other[..HEAD_LEN], &good[HEAD_LEN..]].concat();
    assert_eq!(refusal(&headless), OtherBackup { chunk: 0 });
}

/// An end that was moved forward does not open: the nonce knows which chunk is the last.
#[test]
fn a_chunk_is_not_made_the_last_one() {
    let good = long(1);
    let mut early = good[..HEAD_LEN + 2 * SEALED].to_vec();
    early[HEAD_LEN + SEALED + 20] = 1;
    assert_eq!(refusal(&early), BackupError::Altered { chunk: 1 });
    let mut late = [&good[..], &good[HEAD_LEN + 3 * SEALED..]].concat();
    late[HEAD_LEN + 3 * SEALED + 20] = 0;
    assert_eq!(refusal(&late), BackupError::Altered { chunk: 3 });
}

#[test]
fn every_byte_is_authenticated() {
    let good = sealed(1, b"records");
    for at in 0..good.len() {
        for flip in [1, 0x80] {
            let mut altered = good.clone();
            altered[at] ^= flip;
            assert!(opened(&altered, &key(1)).is_err(), "byte {at}");
        }
    }
}

fn manifest(entries: u64, bytes: u64) -> Manifest {
    let mut ring = crate::keyring::Keyring::new(key(9).fingerprint()).unwrap();
    let id = OrgId::from_bytes([3; 16]);
    ring.create_org(id, "acme", crate::keyring::OrgPolicy::byok(), key(3), 5).unwrap();
    Manifest {
        store: id,
        at: 5,
        is_whole: true,
        orgs: vec![OrgPart { history: ring.org("acme").unwrap().history(), entries, bytes }],
        left_out: Vec::new(),
        unreadable: Vec::new(),
        other_keys: Vec::new(),
        earlier: Vec::new(),
    }
}

fn sealer() -> Sealer<Vec<u8>> {
    Sealer::new(Vec::new(), &key(1), head(1)).unwrap()
}

#[test]
fn entries_come_back_and_fit_the_list_of_contents() {
    let mut to = sealer();
    to.record(0, b"a", Some(&[5; 2 * CHUNK])).unwrap();
    to.record(0, b"b", None).unwrap();
    let bytes = to.end(&manifest(2, 2 * CHUNK as u64)).unwrap();
    assert!(check(&key(1), &bytes[..]).unwrap().1 == manifest(2, 2 * CHUNK as u64));
    let contents = BackupContents::read(&key(1), &bytes[..]).unwrap();
    assert_eq!((contents.orgs[0].name.as_str(), contents.orgs[0].entries), ("acme", 2));
    assert!(contents.is_complete());
}

#[test]
fn what_is_authentic_and_makes_no_sense_is_refused() {
    let refused = |bytes: Vec<u8>| match check(&key(1), &bytes[..]) {
        Err(Error::Backup(BackupError::Malformed { why })) => why,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("taken"),
    };
    let with = |entries: &dyn Fn(&mut Sealer<Vec<u8>>), manifest: Manifest| {
        let mut to = sealer();
        entries(&mut to);
        refused(to.end(&manifest).unwrap())
    };
    let fit = "its list of contents does not fit its entries";
    assert_eq!(with(&|_| (), manifest(1, 0)), fit);
    let of_none = with(&|to| to.record(1, b"a", None).unwrap(), manifest(0, 0));
    assert_eq!(of_none, "it has a record of no org");
    assert_eq!(with(&|to| to.record(0, b"a", Some(b"v")).unwrap(), manifest(1, 2)), fit);
    assert_eq!(
        with(&|to| to.record(0, b"", None).unwrap(), manifest(1, 0)),
        "a record has no name"
    );
    let mut twice = manifest(0, 0);
    twice.orgs.push(twice.orgs[0].clone());
    assert_eq!(with(&|_| (), twice), "it has two orgs of the same name or id");
    let mut deep = manifest(1, 0);
    let blinded = crate::keyring::OrgPolicy::byok().with_names(crate::keyring::NamePolicy::Blinded);
    deep.orgs[0].history.policy = blinded;
    let name = b"/".repeat(128);
    let why = with(&|to| to.record(0, &name, None).unwrap(), deep);
    assert_eq!(why, "a record's name has more segments than its org allows");
    let mut unnumbered = manifest(0, 0);
    unnumbered.orgs[0].history.versions.clear();
    assert!(with(&|_| (), unnumbered).contains("history"));
    let raw = |plaintext: &[u8]| refused(sealed(1, plaintext));
    assert_eq!(raw(b""), "it has no list of its contents");
    assert_eq!(raw(&[9, 0, 0, 0, 0, 0, 0, 0, 1, b'n']), "it has an entry of an unknown kind");
    assert_eq!(raw(&[3, 0, 0, 0, 1, 0]), "its list of contents cannot be read");
    assert!(raw(&[1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]).contains("too long"));
    assert_eq!(raw(&[1, 0, 0, 0, 0, 0, 0, 0, 9]), "an entry has no end");
}

#[test]
fn a_list_of_contents_has_limits() {
    let refused = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = manifest(0, 0);
        change(&mut manifest);
        match manifest.check_limits() {
            Err(Error::Backup(BackupError::TooMany { what, found, limit })) => {
                assert!(found > limit, "{what}");
                what
            }
            other => panic!("{other:?}"),
        }
    };
    let print = key(7).fingerprint();
    let record = |len: usize| UnreadableRecord {
        org: String::new(),
        name: String::new(),
        why: "x".repeat(len),
    };
    let earlier = |orgs: usize, keys: usize| EarlierKeys {
        backup: BackupId::from_bytes([1; 16]),
        orgs: vec![0; orgs],
        keys: vec![print; keys],
    };
    let keys = "fingerprints of keys";
    assert_eq!(refused(&|m| m.other_keys = vec![print; MOST_KEYS]), keys);
    assert_eq!(refused(&|m| m.earlier = vec![earlier(0, MOST_KEYS / 2 + 1); 2]), keys);
    assert_eq!(refused(&|m| m.earlier = vec![earlier(1_000_001, 0)]), "orgs of earlier backups");
    assert_eq!(refused(&|m| m.earlier = vec![earlier(0, 0); 100_001]), "earlier backups");
    assert_eq!(refused(&|m| m.orgs = vec![m.orgs[0].clone(); 100_001]), "orgs");
    assert_eq!(
        refused(&|m| m.orgs[0].history.ancestors = vec![m.store; 1_000_001]),
        "ids of earlier orgs"
    );
    assert_eq!(
        refused(&|m| m.unreadable = vec![record(0); MOST_UNREADABLE + 1]),
        "records that could not be read"
    );
    assert_eq!(refused(&|m| m.unreadable = vec![record(5000)]), "bytes in a text about a record");
    manifest(0, 0).check_limits().unwrap();
}

proptest! {
    #[test]
    fn no_sealed_bytes_make_it_panic(plaintext in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(check(&key(1), &sealed(1, &plaintext)[..]).is_err());
    }
}
