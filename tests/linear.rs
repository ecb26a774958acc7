//! One name under four threads while its key rotates: what the threads saw has an order in which
//! a single register could have done it (Wing and Gong's search). `BYOKV_TORTURE` multiplies.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
#[path = "common/history.rs"]
mod history;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use byokv::{Org, Suite, Swap};
use common::{Place, key_text, material};
use history::is_linearizable;

type Event = history::Event<Call>;

const THREADS: usize = 4;
const EACH: usize = 6;

/// A value is a number here; `None` is no record.
type Register = Option<u64>;

#[derive(Clone, Copy, Debug)]
enum Call {
    /// What it found.
    Get(Register),
    /// What it left.
    Write(Register),
    /// Expected and new; whether it swapped, and what it found if not.
    Swap(Register, Register, Result<(), Register>),
}

impl history::Call for Call {
    type State = Register;

    fn after(self, before: Register) -> Option<Register> {
        match self {
            Self::Get(found) => (found == before).then_some(before),
            Self::Write(left) => Some(left),
            Self::Swap(expected, new, Ok(())) => (expected == before).then_some(new),
            Self::Swap(expected, _, Err(found)) => {
                (found == before && expected != before).then_some(before)
            }
        }
    }
}

fn number(value: &[u8]) -> u64 {
    u64::from_be_bytes(value.try_into().unwrap())
}

fn get(org: &Org, name: &str) -> Register {
    org.get(name).unwrap().map(|value| number(&value))
}

/// One thread's calls, chosen by `seed`.
fn calls(org: &Org, name: &str, clock: &AtomicU64, mut seed: u64) -> Vec<Event> {
    let mut last = None;
    let one = |call| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(call as u64 | 1);
        let value = seed >> 16;
        let from = clock.fetch_add(1, Ordering::SeqCst);
        let call = match seed >> 60 {
            0..4 => Call::Get(get(org, name)),
            4..8 => {
                org.put(name, value.to_be_bytes()).unwrap();
                Call::Write(Some(value))
            }
            8..10 => {
                org.delete(name).unwrap();
                Call::Write(None)
            }
            _ => {
                let (expected, new) = (last.map(u64::to_be_bytes), value.to_be_bytes());
                let expected = expected.as_ref().map(|bytes| &bytes[..]);
                match org.compare_and_swap(name, expected, Some(&new)).unwrap() {
                    Swap::Swapped => Call::Swap(last, Some(value), Ok(())),
                    Swap::Conflict { current } => {
                        Call::Swap(last, Some(value), Err(current.map(|value| number(&value))))
                    }
                }
            }
        };
        last = match call {
            Call::Get(found) | Call::Swap(_, _, Err(found)) => found,
            Call::Write(left) | Call::Swap(_, left, Ok(())) => left,
        };
        Event { from, to: clock.fetch_add(1, Ordering::SeqCst), call }
    };
    (0..EACH).map(one).collect()
}

#[test]
fn one_name_is_linearizable_while_its_key_rotates() {
    let torture: u64 = std::env::var("BYOKV_TORTURE").map_or(1, |text| text.parse().unwrap());
    let place = Place::new();
    let store = place.open();
    let org = store.create_org("acme", byokv::OrgPolicy::byok()).unwrap();
    let (stop, clock) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let rotations = scope.spawn(|| {
            let (mut count, mut suites) = (0, Suite::ALL.into_iter().cycle().skip(1));
            while !stop.load(Ordering::Relaxed) {
                store.keys().provision("acme", material(&key_text())).unwrap().wait().unwrap();
                let suite = suites.next().unwrap();
                store.keys().change_suite("acme", suite).unwrap().wait().unwrap();
                count += 2;
            }
            count
        });
        let mut before = None;
        let mut round = 0;
        // Until there was enough of both.
        while round < 1000 * torture || store.keys().status("acme").unwrap().versions.len() < 6 {
            let start = Barrier::new(THREADS);
            let (start, clock, org) = (&start, &clock, &org);
            let events: Vec<Event> = std::thread::scope(|scope| {
                let threads = [0, 1, 2, 3].map(|thread| {
                    scope.spawn(move || {
                        start.wait();
                        calls(org, "name", clock, round << 8 | thread)
                    })
                });
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(events.len(), THREADS * EACH);
            if !is_linearizable(&events, before) {
                stop.store(true, Ordering::Relaxed);
                panic!("from {before:?}, in no order: {events:#?}");
            }
            before = get(org, "name");
            round += 1;
        }
        stop.store(true, Ordering::Relaxed);
        let rotations = rotations.join().unwrap();
        println!(
            "torture: one name, 4 threads: {round} histories, {rotations} rotations, 0 without an order"
        );
    });
}

#[test]
fn the_search_tells_what_no_register_could_have_done() {
    use Call::{Get, Swap, Write};
    let at = |(from, to, call)| Event { from, to, call };
    let is = |events: &[(u64, u64, Call)]| {
        let events: Vec<_> = events.iter().copied().map(at).collect();
        is_linearizable(&events, None)
    };
    let (one, two) = (Some(1), Some(2));
    assert!(is(&[(0, 1, Write(one)), (2, 3, Get(one)), (4, 5, Write(None)), (6, 7, Get(None))]));
    assert!(is(&[(0, 3, Write(one)), (1, 2, Get(None))]), "either order, for they overlap");
    assert!(is(&[(0, 3, Write(one)), (1, 2, Get(one))]));
    assert!(!is(&[(0, 1, Write(one)), (2, 3, Get(None))]), "a lost write");
    assert!(!is(&[(0, 1, Write(one)), (2, 3, Write(None)), (4, 5, Get(one))]), "brought back");
    assert!(!is(&[(0, 9, Write(one)), (1, 2, Get(one)), (3, 4, Get(None))]), "there, then not");
    let both = [(0, 3, Swap(None, one, Ok(()))), (1, 2, Swap(None, two, Ok(())))];
    assert!(!is(&both), "one of two");
    let lost = [(0, 3, Swap(None, one, Ok(()))), (1, 2, Swap(None, two, Err(one)))];
    assert!(is(&lost));
}
