//! Records that nobody could ask for: read around, named, and removed by an operator (P13).

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use byokv::{AuditEvent, Error, KeyState, OrgId, OrgPolicy, Phase, Store, failpoint};
use common::{Ended, Place, check_filled, copy_dir, escape, filled, new_key, restore, tamper};

/// Storage keys behind an org's id, as sled has them, that no call of the API makes.
fn bad_names() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("empty", Vec::new()),
        ("empty or longer", vec![b'x'; byokv::MAX_NAME_LEN + 1]),
        ("none that this program writes", b"\xff".to_vec()),
        ("none that this program writes", b"n00\xfe\x05".to_vec()),
        ("none that this program writes", b"zz\xfe".to_vec()),
    ]
}

/// Puts the envelope of another record there.
fn plant(place: &Place, org: OrgId, rests: &[Vec<u8>]) {
    let start = escape(org.as_bytes());
    tamper(place, "records", |records| {
        let (_, envelope) = records.iter().next().unwrap().unwrap();
        for rest in rests {
            records.insert([&start[..], rest].concat(), &envelope).unwrap();
        }
    });
}

fn audited(store: &Store) -> Vec<AuditEvent> {
    store.keys().audit().map(|entry| entry.unwrap().event).collect()
}

#[test]
fn a_record_without_a_name_blocks_and_is_removed() {
    for (said, rest) in bad_names() {
        let place = Place::new();
        let store = place.open();
        let id = filled(&store, "acme", 20).id();
        store.close().unwrap();
        plant(&place, id, &[rest]);

        let store = place.open();
        let acme = store.org("acme").unwrap();
        let is_nameless = |error: &Error| match error {
            Error::RecordNameless { org, .. } => {
                let text = error.to_string();
                assert!(org == "acme" && error.is_damage());
                assert!(text.contains(said) && text.contains("remove_nameless"), "{text}");
                true
            }
            other => panic!("{other}"),
        };
        // It is passed by, and said.
        let names: Vec<_> = acme.scan("").names().collect();
        assert_eq!(
            names.iter().filter_map(|n| n.as_ref().err()).filter(|e| is_nameless(e)).count(),
            1
        );
        assert_eq!(names.iter().filter(|name| name.is_ok()).count(), 20);
        assert_eq!(acme.scan("").rev().filter(Result::is_ok).count(), 20);
        assert_eq!(acme.scan("").parallel(2).unwrap().filter(Result::is_ok).count(), 20);
        assert!(is_nameless(&acme.count().unwrap_err()));
        let census = store.keys().census("acme").unwrap();
        assert_eq!((census.total(), census.nameless, census.malformed), (21, 1, 0));
        assert!(matches!(acme.delete(""), Err(Error::NameLength { .. })));
        acme.put("more", "v").unwrap();
        acme.delete("more").unwrap();
        // A backup says so, or leaves it out.
        let key = new_key();
        assert!(is_nameless(&store.backup(&key).write_to(Vec::new()).unwrap_err()));
        let mut file = Vec::new();
        let made = store.backup(&key).skip_unreadable().write_to(&mut file).unwrap();
        assert_eq!((made.unreadable.len(), made.orgs[0].entries), (1, 20));
        let other = Place::new();
        restore(&other.open(), &key, &file).unwrap();
        // The digest never counted it.
        assert!(matches!(store.verify_org("acme"), Err(Error::RolledBack { .. })));
        let rotation = store.keys().rotate_platform_key("acme").unwrap();
        match rotation.wait() {
            Err(Error::RotationBlocked { unreadable: 1, first, .. }) => {
                assert!(first.contains(said), "{first}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(store.keys().status("acme").unwrap().versions[0].state, KeyState::DecryptOnly);

        assert_eq!(store.keys().remove_nameless("acme").unwrap(), 1);
        assert_eq!(store.keys().remove_nameless("acme").unwrap(), 0);
        assert!(matches!(audited(&store).last(), Some(AuditEvent::NamelessRemoved { records: 1 })));
        // So nothing is missed without it, also after a kill.
        store.verify().unwrap();
        let copy = place.dir.path().join("copy");
        copy_dir(&place.data(), &copy);
        Store::open(&copy, place.root_key()).unwrap().verify().unwrap();
        rotation.resume().unwrap();
        rotation.ended();
        assert_eq!(rotation.progress().phase, Phase::Done);
        check_filled(&acme, 20);
        assert_eq!(store.keys().census("acme").unwrap().nameless, 0);
    }
}

/// Where the loss was accepted, the digest has counted what was there.
#[test]
fn what_was_accepted_is_removed_like_a_record() {
    let place = Place::new();
    let store = place.open();
    let id = filled(&store, "acme", 20).id();
    store.close().unwrap();
    let rests: Vec<_> = bad_names().into_iter().map(|(_, rest)| rest).collect();
    plant(&place, id, &rests);
    let store = place.open();
    assert!(store.danger_accept_loss("acme").unwrap());
    assert_eq!(store.keys().remove_nameless("acme").unwrap(), 5);
    store.verify().unwrap();
    // What can be named is not its business, however damaged it is.
    store.close().unwrap();
    tamper(&place, "records", |records| {
        let (key, _) = records.iter().next().unwrap().unwrap();
        records.insert(key, &b"damaged"[..]).unwrap();
    });
    let store = place.open();
    assert_eq!(store.keys().remove_nameless("acme").unwrap(), 0);
    let acme = store.org("acme").unwrap();
    assert!(matches!(acme.get("n00000"), Err(Error::RecordDamaged { .. })));
    acme.delete("n00000").unwrap();
    assert_eq!(acme.count().unwrap(), 19);
}

#[test]
fn records_of_no_org_are_counted_and_removed() {
    let place = Place::new();
    let store = place.open();
    let id = filled(&store, "acme", 5).id();
    let erased = filled(&store, "umbra", 1).id();
    store.keys().erase_org("umbra").unwrap().wait().unwrap();
    assert_eq!(store.keys().ownerless().unwrap(), 0);
    store.close().unwrap();
    plant(&place, erased, &[b"back".to_vec()]);
    plant(&place, id, &[b"\xff".to_vec()]);
    tamper(&place, "records", |records| {
        for key in [&b""[..], b"short", &[7; 40], b"\xff\xff", &[0xff; 30], b"\xfe\x07rest"] {
            records.insert(key, &[1; 80][..]).unwrap();
        }
    });
    let store = place.open();
    assert_eq!(store.keys().ownerless().unwrap(), 7);
    assert!(matches!(store.verify(), Err(Error::RolledBack { .. })));
    assert_eq!(store.keys().remove_ownerless().unwrap(), 7);
    assert!(matches!(audited(&store).last(), Some(AuditEvent::OwnerlessRemoved { records: 7 })));
    assert_eq!(store.keys().remove_ownerless().unwrap(), 0);
    assert_eq!(store.keys().remove_nameless("acme").unwrap(), 1);
    store.verify().unwrap();
    check_filled(&store.org("acme").unwrap(), 5);
}

/// What comes to an org while its records are being deleted.
#[test]
fn an_erasure_deletes_what_has_no_name_too() {
    let place = Place::new();
    let store = place.open();
    let id = filled(&store, "acme", 20).id();
    let stop = failpoint::on("erase.keys_gone", "acme", || panic!("no further"));
    let keys = store.keys();
    let erased = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| keys.erase_org("acme")));
    assert!(erased.is_err());
    drop((stop, keys));
    drop(store);
    // Those that no call could delete.
    let foreign = bad_names().into_iter().filter(|(said, _)| said.contains("none that"));
    plant(&place, id, &foreign.map(|(_, rest)| rest).collect::<Vec<_>>());
    let store = place.open();
    let erasures = store.keys().erasures().unwrap();
    let certificate = match erasures.first() {
        Some(erasure) => erasure.wait().unwrap(),
        None => store.keys().certificates().next().unwrap().unwrap(),
    };
    assert_eq!(certificate.records_deleted, 23);
    assert_eq!(store.keys().ownerless().unwrap(), 0);
    store.verify().unwrap();
}

/// OrgPolicy is used by the tool's part only.
#[cfg(feature = "cli")]
mod tool {
    use super::*;
    use crate::common::shell::Shell;

    #[test]
    fn the_tool_goes_around_them_says_so_and_removes_them() {
        let shell = Shell::new();
        let place = |shell: &Shell| {
            let store = shell.open();
            let id = store.create_org("acme", OrgPolicy::byok()).unwrap().id();
            store.org("acme").unwrap().put("name", "value").unwrap();
            store.close().unwrap();
            id
        };
        let id = place(&shell);
        let start = escape(id.as_bytes());
        let db = sled::open(shell.path("data/db")).unwrap();
        let records = db.open_tree("records").unwrap();
        let (_, envelope) = records.iter().next().unwrap().unwrap();
        records.insert(&start[..], &envelope).unwrap();
        records.insert([&start[..], b"\xff"].concat(), &envelope).unwrap();
        records.insert([7; 40], &envelope).unwrap();
        db.flush().unwrap();
        drop((records, db));
        std::fs::write(shell.path("data/db/durable"), [0; 16]).unwrap();

        let list = shell.run("list acme", b"");
        assert_eq!(list.status.code(), Some(6));
        assert_eq!(list.stdout, b"name\n");
        let error = String::from_utf8(list.stderr).unwrap();
        assert!(
            error.contains("without a name: 2") && error.contains("org remove-nameless acme"),
            "{error}"
        );
        let export = shell.run("export acme --format jsonl", b"");
        assert_eq!(export.status.code(), Some(6));
        assert_eq!(export.stdout, b"{\"name\":\"name\",\"value\":\"value\"}\n");
        let dotenv = shell.run("export acme --format dotenv", b"");
        assert_eq!((dotenv.status.code(), dotenv.stdout.len()), (Some(6), 0));
        let verify = shell.run("verify", b"");
        let found = String::from_utf8(verify.stdout).unwrap();
        assert!(found.contains("2 records without a name"), "{found}");
        assert!(found.contains("1 record of no org"), "{found}");
        let (code, error) = shell.refused("key rotate acme", b"");
        assert!(code == 6 && error.contains("2 records do not open"), "{error}");
        assert_eq!(shell.fine("org remove-nameless acme"), "2 records removed\n");
        assert_eq!(shell.fine("org remove-nameless --no-org"), "1 record removed\n");
        assert_eq!(shell.fine("list acme"), "name\n");
        shell.fine("rotation wait acme");
        shell.fine("verify --deep");
        assert!(shell.fine("audit").contains("records of no org removed: 1"));
    }
}
