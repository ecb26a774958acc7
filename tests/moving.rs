//! Blinded names move to the place of the new key: the invariants while they do.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use byokv::{KeyState, Org, Suite, Swap, Throttle, failpoint};
use common::{
    Ended, Held, Place, all_under, blinded, check_filled, filled_blinded, key_text, material,
    states,
};

const SOON: Duration = Duration::from_secs(20);

/// 9: names are found again after a restart, and a rotation goes on.
#[test]
fn a_rotation_moves_names_and_goes_on_at_the_next_open() {
    let place = Place::new();
    let store = place.open();
    drop(filled_blinded(&store, "acme", 1000));
    let slow = Throttle::unlimited().with_records_per_second(100).unwrap();
    store.keys().set_throttle(slow).unwrap();
    let rotation = store.keys().provision("acme", material(&key_text())).unwrap();
    while rotation.progress().rewritten < 20 {
        std::thread::yield_now();
    }
    let org = store.org("acme").unwrap();
    assert_eq!(store.keys().census("acme").unwrap().by_name_version.len(), 2);
    check_filled(&org, 1000);
    assert_eq!(org.scan("").map(|r| r.unwrap().value.len()).filter(|len| *len > 1).count(), 1000);
    store.close().unwrap();
    drop((rotation, org));
    let store = place.open();
    store.keys().set_throttle(Throttle::unlimited()).unwrap();
    let certificate = store.keys().rotation("acme").unwrap().unwrap().ended();
    assert_eq!((certificate.records_rewritten, certificate.records_verified), (1000, 1000));
    all_under(&store, "acme", 2, 1000);
    let org = store.org("acme").unwrap();
    check_filled(&org, 1000);
    let suite = store.keys().change_suite("acme", Suite::XChaCha20Poly1305).unwrap().ended();
    assert_eq!((suite.records_rewritten, suite.records_verified), (1000, 1000));
    all_under(&store, "acme", 2, 1000);
    check_filled(&org, 1000);
}

/// 3 and 4: a writer held between choosing its place and its insert holds up activation.
#[test]
fn a_writer_inside_is_waited_for() {
    let place = Place::new();
    let store = place.open();
    let org = filled_blinded(&store, "blinded-writer", 50);
    let mut held = Held::at("put.sealed", "blinded-writer");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| org.put("late", "written under v1"));
        held.wait();
        let (done, rotated) = mpsc::channel();
        let keys = store.keys();
        scope.spawn(move || {
            let rotation = keys.provision("blinded-writer", material(&key_text())).unwrap();
            done.send(rotation.wait()).unwrap();
        });
        assert!(rotated.recv_timeout(Duration::from_millis(300)).is_err(), "did not wait");
        assert_eq!(org.get("n00001").unwrap().as_deref(), Some(&b"v1"[..]), "readers go on");
        assert!(org.get("late").unwrap().is_none());
        held.let_go();
        writer.join().unwrap().unwrap();
        assert_eq!(rotated.recv_timeout(SOON).unwrap().unwrap().records_rewritten, 51);
    });
    assert_eq!(org.get("late").unwrap().as_deref(), Some(&b"written under v1"[..]));
    all_under(&store, "blinded-writer", 2, 51);
}

/// 5: what comes between the rewrite's seal and its move wins, and is not moved over.
#[test]
fn a_rewrite_loses_to_writes_deletes_swaps_and_batches() {
    type Race = (&'static str, fn(&Org), Option<&'static str>);
    let races: [Race; 5] = [
        ("put", |org| org.put("n00000", "newer").unwrap(), Some("newer")),
        ("delete", |org| org.delete("n00000").unwrap(), None),
        ("batch", |org| org.batch().put("n00000", "b").put("x", "").commit().unwrap(), Some("b")),
        (
            "swap",
            |org| {
                let swap = org.compare_and_swap("n00000", Some(b"v0"), Some(b"s")).unwrap();
                assert!(swap.is_swapped());
            },
            Some("s"),
        ),
        (
            "again",
            |org| {
                org.delete("n00000").unwrap();
                org.put("n00000", "v0").unwrap();
            },
            Some("v0"),
        ),
    ];
    for (name, race, expected) in races {
        let place = Place::new();
        let store = place.open();
        let org = filled_blinded(&store, name, 1);
        let racing = org.clone();
        let once = Mutex::new(Some(()));
        // The worker is inside the gate here, as another writer may be.
        let hook = failpoint::on("rewrite.sealed", name, move || {
            if once.lock().unwrap().take().is_some() {
                race(&racing);
            }
        });
        store.keys().rotate_platform_key(name).unwrap().ended();
        drop(hook);
        let found = org.get("n00000").unwrap();
        assert_eq!(found.as_deref(), expected.map(str::as_bytes), "{name}");
        let records = u64::from(expected.is_some()) + u64::from(name == "batch");
        assert_eq!(org.count().unwrap(), records, "{name}");
        let census = store.keys().census(name).unwrap();
        assert!(census.by_name_version.keys().all(|version| version.get() == 2), "{name}");
    }
}

/// While two versions live: every kind of write leaves one record, under the new version.
#[test]
fn writes_during_a_rotation_leave_nothing_behind() {
    let place = Place::new();
    let store = place.open();
    let org = filled_blinded(&store, "acme", 6);
    let slow = Throttle::unlimited().with_records_per_second(1).unwrap();
    store.keys().set_throttle(slow).unwrap();
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    rotation.pause().unwrap();
    org.put("n00000", "w0").unwrap();
    org.delete("n00001").unwrap();
    org.batch().put("n00002", "w2").delete("n00003").put("new", "w").commit().unwrap();
    match org.compare_and_swap("n00004", Some(b"other"), Some(b"w4")).unwrap() {
        Swap::Conflict { current } => assert!(current.unwrap() == b"v4"[..]),
        Swap::Swapped => panic!("swapped"),
    }
    assert!(org.compare_and_swap("n00004", Some(b"v4"), Some(b"w4")).unwrap().is_swapped());
    assert!(org.compare_and_swap("n00005", None, Some(b"")).is_ok_and(|swap| !swap.is_swapped()));
    assert!(org.compare_and_swap("n00005", Some(b"v5"), None).unwrap().is_swapped());
    let expected = ["n00000 w0", "n00002 w2", "n00004 w4", "new w"];
    let found = |org: &Org| {
        let record = |record: byokv::Record| {
            let name = String::from_utf8(record.name).unwrap();
            format!("{name} {}", record.value.as_str().unwrap())
        };
        org.scan("").map(|found| record(found.unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(found(&org), expected);
    for gone in ["n00001", "n00003", "n00005"] {
        assert!(org.get(gone).unwrap().is_none() && !org.contains(gone).unwrap(), "{gone}");
    }
    store.keys().set_throttle(Throttle::unlimited()).unwrap();
    rotation.resume().unwrap();
    rotation.ended();
    assert_eq!(found(&org), expected);
    all_under(&store, "acme", 2, 4);
}

/// 6: a reader that looked under the new version before the record came there, and looks under
/// the old one after it left.
#[test]
fn a_reader_between_two_places_finds_the_record() {
    let place = Place::new();
    let store = place.open();
    let org = filled_blinded(&store, "between", 30);
    let before = Held::at("rewrite.sealed", "between");
    let rotation = store.keys().rotate_platform_key("between").unwrap();
    before.wait();
    let mut reading = Held::at("names.looked", "between");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| (org.get("n00007"), org.contains("n00007")));
        reading.wait();
        drop(before);
        rotation.wait_timeout(SOON).unwrap().unwrap();
        assert_eq!(states(&store, "between"), [KeyState::Retired, KeyState::Active]);
        reading.let_go();
        let (value, contained) = reader.join().unwrap();
        assert_eq!(value.unwrap().as_deref(), Some(&b"v7"[..]));
        assert!(contained.unwrap());
    });
}

/// 6: a write brings the record to the new place behind a reader who looked there already, and no
/// key changes meanwhile.
#[test]
fn a_write_that_passes_a_reader_is_found() {
    let place = Place::new();
    let store = place.open();
    let org = filled_blinded(&store, "passed", 30);
    // A pause outlives the rotation that it was asked of, so nothing moves by itself.
    let ended = store.keys().rotate_platform_key("passed").unwrap();
    ended.ended();
    ended.pause().unwrap();
    store.keys().rotate_platform_key("passed").unwrap();
    let mut reading = Held::at("names.looked", "passed");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| org.get("n00007"));
        reading.wait();
        org.put("n00007", "new").unwrap();
        reading.let_go();
        assert_eq!(reader.join().unwrap().unwrap().as_deref(), Some(&b"new"[..]));
    });
}

/// 6, with a snapshot from before the rotation, which does not know where the record is now; and
/// with bytes from before it.
#[test]
fn a_reader_with_an_old_snapshot_looks_again() {
    for point in ["get.started", "get.fetched"] {
        let place = Place::new();
        let store = place.open();
        let name = format!("old-{point}");
        let org = filled_blinded(&store, &name, 30);
        let mut reading = Held::at(point, &name);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| org.get("n00007"));
            reading.wait();
            store.keys().provision(&name, material(&key_text())).unwrap().ended();
            store.keys().provision(&name, material(&key_text())).unwrap().ended();
            reading.let_go();
            assert_eq!(reader.join().unwrap().unwrap().as_deref(), Some(&b"v7"[..]), "{point}");
        });
    }
}

/// Scans that are taken while everything moves meet every record once.
#[test]
fn scans_during_rotations_miss_nothing() {
    let place = Place::new();
    let store = place.open();
    let org = store.create_org("acme", blinded()).unwrap();
    for i in 0..300 {
        org.put(format!("a/{}/n{i:03}", i % 3), "v").unwrap();
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let scanner = scope.spawn(|| {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) || rounds < 3 {
                rounds += 1;
                assert_eq!(org.scan("").names().map(Result::unwrap).count(), 300);
                let under: Vec<_> = org.scan("a/1/n").rev().map(|r| r.unwrap().name).collect();
                assert_eq!(under.len(), 100);
                assert!(under.is_sorted_by(|a, b| a > b));
            }
        });
        for _ in 0..5 {
            store.keys().rotate_platform_key("acme").unwrap().ended();
        }
        stop.store(true, Ordering::Relaxed);
        scanner.join().unwrap();
    });
    all_under(&store, "acme", 6, 300);
}

/// 4 threads on few names against a model of each name, under rotation after rotation.
#[test]
fn writers_and_rotations_together_lose_nothing() {
    const THREADS: u32 = 4;
    const NAMES: usize = 8;
    let rounds: u32 =
        std::env::var("BYOKV_TORTURE").map_or(400, |n| 400 * n.parse::<u32>().unwrap());
    let place = Place::new();
    let store = place.open();
    let org = store.create_org("acme", blinded()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let org = org.clone();
                scope.spawn(move || {
                    // Each thread has names of its own, which lie beside those of the others.
                    let mut model: Vec<Option<Vec<u8>>> = vec![None; NAMES];
                    let name = |i: usize| format!("s/{i}/{thread}");
                    for round in 0..rounds {
                        let i = ((round * 7 + thread) % 8) as usize;
                        let value = format!("{thread}-{round}").into_bytes();
                        let found = org.get(name(i)).unwrap().map(|value| value.to_vec());
                        assert_eq!(found, model[i], "{} in round {round}", name(i));
                        match round % 5 {
                            0 | 1 => {
                                org.put(name(i), &value).unwrap();
                                model[i] = Some(value);
                            }
                            2 => {
                                org.delete(name(i)).unwrap();
                                model[i] = None;
                            }
                            3 => {
                                let old = model[i].clone();
                                let swap =
                                    org.compare_and_swap(name(i), old.as_deref(), Some(&value));
                                assert!(swap.unwrap().is_swapped());
                                model[i] = Some(value);
                            }
                            _ => {
                                let j = (i + 1) % NAMES;
                                org.batch().put(name(i), &value).delete(name(j)).commit().unwrap();
                                model[i] = Some(value);
                                model[j] = None;
                            }
                        }
                        if round % 50 == 0 {
                            // All threads, one counter: nobody's step is lost.
                            loop {
                                let old = org.get("s/count").unwrap();
                                let count: u32 = old
                                    .as_ref()
                                    .map_or(0, |value| value.as_str().unwrap().parse().unwrap());
                                let next = (count + 1).to_string();
                                let swap = org.compare_and_swap(
                                    "s/count",
                                    old.as_deref(),
                                    Some(next.as_bytes()),
                                );
                                if swap.unwrap().is_swapped() {
                                    break;
                                }
                            }
                        }
                    }
                    model
                })
            })
            .collect();
        let rotating = scope.spawn(|| {
            let mut rotations = 0;
            while !done.load(Ordering::Relaxed) {
                store.keys().rotate_platform_key("acme").unwrap().ended();
                rotations += 1;
            }
            rotations
        });
        let models: Vec<_> = writers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        assert!(rotating.join().unwrap() > 0);
        for (thread, model) in models.into_iter().enumerate() {
            for (i, expected) in model.unwrap().into_iter().enumerate() {
                let found = org.get(format!("s/{i}/{thread}")).unwrap();
                assert_eq!(found.map(|value| value.to_vec()), expected, "s/{i}/{thread}");
            }
        }
    });
    let steps = THREADS * rounds.div_ceil(50);
    assert_eq!(org.get("s/count").unwrap().unwrap().as_str().unwrap(), steps.to_string());
    let census = store.keys().census("acme").unwrap();
    assert_eq!(census.by_name_version.len(), 1);
    assert_eq!(census.by_name_version, census.by_version);
}
