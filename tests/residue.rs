//! Old ciphertext in the database's files: told honestly, and removed.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use byokv::{
    CertificateKind, ErasureLimit, KeyVersion, OrgId, OrgPolicy, RootKey, Store, failpoint,
};
use common::{Ended, Place, check_filled, contents, filled, here, key_text, material};

/// How many of the envelopes that lie under the first version can be found in the raw files.
fn found(place: &Place, envelopes: &HashSet<[u8; 24]>) -> usize {
    // Which first three bytes any of them has: passes one place in a thousand.
    let first = |nonce: &[u8]| {
        usize::from(nonce[0]) << 16 | usize::from(nonce[1]) << 8 | usize::from(nonce[2])
    };
    let mut may_be = vec![false; 1 << 24];
    envelopes.iter().for_each(|nonce| may_be[first(nonce)] = true);
    let mut seen = HashSet::new();
    for (_, bytes) in contents(&place.data()) {
        for window in bytes.windows(24).filter(|window| may_be[first(window)]) {
            let window: [u8; 24] = window.try_into().unwrap();
            if envelopes.contains(&window) {
                seen.insert(window);
            }
        }
    }
    seen.len()
}

/// The nonces of all records, read behind the store's back: random, so each marks its envelope.
fn nonces(place: &Place) -> HashSet<[u8; 24]> {
    let mut nonces = HashSet::new();
    common::tamper(place, "records", |records| {
        for pair in records {
            nonces.insert(pair.unwrap().1[22..46].try_into().unwrap());
        }
    });
    nonces
}

#[test]
fn of_twenty_thousand_old_envelopes_none_is_left() {
    const RECORDS: usize = 20_000;
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", RECORDS));
    drop(filled(&store, "umbra", 100));
    store.close().unwrap();
    let mut old = nonces(&place);
    assert_eq!(old.len(), RECORDS + 100);
    let store = place.open();
    store.keys().provision("acme", material(&key_text())).unwrap().ended();
    store.close().unwrap();
    for nonce in nonces(&place) {
        old.remove(&nonce);
    }
    assert_eq!(old.len(), RECORDS);
    let before = found(&place, &old);
    assert!(before > RECORDS / 2, "sled kept {before}: nothing to show");

    let store = place.open();
    let told = store.residue().unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].org.as_str(), told[0].version.get()), ("acme", 1));
    assert!(told[0].envelopes >= before as u64, "{told:?}, really {before}");
    assert!(told[0].bytes_at_most >= told[0].envelopes * 62);
    let erased = store.erase_residue().unwrap();
    assert_eq!(erased.before, told);
    assert_eq!(erased.certificates.len(), 1);
    let certificate = &erased.certificates[0];
    assert_eq!(certificate.kind, CertificateKind::KeyErased);
    assert!(store.keys().verify_certificate(certificate).unwrap().is_true());
    let scope = [ErasureLimit::AbortedPages, ErasureLimit::ShortenedLog];
    assert_eq!(certificate.scope[..2], scope);
    assert_eq!(certificate.scope.last(), Some(&ErasureLimit::BesideFiles));
    assert_eq!(certificate.to_string().matches("\n    - ").count(), certificate.scope.len());
    assert!(store.residue().unwrap().is_empty());
    let kinds: Vec<_> = store.keys().certificates().map(|c| c.unwrap().kind).collect();
    assert_eq!(kinds, [CertificateKind::KeyRetired, CertificateKind::KeyErased]);
    store.close().unwrap();
    assert_eq!(found(&place, &old), 0);

    let store = place.open();
    check_filled(&store.org("acme").unwrap(), RECORDS);
    check_filled(&store.org("umbra").unwrap(), 100);
    store.keys().audit().for_each(|entry| drop(entry.unwrap()));
    // Again, and over a rotation: the database moves on.
    store.keys().rotate_platform_key("umbra").unwrap().ended();
    let again = store.erase_residue().unwrap();
    assert_eq!(again.certificates.len(), 1);
    check_filled(&store.org("umbra").unwrap(), 100);
}

/// Agents work on, with all that they do, and a rotation goes on, while the files are replaced.
#[test]
fn the_store_works_meanwhile() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 3000);
    store.keys().rotate_platform_key("acme").unwrap().ended();
    let stop = AtomicBool::new(false);
    let watch = org.watch("w0/").unwrap();
    let mut scan = org.scan("n");
    scan.next().unwrap().unwrap();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|thread| {
                let (org, stop) = (org.durable(), &stop);
                scope.spawn(move || {
                    let mut last = 0;
                    for i in 0.. {
                        org.put(format!("w{thread}/{}", i % 50), format!("{i}")).unwrap();
                        org.batch()
                            .put("a", "x")
                            .delete(format!("w{thread}/none"))
                            .commit()
                            .unwrap();
                        let read = org.get(format!("w{thread}/{}", i % 50)).unwrap().unwrap();
                        assert_eq!(read, *format!("{i}").as_bytes());
                        last = i;
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                    last
                })
            })
            .collect();
        let rotation = store.keys().provision("acme", material(&key_text())).unwrap();
        for _ in 0..3 {
            store.erase_residue().unwrap();
        }
        rotation.ended();
        stop.store(true, Ordering::Relaxed);
        for (thread, writer) in writers.into_iter().enumerate() {
            let last = writer.join().unwrap();
            let read = org.get(format!("w{thread}/{}", last % 50)).unwrap().unwrap();
            assert_eq!(read, *format!("{last}").as_bytes());
        }
    });
    assert!({ watch }.next().unwrap().unwrap().value.is_some());
    assert_eq!(scan.filter(Result::is_ok).count(), 2999);
    let certificates = store.erase_residue().unwrap().certificates;
    assert!(certificates.iter().all(|c| c.kind == CertificateKind::KeyErased));
    assert!(store.residue().unwrap().is_empty());
    for i in 0..3000 {
        assert!(org.get(format!("n{i:05}")).unwrap().is_some());
    }
}

/// Not a test of its own: erases residue and is killed on the way.
#[test]
fn child() {
    let Some(data) = std::env::var_os("BYOKV_CHILD") else { return };
    let root = material(&std::env::var("BYOKV_CHILD_ROOT").unwrap());
    let store = Store::open(data, RootKey::from_material(root)).unwrap();
    store.erase_residue().unwrap();
}

/// Killed at any point, the store opens with the old or the new database whole, and only one is
/// left on the disk.
#[test]
fn a_removal_killed_at_each_point_loses_nothing() {
    let of_keyring = failpoint::ALL.iter().filter(|point| point.starts_with("keyring."));
    let of_keyring = of_keyring.filter(|point| **point != "keyring.published");
    let mut points: Vec<String> = of_keyring.clone().map(|p| (*p).to_owned()).collect();
    points.extend(of_keyring.map(|p| format!("{p}:2")));
    points.extend(failpoint::RESIDUE.iter().map(|p| (*p).to_owned()));
    for point in points {
        let place = Place::new();
        let store = place.open();
        drop(filled(&store, "acme", 600));
        store.create_org("empty", OrgPolicy::byok()).unwrap();
        store.keys().provision("acme", material(&key_text())).unwrap().ended();
        store.close().unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child"])
            .env("BYOKV_FAILPOINT", &point)
            .env("BYOKV_CHILD", place.data())
            .env("BYOKV_CHILD_ROOT", &place.root)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        assert!(!status.success(), "{point} was not reached");
        let store = place.open();
        check_filled(&store.org("acme").unwrap(), 600);
        let databases = std::fs::read_dir(place.data()).unwrap();
        let is_db = |e: &std::io::Result<std::fs::DirEntry>| {
            e.as_ref().unwrap().file_name().to_string_lossy().starts_with("db")
        };
        assert_eq!(databases.filter(is_db).count(), 1, "{point}");
        store.erase_residue().unwrap();
        assert!(store.residue().unwrap().is_empty(), "{point}");
        let certificates = store.keys().certificates().map(|c| c.unwrap());
        let erased = certificates.filter(|c| c.kind == CertificateKind::KeyErased).count();
        assert_eq!(erased, 1, "{point}");
        check_filled(&store.org("acme").unwrap(), 600);
        store.keys().audit().for_each(|entry| drop(entry.unwrap()));
    }
}

fn erased_versions(certificates: &[byokv::Certificate], org: &str) -> Vec<u32> {
    let of_org = certificates.iter().filter(|c| c.org == org);
    of_org.map(|c| c.version).map(KeyVersion::get).collect()
}

/// A key that is retired while the new files are searched may have left what the search has
/// passed: it is not certified with the others.
#[test]
fn a_key_retired_during_the_search_is_not_certified() {
    let place = Place::new();
    let store = std::sync::Arc::new(place.open());
    drop(filled(&store, "acme", 100));
    store.keys().rotate_platform_key("acme").unwrap().ended();
    let inner = std::sync::Arc::downgrade(&store);
    let hook = here("residue.counted", move || {
        let store = inner.upgrade().unwrap();
        drop(filled(&store, "late", 100));
        store.sync().unwrap();
        store.keys().rotate_platform_key("late").unwrap().ended();
    });
    let certificates = store.erase_residue().unwrap().certificates;
    drop(hook);
    assert_eq!(erased_versions(&certificates, "acme"), [1]);
    assert!(erased_versions(&certificates, "late").is_empty());
    assert!(store.residue().unwrap().iter().any(|r| r.org == "late"), "it was there to be found");
    let certificates = store.erase_residue().unwrap().certificates;
    assert_eq!(erased_versions(&certificates, "late"), [1]);
}

/// What a removal that failed has left is found, and goes before anything is certified.
#[test]
fn old_files_that_are_left_count_as_residue() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 200));
    store.close().unwrap();
    let old = place.dir.path().join("old");
    common::copy_dir(&place.data().join("db"), &old);
    let store = place.open();
    store.keys().rotate_platform_key("acme").unwrap().ended();
    store.erase_residue().unwrap();
    assert!(store.residue().unwrap().is_empty());
    let left = place.data().join("db.77");
    common::copy_dir(&old, &left);
    let residue = store.residue().unwrap();
    assert!(residue.iter().any(|r| r.org == "acme" && r.envelopes >= 200), "{residue:?}");
    store.keys().rotate_platform_key("acme").unwrap().ended();
    let certificates = store.erase_residue().unwrap().certificates;
    assert_eq!(erased_versions(&certificates, "acme"), [2]);
    assert!(!left.exists() && store.residue().unwrap().is_empty());
}

/// A removal that fails before the switch leaves no second copy of what lives.
#[test]
fn a_removal_that_fails_takes_its_copy_with_it() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 300);
    let blocked = place.data().join("keyring.new");
    let in_the_way = blocked.clone();
    let hook = here("residue.frozen", move || std::fs::create_dir(&in_the_way).unwrap());
    store.erase_residue().unwrap_err();
    drop(hook);
    std::fs::remove_dir(&blocked).unwrap();
    assert!(!place.data().join("db.1").exists());
    org.durable().put("after", "x").unwrap();
    store.erase_residue().unwrap();
    assert!(place.data().join("db.1").exists() && !place.data().join("db").exists());
    assert!(org.get("after").unwrap().is_some());
}

/// Hard-links every file that the store has now into `kept`, so that it stays when the store removes
/// it; one for each inode.
fn keep_files(place: &Place, kept: &Path) {
    use std::os::unix::fs::MetadataExt;

    std::fs::create_dir_all(kept).unwrap();
    for entry in walkdir::WalkDir::new(place.data()) {
        // The store removes what it does not need.
        let gone =
            |e: &walkdir::Error| e.io_error().is_some_and(|e| e.kind() == ErrorKind::NotFound);
        let entry = match entry {
            Err(e) if gone(&e) => continue,
            entry => entry.unwrap(),
        };
        let Ok(meta) = std::fs::symlink_metadata(entry.path()) else { continue };
        if meta.is_file() {
            match std::fs::hard_link(entry.path(), kept.join(meta.ino().to_string())) {
                Err(e) if [ErrorKind::NotFound, ErrorKind::AlreadyExists].contains(&e.kind()) => {}
                linked => linked.unwrap(),
            }
        }
    }
}

/// Envelopes of the key version in the files, and in how many of them.
fn envelopes(kept: &Path, org: OrgId, version: u32) -> (usize, usize) {
    // Format and suite, as the store makes them by default.
    let header = [&[1, 1][..], org.as_bytes(), &version.to_be_bytes()].concat();
    let mut found = (0, 0);
    for (_, bytes) in contents(kept) {
        let here = common::places_of(&bytes, &header).len();
        found = (found.0 + here, found.1 + usize::from(here > 0));
    }
    found
}

/// sled unlinks large pages that it has replaced as they are: 175 envelopes of a key that was certified
/// as erased lay in 61 of them.
#[test]
fn of_large_pages_that_sled_has_removed_nothing_is_left() {
    let place = Place::new();
    let kept = place.dir.path().join("kept");
    let store = place.open();
    let org = store.create_org("acme", OrgPolicy::byok()).unwrap();
    for round in 0..3_u8 {
        for i in 0..4000 {
            org.put(format!("small/{i}"), vec![round; 3000]).unwrap();
            if i % 100 == 0 {
                org.put(format!("large/{i}"), vec![round; 300_000]).unwrap();
            }
        }
        store.sync().unwrap();
        keep_files(&place, &kept);
    }
    let (before, files) = envelopes(&kept, org.id(), 1);
    store.keys().rotate_platform_key("acme").unwrap().ended();
    keep_files(&place, &kept);
    let erased = store.erase_residue().unwrap();
    assert_eq!(erased_versions(&erased.certificates, "acme"), [1]);
    assert!(!erased.certificates[0].scope.contains(&ErasureLimit::PagesNotKept));
    keep_files(&place, &kept);
    let removed = std::fs::read_dir(&kept).unwrap().count()
        - walkdir::WalkDir::new(place.data())
            .into_iter()
            .filter(|entry| entry.as_ref().unwrap().file_type().is_file())
            .count();
    assert!(before > 4000 && files > 15 && removed > 15, "{before} in {files}, {removed} removed");
    assert_eq!(envelopes(&kept, org.id(), 1), (0, 0));
    for i in 0..4000 {
        assert_eq!(org.get(format!("small/{i}")).unwrap().unwrap(), vec![2; 3000][..]);
    }
}

/// A copy under another name is searched, named and left alone; what it holds is not certified.
#[test]
fn a_copy_in_the_data_directory_keeps_its_key_from_a_certificate() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 100));
    store.sync().unwrap();
    let copy = place.data().join("db.before-the-rotation");
    common::copy_dir(&place.data().join("db"), &copy);
    store.keys().rotate_platform_key("acme").unwrap().ended();
    let erased = store.erase_residue().unwrap();
    assert!(erased.certificates.is_empty());
    assert!(erased.left[0].envelopes >= 100, "{:?}", erased.left);
    assert_eq!(erased.left[0].elsewhere, [copy.join("db")]);
    std::fs::remove_dir_all(copy).unwrap();
    let erased = store.erase_residue().unwrap();
    assert_eq!(erased_versions(&erased.certificates, "acme"), [1]);
    assert!(erased.left.is_empty());
}
