//! Seeded schedules: three clients and an operator on one org, and whoever passes a fail point may
//! have to wait there until the others have passed some number of points, as a seed decides. So
//! threads meet in the middle of each other's steps far more often than by themselves. The names'
//! history has an order, rotations end, and nothing is left under an old key.
//!
//! `BYOKV_TORTURE` multiplies; `BYOKV_SEED` tries one seed, and those before it on its store. A seed
//! gives the same calls and decisions every time, but threads also wait for locks and for the disk, so
//! not always the same order.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "common/history.rs"]
mod history;

use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use byokv::{Error, Org, OrgPolicy, Result, Store, Suite, Swap, failpoint};
use common::{Ended, Place, blinded, key_text, material};
use history::{Event, is_linearizable};

const CLIENTS: u64 = 3;
const EACH: u64 = 8;
const NAMES: [&str; 2] = ["a/one", "a/two"];

/// A value is a number here; `None` is no record.
type Register = Option<u64>;

#[derive(Clone, Copy, Debug)]
enum Call {
    /// Of which name, and what it found.
    Get(usize, Register),
    Write(usize, Register),
    Batch([Register; 2]),
    /// Expected and new; whether it swapped, and what it found if not.
    Swap(usize, Register, Register, Option<Register>),
}

impl history::Call for Call {
    type State = [Register; 2];

    fn after(self, mut names: [Register; 2]) -> Option<[Register; 2]> {
        match self {
            Self::Get(i, found) => (found == names[i]).then_some(names),
            Self::Write(i, left) => {
                names[i] = left;
                Some(names)
            }
            Self::Batch(left) => Some(left),
            Self::Swap(i, expected, new, None) => (expected == names[i]).then(|| {
                names[i] = new;
                names
            }),
            Self::Swap(i, expected, _, Some(found)) => {
                (found == names[i] && expected != found).then_some(names)
            }
        }
    }
}

/// Splitmix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Who has to wait at a fail point, and until when.
#[derive(Default)]
struct Scheduler {
    seed: AtomicU64,
    passed: AtomicU64,
    waited: AtomicU64,
}

impl Scheduler {
    fn point(&self, point: &str) {
        /// Whom the others wait for cannot go on: given up when nobody has passed a point for so
        /// long, which is longer than a sync takes.
        const STALL: Duration = Duration::from_millis(4);

        thread_local! {
            static COUNT: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
        }

        let passed = self.passed.fetch_add(1, Ordering::SeqCst);
        let seed = self.seed.load(Ordering::SeqCst);
        let (of, count) = COUNT.get();
        let count = if of == seed { count + 1 } else { 0 };
        COUNT.set((seed, count));
        let mut hasher = DefaultHasher::new();
        (seed, std::thread::current().name(), point, count).hash(&mut hasher);
        let mut rng = Rng(hasher.finish());
        let others = match rng.below(6) {
            0 => 1 + rng.below(4),
            1 => 1 + rng.below(15),
            2 if rng.below(4) == 0 => 60,
            _ => return,
        };
        self.waited.fetch_add(1, Ordering::Relaxed);
        let (mut seen, mut since) = (passed, Instant::now());
        while seen < passed + 1 + others && since.elapsed() < STALL {
            std::thread::yield_now();
            let now = self.passed.load(Ordering::SeqCst);
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
    }
}

fn number(value: &[u8]) -> u64 {
    u64::from_be_bytes(value.try_into().unwrap())
}

/// `None` where the org's key is suspended: then nothing was done.
fn unless_suspended<T>(done: Result<T>) -> Option<T> {
    match done {
        Ok(done) => Some(done),
        Err(Error::KeySuspended { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// One call, chosen by `rng`.
fn call(org: &Org, rng: &mut Rng, last: &mut [Register; 2]) -> Option<Call> {
    let i = usize::from(rng.below(2) == 1);
    let name = NAMES[i];
    let value = rng.below(u64::MAX);
    let call = match rng.below(8) {
        0..3 => {
            let found = unless_suspended(org.get(name))?;
            Call::Get(i, found.map(|value| number(&value)))
        }
        3..5 => {
            unless_suspended(org.put(name, value.to_be_bytes()))?;
            Call::Write(i, Some(value))
        }
        5 => {
            unless_suspended(org.delete(name))?;
            Call::Write(i, None)
        }
        6 => {
            let both = [value, !value];
            let batch = org.batch().put(NAMES[0], value.to_be_bytes());
            unless_suspended(batch.put(NAMES[1], (!value).to_be_bytes()).commit())?;
            Call::Batch(both.map(Some))
        }
        _ => {
            let expected = last[i].map(u64::to_be_bytes);
            let expected = expected.as_ref().map(|bytes| &bytes[..]);
            let swap = org.compare_and_swap(name, expected, Some(&value.to_be_bytes()));
            match unless_suspended(swap)? {
                Swap::Swapped => Call::Swap(i, last[i], Some(value), None),
                Swap::Conflict { current } => {
                    let found = current.map(|value| number(&value));
                    Call::Swap(i, last[i], Some(value), Some(found))
                }
            }
        }
    };
    match call {
        Call::Get(i, found) | Call::Swap(i, _, _, Some(found)) => last[i] = found,
        Call::Write(i, left) | Call::Swap(i, _, left, None) => last[i] = left,
        Call::Batch(left) => *last = left,
    }
    Some(call)
}

/// Gives back every suspended key; `keys` are those that the org ever had.
fn resume(store: &Store, keys: &[String]) {
    let is_suspended = || {
        let versions = store.keys().status("acme").unwrap().versions;
        versions.iter().any(|version| version.state == byokv::KeyState::Suspended)
    };
    for key in keys.iter().rev() {
        if !is_suspended() {
            return;
        }
        match store.keys().resume("acme", material(key)) {
            Ok(_) | Err(Error::WrongKey { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
    assert!(!is_suspended());
}

/// One change of the org's keys, or of what they need. What does not fit the moment is refused.
fn operate(store: &Store, rng: &mut Rng, keys: &mut Vec<String>) {
    let admin = store.keys();
    let done = match rng.below(9) {
        0..3 => {
            keys.push(key_text());
            admin.provision("acme", material(keys.last().unwrap())).map(drop)
        }
        3 => {
            admin.change_suite("acme", Suite::ALL[usize::try_from(rng.below(3)).unwrap()]).map(drop)
        }
        4..6 => admin.suspend("acme").map(drop),
        6 => {
            resume(store, keys);
            Ok(())
        }
        7 => store.sync(),
        _ => match store.erase_residue() {
            // Pages under a suspended key cannot be moved.
            Err(Error::KeySuspended { .. }) => Ok(()),
            done => done.map(drop),
        },
    };
    match done {
        Ok(()) | Err(Error::KeyConflict { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Other records, which make a rotation longer.
const OTHERS: usize = 6;

/// One history on the org of `store`, from `before`.
fn history(
    store: &Store,
    keys: &mut Vec<String>,
    scheduler: &Scheduler,
    seed: u64,
    before: &mut [Register; 2],
) {
    let org = &store.org("acme").unwrap();
    let clock = &AtomicU64::new(0);
    let from = *before;
    let mut events: Vec<Event<Call>> = std::thread::scope(|scope| {
        let client = |thread: u64| {
            let work = move || {
                let mut rng = Rng(seed << 8 | thread);
                let mut last = from;
                let one = |_| {
                    scheduler.point("call");
                    let from = clock.fetch_add(1, Ordering::SeqCst);
                    let call = call(org, &mut rng, &mut last)?;
                    Some(Event { from, to: clock.fetch_add(1, Ordering::SeqCst), call })
                };
                (0..EACH).filter_map(one).collect::<Vec<_>>()
            };
            Builder::new().name(format!("client-{thread}")).spawn_scoped(scope, work).unwrap()
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        let work = || {
            let mut rng = Rng(seed << 8 | CLIENTS);
            for _ in 0..3 {
                scheduler.point("change");
                operate(store, &mut rng, keys);
            }
        };
        Builder::new().name("operator".to_owned()).spawn_scoped(scope, work).unwrap();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    resume(store, keys);
    if let Some(rotation) = store.keys().rotation("acme").unwrap() {
        rotation.ended();
    }
    for (i, name) in NAMES.into_iter().enumerate() {
        let found = org.get(name).unwrap().map(|value| number(&value));
        let at = clock.fetch_add(1, Ordering::SeqCst);
        events.push(Event { from: at, to: at, call: Call::Get(i, found) });
        before[i] = found;
    }
    assert!(is_linearizable(&events, from), "from {from:?}, in no order: {events:#?}");
    let census = store.keys().census("acme").unwrap();
    let newest = store.keys().status("acme").unwrap().versions.last().unwrap().version;
    assert!(census.by_version.keys().all(|version| *version == newest), "{census:?}");
    store.verify().unwrap();
}

#[test]
fn calls_have_an_order_and_rotations_end_on_every_schedule() {
    /// Histories of one store.
    const HISTORIES: u64 = 20;

    let torture: u64 = std::env::var("BYOKV_TORTURE").map_or(1, |text| text.parse().unwrap());
    let one: Option<u64> = std::env::var("BYOKV_SEED").ok().map(|text| text.parse().unwrap());
    let seeds = one.map_or(0..100 * torture, |seed| seed / HISTORIES * HISTORIES..seed + 1);
    let scheduler = Arc::new(Scheduler::default());
    let points = [failpoint::ALL, failpoint::BLINDED, failpoint::RESIDUE].concat();
    let hooks: Vec<_> = points
        .into_iter()
        .flat_map(|point| {
            ["acme", ""].map(|org| {
                let scheduler = Arc::clone(&scheduler);
                failpoint::on(point, org, move || scheduler.point(point))
            })
        })
        .collect();
    let tried = seeds.end - seeds.start;
    let mut place = None;
    for seed in seeds {
        scheduler.seed.store(seed, Ordering::SeqCst);
        if seed % HISTORIES == 0 {
            let fresh = Place::new();
            let store = fresh.open();
            let policy = if seed / HISTORIES % 2 == 1 { blinded() } else { OrgPolicy::byok() };
            let org = store.create_org("acme", policy).unwrap();
            (0..OTHERS).for_each(|i| org.put(format!("a/o{i}"), "x").unwrap());
            let keys = vec![key_text()];
            store.keys().provision("acme", material(&keys[0])).unwrap().ended();
            place = Some((store, keys, [None; 2], fresh));
        }
        let (store, keys, before, _) = place.as_mut().unwrap();
        if let Err(panic) =
            catch_unwind(AssertUnwindSafe(|| history(store, keys, &scheduler, seed, before)))
        {
            println!("BYOKV_SEED={seed}");
            resume_unwind(panic);
        }
    }
    drop(hooks);
    let passed = scheduler.passed.load(Ordering::Relaxed);
    let waited = scheduler.waited.load(Ordering::Relaxed);
    assert!(passed > 50 * tried && waited > 10 * tried, "{passed} {waited}");
    println!(
        "torture: schedules: {tried} seeds, {passed} points passed, {waited} waited at, 0 without an \
         order"
    );
}
