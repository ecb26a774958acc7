//! Many orgs in one store, and how its storage is set.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use byokv::{AuditEvent, Error, Options, OrgPolicy, PolicyChange, RetirePolicy};
use common::Place;

#[test]
fn many_orgs_are_made_in_one_change_or_not_at_all() {
    let place = Place::new();
    let store = place.open();
    let names: Vec<String> = (0..300).map(|i| format!("org{i}")).collect();
    let wanted = |names: &[String]| -> Vec<(String, OrgPolicy)> {
        names.iter().map(|name| (name.clone(), OrgPolicy::platform_only())).collect()
    };
    let create = |names: &[String]| {
        let wanted = wanted(names);
        let wanted: Vec<_> =
            wanted.iter().map(|(name, policy)| (&**name, policy.clone())).collect();
        store.create_orgs(&wanted)
    };
    let generation = || store.metrics().unwrap().keyring_generation;
    let before = generation();
    let twice = [&names[..], &names[7..8]].concat();
    assert!(matches!(create(&twice), Err(Error::OrgExists { org }) if org == "org7"));
    assert!(store.orgs().is_empty());
    assert_eq!(generation(), before);
    let orgs = create(&names).unwrap();
    assert_eq!(generation(), before + 1);
    for (org, name) in orgs.iter().zip(&names) {
        assert_eq!(org.name(), name);
        org.put("n", name).unwrap();
    }
    assert!(create(&[]).unwrap().is_empty());
    drop(orgs);
    store.close().unwrap();
    let store = place.open();
    assert_eq!(store.orgs().len(), 300);
    for name in &names {
        assert!(*store.org(name).unwrap().get("n").unwrap().unwrap() == *name.as_bytes());
    }
}

/// P14: U+202E, U+200B and U+FEFF in a name made two orgs look alike.
#[test]
fn names_that_look_like_others_are_refused_and_shown_escaped() {
    let place = Place::new();
    let store = place.open();
    let create = |name: &str| store.create_org(name, OrgPolicy::byok()).map(drop);
    create("acme").unwrap();
    let hidden = ["ac\u{200b}me", "\u{feff}acme", "acme\u{202e}", "ac\u{ad}me", "a\u{9b}31mcme"];
    for name in hidden.into_iter().chain(["\u{430}cme", "a  b"]) {
        assert!(matches!(create(name), Err(Error::InvalidOrgName { .. })), "{name:?}");
    }
    assert!(matches!(create("acrne"), Err(Error::OrgLooksAlike { other, .. }) if other == "acme"));
    assert_eq!(store.orgs().len(), 1);
    // What was asked for is never echoed as it came.
    let error = store.org("acme\u{1b}[2J\u{202e}\n").unwrap_err().to_string();
    assert!(error.contains(r"acme\u{1b}[2J\u{202e}\n"), "{error}");
    assert!(error.chars().all(byokv::text::is_visible), "{error}");
    let dir = place.dir.path().join("no\u{1b}[31mstore\u{9b}");
    let error = Options::new().create(false).open(dir, place.root_key()).unwrap_err().to_string();
    assert!(error.chars().all(byokv::text::is_visible), "{error}");
}

#[test]
fn a_store_keeps_the_segments_that_it_was_made_with() {
    let place = Place::new();
    let open = |bytes| Options::new().segment_bytes(bytes).open(place.data(), place.root_key());
    for bytes in [0, 32 << 10, 100_000, 16 << 20] {
        assert!(matches!(open(bytes), Err(Error::InvalidOption { option: "segment_bytes", .. })));
    }
    assert!(!place.data().exists());
    let conf = || {
        let conf = std::fs::read(place.data().join("db/conf")).unwrap();
        String::from_utf8_lossy(&conf).into_owned()
    };
    let store = open(1 << 20).unwrap();
    store.create_org("acme", OrgPolicy::byok()).unwrap().put("n", "v").unwrap();
    store.close().unwrap();
    assert!(conf().contains("segment_size: 1048576"));
    let store = open(2 << 20).unwrap();
    assert!(store.org("acme").unwrap().contains("n").unwrap());
    store.close().unwrap();
    assert!(conf().contains("segment_size: 1048576"));
}

/// Finding P11: the log said that something was changed, and not what.
#[test]
fn a_policy_says_before_and_after() {
    let place = Place::new();
    let store = place.open();
    store.create_org("acme", OrgPolicy::byok()).unwrap();
    let keys = store.keys();
    let hold = RetirePolicy::AfterHold(Duration::from_secs(60));
    let after = OrgPolicy::platform_only().with_retire(hold).with_rotation_after_records(9);
    let after = after.with_rotation_after_age(Duration::from_secs(86_400));
    let changes = keys.set_policy("acme", after.clone()).unwrap();
    assert_eq!(
        changes,
        [
            PolicyChange::Byok { before: true, after: false },
            PolicyChange::Retire { before: RetirePolicy::Immediate, after: hold },
            PolicyChange::RotationAfterAge {
                before: None,
                after: Some(Duration::from_secs(86_400))
            },
            PolicyChange::RotationAfterRecords { before: None, after: Some(9) },
        ]
    );
    let entry = keys.audit().last().unwrap().unwrap();
    assert_eq!(entry.event, AuditEvent::PolicyChanged { changes });
    let said = "policy changed (byok: yes -> no, retire: at once -> after a hold of 1m, rotate after \
                age: never -> 1 day, rotate after records: never -> 9)  org acme";
    assert!(entry.to_string().ends_with(said), "{entry}");
    assert!(keys.set_policy("acme", after).unwrap().is_empty());
    assert_eq!(keys.audit().last().unwrap().unwrap().number, entry.number, "nothing to note");
    let changes = keys.set_policy("acme", OrgPolicy::byok().with_rotation_after_bytes(7)).unwrap();
    assert_eq!(changes.len(), 5);
}
