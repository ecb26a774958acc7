//! Histories of calls by several threads, and whether they have an order (Wing and Gong's search).

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// A call with the answer that it had.
pub(crate) trait Call: Copy + Debug {
    /// All that calls see and change.
    type State: Copy + Eq + Hash + Debug;

    /// The state afterwards, if the call could have had this answer.
    fn after(self, before: Self::State) -> Option<Self::State>;
}

/// A call, between two moments of a clock that all threads share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event<C> {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) call: C,
}

/// Whether some order of the events, none before one that had ended when it began, gives every
/// call its answer.
pub(crate) fn is_linearizable<C: Call>(events: &[Event<C>], first: C::State) -> bool {
    assert!(events.len() <= 64);
    let mut seen = HashSet::new();
    let mut tries = vec![(0u64, first)];
    while let Some((done, state)) = tries.pop() {
        if done.count_ones() as usize == events.len() {
            return true;
        }
        if !seen.insert((done, state)) {
            continue;
        }
        let left = || events.iter().enumerate().filter(|(i, _)| done & 1 << i == 0);
        let first_end = left().map(|(_, event)| event.to).min().unwrap();
        for (i, event) in left().filter(|(_, event)| event.from <= first_end) {
            if let Some(after) = event.call.after(state) {
                tries.push((done | 1 << i, after));
            }
        }
    }
    false
}
