//! A store lets go even where sled never closes. Alone in its process: what it defers may be run by
//! every thread.

#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::Place;

/// sled waits for its own thread, which is gone after a panic, as where it meets a page whose file
/// is missing.
#[test]
fn a_store_lets_go_though_sleds_own_thread_has_panicked() {
    const LONGEST: Duration = Duration::from_secs(60);
    /// Between two times at which sled's thread comes by.
    const SYNCS: Duration = Duration::from_millis(500);

    let place = Place::new();
    let store = place.open();
    let org = common::filled(&store, "acme", 20);
    org.durable().put("kept", "v").unwrap();
    let gone = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    while !gone.load(Ordering::Acquire) {
        assert!(start.elapsed() < LONGEST, "sled's thread did not come by");
        // Many, for who else comes by takes some; then a write for the thread to flush.
        let guard = crossbeam_epoch::pin();
        for _ in 0..4096 {
            let gone = Arc::clone(&gone);
            guard.defer(move || {
                let is_sleds = std::thread::current().name() == Some("log flusher");
                assert!(!is_sleds || gone.swap(true, Ordering::AcqRel), "on purpose");
            });
        }
        guard.flush();
        drop(guard);
        org.put("n", start.elapsed().as_nanos().to_string()).unwrap();
        let since = Instant::now();
        while since.elapsed() < SYNCS && !gone.load(Ordering::Acquire) {
            std::thread::park_timeout(SYNCS / 10);
        }
    }
    let (done, closed) = mpsc::channel();
    std::thread::spawn(move || {
        drop(org);
        done.send(store.close())
    });
    closed.recv_timeout(LONGEST / 2).unwrap().unwrap();
    let data = place.dir.path().join("copied");
    common::copy_dir(&place.data(), &data);
    let options = byokv::Options::new().create(false);
    let store = options.open(data, place.root_key()).unwrap();
    assert_eq!(store.org("acme").unwrap().get("kept").unwrap().as_deref(), Some(&b"v"[..]));
}
