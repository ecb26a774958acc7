//! Rotations as an operator meets them: several at once, paused, throttled, waiting, under load.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use byokv::{Error, KeyState, Options, Phase, Rotation, Store, Throttle, failpoint};
use common::{Ended, Place, check_filled, filled, key_text, material};

const SOON: Duration = Duration::from_secs(30);

/// Waits until the rotation is as `wanted`, on its own changes.
fn until(rotation: &Rotation, wanted: impl Fn(&byokv::Progress) -> bool) {
    let start = Instant::now();
    while !wanted(&rotation.progress()) {
        assert!(start.elapsed() < SOON, "{}", rotation.progress());
        let _ = rotation.wait_timeout(Duration::from_millis(5));
    }
}

fn slow(place: &Place, records_per_second: u32) -> Store {
    let throttle = Throttle::unlimited().with_records_per_second(records_per_second).unwrap();
    Options::new().throttle(throttle).open(place.data(), place.root_key()).unwrap()
}

/// Threads that write, swap and delete while three rotations run: nothing lost, nothing
/// resurrected, no error. Invariants 2 to 6 together.
#[test]
fn writers_go_on_through_three_rotations() {
    const THREADS: usize = 4;
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 2000);
    let stop = AtomicBool::new(false);
    let models = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (org, stop) = (org.clone(), &stop);
                scope.spawn(move || {
                    let mut model = BTreeMap::new();
                    let mut state = thread as u64 + 1;
                    while !stop.load(Ordering::Relaxed) {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let name = format!("w{thread}/{}", (state >> 33) % 200);
                        let value = format!("{state}");
                        let held: Option<String> = model.get(&name).cloned();
                        match (state >> 50) % 4 {
                            0 => {
                                org.delete(&name).unwrap();
                                model.remove(&name);
                            }
                            1 => {
                                let (old, new) =
                                    (held.as_ref().map(String::as_bytes), value.as_bytes());
                                let swap = org.compare_and_swap(&name, old, Some(new)).unwrap();
                                assert!(swap.is_swapped(), "nobody else writes this name");
                                model.insert(name, value);
                            }
                            2 => {
                                org.put(&name, &value).unwrap();
                                model.insert(name, value);
                            }
                            _ => {
                                let found = org.get(&name).unwrap();
                                assert_eq!(found.as_deref(), held.as_ref().map(String::as_bytes));
                            }
                        }
                    }
                    model
                })
            })
            .collect();
        for _ in 0..3 {
            let rotation = store.keys().provision("acme", material(&key_text())).unwrap();
            rotation.wait_timeout(SOON).unwrap().expect("ends under load");
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
    });
    let mut found = BTreeMap::new();
    for record in org.scan("w") {
        let record = record.unwrap();
        found.insert(String::from_utf8(record.name).unwrap(), record.value.to_vec());
    }
    let expected: BTreeMap<_, _> =
        models.into_iter().flatten().map(|(name, value)| (name, value.into_bytes())).collect();
    assert!(found == expected);
    let versions = store.keys().census("acme").unwrap().by_version;
    assert_eq!(versions.keys().map(|v| v.get()).collect::<Vec<_>>(), [4]);
}

/// A small org's rotation ends while a big one's is under way.
#[test]
fn a_big_org_starves_no_small_one() {
    let place = Place::new();
    let store = slow(&place, 2000);
    filled(&store, "big", 20_000);
    filled(&store, "small", 100);
    let big = store.keys().rotate_platform_key("big").unwrap();
    until(&big, |progress| progress.phase == Phase::Rewriting);
    let small = store.keys().rotate_platform_key("small").unwrap();
    small.wait_timeout(SOON).unwrap().expect("the small one ends");
    assert_ne!(big.progress().phase, Phase::Done);
    assert_eq!(store.keys().rotations().unwrap().len(), 1);
    store.keys().set_throttle(Throttle::unlimited()).unwrap();
    big.ended();
    check_filled(&store.org("big").unwrap(), 20_000);
}

#[test]
fn a_paused_rotation_rests_until_it_is_resumed() {
    let place = Place::new();
    let store = slow(&place, 500);
    let org = filled(&store, "acme", 2000);
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    until(&rotation, |progress| progress.rewritten > 0);
    rotation.pause().unwrap();
    until(&rotation, |progress| progress.paused);
    store.keys().set_throttle(Throttle::unlimited()).unwrap();
    let rested = rotation.progress();
    assert!(rotation.wait_timeout(Duration::from_millis(300)).unwrap().is_none());
    // Chunks in hand may still come back, each of a tenth of a second's records.
    assert!(rotation.progress().scanned <= rested.scanned + 8 * 50, "{}", rotation.progress());
    assert!(rotation.progress().to_string().contains("(paused)"));
    org.put("new", "written meanwhile").unwrap();
    rotation.resume().unwrap();
    let certificate = rotation.wait_timeout(SOON).unwrap().unwrap();
    assert!(certificate.records_rewritten >= 2000, "{certificate}");
}

#[test]
fn a_ceiling_holds_and_can_be_lifted() {
    let place = Place::new();
    let store = slow(&place, 200);
    filled(&store, "acme", 1000);
    let start = Instant::now();
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    until(&rotation, |progress| progress.scanned >= 100);
    // 100 records at 200 a second; the first chunks of 20 for each thread come at once.
    assert!(start.elapsed() > Duration::from_millis(150), "{:?}", start.elapsed());
    until(&rotation, |progress| progress.time_left.is_some());
    store.keys().set_throttle(Throttle::unlimited()).unwrap();
    rotation.wait_timeout(Duration::from_secs(3)).unwrap().expect("at full speed");
}

/// While a key is suspended the rotation waits and says why; given back, it goes on by itself.
#[test]
fn a_rotation_waits_for_a_suspended_key() {
    let place = Place::new();
    let store = slow(&place, 500);
    let org = filled(&store, "acme", 1000);
    let (one, two) = (key_text(), key_text());
    store.keys().set_throttle(Throttle::unlimited()).unwrap();
    store.keys().provision("acme", material(&one)).unwrap().ended();
    store.keys().set_throttle(Throttle::unlimited().with_records_per_second(500).unwrap()).unwrap();
    let rotation = store.keys().provision("acme", material(&two)).unwrap();
    until(&rotation, |progress| progress.rewritten > 0);
    assert_eq!(store.keys().suspend("acme").unwrap().len(), 2);
    store.keys().set_throttle(Throttle::unlimited()).unwrap();
    until(&rotation, |progress| progress.phase == Phase::Waiting);
    let reason = rotation.progress().reason.unwrap();
    assert!(reason.contains("suspended"), "{reason}");
    assert!(matches!(org.get("n00000"), Err(Error::KeySuspended { .. })));
    let offered = store.keys().provision("acme", material(&key_text()));
    assert!(matches!(offered, Err(Error::KeyConflict { .. })), "{offered:?}");
    store.keys().resume("acme", material(&two)).unwrap();
    store.keys().resume("acme", material(&one)).unwrap();
    rotation.wait_timeout(SOON).unwrap().expect("goes on by itself");
    check_filled(&org, 1000);
}

/// A panic in the worker stops one org's rotation, keeps the old key, and stops nobody else.
#[test]
fn a_bug_stops_one_rotation() {
    let place = Place::new();
    let store = slow(&place, 1);
    let org = filled(&store, "buggy", 50);
    filled(&store, "fine", 50);
    let rotation = store.keys().rotate_platform_key("buggy").unwrap();
    rotation.pause().unwrap();
    store.keys().set_throttle(Throttle::unlimited()).unwrap();
    // On one of the threads, then on the one that hands out the work.
    for point in ["rewrite.sealed", "rewrite.passed"] {
        let hook = failpoint::on(point, "buggy", || panic!("on purpose"));
        rotation.resume().unwrap();
        match rotation.wait_timeout(SOON) {
            Err(Error::Bug { org }) => assert_eq!(org, "buggy"),
            other => panic!("{other:?}"),
        }
        store.keys().rotate_platform_key("fine").unwrap().ended();
        assert_eq!(store.keys().status("buggy").unwrap().versions[0].state, KeyState::DecryptOnly);
        check_filled(&org, 50);
        drop(hook);
    }
    rotation.resume().unwrap();
    rotation.ended();
}

#[test]
fn metrics_tell_what_was_sealed_opened_failed_and_is_stale() {
    let place = Place::new();
    let store = slow(&place, 200);
    let org = filled(&store, "acme", 1000);
    org.get("n00000").unwrap();
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    until(&rotation, |progress| progress.total.is_some() && progress.rewritten > 0);
    let metrics = store.metrics().unwrap();
    let acme = &metrics.orgs["acme"];
    let one = acme.versions.values().next().unwrap();
    assert_eq!((one.sealed, one.state), (1000, KeyState::DecryptOnly));
    assert!(one.opened > 1 && one.failed == 0);
    assert!(acme.stale.is_some_and(|stale| stale > 0 && stale < 1000), "{acme:?}");
    assert_eq!(acme.rotation.as_deref(), Some("rewriting"));
    assert!(metrics.bytes_on_disk > 0 && metrics.keyring_generation >= 3 && metrics.syncs > 0);
    store.keys().set_throttle(Throttle::unlimited()).unwrap();
    rotation.ended();
    let acme = store.metrics().unwrap().orgs.remove("acme").unwrap();
    assert_eq!((acme.stale, acme.rotation), (Some(0), None));
    assert_eq!(acme.versions.values().last().unwrap().sealed, 1000);
}

/// Found in review: while one org was counted, with another at rest, nothing else was obeyed.
#[test]
fn a_pause_is_obeyed_while_headers_are_counted() {
    let place = Place::new();
    let store = place.open();
    filled(&store, "resting", 10);
    let org = filled(&store, "counted", 20_000);
    let resting = store.keys().rotate_platform_key("resting").unwrap();
    resting.pause().unwrap();
    let keys = store.keys();
    let (counted, paused) = (org.clone(), std::sync::Once::new());
    // Between the pass and the count.
    let hook = failpoint::on("rewrite.passed", "counted", move || {
        drop(counted.put("late", "x"));
        paused.call_once(|| keys.rotation("counted").unwrap().unwrap().pause().unwrap());
    });
    let rotation = store.keys().rotate_platform_key("counted").unwrap();
    until(&rotation, |progress| progress.phase == Phase::Verifying && progress.paused);
    let ended = rotation.wait_timeout(Duration::from_millis(500)).unwrap();
    assert!(ended.is_none(), "ended although it was paused");
    rotation.resume().unwrap();
    rotation.ended();
    drop(hook);
}

/// Found in review: the pass that followed had been made before the first key was retired, retired
/// it again, was refused, and all was done once more.
#[test]
fn a_rotation_that_is_overtaken_takes_one_pass_more() {
    let place = Place::new();
    let store = place.open();
    filled(&store, "acme", 500);
    let passes = Arc::new(AtomicU32::new(0));
    let (keys, counted) = (store.keys(), passes.clone());
    let hook = failpoint::on("rewrite.passed", "acme", move || {
        if counted.fetch_add(1, Ordering::Relaxed) == 0 {
            keys.rotate_platform_key("acme").unwrap();
        }
    });
    store.keys().rotate_platform_key("acme").unwrap().wait().unwrap();
    // What came in between may not have ended with it.
    if let Some(second) = store.keys().rotation("acme").unwrap() {
        second.ended();
    }
    assert_eq!(passes.load(Ordering::Relaxed), 2);
    drop(hook);
}

/// However much there is to delete, and though another org rests.
#[test]
fn commands_are_obeyed_while_an_org_is_erased() {
    let place = Place::new();
    let store = place.open();
    filled(&store, "resting", 10);
    filled(&store, "doomed", 6000);
    // What is paused once it has ended keeps the next one waiting, from its begin.
    let ended = store.keys().rotate_platform_key("resting").unwrap();
    ended.wait().unwrap();
    ended.pause().unwrap();
    let resting = store.keys().rotate_platform_key("resting").unwrap();
    until(&resting, |progress| progress.paused && progress.phase == Phase::Queued);
    let (seen, told) = std::sync::mpsc::channel();
    let steps = AtomicU32::new(0);
    let hook = failpoint::on("erase.deleted", "doomed", move || {
        match steps.fetch_add(1, Ordering::Relaxed) {
            0 => resting.resume().unwrap(),
            5 => seen.send(resting.progress().phase).unwrap(),
            _ => {}
        }
    });
    store.keys().erase_org("doomed").unwrap().wait().unwrap();
    assert_ne!(told.recv().unwrap(), Phase::Queued, "it was resumed five steps ago");
    drop(hook);
    if let Some(rotation) = store.keys().rotation("resting").unwrap() {
        rotation.ended();
    }
}

/// A clean close in the middle loses no count.
#[test]
fn the_certificate_counts_over_clean_closes() {
    let place = Place::new();
    let store = slow(&place, 2000);
    drop(filled(&store, "acme", 3000));
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    until(&rotation, |progress| progress.rewritten > 500);
    drop(rotation);
    store.close().unwrap();
    let store = slow(&place, 1500);
    let rotation = store.keys().rotation("acme").unwrap().unwrap();
    assert_eq!(rotation.ended().records_rewritten, 3000);
}

/// A new rotation does not show the end of the one before.
#[test]
fn a_new_rotation_starts_its_progress_anew() {
    let place = Place::new();
    let store = slow(&place, 100);
    store.keys().set_throttle(Throttle::unlimited()).unwrap();
    filled(&store, "acme", 500);
    store.keys().rotate_platform_key("acme").unwrap().ended();
    store.keys().set_throttle(Throttle::unlimited().with_records_per_second(50).unwrap()).unwrap();
    let second = store.keys().rotate_platform_key("acme").unwrap();
    assert_ne!(second.progress().phase, Phase::Done);
    assert_ne!(store.metrics().unwrap().orgs["acme"].stale, Some(0));
    store.keys().set_throttle(Throttle::unlimited()).unwrap();
    assert_eq!(second.ended().records_rewritten, 500);
}

/// What an operator has set holds over a restart.
#[test]
fn a_pause_and_a_throttle_survive_a_restart() {
    let place = Place::new();
    let store = slow(&place, 1000);
    drop(filled(&store, "acme", 2000));
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    rotation.pause().unwrap();
    let gentle = Throttle::unlimited().with_share_of_time(0.5).unwrap();
    store.keys().set_throttle(gentle.clone()).unwrap();
    drop(rotation);
    store.close().unwrap();
    let store = place.open();
    assert_eq!(store.keys().throttle(), gentle);
    let rotation = store.keys().rotation("acme").unwrap().unwrap();
    assert!(rotation.wait_timeout(Duration::from_millis(300)).unwrap().is_none());
    assert!(rotation.progress().paused);
    rotation.resume().unwrap();
    rotation.ended();
}

/// What it is opened with holds for that time only, whatever an operator sets besides.
#[test]
fn a_throttle_of_the_options_is_not_kept() {
    let place = Place::new();
    let store = slow(&place, 1000);
    drop(filled(&store, "acme", 2000));
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    rotation.pause().unwrap();
    assert_ne!(store.keys().throttle(), Throttle::unlimited());
    drop(rotation);
    store.close().unwrap();
    let store = place.open();
    assert_eq!(store.keys().throttle(), Throttle::unlimited());
    let rotation = store.keys().rotation("acme").unwrap().unwrap();
    rotation.resume().unwrap();
    rotation.ended();
}

/// A rotation that cannot retire does not go over the records again and again at full speed.
#[test]
fn a_rotation_in_vain_waits_longer_and_longer() {
    let place = Place::new();
    let store = place.open();
    drop(filled(&store, "vain", 50));
    let keys = store.keys();
    keys.provision("vain", material(&key_text())).unwrap().ended();
    let manual = byokv::OrgPolicy::byok().with_retire(byokv::RetirePolicy::Manual);
    keys.set_policy("vain", manual).unwrap();
    let rotation = keys.return_to_platform_key("vain").unwrap();
    until(&rotation, |progress| progress.phase == Phase::Held);
    let passes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counting = Arc::clone(&passes);
    let _hook = failpoint::on("rewrite.passed", "vain", move || {
        counting.fetch_add(1, Ordering::Relaxed);
    });
    let start = Instant::now();
    keys.suspend("vain").unwrap();
    rotation.resume().unwrap();
    // One or two passes at once, then after 100 ms, 200, 400, 800: the sixth comes after 1.5 s.
    while passes.load(Ordering::Relaxed) < 6 {
        assert!(start.elapsed() < SOON, "{}", rotation.progress());
        let _ = rotation.wait_timeout(Duration::from_millis(5));
    }
    assert!(start.elapsed() > Duration::from_millis(1400), "{:?}", start.elapsed());
}
