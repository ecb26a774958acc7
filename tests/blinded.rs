//! Orgs whose record names are blinded: what the disk shows, and what stands in the way.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use byokv::{AuditEvent, Error, KeyState, OrgPolicy, RetirePolicy, Throttle, failpoint};
use common::{
    Ended, Place, all_under, blinded, check_filled, contents, escape, filled_blinded, here,
    key_text, material, states, tamper,
};

const SOON: Duration = Duration::from_secs(20);

/// A hundred names of a blinded org are nowhere in the files, whatever was done; those of a clear
/// org are, so the search can find them.
#[test]
fn raw_files_hold_no_name() {
    let place = Place::new();
    let store = place.open();
    let blinded = store.create_org("acme", blinded()).unwrap();
    let clear = store.create_org("umbra", OrgPolicy::byok()).unwrap();
    for (org, of) in [(&blinded, "blindly"), (&clear, "clearly")] {
        let name = |i: usize| format!("s/{of}{i:03}/x{i}{of}");
        let watch = org.watch("s/").unwrap();
        for i in 0..100 {
            match i % 3 {
                0 => org.put(name(i), "v").unwrap(),
                1 => org.batch().put(name(i), "v").delete("gone").commit().unwrap(),
                _ => assert!(org.compare_and_swap(name(i), None, Some(b"v")).unwrap().is_swapped()),
            }
            assert_eq!(watch.recv_timeout(SOON).unwrap().unwrap().name, name(i).as_bytes());
        }
        store.keys().provision(org.name(), material(&key_text())).unwrap().ended();
        (50..100).for_each(|i| org.delete(name(i)).unwrap());
        store.keys().provision(org.name(), material(&key_text())).unwrap().ended();
        assert_eq!(org.scan(format!("s/{of}0")).count(), 50);
    }
    store.sync().unwrap();
    let names_of = |of: &str| {
        let files = contents(&place.data());
        // sled cuts off what neighbours have in common, so not the whole name.
        let needles = (0..100).map(|i| format!("{i}{of}"));
        let has = |needle: &String| {
            let holds = |bytes: &[u8]| bytes.windows(needle.len()).any(|w| w == needle.as_bytes());
            files.iter().any(|(_, bytes)| holds(bytes))
        };
        needles.filter(has).count()
    };
    assert_eq!((names_of("blindly"), names_of("clearly")), (0, 100));
    store.erase_residue().unwrap();
    assert_eq!((names_of("blindly"), names_of("clearly")), (0, 50));
    let said: String = store.keys().audit().map(|entry| entry.unwrap().to_string()).collect();
    assert!(said.contains("acme") && !said.contains("blindly"));
}

#[test]
fn how_names_are_stored_is_chosen_once() {
    let place = Place::new();
    let store = place.open();
    store.create_org("acme", blinded()).unwrap();
    let refused = store.keys().set_policy("acme", OrgPolicy::byok()).unwrap_err();
    assert!(matches!(refused, Error::KeyConflict { .. }));
    assert!(refused.to_string().contains("create another org"), "{refused}");
    store.keys().set_policy("acme", blinded().with_retire(RetirePolicy::Manual)).unwrap();
    store.create_org("umbra", OrgPolicy::byok()).unwrap();
    assert!(store.keys().set_policy("umbra", blinded()).is_err());
}

/// 7: a blinded name that does not open blocks retirement, and stops nobody else.
#[test]
fn a_name_of_too_many_segments_is_refused() {
    let place = Place::new();
    let store = place.open();
    let org = store.create_org("acme", blinded()).unwrap();
    let deep = |segments: usize| vec!["x"; segments].join("/");
    org.put(deep(128), "v").unwrap();
    assert!(org.get(deep(128)).unwrap().unwrap() == b"v"[..]);
    match org.put(deep(129), "v") {
        Err(Error::NameDepth { segments, limit }) => assert_eq!((segments, limit), (129, 128)),
        other => panic!("{other:?}"),
    }
    assert_eq!(org.count().unwrap(), 1);
}

#[test]
fn a_damaged_name_keeps_the_old_key_alive() {
    let place = Place::new();
    let store = place.open();
    let id = filled_blinded(&store, "acme", 20).id();
    store.close().unwrap();
    let moved = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&moved);
    let start = escape(id.as_bytes());
    tamper(&place, "records", move |records| {
        // Not one in whose end the storage's encoding of FE and FF would be hurt too.
        let plain = |key: &sled::IVec| key[key.len() - 2..].iter().all(|byte| *byte < 0xf0);
        let mut all = records.scan_prefix(&start).map(Result::unwrap);
        let (key, envelope) = all.find(|(key, _)| plain(key)).unwrap();
        let mut damaged = key.to_vec();
        *damaged.last_mut().unwrap() ^= 1;
        records.remove(&key).unwrap();
        records.insert(&damaged[..], &envelope).unwrap();
        *kept.lock().unwrap() = Some((key, damaged, envelope));
    });
    let store = place.open();
    let org = store.org("acme").unwrap();
    let (bad, good): (Vec<_>, Vec<_>) = org.scan("").partition(Result::is_err);
    assert_eq!((bad.len(), good.len()), (1, 19));
    let told = bad[0].as_ref().unwrap_err();
    assert!(told.to_string().contains("remove_nameless"), "{told}");
    assert!(told.is_damage() && told.to_string().contains("storage key 00000001"), "{told}");
    assert!(org.count().is_err());
    let rotation = store.keys().provision("acme", material(&key_text())).unwrap();
    match rotation.wait() {
        Err(Error::RotationBlocked { unreadable: 1, first, .. }) => {
            assert!(first.contains("storage key 00000001"), "{first}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(states(&store, "acme"), [KeyState::DecryptOnly, KeyState::Active]);
    drop((rotation, org));
    store.close().unwrap();
    let found = tool(&place, &["verify", "acme", "--deep"]);
    assert!(found.contains("storage key 00000001") && found.contains("1 fault"), "{found}");
    // Mended from a copy, it is an ordinary record again.
    let (key, damaged, envelope) = moved.lock().unwrap().take().unwrap();
    tamper(&place, "records", move |records| {
        records.remove(damaged).unwrap();
        records.insert(key, envelope).unwrap();
    });
    let store = place.open();
    if let Some(rotation) = store.keys().rotation("acme").unwrap() {
        rotation.ended();
    }
    all_under(&store, "acme", 2, 20);
    check_filled(&store.org("acme").unwrap(), 20);
}

/// What the tool says, on both streams.
fn tool(place: &Place, arguments: &[&str]) -> String {
    let ran = std::process::Command::new(env!("CARGO_BIN_EXE_byokv"))
        .args(["--data", place.data().to_str().unwrap()])
        .args(arguments)
        .env("BYOKV_ROOT_KEY", &place.root)
        .output()
        .unwrap();
    String::from_utf8([ran.stdout, ran.stderr].concat()).unwrap()
}

/// Names that open under no key: nobody can ask for such a record, so there is a call to remove it.
/// A suspended key's are not among them.
#[test]
fn nameless_records_can_be_removed() {
    let place = Place::new();
    let store = place.open();
    let org = filled_blinded(&store, "acme", 9);
    let key = key_text();
    store.keys().provision("acme", material(&key)).unwrap().ended();
    let start = escape(org.id().as_bytes());
    drop(org);
    store.close().unwrap();
    tamper(&place, "records", |records| {
        let (_, envelope) = records.scan_prefix(&start).next().unwrap().unwrap();
        let key = |rest: &[u8]| [&start[..], rest].concat();
        // Too short; under version 0; under one that is retired; under one that never was; cut off.
        let bad = [&b"x"[..], &[0; 40], &[0, 0, 0, 1, 9], &[0, 0, 0, 7, 9], &[0, 0, 0, 2, 0, 1, 9]];
        for rest in bad {
            records.insert(key(rest), &envelope).unwrap();
        }
    });
    let found = tool(&place, &["verify", "acme", "--deep"]);
    assert!(found.contains("5 faults"), "{found}");
    let store = place.open();
    let org = store.org("acme").unwrap();
    let backup_key = material(&key_text());
    let mut file = Vec::new();
    let made = store.backup(&backup_key).skip_unreadable().write_to(&mut file).unwrap();
    assert_eq!((made.unreadable.len(), made.orgs[0].entries), (5, 9));
    let last = store.keys().audit().last().unwrap().unwrap();
    assert!(matches!(last.event, AuditEvent::BackupMade { unreadable: Some(5), .. }), "{last}");
    assert_eq!(org.scan("").filter(Result::is_err).count(), 5);
    assert_eq!(org.scan("").filter(Result::is_ok).count(), 9);
    let rotation = store.keys().return_to_platform_key("acme").unwrap();
    assert!(matches!(rotation.wait(), Err(Error::RotationBlocked { unreadable: 5, .. })));
    store.keys().suspend("acme").unwrap();
    assert_eq!(store.keys().remove_nameless("acme").unwrap(), 4, "one may be of the suspended");
    store.keys().resume("acme", material(&key)).unwrap();
    assert_eq!(store.keys().remove_nameless("acme").unwrap(), 1);
    assert_eq!(store.keys().remove_nameless("acme").unwrap(), 0);
    let said: Vec<_> = store.keys().audit().map(|entry| entry.unwrap().to_string()).collect();
    assert!(said.iter().any(|entry| entry.contains("records without a name removed: 4")));
    rotation.resume().unwrap();
    // Somebody wrote behind the store's back, which is known until it is accepted.
    assert!(rotation.wait().unwrap_err().is_rollback());
    assert!(store.danger_accept_loss("acme").unwrap());
    rotation.ended();
    check_filled(&org, 9);
    all_under(&store, "acme", 3, 9);
}

/// 8: a name under the old version stops the retirement, whatever its envelope says. And an old
/// place that somebody put back beside the new one does not win.
#[test]
fn an_old_place_is_found_by_the_count_and_loses_to_the_new() {
    let place = Place::new();
    let store = place.open();
    let id = filled_blinded(&store, "acme", 5).id();
    store.close().unwrap();
    let copy = Arc::new(Mutex::new(Vec::new()));
    let (start, kept) = (escape(id.as_bytes()), Arc::clone(&copy));
    tamper(&place, "records", move |records| {
        *kept.lock().unwrap() = records.scan_prefix(start).map(Result::unwrap).collect();
    });
    let store = place.open();
    let org = store.org("acme").unwrap();
    let slow = Throttle::unlimited().with_records_per_second(1).unwrap();
    store.keys().set_throttle(slow).unwrap();
    store.keys().rotate_platform_key("acme").unwrap().pause().unwrap();
    (0..5).for_each(|i| org.put(format!("n{i:05}"), "new").unwrap());
    all_under(&store, "acme", 2, 5);
    drop(org);
    store.close().unwrap();
    tamper(&place, "records", |records| {
        for (key, envelope) in copy.lock().unwrap().drain(..) {
            records.insert(key, envelope).unwrap();
        }
    });
    let store = place.open();
    assert_eq!(store.keys().census("acme").unwrap().by_name_version.len(), 2);
    let org = store.org("acme").unwrap();
    assert_eq!(org.count().unwrap(), 5);
    store.keys().set_throttle(Throttle::unlimited()).unwrap();
    let rotation = store.keys().rotation("acme").unwrap().unwrap();
    rotation.resume().unwrap();
    assert!(rotation.wait().unwrap_err().is_rollback());
    assert!(store.danger_accept_loss("acme").unwrap());
    rotation.ended();
    assert!(org.scan("").all(|record| record.unwrap().value == b"new"[..]));
    all_under(&store, "acme", 2, 5);
}

/// 12: while the key is suspended nothing can be found or written, and nothing is lost.
#[test]
fn a_suspended_key_withholds_the_names() {
    let place = Place::new();
    let store = place.open();
    let org = filled_blinded(&store, "acme", 20);
    let key = key_text();
    let first = store.keys().provision("acme", material(&key)).unwrap();
    first.ended();
    store.keys().suspend("acme").unwrap();
    let refused = [
        org.get("n00001").map(drop),
        org.contains("n00001").map(drop),
        org.put("x", "y"),
        org.delete("n00001"),
        org.batch().delete("n00001").commit(),
        org.compare_and_swap("x", None, None).map(drop),
        org.count().map(drop),
        org.scan("a/b").next().unwrap().map(drop),
        org.scan("n").names().next_back().unwrap().map(drop),
    ];
    for refused in refused {
        assert!(matches!(refused, Err(Error::KeySuspended { .. })), "{refused:?}");
    }
    assert_eq!(store.keys().census("acme").unwrap().total(), 20);
    store.keys().resume("acme", material(&key)).unwrap();
    check_filled(&org, 20);
    // One of two: what lies under the other is found, nothing is deleted by half.
    // A pause outlives the rotation that it was asked of, so nothing moves.
    first.pause().unwrap();
    let rotation = store.keys().return_to_platform_key("acme").unwrap();
    org.put("n00002", "new").unwrap();
    store.keys().suspend("acme").unwrap();
    assert_eq!(org.get("n00002").unwrap().as_deref(), Some(&b"new"[..]));
    assert!(matches!(org.get("n00001"), Err(Error::KeySuspended { .. })));
    assert!(matches!(org.delete("n00002"), Err(Error::KeySuspended { .. })));
    assert!(org.scan("").any(|found| found.is_ok_and(|record| record.name == b"n00002")));
    store.keys().resume("acme", material(&key)).unwrap();
    org.put("n00002", "v2").unwrap();
    rotation.resume().unwrap();
    rotation.ended();
    check_filled(&org, 20);
    all_under(&store, "acme", 3, 20);
}

/// A held version's places are looked at, which is no use of its key.
#[test]
fn a_hold_is_not_broken_by_looking() {
    let place = Place::new();
    let store = place.open();
    let held = blinded().with_retire(RetirePolicy::Manual);
    let org = store.create_org("acme", held).unwrap();
    org.put("a/b", "1").unwrap();
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    assert!(matches!(rotation.wait(), Err(Error::RetirementAwaited { .. })));
    assert!(org.get("none").unwrap().is_none());
    org.put("a/c", "2").unwrap();
    assert_eq!(org.scan("a/").count(), 2);
    store.keys().retire("acme").unwrap().ended();
    all_under(&store, "acme", 2, 2);
    store.keys().audit().for_each(|entry| {
        assert!(!entry.unwrap().to_string().contains("hold broken"));
    });
}

/// Erasing needs no name; and while everything moves to fresh files names still move.
#[test]
fn erasing_residue_and_the_org_work_without_names() {
    let place = Place::new();
    let store = place.open();
    let org = filled_blinded(&store, "acme", 500);
    store.keys().provision("acme", material(&key_text())).unwrap().ended();
    assert!(store.residue().unwrap()[0].envelopes > 0);
    let erased = store.erase_residue().unwrap();
    assert_eq!(erased.certificates.len(), 1);
    assert!(store.residue().unwrap().is_empty());
    check_filled(&org, 500);
    // Retired only after the copy was begun: its names may lie in the new files.
    let (keys, org_too) = (store.keys(), org.clone());
    let rotated = Mutex::new(None);
    let hook = here("residue.copied", move || {
        keys.provision("acme", material(&key_text())).unwrap().ended();
        org_too.put("meanwhile", "x").unwrap();
        *rotated.lock().unwrap() = Some(());
    });
    let erased = store.erase_residue().unwrap();
    drop(hook);
    assert!(erased.certificates.is_empty(), "{erased:?}");
    assert_eq!(store.erase_residue().unwrap().certificates.len(), 1);
    org.delete("meanwhile").unwrap();
    check_filled(&org, 500);
    let certificate = store.keys().erase_org("acme").unwrap().wait().unwrap();
    assert_eq!(certificate.records_deleted, 500);
    assert!(matches!(org.get("n00001"), Err(Error::OrgErased { .. })));
}

/// Three versions live: while a third is installed, a writer who came before moves a record
/// between the two older places, past a reader. Wherever that happens, the record is found.
#[test]
fn a_record_that_moves_between_older_places_is_not_missed() {
    for at_look in 0..2 {
        let place = Place::new();
        let store = Arc::new(place.open());
        let org = store.create_org("acme", blinded()).unwrap();
        // A pause outlives the rotation that it was asked of.
        let ended = store.keys().provision("acme", material(&key_text())).unwrap();
        ended.ended();
        ended.pause().unwrap();
        org.put("x", "old").unwrap();
        store.keys().provision("acme", material(&key_text())).unwrap();
        let (inside, is_inside) = mpsc::channel();
        let (go, may_go) = mpsc::channel();
        let (done, is_done) = mpsc::channel();
        let gate = Mutex::new(Some((inside, may_go)));
        let _sealed = failpoint::on("put.sealed", "acme", move || {
            if let Some((inside, may_go)) = gate.lock().unwrap().take() {
                inside.send(()).unwrap();
                may_go.recv_timeout(SOON).unwrap();
            }
        });
        std::thread::scope(|scope| {
            scope.spawn(|| {
                org.put("x", "new").unwrap();
                let _ = done.send(());
            });
            is_inside.recv_timeout(SOON).unwrap();
            let admin = Arc::clone(&store);
            scope.spawn(move || {
                admin.keys().provision("acme", material(&key_text())).unwrap();
            });
            while store.metrics().unwrap().orgs["acme"].versions.len() < 4 {
                std::thread::yield_now();
            }
            let release = go.clone();
            let (looks, sides) = (AtomicUsize::new(0), Mutex::new((go, is_done)));
            let _looked = failpoint::on("names.looked", "acme", move || {
                if looks.fetch_add(1, Ordering::Relaxed) == at_look {
                    let sides = sides.lock().unwrap();
                    sides.0.send(()).unwrap();
                    sides.1.recv_timeout(SOON).unwrap();
                }
            });
            assert!(org.get("x").unwrap().is_some(), "look {at_look}");
            // The look that lets the writer go may not have come: the record was found before.
            let _ = release.send(());
        });
    }
}
