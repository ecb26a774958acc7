//! Bytes on disk that were changed: the outcome is right values or a clear error, never a wrong
//! value, a panic or silence.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::fs;
use std::process::Command;

use byokv::{Certificate, Error, KeyState, Options, Phase, RootKey, Store};
use common::{Ended, Place, check_filled, copy_dir, escape, filled, key_text, material, tamper};

/// A header that claims the active version does not make the record current: the rewrite opens
/// every record, and this one blocks the retirement that it would have been left behind by.
#[test]
fn a_header_flipped_to_the_active_version_blocks_retirement() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 50);
    let id = org.id();
    drop(org);
    store.close().unwrap();
    tamper(&place, "records", |records| {
        let key = escape(&[&id.as_bytes()[..], b"n00007"].concat());
        let mut envelope = records.get(&key).unwrap().unwrap().to_vec();
        envelope[21] = 2;
        records.insert(key, envelope).unwrap();
    });
    let store = place.open();
    let rotation = store.keys().provision("acme", material(&key_text())).unwrap();
    assert!(matches!(rotation.wait(), Err(Error::RotationBlocked { unreadable: 1, .. })));
    assert_eq!(store.keys().status("acme").unwrap().versions[0].state, KeyState::DecryptOnly);
}

/// Headers of other kinds: each its own words, all block, all can be mended by writing again.
#[test]
fn each_broken_header_is_named_and_blocks() {
    type Break = fn(&mut Vec<u8>);
    let cases: [(&str, Break); 5] = [
        ("unknown format 9", |e| e[0] = 9),
        ("unknown suite 0", |e| e[1] = 0),
        ("another org", |e| e[5] ^= 0x10),
        ("never had", |e| e[18] = 1),
        ("fewer than an empty envelope", |e| e.truncate(10)),
    ];
    let place = Place::new();
    let store = place.open();
    let id = filled(&store, "acme", 20).id();
    store.close().unwrap();
    tamper(&place, "records", |records| {
        for (i, (_, change)) in cases.iter().enumerate() {
            let key = escape(&[&id.as_bytes()[..], format!("n{i:05}").as_bytes()].concat());
            let mut envelope = records.get(&key).unwrap().unwrap().to_vec();
            change(&mut envelope);
            records.insert(key, envelope).unwrap();
        }
    });
    let store = place.open();
    let org = store.org("acme").unwrap();
    for (i, (said, _)) in cases.iter().enumerate() {
        let error = org.get(format!("n{i:05}")).unwrap_err();
        assert!(
            matches!(&error, Error::RecordDamaged { why, .. } if why.contains(said)),
            "{error}"
        );
    }
    let wrong = org.scan("").filter(Result::is_err).count();
    assert_eq!((wrong, org.scan("").count()), (5, 20), "a scan goes on behind each");
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    assert!(matches!(rotation.wait(), Err(Error::RotationBlocked { unreadable: 5, .. })));
    for i in 0..5 {
        org.put(format!("n{i:05}"), format!("v{i}")).unwrap();
    }
    // All records open now, but five were not what had been written: that is to be accepted.
    rotation.resume().unwrap();
    assert!(rotation.wait().unwrap_err().is_rollback());
    drop((org, rotation));
    store.close().unwrap();
    let accept = Options::new().danger_accept_rollback(true);
    let store = accept.open(place.data(), place.root_key()).unwrap();
    let rotation = store.keys().rotations().unwrap().pop().unwrap();
    rotation.ended();
    assert_eq!(rotation.progress().phase, Phase::Done);
    check_filled(&store.org("acme").unwrap(), 20);
}

#[test]
fn a_certificate_is_believed_only_as_it_was_made() {
    let place = Place::new();
    let store = place.open();
    filled(&store, "acme", 5);
    let good = store.keys().rotate_platform_key("acme").unwrap().ended();
    let keys = store.keys();
    assert!(keys.verify_certificate(&good).unwrap().is_true());
    let again = Certificate::from_json(&good.to_json()).unwrap();
    assert!(keys.verify_certificate(&again).unwrap().is_true());
    let json: serde_json::Value = serde_json::from_str(&good.to_json()).unwrap();
    let fields = json.as_object().unwrap();
    assert!(fields.len() >= 13, "{fields:?}");
    for (field, value) in fields {
        let mut forged = json.clone();
        forged[field] = match value {
            serde_json::Value::Number(n) => (n.as_u64().unwrap() + 1).into(),
            serde_json::Value::String(s) if field == "kind" => {
                assert_eq!(s, "key_retired");
                "key_erased".into()
            }
            serde_json::Value::String(s) if field == "origin" => {
                assert_eq!(s, "platform");
                "customer".into()
            }
            serde_json::Value::String(s) => {
                let last = if s.starts_with('0') { "1" } else { "0" };
                format!("{last}{}", &s[1..]).into()
            }
            serde_json::Value::Array(limits) if field == "scope" => {
                assert!(limits.is_empty());
                serde_json::json!([{"kind": "shortened_log"}])
            }
            other => panic!("{field}: {other}"),
        };
        let forged = Certificate::from_json(&forged.to_string());
        match forged {
            Ok(forged) => {
                let check = keys.verify_certificate(&forged).unwrap();
                assert!(!check.is_authentic() && !check.is_true(), "{field}: {check}");
            }
            Err(refused) => assert!(matches!(refused, Error::CertificateInvalid { .. })),
        }
    }
    let other = Place::new();
    let check = other.open().keys().verify_certificate(&good).unwrap();
    assert!(!check.is_authentic() && !check.is_true(), "of another store: {check}");
}

/// Entries removed, swapped, replaced by older bytes, cut at the end: each is found.
#[test]
fn the_audit_log_shows_where_it_was_touched() {
    let key = |number: u64| escape(&[b"audit/", &number.to_be_bytes()[..]].concat());
    type Touch = fn(&sled::Tree, &dyn Fn(u64) -> Vec<u8>);
    let cases: [(u64, Touch); 4] = [
        (2, |tree, key| drop(tree.remove(key(2)).unwrap())),
        (4, |tree, key| drop(tree.remove(key(4)).unwrap())),
        (1, |tree, key| {
            let one = tree.get(key(1)).unwrap().unwrap();
            let two = tree.insert(key(2), one).unwrap().unwrap();
            tree.insert(key(1), two).unwrap();
        }),
        (3, |tree, key| {
            let mut entry = tree.get(key(3)).unwrap().unwrap().to_vec();
            let tag = entry.len() - 17;
            entry[tag] ^= 1;
            tree.insert(key(3), entry).unwrap();
        }),
    ];
    for (broken_at, touch) in cases {
        let place = Place::new();
        let store = place.open();
        filled(&store, "acme", 1);
        store.keys().rotate_platform_key("acme").unwrap().ended();
        store.close().unwrap();
        // The last change's entries come again from the keyring until a later change knows
        // them to be durable; only then can they be missing.
        let store = place.open();
        filled(&store, "umbra", 1);
        filled(&store, "third", 1);
        assert_eq!(store.keys().audit().map(Result::unwrap).count(), 6);
        store.close().unwrap();
        tamper(&place, "system", |tree| touch(tree, &key));
        let store = place.open();
        match store.keys().audit().find_map(Result::err) {
            Some(Error::AuditBroken { entry, .. }) => assert_eq!(entry, broken_at),
            other => panic!("{other:?}"),
        }
    }
}

/// Every bit of the keyring's file counts, and what is refused is left as it is.
#[test]
fn a_damaged_keyring_is_refused_and_kept() {
    let place = Place::new();
    let store = place.open();
    filled(&store, "acme", 1);
    store.close().unwrap();
    let path = place.data().join("keyring");
    let good = fs::read(&path).unwrap();
    let mut trials: Vec<Vec<u8>> =
        (0..good.len()).step_by(37).map(|at| good[..at].to_vec()).collect();
    for at in (0..good.len()).step_by(11) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        trials.push(bytes);
    }
    trials.push([&good[..], b"x"].concat());
    for bytes in trials {
        fs::write(&path, &bytes).unwrap();
        match place.try_open() {
            Err(error @ Error::FileDamaged { .. }) => {
                let text = error.to_string();
                assert!(text.contains("keyring") && text.contains("newest copy"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        assert!(fs::read(&path).unwrap() == bytes, "left as it was");
    }
    fs::remove_file(&path).unwrap();
    match place.try_open() {
        Err(error @ Error::FileDamaged { .. }) => assert!(error.to_string().contains("missing")),
        other => panic!("{other:?}"),
    }
    fs::write(&path, good).unwrap();
    check_filled(&place.open().org("acme").unwrap(), 1);
}

/// Not a test of its own: writes durably and dies, when run by the test below.
#[test]
fn child() {
    let Some(data) = std::env::var_os("BYOKV_CHILD") else { return };
    let root = material(&std::env::var("BYOKV_CHILD_ROOT").unwrap());
    let store = Store::open(data, RootKey::from_material(root)).unwrap();
    let org = filled(&store, "acme", 400);
    // Over many segments of the log, so that damage meets all of recovery's ways.
    for i in 0..400 {
        org.put(format!("m{i:05}"), [7; 8192]).unwrap();
    }
    org.durable().put("last", "1").unwrap();
    std::process::abort();
}

/// sled comes up with older values, or panics, when its log is damaged after a kill. The mark
/// turns the first into an error, the border the second.
#[test]
fn a_damaged_log_after_a_kill_is_never_a_wrong_value() {
    let trials: u64 =
        std::env::var("BYOKV_TORTURE").map_or(40, |n| 40 * n.parse::<u64>().unwrap_or(1));
    let place = Place::new();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child"])
        .env("BYOKV_CHILD", place.data())
        .env("BYOKV_CHILD_ROOT", &place.root)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success(), "the child was to die");
    let killed = place.dir.path().join("killed");
    copy_dir(&place.data(), &killed);
    check_filled_and_last(&place.open());
    let len = fs::metadata(killed.join("db/db")).unwrap().len();
    let (mut older, mut panicked) = (0, 0);
    for trial in 0..trials {
        copy_dir(&killed, &place.data());
        let log = place.data().join("db/db");
        let mut bytes = fs::read(&log).unwrap();
        // Spread over the whole log by the golden ratio.
        let at = usize::try_from(trial.wrapping_mul(0x9e37_79b9_7f4a_7c15) % len).unwrap();
        if trial % 2 == 0 {
            bytes[at] ^= 1 << (trial % 8);
        } else {
            bytes[at..].iter_mut().take(4096).for_each(|byte| *byte = 0);
        }
        fs::write(&log, bytes).unwrap();
        match place.try_open() {
            Ok(store) => {
                if let Ok(org) = store.org("acme") {
                    for i in 0..400 {
                        match org.get(format!("n{i:05}")) {
                            Ok(value) => {
                                assert_eq!(value.as_deref(), Some(format!("v{i}").as_bytes()));
                            }
                            Err(error) => assert!(error.is_damage(), "{error}"),
                        }
                    }
                }
            }
            Err(error) => {
                assert!(error.is_damage() || error.is_rollback(), "{error}");
                older += u32::from(error.is_rollback());
                panicked += u32::from(error.to_string().contains("panicked"));
            }
        }
    }
    assert!(older > 0 && panicked > 0, "{older} older, {panicked} panicked: no real trials");
}

fn check_filled_and_last(store: &Store) {
    let org = store.org("acme").unwrap();
    assert!(org.get("last").unwrap().is_some(), "acknowledged as durable");
    org.delete("last").unwrap();
    (0..400).for_each(|i| org.delete(format!("m{i:05}")).unwrap());
    check_filled(&org, 400);
}
