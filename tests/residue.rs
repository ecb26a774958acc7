//! Old ciphertext in the database's files: told honestly, and removed.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::HashSet;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use byokv::{
    CertificateKind, ErasureLimit, Error, KeyVersion, OrgPolicy, RootKey, Store, failpoint,
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

/// Every path below the directory with its kind, what it points to, and its bytes.
fn state(dir: &Path) -> Vec<(PathBuf, Option<PathBuf>, Option<Vec<u8>>)> {
    let entries = walkdir::WalkDir::new(dir).sort_by_file_name().into_iter();
    let state = entries.map(|entry| {
        let entry = entry.unwrap();
        let bytes = entry.file_type().is_file().then(|| std::fs::read(entry.path()).unwrap());
        (entry.path().to_owned(), std::fs::read_link(entry.path()).ok(), bytes)
    });
    state.collect()
}

/// Opening is refused for what lies at `path`, before anything is changed.
fn refuses(place: &Place, path: &Path, what: &str) {
    let before = state(place.dir.path());
    match place.try_open() {
        Err(Error::OutsideStore { path: found, what: is }) => {
            assert_eq!((&*found, is), (path, what));
        }
        other => panic!("{path:?}: {other:?}"),
    }
    assert!(state(place.dir.path()) == before, "{path:?}");
    let inspection = Store::inspect(place.data()).unwrap();
    let said = inspection.outside.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with(&format!("{} is {what}; it was left as it is", path.display())));
}

/// Before that, what a link points to was written by sled, and missed by searching and erasing:
/// four envelopes of a key that was certified as erased lay behind one at `blobs`.
#[test]
fn a_link_in_the_place_of_a_file_of_the_store_keeps_it_shut() {
    const LINK: &str = "a symbolic link";

    let place = Place::new();
    let store = place.open();
    store.create_org("acme", OrgPolicy::byok()).unwrap().put("large", vec![7; 2 << 20]).unwrap();
    store.close().unwrap();
    let data = place.data();
    std::fs::create_dir(data.join("db.9")).unwrap();
    let elsewhere = place.dir.path().join("elsewhere");
    for own in ["db", "db/db", "db/blobs", "db/conf", "db/durable", "keyring", "mark", "LOCK"] {
        let path = data.join(own);
        std::fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        refuses(&place, &path, LINK);
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&elsewhere, &path).unwrap();
    }
    std::fs::write(&elsewhere, "somebody else's").unwrap();
    for added in ["keyring.new", "db.8", "db.9/x", "db/blobs/1", "db/links", "db/dangling"] {
        let path = data.join(added);
        if path.exists() {
            std::fs::remove_dir_all(&path).unwrap();
        }
        let target = if added.ends_with("dangling") { Path::new("/none") } else { &elsewhere };
        symlink(target, &path).unwrap();
        refuses(&place, &path, LINK);
        std::fs::remove_file(&path).unwrap();
    }
    let socket = data.join("db/blobs/socket");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    refuses(&place, &socket, "neither a file nor a directory");
    std::fs::remove_file(socket).unwrap();
    // The directory itself may be reached by a link.
    std::fs::rename(&data, elsewhere.with_extension("d")).unwrap();
    symlink(elsewhere.with_extension("d"), &data).unwrap();
    let store = place.open();
    assert_eq!(store.org("acme").unwrap().get("large").unwrap().unwrap().len(), 2 << 20);
    store.erase_residue().unwrap();
}

/// A link that appears while the store is open: nothing is searched, erased or certified beside it,
/// and no key is destroyed in the file that it replaced.
#[test]
fn a_link_that_appears_later_ends_no_erasure_and_no_change_of_keys() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 50));
    store.keys().rotate_platform_key("acme").unwrap().ended();
    let blobs = place.data().join("db/blobs");
    let elsewhere = place.dir.path().join("elsewhere");
    std::fs::rename(&blobs, &elsewhere).unwrap();
    symlink(&elsewhere, &blobs).unwrap();
    for refused in [store.residue().map(drop), store.erase_residue().map(drop)] {
        assert!(matches!(refused, Err(Error::OutsideStore { path, .. }) if path == blobs));
    }
    assert!(!place.data().join("db.1").exists());
    std::fs::remove_file(&blobs).unwrap();
    std::fs::rename(&elsewhere, &blobs).unwrap();
    let keyring = place.data().join("keyring");
    std::fs::rename(&keyring, &elsewhere).unwrap();
    symlink(&elsewhere, &keyring).unwrap();
    let before = std::fs::read(&elsewhere).unwrap();
    assert!(matches!(store.erase_residue(), Err(Error::OutsideStore { .. })));
    let refused = store.create_org("umbra", OrgPolicy::byok());
    assert!(matches!(refused, Err(Error::OutsideStore { path, .. }) if path == keyring));
    assert_eq!(std::fs::read(&elsewhere).unwrap(), before);
    std::fs::remove_file(&keyring).unwrap();
    std::fs::rename(&elsewhere, &keyring).unwrap();
    store.create_org("umbra", OrgPolicy::byok()).unwrap();
    assert_eq!(store.erase_residue().unwrap().certificates.len(), 1);
}

/// A hard link is another name of the same bytes: what is erased is gone there too.
#[test]
fn a_hard_link_is_named_and_keeps_nothing() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 200));
    store.keys().rotate_platform_key("acme").unwrap().ended();
    let kept = [("db/db", "log"), ("keyring", "keys")].map(|(own, name)| {
        let (own, kept) = (place.data().join(own), place.dir.path().join(name));
        std::fs::hard_link(&own, &kept).unwrap();
        assert!(std::fs::read(&kept).unwrap().iter().any(|&byte| byte != 0));
        (own, kept)
    });
    let mut own: Vec<_> = kept.iter().map(|(own, _)| own.clone()).collect();
    own.sort_unstable();
    assert_eq!(Store::inspect(place.data()).unwrap().linked, own);
    assert_eq!(store.erase_residue().unwrap().certificates.len(), 1);
    for (_, kept) in kept {
        assert!(std::fs::read(&kept).unwrap().iter().all(|&byte| byte == 0), "{kept:?}");
    }
    assert!(Store::inspect(place.data()).unwrap().linked.is_empty());
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

/// Not a test of its own: mounts, in a mount namespace that ends with the process.
#[test]
fn mounting_child() {
    if std::env::var_os("BYOKV_MOUNTS").is_none() {
        return;
    }
    let run = |program: &str, args: &[&Path]| {
        assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
    };
    let bind = Path::new("--bind");
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 20));
    store.close().unwrap();
    let data = place.data();
    let elsewhere = place.dir.path().join("elsewhere");
    // Another file system, and the same one again: the device is the same then.
    for own in ["db", "db/blobs"] {
        let path = data.join(own);
        std::fs::rename(&path, &elsewhere).unwrap();
        std::fs::create_dir(&path).unwrap();
        run("mount", &[bind, &elsewhere, &path]);
        refuses(&place, &path, "a mount point");
        run("umount", &[&path]);
        run("mount", &[Path::new("-t"), Path::new("tmpfs"), Path::new("none"), &path]);
        refuses(&place, &path, "a mount point");
        run("umount", &[&path]);
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&elsewhere, &path).unwrap();
    }
    // Files, too.
    for own in ["keyring", "db/db"] {
        let path = data.join(own);
        std::fs::copy(&path, &elsewhere).unwrap();
        run("mount", &[bind, &elsewhere, &path]);
        refuses(&place, &path, "a mount point");
        run("umount", &[&path]);
    }
    // The directory itself may be one, and what appears later is noticed before an erasure.
    std::fs::remove_file(&elsewhere).unwrap();
    std::fs::rename(&data, &elsewhere).unwrap();
    std::fs::create_dir(&data).unwrap();
    run("mount", &[bind, &elsewhere, &data]);
    let store = place.open();
    check_filled(&store.org("acme").unwrap(), 20);
    store.keys().rotate_platform_key("acme").unwrap().ended();
    let blobs = data.join("db/blobs");
    run("mount", &[bind, place.dir.path(), &blobs]);
    for refused in [store.residue().map(drop), store.erase_residue().map(drop)] {
        assert!(matches!(refused, Err(Error::OutsideStore { path, .. }) if path == blobs));
    }
    run("umount", &[&blobs]);
    assert_eq!(store.erase_residue().unwrap().certificates.len(), 1);
    store.close().unwrap();
    run("umount", &[&data]);
    println!("mounts were tried");
}

/// sled writes into a mount point, and no exchange, search or removal of the directory reaches what
/// lies behind it: `db` was busy for ever, and its data moved to the parent's disk.
#[test]
fn a_mount_point_in_the_place_of_a_file_of_the_store_keeps_it_shut() {
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private"]);
    let can = Command::new("unshare").args(["--mount", "true"]).status();
    if !can.is_ok_and(|status| status.success()) {
        eprintln!(
            "\n*** SKIPPED: no mounting here (root and `unshare` are needed); mount points were NOT tried ***\n"
        );
        return;
    }
    let child = unshare
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "mounting_child", "--nocapture"])
        .env("BYOKV_MOUNTS", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{said}{}", String::from_utf8_lossy(&child.stderr));
    assert!(said.contains("mounts were tried"), "{said}");
}
