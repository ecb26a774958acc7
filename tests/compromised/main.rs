//! A root key has leaked, with a copy of the store: what the copy can forge before, and can no
//! longer once the store has changed to another root key as compromised.
//!
//! The forger is a second store, opened on the copy with the root key of then. It holds the same
//! secret as the original, so whatever it makes is as genuine as the original's was.

#![allow(clippy::unwrap_used, clippy::panic)]

mod beside;
#[path = "../common/mod.rs"]
mod common;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use byokv::{
    AuditEvent, Certificate, CertificateKind, CertificateMismatch as Mismatch, Error, ImportError,
    KeyState, Options, Origin, RootKey, Store, Throttle,
};
use common::{
    Ended, Place, check_filled, copy_dir, escape, filled, filled_blinded, here, key_text, material,
    states, tamper_in,
};

/// A store, a copy of it, and the root keys of before and after.
struct Leak {
    place: Place,
    copy: Place,
    after: String,
}

impl Leak {
    /// Copies the store of `place`, which nobody has open.
    fn of(place: Place) -> Self {
        let copy = Place { root: place.root.clone(), ..Place::new() };
        copy_dir(&place.data(), &copy.data());
        Self { place, copy, after: key_text() }
    }

    fn new() -> Self {
        let place = Place::new();
        let store = place.open();
        filled(&store, "acme", 20);
        store.close().unwrap();
        Self::of(place)
    }

    /// The original, opened with the root key of before, and changed.
    fn changed(&mut self) -> Store {
        let store = self.place.open();
        store.change_compromised_root_key(RootKey::from_material(material(&self.after))).unwrap();
        self.place.root.clone_from(&self.after);
        store
    }

    fn database(&self) -> PathBuf {
        self.place.data().join("db.1")
    }
}

fn new_root() -> RootKey {
    RootKey::from_material(material(&key_text()))
}

/// Rotates to this key and away from it again, and has its residue erased: a certificate of erasure
/// for the key. Both stores name the org, its id and the version alike.
fn erase_key(store: &Store, key: &str) -> Certificate {
    let keys = store.keys();
    keys.provision("acme", material(key)).unwrap().ended();
    keys.return_to_platform_key("acme").unwrap().ended();
    store.erase_residue().unwrap();
    let erased = keys.certificates().map(Result::unwrap);
    let of_key = |c: &Certificate| {
        c.kind == CertificateKind::KeyErased && c.fingerprint == material(key).fingerprint()
    };
    erased.filter(of_key).last().unwrap()
}

fn is_authentic(store: &Store, certificate: &Certificate) -> bool {
    store.keys().verify_certificate(certificate).unwrap().is_authentic()
}

fn broken_at(store: &Store) -> (u64, &'static str) {
    match store.keys().audit().find_map(Result::err) {
        Some(Error::AuditBroken { entry, why }) => (entry, why),
        other => panic!("{other:?}"),
    }
}

/// P4: the key that the customer brings after the leak is in use, and the copy has made a certificate
/// that it was erased.
#[test]
fn a_certificate_of_erasure_for_a_new_key_cannot_be_forged() {
    let mut leak = Leak::new();
    let store = leak.changed();
    let new_key = key_text();
    store.keys().provision("acme", material(&new_key)).unwrap().ended();
    let forged = erase_key(&leak.copy.open(), &new_key);
    assert_eq!((forged.store, forged.org_id), (store.id(), store.org("acme").unwrap().id()));
    let is_refused = |store: &Store| {
        let check = store.keys().verify_certificate(&forged).unwrap();
        assert!(!check.is_authentic() && !check.is_true() && !check.is_sound(), "{check}");
    };
    is_refused(&store);
    // What says that it was made under the new secret was not.
    let mut json: serde_json::Value = serde_json::from_str(&forged.to_json()).unwrap();
    json["secret_generation"] = 2.into();
    let renamed = Certificate::from_json(&json.to_string()).unwrap();
    assert!(!is_authentic(&store, &renamed));
    store.close().unwrap();
    is_refused(&leak.place.open());
}

/// Put into the database under its own name, sealed as the copy sealed it.
#[test]
fn a_forged_certificate_in_the_database_does_not_count() {
    let mut leak = Leak::new();
    let copy = leak.copy.open();
    copy.keys().rotate_platform_key("acme").unwrap().ended();
    copy.close().unwrap();
    let mut forged = Vec::new();
    tamper_in(&leak.copy.data().join("db"), "system", |system| {
        forged.extend(system.scan_prefix(b"certificate/").map(Result::unwrap));
    });
    assert_eq!(forged.len(), 1);
    let store = leak.changed();
    assert_eq!(store.keys().certificates().count(), 0);
    store.close().unwrap();
    tamper_in(&leak.database(), "system", |system| {
        for (key, value) in &forged {
            system.insert(key, value).unwrap();
        }
    });
    let store = leak.place.open();
    let found: Vec<_> = store.keys().certificates().collect();
    assert!(matches!(found[..], [Err(Error::CertificateInvalid { .. })]), "{found:?}");
}

/// Before the change, where it is sealed anew with everything else: the log does not have it.
#[test]
fn a_certificate_that_was_planted_before_the_change_does_not_count() {
    let mut leak = Leak::new();
    let copy = leak.copy.open();
    let planted = copy.keys().rotate_platform_key("acme").unwrap().ended();
    copy.close().unwrap();
    let mut forged = Vec::new();
    tamper_in(&leak.copy.data().join("db"), "system", |system| {
        forged.extend(system.scan_prefix(b"certificate/").map(Result::unwrap));
    });
    // As a store of that secret writes it, so that the digest counts it.
    let store = leak.place.open();
    let genuine = store.keys().rotate_platform_key("acme").unwrap().ended();
    store.close().unwrap();
    // Later changes of the keyring, so that it does not write the certificate again.
    let store = leak.place.open();
    filled(&store, "umbra", 1);
    filled(&store, "third", 1);
    store.close().unwrap();
    tamper_in(&leak.place.data().join("db"), "system", |system| {
        for (key, value) in &forged {
            let held = system.insert(key, value).unwrap();
            assert!(held.is_some_and(|held| held != value));
        }
    });
    let store = leak.place.open();
    assert!(store.verify().unwrap_err().is_rollback());
    assert_eq!(store.keys().certificates().next().unwrap().ok(), Some(planted.clone()));
    drop(store);
    let accept = Options::new().danger_accept_rollback(true);
    drop(accept.open(leak.place.data(), leak.place.root_key()).unwrap());
    let store = leak.changed();
    // Accepting the loss has also erased the key, for which there is a certificate.
    let found: Vec<_> = store.keys().certificates().collect();
    assert!(matches!(found[..], [Err(Error::CertificateInvalid { .. }), Ok(_)]), "{found:?}");
    assert!(!is_authentic(&store, &planted));
    assert!(is_authentic(&store, &genuine));
}

/// An entry of the copy's in place of one of the original's, before and after the change.
#[test]
fn an_audit_entry_cannot_be_forged() {
    let mut leak = Leak::new();
    let copy = leak.copy.open();
    for _ in 0..3 {
        copy.keys().rotate_platform_key("acme").unwrap().ended();
    }
    copy.close().unwrap();
    let key = |number: u64| escape(&[b"audit/", &number.to_be_bytes()[..]].concat());
    let mut forged = Vec::new();
    tamper_in(&leak.copy.data().join("db"), "system", |system| {
        forged.extend((1..=6).map(|number| system.get(key(number)).unwrap().unwrap()));
    });
    let store = leak.changed();
    store.keys().rotate_platform_key("acme").unwrap().ended();
    assert!(store.keys().audit().map(Result::unwrap).count() >= 6);
    store.close().unwrap();
    let store = leak.place.open();
    filled(&store, "umbra", 1);
    filled(&store, "third", 1);
    store.close().unwrap();
    for number in 1..=6u64 {
        let touched = Place { root: leak.place.root.clone(), ..Place::new() };
        copy_dir(&leak.place.data(), &touched.data());
        tamper_in(&touched.data().join("db.1"), "system", |system| {
            system.insert(key(number), &forged[usize::try_from(number - 1).unwrap()]).unwrap();
        });
        let (at, why) = broken_at(&touched.open());
        assert_eq!(at, number);
        // Not even the entries that both stores have alike open as the copy has sealed them.
        assert!(why.contains("not written by this store"), "{number}: {why}");
    }
}

#[test]
fn a_mark_cannot_be_forged() {
    let mut leak = Leak::new();
    leak.changed().close().unwrap();
    // Each place that the mark may have been at, as the copy writes it.
    let copy = leak.copy.open();
    for _ in 0..6 {
        copy.sync().unwrap();
        let mark = std::fs::read(leak.copy.data().join("mark")).unwrap();
        let touched = Place { root: leak.place.root.clone(), ..Place::new() };
        copy_dir(&leak.place.data(), &touched.data());
        std::fs::write(touched.data().join("mark"), mark).unwrap();
        let refused = touched.try_open();
        assert!(matches!(refused, Err(Error::FileDamaged { .. })), "{refused:?}");
    }
}

/// The copy's whole database, sealed by its digest, in place of the original's.
#[test]
fn a_database_of_the_copy_does_not_take_its_place() {
    let mut leak = Leak::new();
    leak.changed().close().unwrap();
    let copy = leak.copy.open();
    for round in 0..6 {
        copy.org("acme").unwrap().durable().put("forged", format!("{round}")).unwrap();
    }
    copy.close().unwrap();
    copy_dir(&leak.copy.data().join("db"), &leak.database());
    let refused = leak.place.try_open();
    assert!(refused.as_ref().is_err_and(Error::is_rollback), "{refused:?}");
}

/// The seal alone, of the digest and of the position before it.
#[test]
fn a_seal_of_the_digest_cannot_be_forged() {
    let mut leak = Leak::new();
    leak.changed().close().unwrap();
    let copy = leak.copy.open();
    (0..6).for_each(|_| copy.sync().unwrap());
    copy.close().unwrap();
    let mut forged = Vec::new();
    tamper_in(&leak.copy.data().join("db"), "system", |system| {
        forged.extend(system.get("position").unwrap().unwrap().to_vec());
    });
    let mut own = Vec::new();
    tamper_in(&leak.database(), "system", |system| {
        own.extend(system.get("position").unwrap().unwrap().to_vec());
    });
    assert_eq!(own.len(), forged.len());
    const POSITION: usize = 72;
    for (position, seal) in [(&forged, &forged), (&own, &forged)] {
        let touched = Place { root: leak.place.root.clone(), ..Place::new() };
        copy_dir(&leak.place.data(), &touched.data());
        let position = [&position[..POSITION], &seal[POSITION..]].concat();
        tamper_in(&touched.data().join("db.1"), "system", |system| {
            system.insert("position", position).unwrap();
        });
        let refused = touched.try_open();
        assert!(refused.as_ref().is_err_and(Error::is_rollback), "{refused:?}");
    }
}

/// Nothing that was made before is lost: log, certificates, settings, counts.
#[test]
fn what_was_made_before_stays_checkable() {
    let place = Place::new();
    let store = place.open();
    filled(&store, "acme", 20);
    filled_blinded(&store, "umbra", 20);
    let keys = store.keys();
    let retired = keys.rotate_platform_key("acme").unwrap().ended();
    store.erase_residue().unwrap();
    keys.erase_org("umbra").unwrap().wait_timeout(Duration::from_secs(60)).unwrap().unwrap();
    let throttle = Throttle::unlimited().with_records_per_second(12_345).unwrap();
    keys.set_throttle(throttle.clone()).unwrap();
    let audit: Vec<_> = keys.audit().map(Result::unwrap).collect();
    let certificates: Vec<_> = keys.certificates().map(Result::unwrap).collect();
    assert_eq!(certificates.len(), 3);
    assert!(certificates.iter().all(|c| c.secret_generation == 1));
    let sealed = |store: &Store| {
        store.metrics().unwrap().orgs["acme"].versions.values().next_back().unwrap().sealed_in_all
    };
    let sealed_before = sealed(&store);
    drop((store, keys));
    let mut leak = Leak::of(place);
    let number = u64::try_from(audit.len()).unwrap();
    let check = |store: &Store| {
        let keys = store.keys();
        let after: Vec<_> = keys.audit().map(Result::unwrap).collect();
        assert_eq!(after[..audit.len()], audit);
        assert!(matches!(
            after[audit.len()].event,
            AuditEvent::RootKeyChanged { compromised: true, secret_before: 1, secret: 2 }
        ));
        assert_eq!(after[audit.len()].number, number + 1);
        let found: Vec<_> = keys.certificates().map(Result::unwrap).collect();
        assert!(certificates.iter().all(|certificate| found.contains(certificate)));
        for certificate in &certificates {
            let check = keys.verify_certificate(certificate).unwrap();
            assert!(check.is_authentic() && check.is_true(), "{check}");
        }
        assert_eq!(keys.lost_certificates().unwrap(), []);
        assert!(keys.throttle() == throttle);
        assert!(sealed(store) >= sealed_before);
        store.verify().unwrap();
        check_filled(&store.org("acme").unwrap(), 20);
    };
    let store = leak.changed();
    check(&store);
    drop(store);
    // Also after a second change, of which the first is a part of the past.
    check(&leak.place.open());
    leak.after = key_text();
    let store = leak.changed();
    let second = store.keys().rotate_platform_key("acme").unwrap().ended();
    assert_eq!(second.secret_generation, 3);
    check(&store);
    drop(store);
    let store = leak.place.open();
    check(&store);
    assert!(is_authentic(&store, &second));
    // An old certificate counts exactly as it was made.
    let mut json: serde_json::Value = serde_json::from_str(&retired.to_json()).unwrap();
    json["records_verified"] = 999.into();
    let altered = Certificate::from_json(&json.to_string()).unwrap();
    assert!(!is_authentic(&store, &altered));
    for generation in [0, 2, 3, 4] {
        json["records_verified"] = retired.records_verified.into();
        json["secret_generation"] = generation.into();
        let renamed = Certificate::from_json(&json.to_string()).unwrap();
        assert!(!is_authentic(&store, &renamed), "{generation}");
    }
}

/// Nothing of the store opens with the root key of before, and nothing of it is left in its files.
#[test]
fn only_the_new_root_key_opens_and_the_copy_is_another_store() {
    let mut leak = Leak::new();
    leak.changed().close().unwrap();
    let wrong = Store::open(leak.place.data(), leak.copy.root_key());
    assert!(matches!(wrong, Err(Error::RootKeyWrong { .. })), "{wrong:?}");
    let names: Vec<_> = std::fs::read_dir(leak.place.data()).unwrap().map(Result::unwrap).collect();
    let mut names: Vec<_> = names.iter().map(std::fs::DirEntry::file_name).collect();
    names.sort();
    assert_eq!(names, ["LOCK", "db.1", "keyring", "mark"]);
    // The copy's keyring in place of the new one.
    let mixed = Place { root: leak.copy.root.clone(), ..Place::new() };
    copy_dir(&leak.place.data(), &mixed.data());
    std::fs::copy(leak.copy.data().join("keyring"), mixed.data().join("keyring")).unwrap();
    let refused = mixed.try_open();
    assert!(refused.is_err(), "{refused:?}");
}

/// The same root key once more, one that an org has, and the one of before.
#[test]
fn a_root_key_that_was_used_is_refused_and_nothing_is_changed() {
    let leak = Leak::new();
    let customers = key_text();
    leak.place.open().keys().provision("acme", material(&customers)).unwrap().ended();
    let store = leak.place.open();
    let before = store.metrics().unwrap().keyring_generation;
    for used in [&leak.place.root, &customers] {
        let root = RootKey::from_material(material(used));
        let refused = store.change_compromised_root_key(root);
        assert!(matches!(refused, Err(Error::KeyReused { .. })), "{refused:?}");
    }
    assert_eq!(store.metrics().unwrap().keyring_generation, before);
    assert!(store.keys().compromised_keys().is_empty());
    assert!(!leak.database().exists());
    store.close().unwrap();
    leak.place.open().verify().unwrap();
}

/// A new digest is made of what is there: it would hide what is missing.
#[test]
fn a_database_that_is_not_whole_is_refused_and_nothing_is_changed() {
    let leak = Leak::new();
    let place = &leak.place;
    tamper_in(&place.data().join("db"), "records", |records| {
        let (name, _) = records.first().unwrap().unwrap();
        records.remove(name).unwrap();
    });
    let store = place.open();
    let refused = store.change_compromised_root_key(new_root());
    assert!(refused.as_ref().is_err_and(Error::is_rollback), "{refused:?}");
    assert!(store.verify().unwrap_err().is_rollback());
    assert!(!leak.database().exists());
    store.org("acme").unwrap().put("goes", "on").unwrap();
    store.close().unwrap();
    let store = place.open();
    assert!(store.keys().compromised_keys().is_empty());
    assert_eq!(store.org("acme").unwrap().get("goes").unwrap().as_deref(), Some(&b"on"[..]));
}

#[cfg(feature = "cli")]
mod tool {
    use super::common::shell::Shell;

    /// What the tool says is what is left to do, and `doctor` says it until it is done.
    #[test]
    fn the_tool_says_what_is_left_to_do() {
        let shell = Shell::new();
        shell.fine("org create acme --byok");
        shell.fine("org create umbra");
        shell.run("key provision acme --no-wait", super::key_text().as_bytes());
        let token = &shell.json("key import-token acme")[0];
        let (_, error) = shell
            .refused("root-key change --rotate-keys --generate --new-root-key-file two.key", b"");
        assert!(error.contains("--compromised"), "{error}");
        assert!(!shell.path("two.key").exists());
        let plain = shell.fine("root-key change --generate --new-root-key-file two.key");
        assert!(plain.contains("--compromised"), "{plain}");
        std::fs::rename(shell.path("two.key"), shell.path("root.key")).unwrap();
        let line = "root-key change --compromised --generate --new-root-key-file three.key";
        let output = shell.run(line, b"");
        let text = String::from_utf8(output.stdout).unwrap();
        let warning = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{warning}");
        assert!(text.contains("generation 2"), "{text}");
        assert!(text.contains(token["token_id"].as_str().unwrap_or_default()), "{text}");
        assert!(text.contains("`byokv key provision acme`"), "{text}");
        assert!(text.contains("`byokv key rotate umbra`"), "{text}");
        assert!(warning.contains("`byokv doctor`"), "{warning}");
        std::fs::rename(shell.path("three.key"), shell.path("root.key")).unwrap();
        let doctor = shell.fine("doctor");
        assert!(doctor.contains("org umbra is in a copy of the store that leaked"), "{doctor}");
        let line =
            "root-key change --compromised --rotate-keys --generate --new-root-key-file 4.key";
        let json = &shell.json(line)[0];
        assert_eq!(json["secret_generation"], 3);
        assert_eq!(json["rotating"], serde_json::json!(["umbra"]));
        std::fs::rename(shell.path("4.key"), shell.path("root.key")).unwrap();
        shell.fine("rotation wait");
        let doctor = shell.fine("doctor");
        assert!(!doctor.contains("umbra is in a copy"), "{doctor}");
        assert!(doctor.contains("acme is in a copy"), "{doctor}");
    }
}
