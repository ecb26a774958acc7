//! Writers enter and drain; readers are never held up.
//!
//! A writer holds its org's gate from reading the active version until its write is in the
//! tree. Replacing what the gate gives out waits for the writers inside, so that afterwards no
//! write under the old version can still arrive (invariant 4).
//!
//! The orders that these promises hang on are all in this file, so that what loom explores is
//! what ships: see `gate/model.rs`. There the snapshot of readers is behind a lock; `arc_swap`
//! promises the same: who sees what came after a `store` sees the store.

use std::ops::Deref;
use std::sync::{Arc, PoisonError};

mod sync {
    //! The locks, which loom can replace: it has neither crossbeam's nor `arc_swap`'s.
    #[cfg(not(loom))]
    pub(super) use arc_swap::{ArcSwap as Current, Guard};
    #[cfg(not(loom))]
    pub(super) use crossbeam::sync::{
        ShardedLock as Lock, ShardedLockReadGuard as ReadGuard, ShardedLockWriteGuard as WriteGuard,
    };
    #[cfg(loom)]
    pub(super) use loom::sync::{
        Mutex, RwLock as Lock, RwLockReadGuard as ReadGuard, RwLockWriteGuard as WriteGuard,
    };
    #[cfg(not(loom))]
    pub(super) use std::sync::Mutex;

    #[cfg(loom)]
    pub(super) type Guard<A> = A;
    #[cfg(loom)]
    pub(super) struct Current<T>(Lock<super::Arc<T>>);
    #[cfg(loom)]
    impl<T> Current<T> {
        pub(super) fn new(first: super::Arc<T>) -> Self {
            Self(Lock::new(first))
        }

        pub(super) fn load(&self) -> super::Arc<T> {
            super::Arc::clone(&self.0.read().unwrap())
        }

        pub(super) fn load_full(&self) -> super::Arc<T> {
            self.load()
        }

        pub(super) fn store(&self, next: super::Arc<T>) {
            *self.0.write().unwrap() = next;
        }
    }
}
use sync::{Current, Guard, Lock, Mutex, ReadGuard, WriteGuard};

/// Gives out snapshots of `T`.
pub(crate) struct Gate<T> {
    /// Held shared by each writer for the whole of its write.
    writers: Lock<Arc<T>>,
    readers: Current<T>,
    /// Held while the next snapshot is made, so that the newest wins.
    renewing: Mutex<()>,
    /// Proof for the newest snapshot that every writer inside uses.
    drained: Mutex<Arc<Drained<T>>>,
}

/// A writer inside the gate, with the one snapshot it may use. Dropping it leaves.
#[must_use = "a writer that does not stay inside is not waited for"]
pub(crate) struct Entered<'a, T>(ReadGuard<'a, Arc<T>>);

impl<T> Deref for Entered<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// No writer is inside, and none enters before this is dropped.
#[cfg_attr(not(feature = "backup"), allow(dead_code))]
#[must_use = "writers enter as soon as it is dropped"]
pub(crate) struct Held<'a, T> {
    _alone: WriteGuard<'a, Arc<T>>,
}

/// Proof that no writer is inside who entered before this snapshot was current.
pub(crate) struct Drained<T>(Arc<T>);

impl<T> Drained<T> {
    /// What every writer inside or to come uses, until it is replaced again.
    pub(crate) fn snapshot(&self) -> &Arc<T> {
        &self.0
    }
}

impl<T> Gate<T> {
    pub(crate) fn new(first: T) -> Self {
        let first = Arc::new(first);
        Self {
            writers: Lock::new(Arc::clone(&first)),
            readers: Current::new(Arc::clone(&first)),
            renewing: Mutex::new(()),
            drained: Mutex::new(Arc::new(Drained(first))),
        }
    }

    /// For an operation that writes. May wait for a replacement that is under way, never for
    /// other writers.
    pub(crate) fn enter(&self) -> Entered<'_, T> {
        Entered(self.writers.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a writer would have to wait.
    #[cfg(all(test, feature = "backup", not(loom)))]
    pub(crate) fn is_held(&self) -> bool {
        self.writers.try_read().is_err()
    }

    /// For one operation that reads; never waits for a writer, and writes to nothing that other
    /// readers use.
    pub(crate) fn look(&self) -> Guard<Arc<T>> {
        self.readers.load()
    }

    /// For whoever keeps it longer than an operation.
    pub(crate) fn snapshot(&self) -> Arc<T> {
        self.readers.load_full()
    }

    /// Does `attempt`, which fetches and opens, with one snapshot taken before; again if it
    /// fails and the snapshot was replaced meanwhile. So no reader fails because a key was just
    /// retired (invariant 6).
    pub(crate) fn read<V, E>(&self, attempt: impl FnMut(&T) -> Result<V, E>) -> Result<V, E> {
        self.read_until(attempt, Result::is_ok)
    }

    /// Likewise, again until the outcome is `settled`, whatever the snapshot, or was reached with
    /// a snapshot that is still the newest.
    pub(crate) fn read_until<V>(
        &self,
        mut attempt: impl FnMut(&T) -> V,
        settled: impl Fn(&V) -> bool,
    ) -> V {
        loop {
            let snapshot = self.look();
            let outcome = attempt(&snapshot);
            if settled(&outcome) || self.is_current(&snapshot) {
                return outcome;
            }
        }
    }

    /// Whether readers get this one now.
    pub(crate) fn is_current(&self, snapshot: &Arc<T>) -> bool {
        Arc::ptr_eq(&self.look(), snapshot)
    }

    /// Replaces the snapshot by what `newest` makes, one caller at a time, and waits for the
    /// writers inside; `false` if it makes nothing.
    ///
    /// `newest` must look only when it is called, or a slow caller puts an old snapshot over a
    /// newer one.
    pub(crate) fn renew(&self, newest: impl FnOnce(&T) -> Option<T>) -> bool {
        let _one_at_a_time = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(next) = newest(&self.snapshot()) else { return false };
        let drained = Arc::new(self.replace(next));
        *self.drained.lock().unwrap_or_else(PoisonError::into_inner) = drained;
        true
    }

    /// The newest snapshot that every writer inside uses.
    pub(crate) fn drained(&self) -> Arc<Drained<T>> {
        Arc::clone(&self.drained.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the snapshot and waits until every writer that used an older one has left.
    ///
    /// 1. For readers; must come before 2, or a reader meets a value whose version its snapshot
    ///    does not have while that snapshot still counts as current.
    /// 2. For writers, once those inside have left.
    fn replace(&self, next: T) -> Drained<T> {
        let next = Arc::new(next);
        self.readers.store(Arc::clone(&next));
        *self.writers.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&next);
        Drained(next)
    }

    /// Waits until every writer inside has left, and keeps all others out.
    #[cfg_attr(not(feature = "backup"), allow(dead_code))]
    pub(crate) fn hold(&self) -> Held<'_, T> {
        Held { _alone: self.writers.write().unwrap_or_else(PoisonError::into_inner) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Invariant 4.
    #[test]
    fn replacing_waits_for_the_writer_inside_and_holds_up_no_reader() {
        let gate = Gate::new(1);
        let inside = gate.enter();
        let (done, replaced) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| done.send(*gate.replace(2).snapshot().as_ref()));
            assert!(replaced.recv_timeout(Duration::from_millis(50)).is_err());
            while *gate.snapshot() != 2 {
                std::thread::yield_now();
            }
            assert_eq!(*inside, 1);
            drop(inside);
            assert_eq!(replaced.recv().unwrap(), 2);
        });
        assert_eq!(*gate.enter(), 2);
    }

    #[test]
    fn what_is_drained_is_what_was_renewed_last() {
        let gate = Gate::new(1);
        assert_eq!(**gate.drained().snapshot(), 1);
        assert!(gate.renew(|before| Some(before + 1)));
        assert!(!gate.renew(|_| None));
        assert_eq!((**gate.drained().snapshot(), *gate.snapshot()), (2, 2));
    }

    #[test]
    fn a_read_with_an_old_snapshot_is_done_again() {
        let gate = Gate::new(1);
        let mut seen = Vec::new();
        let read = gate.read(|snapshot| {
            seen.push(*snapshot);
            if *snapshot == 1 {
                drop(gate.replace(2));
                return Err("its snapshot was replaced");
            }
            Ok(*snapshot)
        });
        assert_eq!((read, seen), (Ok(2), vec![1, 2]));
        assert_eq!(gate.read(|_| Err::<(), _>("it is current")), Err("it is current"));
    }

    #[test]
    fn a_snapshot_outlives_its_replacement_and_knows_it() {
        let gate = Gate::new(1);
        let old = gate.snapshot();
        assert!(gate.is_current(&old));
        drop(gate.replace(2));
        assert_eq!(*old, 1);
        assert!(!gate.is_current(&old));
    }
}

#[cfg(all(test, loom))]
#[path = "gate/model.rs"]
mod model;
