//! Invariant 9: a process killed at each named point of a rotation reopens, goes on by itself,
//! and ends in the same state. The test binary runs itself as the process that is killed.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::process::Command;
use std::time::Duration;

use byokv::{Error, ImportError, KeyState, Options, OrgPolicy, RootKey, SealedKey, failpoint};
use common::{Ended, Place, check_filled, filled, key_text, material};

const RECORDS: usize = 300;

/// Whether the child was killed.
fn child_at(point: &str, place: &Place, key: &str) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("BYOKV_FAILPOINT", point)
        .env("BYOKV_CHILD", place.data())
        .env("BYOKV_CHILD_ROOT", &place.root)
        .env("BYOKV_CHILD_KEY", key)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    !status.success()
}

/// Not a test of its own: does nothing unless it is run by one of those below.
#[test]
fn child() {
    let Some(data) = std::env::var_os("BYOKV_CHILD") else { return };
    let text = |name| std::env::var(name).unwrap();
    let root = RootKey::from_material(material(&text("BYOKV_CHILD_ROOT")));
    let store = Options::new().open(data, root).unwrap();
    let org = store.org("acme").unwrap();
    org.put("n00000", "v0").unwrap();
    org.get("n00000").unwrap();
    let keys = store.keys();
    let key = text("BYOKV_CHILD_KEY");
    let rotation = match key.parse::<SealedKey>() {
        Ok(sealed) => keys.provision_sealed("acme", &sealed, None),
        Err(_) => keys.provision("acme", material(&key)),
    };
    rotation.unwrap().ended();
}

#[test]
fn a_rotation_killed_at_each_point_ends_in_the_same_state() {
    for point in failpoint::ALL {
        // The first time; in the middle of the records; when the old key is retired, which is
        // the second change of the keyring.
        let mut points = vec![(*point).to_owned()];
        if point.starts_with("rewrite.s") {
            points.push(format!("{point}:150"));
        }
        if point.starts_with("keyring.") || *point == "outbox.written" {
            points.push(format!("{point}:2"));
        }
        for point in points {
            let place = Place::new();
            let store = place.open();
            drop(filled(&store, "acme", RECORDS));
            drop(store.create_org("umbra", OrgPolicy::byok()).unwrap());
            store.close().unwrap();
            let key = key_text();
            assert!(child_at(&point, &place, &key), "{point} was not reached");

            let store = place.open();
            let org = store.org("acme").unwrap();
            check_filled(&org, RECORDS);
            if store.keys().status("acme").unwrap().versions.len() == 1 {
                store.keys().provision("acme", material(&key)).unwrap();
            }
            if let Some(rotation) = store.keys().rotation("acme").unwrap() {
                let ended = rotation.wait_timeout(Duration::from_secs(20)).unwrap();
                assert!(ended.is_some(), "{point}: {}", rotation.progress());
            }
            let versions = store.keys().status("acme").unwrap().versions;
            let states: Vec<_> = versions.iter().map(|v| v.state).collect();
            assert_eq!(states, [KeyState::Retired, KeyState::Active], "{point}");
            let census = store.keys().census("acme").unwrap();
            assert_eq!(census.by_version.keys().map(|v| v.get()).collect::<Vec<_>>(), [2]);
            check_filled(&org, RECORDS);
            let certificates: Vec<_> =
                store.keys().certificates().collect::<Result<_, _>>().unwrap();
            assert_eq!(certificates.len(), 1, "{point}");
            assert_eq!(certificates[0].version.get(), 1);
            store.keys().audit().for_each(|entry| drop(entry.unwrap()));
            drop(org);
            store.close().unwrap();
            let leftovers = std::fs::read_dir(place.data()).unwrap().count();
            assert_eq!(leftovers, 4, "{point}: db, keyring, mark, LOCK");
        }
    }
}

/// The token's end and the key's beginning are one: there is no state in between.
#[test]
fn a_sealed_import_killed_at_each_point_happened_or_did_not() {
    const BEFORE: &[&str] = &["keyring.written"];
    const AFTER: &[&str] =
        &["keyring.exchanged", "keyring.dir_synced", "keyring.saved", "outbox.written"];
    for point in [BEFORE, AFTER].concat() {
        let place = Place::new();
        let store = place.open();
        drop(filled(&store, "acme", RECORDS));
        let token = store.keys().import_token("acme", Duration::from_secs(86_400)).unwrap();
        let key = material(&key_text());
        let sealed = token.seal(&key).unwrap();
        store.close().unwrap();
        assert!(child_at(point, &place, &sealed.to_string()), "{point} was not reached");

        let store = place.open();
        let keys = store.keys();
        let happened = keys.status("acme").unwrap().versions.len() == 2;
        assert_eq!(happened, AFTER.contains(&point), "{point}");
        match keys.provision_sealed("acme", &sealed, None) {
            Ok(_) => assert!(!happened, "{point}: used twice"),
            Err(Error::Import(ImportError::Used { .. })) => assert!(happened, "{point}: lost"),
            Err(error) => panic!("{point}: {error}"),
        }
        if let Some(rotation) = keys.rotation("acme").unwrap() {
            rotation.ended();
        }
        let versions = keys.status("acme").unwrap().versions;
        assert_eq!((versions.len(), versions[1].fingerprint), (2, key.fingerprint()), "{point}");
        check_filled(&store.org("acme").unwrap(), RECORDS);
        keys.audit().for_each(|entry| drop(entry.unwrap()));
    }
}
