//! All of a store lies in its own directory, on one mount: what leads elsewhere keeps it shut, and is
//! neither searched, overwritten nor certified.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use byokv::{Error, OrgPolicy, Store};
use common::{Ended, Place, check_filled, filled};

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
