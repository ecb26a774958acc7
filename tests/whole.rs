//! Nothing is destroyed while records are missing or older than they were: no key is retired, no org
//! erased and no old file overwritten, and the error names the org.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use byokv::{AuditEvent, Error, KeyState, Options, Phase, Rotation, Store, failpoint};
use common::{Ended, Place, check_filled, escape, filled, states, tamper};

/// A closed store with two orgs of 20 records each, from the first of which one is taken away: its key as
/// sled has it, and its bytes.
fn with_one_taken_away() -> (Place, Vec<u8>, Vec<u8>) {
    let place = Place::new();
    let store = place.open();
    let id = filled(&store, "acme", 20).id();
    filled(&store, "umbra", 20);
    store.close().unwrap();
    let key = escape(&[&id.as_bytes()[..], b"n00007"].concat());
    let mut taken = Vec::new();
    tamper(&place, "records", |records| taken = records.remove(&key).unwrap().unwrap().to_vec());
    (place, key, taken)
}

/// Opened, whatever is missing.
fn accepting(place: &Place) -> Store {
    let accept = Options::new().danger_accept_rollback(true);
    accept.open(place.data(), place.root_key()).unwrap()
}

/// What a rotation is blocked with. One that tries again by itself is not.
fn refusal(rotation: &Rotation) -> Error {
    rotation.wait_timeout(Duration::from_secs(20)).unwrap_err()
}

/// It says which org, and not another.
fn names_acme(error: &Error) -> bool {
    let text = error.to_string();
    error.is_rollback() && text.contains("org \"acme\"") && !text.contains("umbra")
}

/// The record may come back, as from a backup of the file, and needs its key then.
#[test]
fn no_key_is_retired_while_a_record_is_missing() {
    let (place, key, taken) = with_one_taken_away();
    let store = place.open();
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    let refused = refusal(&rotation);
    assert!(names_acme(&refused), "{refused}");
    assert!(refused.to_string().contains("no key was destroyed"), "{refused}");
    assert_eq!(rotation.progress().phase, Phase::Blocked);
    // Trying again does not help, and no other org is kept from rotating.
    rotation.resume().unwrap();
    assert!(refusal(&rotation).is_rollback());
    store.keys().rotate_platform_key("umbra").unwrap().ended();
    assert!(names_acme(&store.verify_org("acme").unwrap_err()));
    assert!(names_acme(&store.verify().unwrap_err()));
    store.verify_org("umbra").unwrap();
    assert_eq!(states(&store, "acme")[0], KeyState::DecryptOnly);
    drop(rotation);
    store.close().unwrap();
    tamper(&place, "records", |records| drop(records.insert(&key, taken).unwrap()));
    let store = place.open();
    store.keys().rotations().unwrap().pop().unwrap().ended();
    check_filled(&store.org("acme").unwrap(), 20);
    store.verify().unwrap();
}

/// An old envelope that was put back opens, and is sealed anew like any other.
#[test]
fn no_key_is_retired_or_erased_while_a_record_is_older_than_it_was() {
    let (place, key, old) = with_one_taken_away();
    tamper(&place, "records", |records| drop(records.insert(&key, &*old).unwrap()));
    let store = place.open();
    store.org("acme").unwrap().put("n00007", "newer").unwrap();
    store.close().unwrap();
    tamper(&place, "records", |records| drop(records.insert(&key, &*old).unwrap()));
    let store = place.open();
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    assert!(names_acme(&refusal(&rotation)));
    let refused = store.keys().erase_org("acme").unwrap_err();
    assert!(names_acme(&refused), "{refused}");
    assert_eq!(store.org("acme").unwrap().get("n00007").unwrap().as_deref(), Some(&b"v7"[..]));
    assert_eq!(states(&store, "acme")[0], KeyState::DecryptOnly);
    // Another org is erased all the same.
    store.keys().erase_org("umbra").unwrap().wait().unwrap();
    drop(rotation);
    store.close().unwrap();
    // Accepted, all of it can be done.
    let store = accepting(&place);
    store.keys().rotations().unwrap().pop().unwrap().ended();
    store.keys().erase_org("acme").unwrap().wait().unwrap();
    store.verify().unwrap();
}

/// What waits for it goes on, and nothing is accepted of another org, or for later.
#[test]
fn a_loss_that_is_accepted_lets_the_rotation_end() {
    let (place, key, _) = with_one_taken_away();
    let store = place.open();
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    assert!(names_acme(&refusal(&rotation)));
    assert!(!store.danger_accept_loss("umbra").unwrap());
    assert!(store.danger_accept_loss("acme").unwrap());
    assert_eq!(rotation.ended().records_verified, 19);
    assert!(!store.danger_accept_loss("acme").unwrap());
    let last = store
        .keys()
        .audit()
        .map(Result::unwrap)
        .find(|entry| matches!(entry.event, AuditEvent::RollbackAccepted { .. }));
    assert_eq!(last.unwrap().org.unwrap().name, "acme");
    drop(rotation);
    store.close().unwrap();
    let store = place.open();
    store.verify().unwrap();
    store.close().unwrap();
    let another = [&key[..key.len() - 1], b"8"].concat();
    tamper(&place, "records", |records| assert!(records.remove(&another).unwrap().is_some()));
    assert!(names_acme(&place.open().verify().unwrap_err()));
}

/// What lies in the old files is all that there is of it.
#[test]
fn no_residue_is_erased_while_a_record_is_missing() {
    let (place, key, taken) = with_one_taken_away();
    let store = place.open();
    store.keys().rotate_platform_key("umbra").unwrap().ended();
    let before = store.residue().unwrap();
    assert!(!before.is_empty());
    let refused = store.erase_residue().unwrap_err();
    assert!(names_acme(&refused), "{refused}");
    assert!(refused.to_string().contains("nothing was erased"), "{refused}");
    assert!(place.data().join("db/db").exists() && !place.data().join("db.1").exists());
    store.org("umbra").unwrap().put("later", "x").unwrap();
    assert!(store.residue().unwrap()[0].envelopes >= before[0].envelopes);
    store.close().unwrap();
    tamper(&place, "records", |records| drop(records.insert(&key, taken).unwrap()));
    let store = place.open();
    let erased = store.erase_residue().unwrap();
    assert_eq!((erased.certificates.len(), &*erased.certificates[0].org), (1, "umbra"));
    store.verify().unwrap();
}

/// The keys are destroyed by then, but a certificate says that every record was deleted.
#[test]
fn an_erasure_from_which_a_record_vanished_is_not_certified() {
    let place = Place::new();
    let store = place.open();
    let id = filled(&store, "acme", 600).id();
    let stopped = failpoint::on("erase.deleted", "acme", || panic!("on purpose"));
    let erasure = store.keys().erase_org("acme").unwrap();
    assert!(matches!(erasure.wait(), Err(Error::Bug { .. })));
    drop((stopped, erasure));
    store.close().unwrap();
    let last = escape(&[&id.as_bytes()[..], b"n00599"].concat());
    tamper(&place, "records", |records| assert!(records.remove(&last).unwrap().is_some()));
    let store = place.open();
    let erasure = store.keys().erasures().unwrap().pop().unwrap();
    let refused = erasure.wait().unwrap_err();
    assert!(names_acme(&refused), "{refused}");
    assert_eq!(store.keys().certificates().count(), 0);
    assert!(store.danger_accept_loss("acme").unwrap());
    erasure.wait().unwrap();
    assert_eq!(store.keys().certificates().count(), 1);
}
