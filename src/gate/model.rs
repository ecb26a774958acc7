//! Writers, readers, rotations and a retirement around one gate, under every interleaving that
//! loom finds.
//!
//! The gate is the one that ships. Around it stand the smallest things that sled, the keyring
//! and the rotation can be: a record is an atomic, an envelope the version that sealed it and a
//! value, the keyring a lock around the versions that live. Loom cannot run sled, so the steps
//! of a put (`Engine::write`), of a rewrite (`rotation::pass::rewrite`) and of a retirement
//! (`rotation::task`) are copied here, in their order and with nothing left out but the disk.

use std::sync::atomic::{AtomicU64, Ordering};

use loom::model::Builder;
use loom::sync::atomic::{AtomicU32, Ordering::SeqCst};
use loom::thread;

use super::*;

/// No record, and what a reader finds then.
const ABSENT: u32 = 0;

/// Some envelope: the version that sealed, and the value.
const fn sealed(version: u32, value: u32) -> u32 {
    version << 16 | value
}

/// The keyring, and the snapshots made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Keys {
    active: u32,
    /// Whose material lives, a bit for each.
    live: u32,
}

impl Keys {
    fn open(self, envelope: u32) -> Result<u32, u32> {
        let version = envelope >> 16;
        if envelope == ABSENT {
            return Ok(ABSENT);
        }
        if self.live & 1 << version == 0 { Err(version) } else { Ok(envelope & 0xffff) }
    }
}

struct Org {
    ring: Mutex<Keys>,
    gate: Gate<Keys>,
    record: AtomicU32,
}

impl Org {
    /// With a record of the value 1 under version 1.
    fn new() -> Arc<Self> {
        let keys = Keys { active: 1, live: 1 << 1 };
        let (ring, gate) = (Mutex::new(keys), Gate::new(keys));
        Arc::new(Self { ring, gate, record: AtomicU32::new(sealed(1, 1)) })
    }

    /// `Engine::write` without a value.
    fn delete(&self) {
        let keys = self.gate.enter();
        self.record.swap(ABSENT, SeqCst);
        drop(keys);
    }

    fn ring(&self) -> Keys {
        *self.ring.lock().unwrap()
    }

    /// As sled does it: the newest envelope, never one from a moment before.
    fn fetch(&self) -> u32 {
        self.record.fetch_add(0, SeqCst)
    }

    /// `Engine::write`.
    fn put(&self, value: u32) {
        let keys = self.gate.enter();
        let envelope = sealed(keys.active, value);
        self.record.swap(envelope, SeqCst);
        drop(keys);
    }

    /// `Engine::read`.
    fn get(&self) -> u32 {
        let read = self.gate.read(|keys| keys.open(self.fetch()));
        read.expect("a reader met a version that it had no key of")
    }

    /// `Engine::change`, then `Engine::publish`.
    fn change(&self, change: impl FnOnce(&mut Keys)) {
        change(&mut self.ring.lock().unwrap());
        assert!(self.gate.renew(|_| Some(self.ring())));
    }

    /// `Engine::install`.
    fn install(&self) {
        self.change(|ring| {
            ring.active += 1;
            ring.live |= 1 << ring.active;
        });
    }

    /// `rotation::pass::rewrite`, of the one record.
    fn rewrite(&self) {
        let mut stored = self.fetch();
        loop {
            let keys = self.gate.enter();
            match keys.open(stored) {
                Ok(ABSENT) => return,
                Ok(_) if stored >> 16 == keys.active => return,
                Ok(value) => {
                    let envelope = sealed(keys.active, value);
                    if self.record.compare_exchange(stored, envelope, SeqCst, SeqCst).is_ok() {
                        return;
                    }
                }
                Err(version) => assert_ne!(self.fetch(), stored, "no key of {version}"),
            }
            drop(keys);
            stored = self.fetch();
        }
    }

    /// A task from its pass to the retirement: what had drained → rewrite → count → retire.
    fn rotate(&self) {
        let drained = self.gate.drained();
        let leaving = drained.snapshot().live & !(1 << drained.snapshot().active);
        self.rewrite();
        let counted = 1 << (self.fetch() >> 16);
        let cleared = leaving & !counted;
        if cleared != 0 {
            self.change(|ring| ring.live &= !cleared);
        }
    }

    /// Rotates until nothing is left but the active version, and looks at everything.
    fn settle(&self, values: &[u32]) {
        assert_eq!(*self.gate.snapshot(), self.ring(), "an older keyring was published last");
        while self.ring().live != 1 << self.ring().active {
            self.rotate();
        }
        assert!(values.contains(&self.get()), "a write was lost");
        assert_eq!(**self.gate.drained().snapshot(), self.ring());
    }
}

/// Every interleaving, or those with at most so many preemptions.
fn explore(preemptions: Option<usize>, model: impl Fn(&Arc<Org>) + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = preemptions;
    let ways = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&ways);
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        model(&Org::new());
    });
    println!(
        "{} interleavings, {:?} preemptions",
        ways.load(Ordering::Relaxed),
        builder.preemption_bound
    );
}

fn spawn(org: &Arc<Org>, work: impl FnOnce(&Org) + 'static) -> thread::JoinHandle<()> {
    let org = Arc::clone(org);
    thread::spawn(move || work(&org))
}

fn join<const N: usize>(threads: [thread::JoinHandle<()>; N]) {
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Invariant 4: once a replacement has returned, no write under what it replaced follows.
#[test]
fn no_write_under_the_old_version_arrives_after_the_replacement() {
    explore(None, |org| {
        let writers = [2, 3].map(|value| spawn(org, move |org| org.put(value)));
        org.install();
        org.record.swap(sealed(2, 9), SeqCst);
        join(writers);
        assert_eq!(org.fetch() >> 16, 2, "a late write under version 1");
    });
}

/// Invariants 4 and 8: a writer, and a retirement that must not overtake it.
#[test]
fn a_version_is_retired_only_after_the_last_write_under_it() {
    explore(None, |org| {
        let writer = spawn(org, |org| org.put(2));
        let worker = spawn(org, Org::rotate);
        org.install();
        join([writer, worker]);
        org.settle(&[2]);
    });
}

/// The same for a write of a record that the pass did not find: only the gate holds the
/// retirement up.
#[test]
fn a_version_is_retired_only_after_a_write_that_no_pass_saw() {
    explore(None, |org| {
        org.delete();
        let writer = spawn(org, |org| org.put(2));
        let worker = spawn(org, Org::rotate);
        org.install();
        join([writer, worker]);
        org.settle(&[2]);
    });
}

/// Invariant 5: a record that was deleted stays so.
#[test]
fn a_rewrite_brings_nothing_back() {
    explore(None, |org| {
        let worker = spawn(org, Org::rotate);
        let reader = spawn(org, |org| assert!(org.get() <= 1));
        org.install();
        org.delete();
        join([worker, reader]);
        org.settle(&[ABSENT]);
    });
}

/// Invariant 6: a reader, while its record is rewritten and the key that it had is retired.
#[test]
fn a_reader_outlives_a_rotation() {
    explore(None, |org| {
        let reader = spawn(org, |org| assert_eq!(org.get(), 1));
        org.install();
        org.rotate();
        join([reader]);
        org.settle(&[1]);
    });
}

/// Invariant 6, the other half: a value of a version that is newer than the reader's snapshot.
#[test]
fn a_reader_meets_a_version_that_was_just_activated() {
    explore(None, |org| {
        let reader = spawn(org, |org| assert!([1, 2].contains(&org.get())));
        let writer = spawn(org, |org| org.put(2));
        org.install();
        join([reader, writer]);
        org.settle(&[2]);
    });
}

/// Two changes of the keyring at once: what is published last is the newest.
#[test]
fn the_newest_keyring_wins() {
    explore(None, |org| {
        let other = spawn(org, Org::install);
        org.install();
        join([other]);
        assert_eq!(org.ring().active, 3);
        org.settle(&[1]);
    });
}

/// All together: two writers, a reader, a rotation with a second one queued behind it, and a
/// retirement, which may be of one version or of both.
#[test]
fn all_of_it() {
    let preemptions = std::env::var("LOOM_MAX_PREEMPTIONS").ok();
    let preemptions = preemptions.map_or(3, |number| number.parse().unwrap());
    explore(Some(preemptions), |org| {
        let writers = [2, 3].map(|value| spawn(org, move |org| org.put(value)));
        let reader = spawn(org, |org| assert!((1..=3).contains(&org.get())));
        let worker = spawn(org, Org::rotate);
        org.install();
        org.install();
        join(writers);
        join([reader, worker]);
        org.settle(&[2, 3]);
    });
}
