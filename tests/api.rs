//! The agent's face, as an agent uses it, once per suite, with clear and with blinded names.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::ops::Bound;
use std::time::Duration;

use byokv::{Error, MAX_NAME_LEN, MAX_VALUE_LEN, NamePolicy, OrgPolicy, Suite, Swap};
use common::{Ended, Place, filled};

fn each_kind(test: impl Fn(byokv::Org, &byokv::Store)) {
    for suite in Suite::ALL {
        for names in [NamePolicy::Clear, NamePolicy::Blinded] {
            let place = Place::new();
            let store = place.open();
            let policy = OrgPolicy::byok().with_suite(suite).with_names(names);
            test(store.create_org("acme", policy).unwrap(), &store);
        }
    }
}

#[test]
fn put_get_contains_delete() {
    each_kind(|org, _| {
        assert!(org.get("a").unwrap().is_none());
        org.put("a", "").unwrap();
        assert_eq!(org.get("a").unwrap().as_deref(), Some(&b""[..]));
        org.put("a", "two").unwrap();
        assert!(org.contains("a").unwrap());
        org.durable().delete("a").unwrap();
        assert!(!org.contains("a").unwrap());
        org.delete("a").unwrap();
    });
}

#[test]
fn limits_are_errors_and_the_largest_fit() {
    each_kind(|org, store| {
        let name = vec![0xff; MAX_NAME_LEN];
        // The largest takes its time; values do not care for how names are stored.
        let names = store.keys().status("acme").unwrap().policy.names();
        let len = if names == NamePolicy::Clear { MAX_VALUE_LEN } else { 1000 };
        let value = vec![7; len];
        org.put(&name, &value).unwrap();
        assert!(org.get(&name).unwrap().unwrap() == value[..]);
        assert!(matches!(org.put("", "x"), Err(Error::NameLength { len: 0, .. })));
        assert!(matches!(org.get([&name[..], b"x"].concat()), Err(Error::NameLength { .. })));
        let over = vec![7; MAX_VALUE_LEN + 1];
        assert!(matches!(org.put("x", &over), Err(Error::ValueTooLarge { .. })));
        assert!(matches!(org.batch().put("x", &over).commit(), Err(Error::ValueTooLarge { .. })));
        let deep = "/".repeat(128);
        if names == NamePolicy::Blinded {
            let refused = [
                org.put(&deep, "x"),
                org.delete(&deep),
                org.get(&deep).map(drop),
                org.contains(&deep).map(drop),
                org.batch().put("x", "y").put(&deep, "x").commit(),
                org.compare_and_swap(&deep, None, None).map(drop),
            ];
            for refused in refused {
                let told = refused.unwrap_err().to_string();
                assert!(told.contains("at most 128") && told.contains("has 129"), "{told}");
            }
        }
        org.put(&deep[1..], "deep").unwrap();
        assert_eq!(org.scan(&deep[1..]).names().count(), 1);
        assert_eq!(org.count().unwrap(), 2);
    });
}

#[test]
fn compare_and_swap_compares_values() {
    each_kind(|org, store| {
        assert!(org.compare_and_swap("a", None, Some(b"1")).unwrap().is_swapped());
        match org.compare_and_swap("a", Some(b"0"), Some(b"2")).unwrap() {
            Swap::Conflict { current } => assert!(current.unwrap() == b"1"[..]),
            Swap::Swapped => panic!("swapped"),
        }
        store.keys().rotate_platform_key("acme").unwrap().ended();
        assert!(org.compare_and_swap("a", Some(b"1"), Some(b"2")).unwrap().is_swapped());
        assert!(org.compare_and_swap("a", Some(b"2"), None).unwrap().is_swapped());
        assert!(org.get("a").unwrap().is_none());
    });
}

#[test]
fn scans_go_both_ways_over_any_names() {
    each_kind(|org, store| {
        let other = store.create_org("umbra", OrgPolicy::byok()).unwrap();
        other.put("p/0", "foreign").unwrap();
        let names: [&[u8]; 6] = [b"p", b"p/a", b"p/a\xff\xff\xff\xff\xff", b"p/b", b"p0", b"\xff"];
        assert_eq!(org.scan("").count(), 0);
        for name in names {
            org.put(name, name).unwrap();
        }
        let found = |scan: byokv::Scan| {
            scan.map(|record| {
                let record = record.unwrap();
                assert!(record.value == record.name[..]);
                record.name
            })
            .collect::<Vec<_>>()
        };
        assert_eq!(found(org.scan("p/")), names[1..4]);
        assert_eq!(found(org.scan("")), names);
        assert_eq!(found(org.range("p/b".."\u{7f}")), names[3..5]);
        assert_eq!(found(org.range::<&str>(..)), names);
        let mut backwards: Vec<_> = org.scan("p/").rev().map(|r| r.unwrap().name).collect();
        backwards.reverse();
        assert_eq!(backwards, names[1..4]);
        assert_eq!(org.scan("p").names().count(), 5);
        assert_eq!(found(org.scan("p/a")), names[1..3]);
        assert_eq!(org.scan("p/a/").names().count(), 0);
        assert_eq!(org.scan("x/".repeat(200)).names().count(), 0);
        assert_eq!(found(org.range("p/a"..="p/b")), names[1..4]);
        let after = (Bound::Excluded("p"), Bound::Excluded("p/b"));
        assert_eq!(found(org.range::<&str>(after)), names[1..3]);
        // Taken from both ends.
        let mut ends = org.scan("");
        assert_eq!(ends.next().unwrap().unwrap().name, names[0]);
        assert_eq!(ends.next_back().unwrap().unwrap().name, names[5]);
        assert_eq!(found(ends), names[1..5]);
        // Deleted since its name was found.
        let mut rest = org.scan("p/");
        rest.next().unwrap().unwrap();
        org.delete("p/b").unwrap();
        assert_eq!(found(rest)[0], names[2]);
    });
}

#[test]
fn a_batch_is_all_or_nothing() {
    each_kind(|org, _| {
        org.put("old", "x").unwrap();
        org.batch().put("a", "1").put("a", "2").delete("old").commit().unwrap();
        assert!(org.get("a").unwrap().unwrap() == b"2"[..]);
        assert!(org.get("old").unwrap().is_none());
        assert!(org.batch().put("b", "1").put("", "2").commit().is_err());
        assert!(org.get("b").unwrap().is_none());
    });
}

#[test]
fn a_watch_tells_changes_and_no_rewrites() {
    each_kind(|org, store| {
        for i in 0..10 {
            org.put(format!("n{i}"), "v").unwrap();
        }
        let watch = org.watch("w/").unwrap();
        org.put("w/a", "1").unwrap();
        org.put("w/a", "2").unwrap();
        org.put("x", "1").unwrap();
        org.delete("w/b").unwrap();
        store.keys().rotate_platform_key("acme").unwrap().ended();
        let take = || watch.recv_timeout(Duration::from_millis(100)).unwrap();
        let change = take().unwrap();
        assert_eq!((change.name, change.value.as_deref()), (b"w/a".to_vec(), Some(&b"2"[..])));
        let change = take().unwrap();
        assert_eq!((change.name, change.value.is_none()), (b"w/b".to_vec(), true));
        assert!(take().is_none());
        drop(org.watch("w/").unwrap());
    });
}

#[test]
fn a_watch_ends_with_the_store() {
    let place = Place::new();
    let store = place.open();
    let watch = filled(&store, "acme", 1).watch("").unwrap();
    store.close().unwrap();
    assert!({ watch }.next().is_none());
}

#[test]
fn entitlement_origin_and_names_are_checked() {
    let place = Place::new();
    let store = place.open();
    let keys = store.keys();
    store.create_org("free", OrgPolicy::platform_only()).unwrap();
    let offered = common::material(&common::key_text());
    assert!(matches!(keys.provision("free", offered), Err(Error::NotEntitled { .. })));
    assert_eq!(keys.status("free").unwrap().versions.len(), 1);
    assert!(matches!(keys.return_to_platform_key("free"), Err(Error::KeyConflict { .. })));
    keys.set_policy("free", OrgPolicy::byok()).unwrap();
    let key = common::material(&common::key_text());
    keys.provision("free", key).unwrap().ended();
    assert!(matches!(keys.rotate_platform_key("free"), Err(Error::KeyConflict { .. })));
    keys.return_to_platform_key("free").unwrap().ended();
    assert!(matches!(store.org("none"), Err(Error::OrgUnknown { .. })));
    let again = store.create_org("free", OrgPolicy::byok());
    assert!(matches!(again, Err(Error::OrgExists { .. })));
}

#[test]
fn one_process_at_a_time() {
    let place = Place::new();
    let store = place.open();
    match place.try_open() {
        Err(Error::StoreLocked { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
        other => panic!("{other:?}"),
    }
    let org = store.create_org("acme", OrgPolicy::byok()).unwrap();
    store.close().unwrap();
    assert!(matches!(org.put("a", "b"), Err(Error::Closed)));
    drop(org);
    place.open();
}

/// A process that is being started has all our files, and so our locks, until it executes.
#[test]
#[cfg(unix)]
fn a_store_is_opened_again_while_other_threads_start_processes() {
    use std::sync::atomic::{AtomicBool, Ordering};

    let place = Place::new();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let mut command = std::process::Command::new("true");
                    // What runs before `exec` makes it a `fork`, and the moment longer.
                    #[allow(unsafe_code)]
                    // SAFETY: yields the processor, no more.
                    unsafe {
                        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
                            (0..100).for_each(|_| std::thread::yield_now());
                            Ok(())
                        })
                    };
                    command.status().unwrap();
                }
            });
        }
        let outcome = (0..20).try_for_each(|_| place.try_open()?.close());
        is_over.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
}
