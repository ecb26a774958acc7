//! Scans that open their records ahead, on threads of their own.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use byokv::{Error, OrgPolicy, Record, Result};
use common::{Place, blinded, filled, tamper};

const RECORDS: usize = 700;

fn pairs(records: impl Iterator<Item = Result<Record>>) -> Vec<(Vec<u8>, Vec<u8>)> {
    records.map(|record| record.map(|r| (r.name, r.value.to_vec())).unwrap()).collect()
}

#[test]
fn a_parallel_scan_gives_what_a_scan_gives_in_the_same_order() {
    let place = Place::new();
    let store = place.open();
    for policy in [OrgPolicy::byok(), blinded()] {
        let org = store.create_org(&format!("{:?}", policy.names()), policy).unwrap();
        for i in 0..RECORDS {
            // Some larger than a batch.
            let len = if i % 50 == 0 { 300_000 } else { i % 40 };
            org.put(format!("n{i:05}"), vec![1; len]).unwrap();
        }
        for threads in [1, 3, 8] {
            assert_eq!(pairs(org.scan("").parallel(threads).unwrap()), pairs(org.scan("")));
        }
        let part = || org.scan("n000");
        assert_eq!(pairs(part().parallel(2).unwrap()), pairs(part()));
        assert_eq!(org.scan("x").parallel(2).unwrap().count(), 0);
    }
}

#[test]
fn it_may_be_dropped_at_any_record_and_ends_once() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", RECORDS);
    for taken in [0, 1, 64, 65, 300, RECORDS] {
        let mut scan = org.scan("").parallel(4).unwrap();
        assert_eq!(scan.by_ref().take(taken).filter(Result::is_ok).count(), taken);
        if taken == RECORDS {
            assert!(scan.next().is_none() && scan.next().is_none());
        }
    }
    for threads in [0, 65] {
        let refused = org.scan("").parallel(threads);
        assert!(matches!(refused, Err(Error::InvalidOption { option: "threads", .. })));
    }
}

#[test]
fn an_error_stands_in_its_place() {
    let place = Place::new();
    let store = place.open();
    let id = filled(&store, "acme", RECORDS).id();
    store.close().unwrap();
    tamper(&place, "records", |tree| {
        let key = common::escape(&[id.as_bytes(), &b"n00123"[..]].concat());
        let mut value = tree.get(&key).unwrap().unwrap().to_vec();
        value[50] ^= 1;
        tree.insert(key, value).unwrap();
    });
    let store = place.open();
    let scan = store.org("acme").unwrap().scan("").parallel(4).unwrap();
    let bad: Vec<_> = scan.enumerate().filter(|(_, record)| record.is_err()).collect();
    assert_eq!(bad.len(), 1);
    assert_eq!(bad[0].0, 123);
    assert!(matches!(bad[0].1, Err(Error::RecordDamaged { .. })));
}

#[test]
fn after_the_store_is_closed_it_says_so() {
    let place = Place::new();
    let store = place.open();
    // More than two threads can be ahead.
    let org = filled(&store, "acme", 3000);
    let mut scan = org.scan("").parallel(2).unwrap();
    assert!(scan.next().unwrap().is_ok());
    store.close().unwrap();
    let left: Vec<_> = scan.collect();
    assert!(matches!(left.last(), Some(Err(Error::Closed))));
}
