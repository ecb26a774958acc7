//! Rotations that are steered towards a target, and what they say when it cannot be met.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use byokv::{Options, Progress, Rotation, Throttle};
use common::{Ended, Place, check_filled, filled};

/// Waits until the rotation is as `wanted`, on its own changes.
fn until(rotation: &Rotation, wanted: impl Fn(&Progress) -> bool) -> Progress {
    let start = Instant::now();
    loop {
        let progress = rotation.progress();
        if wanted(&progress) {
            return progress;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{progress}");
        let _ = rotation.wait_timeout(Duration::from_millis(5));
    }
}

#[test]
fn a_deadline_that_cannot_be_kept_is_told_before_it_is_over() {
    let place = Place::new();
    let store = place.open();
    filled(&store, "acme", 2000);
    let end = SystemTime::now() + Duration::from_secs(30);
    let slow = Throttle::unlimited().with_finish_by(end).with_records_per_second(20).unwrap();
    store.keys().set_throttle(slow).unwrap();
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    let told = until(&rotation, |progress| progress.warning.is_some());
    assert!(SystemTime::now() < end);
    assert!(told.warning.as_ref().unwrap().contains("later than it should"), "{told}");
    // It goes on, and the warning goes with what stood in the way.
    store.keys().set_throttle(Throttle::unlimited().with_finish_by(end)).unwrap();
    until(&rotation, |progress| progress.warning.is_none());
    store.keys().set_throttle(Throttle::unlimited()).unwrap();
    rotation.ended();
    check_filled(&store.org("acme").unwrap(), 2000);
}

/// Time enough: it takes its time, and is done before.
#[test]
fn a_rotation_that_has_time_takes_it_and_ends_before_the_deadline() {
    const TIME: Duration = Duration::from_secs(12);
    let place = Place::new();
    let store = place.open();
    filled(&store, "acme", 2000);
    store
        .keys()
        .set_throttle(Throttle::unlimited().with_finish_by(SystemTime::now() + TIME))
        .unwrap();
    let start = Instant::now();
    store.keys().rotate_platform_key("acme").unwrap().ended();
    let took = start.elapsed();
    assert!(took > TIME / 2 && took < TIME, "{took:?}");
}

#[test]
fn a_target_that_reads_miss_anyhow_is_told_and_the_rotation_ends_all_the_same() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 40_000);
    let throttle = Throttle::unlimited().with_foreground_p99(Duration::from_micros(1)).unwrap();
    store.keys().set_throttle(throttle).unwrap();
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        /// Also when an assertion ends the scope.
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _ends = Ends(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                org.get("n00007").unwrap();
            }
        });
        let told = until(&rotation, |p| p.warning.is_some() || p.fraction() == Some(1.0));
        assert!(told.warning.as_ref().is_some_and(|w| w.contains("slowest")), "{told}");
        store.keys().set_throttle(Throttle::unlimited()).unwrap();
        rotation.ended();
    });
    check_filled(&org, 40_000);
}

/// Targets and ceilings together: none keeps a rotation from ending.
#[test]
fn a_deadline_and_a_share_of_a_core_end() {
    let place = Place::new();
    let store = place.open();
    filled(&store, "acme", 300);
    let soon = Throttle::unlimited().with_finish_by(SystemTime::now() + Duration::from_secs(5));
    for throttle in
        [soon.clone().with_share_of_core(0.5), soon.with_foreground_p99(Duration::from_millis(50))]
    {
        store.keys().set_throttle(throttle.unwrap()).unwrap();
        store.keys().rotate_platform_key("acme").unwrap().ended();
    }
}

/// What was written after the count is not waited for at one record a second.
#[test]
fn a_deadline_that_is_over_does_not_slow_what_came_later() {
    let place = Place::new();
    let store = place.open();
    let org = filled(&store, "acme", 600);
    let past = Throttle::unlimited().with_finish_by(SystemTime::now() - Duration::from_secs(9));
    store.keys().set_throttle(past).unwrap();
    let rotation = store.keys().rotate_platform_key("acme").unwrap();
    rotation.pause().unwrap();
    until(&rotation, |progress| progress.paused);
    for i in 0..2000 {
        org.put(format!("z{i:04}"), "late").unwrap();
    }
    rotation.resume().unwrap();
    rotation.ended();
}

/// Names and nice values of this process's threads, by the system.
#[cfg(target_os = "linux")]
fn niceness_of_threads() -> Vec<(String, i32)> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    // A thread may end in between.
    let stats = threads.filter_map(|t| std::fs::read_to_string(t.ok()?.path().join("stat")).ok());
    stats
        .map(|stat| {
            // proc_pid_stat(5): the name in brackets, then from the state on what is separated
            // by blanks; nice is the 19th of all.
            let (name, rest) = stat.split_once('(').unwrap().1.rsplit_once(") ").unwrap();
            let nice = rest.split(' ').nth(16).unwrap();
            (name.to_owned(), nice.parse().unwrap())
        })
        .collect()
}

/// Readers and writers come first, and so do the threads that they wait for: the one that syncs,
/// and sled's, but for those that sled may start where its queue is long.
#[test]
#[cfg(target_os = "linux")]
fn only_the_rotations_threads_stand_back() {
    /// No other store of this process has it.
    const BY: u8 = 7;

    let place = Place::new();
    let options = Options::new().rotation_niceness(BY).rotation_workers(3);
    let store = options.open(place.data(), place.root_key()).unwrap();
    let before = niceness_of_threads().into_iter().map(|(_, nice)| nice).min().unwrap();
    if before + 10 > 19 {
        // Run by nice(1): there is no place further back, or others share it.
        return;
    }
    let standing_back = || {
        let all = niceness_of_threads().into_iter();
        let back = all
            .filter(|(name, nice)| *nice == before + i32::from(BY) && !name.starts_with("sled-io"));
        let mut names: Vec<_> = back.map(|(name, _)| name).collect();
        names.sort();
        names
    };
    // They have a name and a place of their own once they run.
    let start = Instant::now();
    while standing_back() != ["byokv-rewrite"; 3] {
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", standing_back());
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let org = filled(&store, "acme", 2000);
    store.keys().rotate_platform_key("acme").unwrap().ended();
    assert_eq!(standing_back(), ["byokv-rewrite"; 3]);
    check_filled(&org, 2000);
    store.close().unwrap();
    let refused = Options::new().rotation_niceness(20).open(place.data(), place.root_key());
    assert!(refused.unwrap_err().to_string().contains("0 to 19"));
}
