//! Writers never come so far ahead of sled's log that all of sled stands still. `BYOKV_TORTURE=n`
//! makes it n × 20,000 batches.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use byokv::OrgPolicy;
use common::Place;

/// Few records, so that the log's file is shortened again and again, and batches as fast as they
/// go. Without a bound it stood still after 100,000 batches, in a minute of a release build.
#[test]
fn batches_in_a_row_never_stand_still() {
    const RECORDS: u64 = 2_000;
    const STANDSTILL: Duration = Duration::from_secs(60);

    let batches: u64 =
        std::env::var("BYOKV_TORTURE").map_or(1_000, |n| 20_000 * n.parse::<u64>().unwrap());
    let place = Place::new();
    let store = place.open();
    let (went, goes) = mpsc::channel();
    thread::spawn(move || {
        let org = store.create_org("acme", OrgPolicy::platform_only()).unwrap();
        for number in 0..batches {
            let mut batch = org.batch();
            for i in 0..16 {
                let mut value = [7; 1024];
                value[..8].copy_from_slice(&number.to_be_bytes());
                let name = (number * 16 + i) * 7919 % RECORDS;
                batch = batch.put(format!("clusters/{name:04}"), value);
            }
            batch.commit().unwrap();
            went.send(()).unwrap();
        }
        drop(org);
        store.close().unwrap();
    });
    for number in 0..batches {
        assert_eq!(goes.recv_timeout(STANDSTILL), Ok(()), "batch {number} of {batches}");
    }
    let closed = goes.recv_timeout(STANDSTILL);
    assert_eq!(closed, Err(RecvTimeoutError::Disconnected), "it does not close");
    println!("torture: {batches} batches of 16 in a row: sled stood still after none");
}
