//! Both sides of the tag: bytes as a backup, a real backup with bytes of it changed, and bytes
//! sealed as what lies inside one. Whatever is taken is restored, into a store where only whole
//! orgs are seen.
#![no_main]

use std::io::Cursor;
use std::sync::OnceLock;

use byokv::{BackupContents, KeyMaterial, OrgPolicy, RootKey, Store};

fn material(first: u8) -> KeyMaterial {
    let mut bytes = *b"\x00\x92key of the fuzzing harness, 32";
    bytes[0] = first;
    KeyMaterial::from_bytes(&mut bytes).unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let place = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let store = Store::open(place.path().join("data"), RootKey::from_material(material(1)));
    (place, store.unwrap())
}

fn real() -> &'static Vec<u8> {
    static REAL: OnceLock<Vec<u8>> = OnceLock::new();
    REAL.get_or_init(|| {
        let (_place, store) = store();
        let org = store.create_org("acme", OrgPolicy::byok()).unwrap();
        org.put("large", vec![7; 150_000]).unwrap();
        let mut file = Vec::new();
        store.backup(&material(2)).write_to(&mut file).unwrap();
        file
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let key = material(2);
    assert!(BackupContents::read(&key, bytes).is_err(), "forged");

    // Places and what to change them to: only the unchanged file opens.
    let mut changed = real().clone();
    for change in bytes.chunks_exact(4) {
        let at = u32::from_be_bytes([0, change[0], change[1], change[2]]) as usize % changed.len();
        changed[at] ^= change[3];
    }
    if let [.., last] = bytes
        && last & 1 == 1
    {
        changed.truncate(changed.len() - usize::from(*last));
    }
    assert_eq!(BackupContents::read(&key, &changed[..]).is_ok(), changed == *real());

    let sealed = byokv::fuzzing::backup_seal(&key, bytes);
    if let Ok(contents) = BackupContents::read(&key, &sealed[..]) {
        let (_place, store) = store();
        match store.restore(&key).read_from(Cursor::new(&sealed)) {
            Ok(restored) => {
                assert_eq!(restored.orgs.len(), contents.orgs.len());
                assert_eq!(store.orgs().len(), contents.orgs.len());
            }
            Err(_) => assert!(store.orgs().is_empty()),
        }
    }
});
