//! The invariants of the design, each by a test that fails when the code is broken.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::mpsc;
use std::time::Duration;

use byokv::{Error, KeyState, KeyVersion, OrgPolicy, Phase, RootKey, Suite, failpoint};
use common::{
    Ended, Place, check_filled, contents, copy_dir, escape, filled, key_text, material, tamper,
};

const SOON: Duration = Duration::from_secs(20);

fn states(store: &byokv::Store, org: &str) -> Vec<KeyState> {
    store.keys().status(org).unwrap().versions.iter().map(|v| v.state).collect()
}

/// 1: no plaintext and no key material on disk.
#[test]
fn raw_files_hold_no_plaintext_and_no_key() {
    let place = Place::new();
    let store = place.open();
    let org = store.create_org("acme", OrgPolicy::byok()).unwrap();
    for i in 0..100 {
        org.put(format!("n{i}"), format!("plaintext-marker-{i:03}-{}", "x".repeat(i * 40)))
            .unwrap();
    }
    let (one, two) = (key_text(), key_text());
    store.keys().provision("acme", material(&one)).unwrap().ended();
    store.keys().provision("acme", material(&two)).unwrap().ended();
    store.close().unwrap();
    drop(org);
    let decode = |text: &str| {
        base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap()
    };
    let mut needles: Vec<Vec<u8>> = vec![b"plaintext-marker".to_vec()];
    for key in [&one, &two, &place.root] {
        needles.push(key.as_bytes().to_vec());
        needles.push(decode(key));
        needles.push(decode(key)[..16].to_vec());
        needles.push(decode(key)[16..].to_vec());
    }
    let mut seen_name = false;
    for (path, bytes) in contents(&place.data()) {
        let has = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        for needle in &needles {
            assert!(!has(needle), "{} holds a secret", path.display());
        }
        seen_name |= has(b"n99");
    }
    assert!(seen_name, "the search itself finds what is there: names are in clear");
}

/// 3 and 4: a writer held between choosing its key and its insert holds up activation, so the
/// old version cannot be retired under it.
#[test]
fn a_writer_inside_is_waited_for() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "held-writer", 50);
    let (reached, at_point) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(Some(released));
    let hook = failpoint::on("put.sealed", "held-writer", move || {
        if let Some(released) = released.lock().unwrap().take() {
            reached.send(()).unwrap();
            let _ = released.recv();
        }
    });
    std::thread::scope(|scope| {
        // Let go when this fails, so that the writer is not held for ever.
        let release = release;
        let writer = scope.spawn(|| org.put("late", "written under v1"));
        at_point.recv_timeout(SOON).unwrap();
        let (done, rotated) = mpsc::channel();
        let keys = store.keys();
        scope.spawn(move || {
            let rotation = keys.provision("held-writer", material(&key_text())).unwrap();
            done.send(rotation.wait()).unwrap();
        });
        assert!(rotated.recv_timeout(Duration::from_millis(300)).is_err(), "did not wait");
        assert_eq!(org.get("n00001").unwrap().as_deref(), Some(&b"v1"[..]), "readers go on");
        release.send(()).unwrap();
        writer.join().unwrap().unwrap();
        let certificate = rotated.recv_timeout(SOON).unwrap().unwrap();
        assert_eq!(certificate.records_rewritten, 51);
    });
    drop(hook);
    assert_eq!(org.get("late").unwrap().as_deref(), Some(&b"written under v1"[..]));
    assert_eq!(store.keys().census("held-writer").unwrap().by_version.len(), 1);
}

/// 6: a reader held between fetching bytes and opening them, while the key is retired.
#[test]
fn a_reader_outlives_the_retirement() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "held-reader", 50);
    let (reached, at_point) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(Some(released));
    let hook = failpoint::on("get.fetched", "held-reader", move || {
        if let Some(released) = released.lock().unwrap().take() {
            reached.send(()).unwrap();
            let _ = released.recv();
        }
    });
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| org.get("n00007"));
        at_point.recv_timeout(SOON).unwrap();
        let rotation = store.keys().provision("held-reader", material(&key_text())).unwrap();
        rotation.wait_timeout(SOON).unwrap().unwrap();
        assert_eq!(states(&store, "held-reader"), [KeyState::Retired, KeyState::Active]);
        release.send(()).unwrap();
        assert_eq!(reader.join().unwrap().unwrap().as_deref(), Some(&b"v7"[..]));
    });
    drop(hook);
}

/// 6, the other order: a snapshot from before the rotation, bytes from after it.
#[test]
fn a_reader_with_an_old_snapshot_reads_again() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "old-snapshot", 50);
    let (reached, at_point) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(Some(released));
    let hook = failpoint::on("get.started", "old-snapshot", move || {
        if let Some(released) = released.lock().unwrap().take() {
            reached.send(()).unwrap();
            let _ = released.recv();
        }
    });
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| org.get("n00007"));
        at_point.recv_timeout(SOON).unwrap();
        let rotation = store.keys().provision("old-snapshot", material(&key_text())).unwrap();
        rotation.wait_timeout(SOON).unwrap().unwrap();
        release.send(()).unwrap();
        assert_eq!(reader.join().unwrap().unwrap().as_deref(), Some(&b"v7"[..]));
    });
    drop(hook);
}

/// 6, over a scan: its iterator hands out bytes from before the rotation.
#[test]
fn a_scan_that_rests_during_a_rotation_goes_on() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 200);
    let mut scan = org.scan("n");
    scan.next().unwrap().unwrap();
    store.keys().rotate_platform_key("acme").unwrap().ended();
    let rest: Vec<_> = scan.map(|record| record.unwrap().name).collect();
    assert_eq!(rest.len(), 199);
}

/// 5: a write and a delete that come between the rewrite's seal and its swap win.
#[test]
fn a_rewrite_loses_to_writes_and_deletes() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "swap", 1);
    let racing = org.clone();
    let once = std::sync::Mutex::new(Some(()));
    // The worker is inside the gate here, as another writer may be.
    let hook = failpoint::on("rewrite.sealed", "swap", move || {
        if once.lock().unwrap().take().is_some() {
            racing.put("n00000", "newer").unwrap();
        }
    });
    store.keys().rotate_platform_key("swap").unwrap().ended();
    assert_eq!(org.get("n00000").unwrap().as_deref(), Some(&b"newer"[..]));
    drop(hook);
    let racing = org.clone();
    let hook = failpoint::on("rewrite.sealed", "swap", move || racing.delete("n00000").unwrap());
    store.keys().rotate_platform_key("swap").unwrap().ended();
    assert!(org.get("n00000").unwrap().is_none(), "resurrected");
    drop(hook);
}

/// 7, 12, 13: a damaged record blocks retirement, is named, and stops nobody else.
#[test]
fn a_damaged_record_keeps_the_old_key_alive() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 100);
    let other = filled(&store, "umbra", 100);
    let id = org.id();
    drop((org, other));
    store.close().unwrap();
    tamper(&place, "records", |records| {
        let key = [&id.as_bytes()[..], b"n00042"].concat();
        let key = escape(&key);
        let mut envelope = records.get(&key).unwrap().unwrap().to_vec();
        let tag = envelope.len() - 17;
        envelope[tag] ^= 1;
        records.insert(key, envelope).unwrap();
    });
    let store = place.open();
    let org = store.org("acme").unwrap();
    match org.get("n00042") {
        Err(Error::RecordDamaged { name, .. }) => assert_eq!(name, "n00042"),
        other => panic!("{other:?}"),
    }
    let rotation = store.keys().provision("acme", material(&key_text())).unwrap();
    match rotation.wait() {
        Err(Error::RotationBlocked { unreadable: 1, first, .. }) => {
            assert!(first.contains("n00042"), "{first}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(rotation.progress().phase, Phase::Blocked);
    assert_eq!(states(&store, "acme"), [KeyState::DecryptOnly, KeyState::Active]);
    assert_eq!(store.keys().certificates().count(), 0);
    for i in (0..100).filter(|i| *i != 42) {
        assert!(org.get(format!("n{i:05}")).unwrap().is_some());
    }
    store.keys().rotate_platform_key("umbra").unwrap().ended();
    check_filled(&store.org("umbra").unwrap(), 100);
    org.put("n00042", "v42").unwrap();
    rotation.resume().unwrap();
    // Every record opens now, but what was there before is missing: an operator accepts that.
    assert!(rotation.wait().unwrap_err().is_rollback());
    assert!(store.danger_accept_loss("acme").unwrap());
    rotation.ended();
    check_filled(&org, 100);
}

/// Two envelopes swapped: both refuse to open.
#[test]
fn swapped_envelopes_do_not_open() {
    let place = Place::new();
    let store = place.open();
    let id = filled(&store, "acme", 3).id();
    store.close().unwrap();
    tamper(&place, "records", |records| {
        let key = |name: &[u8]| escape(&[&id.as_bytes()[..], name].concat());
        let (a, b) = (key(b"n00000"), key(b"n00001"));
        let first = records.get(&a).unwrap().unwrap();
        let second = records.insert(&b, first).unwrap().unwrap();
        records.insert(&a, second).unwrap();
    });
    let store = place.open();
    let org = store.org("acme").unwrap();
    for name in ["n00000", "n00001"] {
        assert!(matches!(org.get(name), Err(Error::RecordDamaged { .. })), "{name}");
    }
    assert!(org.get("n00002").unwrap().is_some());
}

/// 10: the same key offered by two orgs, an old key offered again, the root key offered.
#[test]
fn material_is_never_taken_twice() {
    let place = Place::new();
    let store = place.open();
    filled(&store, "acme", 1);
    filled(&store, "umbra", 1);
    let (one, two) = (key_text(), key_text());
    store.keys().provision("acme", material(&one)).unwrap().ended();
    store.keys().provision("acme", material(&two)).unwrap().ended();
    for (org, key) in [("umbra", &one), ("umbra", &two), ("acme", &one), ("acme", &place.root)] {
        let refused = store.keys().provision(org, material(key));
        assert!(matches!(refused, Err(Error::KeyReused { .. })), "{refused:?}");
    }
    assert_eq!(states(&store, "umbra"), [KeyState::Active]);
    let audit: Vec<_> = store.keys().audit().map(|entry| entry.unwrap().to_string()).collect();
    assert_eq!(audit.iter().filter(|line| line.contains("key refused")).count(), 4);
}

/// 10 and 11: `db/`, the keyring or the mark from last week, put back alone.
#[test]
fn parts_from_last_week_are_noticed() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 20));
    store.close().unwrap();
    let old = place.dir.path().join("old");
    copy_dir(&place.data(), &old);
    let store = place.open();
    store.keys().rotate_platform_key("acme").unwrap().ended();
    store.close().unwrap();
    let new = place.dir.path().join("new");
    copy_dir(&place.data(), &new);
    for (part, said) in
        [("db", "durable syncs behind"), ("keyring", "older keyring"), ("mark", "the mark is")]
    {
        copy_dir(&new, &place.data());
        if part == "db" {
            copy_dir(&old.join(part), &place.data().join(part));
        } else {
            std::fs::copy(old.join(part), place.data().join(part)).unwrap();
        }
        let error = place.try_open().unwrap_err();
        assert!(error.is_rollback(), "{part}: {error}");
        assert!(error.to_string().contains(said), "{part}: {error}");
    }
    copy_dir(&new, &place.data());
    check_filled(&place.open().org("acme").unwrap(), 20);
}

/// 12: a wrong root key has its own error and touches nothing.
#[test]
fn a_wrong_root_key_touches_nothing() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 5));
    store.close().unwrap();
    let before = contents(&place.data());
    let wrong = RootKey::from_material(material(&key_text()));
    let refused = byokv::Store::open(place.data(), wrong);
    assert!(matches!(refused, Err(Error::RootKeyWrong { .. })), "{refused:?}");
    assert!(contents(&place.data()) == before);
    let store = place.open();
    let next = key_text();
    store.change_root_key(RootKey::from_material(material(&next))).unwrap();
    store.close().unwrap();
    assert!(matches!(place.try_open(), Err(Error::RootKeyWrong { .. })));
    let store = byokv::Store::open(place.data(), RootKey::from_material(material(&next))).unwrap();
    check_filled(&store.org("acme").unwrap(), 5);
}

/// 12: suspended is told apart, and given back whole; 13: the other org does not notice.
#[test]
fn suspended_keys_withhold_one_org() {
    let place = Place::new();
    let store = place.open();
    let acme = filled(&store, "acme", 20);
    let umbra = filled(&store, "umbra", 20);
    let key = key_text();
    store.keys().provision("acme", material(&key)).unwrap().ended();
    store.keys().suspend("acme").unwrap();
    assert!(matches!(acme.get("n00001"), Err(Error::KeySuspended { .. })));
    assert!(matches!(acme.put("x", "y"), Err(Error::KeySuspended { .. })));
    for refused in [
        acme.delete("n00001"),
        acme.batch().delete("n00001").commit(),
        acme.compare_and_swap("x", None, None).map(drop),
    ] {
        assert!(matches!(refused, Err(Error::KeySuspended { .. })), "{refused:?}");
    }
    check_filled(&umbra, 20);
    let wrong = store.keys().resume("acme", material(&key_text()));
    assert!(matches!(wrong, Err(Error::WrongKey { .. })));
    store.keys().resume("acme", material(&key)).unwrap();
    check_filled(&acme, 20);
}

/// 12: a record under a suspended key stays as it is, also where another key seals.
#[test]
fn what_is_withheld_is_neither_replaced_nor_deleted() {
    let place = Place::new();
    let store = place.open();
    let acme = filled(&store, "acme", 20);
    let key = key_text();
    store.keys().provision("acme", material(&key)).unwrap().ended();
    let slow = byokv::Throttle::unlimited().with_records_per_second(1).unwrap();
    store.keys().set_throttle(slow).unwrap();
    let back = store.keys().return_to_platform_key("acme").unwrap();
    back.pause().unwrap();
    acme.put("x", "y").unwrap();
    assert_eq!(store.keys().suspend("acme").unwrap().len(), 1);
    for refused in [
        acme.put("n00019", "z"),
        acme.delete("n00019"),
        acme.batch().put("x", "z").delete("n00019").commit(),
        acme.compare_and_swap("n00019", None, Some(b"z")).map(drop),
    ] {
        assert!(matches!(refused, Err(Error::KeySuspended { .. })), "{refused:?}");
    }
    assert_eq!(acme.get("x").unwrap().as_deref(), Some(&b"y"[..]));
    acme.batch().delete("x").delete("none").commit().unwrap();
    store.keys().resume("acme", material(&key)).unwrap();
    store.keys().set_throttle(byokv::Throttle::unlimited()).unwrap();
    back.resume().unwrap();
    back.ended();
    check_filled(&acme, 20);
}

/// 10: killed between a change of the keyring and its sync, opened, and left alone.
#[test]
fn the_keyring_of_before_a_kill_is_noticed() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 20));
    store.keys().provision("acme", material(&key_text())).unwrap().ended();
    store.close().unwrap();
    let before = place.dir.path().join("before");
    copy_dir(&place.data(), &before);
    let store = place.open();
    store.keys().suspend("acme").unwrap();
    store.close().unwrap();
    let keyring = std::fs::read(place.data().join("keyring")).unwrap();
    copy_dir(&before, &place.data());
    std::fs::write(place.data().join("keyring"), keyring).unwrap();
    place.open().close().unwrap();
    std::fs::copy(before.join("keyring"), place.data().join("keyring")).unwrap();
    let error = place.try_open().unwrap_err();
    assert!(error.is_rollback(), "{error}");
}

/// Newest wins; each handle gives the certificate of what it replaced.
#[test]
fn a_second_rotation_overtakes_the_first() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 3000);
    let first = store.keys().provision("acme", material(&key_text())).unwrap();
    let second = store.keys().provision("acme", material(&key_text())).unwrap();
    let version = |rotation: &byokv::Rotation| rotation.ended().version.get();
    assert_eq!((version(&first), version(&second)), (1, 2));
    let census = store.keys().census("acme").unwrap();
    assert_eq!(census.by_version.keys().map(|v| v.get()).collect::<Vec<_>>(), [3]);
    check_filled(&org, 3000);
    for certificate in store.keys().certificates() {
        let check = store.keys().verify_certificate(&certificate.unwrap()).unwrap();
        assert!(check.is_true(), "{check}");
    }
}

#[test]
fn a_change_of_suite_is_a_rotation() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 300);
    let key = key_text();
    store.keys().provision("acme", material(&key)).unwrap().ended();
    let certificate = store.keys().change_suite("acme", Suite::XChaCha20Poly1305).unwrap().ended();
    assert_eq!(certificate.records_rewritten, 300);
    let census = store.keys().census("acme").unwrap();
    assert_eq!(census.by_suite.keys().copied().collect::<Vec<_>>(), [Suite::XChaCha20Poly1305]);
    check_filled(&org, 300);
}

/// 9: a rotation that was cut off by closing goes on by itself at the next open.
#[test]
fn an_unfinished_rotation_goes_on_at_the_next_open() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 2000));
    let slow = byokv::Throttle::unlimited().with_records_per_second(100).unwrap();
    store.keys().set_throttle(slow).unwrap();
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    assert!(rotation.wait_timeout(Duration::from_millis(300)).unwrap().is_none());
    store.close().unwrap();
    assert!(matches!(rotation.wait(), Err(Error::Closed)));
    drop(rotation);
    let store = place.open();
    store.keys().set_throttle(byokv::Throttle::unlimited()).unwrap();
    if let Some(rotation) = store.keys().rotation("acme").unwrap() {
        assert_eq!(rotation.replaces().map(KeyVersion::get), Some(1));
        rotation.wait_timeout(SOON).unwrap().unwrap();
    }
    assert_eq!(states(&store, "acme"), [KeyState::Retired, KeyState::Active]);
    check_filled(&store.org("acme").unwrap(), 2000);
}
