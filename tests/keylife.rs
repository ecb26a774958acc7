//! The rest of a key's life: held before its retirement, retired by hand, erased with its org.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use byokv::{
    AuditEvent, CertificateKind, Error, KeyState, Options, OrgPolicy, Phase, RetirePolicy, RootKey,
    Store, Throttle, failpoint,
};
use common::{Ended, Held, Place, check_filled, escape, filled, key_text, material, tamper};

const SOON: Duration = Duration::from_secs(30);

fn policy(retire: RetirePolicy) -> OrgPolicy {
    OrgPolicy::byok().with_retire(retire)
}

fn states(store: &Store, org: &str) -> Vec<KeyState> {
    store.keys().status(org).unwrap().versions.iter().map(|v| v.state).collect()
}

fn events(store: &Store) -> Vec<AuditEvent> {
    store.keys().audit().map(|entry| entry.unwrap().event).collect()
}

#[test]
fn a_key_is_held_until_it_is_released_by_hand() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 100);
    store.keys().set_policy("acme", policy(RetirePolicy::Manual)).unwrap();
    assert!(matches!(store.keys().retire("acme"), Err(Error::KeyConflict { .. })));
    let rotation = store.keys().provision("acme", material(&key_text())).unwrap();
    match rotation.wait_timeout(SOON) {
        Err(Error::RetirementAwaited { version, .. }) => assert_eq!(version.get(), 1),
        other => panic!("{other:?}"),
    }
    assert_eq!(rotation.progress().phase, Phase::Held);
    assert_eq!(states(&store, "acme"), [KeyState::DecryptOnly, KeyState::Active]);
    drop((rotation, org));
    store.close().unwrap();

    // Nothing but the operator's word ends it, a restart neither.
    let store = place.open();
    let rotation = store.keys().rotation("acme").unwrap().unwrap();
    assert!(matches!(rotation.wait_timeout(SOON), Err(Error::RetirementAwaited { .. })));
    let certificate = store.keys().retire("acme").unwrap().ended();
    assert_eq!((certificate.version.get(), certificate.records_rewritten), (1, 100));
    assert_eq!(states(&store, "acme"), [KeyState::Retired, KeyState::Active]);
    check_filled(&store.org("acme").unwrap(), 100);
    let events = events(&store);
    assert!(events.contains(&AuditEvent::KeyHeld) && events.contains(&AuditEvent::KeyReleased));
    let mut entries = store.keys().audit().map(Result::unwrap);
    let held = entries.find(|entry| entry.event == AuditEvent::KeyHeld).unwrap();
    let of_key = (Some(certificate.version), Some(certificate.fingerprint));
    assert_eq!((held.version, held.fingerprint), of_key);
}

/// Found by reading: who waited was sent to the operator, who had given his word meanwhile.
#[test]
fn a_word_that_comes_before_the_hold_is_reported_counts() {
    let place = Place::new();
    let store = place.open();
    for round in 0..20 {
        let name = format!("acme{round}");
        filled(&store, &name, 3);
        store.keys().set_policy(&name, policy(RetirePolicy::Manual)).unwrap();
        let (keys, org) = (store.keys(), name.clone());
        let (asking, asked) = (AtomicBool::new(false), Arc::new(AtomicBool::new(false)));
        let given = Arc::clone(&asked);
        let hook = failpoint::on("keyring.published", &name, move || {
            if !asking.swap(true, Ordering::SeqCst) {
                // Refused until the worker has noted the hold.
                given.fetch_or(keys.retire(&org).is_ok(), Ordering::SeqCst);
                asking.store(false, Ordering::SeqCst);
            }
        });
        let rotation = store.keys().provision(&name, material(&key_text())).unwrap();
        rotation.ended();
        assert!(asked.load(Ordering::SeqCst));
        drop(hook);
    }
}

fn held(store: &Store, org: &str) -> bool {
    store.keys().status(org).unwrap().versions[0].held_since_unix_ms.is_some()
}

/// Finding P11: `--retire immediate` destroyed a key that was held at once. Whatever weakens a policy
/// holds for keys that are replaced later.
#[test]
fn a_weakened_policy_destroys_no_key_that_was_replaced_before() {
    use RetirePolicy::{AfterHold, Immediate, Manual};

    let (short, hour, day) = (
        AfterHold(Duration::ZERO),
        AfterHold(Duration::from_secs(3600)),
        AfterHold(Duration::from_secs(24 * 3600)),
    );
    // The policy under which the key is replaced, those that follow, the strictest of them.
    for (number, (first, later, strictest)) in [
        (hour, vec![Immediate], hour),
        (Manual, vec![Immediate], Manual),
        (Manual, vec![hour, short], Manual),
        (day, vec![hour], day),
        // What was strengthened and weakened again stays strengthened.
        (hour, vec![Manual, hour, Immediate], Manual),
        (short, vec![day, short], day),
    ]
    .into_iter()
    .enumerate()
    {
        let place = Place::new();
        let store = place.open();
        filled(&store, "acme", 20);
        store.keys().set_policy("acme", policy(first)).unwrap();
        // Of the last two the hold has not begun when the policy changes.
        let late = Held::at("verify.counted", if number > 3 { "acme" } else { "nobody" });
        let rotation = store.keys().provision("acme", material(&key_text())).unwrap();
        if number > 3 {
            late.wait();
        } else {
            while !held(&store, "acme") {
                let _ = rotation.wait_timeout(Duration::from_millis(5));
            }
        }
        for weaker in later {
            store.keys().set_policy("acme", policy(weaker).with_byok(false)).unwrap();
        }
        drop(late);
        while rotation.progress().phase != Phase::Held {
            let _ = rotation.wait_timeout(Duration::from_millis(5));
        }
        drop(rotation);
        store.close().unwrap();

        let store = place.open();
        let key = store.keys().status("acme").unwrap().versions[0].clone();
        assert_eq!((key.state, key.retires), (KeyState::DecryptOnly, Some(strictest)), "{number}");
        let rotation = store.keys().rotation("acme").unwrap().unwrap();
        while rotation.progress().phase != Phase::Held {
            let _ = rotation.wait_timeout(Duration::from_millis(5));
        }
        assert_eq!(states(&store, "acme"), [KeyState::DecryptOnly, KeyState::Active], "{number}");
        // An operator may, and what is replaced from now on goes as the policy of now says.
        store.keys().retire("acme").unwrap().ended();
        store.keys().set_policy("acme", policy(Immediate)).unwrap();
        store.keys().return_to_platform_key("acme").unwrap().ended();
        let expected = [KeyState::Retired, KeyState::Retired, KeyState::Active];
        assert_eq!(states(&store, "acme"), expected, "{number}");
    }
}

/// The count has cleared the key already when the policy becomes stricter.
#[test]
fn a_policy_that_comes_before_the_key_is_destroyed_counts() {
    let place = Place::new();
    let store = place.open();
    filled(&store, "acme", 20);
    let mut judged = Held::at("retire.synced", "acme");
    let rotation = store.keys().provision("acme", material(&key_text())).unwrap();
    judged.wait();
    store.keys().set_policy("acme", policy(RetirePolicy::Manual)).unwrap();
    judged.let_go();
    assert!(matches!(rotation.wait_timeout(SOON), Err(Error::RetirementAwaited { .. })));
    assert_eq!(states(&store, "acme"), [KeyState::DecryptOnly, KeyState::Active]);
    store.keys().retire("acme").unwrap().ended();
}

#[test]
fn a_hold_ends_by_itself() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 100);
    let hold = Duration::from_millis(600);
    store.keys().set_policy("acme", policy(RetirePolicy::AfterHold(hold))).unwrap();
    let start = Instant::now();
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    assert!(rotation.wait_timeout(hold / 3).unwrap().is_none());
    rotation.ended();
    assert!(start.elapsed() >= hold);
    check_filled(&org, 100);
    let late = filled(&store, "late", 1);
    store
        .keys()
        .set_policy("late", policy(RetirePolicy::AfterHold(Duration::from_secs(3600))))
        .unwrap();
    let rotation = store.keys().rotate_platform_key("late").unwrap();
    while rotation.progress().phase != Phase::Held {
        assert!(rotation.wait_timeout(Duration::from_millis(5)).unwrap().is_none());
    }
    assert!(rotation.progress().reason.unwrap().contains("is held for"));
    store.keys().retire("late").unwrap();
    rotation.ended();
    drop(late);
}

/// The rehearsal: a record that turns up under a held key is served, counted and re-encrypted,
/// and the hold starts anew.
#[test]
fn a_record_that_needs_a_held_key_is_served_and_breaks_the_hold() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 50);
    let id = org.id();
    drop(org);
    store.close().unwrap();
    let key = escape(&[&id.as_bytes()[..], b"n00007"].concat());
    let mut old = Vec::new();
    tamper(&place, "records", |records| old = records.get(&key).unwrap().unwrap().to_vec());
    let store = place.open();
    store.keys().set_policy("acme", policy(RetirePolicy::Manual)).unwrap();
    let rotation = store.keys().provision("acme", material(&key_text())).unwrap();
    assert!(matches!(rotation.wait_timeout(SOON), Err(Error::RetirementAwaited { .. })));
    drop(rotation);
    store.close().unwrap();

    // Somebody puts a record of the old key back.
    tamper(&place, "records", |records| drop(records.insert(&key, old).unwrap()));
    let store = place.open();
    let org = store.org("acme").unwrap();
    check_filled(&org, 50);
    let rotation = store.keys().rotation("acme").unwrap().unwrap();
    assert!(rotation.wait().unwrap_err().is_rollback());
    assert!(store.danger_accept_loss("acme").unwrap());
    while !events(&store).iter().any(|event| matches!(event, AuditEvent::HoldBroken { .. })) {
        let _ = rotation.wait_timeout(Duration::from_millis(10));
    }
    assert_eq!(store.keys().census("acme").unwrap().by_version.len(), 1, "re-encrypted");
    assert_eq!(states(&store, "acme")[0], KeyState::DecryptOnly);
    store.keys().retire("acme").unwrap().ended();
    check_filled(&org, 50);
}

#[test]
fn an_erased_org_is_gone_and_its_name_is_free() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 2000);
    let other = filled(&store, "umbra", 10);
    let key = key_text();
    store.keys().provision("acme", material(&key)).unwrap();
    let watch = org.watch("").unwrap();
    let erasure = store.keys().erase_org("acme").unwrap();
    for refused in [
        org.get("n00001").err(),
        org.put("n", "v").err(),
        org.delete("n00001").err(),
        org.contains("n").err(),
        org.batch().put("n", "v").commit().err(),
        org.scan("").find_map(Result::err),
        org.scan("").names().find_map(Result::err),
        org.count().err(),
        org.watch("").err(),
    ] {
        assert!(matches!(refused, None | Some(Error::OrgErased { .. })), "{refused:?}");
    }
    assert!(matches!(org.get("n00001"), Err(Error::OrgErased { .. })));
    assert!(!matches!(org.count(), Ok(1..)), "what is deleted is not listed");
    assert!({ watch }.next().is_none_or(|change| change.is_err()));
    assert!(matches!(store.org("acme"), Err(Error::OrgUnknown { .. })));
    let certificate = erasure.wait_timeout(SOON).unwrap().unwrap();
    assert_eq!(certificate.kind, CertificateKind::OrgErased);
    assert_eq!((certificate.records_deleted, certificate.records_left), (2000, 0));
    assert!(store.keys().erasures().unwrap().is_empty());
    assert!(store.keys().verify_certificate(&certificate).unwrap().is_true());
    assert!(certificate.to_string().contains("erasure"), "{certificate}");
    check_filled(&other, 10);
    let again = filled(&store, "acme", 5);
    assert_ne!(again.id(), certificate.org_id);
    let reused = store.keys().provision("acme", material(&key));
    assert!(matches!(reused, Err(Error::KeyReused { .. })), "its keys never come again");
    check_filled(&again, 5);
    assert_eq!(store.orgs().len(), 2);
    drop((org, other, again, erasure));
    store.close().unwrap();
    check_filled(&place.open().org("acme").unwrap(), 5);
}

/// A platform key rotates by itself when it is due; a customer's key is only said to be.
#[test]
fn keys_that_are_due_rotate_or_are_reported() {
    let place = Place::new();
    let options = Options::new().sync_interval(Duration::from_millis(20));
    let store = options.open(place.data(), place.root_key()).unwrap();
    let versions = |org: &str| store.keys().status(org).unwrap().versions;
    let wait = |what: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < SOON);
            std::thread::yield_now();
        }
    };
    let by_records = OrgPolicy::byok().with_rotation_after_records(100);
    let org = store.create_org("records", by_records.clone()).unwrap();
    (0..99).for_each(|i| org.put(format!("n{i}"), "x").unwrap());
    let by_bytes = OrgPolicy::byok().with_rotation_after_bytes(10_000);
    let bytes = store.create_org("bytes", by_bytes).unwrap();
    bytes.put("n", [0; 9_999]).unwrap();
    let by_age = OrgPolicy::byok().with_rotation_after_age(Duration::from_secs(1));
    store.create_org("age", by_age).unwrap();
    wait(&|| versions("age").len() > 1);
    assert_eq!((versions("records").len(), versions("bytes").len()), (1, 1));
    org.put("n99", "x").unwrap();
    bytes.put("m", "x").unwrap();
    wait(&|| versions("records").len() == 2 && versions("bytes").len() == 2);
    wait(&|| states(&store, "records") == [KeyState::Retired, KeyState::Active]);
    assert_eq!(org.count().unwrap(), 100);

    store.keys().provision("records", material(&key_text())).unwrap().ended();
    (0..100).for_each(|i| org.put(format!("n{i}"), "y").unwrap());
    wait(&|| versions("records")[2].due.is_some());
    assert_eq!(versions("records").len(), 3, "nobody replaces a customer's key by himself");
    let due = events(&store)
        .into_iter()
        .filter(|event| *event == AuditEvent::RotationDue { why: byokv::Due::Records });
    assert_eq!(due.count(), 2);
    let metrics = store.metrics().unwrap();
    let used = metrics.orgs["records"].versions.values().last().unwrap().sealed_in_all;
    assert_eq!(used, 100, "what the rotation re-encrypted is not counted");
}

/// Neither a key that is held nor a rotation that waits keeps anybody from learning that the newest
/// key is due.
#[test]
fn keys_are_due_beside_a_key_that_is_held_and_a_rotation_that_waits() {
    let place = Place::new();
    let options = Options::new().sync_interval(Duration::from_millis(20));
    let store = options.open(place.data(), place.root_key()).unwrap();
    let wait = |what: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < SOON);
            std::thread::yield_now();
        }
    };
    let limited = policy(RetirePolicy::Manual).with_rotation_after_records(100);
    let org = store.create_org("held", limited).unwrap();
    wait(&|| {
        org.put("n", "x").unwrap();
        states(&store, "held").len() == 4
    });
    let expected = [KeyState::DecryptOnly; 3];
    assert_eq!(states(&store, "held")[..3], expected, "all of them are held");

    let slow = Throttle::unlimited().with_records_per_second(20).unwrap();
    store.keys().set_throttle(slow).unwrap();
    let limited = policy(RetirePolicy::Immediate).with_rotation_after_records(200);
    let org = store.create_org("paused", limited).unwrap();
    (0..100).for_each(|i| org.put(format!("n{i}"), "x").unwrap());
    let rotation = store.keys().rotate_platform_key("paused").unwrap();
    rotation.pause().unwrap();
    (0..200).for_each(|i| org.put(format!("n{i}"), "y").unwrap());
    let versions = || store.keys().status("paused").unwrap().versions;
    wait(&|| versions()[1].due.is_some());
    assert_eq!(versions().len(), 2, "no key comes while records wait for the last one");
    store.keys().set_throttle(Throttle::unlimited()).unwrap();
    rotation.resume().unwrap();
    rotation.ended();
    wait(&|| versions().len() == 3);
    let due = store.keys().audit().map(Result::unwrap).filter(|entry| {
        let is_due = matches!(entry.event, AuditEvent::RotationDue { .. });
        is_due && entry.org.as_ref().is_some_and(|org| org.name == "paused")
    });
    assert_eq!(due.count(), 1, "once for each key");
}

/// Not a test of its own: erases and is killed on the way.
#[test]
fn child() {
    let Some(data) = std::env::var_os("BYOKV_CHILD") else { return };
    let root = material(&std::env::var("BYOKV_CHILD_ROOT").unwrap());
    let store = Store::open(data, RootKey::from_material(root)).unwrap();
    store.keys().erase_org("acme").unwrap().wait().unwrap();
}

/// Killed at any point, the org is whole or its keys are gone; what was begun ends by itself.
#[test]
fn an_erasure_killed_at_each_point_ends_by_itself() {
    let of_keyring = failpoint::ALL.iter().filter(|point| point.starts_with("keyring."));
    let mut points: Vec<String> = of_keyring.clone().map(|p| (*p).to_owned()).collect();
    points.extend(of_keyring.filter(|p| **p != "keyring.published").map(|p| format!("{p}:2")));
    points.extend(failpoint::ERASURE.iter().map(|p| (*p).to_owned()));
    points.push("erase.deleted:2".to_owned());
    for point in points {
        let place = Place::new();
        let store = place.open();
        drop(filled(&store, "acme", 1200));
        drop(filled(&store, "umbra", 20));
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
        let erased = || {
            let mut certificates = store.keys().certificates().map(Result::unwrap);
            certificates.any(|c| c.kind == CertificateKind::OrgErased)
        };
        match store.org("acme") {
            Ok(org) => {
                let before = ["keyring.begun", "keyring.written"].contains(&&*point);
                assert!(before, "{point}: the org is whole only before the exchange");
                check_filled(&org, 1200);
                drop(org);
                let erasure = store.keys().erase_org("acme").unwrap();
                erasure.wait_timeout(SOON).unwrap().unwrap();
            }
            Err(error) => {
                assert!(matches!(error, Error::OrgUnknown { .. }));
                let start = Instant::now();
                while !erased() {
                    assert!(start.elapsed() < SOON, "{point}: does not go on by itself");
                    std::thread::yield_now();
                }
            }
        }
        let certificates = store.keys().certificates().map(Result::unwrap);
        let mut erased = certificates.filter(|c| c.kind == CertificateKind::OrgErased);
        let deleted = erased.next().unwrap().records_deleted;
        drop(erased);
        let lost = if point.starts_with("erase.deleted") { 512 } else { 0 };
        assert!((1200 - lost..=1200).contains(&deleted), "{point}: {deleted}");
        check_filled(&store.org("umbra").unwrap(), 20);
        store.keys().audit().for_each(|entry| drop(entry.unwrap()));
        store.close().unwrap();
        tamper(&place, "records", |records| assert_eq!(records.len(), 20, "{point}"));
    }
}

/// A key that the org brings while its platform key is found due is not replaced with it.
#[test]
fn a_due_platform_key_gives_way_to_a_key_that_is_brought() {
    let place = Place::new();
    let policy = OrgPolicy::byok().with_rotation_after_records(1);
    let store = Arc::new(
        Options::new()
            .sync_interval(Duration::from_millis(20))
            .open(place.data(), place.root_key())
            .unwrap(),
    );
    let org = store.create_org("acme", OrgPolicy::byok()).unwrap();
    org.put("a", "b").unwrap();
    let (text, inner) = (key_text(), Arc::downgrade(&store));
    let brought = material(&text).fingerprint();
    let (done, is_done) = std::sync::mpsc::channel();
    let once = std::sync::Mutex::new(Some((text, done)));
    let hook = failpoint::on("due.found", "acme", move || {
        if let Some((text, done)) = once.lock().unwrap().take() {
            let store = inner.upgrade().unwrap();
            store.keys().provision("acme", material(&text)).unwrap().ended();
            // Nobody finds the new one due.
            store.keys().set_policy("acme", OrgPolicy::byok()).unwrap();
            done.send(()).unwrap();
        }
    });
    store.keys().set_policy("acme", policy).unwrap();
    is_done.recv_timeout(Duration::from_secs(30)).unwrap();
    drop(hook);
    // A round later whatever was to happen has happened.
    org.durable().put("c", "d").unwrap();
    store.keys().set_policy("acme", OrgPolicy::byok()).unwrap();
    drop(org);
    let store = Arc::into_inner(store).unwrap();
    store.close().unwrap();
    let versions = place.open().keys().status("acme").unwrap().versions;
    assert_eq!((versions.len(), versions[1].fingerprint), (2, brought), "{versions:?}");
    assert_eq!(versions[1].state, KeyState::Active);
}

#[test]
fn a_limit_that_every_key_is_beyond_is_refused() {
    let place = Place::new();
    let store = place.open();
    for policy in [
        OrgPolicy::byok().with_rotation_after_age(Duration::from_millis(999)),
        OrgPolicy::byok().with_rotation_after_records(0),
        OrgPolicy::byok().with_rotation_after_bytes(0),
    ] {
        let refused = store.create_org("acme", policy.clone()).unwrap_err();
        assert!(matches!(refused, Error::InvalidOption { .. }), "{refused}");
        store.create_org("acme", OrgPolicy::byok()).ok();
        assert!(store.keys().set_policy("acme", policy).is_err());
        store.keys().erase_org("acme").unwrap().wait().unwrap();
    }
}

/// Who waits for a rotation of an org that is erased meanwhile is told that, and a handle from
/// before does not stop the erasure.
#[test]
fn a_rotation_ends_with_its_org_and_cannot_pause_the_erasure() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 3000));
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    rotation.pause().unwrap();
    let erasure = store.keys().erase_org("acme").unwrap();
    assert!(matches!(rotation.pause(), Err(Error::OrgErased { .. })));
    assert!(matches!(rotation.wait(), Err(Error::OrgErased { .. })));
    let certificate = erasure.wait_timeout(Duration::from_secs(30)).unwrap();
    assert!(certificate.is_some(), "{}", erasure.progress());
}

/// A policy that keeps a held key longer does, without a restart.
#[test]
fn a_stricter_policy_is_heard_of_at_once() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "acme", 20));
    let hour = RetirePolicy::AfterHold(Duration::from_secs(3600));
    store.keys().set_policy("acme", policy(hour)).unwrap();
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    while !held(&store, "acme") {
        assert!(rotation.wait_timeout(Duration::from_millis(5)).unwrap().is_none());
    }
    store.keys().set_policy("acme", policy(RetirePolicy::Manual)).unwrap();
    assert!(matches!(rotation.wait_timeout(SOON), Err(Error::RetirementAwaited { .. })));
}
